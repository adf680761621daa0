"""Paint a few voxels per class; what the model and the scan know of them fills the region as you paint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QCheckBox, QFileDialog, QSpinBox

from napari_med3dssl import _work, stroke_store
from napari_med3dssl._layers import add, class_look, geometry_of, labels_layer, volume_of
from napari_med3dssl._widgets import button, button_row, combo, wrapping
from napari_med3dssl.class_editor import ClassEditor
from napari_med3dssl.explore_pictures import PictureLayers
from napari_med3dssl.explore_sections import ExploreSection, view_point
from training_backend.data.classes import class_table
from training_backend.data.manifest import ClassEntry

if TYPE_CHECKING:
    from napari_med3dssl.explore import ExplorePanel

BACKGROUND = 1
"""Value that is painted where nothing of interest is; structures are painted from 2 on."""
PAUSE_MS = 120
"""How long the brush must rest before the region is filled again."""
REGIONS = {"64³ voxels": 64, "96³ voxels": 96, "128³ voxels": 128, "192³ voxels": 192}
FILTER = "Stroke models (*.safetensors)"


class StrokesSection(ExploreSection):
    """A labels layer to paint on, and the segmentation that follows the brush."""

    def __init__(self, panel: ExplorePanel) -> None:
        tip = "Paint a few voxels of each class; the rest of the region is filled as you paint."
        super().__init__(panel, "Strokes", tip, folded=True, needs="Choose a scan and a model first.")
        self._maps = PictureLayers(panel.viewer, " · strokes")
        self._painted: Any = None
        self._scan: Any = None
        self._key = ""
        self._seen = stroke_store.EMPTY
        self._near: list[int] | None = None
        self._place: tuple[Any, ...] = ()
        self._job: _work.Job | None = None
        self._again = False
        self._saving: _work.Job | None = None
        self._unsaved: tuple[Any, stroke_store.Strokes] | None = None
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(PAUSE_MS)
        self._timer.timeout.connect(self._read)
        self._build()

    def _build(self) -> None:
        self.count = QSpinBox()
        self.count.setRange(1, 30)
        self.count.setAccessibleName("Structures")
        self.count.setToolTip("How many structures are told apart, besides background.")
        self.count.valueChanged.connect(self._show_classes)
        self.classes = ClassEditor()
        self.classes.changed.connect(self._rename)
        self.paint_button = button("Paint", self.begin, "Make a layer to paint on, and let the model look at the scan.")
        self.region = combo("Region")
        self.region.addItems(list(REGIONS))
        self.region.setCurrentText("128³ voxels")
        self.region.setToolTip("Box around the latest strokes that is filled while you paint.")
        self.live = QCheckBox("Fill while painting")
        self.live.setChecked(True)
        self.live.setToolTip("Off waits for Fill region.")
        self.fill_button = button("Fill region", self.fill_region, "Fill the box around the latest strokes.")
        self.whole_button = button("Fill scan", self.fill_scan, "Fill the whole scan; takes seconds.")
        self.save_button = button("Save model…", self.save, "Keep what was learnt, to apply it to other scans.")
        self.apply_button = button("Apply model…", self.apply, "Fill this scan with a model that was saved.")
        self.told = wrapping(f"Value {BACKGROUND} is background; structures are painted with 2, 3, …")
        self.form.addRow("Structures", self.count)
        self.form.addRow(self.classes)
        self.form.addRow(button_row(self.paint_button))
        self.form.addRow("Region", self.region)
        self.form.addRow(self.live)
        self.form.addRow(button_row(self.fill_button, self.whole_button))
        self.form.addRow(button_row(self.save_button, self.apply_button))
        self.column.addWidget(self.told)
        self._show_classes()
        self._refresh()

    @property
    def entries(self) -> list[ClassEntry]:
        """Classes of the answer: background, then the structures."""
        names = self.classes.names
        painted = self._entries()
        return [
            ClassEntry(index=k, name=names[k + 1] if names else entry.name, colour=entry.colour)
            for k, entry in enumerate(painted)
        ]

    def begin(self) -> None:
        """Make the layer to paint on (or take the one there is), with strokes of an earlier session where there are."""
        scan = self.panel.scan
        if scan is None:
            return
        if self._painted is None or self._painted not in self.panel.viewer.layers or self._scan is not scan:
            self._paint_on(scan)
        where: dict[str, Any] = {"near": view_point(self.panel.viewer, scan), "size": self._size()}
        self.panel.ask("strokes_open", self._opened, "Computing features…", level=self.panel.level, **where)

    def forget(self) -> None:
        """Forget features and what was learnt, whose scan or model changed; strokes stay in the view."""
        self._key = ""
        self._refresh()

    def fill_region(self) -> None:
        """Fill the box around the latest strokes now."""
        self._seen = stroke_store.EMPTY
        self._read(force=True)

    def fill_scan(self) -> None:
        """Fill the whole scan."""
        self._read(force=True, whole=True)

    def save(self) -> None:
        """Ask where to, and keep what was learnt."""
        path, _ = QFileDialog.getSaveFileName(self, "Save stroke model", "strokes.safetensors", FILTER)
        if path:
            self.save_to(Path(path))

    def save_to(self, path: Path) -> None:
        """Keep what was learnt last in a file."""
        path = path if path.suffix == ".safetensors" else path.with_name(f"{path.name}.safetensors")
        said = f"Saved {path.name}. Apply it to other scans with the same model."
        self._request("strokes_save", lambda _: self.panel.notice.say("ok", said), key=self._key, path=str(path))

    def apply(self) -> None:
        """Ask for a file, and fill the scan with it."""
        path, _ = QFileDialog.getOpenFileName(self, "Apply stroke model", "", FILTER)
        if path:
            self.apply_from(Path(path))

    def apply_from(self, path: Path) -> None:
        """Fill the present scan with a model that was saved."""
        self.panel.ask("strokes_apply", self._applied, f"Applying {path.name}…", level=self.panel.level, path=str(path))

    def allow(self, possible: bool) -> None:
        """Enable the controls, or say what is missing; a stroke on its way does not grey them."""
        super().allow(possible)
        self._refresh()

    def _entries(self) -> list[ClassEntry]:
        values = range(BACKGROUND, BACKGROUND + 1 + self.count.value())
        names = {BACKGROUND: "background", **{value: f"structure {value - 1}" for value in values if value > 1}}
        return list(class_table(values, names))

    def _show_classes(self) -> None:
        self.classes.show_classes(self._entries())
        self._rename()

    def _rename(self) -> None:
        """Names and colours of the painted layer as in the table."""
        if self._painted is not None and self._painted in self.panel.viewer.layers:
            for name, value in class_look(self._shown()).items():
                setattr(self._painted, name, value)

    def _shown(self) -> list[ClassEntry]:
        """Classes of the layer that is painted on."""
        return [
            one.model_copy(update={"name": entry.name})
            for one, entry in zip(self._entries(), self.entries, strict=True)
        ]

    def _paint_on(self, scan: Any) -> None:
        grid = geometry_of(scan)
        found = stroke_store.find(volume_of(scan))
        array = np.zeros(grid.shape, np.uint8)
        if found is not None and len(found.values):
            array[tuple(found.points.T)] = found.values
            self.count.setValue(max(self.count.value(), int(found.values.max()) - BACKGROUND))
            self.panel.notice.say("info", f"{len(found.values):,} voxels painted in an earlier session are back.")
        layer = add(self.panel.viewer, labels_layer(array, grid, f"{scan.name} · painted", self._shown(), derived=True))
        layer.opacity, layer.brush_size, layer.selected_label, layer.mode = 0.8, 4, BACKGROUND + 1, "paint"
        layer.events.paint.connect(self._on_paint)
        layer.events.set_data.connect(self._on_redrawn)
        self.panel.viewer.layers.selection.active = layer
        self._painted, self._scan, self._seen = layer, scan, stroke_store.EMPTY
        self._place = _shown_place(self.panel.viewer)

    def _opened(self, values: dict[str, Any]) -> None:
        self._key = values["key"]
        how = "read from the cache" if values["cached"] else "computed"
        self.panel.notice.say(
            "ok", f"Features {how}. Paint value {BACKGROUND} for background, 2 and up for structures."
        )
        self._refresh()
        self._timer.start()

    def _on_paint(self, event: Any) -> None:
        if event.value:
            index = event.value[-1][0]
            self._near = [
                int(np.asarray(axis).flat[-1]) if not isinstance(axis, slice) else axis.start for axis in index
            ]
        self._timer.start()

    def _on_redrawn(self) -> None:
        """Undo and redo only redraw; so does every move through the slices, which changes the place that is shown."""
        place = _shown_place(self.panel.viewer)
        if place == self._place:
            self._timer.start()
        self._place = place

    def _read(self, force: bool = False, whole: bool = False) -> None:
        """Look at what is painted, in a thread, and fill if it changed."""
        layer, scan = self._painted, self._scan
        if layer is None or layer not in self.panel.viewer.layers or scan is not self.panel.scan or scan is None:
            return
        if self._job is not None:
            self._again = True
            return
        data = np.asarray(layer.data)
        if data.shape != scan.data.shape:  # somebody put other data into it; what was painted before stays kept
            self._failed(
                f"{layer.name} has {_times(data.shape)} voxels, but {scan.name} has {_times(scan.data.shape)}. "
                "Remove that layer and press Paint."
            )
            return
        self._job = _work.start(
            self,
            lambda: stroke_store.strokes_in(data),
            done=lambda found: self._send(found, force=force, whole=whole),
            failed=self._failed,
            ended=self._ended,
        )

    def _send(self, found: stroke_store.Strokes, *, force: bool, whole: bool) -> None:
        if found == self._seen and not force:
            return
        self._seen = found
        self._keep(volume_of(self._scan), found)
        if not self._key:  # kept, and filled once the model has looked at the scan
            self.told.setText("Press Paint to let the model look at the scan.")
            return
        if len(np.unique(found.values)) < 2 and not force:
            self.told.setText("Paint voxels of a second class too.")
            return
        if not (self.live.isChecked() or force):
            return
        self._request(
            "strokes_fill",
            self._filled,
            key=self._key,
            points=found.points,
            values=found.values.astype(np.int64) - BACKGROUND,
            classes=[entry.model_dump() for entry in self._classes_for(found.values)],
            size=None if whole else self._size(),
            near=self._near or view_point(self.panel.viewer, self._scan),
        )

    def _keep(self, volume: Any, found: stroke_store.Strokes) -> None:
        """Keep strokes on disk in a thread, one after the other, so that older ones never come last."""
        if self._saving is not None:
            self._unsaved = (volume, found)
            return
        self._saving = _work.start(self, stroke_store.keep, volume, found, failed=self._failed, ended=self._on_kept)

    def _on_kept(self) -> None:
        self._saving = None
        if self._unsaved is not None:
            unsaved, self._unsaved = self._unsaved, None
            self._keep(*unsaved)

    def _size(self) -> list[int]:
        """Voxels of the box that is filled."""
        return [REGIONS[self.region.currentText()]] * 3

    def _classes_for(self, values: npt.NDArray[Any]) -> Sequence[ClassEntry]:
        self.count.setValue(max(self.count.value(), int(values.max(initial=BACKGROUND + 1)) - BACKGROUND))
        return self.entries

    def _request(self, op: str, then: Any, **params: Any) -> None:
        """Ask the model process without greying the panel, since the brush goes on."""
        client = self.panel.state.client
        self._job = _work.start(
            self, lambda: client.request(op, **params), done=then, failed=self._failed, ended=self._ended
        )

    def _filled(self, values: dict[str, Any]) -> None:
        self._show(values, self.entries)
        painted = ", ".join(f"{name} {count:,}" for name, count in values["painted"].items())
        self.told.setText(f"Painted: {painted}. Filled in {values['seconds']:.2f} s.")
        self.panel.notice.clear()
        self._refresh()

    def _applied(self, values: dict[str, Any]) -> None:
        self._show(values, [ClassEntry(**entry) for entry in values["classes"]])
        self._key = values["key"]
        self._refresh()
        for note in values["notes"]:
            self.panel.notice.say("warning", note)

    def _show(self, values: dict[str, Any], classes: Sequence[ClassEntry]) -> None:
        geometry = values["geometry"]
        first = self._maps["doubt"] is None
        doubt = {"name": "doubt", "array": values["doubt"], "geometry": geometry, "role": "heatmap", "limits": (0, 255)}
        labels = {"name": "filled", "array": values["labels"], "geometry": geometry, "role": "labels"}
        shown = self._maps.show([doubt, {**labels, "classes": classes, "facts": {"derived": True}}])
        if first:
            shown[0].visible = False
        if self._painted is not None and self._painted in self.panel.viewer.layers:
            layers = self.panel.viewer.layers
            layers.move(layers.index(self._painted), len(layers))

    def _failed(self, sentence: str) -> None:
        self.panel.notice.say("error", sentence)
        if "ready any more" in sentence:
            self.forget()

    def _ended(self) -> None:
        self._job = None
        if self._again:
            self._again = False
            self._timer.start()
        self._refresh()

    def _refresh(self) -> None:
        ready = bool(self._key)
        for widget in (self.fill_button, self.whole_button):
            widget.setEnabled(ready)
        self.save_button.setEnabled(ready and self._maps["filled"] is not None)


def _times(shape: Sequence[int]) -> str:
    return " × ".join(str(n) for n in shape)


def _shown_place(viewer: Any) -> tuple[Any, ...]:
    """What decides the slice that is drawn."""
    return (*viewer.dims.point, viewer.dims.ndisplay, *viewer.dims.order)
