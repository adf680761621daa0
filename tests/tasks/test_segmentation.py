"""The segmentation task: configuration, class names, loss, learning, prediction and scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss

from training_backend.config import RunConfig
from training_backend.config.presets import PRESETS, finetune_config
from training_backend.config.registry import method, task
from training_backend.data.dataset import Dataset
from training_backend.data.manifest import CaseRecord, ClassEntry, DatasetInfo
from training_backend.errors import ConfigError, DataError
from training_backend.methods.base import Batch
from training_backend.nn.param_groups import layer_decay_groups
from training_backend.tasks.base import CaseResult
from training_backend.tasks.segmentation import TASK, check_labels, class_names, cleaned

ENCODER = {"size": "tiny", "patch_size": (8, 8, 8), "embed_dim": 24, "heads": 2, "depth": 2}
GENERATOR = torch.Generator()


def config(**changes: object) -> RunConfig:
    small = {
        "method": ENCODER,
        "task": {"classes": ("background", "ball"), "channels": (8, 8, 16)},
        "data": {"size": (16, 16, 16)},
    }
    base = finetune_config("segmentation", "tiny", Path("nowhere"), changes=small)
    return base.updated(changes)


def network(run: RunConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return TASK.build(run, method("mae3d").build_encoder(run))


def balls(count: int, shape: tuple[int, int, int] = (16, 16, 16)) -> Batch:
    """Volumes with a bright ball each, and its label."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    centres = rng.uniform(4, 12, (count, 1, 1, 1, 3))
    labels = (np.linalg.norm(grid - centres, axis=-1) < 4).astype(np.int64)
    volume = labels + 0.3 * rng.standard_normal(labels.shape)
    return Batch(torch.from_numpy(volume[:, None]).float(), [str(i) for i in range(count)], torch.from_numpy(labels))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_make_valid_runs_whose_views_fit_the_patches(preset: str) -> None:
    run = finetune_config("segmentation", preset, Path("data"), changes={"task": {"classes": ("rest", "organ")}})
    assert run.task is not None
    assert run.data.view == "crop"
    assert all(size % patch == 0 for size, patch in zip(run.data.size, run.method.patch_size, strict=True))
    assert task("segmentation") is TASK


def test_classes_come_from_the_dataset_unless_given(tmp_path: Path) -> None:
    entries = tuple(
        ClassEntry(index=i, name=n, colour="#000000") for i, n in ((0, "background"), (1, "liver"), (3, "spleen"))
    )
    Dataset(tmp_path, DatasetInfo(name="organs", classes=entries)).save()
    run = config(task={"classes": ()}, data={"dataset": tmp_path})
    assert class_names(run) == ("background", "liver", "unused 2", "spleen")
    assert class_names(config()) == ("background", "ball")


def test_all_254_values_and_names_that_occur_twice_make_a_valid_run(tmp_path: Path) -> None:
    entries = [
        ClassEntry(index=i, name="vessel" if i in (3, 7) else f"class {i}", colour="#000000") for i in (3, 7, 254)
    ]
    Dataset(tmp_path, DatasetInfo(name="many", classes=tuple(entries))).save()
    run = config(task={"classes": ()}, data={"dataset": tmp_path})
    names = run.updated({"task": {"classes": class_names(run)}}).task.classes  # type: ignore[union-attr]
    assert len(names) == 255
    assert (names[0], names[3], names[7], names[254]) == ("background", "vessel 3", "vessel 7", "class 254")


def test_label_values_without_a_class_are_refused_before_training() -> None:
    case = CaseRecord(id="case_1", subject="1", store={"label": {"values": {"1": 10, "2": 5}}})
    with pytest.raises(ConfigError, match="2 classes, for label values 0 to 1, but case case_1 has 2"):
        check_labels(config(), [case])
    check_labels(config(task={"classes": ("background", "ball", "cube")}), [case])


def test_datasets_without_labels_are_refused(tmp_path: Path) -> None:
    Dataset(tmp_path, DatasetInfo(name="unlabelled")).save()
    with pytest.raises(ConfigError, match="unlabelled"):
        class_names(config(task={"classes": ()}, data={"dataset": tmp_path}))


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ("one",)},
        {"classes": ("a", "a")},
        {"channels": (16,)},
        {"overlap": 1.0},
        {"regions": ("all",)},
        {"regions": ("all = ball + cube",)},
        {"regions": ("all = 1 + 2",)},
        {"regions": ("ball = ball",)},
        {"regions": ("all = ball", "all = ball")},
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        config(task=changes)


@pytest.mark.parametrize(
    "task, enough",
    [({}, 0.75), ({"decoder": "unetr", "feature_size": 4, "loss": "dice_ce_squared", "blend": "constant"}, 0.6)],
)
def test_learns_to_find_balls_within_seconds_and_predicts_them_in_larger_scans(
    task: dict[str, object], enough: float
) -> None:
    run = config(task=task)
    net, batch = network(run), balls(8)
    optimiser = torch.optim.AdamW(net.parameters(), 5e-3)
    net.train()
    losses = []
    for _ in range(80):
        loss = TASK.training_step(net, batch, GENERATOR).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.25 * losses[0]
    scan = balls(1, (19, 30, 23))
    shares: list[float] = []
    found = TASK.predict(net, run, scan.volume, lambda share: shares.append(share) is None)
    assert found.shape == (2, 19, 30, 23)
    assert torch.allclose(found.sum(0), torch.ones(19, 30, 23), atol=1e-5)
    assert shares[-1] == 1.0
    result = CaseResult("scan", found.argmax(0).numpy(), scan.labels[0].numpy(), (1.0, 1.0, 1.0))
    assert TASK.evaluate(run, [result])["score"] > enough


def test_the_same_batch_gives_the_same_loss() -> None:
    run, batch = config(), balls(2)
    first, second = (TASK.training_step(network(run).train(), batch, GENERATOR).loss for _ in range(2))
    assert torch.equal(first, second)


def test_voxels_outside_the_scan_do_not_count() -> None:
    run, batch = config(), balls(1)
    net = network(run).eval()
    padding = torch.zeros_like(batch.labels, dtype=torch.bool)
    padding[:, 8:] = True
    masked = batch.labels.masked_fill(padding, 255)
    outside = Batch(batch.volume, batch.case_ids, batch.labels, padding=padding)
    unlabelled = Batch(batch.volume, batch.case_ids, masked)
    losses = [float(TASK.training_step(net, b, GENERATOR).loss.detach()) for b in (batch, outside, unlabelled)]
    assert losses[1] == losses[2] != losses[0]


def test_deep_supervision_sees_labels_at_the_centres_of_coarse_voxels() -> None:
    run = config(task={"deep_supervision": True, "stem_stride": 1})
    output = TASK.training_step(network(run).train(), balls(2), GENERATOR)
    assert output.loss.isfinite()
    assert set(output.scalars) == {"dice_loss", "cross_entropy"}


def test_cases_without_labels_are_named() -> None:
    with pytest.raises(DataError, match="patient-7"):
        TASK.training_step(network(config()), Batch(torch.rand(1, 1, 16, 16, 16), ["patient-7"]), GENERATOR)


def test_without_background_the_loss_is_that_of_monai_s_swin_unetr_recipe() -> None:
    run = config(task={"loss": "dice_ce_foreground", "classes": ("background", "ball", "nothing")})
    net, batch = network(run).eval(), balls(2)
    output = TASK.training_step(net, batch, GENERATOR)
    recipe = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    expected = recipe(net(batch.volume)[0], batch.labels[:, None])
    torch.testing.assert_close(output.loss.detach(), expected.detach())


def test_the_squared_loss_is_that_of_monai_s_unetr_recipe() -> None:
    net, batch = network(config(task={"loss": "dice_ce_squared"})).eval(), balls(2)
    batch.labels[1] = 0  # a view without the class
    output = TASK.training_step(net, batch, GENERATOR)
    recipe = {"to_onehot_y": True, "softmax": True, "squared_pred": True, "smooth_nr": 0.0, "smooth_dr": 1e-6}
    expected = DiceLoss(**recipe)(net(batch.volume)[0], batch.labels[:, None])
    torch.testing.assert_close(output.scalars["dice_loss"], expected.detach())
    assert float(output.loss.detach()) == pytest.approx(
        float(output.scalars["dice_loss"] + output.scalars["cross_entropy"])
    )


def test_layer_decay_slows_the_encoder_and_not_the_rest() -> None:
    net = network(config())
    groups = layer_decay_groups(net, lambda name: TASK.layer_id(net, name), 3, 0.5)
    scale = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert scale["encoder.patch_embed.proj.weight"] == 0.5**3
    assert scale["encoder.blocks.1.mlp.fc1.weight"] == 0.5
    assert {scale["head.weight"], scale["fuse.1.expand.weight"], scale["down.0.0.weight"]} == {1.0}


def test_scores_leave_out_classes_that_no_case_has() -> None:
    run = config(task={"classes": ("background", "a", "b", "c")})
    one = CaseResult("1", np.array([[[1, 2]]]), np.array([[[1, 1]]]), (1.0, 1.0, 1.0))
    two = CaseResult("2", np.array([[[1, 1]]]), np.array([[[1, 255]]]), (1.0, 1.0, 1.0))
    scores = TASK.evaluate(run, [one, two])
    assert scores["dice_a"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["dice_b"] == 0.0
    assert "dice_c" not in scores
    assert scores["score"] == pytest.approx(scores["dice_a"] / 2)


def test_regions_are_scored_besides_their_classes_and_choose_the_model() -> None:
    classes = ("background", "core", "edema", "rim")
    run = config(task={"classes": classes, "regions": ("WT = core + edema + rim", "TC = 1 + 3")})
    truth, found = np.array([[[1, 2, 3, 0]]]), np.array([[[3, 2, 1, 0]]])
    scores = TASK.evaluate(run, [CaseResult("1", found, truth, (1.0, 1.0, 1.0))])
    assert (scores["dice_WT"], scores["dice_TC"], scores["dice_core"], scores["dice_edema"]) == (1, 1, 0, 1)
    assert (scores["score"], scores["regions"], scores["dice"]) == (1, 1, pytest.approx(1 / 3))
    empty = CaseResult("2", np.zeros((1, 1, 4)), np.array([[[0, 0, 255, 255]]]), (1.0, 1.0, 1.0))
    assert TASK.evaluate(run, [empty])["score"] == 0
    assert TASK.evaluate(run, [empty, CaseResult("3", found, truth, (1.0, 1.0, 1.0))])["regions"] == 1


NESTED = {
    "classes": ("background", "liver", "tumour"),
    "loss": "dice_bce",
    "regions": ("organ = liver + tumour",),
    "outputs": ("organ", "tumour"),
}


def test_outputs_of_their_own_sigmoid_learn_an_organ_with_its_tumour() -> None:
    run = config(task={**NESTED, "test_flips": True})
    net, batch = network(run), balls(8)
    assert batch.labels is not None
    inner = torch.nn.functional.avg_pool3d(batch.labels[:, None].float(), 3, 1, 1)[:, 0] > 0.99
    batch.volume[inner[:, None]] += 1.5
    batch.labels[inner] = 2
    optimiser = torch.optim.AdamW(net.parameters(), 5e-3)
    net.train()
    for _ in range(60):
        loss = TASK.training_step(net, batch, GENERATOR).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    found = TASK.predict(net, run, batch.volume[:1], None)
    assert found.shape == (3, 16, 16, 16)
    scores = TASK.evaluate(run, [CaseResult("a", found.argmax(0).numpy(), batch.labels[0].numpy(), (1.0, 1.0, 1.0))])
    assert scores["dice_organ"] > 0.8
    assert scores["dice_tumour"] > 0.6
    assert scores["score"] == scores["dice_organ"]


def test_voxels_outside_the_scan_teach_no_output() -> None:
    run = config(task={"loss": "dice_bce"})
    net, batch = network(run).train(), balls(2)
    batch.padding = torch.zeros(2, 16, 16, 16, dtype=torch.bool)
    batch.padding[:, :, 8:] = True
    loss = TASK.training_step(net, batch, GENERATOR).loss
    assert batch.labels is not None
    batch.labels[:, :, 8:] = 1 - batch.labels[:, :, 8:]
    torch.testing.assert_close(TASK.training_step(net, batch, GENERATOR).loss, loss)


def test_parts_that_anatomy_rules_out_are_cleaned_from_predictions() -> None:
    run = config(task={**NESTED, "largest": ("organ",), "smallest": {"tumour": 2}})
    labels = torch.zeros(8, 8, 8, dtype=torch.uint8)
    labels[:5, :5, :5], labels[2, 2, 2], labels[7, 7, 7] = 1, 2, 2
    expected = labels.clone()
    expected[2, 2, 2], expected[7, 7, 7] = 1, 0
    assert torch.equal(cleaned(labels, run), expected)
    assert cleaned(labels, config(task=NESTED)) is labels


@pytest.mark.parametrize(
    "task, sentence",
    [
        ({**NESTED, "outputs": ("tumour", "organ")}, "cannot be told apart"),
        ({**NESTED, "outputs": ("organ",)}, "cannot be told apart"),
        ({**NESTED, "outputs": ("liver",)}, "stand for 1 of 2 classes"),
        ({**NESTED, "outputs": ("organ", "spleen")}, "'spleen' is neither a class nor a region"),
        ({**NESTED, "loss": "dice_ce"}, "outputs are told apart with the loss dice_bce only"),
        ({**NESTED, "largest": ("lung",)}, "'lung' is neither a class nor a region"),
    ],
)
def test_outputs_that_make_no_sense_get_a_sentence(task: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        network(config(task=task))


@pytest.mark.parametrize(("size", "told"), [((48, 64, 64), "64 x 64 x 64"), ((64, 64, 64), "")])
def test_views_that_the_network_pads_are_told(
    size: tuple[int, int, int], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"data": {"size": size}, "task": {"classes": ("background", "organ"), "decoder": "swinunetr"}}
    config = finetune_config("segmentation", "tiny", Path(), "voco", changes)
    TASK.build(config, method("voco").build_encoder(config))
    assert (f"padded to {told}" in caplog.text) == bool(told)
