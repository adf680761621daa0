"""A dataset of CC-CCII from its folders of pictures: one scan per folder of slices, with its class.

The published folders are ``CLASS/PATIENT/SCAN/0001.png`` with the classes Normal, CP (common pneumonia) and NCP (novel
coronavirus pneumonia), perhaps below folders of the single downloads. Slices are grey levels 0 to 255, not Hounsfield
units, and tell no size of a pixel.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from training_backend.data.assemble import Recipient, assemble
from training_backend.data.dataset import Quarantined, relative_root
from training_backend.data.drafts import file_safe
from training_backend.data.facts import is_picture
from training_backend.data.ingest import IngestReport, Progress, without_doubles
from training_backend.data.manifest import CaseRecord, DatasetInfo, ImageRecord
from training_backend.data.pictures import COLOURS
from training_backend.data.read import read_volumes
from training_backend.data.splits import assign_splits
from training_backend.data.stow import content_hash
from training_backend.data.volume import Array, Geometry, Volume
from training_backend.errors import DataError

CLASSES = ("normal", "common pneumonia", "novel coronavirus pneumonia")
FOLDERS = {"normal": 0, "cp": 1, "ncp": 2}
"""Class number of each folder, whatever its case."""
GREY_LEVELS = 255
SPACING_MM = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Scan:
    """A folder of slices in their order."""

    folder: Path
    slices: tuple[Path, ...]
    target: int
    patient: str


def prepare_ccii(folder: Path, output: Path, *, seed: int = 0, progress: Progress | None = None) -> IngestReport:
    """Dataset in `output` with one case per folder of slices; its subject is the patient.

    Args:
        folder: with the folders Normal, CP and NCP at any depth.
        output: folder of the dataset.
        seed: of the split into train and val; `med3dssl data split` cuts the published three folds.
        progress: told the share done.

    Raises:
        DataError: there is no such folder, or no scan could be made.
    """
    scans, problems = find_scans(Path(folder))
    info = DatasetInfo(
        name="cc-ccii",
        layout="pictures",
        root=relative_root(Path(folder).absolute(), output),
        contrasts=("CT",),
        modality="CT",
        target_names=CLASSES,
    )
    made = [_case(scan, Path(folder)) for scan in scans]
    scan_of = {case.id: scan for case, scan in zip(made, scans, strict=True)}
    cases, doubles = without_doubles(made)
    cases = assign_splits(cases, (0.8, 0.2, 0.0), seed)

    def recipients() -> Iterator[Recipient]:
        for case in cases:
            yield Recipient(case, partial(stacked, scan_of[case.id]))

    return assemble(output, info, recipients(), len(cases), [*problems, *doubles], progress)


def find_scans(folder: Path) -> tuple[list[Scan], list[Quarantined]]:
    """Folders of slices below `folder`, and those of no known class with the reason.

    Raises:
        DataError: none is of a known class.
    """
    scans, problems = [], []
    for place in sorted({file.parent for file in folder.rglob("*") if is_picture(file)}):
        parts = place.relative_to(folder).parts
        known = [index for index, part in enumerate(parts) if part.lower() in FOLDERS]
        if not known or known[-1] == len(parts) - 1:
            what = "is no folder of a patient" if known else "is in no folder called Normal, CP or NCP"
            name = place.relative_to(folder).as_posix()
            problems.append(Quarantined("", name, "list", f"{name} holds pictures, but {what}."))
            continue
        label = known[-1]
        slices = sorted((file for file in place.iterdir() if is_picture(file)), key=_number)
        patient = f"{parts[label].lower()}-{parts[label + 1]}"
        scans.append(Scan(place, tuple(slices), FOLDERS[parts[label].lower()], patient))
    if not scans:
        raise DataError(
            f"{folder} holds no scans of CC-CCII: no pictures in Normal, CP or NCP, then a patient, then a scan.",
            "Unpack the downloads, and give the folder that holds those of the classes.",
        )
    return scans, problems


def stacked(scan: Scan) -> Volume:
    """Slices of a scan as a volume (z, y, x) of grey levels 0 to 255, the first slice first.

    Raises:
        DataError: slices of different sizes, with colours, or with more than 256 grey levels.
    """
    planes = [_plane(path) for path in scan.slices]
    odd = next((path for path, plane in zip(scan.slices, planes, strict=True) if plane.shape != planes[0].shape), None)
    if odd is not None:
        raise DataError(
            f"{odd.name} of {scan.folder.name} is not as large as {scan.slices[0].name}.",
            "Remove what is no slice of this scan.",
        )
    array = np.stack(planes).astype(np.int16)
    depth, height, width = array.shape
    geometry = Geometry.from_spacing((depth, height, width), SPACING_MM)
    note = "Pictures do not tell the size of a voxel; 1 mm was assumed."
    return Volume(array, geometry, "unknown", scan.folder.name, {"warnings": [note]})


def _plane(path: Path) -> Array:
    """Grey levels (y, x) of a slice; three colours that are the same are one."""
    found = read_volumes(path)
    first: Array = found[0].array[0]
    if first.dtype != np.uint8 and (first.min() < 0 or first.max() > GREY_LEVELS):
        raise DataError(f"{path.name} of {path.parent.name} has more than 256 grey levels.", "Save it with 8 bits.")
    if len(found) == len(COLOURS) and any(not np.array_equal(first, one.array[0]) for one in found[1:]):
        raise DataError(
            f"{path.name} of {path.parent.name} has colours; slices are grey.", "Remove it from the folder."
        )
    return first


def _case(scan: Scan, folder: Path) -> CaseRecord:
    place = scan.folder.relative_to(folder).as_posix()
    image = ImageRecord(path=place, contrast="CT", modality="unknown", sha256=_digest(scan.slices))
    return CaseRecord(
        id=file_safe(f"{scan.patient}-{scan.folder.name}"),
        subject=scan.patient,
        split="train",
        images=(image,),
        target=(float(scan.target),),
    )


def _digest(slices: Sequence[Path]) -> str:
    return hashlib.sha256("".join(map(content_hash, slices)).encode()).hexdigest()


def _number(path: Path) -> tuple[int, str]:
    """Slices by the last number in their names, so that 10 follows 9."""
    numbers = re.findall(r"\d+", path.stem)
    return (int(numbers[-1]) if numbers else 0, path.name)
