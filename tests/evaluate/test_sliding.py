"""Sliding window: equal to MONAI's, exact on constants, bounded in memory, cancellable."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from training_backend.evaluate import sliding
from training_backend.evaluate.sliding import Tiling, importance, predict_labels, predict_probabilities, with_flips
from training_backend.tasks.base import Cancelled

WINDOW = (8, 12, 16)


def network(classes: int = 3) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv3d(1, classes, 5, padding=2), nn.Softmax(dim=1)).eval()


@pytest.mark.parametrize("shape", [(8, 12, 16), (21, 30, 17), (5, 40, 16), (9, 7, 11), (1, 2, 3)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8])
def test_equals_monai_on_every_shape_and_overlap(shape: tuple[int, int, int], overlap: float) -> None:
    net, volume = network(), torch.rand(1, 1, *shape)
    with torch.no_grad():
        low = float(volume.min())
        expected = sliding_window_inference(volume, WINDOW, 2, net, overlap=overlap, mode="gaussian", cval=low)[0]
        found = predict_probabilities(net, volume, Tiling(WINDOW, overlap, batch=3))
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-5, rtol=0)


def test_small_volumes_are_padded_with_the_minimum_of_each_channel_as_in_training() -> None:
    seen: list[Tensor] = []

    def predictor(windows: Tensor) -> Tensor:
        seen.append(windows)
        return windows[:, :1]

    volume = torch.stack([torch.full((3, 4, 5), 0.25), torch.full((3, 4, 5), -2.0)])[None]
    volume[0, :, 1, 1, 1] = 1.0
    assert torch.equal(predict_probabilities(predictor, volume, Tiling((4, 8, 6)))[0], volume[0, 0])
    assert [float(channel.min()) for channel in seen[0][0]] == [0.25, -2.0]
    assert int((seen[0][0] == 1.0).sum()) == 2


def test_labels_are_the_argmax_of_the_probabilities() -> None:
    net, volume, tiling = network(), torch.rand(1, 1, 19, 23, 29), Tiling(WINDOW)
    with torch.no_grad():
        labels = predict_labels(net, volume, tiling)
        probabilities = predict_probabilities(net, volume, tiling)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), probabilities.argmax(0))


def test_probabilities_of_a_large_volume_are_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliding, "HALF_PRECISION_FROM", 1000)
    volume = torch.rand(1, 1, 10, 12, 16)
    with torch.no_grad():
        found = predict_probabilities(network(), volume, Tiling(WINDOW))
    assert found.dtype == torch.float16
    assert torch.allclose(found.float().sum(0), torch.ones(10, 12, 16), atol=2e-3)


def test_labels_of_many_classes_never_allocate_classes_times_volume() -> None:
    classes, depth = 64, 256
    largest = 0

    def many(windows: Tensor) -> Tensor:
        index = (windows[:, 0] * classes).long().clamp_max(classes - 1)
        return nn.functional.one_hot(index, classes).movedim(-1, 1).float()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.untyped_storage().nbytes())
            return out

    volume = torch.rand(1, 1, depth, 16, 16)
    with Watch():
        labels = predict_labels(many, volume, Tiling((16, 16, 16)))
    assert torch.equal(labels.long(), (volume[0, 0] * classes).long())
    assert largest <= 2 * 4 * classes * 16**3 < 4 * classes * depth * 16**2 / 4


def test_progress_rises_to_one_and_false_cancels() -> None:
    shares: list[float] = []
    volume = torch.rand(1, 1, 16, 24, 16)
    predict_probabilities(network(), volume, Tiling(WINDOW, 0.5), lambda share: shares.append(share) is None)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    calls: list[float] = []

    def stop(share: float) -> bool:
        calls.append(share)
        return len(calls) < 2

    with pytest.raises(Cancelled):
        predict_labels(network(), volume, Tiling(WINDOW, 0.5), stop)
    assert len(calls) == 2


def test_flips_make_the_prediction_equivariant() -> None:
    predictor = with_flips(network())
    volume = torch.rand(1, 1, *WINDOW)
    with torch.no_grad():
        one, other = predictor(volume), predictor(volume.flip(2, 4)).flip(2, 4)
    assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("shape", [(21, 30, 17), (5, 40, 16)])
def test_constant_weights_and_zeros_around_are_monai_s_own(shape: tuple[int, int, int]) -> None:
    net, volume = network(), torch.rand(1, 1, *shape) + 1
    tiling = Tiling(WINDOW, 0.75, batch=4, blend="constant", fill=0.0)
    with torch.no_grad():
        expected = sliding_window_inference(volume, WINDOW, 4, net, overlap=0.75, mode="constant")[0]
        found = predict_probabilities(net, volume, tiling)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_weight_of_nnunet_is_scipys_and_without_a_lower_bound() -> None:
    from scipy.ndimage import gaussian_filter

    for window, sigma in (((12, 16, 16), 1 / 8), ((1, 15, 22), 1 / 4), ((40, 7, 9), 1 / 10)):
        point = np.zeros(window)
        point[tuple(size // 2 for size in window)] = 1
        expected = gaussian_filter(point, [size * sigma for size in window], mode="constant", cval=0)
        expected /= expected.max()
        expected[expected == 0] = expected[expected > 0].min()
        found = importance(window, "nnunet", sigma)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
        assert float(found.min()) > 0


def test_padding_at_the_end_and_what_becomes_of_the_outputs() -> None:
    seen: list[Tensor] = []

    def predictor(windows: Tensor) -> Tensor:
        seen.append(windows)
        return windows

    tiling = Tiling((2, 4, 6), fill=-1.0, pad_end=True, finish=lambda p: torch.cat([1 - p, p]))
    volume = torch.rand(1, 1, 1, 3, 6)
    found = predict_probabilities(predictor, volume, tiling)
    assert torch.equal(seen[0][0, 0, :1, :3], volume[0, 0])
    assert (seen[0][0, 0, 1:] == -1).all()
    torch.testing.assert_close(found, torch.cat([1 - volume[0], volume[0]]))
