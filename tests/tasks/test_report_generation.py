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
from training_backend.nn.report_decoder import ranking_loss
from training_backend.nn.text_beam import Beam
from training_backend.tasks.base import Cancelled, CaseResult
from training_backend.tasks.report_generation import TASK, ReportConfig

TINY = {
    "method": {"embed_dim": 24, "depth": 1, "heads": 3},
    "data": {"size": (16, 16, 16)},
    "task": {"width": 32, "hidden": 32, "slots": 6, "queries": 3, "longest": 24, "least_count": 1, "dropout": 0.0},
}
TEXTS = ["No nodule. The heart is large.", "A nodule on the left."]


def config(told: Path, **task: object) -> RunConfig:
    return finetune_config("report_generation", "tiny", told, "mae3d", TINY).updated({"task": task})


def network(run: RunConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return TASK.build(run, METHOD.build_encoder(run))


def batch(**changes: object) -> Batch:
    """Dark and bright volumes, each with its own report."""
    noise = torch.rand(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    shade = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1, 1)
    fields = {"volume": noise * 0.2 + shade, "case_ids": ["a", "b"], "extra": {"texts": TEXTS}, **changes}
    return Batch(**fields)


@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_flips_what_reports_call_left_and_right(preset: str) -> None:
    run = finetune_config("report_generation", preset, Path("d"))
    assert run.data.augment.flip == (0, 0, 0)
    assert isinstance(run.task, ReportConfig)


@pytest.mark.parametrize("changes", [{}, {"report_memory": True, "norm": "positions"}])
def test_learns_two_reports_by_heart_and_writes_the_one_of_the_volume(told: Path, changes: dict) -> None:
    vocabulary = sorted({"no", "nodule", ".", "the", "heart", "is", "large", "a", "on", "left"})
    run = config(told, vocabulary=vocabulary, **changes)
    model = network(run).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(80):
        loss = TASK.training_step(model, batch(), torch.Generator().manual_seed(step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    model.eval()
    ids = [TASK.predict(model, run, batch().volume[i : i + 1], None) for i in range(2)]
    assert ids[0].shape == (24,)
    if not changes:  # the published training shows the model the report; it need not look at the volume then
        assert [TASK.told(run, one.numpy()).text for one in ids] == TEXTS
        results = [CaseResult(str(i), one.numpy(), np.asarray(TEXTS[i]), (1, 1, 1)) for i, one in enumerate(ids)]
        report = TASK.evaluate(run, results)
        assert report["bleu_4"] == report["score"] == pytest.approx(1)
        assert report["cider"] > 5


def test_the_vocabulary_is_that_of_the_training_reports_and_goes_with_the_model(told: Path, tmp_path: Path) -> None:
    run = config(told, least_count=3)
    model = network(run)
    known = set(model.words.known)
    assert {"nodule", "heart", ".", "<unk>"} <= known
    training = " ".join(case.report for case in Dataset.open(told).cases("train")).lower().replace(".", " ").split()
    assert all(training.count(word) >= 3 for word in known - {".", "<unk>"})
    kept = TASK.contained(model, run).updated({"data": {"dataset": tmp_path / "gone"}})
    again = network(kept)
    again.load_state_dict(model.state_dict())
    assert again.words.known == model.words.known
    assert TASK.predict(again.eval(), kept, batch().volume[:1], None).shape == (24,)


def test_labels_can_be_learnt_beside(told: Path) -> None:
    model = network(config(told, label_weight=0.1))
    output = TASK.training_step(model, batch(target=torch.eye(3)[:2]), torch.Generator())
    assert output.loss.item() == pytest.approx(output.scalars["words"].item() + 0.1 * output.scalars["labels"].item())
    with pytest.raises(DataError, match=r"labels of 3 queries .* dataset has 0"):
        TASK.training_step(model, batch(), torch.Generator())


def test_scans_and_reports_can_be_ranked_beside(told: Path) -> None:
    model = network(config(told, report_memory=True, ranking_weight=0.1))
    output = TASK.training_step(model, batch(), torch.Generator())
    words, ranking = (output.scalars[name].item() for name in ("words", "ranking"))
    assert ranking > 0
    assert output.loss.item() == pytest.approx(words + 0.1 * ranking)
    output.loss.backward()
    assert model.writer.linear_z.weight.grad is not None
    with pytest.raises(ConfigError, match="read with report_memory only"):
        config(told, ranking_weight=0.1)


def test_the_ranking_is_a_hinge_of_both_ways_round() -> None:
    image, text = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.5, 1.0], [3.0, 0.0]])
    own, other_image, other_text = [0.5, 0.0], [2.0, 3.0], [3.0, 2.0]
    terms = [max(0.0, a - c + 1) + max(0.0, b - c + 1) for a, b, c in zip(other_image, other_text, own, strict=True)]
    assert ranking_loss(image, text).item() == pytest.approx(sum(terms) / 2)
    assert ranking_loss(10 * torch.eye(2), torch.eye(2)).item() == 0
    alone = torch.ones(1, 2, requires_grad=True)
    ranking_loss(alone, alone).backward()
    assert torch.equal(alone.grad, torch.zeros(1, 2))


def test_bad_settings_and_data_get_a_sentence(told: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="left from right"):
        network(config(told).updated({"data": {"augment": {"flip": (0, 0, 0.5)}}}))
    with pytest.raises(ConfigError, match="cannot be divided among 3 heads"):
        config(told, heads=3)
    with pytest.raises(DataError, match="1000 times in the training reports"):
        network(config(told, least_count=1000))
    with pytest.raises(DataError, match="needs a report for each case"):
        TASK.training_step(network(config(told)), batch(extra={}), torch.Generator())
    with pytest.raises(Cancelled):
        TASK.predict(network(config(told)), config(told), batch().volume[:1], lambda share: False)


def test_long_reports_are_counted_in_the_log_and_not_quoted(told: Path, caplog: pytest.LogCaptureFixture) -> None:
    cases = Dataset.open(told).cases()
    TASK.check(config(told, longest=10), cases)
    assert "24 of 24 reports have more than 8 words" in caplog.text
    assert "nodule" not in caplog.text
    caplog.clear()
    TASK.check(config(told, longest=150), cases)
    assert caplog.text == ""


def test_the_encoder_learns_at_its_own_share_of_the_rate(told: Path) -> None:
    model = network(config(told))
    depths = {name: TASK.layer_id(model, name) for name, _ in model.named_parameters()}
    assert {depth for name, depth in depths.items() if name.startswith("encoder.")} == {0}
    assert {depth for name, depth in depths.items() if not name.startswith("encoder.")} == {1}


def test_a_frozen_encoder_stays_as_it_is(told: Path) -> None:
    model = network(config(told, freeze_encoder=True)).train()
    TASK.training_step(model, batch(), torch.Generator()).loss.backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert any(p.grad is not None for p in model.writer.parameters())
    assert not model.encoder.training


def test_trigrams_are_blocked_on_wish(told: Path) -> None:
    model, volume = network(config(told)).eval(), batch().volume
    repeats = []
    for block in (False, True):
        ids = model.write(volume, Beam(2, 24, block))[0].tolist()
        runs = [tuple(ids[i : i + 3]) for i in range(22) if 0 not in ids[i : i + 3]]
        repeats.append(len(runs) - len(set(runs)))
    assert repeats[1] == 0 < repeats[0]  # an untrained writer repeats itself
