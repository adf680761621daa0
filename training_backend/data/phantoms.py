"""Generated patients for samples, the demo and tests: seeded, asymmetric, labelled, with a report that fits."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from training_backend.data.phantom_head import mr_contrasts, oblique
from training_backend.data.phantom_shapes import Phantom
from training_backend.data.phantom_thorax import thorax_ct
from training_backend.files import write_json, write_text

__all__ = ["Phantom", "mr_contrasts", "oblique", "thorax_ct", "write_cohort"]

Kind = Callable[[int, tuple[int, int, int]], Phantom]


def write_cohort(
    folder: Path,
    n: int = 12,
    seed: int = 0,
    shape: tuple[int, int, int] = (64, 96, 96),
    *,
    kind: Kind = thorax_ct,
    labelled: int | None = None,
) -> Path:
    """Write `n` phantom patients as a Decathlon folder with targets and reports, and tables of them and their lesions.

    ::

        dataset.json                training cases: image, label, target, report; class names
        imagesTr/case_000.nii.gz    (case_000_0000.nii.gz, case_000_0001.nii.gz with several contrasts)
        labelsTr/case_000.nii.gz
        cases.csv                   Path,Label,Report
        lesions.csv                 case,type,z0,z1,y0,y1,x0,x1: nodules or lesions by side, boxes in voxels

    Args:
        folder: made if needed.
        n: patients.
        seed: patient `i` is drawn with seed ``1000 * seed + i``.
        shape: voxels along (z, y, x).
        kind: `thorax_ct`, `mr_contrasts` or `oblique`.
        labelled: label maps for the first so many only; None for all.

    Returns:
        `folder`.
    """
    from training_backend.data.write import write_volume

    folder = Path(folder)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    entries = []
    rows: list[tuple[object, ...]] = [("Path", "Label", "Report")]
    lesions: list[tuple[object, ...]] = [("case", "type", "z0", "z1", "y0", "y1", "x0", "x1")]
    phantom = None
    for index in range(n):
        phantom = kind(1000 * seed + index, shape)
        name = f"case_{index:03d}"
        images = []
        for channel, volume in enumerate(phantom.volumes):
            suffix = f"_{channel:04d}" if len(phantom.volumes) > 1 else ""
            images.append(f"imagesTr/{name}{suffix}.nii.gz")
            write_volume(volume, folder / images[-1], overwrite=True)
        entry: dict[str, object] = {"image": images if len(images) > 1 else images[0]}
        entry |= {"target": phantom.target, "report": phantom.report}
        if labelled is None or index < labelled:
            entry["label"] = f"labelsTr/{name}.nii.gz"
            write_volume(phantom.labels, folder / "labelsTr" / f"{name}.nii.gz", overwrite=True)
        entries.append(entry)
        rows.append((images[0], str(phantom.target), phantom.report))
        lesions += [(name, *found) for found in _lesions(phantom)]
    if phantom is not None:
        _describe(folder, phantom, entries)
    _write_table(folder / "cases.csv", rows)
    _write_table(folder / "lesions.csv", lesions)
    return folder


def _write_table(path: Path, rows: list[tuple[object, ...]]) -> None:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    write_text(path, table.getvalue())


def _lesions(phantom: Phantom) -> Iterator[tuple[object, ...]]:
    """Side and name, and the box, of each nodule or lesion: the last class, piece by piece."""
    from scipy.ndimage import find_objects, label

    pieces, _ = label(phantom.labels.array == phantom.classes[-1].index, np.ones((3, 3, 3)))
    for box in find_objects(pieces):
        ends = [end for span in box for end in (span.start, span.stop)]
        side = "left" if sum(ends[4:]) > pieces.shape[2] else "right"
        yield (f"{side} {phantom.classes[-1].name}", *ends)


def _describe(folder: Path, phantom: Phantom, entries: list[dict[str, object]]) -> None:
    names = [str(volume.meta.get("contrast", volume.modality)) for volume in phantom.volumes]
    write_json(
        folder / "dataset.json",
        {
            "name": f"phantom {phantom.volume.modality}",
            "description": "Generated; shows nobody.",
            "tensorImageSize": "3D",
            "modality": {str(index): name for index, name in enumerate(names)},
            "labels": {"0": "background", **{str(entry.index): entry.name for entry in phantom.classes}},
            "target_names": [phantom.classes[-1].name],
            "numTraining": len(entries),
            "numTest": 0,
            "training": entries,
            "test": [],
        },
    )
