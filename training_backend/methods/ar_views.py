"""What AR-SSL4M's networks show of a scan: predictions, roll-outs, predictability, sequence, attention, evidence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from training_backend.config import ConfigModel, ui
from training_backend.methods.base import Frame, ModelView, PreviewArray
from training_backend.methods.shared_views import TokenAttentionOptions, attention_frame

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor

    from training_backend.nn.ar import ArEncoder
    from training_backend.nn.ar_pretrain import NextPatch
    from training_backend.nn.heads import VolumeHead

    Floats = npt.NDArray[np.float32]

_SLIDER = ui(widget="slider")
_SURPRISING = 2.0
"""Loss drawn in the brightest colour; 1 is that of a patch predicted by its mean."""


class PrefixOptions(ConfigModel):
    """How much of the scan is given."""

    prefix: float = Field(0.25, ge=0, le=1, json_schema_extra=_SLIDER)
    """Share of the patches that is given as context, from the start of the sequence; at least one is left over."""


class RollOutOptions(PrefixOptions):
    """How the network runs on."""

    brightness: Literal["mean", "last"] = "mean"
    """Where drawn patches take brightness and contrast from, which the network does not predict: the mean over the
    context, or its last patch."""


class PredictabilityOptions(ConfigModel):
    """Over what is averaged."""

    prefixes: int = Field(16, ge=1, le=128, json_schema_extra=_SLIDER)
    """Lengths of the context that are averaged over; the first is none at all, the others are drawn."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Number that decides which lengths are drawn."""


class AttentionOptions(TokenAttentionOptions):
    """Which attention is shown, and what a patch may look at."""

    mode: Literal["bidirectional", "prefix", "causal"] = "bidirectional"
    """What a patch may look at. bidirectional: everything, as after pre-training. causal: what comes before it in the
    sequence. prefix: that and the whole context, as in pre-training."""
    prefix: float = Field(0.25, ge=0, le=1, json_schema_extra=_SLIDER)
    """Share of the patches that is the context, for the mode prefix."""


class EvidenceOptions(ConfigModel):
    """Which output is explained."""

    output: int = Field(1, ge=1)
    """Class or label, counted from 1."""


def next_patch(
    network: NextPatch, volume: Tensor, options: PrefixOptions, _generator: torch.Generator
) -> Iterator[Frame]:
    """Each patch behind the context as predicted from the true ones before it."""
    from training_backend.nn.ar_predict import patch_count, teacher_forced

    length = patch_count(network, volume)
    prefix = _prefix(options.prefix, length)
    found = teacher_forced(network, volume, prefix)
    losses = _numbers(found.losses[0])
    original, shown = _original(volume)
    text = (
        f"{prefix} of {length} patches are given; each of the others is predicted from the true ones before it. "
        f"Mean squared error {_mean(losses):.2f}."
    )
    if network.norm_pixel_loss:
        text += (
            " An error of 1 is no better than the mean of the patch. Patches are predicted without brightness and "
            "contrast; the picture has those of the true patches."
        )
    pictures = [
        original,
        PreviewArray("prediction", _numbers(found.volume[0, 0]), "image", limits=shown),
        PreviewArray("error", _numbers(found.error[0, 0]), "error", limits=(0.0, 0.5 * (shown[1] - shown[0]))),
        PreviewArray("loss", losses, "heatmap", voxels=network.patch_size, limits=(0.0, _SURPRISING)),
    ]
    yield Frame(pictures, text)


def roll_out(
    network: NextPatch, volume: Tensor, options: RollOutOptions, _generator: torch.Generator
) -> Iterator[Frame]:
    """The scan as the network runs on with it, patch after patch; the arrays of a frame change with the next."""
    import numpy as np

    from training_backend.nn.ar_predict import patch_count
    from training_backend.nn.ar_predict import roll_out as run_on

    length = patch_count(network, volume)
    prefix = max(_prefix(options.prefix, length), int(network.norm_pixel_loss))
    original, shown = _original(volume)
    drawn, error = np.full_like(original.array, shown[0]), np.zeros_like(original.array)
    numbers = network.model.layout.numbers(network.model.layout.raster_grid(volume)).cpu().numpy()
    given = numbers < prefix
    for axis, voxels in enumerate(network.patch_size):
        given = given.repeat(voxels, axis)
    drawn[given] = original.array[given]
    pictures = [
        original,
        PreviewArray("continuation", drawn, "image", limits=shown),
        PreviewArray("error", error, "error", limits=(0.0, shown[1] - shown[0])),
    ]
    yield Frame(pictures, f"{prefix} of {length} patches are given.", 0.0)
    for patch in run_on(network, volume, prefix, options.brightness):
        box = tuple(slice(k * n, (k + 1) * n) for k, n in zip(patch.cell, network.patch_size, strict=True))
        drawn[box] = _numbers(patch.patch[0, 0])
        error[box] = np.abs(drawn[box] - original.array[box])
        done = patch.number + 1
        text = (
            f"{prefix} of {length} patches are given, {done - prefix} drawn, each from those before it, drawn ones "
            "included. Running on freely is an addition of this program, not part of the published method."
        )
        yield Frame(pictures, text, (done - prefix) / (length - prefix))


def predictability(
    network: NextPatch, volume: Tensor, options: PredictabilityOptions, generator: torch.Generator
) -> Iterator[Frame]:
    """How well each place is predicted on average, over contexts of different lengths."""
    import torch

    from training_backend.nn.ar_predict import mean_losses, patch_count

    length = patch_count(network, volume)
    prefixes = [0, *torch.randint(length, (options.prefixes - 1,), generator=generator).tolist()]
    for done, found in enumerate(mean_losses(network, volume, prefixes), 1):
        losses = _numbers(found[0])
        low, high = _spread(losses)
        text = (
            f"Mean loss {_mean(losses):.2f} over {done} of {len(prefixes)} contexts. Bright places are surprising; "
            f"colours go from {low:.2f} to {high:.2f}."
        )
        picture = PreviewArray("surprise", losses, "heatmap", voxels=network.patch_size, limits=(low, high))
        yield Frame([picture], text, done / len(prefixes))


def sequence(
    network: NextPatch, volume: Tensor, options: PrefixOptions, _generator: torch.Generator
) -> Iterator[Frame]:
    """In which order the patches are read, which are given, and which slab each belongs to."""
    import numpy as np

    layout = network.model.layout
    grid = layout.raster_grid(volume)
    numbers = layout.numbers(grid).cpu().numpy()
    slabs = layout.slab_numbers(grid).cpu().numpy().astype(np.uint8) + 1
    length, patch = numbers.size, network.patch_size
    prefix = _prefix(options.prefix, length)
    part = np.where(numbers < prefix, 1, np.where(numbers == prefix, 2, 3)).astype(np.uint8)
    parts = {1: "given as context", 2: "predicted first", 3: "predicted"}
    order = "slab after slab" if layout.order == "slab-major" else "columns along z, so that the slabs take turns"
    text = (
        f"{length} patches, read in {order}; {prefix} are given. Slabs are those of views that training glues along z; "
        "a scan is one piece."
    )
    slab_names = {index: f"slab {index}" for index in range(1, int(slabs.max()) + 1)}
    limits = (0.0, float(max(length - 1, 1)))
    yield Frame(
        [
            _original(volume)[0],
            PreviewArray("part", part, "labels", voxels=patch, classes=parts),
            PreviewArray("slab", slabs, "labels", voxels=patch, classes=slab_names),
            PreviewArray("order", numbers.astype(np.float32), "heatmap", voxels=patch, limits=limits),
        ],
        text,
    )


def token_attention(
    encoder: ArEncoder, volume: Tensor, options: AttentionOptions, _generator: torch.Generator
) -> Iterator[Frame]:
    """What the patch that holds a voxel looks at, as a multiple of looking at all alike."""
    length = math.prod(n // p for n, p in zip(volume.shape[2:], encoder.patch_size, strict=True))
    prefix = _prefix(options.prefix, length) if options.mode == "prefix" else 0

    def look(view: Tensor, block: int, patch: int) -> Tensor:
        return encoder.token_attention(view, block, patch, options.mode, prefix)

    yield attention_frame(encoder, volume, options, look, "start")


def evidence(
    network: VolumeHead, volume: Tensor, options: EvidenceOptions, _generator: torch.Generator
) -> Iterator[Frame]:
    """What each patch adds to an output of a classifier; exact, since its head is linear and takes the mean."""
    from training_backend.errors import ConfigError

    maps = network.evidence(volume)[0]
    if options.output > len(maps):
        raise ConfigError(f"The model has {len(maps)} outputs, so output {options.output} does not exist.")
    shown = _numbers(maps[options.output - 1])
    config: Any = getattr(network, "task", None)
    names = tuple(getattr(config, "class_names", ()))
    name = names[options.output - 1] if names else f"output {options.output}"
    text = f"{name}: {shown.mean():+.3f} before the sigmoid or softmax, which is the mean of this map."
    limits = _spread(shown)
    patch = network.encoder.patch_size
    yield Frame([PreviewArray("evidence", shown, "heatmap", voxels=patch, limits=limits)], text)  # type: ignore[arg-type]


def _prefix(share: float, length: int) -> int:
    """Patches given as context: at least one is left to predict."""
    return min(round(share * length), length - 1)


def _original(volume: Tensor) -> tuple[PreviewArray, tuple[float, float]]:
    """First channel of a view, and contrast limits for all pictures that are to be compared with it."""
    array = _numbers(volume[0, 0])
    low, high = float(array.min()), float(array.max())
    shown = (low, high if high > low else low + 1.0)
    return PreviewArray("original", array, "image", limits=shown), shown


def _spread(values: Floats) -> tuple[float, float]:
    """Contrast limits that all but a few values lie within; never empty."""
    import numpy as np

    low, high = (float(value) for value in np.nanpercentile(values, [2, 98]))
    return low, max(high, low + 1e-6)


def _mean(losses: Floats) -> float:
    """Mean over the patches that were predicted."""
    import numpy as np

    return float(np.nanmean(losses))


def _numbers(values: Tensor) -> Floats:
    array: Floats = values.detach().float().cpu().numpy()
    return array


VIEWS = (
    ModelView(
        "next-patch",
        "Next-patch prediction",
        "What the network expects behind a growing context, beside what is really there.",
        PrefixOptions,
        next_patch,
    ),
    ModelView(
        "roll-out",
        "Roll-out",
        "The network runs on from a context by itself, patch after patch.",
        RollOutOptions,
        roll_out,
    ),
    ModelView(
        "predictability",
        "Predictability",
        "How hard each place is to predict, averaged over contexts of many lengths; anomalies stand out.",
        PredictabilityOptions,
        predictability,
    ),
    ModelView(
        "sequence",
        "Sequence",
        "The order in which the network reads the patches of a scan.",
        PrefixOptions,
        sequence,
    ),
    ModelView(
        "token-attention",
        "Attention from a voxel",
        "Click a place; the map shows where its patch looks.",
        AttentionOptions,
        token_attention,
        needs="encoder",
        point=True,
    ),
    ModelView(
        "evidence",
        "Class evidence",
        "Which places speak for a class, for classifiers that pool over tokens.",
        EvidenceOptions,
        evidence,
        needs="finetune",
        task="classification",
    ),
)
