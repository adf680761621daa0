"""What lies in rehearsal buffers: small pictures or first words of members, features, layers; off the Qt thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_med3dssl import _layers
from napari_med3dssl.explore_maths import Floats, pca_points
from training_backend.data import rehearsal
from training_backend.data.rehearsal import Buffer, Member
from training_backend.data.volume import Volume
from training_backend.errors import DataError, Med3dError

if TYPE_CHECKING:
    from training_backend.data.dataset import Dataset
    from training_backend.data.store import StoredCase

SHOWN = 120
"""Members of which pictures are made; a buffer may hold thousands."""
SIDE = 76
"""Pixels of a picture along its longer side."""
WORDS = 90
"""Letters of a report on its card."""
DRAWN = 4000
"""Cases of a buffer that the map shows besides the members."""
COLOURS = ("red", "green", "blue")


@dataclass(frozen=True)
class Thumbnail:
    """One member of a buffer: a picture [h, w, 3], or the beginning of its report, or why there is none."""

    member: Member
    picture: npt.NDArray[np.uint8] | None = None
    text: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Group:
    """Cases that are drawn alike: those of a modality, or of a cluster.

    Attributes:
        modality: of all of them.
        places: [N, 2].
        chosen: bool [N], true for members.
        cases: ids; empty text where only those of the members are known.
    """

    modality: str
    places: Floats
    chosen: npt.NDArray[np.bool_]
    cases: Sequence[str]


@dataclass(frozen=True)
class FeatureMap:
    """Features on their two principal axes: groups by name, and the share of the variance of both axes."""

    groups: dict[str, Group]
    explained: tuple[float, float]


def buffers_of(folder: Path) -> list[Buffer]:
    """Buffers of a plan or a run, in the order of its stages; those that it rehearses come first."""
    from training_backend.config import RunConfig

    places = sorted((Path(folder) / "stages").glob("*/buffer"))
    try:
        method: Any = RunConfig.load(Path(folder) / "config.yaml").method
        places = [*getattr(getattr(method, "rehearsal", None), "buffers", ()), *places]
    except Med3dError:  # a plan has no such file
        pass
    found = [rehearsal.known(place) for place in (*places, Path(folder) / rehearsal.FOLDER)]
    return list({buffer.modality: buffer for buffer in found if buffer is not None}.values())


def thumbnails(buffer: Buffer, progress: Callable[..., Any]) -> list[Thumbnail]:
    """The first members as pictures; a member that cannot be read says why in its place."""
    dataset = buffer.open()
    found = []
    members = buffer.members[:SHOWN]
    for done, member in enumerate(members):
        progress(done / len(members), f"Reading {buffer.modality}")
        found.append(_thumbnail(dataset, buffer, member))
    return found


def member_layers(buffer: Buffer, case: str) -> list[_layers.LayerData]:
    """Layers of a member, from the store of its dataset; colours of a picture add up to it.

    Raises:
        DataError: a report has no picture, or the files are gone.
    """
    dataset = buffer.open()
    if case not in dataset.records:
        raise DataError(f"{case} is not in the dataset {dataset.info.name} any more.")
    if buffer.kind == "text":
        raise DataError(f"{case} is a report; there is no scan to open.")
    return stored_layers(dataset, case)


def stored_layers(dataset: Dataset, case: str) -> list[_layers.LayerData]:
    """Layers of the scans of a case, from the store of its dataset; colours of a picture add up to it."""
    from training_backend.data.store import open_case

    stored = open_case(dataset, dataset.records[case])
    volumes = []
    for number, (contrast, statistics) in enumerate(zip(stored.contrasts, stored.statistics, strict=True)):
        array = stored.read_image(channels=(number,))[0]
        if statistics.scale != 1:
            array = array.astype(np.float32) * statistics.scale
        modality = "CT" if statistics.ct else dataset.info.modality
        name = case if stored.channels == 1 else f"{case} · {contrast}"
        meta: dict[str, Any] = {"kind": "image", **({} if stored.channels == 1 else {"contrast": contrast})}
        if statistics.largest is not None:
            meta |= {"format": "picture", "largest": statistics.largest}
        volumes.append(Volume(array, stored.geometry, modality, name, meta))
    return _layers.layers_of_volumes(volumes)


def report_of(buffer: Buffer, case: str) -> str:
    """Report of a member."""
    return str(buffer.open().case(case).report or "")


def feature_map(buffers: Sequence[Buffer]) -> FeatureMap:
    """Features of all cases of these buffers on common axes, by modality; those of a single buffer by cluster.

    Where a buffer has very many cases, its members and an even choice of the others.
    """
    rows: list[Floats] = []
    groups: dict[str, tuple[str, npt.NDArray[np.bool_], list[str]]] = {}
    for buffer in buffers:
        if buffer.folder is None:
            continue
        arrays = rehearsal.arrays(buffer.folder)
        features, members = np.asarray(arrays["features"], np.float32), arrays["chosen"]
        names = np.full(len(features), "", dtype=object)
        names[members] = buffer.ids
        kept = np.union1d(np.arange(0, len(features), max(1, len(features) // DRAWN)), members)
        clusters = arrays["labels"][kept] if len(buffers) == 1 else np.zeros(len(kept), int)
        for cluster in np.unique(clusters):
            mine = kept[clusters == cluster]
            name = f"cluster {cluster + 1}" if len(buffers) == 1 else buffer.modality
            rows.append(features[mine])
            groups[name] = (buffer.modality, np.isin(mine, members), list(names[mine]))
    if not rows:
        raise DataError("There are no buffers yet.", "The first one is made when a stage has ended.")
    if len({row.shape[1] for row in rows}) > 1:
        raise DataError("The buffers hold features of different widths.", "They are of encoders of different sizes.")
    places, explained = pca_points(np.concatenate(rows))
    parts = np.split(places, np.cumsum([len(row) for row in rows])[:-1])
    found = {
        name: Group(modality, part, chosen, cases)
        for (name, (modality, chosen, cases)), part in zip(groups.items(), parts, strict=True)
    }
    return FeatureMap(found, (float(explained[0]), float(explained[1])))


def _thumbnail(dataset: Dataset, buffer: Buffer, member: Member) -> Thumbnail:
    from training_backend.data.store import open_case

    try:
        case = dataset.case(member.case)
        if buffer.kind == "text":
            text = " ".join(str(case.report or "").split())
            return Thumbnail(member, text=text if len(text) <= WORDS else f"{text[:WORDS]}…")
        return Thumbnail(member, picture=small_picture(open_case(dataset, case)))
    except Med3dError as error:
        return Thumbnail(member, problem=error.sentence)


def small_picture(stored: StoredCase) -> npt.NDArray[np.uint8]:
    """The middle slice as the viewer shows it, right proportions, at most `SIDE` pixels high and wide, [h, w, 3]."""
    from PIL import Image

    colour = set(stored.contrasts) == set(COLOURS)
    channels = tuple(stored.contrasts.index(name) for name in COLOURS) if colour else (0,)
    depth, height, width = stored.shape
    middle = stored.read_image((depth // 2, 0, 0), (1, height, width), channels)[:, 0]
    drawn = np.stack(
        [_stretched(plane, stored.statistics[k], colour) for plane, k in zip(middle, channels, strict=True)]
    )
    _, dy, dx = stored.geometry.spacing_mm
    largest = max(height * dy, width * dx)
    size = (max(1, round(SIDE * width * dx / largest)), max(1, round(SIDE * height * dy / largest)))
    picture = Image.fromarray(np.ascontiguousarray(np.moveaxis(drawn, 0, -1).repeat(3 // len(drawn), axis=-1)))
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR))


def _stretched(plane: npt.NDArray[Any], statistics: Any, colour: bool) -> npt.NDArray[np.uint8]:
    """Stored values as grey from dark to bright: all of a colour's range, else the middle 99 % of the body's."""
    low, high = (0.0, statistics.largest or 255.0) if colour else (statistics.percentile(q) for q in (0.5, 99.5))
    scaled = (plane.astype(np.float32) * statistics.scale - low) / max(high - low, 1e-6)
    return np.round(255 * scaled.clip(0, 1)).astype(np.uint8)
