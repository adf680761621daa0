"""What is known of the cases on a cohort's map, and what is done with some of them; off the Qt thread."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_med3dssl._layers import LayerData
from napari_med3dssl.buffer_files import small_picture, stored_layers
from napari_med3dssl.explore_maths import Floats, pca_points
from training_backend.data import rehearsal
from training_backend.data.dataset import Dataset
from training_backend.errors import DataError
from training_backend.files import write_text

PCA, UMAP = "principal axes", "UMAP"
GROUPS = "groups.csv"
"""File of a dataset that keeps the names given to groups of cases."""
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
    datasets = [Dataset.open(folder) for folder in folders]
    rows = list(zip(values["datasets"], values["cases"], values["regions"], strict=True))
    points = [Point(Path(folders[number]), case, region) for number, case, region in rows]
    vectors = np.asarray(values["vectors"], np.float32)
    pca, explained = pca_points(vectors)
    traits: dict[str, list[str]] = {"modality": [], "dataset": [], "split": [], "label map": [], "group": []}
    groups = [read_groups(folder) for folder in folders]
    for number, case, _ in rows:
        info, record = datasets[number].info, datasets[number].records[case]
        modality = record.images[0].modality if record.images else "unknown"
        traits["modality"].append(info.modality if modality == "unknown" else modality)
        traits["dataset"].append(info.name)
        traits["split"].append(record.split)
        traits["label map"].append("labelled" if record.label is not None else "not labelled")
        traits["group"].append(groups[number].get(case, "no group"))
    if any(point.region for point in points):
        traits = {"region": [point.region for point in points], **traits}
    odd = [(int(row), float(score)) for row, score in values["odd"]]
    twins = [(int(one), int(other), float(near)) for one, other, near in values["twins"]]
    share = (float(explained[0]), float(explained[1]))
    told = (list(values["problems"]), bool(values["umap"]))
    return Cohort(points, vectors, {PCA: pca}, traits, share, odd, twins, *told)


def dice_trait(cohort: Cohort, run: Path) -> list[str]:
    """For each point how well a run did on its case, in steps."""
    path = Path(run) / "predictions" / "cases.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        scores = {entry["case"]: float(np.mean(list(entry["dice"].values()))) for entry in entries if entry["dice"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{Path(run).name} has no scored cases.", "Choose a finished segmentation run.") from error
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


def exclude(points: Sequence[Point], excluded: bool = True) -> int:
    """Leave cases out of their datasets, or take them in again; answers how many changed."""
    _some(points)
    changed = 0
    for folder in dict.fromkeys(point.folder for point in points):
        dataset = Dataset.open(folder)
        for id in dict.fromkeys(point.case for point in points if point.folder == folder):
            record = dataset.records.get(id)
            if record is not None and record.excluded != excluded:
                dataset.put(record.model_copy(update={"excluded": excluded}))
                changed += 1
        dataset.save()
    return changed


def name_group(points: Sequence[Point], name: str) -> None:
    """Give cases a group; an empty name takes them out of theirs."""
    _some(points)
    for folder in dict.fromkeys(point.folder for point in points):
        groups = read_groups(folder)
        for point in points:
            if point.folder == folder:
                groups.pop(point.case, None)
                if name:
                    groups[point.case] = name
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["case", "group"])
        writer.writerows(sorted(groups.items()))
        write_text(folder / GROUPS, text.getvalue())


def read_groups(folder: Path) -> dict[str, str]:
    """Groups of the cases of a dataset, by id."""
    try:
        text = (Path(folder) / GROUPS).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    return {row["case"]: row["group"] for row in csv.DictReader(io.StringIO(text)) if row.get("case")}


def _step(score: float | None) -> str:
    if score is None:
        return "no score"
    edges = (0.0, *DICE_STEPS, 1.0)
    number = int(np.searchsorted(DICE_STEPS, score, side="right"))
    return f"Dice {edges[number]:g} to {edges[number + 1]:g}"


def _some(chosen: Sequence[Any]) -> None:
    if not chosen:
        raise DataError(EMPTY_LASSO)
