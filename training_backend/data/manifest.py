"""A dataset on disk: ``dataset.json`` (its facts) and ``manifest.jsonl`` (one case per line).

A case is one imaging session of one subject: one or more co-registered contrasts, at most one label map, at most one
target and one report; or it is a report alone. Paths are relative to the dataset's folder, or to `DatasetInfo.root` for
files left in place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from training_backend.config.model import ConfigModel

Split = Literal["train", "val", "test", "unlabelled"]


class ImageRecord(ConfigModel):
    """One contrast of a case, or its label map."""

    path: str
    """Source file, relative to the root of the dataset."""
    contrast: str = "image"
    """Name shared across cases: "CT", "T1", "PD"."""
    key: str = ""
    """Array inside the file, for .h5 and .npz, or series for DICOM folders."""
    modality: str = "unknown"
    shape: tuple[int, int, int] | None = None
    """Canonical (z, y, x) voxels."""
    spacing_mm: tuple[float, float, float] | None = None
    """Canonical (z, y, x) millimetres."""
    sha256: str = ""
    """Of the source file; empty until ingest."""
    rescale: tuple[float, float] | None = None
    """Slope and intercept that make the numbers of the file Hounsfield units, where a table tells them and the file
    does not."""
    values: dict[int, int] = Field(default_factory=dict)
    """Of a label map: class that a value of the file stands for; others stay what they are."""


class ClassEntry(ConfigModel):
    """One row of the class table."""

    index: int
    name: str
    colour: str
    """#rrggbb."""


class Accepted(ConfigModel):
    """A mask that somebody took into the dataset: where it came from, and what it replaced, for undoing it."""

    time: str
    """UTC, as 2026-01-31T12:00:00.000000+00:00."""
    by: str = ""
    """Who accepted it."""
    how: str = ""
    """What it is: "prediction, corrected", "strokes", ..."""
    model: str = ""
    """Run, model folder or file whose prediction was corrected."""
    model_sha256: str = ""
    """Of that model's weights."""
    split: Split = "train"
    """What `CaseRecord.split` was before."""
    label: ImageRecord | None = None
    """What `CaseRecord.label` was before."""
    annotated: tuple[int, ...] | None = None
    """What `CaseRecord.annotated` was before."""
    problems: tuple[str, ...] = ()
    """What `CaseRecord.problems` was before."""
    store: dict[str, Any] = Field(default_factory=dict)
    """Entries of `CaseRecord.store` before, as far as they are about the label map."""
    classes: tuple[ClassEntry, ...] = ()
    """Rows of the class table that came with it."""


class CaseRecord(ConfigModel):
    """One case of a dataset."""

    id: str
    """Unique within the dataset; file-safe."""
    subject: str
    """Subjects never cross splits."""
    session: str = ""
    split: Split = "train"
    images: tuple[ImageRecord, ...] = ()
    label: ImageRecord | None = None
    target: tuple[float, ...] | None = None
    """Class index, class vector (multi-label) or value (regression) of the whole case."""
    report: str = ""
    """Report text; never copied into logs, events or checkpoints."""
    excluded: bool = False
    """Left out by the user; kept in the manifest."""
    problems: tuple[str, ...] = ()
    """Sentences found by the checks that do not forbid using the case."""
    annotated: tuple[int, ...] | None = None
    """Classes that were looked for when the label map was drawn; what is background in it may be any other class, which
    neither losses nor metrics count. None stands for all."""
    accepted: tuple[Accepted, ...] = ()
    """Masks that were accepted one after the other; the last is `label`."""
    store: dict[str, Any] = Field(default_factory=dict)
    """Filled by ingest: geometry of the stored grid, start of the body box, intensity statistics per image."""

    def has(self, needs: str | None) -> bool:
        """Whether the case has what a task needs: "labels", a "target", or a report ("text"); true for all else."""
        if needs == "text":
            return bool(self.report.strip())
        given = {"labels": self.label, "target": self.target}
        return given.get(needs or "", self.images) is not None


class DatasetInfo(ConfigModel):
    """Facts of a dataset, in ``dataset.json``."""

    schema_version: int = 1
    name: str
    layout: str = ""
    """What the source was recognised as: "folder", "paired", "msd", "nnunet", "bids", "monai", "csv", "reports",
    "abstracts", "ct-rate", "ctrg", "arrow", "ua-mt" or "dicom"."""
    root: str = "."
    """Folder of the source files, relative to the dataset's folder when below it."""
    contrasts: tuple[str, ...] = ()
    classes: tuple[ClassEntry, ...] = ()
    modality: str = "unknown"
    """Of all images, where it is the same: "CT", "MR", ..., "text" where there are none; else "unknown"."""
    largest: float | None = None
    """Largest number of the format of all pictures (255, 65535), where it is the same; None for scans."""
    target_names: tuple[str, ...] = ()
    spacing_mm: tuple[float, float, float] | None = None
    """Spacing of the store, or None where each case keeps its own."""
    crop_body: bool = True
    """Whether the store holds only the box around each body."""


def dataset_folder(path: Path) -> Path:
    """`path` if it holds a dataset, else a `DataError` that says what to do."""
    from training_backend.errors import DataError

    folder = Path(path)
    if not (folder / "dataset.json").is_file():
        raise DataError(f"{folder} is not a dataset: it has no dataset.json.", "Make one with: med3dssl data ingest.")
    return folder
