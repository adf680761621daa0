"""What is known of the cases on a cohort's map, and what is done with some of them; off the Qt thread."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_med3dssl._layers import LayerData
from napari_med3dssl.buffer_files import small_picture, stored_layers
from napari_med3dssl.explore_maths import Floats, pca_points
from training_backend.data import rehearsal, subsets
from training_backend.data.dataset import Dataset
from training_backend.data.manifest import Split
from training_backend.data.subsets import Change
from training_backend.errors import DataError, Med3dError
from training_backend.files import write_text

PCA, UMAP = "principal axes", "UMAP"
GROUPS = "groups.csv"
"""File of a dataset that keeps the names given to groups of cases."""
TRAITS = ("modality", "dataset", "split", "label map", "class", "group")
"""What is told of every case."""
DICE_STEPS = (0.5, 0.7, 0.8, 0.9)
"""Between these, Dice scores are drawn alike."""
EMPTY_LASSO = "The lasso holds no point; nothing was changed. Draw around some points."
ALONE = "There is one case only; a map shows how cases lie to each other. Add a dataset, or scans to this one."


@dataclass(frozen=True)
class Point:
    """One point of the map: a case, or one region of it."""

    folder: Path
    case: str
    region: str = ""


@dataclass
class Cohort:
    """Points, where they lie, and what they are.

    Attributes:
        points: [N].
        vectors: [N, E], features.
        places: [N, 2] by the name of the axes: `PCA` always, `UMAP` once it was computed.
        traits: [N] texts by what they tell: modality, dataset, split, ...
        explained: share of the variance of the two principal axes.
        odd: row and score of points far from all others.
        twins: rows and distance of points that are almost the same.
        problems: sentences about cases that have no point.
        umap: whether they can be placed by UMAP.
    """

    points: list[Point]
    vectors: Floats
    places: dict[str, Floats]
    traits: dict[str, list[str]]
    explained: tuple[float, float]
    odd: list[tuple[int, float]] = field(default_factory=list)
    twins: list[tuple[int, int, float]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    umap: bool = False


def cohort_of(values: dict[str, Any], folders: Sequence[Path]) -> Cohort:
    """The map from an answer of the model process."""
    rows = list(zip(values["datasets"], values["cases"], values["regions"], strict=True))
    points = [Point(Path(folders[number]), case, region) for number, case, region in rows]
    vectors = np.asarray(values["vectors"], np.float32)
    pca, explained = pca_points(vectors)
    traits = traits_of(points)
    odd = [(int(row), float(score)) for row, score in values["odd"]]
    twins = [(int(one), int(other), float(near)) for one, other, near in values["twins"]]
    share = (float(explained[0]), float(explained[1]))
    told = (list(values["problems"]), bool(values["umap"]))
    return Cohort(points, vectors, {PCA: pca}, traits, share, odd, twins, *told)


def traits_of(points: Sequence[Point]) -> dict[str, list[str]]:
    """What datasets say of the cases of points, as they are on disk now."""
    folders = list(dict.fromkeys(point.folder for point in points))
    datasets = {folder: Dataset.open(folder) for folder in folders}
    groups = {folder: read_groups(folder) for folder in folders}
    names = {folder: _class_names(datasets[folder]) for folder in folders}
    traits: dict[str, list[str]] = {name: [] for name in TRAITS}
    for point in points:
        info, record = datasets[point.folder].info, datasets[point.folder].case(point.case)
        modality = record.images[0].modality if record.images else "unknown"
        told = (
            info.modality if modality == "unknown" else modality,
            info.name,
            "excluded" if record.excluded else record.split,
            "labelled" if record.label is not None else "not labelled",
            subsets.class_of(record, names[point.folder]) or "no class",
            groups[point.folder].get(point.case, "no group"),
        )
        for name, text in zip(TRAITS, told, strict=True):
            traits[name].append(text)
    if any(point.region for point in points):
        traits = {"region": [point.region for point in points], **traits}
    return traits


def known_classes(points: Sequence[Point]) -> list[str]:
    """Names of the classes that whole cases have in the datasets of points; none where targets are no classes."""
    folders = dict.fromkeys(point.folder for point in points)
    return list(dict.fromkeys(name for folder in folders for name in _class_names(Dataset.open(folder)) if name))


def dice_trait(cohort: Cohort, run: Path) -> list[str]:
    """For each point how well a run did on its case, in steps."""
    from training_backend.jobs.learn import case_dice

    scores = case_dice(Path(run))
    if not scores.keys() & {point.case for point in cohort.points}:
        raise DataError(f"{Path(run).name} has scored none of these cases.", "Choose a run on this dataset.")
    return [_step(scores.get(point.case)) for point in cohort.points]


def buffer_trait(cohort: Cohort, folder: Path) -> list[str]:
    """For each point whether its case is in a rehearsal buffer."""
    buffer = rehearsal.known(Path(folder))
    if buffer is None:
        raise DataError(f"{Path(folder).name} holds no rehearsal buffer.", "Choose the folder with a buffer.json.")
    members = set(buffer.ids)
    return ["in the buffer" if point.case in members else "not in it" for point in cohort.points]


def thumbnail(point: Point) -> npt.NDArray[np.uint8]:
    """The middle slice of a case, [h, w, 3]."""
    from training_backend.data.store import open_case

    dataset = Dataset.open(point.folder)
    return small_picture(open_case(dataset, dataset.case(point.case)))


def layers_of(point: Point) -> list[LayerData]:
    """Layers of a case."""
    return stored_layers(Dataset.open(point.folder), point.case)


def write_list(points: Sequence[Point], path: Path) -> int:
    """Write the ids of cases, one per line, as `data.only` reads them; answers how many."""
    ids = list(dict.fromkeys(point.case for point in points))
    _some(ids)
    write_text(path, "\n".join(ids) + "\n")
    return len(ids)


@dataclass(frozen=True)
class Done:
    """What was done with cases, as far as it can be taken back: changes of datasets, and the groups that there were."""

    changes: tuple[Change, ...] = ()
    groups: dict[Path, dict[str, str]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Cases that were changed."""
        return sum(len(change.before) for change in self.changes)


def exclude(points: Sequence[Point]) -> Done:
    """Leave cases out of their datasets."""
    return _in_each(points, subsets.exclude)


def move(points: Sequence[Point], split: Split) -> Done:
    """Give cases a split."""
    return _in_each(points, lambda folder, ids: subsets.move(folder, ids, split))


def classify(points: Sequence[Point], name: str) -> Done:
    """Give cases a class, which a classification can learn; an empty name takes theirs away."""
    return _in_each(points, lambda folder, ids: subsets.classify(folder, ids, name))


def name_group(points: Sequence[Point], name: str) -> Done:
    """Give cases a group; an empty name takes them out of theirs."""
    _some(points)
    before = {}
    for folder, ids in _by_folder(points).items():
        before[folder] = read_groups(folder)
        kept = {case: group for case, group in before[folder].items() if case not in ids}
        _write_groups(folder, kept | (dict.fromkeys(ids, name) if name else {}))
    return Done(groups=before)


def undo(done: Done) -> None:
    """Make cases and groups what they were."""
    for change in reversed(done.changes):
        subsets.undo(change)
    for folder, groups in done.groups.items():
        _write_groups(folder, groups)


def read_groups(folder: Path) -> dict[str, str]:
    """Groups of the cases of a dataset, by id."""
    try:
        text = (Path(folder) / GROUPS).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    return {row["case"]: row["group"] for row in csv.DictReader(io.StringIO(text)) if row.get("case")}


def _in_each(points: Sequence[Point], decide: Callable[[Path, list[str]], Change]) -> Done:
    """Change the cases of each dataset; if one refuses, none is changed."""
    _some(points)
    done: list[Change] = []
    try:
        for folder, ids in _by_folder(points).items():
            done.append(decide(folder, ids))
    except Med3dError:
        undo(Done(tuple(done)))
        raise
    return Done(tuple(done))


def _by_folder(points: Sequence[Point]) -> dict[Path, list[str]]:
    """Ids of the cases of each dataset, each once."""
    found: dict[Path, list[str]] = {}
    for point in dict.fromkeys(Point(point.folder, point.case) for point in points):
        found.setdefault(point.folder, []).append(point.case)
    return found


def _write_groups(folder: Path, groups: dict[str, str]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "group"])
    writer.writerows(sorted(groups.items()))
    write_text(folder / GROUPS, text.getvalue())


def _class_names(dataset: Dataset) -> tuple[str, ...]:
    try:
        return subsets.class_names(dataset)
    except DataError:  # targets that are no classes
        return ()


def _step(score: float | None) -> str:
    if score is None:
        return "no score"
    edges = (0.0, *DICE_STEPS, 1.0)
    number = int(np.searchsorted(DICE_STEPS, score, side="right"))
    return f"Dice {edges[number]:g} to {edges[number + 1]:g}"


def _some(chosen: Sequence[Any]) -> None:
    if not chosen:
        raise DataError(EMPTY_LASSO)
