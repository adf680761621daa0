"""Pictures of Explore's side-by-side views, three planes, export and cohort map::

    xvfb-run -a -s "-screen 0 1280x800x24 +extension GLX" python docs/screenshots_explore.py --home FOLDER

A home folder of `make_screenshots.py` is used again. ``--scans`` shows contrasts of a patient in place of a generated
scan, ``--dataset`` and ``--model`` another cohort.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from screenshot_home import screenshot_home

if TYPE_CHECKING:
    from make_screenshots import Photographer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "images")
    parser.add_argument("--home", type=Path, help="folder for datasets and runs; a temporary one when missing")
    parser.add_argument("--scans", type=Path, nargs="+", help="contrasts of one patient")
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    with screenshot_home(arguments.home) as home:
        from make_screenshots import Photographer
        from screenshots_learn import train_half

        dataset, model = arguments.dataset, arguments.model
        if dataset is None or model is None:
            dataset, model = train_half(home)
        photographer = Photographer(arguments.output)
        photograph_views(photographer, arguments.scans)
        photograph_cohort(photographer, dataset, model)


def photograph_views(photographer: Photographer, scans: list[Path] | None) -> None:
    """Contrasts and label maps in the grid, the three planes, and the section that exports."""
    with photographer.viewer():
        viewer, panel = photographer.napari, photographer.panels["Explore"]
        photographer.bench.show_tab("Explore")
        names = open_scans(viewer, scans)
        photographer.settle(1)
        fold_all(panel)
        section = panel.beside
        section.fold(False)
        tick(section, names)
        section.grid_button.click()
        photographer.wait(lambda: section.in_grid and not section.busy)
        photographer.settle(1)
        show(panel, section)
        photographer.photograph("Explore", "beside")
        section.leave()
        photographer.wait(lambda: not section.busy)
        for layer in viewer.layers:
            layer.visible = layer.name == names[0] or type(layer).__name__ == "Labels"
        viewer.reset_view()
        section.toggle_planes()
        photographer.settle(1)
        viewer.dims.set_point(range(3), [(r.start + r.stop) / 2 for r in viewer.dims.range])
        photographer.photograph("Explore", "planes")
        section.toggle_planes()
        section.fold(True)
        panel.export.fold(False)
        panel.export.write_figure(photographer.folder / "explore-figure.png")
        photographer.wait(lambda: panel.export.told.text().startswith("Saved"))
        photographer.settle(1)
        show(panel, panel.export)
        photographer.photograph("Explore", "export")


def photograph_cohort(photographer: Photographer, dataset: Path, model: Path) -> None:
    """The map of a dataset with a lasso drawn, by regions."""
    import numpy as np

    from napari_med3dssl.cohort_map import CohortMap

    with photographer.viewer():
        state = photographer.bench.state
        state.dataset, state.model = dataset, str(model)
        window = CohortMap(photographer.napari.window._qt_window, state, [dataset])
        window.show()
        for kind in (0, 1):
            window.cohort = None
            window.kind.setCurrentIndex(kind)
            window.compute_button.click()
            photographer.wait(lambda: window._job is None, 600)
            if window.cohort is None:
                raise SystemExit(window.notice.text)
            if not kind:
                window.colour.setCurrentText("split")
            else:
                places = window.cohort.places["principal axes"]
                window.take(places[:, 0] > np.quantile(places[:, 0], 0.8))
            window.draw(fit=True)
            window._on_hover(0)
            photographer.settle(1.5)
            photographer.photograph_widget(window, "cohort-regions" if kind else "cohort-cases")
        window.close()


def open_scans(viewer: Any, scans: list[Path] | None) -> list[str]:
    """Names of the layers to put side by side: the scans, or a generated scan's masks of two models."""
    from napari_med3dssl._layers import add, labels_layer, volume_layer
    from napari_med3dssl._reader import read
    from training_backend.data.phantoms import thorax_ct

    if scans:
        for path in scans:
            for data, options, kind in read(path):
                add(viewer, (data, {**options, "name": path.name.partition(".")[0]}, kind))
        return [path.name.partition(".")[0] for path in scans]
    phantom = thorax_ct(5, (48, 96, 96))
    add(viewer, volume_layer(phantom.volume, name="scan"))
    masks = {"truth": phantom.labels.array.copy()}
    for name, shift in (("model A", 1), ("model B", 4)):
        masks[name] = phantom.labels.array.copy()
        masks[name][:, shift:] = phantom.labels.array[:, :-shift]
    for name, mask in masks.items():
        add(viewer, labels_layer(mask, phantom.volume.geometry, name, phantom.classes))
    return ["scan", *masks]


def fold_all(panel: Any) -> None:
    from napari_med3dssl._widgets import Section

    for section in panel.findChildren(Section):
        section.fold(True)


def tick(section: Any, names: list[str]) -> None:
    from qtpy.QtCore import Qt

    for row in range(section.list.count()):
        item = section.list.item(row)
        item.setCheckState(Qt.CheckState.Checked if item.text() in names else Qt.CheckState.Unchecked)


def show(panel: Any, widget: Any) -> None:
    from napari_med3dssl._widgets import Page

    panel.findChild(Page).ensureWidgetVisible(widget.told)


if __name__ == "__main__":
    main()
