from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training_backend.config import RunConfig
from training_backend.config.presets import PRESETS, finetune_config
from training_backend.errors import ConfigError, DataError
from training_backend.methods.base import Batch
from training_backend.methods.mae3d import METHOD
from training_backend.tasks.base import Cancelled, CaseResult
from training_backend.tasks.classification import (
    TASK,
    ClassificationConfig,
    classification_loss,
    evidence,
    mixed,
    soft_target,
)

TINY = {"method": {"embed_dim": 24, "depth": 2, "heads": 3}, "data": {"size": (16, 16, 16)}}


def config(**task: object) -> RunConfig:
    return finetune_config("classification", "tiny", Path("d"), "mae3d", {**TINY, "task": task})


def network(run: RunConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return TASK.build(run, METHOD.build_encoder(run))


def labelled(target: torch.Tensor) -> Batch:
    """Volumes whose brightness tells the target."""
    shade = target.reshape(len(target), -1).float().mean(1).reshape(-1, 1, 1, 1, 1)
    volume = torch.rand(len(target), 1, 16, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.2 + shade
    return Batch(volume=volume, case_ids=[str(i) for i in range(len(target))], target=target)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_valid_run(preset: str) -> None:
    run = finetune_config("classification", preset, Path("d"))
    assert run.task == ClassificationConfig()
    assert run.data.view == "volume"


@pytest.mark.parametrize(
    "task, target",
    [
        ({}, torch.tensor([0.0, 1.0, 0.0, 1.0])),
        ({"hidden": (8,)}, torch.tensor([[0.0], [1.0], [0.0], [1.0]])),
        ({"kind": "multiclass", "classes": 3, "pooling": "class"}, torch.tensor([0.0, 1.0, 2.0, 1.0])),
        (
            {"kind": "multiclass", "classes": 2, "pooling": "tokens", "balanced": True},
            torch.tensor([0.0, 1.0, 1.0, 1.0]),
        ),
        ({"kind": "multilabel", "classes": 2}, torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])),
    ],
)
def test_learns_a_batch_by_heart_and_predicts_probabilities(task: dict, target: torch.Tensor) -> None:
    run = config(**task)
    model = network(run).train()
    batch = labelled(target)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(100):
        loss = TASK.training_step(model, batch, torch.Generator().manual_seed(step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    probabilities = TASK.predict(model.eval(), run, batch.volume[:1], None)
    assert probabilities.shape == (run.task.classes,)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    if run.task.kind == "multiclass":
        assert probabilities.sum().item() == pytest.approx(1)


def test_losses_are_the_published_ones() -> None:
    logits, generator = torch.randn(5, 3), torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (5, 3), generator=generator)
    several = ClassificationConfig(kind="multilabel", classes=3, class_weights=(4.0, 23.6, 0.9))
    expected = F.binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=torch.tensor([4.0, 23.6, 0.9]))
    torch.testing.assert_close(classification_loss(logits, soft_target(labels, several), several), expected)
    classes = torch.tensor([0, 2, 1, 1, 0])
    one = ClassificationConfig(kind="multiclass", classes=3, smoothing=0.1)
    expected = F.cross_entropy(logits, classes, label_smoothing=0.1)
    torch.testing.assert_close(classification_loss(logits, soft_target(classes, one), one), expected)


def test_balanced_classes_count_the_same_and_a_class_that_is_absent_counts_nothing() -> None:
    logits, classes = torch.randn(6, 3), torch.tensor([0, 0, 0, 0, 1, 1])
    task = ClassificationConfig(kind="multiclass", classes=3, balanced=True)
    means = [F.cross_entropy(logits[classes == each], classes[classes == each]) for each in (0, 1)]
    loss = classification_loss(logits, soft_target(classes, task), task)
    torch.testing.assert_close(loss, (means[0] + means[1]) / 3)


def test_evidence_of_patches_adds_up_to_the_answer() -> None:
    run = config(kind="multiclass", classes=2, pooling="tokens")
    model, volume = network(run).eval(), torch.rand(1, 1, 16, 16, 16)
    probabilities = TASK.predict(model, run, volume, None)
    torch.testing.assert_close(evidence(model, volume).mean(dim=(1, 2, 3)).softmax(0), probabilities)


def test_mixup_blends_volumes_and_targets_alike_and_only_by_the_generator() -> None:
    volume, target = torch.arange(4.0).reshape(4, 1, 1, 1, 1), torch.arange(4.0).reshape(4, 1)
    first, second = (mixed(volume, target, 0.8, torch.Generator().manual_seed(2)) for _ in range(2))
    torch.testing.assert_close(first[0].reshape(4, 1), first[1])
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[0], volume)
    assert first[1].sum().item() == pytest.approx(6.0)


def test_other_sizes_than_whole_patches_are_padded() -> None:
    run = config()
    assert TASK.predict(network(run).eval(), run, torch.rand(1, 1, 17, 9, 20), None).shape == (1,)


def test_a_prediction_can_be_cancelled() -> None:
    run = config()
    with pytest.raises(Cancelled):
        TASK.predict(network(run).eval(), run, torch.rand(1, 1, 16, 16, 16), lambda share: False)


@pytest.mark.parametrize(
    "task, target, sentence",
    [
        ({}, None, "needs a target"),
        ({}, torch.zeros(2, 3), "1 labels per case, but the dataset has 3"),
        ({"kind": "multiclass", "classes": 2}, torch.tensor([0.0, 2.0]), "class number 2"),
    ],
)
def test_targets_that_do_not_fit_get_a_sentence(task: dict, target: torch.Tensor | None, sentence: str) -> None:
    model = network(config(**task))
    batch = Batch(volume=torch.rand(2, 1, 16, 16, 16), case_ids=["a", "b"], target=target)
    with pytest.raises(DataError, match=sentence):
        TASK.training_step(model, batch, torch.Generator())


def test_one_volume_at_a_time_cannot_train_a_head_with_batch_norm() -> None:
    model = network(config(hidden=(8,)))
    with pytest.raises(ConfigError, match="at least 2 volumes"):
        TASK.training_step(model, labelled(torch.tensor([1.0])), torch.Generator())


@pytest.mark.parametrize(
    "task",
    [
        {"classes": 2},
        {"kind": "multiclass"},
        {"kind": "multilabel", "classes": 2, "class_weights": (1.0,)},
        {"pooling": "tokens", "hidden": (8,)},
        {"kind": "multilabel", "classes": 2, "balanced": True},
    ],
)
def test_contradicting_settings_get_a_sentence(task: dict) -> None:
    with pytest.raises(ConfigError, match=r"exactly 1 output|needs 2 entries|leave hidden empty|needs kind multiclass"):
        config(**task)


def test_layers_of_encoder_and_head_are_numbered() -> None:
    model = network(config())
    depths = {name: TASK.layer_id(model, name) for name, _ in model.named_parameters()}
    assert depths["encoder.patch_embed.proj.weight"] == 0
    assert depths["encoder.blocks.1.attn.qkv.weight"] == 2
    assert depths["fc_norm.weight"] == depths["head.weight"] == max(depths.values()) == 3


def test_evaluation_of_cases_gives_intervals_and_a_score() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 40)
    noisy = np.clip(truth * 0.3 + rng.random(40) * 0.7, 0, 1)
    cases = [CaseResult(str(i), np.array([p]), np.array([t]), (1, 1, 1)) for i, (p, t) in enumerate(zip(noisy, truth))]
    report = TASK.evaluate(config(), cases)
    assert report["auc_low"] < report["auc"] == report["score"] < report["auc_high"]


def test_the_best_model_may_be_that_with_the_largest_sum() -> None:
    run = config(kind="multiclass", classes=3, choose="sum", pooling="patches", hidden=(8,))
    rng = np.random.default_rng(0)
    cases = [
        CaseResult(str(i), rng.dirichlet(np.ones(3)), np.asarray([i % 3], np.float32), (1.0, 1.0, 1.0))
        for i in range(9)
    ]
    found = TASK.evaluate(run, cases)
    assert found["score"] == pytest.approx(found["auc_pairs"] + found["accuracy"] + found["f1"])
    net = network(run).train()
    assert TASK.training_step(net, labelled(torch.tensor([2.0])), torch.Generator()).loss > 0  # one volume is enough
