"""Other visits of the patient whose scan is open: which case of the dataset comes before or after it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_med3dssl.data_panel import layers_of_case
from napari_med3dssl.explore_text import case_name
from training_backend.data.dataset import Dataset
from training_backend.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_med3dssl._layers import LayerData
    from training_backend.data.manifest import CaseRecord

NO_DATASET = "No dataset is in use that tells the visits of a patient; open one in the Data tab."


def visit_beside(folder: Path, names: Sequence[str], step: int) -> CaseRecord:
    """The case of the same subject whose session comes `step` after that of a case; sessions are ordered by name.

    Numbers in names count as numbers, so ses-10 follows ses-9.

    Args:
        folder: of the dataset.
        names: what the case may be known by: its id, or the path of one of its files.
        step: 1 for the next visit, -1 for the one before.

    Raises:
        DataError: the case is not in the dataset, or there is no such visit.
    """
    dataset = Dataset.open(folder)
    case = _known(dataset, names)
    if case is None:
        raise DataError(
            f"{names[0]} is no case of the dataset {dataset.info.name}, so its other visits are not known.",
            "Open the scan from that dataset, or choose the dataset it belongs to in the Data tab.",
        )
    visits = sorted((one for one in dataset.cases() if one.subject == case.subject and one.images), key=_order)
    ids = [one.id for one in visits]
    place = ids.index(case.id) + step if case.id in ids else -1
    if not 0 <= place < len(visits):
        which = "later" if step > 0 else "earlier"
        only = "the only visit" if len(visits) < 2 else "the last visit" if step > 0 else "the first visit"
        raise DataError(f"{case.id} is {only} of {case.subject} in the dataset, so there is no {which} one.")
    return visits[place]


def visit_layers(folder: Path, case: CaseRecord) -> list[LayerData]:
    """The scans of a visit, without its label map."""
    dataset = Dataset.open(folder)
    root = dataset.folder / dataset.info.root
    return layers_of_case(case.model_copy(update={"label": None}), root, dataset.info.classes)


def names_of(layer: Any) -> list[str]:
    """What the case of a layer may be known by."""
    path = getattr(layer.source, "path", None)
    return [case_name(layer), *([str(path)] if path else [])]


def contrast_of(layer: Any) -> str:
    """Contrast of a layer of a case, as its name tells; empty for cases of one."""
    return str(layer.name).partition(" · ")[2]


def _known(dataset: Dataset, names: Sequence[str]) -> CaseRecord | None:
    if names[0] in dataset.records:
        return dataset.records[names[0]]
    root = (dataset.folder / dataset.info.root).resolve()
    paths = {Path(name).resolve() for name in names[1:]}
    return next((one for one in dataset.cases() if any((root / image.path) in paths for image in one.images)), None)


def _order(case: CaseRecord) -> list[tuple[int, int, str]]:
    """Sorts like people count: runs of digits as numbers."""
    parts = re.findall(r"\d+|\D+", f"{case.session}\n{case.id}")
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
