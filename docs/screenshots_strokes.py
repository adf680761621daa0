"""Pictures of strokes that fill a region, and of two compared masks::

    xvfb-run -a -s "-screen 0 1280x800x24 +extension GLX" python docs/screenshots_strokes.py --home FOLDER

A home folder of `make_screenshots.py` is used again. ``--scan`` and ``--truth`` show a scan and its label map in place
of generated ones, with strokes drawn from the label map; ``--model`` another model.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from screenshot_home import screenshot_home

if TYPE_CHECKING:
    from make_screenshots import Photographer

VOXELS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "images")
    parser.add_argument("--home", type=Path, help="folder for datasets and runs; a temporary one when missing")
    parser.add_argument("--scan", type=Path)
    parser.add_argument("--truth", type=Path, help="label map of --scan")
    parser.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    with screenshot_home(arguments.home) as home:
        from make_screenshots import Photographer
        from screenshots_learn import train_half

        model = arguments.model or train_half(home)[1]
        photographer = Photographer(arguments.output)
        with photographer.viewer():
            truth = open_scan(photographer, arguments.scan, arguments.truth)
            photographer.bench.state.model = str(model)
            photograph_strokes(photographer, truth)
            photograph_masks(photographer, truth)


def open_scan(photographer: Photographer, scan: Path | None, truth: Path | None) -> Any:
    """Show a scan; answers its label map, of two structures."""
    from napari_med3dssl._layers import add, volume_layer
    from training_backend.data.phantoms import thorax_ct
    from training_backend.data.read import read_classes, read_volume

    if scan is not None and truth is not None:
        volume, labels = read_volume(scan), read_classes(truth)
    else:
        phantom = thorax_ct(5, (64, 112, 112))
        volume, labels = phantom.volume, phantom.labels
    add(photographer.napari, volume_layer(volume, name="scan"))
    return labels.with_array(np.where(labels.array > 2, 0, labels.array).astype(np.uint8))


def photograph_strokes(photographer: Photographer, truth: Any) -> None:
    """Lines painted in one slice, and the region that followed."""
    from screenshots_explore import fold_all, show

    from training_backend.bench.explore_strokes import scripted

    viewer, panel = photographer.napari, photographer.panels["Explore"]
    photographer.bench.show_tab("Explore")
    photographer.wait(lambda: panel.scan is not None)
    photographer.settle(1)
    fold_all(panel)
    section = panel.strokes
    section.fold(False)
    z = int(np.count_nonzero(truth.array, axis=(1, 2)).argmax())
    viewer.dims.set_point(0, panel.scan.data_to_world((z, 0, 0))[0])
    classes = (0, *(int(value) for value in np.unique(truth.array[z]) if value))
    section.count.setValue(len(classes) - 1)
    section.paint_button.click()
    photographer.wait(lambda: not panel.busy and section.fill_button.isEnabled(), 600)
    layer = section._painted
    for step in (-6, 0, 6):
        points, values = scripted(truth.array, classes, z + step, VOXELS, 0, background=6)
        for value in np.unique(values):
            layer.data_setitem(tuple(points[values == value].T), int(value) + 1)
    section._on_redrawn()
    photographer.wait(lambda: "Filled in" in section.told.text() and section._job is None, 120)
    photographer.settle(2)
    show(panel, section)
    photographer.photograph("Explore", "strokes")


def photograph_masks(photographer: Photographer, truth: Any) -> None:
    """The filled scan against the label map: agreement, table, and the largest disagreement."""
    from screenshots_explore import fold_all, show

    from napari_med3dssl._layers import add, labels_layer
    from training_backend.data.classes import class_table

    viewer, panel = photographer.napari, photographer.panels["Explore"]
    strokes, comparison = panel.strokes, panel.comparison
    strokes.whole_button.click()
    photographer.wait(lambda: strokes._job is None and strokes._maps["filled"].data.shape == truth.array.shape, 300)
    names = {value: f"structure {value}" for value in range(1, strokes.count.value() + 1)}
    add(
        viewer,
        labels_layer(
            np.where(truth.array <= len(names), truth.array, 0), truth.geometry, "truth", class_table(names, names)
        ),
    )
    fold_all(panel)
    comparison.fold(False)
    comparison.one.setCurrentText("filled · strokes")
    comparison.other.setCurrentText("truth")
    comparison.compare_button.click()
    photographer.wait(lambda: comparison._job is None and comparison.table.rowCount() > 0, 300)
    for layer in viewer.layers:
        layer.visible = layer.name in ("scan", "agreement")
    comparison.next_button.click()
    viewer.reset_view()
    photographer.settle(2)
    show(panel, comparison)
    photographer.photograph("Explore", "compare-masks")


if __name__ == "__main__":
    main()
