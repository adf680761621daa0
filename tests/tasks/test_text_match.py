"""Retrieval and findings named by words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from training_backend.config import RunConfig
from training_backend.config.presets import PRESETS, finetune_config
from training_backend.data.dataset import Dataset
from training_backend.errors import ConfigError, DataError
from training_backend.methods.base import Batch
from training_backend.methods.mae3d import METHOD
from training_backend.tasks import retrieval, vocabulary
from training_backend.tasks.base import CaseResult

TINY = {
    "method": {"embed_dim": 24, "depth": 1, "heads": 3},
    "data": {"size": (16, 16, 16)},
    "task": {"latent": 16, "text": {"width": 24, "layers": 1, "heads": 2}},
}
TEXTS = ["No pulmonary nodule.", "There is a 13 mm solid nodule.", "The heart is enlarged."]


def config(task: str, told: Path, **changes: object) -> RunConfig:
    return finetune_config(task, "tiny", told, "mae3d", TINY).updated({"task": changes})


def network(module, run: RunConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return module.TASK.build(run, METHOD.build_encoder(run))


def volumes(number: int) -> torch.Tensor:
    """Volumes of different brightness."""
    noise = torch.rand(number, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    return noise * 0.1 + torch.linspace(0, 1, number).reshape(-1, 1, 1, 1, 1)


def fit(module, model, batch: Batch, steps: int = 60) -> list[float]:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(steps):
        loss = module.TASK.training_step(model, batch, torch.Generator().manual_seed(step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("task", ["retrieval", "vocabulary"])
def test_no_preset_flips_and_published_is_published(task: str, preset: str) -> None:
    run = finetune_config(task, preset, Path("d"))
    assert run.data.augment.flip == (0, 0, 0)
    if preset == "published":
        assert (run.task.latent, run.task.project, run.task.pool, run.task.temperature) == (768, 768, 3, 1.0)


def test_reports_find_their_volumes_after_training(told: Path) -> None:
    run = config("retrieval", told)
    model = network(retrieval, run)
    batch = Batch(volume=volumes(3), case_ids=["a", "b", "c"], extra={"texts": TEXTS})
    losses = fit(retrieval, model, batch, 200)
    assert losses[-1] < 0.3 * losses[0]
    cases = [Dataset.open(told).cases()[i].model_copy(update={"report": text}) for i, text in enumerate(TEXTS)]
    results = [
        CaseResult(
            str(i),
            retrieval.TASK.predict(model, run, batch.volume[i : i + 1], None).numpy(),
            retrieval.TASK.truth(model, run, case),
            (1, 1, 1),
        )
        for i, case in enumerate(cases)
    ]
    report = retrieval.TASK.evaluate(run, results)
    assert report["text_to_volume_recall_1"] == report["volume_to_text_recall_1"] == report["score"] == 1
    assert report["text_to_volume_chance_1"] == pytest.approx(1 / 3)
    assert 0 <= report["volume_to_volume_overlap"] <= 1


def test_the_same_report_is_a_right_answer_more_than_once(told: Path) -> None:
    run = config("retrieval", told)
    model = network(retrieval, run)
    texts = [TEXTS[0], TEXTS[0], TEXTS[1], TEXTS[1]]
    batch = Batch(volume=volumes(4), case_ids=list("abcd"), extra={"texts": texts})
    losses = fit(retrieval, model, batch, 200)
    assert losses[-1] < 0.75  # each row has two right answers, so the least is log 2
    assert retrieval.TASK.training_step(model, batch, torch.Generator()).scalars["pairs_right"] == 1


def test_findings_are_scored_without_having_been_learnt(told: Path) -> None:
    run = config("retrieval", told, findings=("pulmonary nodule", "effusion"))
    model = network(retrieval, run).eval()
    output = retrieval.TASK.predict(model, run, volumes(1), None).numpy()
    assert output.shape == (18,)
    said = retrieval.TASK.told(run, output)
    assert list(said.values) == ["pulmonary nodule", "effusion"]
    assert all(0 < value < 1 for value in said.values.values())
    rng = np.random.default_rng(0)
    results = []
    for index in range(12):
        label = (rng.random(2) > 0.5).astype(float)
        latent = rng.standard_normal(16)
        results.append(
            CaseResult(str(index), np.r_[latent, 0.2 + 0.6 * label], np.r_[rng.standard_normal(16), label], (1, 1, 1))
        )
    report = retrieval.TASK.evaluate(run, results)
    assert report["zero_shot_auc"] == report["zero_shot_f1"] == 1


def test_a_batch_of_one_and_a_batch_without_reports_get_a_sentence(told: Path) -> None:
    model = network(retrieval, config("retrieval", told))
    alone = Batch(volume=volumes(1), case_ids=["a"], extra={"texts": TEXTS[:1]})
    with pytest.raises(ConfigError, match="this batch has 1"):
        retrieval.TASK.training_step(model, alone, torch.Generator())
    with pytest.raises(DataError, match="needs a report"):
        retrieval.TASK.training_step(model, Batch(volume=volumes(2), case_ids=["a", "b"]), torch.Generator())


@pytest.mark.parametrize("gates", [0, 2])
def test_named_findings_are_learnt(told: Path, gates: int) -> None:
    run = config("vocabulary", told, findings=("lung nodule", "effusion", "cardiomegaly"), gates=gates, group=2)
    model = network(vocabulary, run)
    target = torch.tensor([[0.0, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 1]])
    losses = fit(vocabulary, model, Batch(volume=volumes(4), case_ids=list("abcd"), target=target), 300)
    assert losses[0] == pytest.approx(0.25, abs=0.05)
    assert min(losses) < 0.6 * losses[0]  # at this rate the loss of gated prompts wanders
    found = vocabulary.TASK.predict(model, run, volumes(4)[:1], None)
    assert found.shape == (3,)
    assert list(vocabulary.TASK.told(run, found.numpy()).values) == ["lung nodule", "effusion", "cardiomegaly"]


def test_groups_of_findings_change_no_number(told: Path) -> None:
    losses = []
    for group in (1, 6):
        run = config("vocabulary", told, findings=("a", "b", "c"), group=group)
        batch = Batch(volume=volumes(2), case_ids=["a", "b"], target=torch.eye(3)[:2])
        model = network(vocabulary, run).eval()
        losses.append(vocabulary.TASK.training_step(model, batch, torch.Generator()).loss)
    torch.testing.assert_close(losses[0], losses[1])


def test_findings_are_the_names_of_the_labels_where_none_is_given(told: Path, tmp_path: Path) -> None:
    run = config("vocabulary", told)
    model = network(vocabulary, run)
    assert model.findings == ("lung nodule",)
    kept = vocabulary.TASK.contained(model, run).updated({"data": {"dataset": tmp_path / "gone"}})
    again = network(vocabulary, kept)
    again.load_state_dict(model.state_dict())
    first, second = (vocabulary.TASK.predict(one.eval(), kept, volumes(1), None) for one in (model, again))
    torch.testing.assert_close(first, second)
    results = [CaseResult(str(i), np.array([0.1 * i]), np.array([i > 4]), (1, 1, 1)) for i in range(10)]
    report = vocabulary.TASK.evaluate(kept, results)
    assert report["auc"] == report["best_precision"] == report["best_f1"] == report["score"] == 1


def test_only_latents_learn_where_that_is_wanted(told: Path) -> None:
    model = network(vocabulary, config("vocabulary", told, latents_only=True, findings=("nodule",))).train()
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {"to_visual_latent.weight", "to_text_latent.weight"}
    assert not model.encoder.training
    assert not model.text_transformer.training


def test_settings_that_do_not_fit_get_a_sentence(told: Path) -> None:
    with pytest.raises(ConfigError, match="Gates need visual tokens as wide as the text encoder"):
        network(vocabulary, config("vocabulary", told, gates=1, project=10))
    with pytest.raises(ConfigError, match="left from right"):
        network(vocabulary, config("vocabulary", told).updated({"data": {"augment": {"flip": (0, 0, 1)}}}))
    model = network(vocabulary, config("vocabulary", told))
    batch = Batch(volume=volumes(2), case_ids=["a", "b"], target=torch.zeros(2, 2))
    with pytest.raises(DataError, match="1 findings, but the dataset has 2 labels"):
        vocabulary.TASK.training_step(model, batch, torch.Generator())
