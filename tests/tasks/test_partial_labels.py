"""Partly labelled cases: what nobody labelled or looked for costs nothing and counts nowhere."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tasks.test_segmentation import GENERATOR, config, network
from training_backend.methods.base import Batch
from training_backend.nn.dice import annotated_classes, dice_ce
from training_backend.nn.medcoss_downstream import dice_bce, set_targets
from training_backend.tasks.base import CaseResult
from training_backend.tasks.segmentation import TASK

OPTIONS = [{}, {"squared": True, "smooth": 1e-6}, {"background": False}]


def example(seed: int = 0, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [2, K, 4, 4, 4] and labels of all classes."""
    made = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 4, 4, 4, generator=made)
    return logits, torch.randint(0, classes, (2, 4, 4, 4), generator=made)


@pytest.mark.parametrize("options", OPTIONS)
def test_finding_a_class_that_nobody_looked_for_costs_nothing(options: dict[str, object]) -> None:
    """Only how background and such classes share their probability is free; everything else is not."""
    logits, labels = example()
    labels[labels == 2] = 0  # nobody drew class 2
    known = annotated_classes([(1,), (1,)], 3)
    before = dice_ce(logits, labels, annotated=known, **options)  # type: ignore[arg-type]
    total = torch.logsumexp(logits[:, [0, 2]], 1)
    moved = logits.clone()
    moved[:, 2] = total - 0.01  # nearly all of it is class 2 now
    moved[:, 0] = total + math.log1p(-math.exp(-0.01))
    after = dice_ce(moved, labels, annotated=known, **options)  # type: ignore[arg-type]
    assert torch.allclose(torch.stack(before), torch.stack(after), atol=1e-5)
    plain = dice_ce(logits, labels, **options), dice_ce(moved, labels, **options)  # type: ignore[arg-type]
    assert sum(plain[1]) > sum(plain[0]) + 0.1
    moved[:, 1] += 3
    worse = dice_ce(moved, labels, annotated=known, **options)  # type: ignore[arg-type]
    assert not torch.allclose(torch.stack(worse), torch.stack(after), atol=1e-2)


@pytest.mark.parametrize("options", OPTIONS)
def test_the_loss_is_that_of_a_network_without_the_class(options: dict[str, object]) -> None:
    logits, labels = example()
    labels[labels == 2] = 0
    joined = torch.stack([torch.logsumexp(logits[:, [0, 2]], 1), logits[:, 1]], dim=1)
    expected = dice_ce(joined, labels, **options)  # type: ignore[arg-type]
    found = dice_ce(logits, labels, annotated=annotated_classes([(1,), (1,)], 3), **options)  # type: ignore[arg-type]
    assert torch.allclose(torch.stack(found), torch.stack(expected), atol=1e-6)


def test_samples_of_a_batch_may_differ_and_all_classes_change_no_bit() -> None:
    logits, labels = example()
    assert annotated_classes([None, None], 3) is None
    every = annotated_classes([(1, 2), None], 3)
    assert every is not None
    assert every.all()
    assert torch.allclose(
        torch.stack(dice_ce(logits, labels, annotated=every)), torch.stack(dice_ce(logits, labels)), atol=1e-6
    )
    mixed = annotated_classes([(1,), None], 3)
    assert mixed is not None
    assert mixed.tolist() == [[True, True, False], [True, True, True]]
    labels[0][labels[0] == 2] = 0
    assert sum(dice_ce(logits, labels, annotated=mixed)) != sum(dice_ce(logits, labels))


def test_gradients_are_finite_and_the_unlabelled_get_none() -> None:
    logits, labels = example()
    labels[labels == 2] = 0
    labels[0, :2] = 255
    logits.requires_grad_()
    dice, entropy = dice_ce(logits, labels, annotated=annotated_classes([(1,), None], 3))
    (dice + entropy).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[0, :, :2].any()
    assert logits.grad[0, :, 2:].any()


def test_outputs_of_their_own_sigmoid_are_left_out_whole() -> None:
    _, labels = example()
    labels[labels == 2] = 0
    sets = (frozenset({1, 2}), frozenset({2}), frozenset({1}))
    targets = set_targets(labels, sets, [(1,), None])
    assert (targets[0, :2] == -1).all()
    assert (targets[0, 2] == (labels[0] == 1)).all()
    assert (targets[1] == set_targets(labels, sets)[1]).all()
    logits = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    before = dice_bce(logits, targets)
    logits[0, :2] += 5
    assert torch.equal(torch.stack(before), torch.stack(dice_bce(logits, targets)))


@pytest.mark.parametrize("loss", ["dice_ce", "dice_bce"])
def test_the_step_of_the_task_listens_to_the_list_of_its_cases(loss: str) -> None:
    run = config(task={"classes": ("background", "ball", "cube"), "loss": loss})
    made = network(run)
    volume = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = (volume[:, 0] > 1).long()
    ids = ["a", "b"]
    plain = TASK.training_step(made, Batch(volume, ids, labels), GENERATOR).loss
    same = TASK.training_step(made, Batch(volume, ids, labels, extra={"annotated": [None, None]}), GENERATOR).loss
    partial = TASK.training_step(made, Batch(volume, ids, labels, extra={"annotated": [(1,), (1,)]}), GENERATOR).loss
    assert torch.equal(plain, same)
    assert not torch.equal(plain, partial)
    partial.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in made.parameters())


def test_metrics_leave_out_what_was_not_looked_for() -> None:
    run = config(task={"classes": ("background", "ball", "cube"), "regions": ("both = ball + cube",)})
    truth = np.zeros((4, 4, 4), np.uint8)
    truth[0] = 1
    prediction = truth.copy()
    prediction[2:] = 2  # nobody can say whether that is right
    truth[3] = 255
    everything = CaseResult("a", prediction, truth, (1, 1, 1))
    partial = CaseResult("a", prediction, truth, (1, 1, 1), annotated=(1,))
    assert TASK.evaluate(run, [everything])["dice_cube"] == 0
    found = TASK.evaluate(run, [partial])
    assert found["dice"] == found["dice_ball"] == 1
    assert not {"dice_cube", "dice_both"} & set(found)


def test_a_run_goes_on_with_head_and_decoder_only_for_the_same_classes(tmp_path: Path) -> None:
    from training_backend.config.registry import method
    from training_backend.data.dataset import Dataset
    from training_backend.data.manifest import DatasetInfo
    from training_backend.data.prepare import InputProfile
    from training_backend.engine.work import build_network
    from training_backend.weights.save import save_model

    run = config()
    torch.manual_seed(5)
    former = TASK.build(run, method("mae3d").build_encoder(run))
    profile = InputProfile.of(run, DatasetInfo(name="balls"))
    card = {"kind": "finetune", "config": run.model_dump(mode="json"), "profile": profile.model_dump(mode="json")}
    save_model(tmp_path, former, card)
    Dataset(tmp_path, DatasetInfo(name="balls")).save()
    fresh = build_network(run, method("mae3d"), TASK)[0].state_dict()

    def alike(classes: tuple[str, ...]) -> tuple[set[str], dict[str, torch.Tensor]]:
        wanted = run.updated({"weights": str(tmp_path), "task": {"classes": classes}})
        built, report = build_network(wanted, method("mae3d"), TASK)
        assert report is not None
        state = built.state_dict()
        return {name for name, value in former.state_dict().items() if torch.equal(value, state[name])}, state

    same, _ = alike(("background", "ball"))
    assert same == set(former.state_dict())
    other, state = alike(("background", "cube"))
    new = {name for name in fresh if not name.startswith("encoder.")}
    assert {name for name in other if name.startswith("encoder.")} == set(fresh) - new
    assert all(torch.equal(state[name], fresh[name]) for name in new)
