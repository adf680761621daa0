"""In which axis order and direction does a masked autoencoder know a scan best?

Published weights often leave unsaid how volumes lay in the authors' arrays. A network reconstructs what it has seen:
the orientation with the lowest masked reconstruction loss tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training_backend.data.prepare import prepare
from training_backend.data.volume import Volume
from training_backend.errors import WeightsError
from training_backend.methods.base import Batch
from training_backend.tasks.base import Cancelled, Progress
from training_backend.weights.load import load_model

AXES = "zyx"


@dataclass(frozen=True)
class OrientationScore:
    """Loss of one of the 48 orientations.

    Attributes:
        axes: which axis of the scan became the first, second and third of the network's input: "zyx" is as given.
        flipped: those of the scan's axes that ran backwards, "" for none.
        loss: mean masked reconstruction loss.
    """

    axes: str
    flipped: str
    loss: float


def probe_orientation(
    source: str | Path,
    volume: Volume | Sequence[Volume],
    *,
    mask_ratio: float | None = None,
    masks: int = 2,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> list[OrientationScore]:
    """Masked reconstruction loss of 6 axis orders times 8 flips, lowest first; the masks are the same for all.

    Args:
        source: pre-trained weights with their decoder; see `load_model`.
        volume: scan, or its contrasts.
        mask_ratio: share of hidden patches; that of training when None.
        masks: random masks that each loss is the mean of.
        seed: of the masks.
        device: where to compute.
        progress: told the share done; answers False to cancel.
    """
    import torch

    model = load_model(source, device, changes={} if mask_ratio is None else {"method": {"mask_ratio": mask_ratio}})
    if model.kind != "pretrain":
        raise WeightsError(
            "Probing the orientation needs a pre-trained model with its decoder, but this one has none.",
            "Choose the pre-training run, or the authors' file that holds the decoder.",
        )
    volumes = [volume] if isinstance(volume, Volume) else list(volume)
    array = prepare(volumes, model.profile).array
    size = model.profile.size
    scores = []
    for number, (order, flips) in enumerate(product(permutations(range(3)), product((False, True), repeat=3))):
        if progress is not None and not progress(number / 48):
            raise Cancelled
        turned = torch.from_numpy(_turned(array, order, flips, size))[None].to(device)
        generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode():
            batch = Batch(turned, ["probe"])
            losses = [float(model.method.training_step(model.module, batch, generator).loss) for _ in range(masks)]
        names = ["".join(AXES[axis] for axis in order), "".join(AXES[axis] for axis in range(3) if flips[axis])]
        scores.append(OrientationScore(names[0], names[1], float(np.mean(losses))))
    return sorted(scores, key=lambda score: score.loss)


def _turned(
    array: npt.NDArray[np.float32], order: tuple[int, ...], flips: tuple[bool, ...], size: tuple[int, int, int]
) -> npt.NDArray[np.float32]:
    """`array` [C, D, H, W] flipped, its axes reordered, and cut or padded about its centre to `size`."""
    backwards = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    turned = array[(slice(None), *backwards)].transpose(0, *(axis + 1 for axis in order))
    for axis, wanted in enumerate(size, 1):
        have = turned.shape[axis]
        if have > wanted:
            turned = np.take(turned, range((have - wanted) // 2, (have - wanted) // 2 + wanted), axis)
        elif have < wanted:
            before = (wanted - have) // 2
            turned = np.pad(
                turned, [(0, 0) if a != axis else (before, wanted - have - before) for a in range(4)], "edge"
            )
    return np.ascontiguousarray(turned)
