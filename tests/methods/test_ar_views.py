"""What AR-SSL4M's views show: true numbers of the network, on the right patches, frame after frame."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.config.registry import method, task
from training_backend.errors import ConfigError
from training_backend.methods.base import Frame
from training_backend.nn.ar_predict import teacher_forced, token_losses

AR = method("ar")
VIEWS = {view.name: view for view in AR.views}
SIZE, PATCH = (16, 24, 20), (4, 4, 4)
LENGTH = 4 * 6 * 5
CHANGES: dict[str, Any] = {"data": {"size": SIZE}, "method": {"patch_size": PATCH, "depth": 2}}


@pytest.fixture(params=["interleaved", "slab-major"])
def network(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    changes = {**CHANGES, "method": {**CHANGES["method"], "order": request.param}}
    return AR.build(pretrain_config("ar", "tiny", Path(), changes)).eval()


@pytest.fixture
def volume() -> torch.Tensor:
    return torch.rand(1, 1, *SIZE, generator=torch.Generator().manual_seed(1))


def frames(name: str, network: Any, volume: torch.Tensor, **options: Any) -> list[Frame]:
    """All frames, with copies of their arrays, as nothing but the last may be relied on."""
    view = VIEWS[name]
    kept = []
    with torch.inference_mode():
        for frame in view.draw(network, volume, view.options(**options), torch.Generator().manual_seed(3)):
            pictures = [
                type(one)(one.name, one.array.copy(), one.role, one.voxels, one.limits) for one in frame.pictures
            ]
            kept.append(Frame(pictures, frame.text, frame.share))
    return kept


def arrays(frame: Frame) -> dict[str, np.ndarray]:
    return {one.name: one.array for one in frame.pictures}


def patches(array: np.ndarray) -> np.ndarray:
    """[d, h, w, voxels] of an array (z, y, x)."""
    (d, h, w), (pz, py, px) = (n // p for n, p in zip(array.shape, PATCH)), PATCH
    return array.reshape(d, pz, h, py, w, px).transpose(0, 2, 4, 1, 3, 5).reshape(d, h, w, -1)


def test_next_patch_shows_the_context_as_it_is_and_predictions_behind_it(network: Any, volume: torch.Tensor) -> None:
    [frame] = frames("next-patch", network, volume, prefix=0.5)
    found, truth = arrays(frame), teacher_forced(network, volume, LENGTH // 2)
    numbers = truth.numbers.numpy()
    same = (patches(found["prediction"]) == patches(found["original"])).all(-1)
    np.testing.assert_array_equal(same, numbers < LENGTH // 2)
    np.testing.assert_allclose(found["error"], np.abs(found["prediction"] - found["original"]), atol=1e-6)
    np.testing.assert_array_equal(np.isnan(found["loss"]), numbers < LENGTH // 2)
    with torch.no_grad():
        loss = float(network(volume, torch.tensor([LENGTH // 2])))
    assert np.nanmean(found["loss"]) == pytest.approx(loss, rel=1e-4)
    assert f"{LENGTH // 2} of {LENGTH} patches are given" in frame.text
    assert f"error {loss:.2f}" in frame.text
    behind = numbers >= LENGTH // 2  # predictions borrow mean and deviation of the true patches, so errors stay small
    means = [patches(found[name]).mean(-1)[behind] for name in ("prediction", "original")]
    assert np.corrcoef(*means)[0, 1] > 0.3


@pytest.mark.parametrize(("share", "given"), [(0.0, 0), (1.0, LENGTH - 1), (0.25, LENGTH // 4)])
def test_any_share_leaves_a_patch_to_predict(network: Any, volume: torch.Tensor, share: float, given: int) -> None:
    [frame] = frames("next-patch", network, volume, prefix=share)
    assert np.isnan(arrays(frame)["loss"]).sum() == given


def test_a_network_of_plain_intensities_says_nothing_of_borrowed_brightness(volume: torch.Tensor) -> None:
    changes = {**CHANGES, "method": {**CHANGES["method"], "norm_pixel_loss": False}}
    plain = AR.build(pretrain_config("ar", "tiny", Path(), changes)).eval()
    [frame] = frames("next-patch", plain, volume)
    assert "brightness" not in frame.text
    rolled = frames("roll-out", plain, volume, prefix=0.0)
    assert len(rolled) == LENGTH + 1


def test_a_roll_out_grows_patch_after_patch_from_what_it_drew(network: Any, volume: torch.Tensor) -> None:
    found = frames("roll-out", network, volume, prefix=0.75)
    prefix = 3 * LENGTH // 4
    assert len(found) == LENGTH - prefix + 1
    assert [frame.share for frame in found] == sorted(frame.share for frame in found)
    assert (found[0].share, found[-1].share) == (0.0, 1.0)
    truth = teacher_forced(network, volume, prefix)
    numbers = truth.numbers.numpy()
    for step, (before, after) in enumerate(itertools.pairwise(found)):
        changed = (patches(arrays(before)["continuation"]) != patches(arrays(after)["continuation"])).any(-1)
        np.testing.assert_array_equal(changed, numbers == prefix + step)
    last = arrays(found[-1])
    context = numbers < prefix
    np.testing.assert_array_equal(patches(last["continuation"])[context], patches(last["original"])[context])
    np.testing.assert_array_equal(patches(last["error"])[context], 0)
    first = numbers == prefix  # the only patch whose whole past is true: equal up to brightness and contrast
    rolled = patches(last["continuation"])[first][0]
    forced = patches(truth.volume[0, 0].numpy())[first][0]
    np.testing.assert_allclose(
        rolled - rolled.mean(), (forced - forced.mean()) * rolled.std() / forced.std(), atol=1e-4
    )
    second = numbers == prefix + 1
    assert not np.allclose(patches(last["continuation"])[second], patches(truth.volume[0, 0].numpy())[second])
    assert "not part of the published method" in found[-1].text


def test_a_roll_out_of_a_normalised_network_has_at_least_one_patch_to_go_on_from(
    network: Any, volume: torch.Tensor
) -> None:
    assert "1 of 120 patches are given" in frames("roll-out", network, volume, prefix=0.0)[0].text


def test_predictability_is_the_mean_over_the_contexts_so_far(network: Any, volume: torch.Tensor) -> None:
    found = frames("predictability", network, volume, prefixes=4)
    assert len(found) == 4
    drawn = torch.randint(LENGTH, (3,), generator=torch.Generator().manual_seed(3)).tolist()
    losses = [token_losses(network, volume, prefix)[0].numpy() for prefix in (0, *drawn)]
    for count, frame in enumerate(found, 1):
        np.testing.assert_allclose(arrays(frame)["surprise"], np.nanmean(losses[:count], axis=0), rtol=1e-4)
    assert "over 4 of 4 contexts" in found[-1].text


def test_the_sequence_tells_order_parts_and_slabs(network: Any, volume: torch.Tensor) -> None:
    [frame] = frames("sequence", network, volume, prefix=0.25)
    found = arrays(frame)
    assert sorted(found["order"].ravel()) == list(range(LENGTH))
    assert (found["part"] == 1).sum() == LENGTH // 4
    assert found["order"][found["part"] == 2] == [LENGTH // 4]
    for k, slab in enumerate(found["slab"], 1):
        np.testing.assert_array_equal(slab, k)  # slabs lie along z
    steps = [int(np.argwhere(found["order"] == n)[0, 0]) for n in range(8)]
    slabs_first = network.model.layout.order == "slab-major"
    assert steps == ([0] * 8 if slabs_first else [0, 1, 2, 3] * 2)
    assert ("slab after slab" if slabs_first else "columns along z") in frame.text


def test_attention_is_of_the_clicked_patch(network: Any, volume: torch.Tensor) -> None:
    encoder, point = network.model, (9, 17, 6)
    [frame] = frames("token-attention", encoder, volume, point=point, block=1, head=2)
    cell = tuple(v // p for v, p in zip(point, PATCH))
    index = int(np.ravel_multi_index(cell, (4, 6, 5)))
    with torch.no_grad():
        expected = encoder.token_attention(volume, 0, index)[1].numpy()
    np.testing.assert_allclose(arrays(frame)["attention"], expected * LENGTH, rtol=1e-4)
    assert "Block 1, head 2: the patch at z, y, x = 3, 5, 2" in frame.text
    order = network.model.layout.numbers(network.model.layout.raster_grid(volume)).numpy()
    [frame] = frames("token-attention", encoder, volume, point=point, mode="causal")
    np.testing.assert_array_equal(arrays(frame)["attention"] > 0, order <= order[cell])
    [frame] = frames("token-attention", encoder, volume, point=(0, 0, 19), mode="prefix", prefix=0.5)
    place = order[0, 0, 4]
    np.testing.assert_array_equal(arrays(frame)["attention"] > 0, order < max(place + 1, LENGTH // 2))
    with pytest.raises(ConfigError, match="has 2 blocks, so block 3 does not exist"):
        frames("token-attention", encoder, volume, block=3)
    with pytest.raises(ConfigError, match="has 6 heads, so head 7 does not exist"):
        frames("token-attention", encoder, volume, head=7)


def test_evidence_adds_up_to_the_output(volume: torch.Tensor) -> None:
    torch.manual_seed(0)
    names = ("solid", "part-solid", "none")
    settings = {"kind": "multiclass", "classes": 3, "class_names": names, "pooling": "tokens"}
    config = finetune_config("classification", "tiny", Path(), "ar", {**CHANGES, "task": settings})
    head = task("classification").build(config, AR.build_encoder(config)).eval()
    with torch.no_grad():
        logits = head(volume)[0].numpy()
    for output, (name, logit) in enumerate(zip(names, logits), 1):
        [frame] = frames("evidence", head, volume, output=output)
        assert arrays(frame)["evidence"].shape == (4, 6, 5)
        assert arrays(frame)["evidence"].mean() == pytest.approx(logit, abs=1e-5)
        assert frame.text.startswith(f"{name}: ")
    with pytest.raises(ConfigError, match="3 outputs, so output 4 does not exist"):
        frames("evidence", head, volume, output=4)


def test_views_suit_the_models_that_can_show_them() -> None:
    def names(kind: str, of: str | None = None) -> list[str]:
        return [view.name for view in AR.views if view.suits(kind, of)]

    pretrained = ["next-patch", "roll-out", "predictability", "sequence", "token-attention"]
    assert names("pretrain") == pretrained
    assert names("encoder") == ["token-attention"]
    assert names("finetune", "classification") == ["token-attention", "evidence"]
    assert names("finetune", "segmentation") == ["token-attention"]
