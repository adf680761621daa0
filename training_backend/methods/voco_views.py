"""What VoCo's networks show of a scan: positions, a map of positions, likeness of the base crops, organs.

Projections are always made of crops and base crops together: their batch norms know no other statistics than those of
the rows they see, so a single crop has no projection of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from training_backend.config import ConfigModel, ui
from training_backend.methods.base import Frame, ModelView, PreviewArray
from training_backend.methods.shared_views import SCALES, certainty_frame
from training_backend.methods.voco_settings import VOCOMNI

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor

    from training_backend.data.position import Sampling, Starts
    from training_backend.nn.voco import Voco

    Floats = npt.NDArray[np.float32]

_SLIDER = ui(widget="slider")
_JOINTLY = "A crop is projected together with the base crops, which its batch norms need."
TARGET, FOUND = (0.0, 0.62, 0.45), (0.90, 0.62, 0.0)
"""Colours of the true and of the predicted overlap; told apart by the colour-blind."""


class PositionsOptions(ConfigModel):
    """Which crops are looked for."""

    seed: int = Field(0, ge=0, lt=2**31)
    """Number that decides where the crops lie."""
    crops: int = Field(4, ge=1, le=16, json_schema_extra=_SLIDER)
    """Random crops."""
    crop: int = Field(1, ge=1, le=16, json_schema_extra=_SLIDER)
    """Crop whose overlap is drawn, counted from 1."""


class PositionMapOptions(ConfigModel):
    """How densely the crop is moved, and what is drawn."""

    steps: Literal[1, 2, 4, 8] = 4
    """Places of the crop per cell along each axis; with 4 a crop of 64 voxels moves by 16."""
    cell: int = Field(0, ge=0)
    """Cell whose likeness is drawn, counted from 1; 0 draws the likeness of the predicted cell."""


class LikenessOptions(ConfigModel):
    """What is compared."""

    projection: Literal["student", "teacher"] = "student"
    """student: what the loss keeps apart. teacher: what crops are compared with."""


class OrgansOptions(ConfigModel):
    """How sure the decoder is taken to be."""

    temperature: float = Field(1.0, gt=0, le=10)
    """Number that the outputs are divided by before the softmax; above 1 a network that is too sure gets less so."""


@dataclass(frozen=True)
class Rows:
    """Embeddings of crops [N, 24F] as student and teacher see them; the same where they share the encoder."""

    student: Tensor
    teacher: Tensor

    def joined(self, other: Rows) -> Rows:
        """These rows, then those of `other`."""
        import torch

        pairs = ((self.student, other.student), (self.teacher, other.teacher))
        return Rows(*(torch.cat(pair) for pair in pairs))


def positions(network: Voco, volume: Tensor, options: PositionsOptions, generator: torch.Generator) -> Iterator[Frame]:
    """Cells and random crops of the slab, and of one crop the true and the predicted overlap with each cell."""
    import numpy as np

    from training_backend.data.position import draw_starts, overlap
    from training_backend.errors import ConfigError

    sampling, slab = slab_of(network, volume)
    if options.crop > options.crops:
        raise ConfigError(f"There are {options.crops} crops, so crop {options.crop} does not exist.")
    starts = draw_starts(options.crops, sampling.cells, sampling.crop, generator)
    truth = overlap(starts, sampling.cells, sampling.crop)
    bases = embedded(network, slab, _base_starts(sampling))
    found = predicted(network, embedded(network, slab, starts), bases)
    number = options.crop - 1
    original = volume[0, 0].float().cpu().numpy()
    frames = _outlines(network, sampling, starts)
    names = {1: "border of cells", **{k + 2: f"crop {k + 1}" for k in range(options.crops)}}
    right = (truth[np.arange(len(truth)), found.argmax(axis=1)] >= truth.max(axis=1) - 1e-9) & found.any(axis=1)
    told = ", ".join(
        f"cell {k + 1} {truth[number, k]:.0%} (predicted {found[number, k]:.0%})" for k in np.flatnonzero(truth[number])
    )
    text = (
        f"Crop {options.crop} lies in {told}. The most overlapping cell is found for {int(right.sum())} of "
        f"{options.crops} crops; mean error {np.abs(truth - found).mean():.2f}. {_JOINTLY}"
    )
    tints = [
        PreviewArray(name, _tinted(network, sampling, original, values[number], frames == number + 2, colour), "rgb")
        for name, values, colour in (("overlap", truth, TARGET), ("prediction", found, FOUND))
    ]
    matrices = [
        PreviewArray(
            f"{name} of every crop", values.astype(np.float32), "matrix", limits=(0, 1), sides=("crop", "cell")
        )
        for name, values in (("overlap", truth), ("prediction", found))
    ]
    shown = [PreviewArray("original", original, "image"), PreviewArray("places", frames, "labels", classes=names)]
    yield Frame([*shown, *tints, *matrices], text)


def position_map(
    network: Voco, volume: Tensor, options: PositionMapOptions, _generator: torch.Generator
) -> Iterator[Frame]:
    """Where each place of a moving crop is believed to be: predicted cell, error of the centroid, likeness to a cell.

    Every frame adds a place. Elements lie around the centres of the crops; an arrow goes from each centre to the
    centroid of the cells, weighted by the likeness of the crop to them.
    """
    import numpy as np

    from training_backend.data.position import overlap
    from training_backend.errors import ConfigError

    sampling, slab = slab_of(network, volume)
    if sampling.crop % options.steps:
        raise ConfigError(f"Crops of {sampling.crop} voxels cannot be moved by a {options.steps}th of their side.")
    if options.cell > sampling.cells**2:
        raise ConfigError(f"A slab has {sampling.cells**2} cells, so cell {options.cell} does not exist.")
    step = sampling.crop // options.steps
    side = (sampling.cells - 1) * options.steps + 1
    places = np.stack(np.meshgrid(*(np.arange(side) * step,) * 2, indexing="ij"), axis=-1)
    bases = embedded(network, slab, _base_starts(sampling))
    centres = _base_starts(sampling) / sampling.crop
    cells = np.zeros((side, side), np.uint8)
    errors, best = np.full((side, side), np.nan, np.float32), np.full((side, side), np.nan, np.float32)
    right, arrows = 0, np.zeros((0, 2, 3), np.float32)
    for done, (row, column) in enumerate(np.ndindex(side, side), 1):
        start = places[row, column][None]
        # alone with the bases, so that it does not depend on what else is shown
        found = predicted(network, embedded(network, slab, start), bases)[0]
        truth = overlap(start, sampling.cells, sampling.crop)[0]
        best[row, column] = found[options.cell - 1] if options.cell else found.max()
        if found.any():
            cells[row, column] = found.argmax() + 1
            centroid = found @ centres / found.sum()
            errors[row, column] = np.linalg.norm(centroid - start[0] / sampling.crop)
            arrow = _arrow(network, sampling, start[0], centroid * sampling.crop)
            arrows = np.concatenate([arrows, arrow[None]])
            right += int(truth[found.argmax()] >= truth.max() - 1e-9)
        known = np.isfinite(errors)
        off = f"off by {errors[known].mean():.2f} cells on average" if known.any() else "nowhere yet"
        text = (
            f"The most overlapping cell is found at {right} of {done} places of the crop; {done - int(known.sum())} "
            f"resemble no cell. The centroid of what is found is {off}. {_JOINTLY}"
        )
        shown = _maps(network, sampling, step, cells, errors, best, options)
        pointing = PreviewArray("to the centroid", arrows, "vectors", voxels=(sampling.depth, 1, 1))
        yield Frame([*shown, pointing], text, done / side**2)


def likeness(network: Voco, volume: Tensor, options: LikenessOptions, _generator: torch.Generator) -> Iterator[Frame]:
    """Cosine of the projections of each pair of base crops, before and after the projection."""
    import torch
    import torch.nn.functional as F

    from training_backend.data.position import base_starts

    sampling, slab = slab_of(network, volume)
    bases = embedded(network, slab, base_starts(sampling.cells, sampling.crop))
    student, teacher = projected(network, bases)
    chosen = student if options.projection == "student" else teacher
    pairs = {
        f"{options.projection} and itself": (chosen, chosen),
        "student and teacher": (student, teacher),
        "embeddings": (bases.student, bases.student),
    }
    pictures = []
    for name, (one, other) in pairs.items():
        cosine = F.cosine_similarity(one.float()[:, None], other.float()[None], dim=2)
        pictures.append(
            PreviewArray(name, cosine.cpu().numpy(), "matrix", limits=(-1.0, 1.0), sides=("base crop", "base crop"))
        )
    apart = torch.from_numpy(pictures[0].array[~torch.eye(len(student), dtype=torch.bool).numpy()])
    text = (
        f"Base crops of one scan should differ: the mean square of their positive likeness is "
        f"{float(apart.relu().square().mean()):.2f} (0 all differ, 1 all alike). Batch norms make a crop's projection "
        "depend on the other base crops, so these are projected together."
    )
    yield Frame([cells_picture(network, sampling), *pictures], text)


def organs(network: Any, volume: Tensor, options: OrgansOptions, _generator: torch.Generator) -> Iterator[Frame]:
    """Classes of the decoder of a network that learnt from labels too, and their entropy."""
    from training_backend.errors import ConfigError

    if not hasattr(network, "out"):
        raise ConfigError(
            "This network has no decoder; it learnt positions alone.", "Use one of stage omni or semi, or fine-tune it."
        )
    logits = network.logits(volume)[0]
    yield certainty_frame(logits, options.temperature, VOCOMNI if len(logits) == len(VOCOMNI) else ())


def embedded(network: Voco, slab: Tensor, starts: Starts) -> Rows:
    """Embeddings of the crops of a slab [C, ...] in the network's frame, at first voxels [N, 2] in its plane."""
    import torch

    from training_backend.data.position import cut_plane

    sampling: Sampling = network.sampling  # type: ignore[assignment]
    students, teachers = [], []
    for start in starts:  # one after another: all at once would take the memory of a training step
        crop = cut_plane(slab, start[None], sampling.crop, sampling.plane)
        if sampling.resized is not None:
            size = (sampling.resized,) * 3
            crop = torch.nn.functional.interpolate(crop, size=size, mode="trilinear", align_corners=True)
        students.append(network.embed(crop))
        teachers.append(network.teacher.embed(crop) if network.whole_teacher else students[-1])  # type: ignore[operator]
    return Rows(torch.cat(students), torch.cat(teachers))


def projected(network: Voco, rows: Rows) -> tuple[Tensor, Tensor]:
    """Projections [N, E'] of all rows together by student and teacher; none is dropped."""
    if network.whole_teacher:
        return network.proj_head(rows.student), network.teacher.proj_head(rows.teacher)  # type: ignore[operator]
    return network.heads(rows.student, None)


def predicted(network: Voco, crops: Rows, bases: Rows) -> Floats:
    """Predicted overlap [N, K] of crops with bases, projected together."""
    import torch

    student, teacher = projected(network, crops.joined(bases))
    labels = torch.zeros(1, len(crops.student), len(bases.student), device=student.device)
    found: Floats = network.contrast(student, teacher, labels).predicted[0].float().cpu().numpy()
    return found


def slab_of(network: Any, volume: Tensor) -> tuple[Sampling, Tensor]:
    """How crops are taken, and the first view of `volume` in the network's frame [C, ...]."""
    from training_backend.errors import ConfigError
    from training_backend.nn.axes import turned

    sampling: Sampling | None = getattr(network, "sampling", None)
    if sampling is None:
        raise ConfigError("This network compares no crops: its stage learns from labels alone.", "Use another section.")
    if tuple(volume.shape[2:]) != sampling.slab:
        size, found = (" x ".join(map(str, one)) for one in (sampling.slab, volume.shape[2:]))
        raise ConfigError(f"A slab of this network has {size} voxels, but its view of the scan has {found}.")
    return sampling, turned(volume, network.axes)[0]


def cells_picture(network: Voco, sampling: Sampling, *, other: bool = False) -> PreviewArray:
    """The numbers of the cells as labels, on the scan or on the other one."""
    import numpy as np

    numbers = np.arange(1, sampling.cells**2 + 1, dtype=np.uint8).reshape(sampling.cells, sampling.cells)
    names = {int(k): f"cell {k}" for k in numbers.flat}
    size = (sampling.depth, sampling.crop, sampling.crop)
    name = "cells of the other scan" if other else "cells"
    return PreviewArray(name, _on_plane(network, numbers), "labels", voxels=size, classes=names, other=other)


def _base_starts(sampling: Sampling) -> Starts:
    from training_backend.data.position import base_starts

    return base_starts(sampling.cells, sampling.crop)


def _on_plane(network: Voco, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Values [a, b] along the plane of the network's frame as an array (1, y, x)."""
    import torch

    from training_backend.nn.axes import turned_back

    tensor = torch.from_numpy(values)
    shaped = tensor[:, :, None] if network.axes == "xyz" else tensor[None]
    found: npt.NDArray[Any] = turned_back(shaped[None, None], network.axes)[0, 0].contiguous().numpy()
    return found


def _arrow(
    network: Voco, sampling: Sampling, start: npt.NDArray[Any], believed: npt.NDArray[Any]
) -> npt.NDArray[np.float32]:
    """Beginning and extent [2, 3] along (z, y, x) of the arrow from a crop's centre to that of the believed one.

    Args:
        network: its frame is that of the first voxels.
        sampling: how crops are taken.
        start: first voxel of the crop along the plane of the network's frame.
        believed: first voxel that the network believes in.
    """
    import numpy as np

    ends = np.array([start, believed], float) + (sampling.crop - 1) / 2
    if network.axes == "xyz":  # whose x and y grow the other way
        ends = sampling.cells * sampling.crop - 1 - ends[:, ::-1]
    return np.array([[0, *ends[0]], [0, *(ends[1] - ends[0])]], np.float32)


def _outlines(network: Voco, sampling: Sampling, starts: Starts) -> npt.NDArray[np.uint8]:
    """Borders of cells as 1 and frames of the crops as 2, 3, ... on every slice of the slab, (z, y, x)."""
    import numpy as np

    side, thick = sampling.cells * sampling.crop, max(1, sampling.crop // 32)
    plane = np.zeros((side, side), np.uint8)
    for cell in range(1, sampling.cells):
        line = slice(cell * sampling.crop - (thick + 1) // 2, cell * sampling.crop + thick // 2)
        plane[line], plane[:, line] = 1, 1
    for number, (first, second) in enumerate(starts, 2):
        box = plane[first : first + sampling.crop, second : second + sampling.crop]
        frame = np.ones_like(box, bool)
        frame[2 * thick : -2 * thick, 2 * thick : -2 * thick] = False
        box[frame] = number
    return np.repeat(_on_plane(network, plane), sampling.depth, axis=0)


def _tinted(
    network: Voco,
    sampling: Sampling,
    original: Floats,
    values: npt.NDArray[Any],
    frame: npt.NDArray[np.bool_],
    colour: tuple[float, float, float],
) -> npt.NDArray[np.uint8]:
    """The scan in grey, each cell as strongly coloured as its value says, and the frame of the crop in white."""
    import numpy as np

    low, high = float(original.min()), float(original.max())
    grey = ((original - low) / max(high - low, 1e-6))[..., None]
    shares = _on_plane(network, values.reshape(sampling.cells, sampling.cells).astype(np.float32))
    strength = 0.7 * shares.repeat(sampling.crop, axis=1).repeat(sampling.crop, axis=2)[..., None]
    mixed = grey * (1 - strength) + strength * np.array(colour, np.float32)
    mixed[frame] = 1.0
    return np.round(255 * np.clip(mixed, 0, 1)).astype(np.uint8)


def _maps(
    network: Voco,
    sampling: Sampling,
    step: int,
    cells: npt.NDArray[np.uint8],
    errors: Floats,
    best: Floats,
    options: PositionMapOptions,
) -> list[PreviewArray]:
    """Pictures whose elements lie around the centres of the crops."""
    start = (sampling.crop - step) / 2
    where: dict[str, Any] = {"voxels": (sampling.depth, step, step), "start": (0.0, start, start)}
    names = {k: f"cell {k}" for k in range(1, sampling.cells**2 + 1)}
    name = f"likeness to cell {options.cell}" if options.cell else "likeness to the predicted cell"
    return [
        PreviewArray("predicted cell", _on_plane(network, cells), "labels", classes=names, **where),
        PreviewArray("error in cells", _on_plane(network, errors), "heatmap", limits=(0.0, 1.0), **where),
        PreviewArray(name, _on_plane(network, best), "heatmap", limits=(0.0, 1.0), **where),
        cells_picture(network, sampling),
    ]


VIEWS = (
    ModelView(
        "positions",
        "Positions of crops",
        "Where random crops lie among the base crops, and where the network believes them to be.",
        PositionsOptions,
        positions,
    ),
    ModelView(
        "position-map",
        "Position map",
        "A crop slides over the slab; each place shows the cell that the network believes it to be in, and how far off "
        "that is. Crops are always projected together with the base crops, which their batch norms need.",
        PositionMapOptions,
        position_map,
    ),
    ModelView(
        "likeness",
        "Likeness of base crops",
        "How much the base crops of this place look alike to the network: what training pushes apart.",
        LikenessOptions,
        likeness,
    ),
    ModelView(
        "organs",
        "Organs and certainty",
        "Classes that the decoder of an omni- or semi-supervised network sees, and where it hesitates.",
        OrgansOptions,
        organs,
    ),
    SCALES,
)
