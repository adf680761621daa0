"""What is on the screen as files: layers on the grid of their scan, figures, animations, and the command behind it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtWidgets import QFileDialog, QFormLayout, QProgressBar, QSpinBox, QWidget

from napari_med3dssl import _work
from napari_med3dssl._layers import classes_of, volume_of
from napari_med3dssl._widgets import Section, button, button_row, combo, copy_text, wrapping
from napari_med3dssl._writer import write_image, write_labels
from napari_med3dssl.commands import shown_command
from napari_med3dssl.figures import DPI, Filming, figure, write_animation, write_figure
from napari_med3dssl.predict_box import FORMATS
from training_backend.data.dicom_seg import write_segmentation
from training_backend.errors import Med3dError

if TYPE_CHECKING:
    from napari_med3dssl.explore import ExplorePanel

NOTHING_OPEN = "Open a scan first; then its layers and the view of it can be saved."
NO_COMMAND = "The last thing computed has no command; the views of a model and masked reconstructions have."
NOTHING_ASKED = "Nothing was computed yet: show a view of the model or a masked reconstruction first."


class ExportSection(Section):
    """Buttons that save; each asks where to."""

    def __init__(self, panel: ExplorePanel) -> None:
        super().__init__("Export", folded=True, tip="Layers, figures and animations as files, and the command line.")
        self.panel = panel
        self._layers: list[Any] = []
        self._film: Filming | None = None
        self._build()
        self.offer()

    def _build(self) -> None:
        self.which = combo("Layer")
        self.which.currentIndexChanged.connect(lambda _: self._refresh())
        self.save_button = button("Save layer…", self.save_layer, "As NIfTI, NRRD or MetaImage, on its scan's grid.")
        self.seg_button = button("DICOM-SEG…", self.save_seg, "A label map as a segmentation of a DICOM series.")
        self.width = QSpinBox()
        self.width.setRange(30, 400)
        self.width.setValue(170)
        self.width.setSuffix(" mm")
        self.width.setAccessibleName("Width of figures")
        self.width.setToolTip(f"Width in print, at {DPI} dots per inch.")
        self.figure_button = button("Save figure…", self.save_figure, "The canvas with a scale bar and side letters.")
        self.frames = QSpinBox()
        self.frames.setRange(2, 240)
        self.frames.setValue(36)
        self.frames.setAccessibleName("Frames of animations")
        self.frames.setToolTip("Through the slices, or in 3D once around the patient.")
        self.film_button = button("Save animation…", self.save_animation, "A GIF through the slices, or a turn in 3D.")
        self.cancel_button = button("Cancel", self.cancel, "Stop the animation.")
        self.command_button = button("Copy command", self.copy_command, "What does the same in a terminal.")
        self.bar = QProgressBar()
        self.bar.setAccessibleName("Frames taken")
        self.told = wrapping("")
        self.body = QWidget()
        form = QFormLayout(self.body)
        form.setContentsMargins(0, 4, 0, 0)
        form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Layer", self.which)
        form.addRow(button_row(self.save_button, self.seg_button))
        form.addRow("Figure width", self.width)
        form.addRow("Frames", self.frames)
        form.addRow(button_row(self.figure_button, self.film_button, self.cancel_button))
        form.addRow(button_row(self.command_button))
        form.addRow(self.bar)
        form.addRow(self.told)
        self.column.addWidget(self.body)
        self.bar.hide()
        self.cancel_button.setEnabled(False)

    def offer(self) -> None:
        """List the layers that can be saved as scans."""
        chosen = self.layer
        self._layers = [layer for layer in self.panel.viewer.layers if _is_volume(layer)]
        self.which.blockSignals(True)
        self.which.clear()
        self.which.addItems([layer.name for layer in self._layers])
        if chosen in self._layers:
            self.which.setCurrentIndex(self._layers.index(chosen))
        elif self._layers:
            self.which.setCurrentIndex(len(self._layers) - 1)
        self.which.blockSignals(False)
        self._refresh()

    @property
    def layer(self) -> Any | None:
        """The layer that is saved, or None."""
        index = self.which.currentIndex()
        return self._layers[index] if 0 <= index < len(self._layers) else None

    def save_layer(self) -> None:
        """Ask where to, and write the chosen layer."""
        if self.layer is None:
            return
        start = f"{self.layer.name}.nii.gz".replace(" ", "_").replace("/", "-")
        path, _ = QFileDialog.getSaveFileName(self, "Save the layer", start, FORMATS)
        if path:
            self.write_layer(Path(path))

    def write_layer(self, path: Path) -> None:
        """Write the chosen layer; the dialog has asked before replacing."""
        layer = self.layer
        if layer is None:
            return
        data, attributes, kind = layer.as_layer_data_tuple()
        write = write_labels if kind == "labels" else write_image
        data = np.array(data) if kind == "labels" else data  # painting may go on meanwhile
        self._write(lambda: write(str(path), data, attributes), path)

    def save_seg(self) -> None:
        """Ask for the series and where to, and write the chosen label map as a DICOM segmentation."""
        series = QFileDialog.getExistingDirectory(self, "Folder of the DICOM series that was segmented")
        if series:
            path, _ = QFileDialog.getSaveFileName(self, "Save the segmentation", "segmentation.dcm", "DICOM (*.dcm)")
            if path:
                self.write_seg(Path(series), Path(path))

    def write_seg(self, series: Path, path: Path) -> None:
        """Write the chosen label map as a segmentation of a series."""
        layer = self.layer
        if layer is None:
            return
        try:
            volume, classes = volume_of(layer), classes_of(layer)
        except Med3dError as error:
            self.told.setText(str(error))
            return
        volume = volume.with_array(np.array(volume.array))
        self._write(lambda: write_segmentation(volume, classes, series, path, overwrite=True), path)

    def save_figure(self) -> None:
        """Ask where to, and save what is on the canvas."""
        path, _ = QFileDialog.getSaveFileName(self, "Save the figure", "figure.png", "Picture (*.png *.tif)")
        if path:
            self.write_figure(Path(path))

    def write_figure(self, path: Path) -> None:
        """Save what is on the canvas."""
        picture = figure(self.panel.viewer, self.width.value())
        height, width = picture.shape[:2]
        self._write(lambda: write_figure(picture, path), path, f"{width} × {height} pixels at {DPI} dpi.")

    def save_animation(self) -> None:
        """Ask where to, and film."""
        path, _ = QFileDialog.getSaveFileName(self, "Save the animation", "animation.gif", "Animation (*.gif)")
        if path:
            self.write_animation(Path(path))

    def write_animation(self, path: Path) -> None:
        """Film, and save."""
        if self._film is not None and self._film.running:
            return
        self.bar.show()
        self.told.setText("Taking frames…")
        self._film = Filming(
            self.panel.viewer,
            self.frames.value(),
            lambda frames: self._write(lambda: write_animation(frames, path), path, f"{len(frames)} frames."),
            lambda share: self.bar.setValue(round(100 * share)),
        )
        self._film.setParent(self)  # ends with the section
        self._refresh()

    def cancel(self) -> None:
        """Stop filming; nothing is written."""
        if self._film is not None and self._film.running:
            self._film.stop()
            self.told.setText("Cancelled; nothing was written.")
        self._refresh()

    def copy_command(self) -> None:
        """Put the command that writes what was computed last on the clipboard."""
        asked = self.panel.asked
        if asked is None:
            self.told.setText(NOTHING_ASKED)
            return
        files = [_file_of(layer, name) for layer, name in ((asked.scan, "SCAN"), (asked.other, "OTHER"))]
        text = shown_command(asked.op, asked.source, asked.params, *files)
        if not text:
            self.told.setText(NO_COMMAND)
            return
        copy_text(text)
        unknown = [file for file in files if file in ("SCAN", "OTHER")]
        note = f" Replace {' and '.join(unknown)} by files: these scans were not opened from one." if unknown else ""
        self.told.setText(f"Copied: {text}.{note}")

    def _write(self, function: Any, path: Path, more: str = "") -> None:
        self.told.setText(f"Writing {path.name}…")
        said = f"Saved {path.name}. {more}".strip()
        _work.start(
            self, function, done=lambda _: self.told.setText(said), failed=self.told.setText, ended=self._refresh
        )
        self._refresh()

    def _refresh(self) -> None:
        filming = self._film is not None and self._film.running
        self.bar.setVisible(filming)
        self.cancel_button.setEnabled(filming)
        for widget in (self.figure_button, self.film_button, self.save_button):
            widget.setEnabled(bool(self._layers) and not filming)
        self.seg_button.setEnabled(type(self.layer).__name__ == "Labels")
        if not self._layers:
            self.told.setText(NOTHING_OPEN)
        elif self.told.text() == NOTHING_OPEN:
            self.told.setText("")


def _is_volume(layer: Any) -> bool:
    return type(layer).__name__ in ("Image", "Labels") and layer.ndim == 3 and not getattr(layer, "rgb", False)


def _file_of(layer: Any, instead: str) -> str:
    """File that a layer was read from, or `instead`; empty without a layer."""
    if layer is None:
        return ""
    path = getattr(getattr(layer, "source", None), "path", None)
    return str(path) if path else instead
