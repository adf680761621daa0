"""What is on the screen as files: layers on the grid of their scan, figures, animations, and the command behind it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QFileDialog, QFormLayout, QProgressBar, QSpinBox, QWidget

from napari_med3dssl import _work
from napari_med3dssl._layers import classes_of, volume_of
from napari_med3dssl._widgets import Section, button, button_row, combo, copy_text, wrapping
from napari_med3dssl._writer import write_image, write_labels
from napari_med3dssl.canvas_views import Picture, only_opengl, view_of
from napari_med3dssl.commands import shown_command
from napari_med3dssl.figures import (
    DPI,
    HOW_TO_FFMPEG,
    NEEDS_FFMPEG,
    Filming,
    can_write_mp4,
    dots,
    figure,
    once_around,
    slices_of,
    through_slices,
    write_animation,
    write_figure,
)
from napari_med3dssl.kept_views import KeptViews, state_of_view
from napari_med3dssl.predict_box import FORMATS
from training_backend.data.dicom_seg import write_segmentation
from training_backend.errors import Med3dError
from training_backend.jobs.run_compare import check_target

if TYPE_CHECKING:
    from napari_med3dssl.explore import ExplorePanel

NOTHING_OPEN = "Open a scan first; then its layers and the view of it can be saved."
NO_COMMAND = "The last thing computed has no command; the views of a model and masked reconstructions have."
CANCELLED = "Cancelled; nothing was written."
NOTHING_VISIBLE = "All layers are hidden; there is nothing to show. Make one visible in the layer list."
BY_OPENGL = "{} is drawn by OpenGL at its size in print; the window stands still until that is done…"
FILM_FILES = "Animation (*.gif *.mp4)"
USUAL, KEPT = "slices, in 3D a turn", "between kept views"
PAINT_MS = 50
"""Time for the window to show a sentence before it stands still."""
NOTHING_ASKED = "Nothing was computed yet: show a view of the model or a masked reconstruction first."


class ExportSection(Section):
    """Buttons that save; each asks where to."""

    def __init__(self, panel: ExplorePanel) -> None:
        super().__init__("Export", folded=True, tip="Layers, figures and animations as files, and the command line.")
        self.panel = panel
        self._layers: list[Any] = []
        self._film: Filming | None = None
        self._drawing: _work.Job | None = None
        self._kept = KeptViews(panel.viewer)
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
        self.film = combo("Film")
        self.film.addItems([USUAL, KEPT])
        self.film.setToolTip("All slices, in 3D once around the patient; or the way between the views that were kept.")
        self.film_button = button("Save animation…", self.save_animation, "A GIF or MP4 of what is chosen under Film.")
        self.cancel_button = button("Cancel", self.cancel, "Stop the animation.")
        self.keep_button = button("Keep view", self.keep_view, "Let the film between kept views pass through this one.")
        self.forget_button = button("Forget", self.forget_views, "Forget the kept views.")
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
        form.addRow(button_row(self.figure_button))
        form.addRow("Film", self.film)
        form.addRow("Frames", self.frames)
        form.addRow(button_row(self.film_button, self.cancel_button, self.keep_button, self.forget_button))
        form.addRow(button_row(self.command_button))
        form.addRow(self.bar)
        self.column.addWidget(self.body)
        self.column.addWidget(self.told)  # not into the form: it would cut lines off a text that grows
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

        def written() -> object:
            # Painting may go on while a file is written, but hardly while voxels are copied.
            return write(str(path), np.array(data) if kind == "labels" else data, attributes)

        self._write(written, path)

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
            self.told.tell(str(error))
            return

        def written() -> object:
            copied = volume.with_array(np.array(volume.array))
            return write_segmentation(copied, classes, series, path, overwrite=True)

        self._write(written, path)

    def save_figure(self) -> None:
        """Ask where to, and save what is on the canvas."""
        path, _ = QFileDialog.getSaveFileName(self, "Save the figure", "figure.png", "Picture (*.png *.tif)")
        if path:
            self.write_figure(Path(path))

    def write_figure(self, path: Path) -> None:
        """Save what is on the canvas; slices are drawn off the Qt thread, all else by OpenGL in it."""
        viewer, width = self.panel.viewer, self.width.value()
        if not self._can_begin(path):
            return
        reason = only_opengl(viewer)
        if not reason:
            view = view_of(viewer, bar=True)
            self._write_picture(lambda: view.drawn(dots(width)), path)
            return
        self.told.tell(BY_OPENGL.format(reason))
        later = QTimer(self)  # ends with the section
        later.setSingleShot(True)
        later.timeout.connect(lambda: self._draw_by_opengl(width, path))
        later.timeout.connect(later.deleteLater)
        later.start(PAINT_MS)

    def _can_begin(self, path: Path) -> bool:
        """Whether there is something to see and a place for it; else the section says why not."""
        if not any(layer.visible for layer in self.panel.viewer.layers):
            self.told.tell(NOTHING_VISIBLE)
            return False
        try:
            check_target(path)
        except Med3dError as error:
            self.told.tell(str(error))
            return False
        return True

    def _draw_by_opengl(self, width: int, path: Path) -> None:
        picture = figure(self.panel.viewer, width)
        self._write_picture(lambda: picture, path)

    def _write_picture(self, drawn: Callable[[], Picture], path: Path) -> None:
        sizes: list[tuple[int, ...]] = []

        def written() -> object:
            picture = drawn()
            sizes.append(picture.shape)
            return write_figure(picture, path)

        self._write(written, path, lambda: f"{sizes[0][1]} × {sizes[0][0]} pixels at {DPI} dpi.")

    def save_animation(self) -> None:
        """Ask where to, and film."""
        path, _ = QFileDialog.getSaveFileName(self, "Save the animation", "animation.gif", FILM_FILES)
        if path:
            self.write_animation(Path(path))

    def write_animation(self, path: Path) -> None:
        """Film, and save; slices are drawn off the Qt thread, all else frame by frame from the canvas."""
        if self._filming:
            return
        path = path if path.suffix.lower() == ".mp4" else path.with_suffix(".gif")
        viewer, count, kept = self.panel.viewer, self.frames.value(), self.film.currentText() == KEPT
        if not self._can_begin(path):
            return
        if path.suffix.lower() == ".mp4" and not can_write_mp4():
            self.told.tell(f"{NEEDS_FFMPEG} {HOW_TO_FFMPEG}")
            return
        self.told.tell("Taking frames…")
        if not kept and not only_opengl(viewer):
            self._film_slices(count, path)
            return
        usual = once_around if viewer.dims.ndisplay == 3 else through_slices
        way = self._kept.way(count) if kept else usual(viewer, count)
        undo = partial(state_of_view(viewer).apply, viewer) if kept and len(self._kept) else str

        def done(frames: list[Picture]) -> None:
            self._write(lambda: write_animation(frames, path), path, lambda: f"{len(frames)} frames.")

        self._film = Filming(viewer, way, count, path.suffix.lower(), done, self._fail, self._show_share, undo)
        self._film.setParent(self)  # ends with the section
        self._refresh()

    def _film_slices(self, count: int, path: Path) -> None:
        dims = self.panel.viewer.dims
        view = view_of(self.panel.viewer)
        first, last, _ = dims.range[view.axes[0]]

        def written(progress: Callable[[float, str], object]) -> object:
            return write_animation(slices_of(view, first, last, count, path.suffix.lower(), progress), path)

        self._drawing = self._write(
            written, path, lambda: f"{count} frames.", progressed=lambda share, _: self._show_share(share)
        )
        self._refresh()

    def keep_view(self) -> None:
        """Remember what is seen, for a film between such views."""
        try:
            self._kept.keep()
        except Med3dError as error:
            self.told.tell(str(error))
            return
        self.film.setCurrentText(KEPT)
        self._refresh()

    def forget_views(self) -> None:
        """Forget the kept views."""
        self._kept.forget()
        self._refresh()

    @property
    def _filming(self) -> bool:
        drawing = self._drawing is not None and self._drawing.running
        return drawing or (self._film is not None and self._film.running)

    def _show_share(self, share: float) -> None:
        self.bar.setValue(round(100 * share))

    def _fail(self, sentence: str) -> None:
        self.told.tell(sentence)
        self._refresh()

    def cancel(self) -> None:
        """Stop filming; nothing is written."""
        if self._film is not None and self._film.running:
            self._film.stop()
            self.told.tell(CANCELLED)
        if self._drawing is not None:
            self._drawing.stop()
        self._refresh()

    def copy_command(self) -> None:
        """Put the command that writes what was computed last on the clipboard."""
        asked = self.panel.asked
        if asked is None:
            self.told.tell(NOTHING_ASKED)
            return
        files = [_file_of(layer, name) for layer, name in ((asked.scan, "SCAN"), (asked.other, "OTHER"))]
        text = shown_command(asked.op, asked.source, asked.params, *files)
        if not text:
            self.told.tell(NO_COMMAND)
            return
        copy_text(text)
        unknown = [file for file in files if file in ("SCAN", "OTHER")]
        note = f" Replace {' and '.join(unknown)} by files: these scans were not opened from one." if unknown else ""
        self.told.tell(f"Copied: {text}.{note}")

    def _write(
        self,
        function: Callable[..., object],
        path: Path,
        more: Callable[[], str] = str,
        progressed: Callable[[float, str], object] | None = None,
    ) -> _work.Job:
        """Call `function` off the Qt thread, and tell of its end with what `more` says then."""
        self.told.tell(f"Writing {path.name}…")
        job = _work.start(
            self,
            function,
            done=lambda _: self.told.tell(f"Saved {path.name}. {more()}".strip()),
            failed=self.told.tell,
            cancelled=lambda: self.told.tell(CANCELLED),
            progressed=progressed,
            ended=self._refresh,
        )
        self._refresh()
        return job

    def _refresh(self) -> None:
        filming = self._filming
        self.bar.setVisible(filming)
        self.cancel_button.setEnabled(filming)
        kept = len(self._kept)
        self.keep_button.setText(f"Keep view ({kept})" if kept else "Keep view")
        self.keep_button.setEnabled(bool(self._layers) and not filming)
        self.forget_button.setEnabled(bool(kept) and not filming)
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
