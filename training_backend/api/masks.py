"""Masks that people paint, and masks against each other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from training_backend.errors import ConfigError
from training_backend.report import Table


def strokes(
    weights: str,
    input: Path,
    output: Path,
    painted: Path | None = None,
    model: Path | None = None,
    save: Path | None = None,
    truth: Path | None = None,
    level: int = 0,
    device: str = "auto",
) -> Table:
    """Fill a scan from a few painted voxels, or with a stroke model that was saved.

    Args:
        weights: Run directory, model folder, or the authors' file, whose features are used.
        input: Scan.
        output: Label map to write; how sure each voxel is goes beside it.
        painted: Label map on the scan to learn from: 0 unpainted, 1 background, 2 and up structures.
        model: Stroke model to apply in place of learning.
        save: File to keep what was learnt in.
        truth: Label map of the scan, with structures from 1 on, to score the filled one against.
        level: Map of a hierarchical encoder, 1 the finest; 0 takes its tokens.
        device: auto, cpu, cuda or cuda:N.
    """
    from training_backend.data.read import read_classes, read_volume
    from training_backend.jobs.serve_ops import Session

    if (painted is None) == (model is None):
        raise ConfigError("Strokes are either learnt or applied.", "Give --painted FILE or --model FILE, not both.")
    if output.exists():
        raise ConfigError(f"{output} exists.", "Choose another name, or remove it.")
    scan = read_volume(input)
    if truth is not None:
        read_classes(truth)  # a wrong file is told before the work
    operations = Session(device).operations()
    given: dict[str, Any] = {"source": weights, "volumes": [scan], "level": level}
    said: Any = _quiet
    if model is not None:
        found = operations["strokes_apply"]({**given, "path": str(model)}, said)
        names = {entry["index"]: entry["name"] for entry in found["classes"]}
        return _written(scan, found, names, output, found["notes"], truth)
    assert painted is not None
    points, values = _painted(painted, scan)
    names = {k: "background" if k == 0 else f"structure {k}" for k in range(int(values.max(initial=1)) + 1)}
    classes = [{"index": k, "name": name, "colour": "#009e73"} for k, name in names.items()]
    opened = operations["strokes_open"](given, said)
    teaching = {"key": opened["key"], "points": points, "values": values, "classes": classes, "size": None}
    found = operations["strokes_fill"](teaching, said)
    if save is not None:
        operations["strokes_save"]({"key": opened["key"], "path": str(save)}, said)
    return _written(scan, found, names, output, [], truth)


def agreement(first: Path, second: Path, output: Path | None = None) -> Table:
    """Two label maps of one scan against each other: Dice, distances and volumes per class, and where they differ.

    Args:
        first: A label map.
        second: Another one; put on the grid of the first.
        output: Label map of the agreement to write: 1 both, 2 only the first, 3 only the second, 4 another class.
    """
    from training_backend.data.read import read_classes
    from training_backend.data.write import write_volume
    from training_backend.evaluate.agreement import NAMES
    from training_backend.evaluate.agreement import agreement as compared

    base = read_classes(first)
    found = compared(base, read_classes(second), {})
    table = Table(("class", "Dice", "HD95 mm", "NSD", "first ml", "second ml"))
    for score in found.scores:
        numbers = (score.dice, score.hd95_mm, score.nsd, score.volume_ml, score.truth_ml)
        table.add(score.class_name, *("-" if math.isnan(number) else f"{number:.3f}" for number in numbers))
    for place in found.places[:10]:
        z, y, x = place.voxel
        table.add(f"differs: {NAMES[place.kind]}", f"{place.ml:.3g} ml", f"z {z}, y {y}, x {x}", "", "", "")
    if output is not None:
        write_volume(base.with_array(found.labels), output, labels=True)
    return table


def _quiet(share: float, text: str = "") -> bool:
    """Takes what the model process would tell a viewer, and goes on: the command tells the result."""
    return True


def _painted(path: Path, scan: Any) -> tuple[Any, Any]:
    import numpy as np

    from training_backend.data.read import read_labels
    from training_backend.data.resample import resample

    label = read_labels(path)
    array = label.array
    if not label.geometry.same_grid(scan.geometry):
        array = resample(array, label.geometry, scan.geometry, nearest=True)
    points = np.argwhere(array > 0)
    return points, array[tuple(points.T)].astype(np.int64) - 1


def _written(
    scan: Any, found: dict[str, Any], names: dict[int, str], output: Path, notes: list[str], truth: Path | None
) -> Table:
    import numpy as np

    from training_backend.data.write import write_volume

    doubt = output.with_name(f"doubt_{output.name}")
    write_volume(scan.with_array(found["labels"]), output, labels=True)
    write_volume(scan.with_array(found["doubt"]), doubt, labels=False)
    table = Table(("what", "value"))
    table.add("written", output).add("written", doubt)
    voxel_ml = float(np.prod(scan.geometry.spacing_mm)) / 1000
    for value, count in zip(*np.unique(found["labels"], return_counts=True), strict=True):
        if value:
            table.add(names.get(int(value), f"class {value}"), f"{count * voxel_ml:.1f} ml")
    if truth is not None:
        for score in _scores(scan.with_array(found["labels"]), truth, names):
            numbers = f"Dice {score.dice:.3f}, HD95 {score.hd95_mm:.1f} mm, NSD {score.nsd:.3f}"
            table.add(f"{score.class_name} against {truth.name}", numbers)
    for note in notes:
        table.add("note", note)
    return table


def _scores(filled: Any, truth: Path, names: dict[int, str]) -> Any:
    from training_backend.data.read import read_classes
    from training_backend.evaluate.agreement import agreement as compared

    return compared(filled, read_classes(truth), {value: name for value, name in names.items() if value}).scores
