"""What a path holds, in words: a scan, a folder of scans, or a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from training_backend.data.dataset import Quarantined
from training_backend.data.ingest import counted
from training_backend.data.manifest import CaseRecord
from training_backend.report import Table


def inspect(path: Path) -> Table:
    """Facts of a scan, or the cases of a folder or dataset, one row each."""
    path = Path(path)
    if (path / "dataset.json").is_file() and (path / "manifest.jsonl").is_file():
        from training_backend.data.dataset import Dataset

        dataset = Dataset.open(path)
        return _cases(dataset.info.layout, dataset.cases(), dataset.quarantined())
    from training_backend.data.importers import describe
    from training_backend.data.read import can_read

    if not path.exists() or (path.is_file() and can_read(path)):
        return _scan(path)

    described = describe(path)
    if described.info.layout == "dicom" and len(described.cases) == 1:
        return _scan(path)
    return _cases(described.info.layout, described.cases, described.problems)


def _scan(path: Path) -> Table:
    from training_backend.data.read import read_volumes

    table = Table(("what", "value"))
    for volume in read_volumes(path):
        geometry = volume.geometry
        table.add("name", volume.name)
        table.add("modality", volume.modality)
        table.add("voxels z, y, x", geometry.shape)
        table.add("spacing mm z, y, x", tuple(round(mm, 4) for mm in geometry.spacing_mm))
        table.add("oblique", f"{geometry.oblique_deg:.1f}°" if geometry.oblique_deg else "no")
        finite = volume.array[np.isfinite(volume.array)]
        span = f"{finite.min()} to {finite.max()}" if finite.size else "none"
        table.add("values", f"{volume.array.dtype}, {span}")
        for note in volume.meta.get("notes", ()):
            table.add("note", note)
        for warning in volume.warnings:
            table.add("warning", warning)
    return table


def _cases(layout: str, cases: Sequence[CaseRecord], left_out: Sequence[Quarantined]) -> Table:
    table = Table(("case", "split", "images", "label", "target", "problems"))
    for case in cases:
        images = ", ".join(f"{image.contrast} {image.shape or ''}".strip() for image in case.images) or "report only"
        target = "-" if case.target is None else ", ".join(f"{value:g}" for value in case.target)
        table.add(case.id, case.split, images, "yes" if case.label else "-", target, " ".join(case.problems) or "-")
    for item in left_out:
        table.add(item.case or item.path, "left out", "", "", "", item.reason)
    groups = Counter(tuple(image.contrast for image in case.images) for case in cases)
    if any(len(group) > 1 for group in groups):
        for group, count in sorted(groups.items(), key=lambda entry: (-len(entry[0]), entry[0])):
            shown = f"{len(group)} contrasts: {', '.join(group)}" if len(group) > 1 else f"only {', '.join(group)}"
            table.add(f"{count} {'case' if count == 1 else 'cases'}", "", shown, "", "", "")
    splits = ", ".join(f"{count} {split}" for split, count in Counter(case.split for case in cases).items())
    table.add(counted(len(cases), "case"), splits, f"layout {layout}", "", "", "")
    return table
