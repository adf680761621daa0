"""From corrected masks to a better model: accepting them, taking them back, what to look at next, and who learns it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from training_backend.api.progress import progress_bar
from training_backend.errors import ConfigError, Med3dError
from training_backend.report import Table

if TYPE_CHECKING:
    from training_backend.data.accept import AcceptReport


def data_accept(
    folder: Path,
    file: Path,
    case: str,
    annotated: tuple[str, ...] = (),
    label_values: dict[int, int] | None = None,
    model: str = "",
    how: str = "",
    by: str = "",
) -> AcceptReport:
    """Make a corrected mask the label map of a case. The one before is kept; data undo brings it back.

    Args:
        folder: Dataset.
        file: Label map on the scan of the case; 255 is unlabelled.
        case: Id of the case.
        annotated: Names of the classes that were looked for; all when empty. Others do not count in training.
        label_values: Class that a value of the mask stands for, in pairs: 205 1 420 2. Others stay what they are.
        model: Run, model folder or file whose prediction was corrected.
        how: What the mask is, in a few words.
        by: Who accepts it; the user of this machine when empty.
    """
    from training_backend.data.accept import Origin, accept
    from training_backend.data.read import read_labels

    mask = read_labels(file)
    names = {int(value): str(name) for value, name in (mask.meta.get("class_names") or {}).items()}
    return accept(
        folder,
        case,
        mask,
        origin=Origin(how or f"file {file.name}", model, by),
        annotated=annotated or None,
        names={} if label_values else names,
        values=label_values or {},
    )


def data_undo(folder: Path, case: str = "") -> AcceptReport:
    """Give a case the label map back that it had before a mask was accepted.

    Args:
        folder: Dataset.
        case: Id of the case; the one accepted last when empty.
    """
    from training_backend.data.accept import undo

    return undo(folder, case)


def data_next(
    folder: Path,
    weights: str,
    by: Literal["uncertainty", "diversity", "both"] = "both",
    count: int = 10,
    device: str = "auto",
) -> Table:
    """List the cases without a label map that are worth labelling next, with the reason.

    Args:
        folder: Dataset.
        weights: Run directory, model folder, or the authors' file; uncertainty needs a segmentation model.
        by: uncertainty: how unsure the model is of the body's voxels. diversity: how far the scan is from all that are
            labelled, as the encoder sees them. both: the mean of the two ranks.
        count: Cases to list.
        device: auto, cpu, cuda or cuda:N.
    """
    from training_backend.data.dataset import Dataset
    from training_backend.evaluate.next_case import next_cases
    from training_backend.weights.load import load_model

    table = Table(("case", "reason"))
    progress = progress_bar("next")
    for choice in next_cases(load_model(weights), Dataset.open(folder), by, count, device=device, progress=progress):
        table.add(choice.case_id, choice.reason)
    return table


def data_assign(
    folder: Path,
    cases: Path,
    split: Literal["train", "val", "test", "unlabelled"] | None = None,
    label: str | None = None,
    exclude: bool = False,
    include: bool = False,
) -> str:
    """Decide about some cases of a dataset: their split, their class, whether they are used.

    Args:
        folder: Dataset.
        cases: File with their ids, one per line, as the cohort map saves it.
        split: They are moved to.
        label: Name of their class, the target of a classification; empty text takes it away.
        exclude: Leave them out of training, scores and maps.
        include: Take excluded ones in again.
    """
    from training_backend.data import subsets
    from training_backend.data.choice import read_ids

    if (exclude and include) or not (split or label is not None or exclude or include):
        raise ConfigError(
            "Nothing was decided, or both to exclude and to include.", "Give --split, --label, --exclude or --include."
        )
    ids, done = read_ids(cases), []
    try:
        if split is not None:
            done.append(subsets.move(folder, ids, split))
        if label is not None:
            done.append(subsets.classify(folder, ids, label.strip()))
        if exclude:
            done.append(subsets.exclude(folder, ids))
        if include:
            done.append(subsets.include(folder, ids))
    except Med3dError:
        for change in reversed(done):
            subsets.undo(change)
        raise
    changed = {id for change in done for id in change.before}
    return f"{len(changed)} of {len(ids)} cases were changed."
