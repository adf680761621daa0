"""Generated patients for samples, the demo and tests: seeded, asymmetric, labelled, with a report that fits."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

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
    """Write `n` phantom patients as a Decathlon folder with targets and reports, and a table of them.

    ::

        dataset.json                training cases: image, label, target, report; class names
        imagesTr/case_000.nii.gz    (case_000_0000.nii.gz, case_000_0001.nii.gz with several contrasts)
        labelsTr/case_000.nii.gz
        cases.csv                   Path,Label,Report

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
    rows = [("Path", "Label", "Report")]
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
    if phantom is not None:
        _describe(folder, phantom, entries)
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    write_text(folder / "cases.csv", table.getvalue())
    return folder


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
