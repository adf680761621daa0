"""A dataset of crops around candidates for a finding, such as the nodule candidates of LUNA16, with their classes.

The table says where each candidate lies in the world of its scan; every crop is an upright cube around it, in
millimetres, whatever the voxels of the scan. Scans in folders called ``subset0`` to ``subset9`` are split as in VoCo's
experiments: 0 to 5 train, 6 validate, 7 to 9 test.
"""

from __future__ import annotations

import csv
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from training_backend.data.assemble import Recipient, assemble
from training_backend.data.dataset import Quarantined, relative_root
from training_backend.data.drafts import file_safe, stem
from training_backend.data.importers_folders import is_scan
from training_backend.data.ingest import IngestReport, Progress
from training_backend.data.manifest import CaseRecord, DatasetInfo, ImageRecord, Split
from training_backend.data.read import read_volume
from training_backend.data.resample import resample
from training_backend.data.views import generator
from training_backend.data.volume import Geometry, Volume
from training_backend.errors import DataError

COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "class")
CLASSES = ("no nodule", "nodule")
AIR_HU = -1000.0
_SPLITS: tuple[Split, ...] = (*("train",) * 6, "val", *("test",) * 3)
_DRAW, _SPLIT = 31, 32  # set the streams of random numbers apart


@dataclass(frozen=True)
class Candidate:
    """One line of the table: where it lies in LPS millimetres (x, y, z), and whether it is what is looked for."""

    line: int
    scan: str
    lps: tuple[float, float, float]
    positive: bool


def prepare_candidates(
    table: Path,
    scans: Path,
    output: Path,
    *,
    size: int = 64,
    spacing_mm: float = 1.0,
    negatives: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> IngestReport:
    """Dataset in `output` with one crop per candidate and its class (0 or 1) as target.

    Args:
        table: CSV with the columns of `COLUMNS`; places in LPS millimetres, as LUNA16 gives them.
        scans: folder in which a scan called after each series lies, at any depth.
        output: folder of the dataset.
        size: voxels of a crop along each axis.
        spacing_mm: of a crop's voxels.
        negatives: negative candidates kept for each positive one of a split, drawn by `seed`; 0 keeps all.
        seed: of the draw, and of the split where no subset folders tell it.
        progress: told the share done.

    Raises:
        DataError: the table or the folder cannot be used, or no crop could be made.
    """
    found, problems = read_candidates(table)
    files = {stem(path): path for path in sorted(Path(scans).rglob("*")) if is_scan(path) and path.suffix != ".raw"}
    for missing in sorted({one.scan for one in found} - set(files)):
        count = sum(one.scan == missing for one in found)
        problems.append(
            Quarantined("", f"{missing}", "missing", f"{missing} has {count} candidates, but there is no scan of it.")
        )
    found = [one for one in found if one.scan in files]
    if not found:
        raise DataError(
            f"None of the series of {Path(table).name} has a scan in {scans}.",
            "Scans must be called after the series, e.g. SERIESUID.mhd.",
        )
    splits = _splits({one.scan: files[one.scan] for one in found}, seed)
    chosen = kept(found, splits, negatives, seed)
    info = DatasetInfo(
        name=Path(table).stem,
        layout="candidates",
        root=relative_root(Path(scans).absolute(), output),
        contrasts=("CT",),
        modality="CT",
        target_names=CLASSES,
        spacing_mm=(spacing_mm,) * 3,
    )
    read = _Last()

    def recipients() -> Iterator[Recipient]:
        for one in chosen:
            path = files[one.scan]
            image = ImageRecord(
                path=path.relative_to(scans).as_posix(),
                contrast="CT",
                modality="CT",
                key=f"line {one.line}, {size} x {spacing_mm:g} mm",
            )
            case = CaseRecord(
                id=f"{file_safe(one.scan)}_{one.line:06d}",
                subject=one.scan,
                split=splits[one.scan],
                images=(image,),
                target=(float(one.positive),),
            )
            yield Recipient(case, partial(_crop, read, path, one, size, spacing_mm))

    return assemble(output, info, recipients(), len(chosen), problems, progress)


def read_candidates(table: Path) -> tuple[list[Candidate], list[Quarantined]]:
    """Candidates of a table, and the lines that are none with the reasons."""
    try:
        with Path(table).open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            lacking = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            rows = [] if lacking else list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as CSV: {error}.", "Give LUNA16's candidates.csv.") from error
    if lacking:
        raise DataError(f"{Path(table).name} has no column {', '.join(lacking)}.", f"Columns are {', '.join(COLUMNS)}.")
    found, problems = [], []
    for line, row in enumerate(rows, 2):
        try:
            x, y, z = (float(row[name]) for name in COLUMNS[1:4])
            known = {"0": False, "1": True}[str(row["class"]).strip()]
            if not math.isfinite(x + y + z):
                raise ValueError
        except (TypeError, ValueError, KeyError):
            reason = f"Line {line} needs three numbers of millimetres and a class of 0 or 1."
            problems.append(Quarantined("", f"{Path(table).name} line {line}", "list", reason))
            continue
        found.append(Candidate(line, str(row["seriesuid"]), (x, y, z), known))
    return found, problems


def kept(found: Sequence[Candidate], splits: dict[str, Split], negatives: int, seed: int) -> list[Candidate]:
    """All positive candidates, and `negatives` times as many negative ones of each split; scan after scan."""
    result = []
    for number, split in enumerate(("train", "val", "test")):
        here = [one for one in found if splits[one.scan] == split]
        positive, negative = ([one for one in here if one.positive is wanted] for wanted in (True, False))
        limit = len(negative) if negatives == 0 else min(len(negative), negatives * max(1, len(positive)))
        drawn = generator(seed, _DRAW, number).permutation(len(negative))[:limit]
        result += positive + [negative[index] for index in drawn]
    return sorted(result, key=lambda one: (one.scan, one.line))


def crop_at(volume: Volume, lps: tuple[float, float, float], size: int, spacing_mm: float) -> Volume:
    """Upright cube of `size` voxels around a place; air outside the scan.

    Raises:
        DataError: the place lies outside the scan.
    """
    voxel = np.linalg.inv(volume.geometry.to_lps) @ np.array([*lps, 1.0])
    shape = volume.geometry.shape
    if any(not -0.5 <= place <= n - 0.5 for place, n in zip(voxel[:3], shape, strict=True)):
        place = ", ".join(f"{mm:.1f}" for mm in lps)
        raise DataError(
            f"The candidate at ({place}) mm lies outside its scan of {shape} voxels.",
            "Are the coordinates in LPS millimetres (x, y, z), and is it the right scan?",
        )
    half = (size - 1) / 2 * spacing_mm
    x, y, z = (mm - half for mm in lps)
    grid = Geometry.from_spacing((size,) * 3, (spacing_mm,) * 3, (x, y, z))  # type: ignore[arg-type]
    array = resample(volume.array, volume.geometry, grid, fill=AIR_HU)
    return Volume(array, grid, "CT", "candidate", {})


class _Last:
    """Reads scans, keeping the last one, since candidates come scan by scan."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._volume: Volume | None = None

    def __call__(self, path: Path) -> Volume:
        if self._path != path or self._volume is None:
            self._path, self._volume = None, None
            self._volume, self._path = read_volume(path), path
        return self._volume


def _crop(read: Callable[[Path], Volume], path: Path, one: Candidate, size: int, spacing_mm: float) -> Volume:
    return crop_at(read(path), one.lps, size, spacing_mm)


def _splits(scans: dict[str, Path], seed: int) -> dict[str, Split]:
    """Split of each scan: of its subset folder, else drawn (60, 10 and 30 % as there)."""
    names: dict[str, list[str]] = defaultdict(list)
    result: dict[str, Split] = {}
    for name, path in scans.items():
        subset = next((match for part in path.parts if (match := re.fullmatch(r"subset(\d)", part))), None)
        if subset is None:
            names["drawn"].append(name)
        else:
            result[name] = _SPLITS[int(subset[1])]
    drawn = sorted(names["drawn"])
    for place, index in enumerate(generator(seed, _SPLIT).permutation(len(drawn))):
        result[drawn[index]] = _SPLITS[10 * place // len(drawn)]
    return result
