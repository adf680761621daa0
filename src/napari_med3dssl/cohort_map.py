"""The cohort as a map: every case of datasets, or every region, as a point; look at, open and gather cases there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QDialog,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QInputDialog,
    QLabel,
    QListWidget,
    QListWidgetItem,
    QProgressBar,
    QVBoxLayout,
    QWidget,
)

from napari_med3dssl import _work, cohort_files
from napari_med3dssl._plot import take_theme
from napari_med3dssl._widgets import Notice, Section, button, button_row, combo, wrapping
from napari_med3dssl.buffer_files import SIDE
from napari_med3dssl.buffer_gallery import SHOWN_GROUPS, pixmap_of
from napari_med3dssl.cohort_files import ALONE, EMPTY_LASSO, PCA, UMAP, Cohort, Point
from napari_med3dssl.forgetting_plot import INKS, legend_entry
from napari_med3dssl.point_cloud import PointPlot
from napari_med3dssl.results import centre_slices, replace_layers
from training_backend.jobs.sources import run_sources

if TYPE_CHECKING:
    from napari_med3dssl.explore import ExplorePanel

NEEDS_DATASET = "Choose a dataset in the Data tab first."
NEEDS_MODEL = "Choose a model first: its features place the cases."
SCORED, BUFFERED = "Dice of a run…", "rehearsal buffer…"
KEPT_PICTURES = 200
LISTED = 50


class CohortSection(Section):
    """A button that opens the map of the dataset in use."""

    def __init__(self, panel: ExplorePanel) -> None:
        super().__init__("Cohort map", folded=True, tip="Every case of a dataset as a point, by what the model sees.")
        self.panel = panel
        self.dialog: CohortMap | None = None
        self.open_button = button("Open map…", self.open, "Cases of the dataset in use, placed by their features.")
        self.told = wrapping("")
        self.column.addWidget(button_row(self.open_button))
        self.column.addWidget(self.told)

    def open(self) -> None:
        """Open the map, or say what is missing."""
        state = self.panel.state
        missing = NEEDS_DATASET if state.dataset is None else NEEDS_MODEL if not state.model else ""
        self.told.setText(missing)
        if not missing:
            self.dialog = CohortMap(self, state, [state.dataset])
            self.dialog.show()


class CohortMap(QDialog):
    """The map in a window of its own.

    Args:
        owner: of the window.
        state: what the panels of the viewer share.
        folders: datasets.
    """

    def __init__(self, owner: QWidget, state: Any, folders: Sequence[Path | None]) -> None:
        super().__init__(owner)
        self.setWindowTitle("Cohort map")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.state, self._viewer = state, state.viewer
        self.folders = [Path(folder) for folder in folders if folder is not None]
        self.cohort: Cohort | None = None
        self.chosen = np.zeros(0, bool)
        self._light = False
        self._job: _work.Job | None = None
        self._reading: _work.Job | None = None
        self._hovered = -1
        self._pictures: dict[Point, Any] = {}
        self._opened: list[Any] = []
        self._undo: list[Point] = []
        self._runs: dict[str, str] = {}
        self._build()
        self._viewer.events.theme.connect(self.follow_theme)
        self.follow_theme()
        self.resize(720, 640)
        self._refresh()

    def _build(self) -> None:
        self.sets = wrapping("")
        self.kind = combo("Points")
        self.kind.addItems(["whole cases", "regions of label maps"])
        self.compute_button = button("Compute", self.compute, "Have the model look at every case; kept on disk.")
        self.add_button = button("Add dataset…", self.add_dataset, "Show the cases of another dataset too.")
        self.cancel_button = button("Cancel", self.cancel, "Stop; what was computed is kept on disk.")
        self.axes, self.colour = combo("Axes"), combo("Colour")
        self.axes.currentIndexChanged.connect(lambda _: self._on_axes())
        self.colour.activated.connect(lambda _: self._on_colour())
        self.bar, self.notice = QProgressBar(), Notice()
        self.bar.setAccessibleName("Progress of the map")
        self.legend = QLabel()
        self.legend.setWordWrap(True)
        self.plot = PointPlot("Cases by their features")
        self.plot.setParent(self)
        self.plot.hovered.connect(self._on_hover)
        self.plot.clicked.connect(self.open_case)
        self.plot.caught.connect(self.take)
        self.picture, self.about = QLabel(), wrapping("")
        self.picture.setFixedSize(SIDE + 4, SIDE + 4)
        self.found = QListWidget()
        self.found.setAccessibleName("Outliers and near-duplicates")
        self.found.setMaximumHeight(96)
        self.found.setWordWrap(True)
        self.found.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.found.itemClicked.connect(self._on_found)
        self.lasso_button = button("Lasso", self._on_lasso, "Draw around points to choose them.")
        self.lasso_button.setCheckable(True)
        self.list_button = button("Save list…", self.save_list, "Ids of the chosen cases, for data.only of a run.")
        self.exclude_button = button("Exclude", self.exclude, "Leave the chosen cases out of their dataset.")
        self.undo_button = button("Undo", self.undo, "Take the cases that were excluded last in again.")
        self.name_button = button("Name group…", self.name_group, "Give the chosen cases a common name.")
        rows = QFormLayout()
        rows.addRow("Datasets", self.sets)
        rows.addRow("Points", self.kind)
        rows.addRow(button_row(self.compute_button, self.add_button, self.cancel_button))
        rows.addRow("Axes", self.axes)
        rows.addRow("Colour", self.colour)
        below = QHBoxLayout()
        below.addWidget(self.picture)
        below.addWidget(self.about, 1)
        below.addWidget(self.found, 1)
        column = QVBoxLayout(self)
        column.addLayout(rows)
        for widget in (self.bar, self.notice, self.legend):
            column.addWidget(widget)
        column.addWidget(self.plot.widget, 1)
        column.addLayout(below)
        column.addWidget(
            button_row(self.lasso_button, self.list_button, self.exclude_button, self.undo_button, self.name_button)
        )

    def compute(self) -> None:
        """Have the model process place the cases."""
        if self._job is not None:
            return
        client, source, folders = self.state.client, self.state.model, list(self.folders)
        regions = self.kind.currentIndex() == 1
        self.notice.say("busy", "Looking at all cases…")

        def work(progress: Callable[[float, str], object]) -> Cohort:
            params = {"source": source, "folders": [str(folder) for folder in folders], "regions": regions}
            return cohort_files.cohort_of(client.request("cohort_map", progress=progress, **params), folders)

        self._ask(work, self.show_cohort)

    def _ask(self, work: Callable[..., Any], done: Callable[[Any], object]) -> None:
        self._job = _work.start(
            self,
            work,
            done=done,
            failed=lambda sentence: self.notice.say("error", sentence),
            cancelled=lambda: self.notice.say("info", "Cancelled; the map is as it was."),
            progressed=lambda share, _: self.bar.setValue(round(100 * share)),
            ended=self._ended,
        )
        self._refresh()

    def cancel(self) -> None:
        """Stop the model process."""
        if self._job is not None:
            self._job.stop()
            self.state.client.cancel()

    def add_dataset(self) -> None:
        """Ask for a further dataset."""
        folder = QFileDialog.getExistingDirectory(self, "Folder of a dataset")
        if folder and Path(folder) not in self.folders:
            if not (Path(folder) / "dataset.json").is_file():
                self.notice.say("error", f"{Path(folder).name} is not a dataset: it has no dataset.json.")
                return
            self.folders.append(Path(folder))
            self._refresh()

    def show_cohort(self, cohort: Cohort) -> None:
        """Draw a map."""
        self.cohort, self.chosen = cohort, np.zeros(len(cohort.points), bool)
        self._hovered = -1
        axes = list(dict.fromkeys([*cohort.places, *([UMAP] if cohort.umap else [])]))
        for box, texts in ((self.axes, axes), (self.colour, [*cohort.traits, SCORED, BUFFERED])):
            box.blockSignals(True)
            box.clear()
            box.addItems(texts)
            box.blockSignals(False)
        self._list_found()
        first, second = cohort.explained
        said = f"{len(cohort.points)} points; the principal axes explain {first:.0%} and {second:.0%} of the variance."
        if len({(point.folder, point.case) for point in cohort.points}) == 1:
            self.notice.say("info", ALONE)
        elif cohort.problems:
            self.notice.say("warning", f"{said} {len(cohort.problems)} cases have none. {cohort.problems[0]}")
        else:
            self.notice.say("ok", said)
        self.draw(fit=True)
        self._refresh()

    def draw(self, fit: bool = False) -> None:
        """Draw the points as they are now."""
        cohort = self.cohort
        if cohort is None:
            return
        trait = self.colour.currentText()
        texts = cohort.traits.get(trait) or cohort.traits["modality"]
        names, groups = np.unique(np.asarray(texts, dtype=str), return_inverse=True)
        shades = [(INKS[k % len(INKS)][int(self._light)], INKS[k % len(INKS)][2]) for k in range(len(names))]
        places = cohort.places.get(self.axes.currentText(), cohort.places[PCA])
        self.plot.cloud.show_points(places, groups, shades, self.chosen, "#000000" if self._light else "#ffffff")
        legend = [legend_entry(k, str(name), light=self._light) for k, name in enumerate(names[:SHOWN_GROUPS])]
        self.legend.setText(" &nbsp; ".join(legend) + (" …" if len(names) > SHOWN_GROUPS else ""))
        self.legend.setAccessibleName(f"Points: {', '.join(str(name) for name in names[:SHOWN_GROUPS])}")
        if fit:
            self.plot.widget.autoRange()

    def take(self, caught: Any) -> None:
        """Choose the points in a lasso; an empty one changes nothing."""
        if not caught.any():
            self.notice.say("info", EMPTY_LASSO)
            return
        self.chosen = caught
        self.notice.say("info", f"{int(caught.sum())} points chosen: save them as a list, exclude or name them.")
        self.draw()
        self._refresh()

    def open_case(self, row: int) -> None:
        """Open the case of a point in the viewer."""
        assert self.cohort is not None
        point = self.cohort.points[row]
        self.notice.say("busy", f"Opening {point.case}…")
        _work.start(
            self,
            cohort_files.layers_of,
            point,
            done=lambda layers: self._add(point.case, layers),
            failed=lambda sentence: self.notice.say("error", sentence),
        )

    def save_list(self) -> None:
        """Ask where to, and write the ids of the chosen cases."""
        path, _ = QFileDialog.getSaveFileName(self, "Save the list of cases", "cases.txt", "List (*.txt)")
        if path:
            self.write_list(Path(path))

    def write_list(self, path: Path) -> None:
        """Write the ids of the chosen cases."""
        self._do(
            cohort_files.write_list, path, said=lambda count: f"{count} cases in {path.name}; use it as data.only."
        )

    def exclude(self) -> None:
        """Leave the chosen cases out of their datasets."""
        points = self._picked()

        def said(count: int) -> str:
            self._undo = points
            return f"{count} cases are excluded from training; Undo takes them in again."

        self._do(cohort_files.exclude, said=said)

    def undo(self) -> None:
        """Take the cases in again that were excluded last."""
        points, self._undo = self._undo, []
        self._do(cohort_files.exclude, False, said=lambda count: f"{count} cases are used again.", points=points)

    def name_group(self) -> None:
        """Ask for a name, and give it to the chosen cases."""
        name, agreed = QInputDialog.getText(self, "Name the group", "Name (empty takes cases out of their group)")
        if agreed:
            self.give_name(name.strip())

    def give_name(self, name: str) -> None:
        """Give the chosen cases a name, kept beside the dataset and as a colour."""

        def said(_: Any) -> str:
            if self.cohort is not None:
                for row in np.flatnonzero(self.chosen):
                    self.cohort.traits["group"][row] = name or "no group"
                self.colour.setCurrentText("group")
                self.draw()
            return f"{int(self.chosen.sum())} points are named {name!r}." if name else "They have no group any more."

        self._do(cohort_files.name_group, name, said=said)

    def follow_theme(self, _event: Any = None) -> None:
        """Take background and colours from the viewer's theme."""
        self._light = take_theme(self.plot.widget, self._viewer)
        self.draw()

    def closeEvent(self, event: Any) -> None:  # noqa: N802
        """Let go of the viewer."""
        self._viewer.events.theme.disconnect(self.follow_theme)
        super().closeEvent(event)

    def _picked(self) -> list[Point]:
        return [] if self.cohort is None else [self.cohort.points[row] for row in np.flatnonzero(self.chosen)]

    def _do(self, function: Any, *values: Any, said: Callable[[Any], str], points: list[Point] | None = None) -> None:
        chosen = self._picked() if points is None else points

        def told(result: Any) -> None:
            self.notice.say("ok", said(result))
            self._refresh()

        _work.start(
            self, function, chosen, *values, done=told, failed=lambda sentence: self.notice.say("error", sentence)
        )

    def _on_axes(self) -> None:
        """Show other axes; those of UMAP are computed when they are first wanted."""
        cohort, client = self.cohort, self.state.client
        if cohort is None or self.axes.currentText() in cohort.places:
            self.draw(fit=True)
            return
        if self._job is not None:
            self.axes.setCurrentText(PCA)
            return

        def keep(places: Any) -> None:
            cohort.places[UMAP] = places
            self.notice.clear()
            self.draw(fit=True)

        self.notice.say("busy", "Computing UMAP, which compiles for up to a minute the first time…")
        ask = lambda progress: client.request("cohort_umap", vectors=cohort.vectors, progress=progress)["places"]  # noqa: E731
        self._ask(ask, keep)

    def _on_lasso(self) -> None:
        self.plot.lasso(self.lasso_button.isChecked())

    def _on_colour(self) -> None:
        wanted = self.colour.currentText()
        if self.cohort is None or wanted not in (SCORED, BUFFERED):
            self.draw()
            return
        failed = lambda sentence: self.notice.say("error", sentence)  # noqa: E731
        if wanted == SCORED:
            _work.start(self, run_sources, "finetune", done=self._ask_run, failed=failed)
            return
        folder = QFileDialog.getExistingDirectory(self, "Folder of a rehearsal buffer")
        if folder:
            self.colour_by("buffer", cohort_files.buffer_trait, Path(folder))

    def _ask_run(self, runs: Sequence[Any]) -> None:
        if not runs:
            self.notice.say("info", "There is no fine-tuned run whose scores could be shown.")
            return
        titles = [run.title for run in runs]
        title, agreed = QInputDialog.getItem(self, "Dice", "Scores of the run", titles, 0, False)
        if agreed:
            self.colour_by("Dice", cohort_files.dice_trait, Path(runs[titles.index(title)].source))

    def colour_by(self, name: str, function: Callable[..., list[str]], source: Path) -> None:
        """Colour the points by what `function` tells of them."""

        def keep(texts: list[str]) -> None:
            assert self.cohort is not None
            self.cohort.traits[name] = texts
            if self.colour.findText(name) < 0:
                self.colour.insertItem(self.colour.count() - 2, name)
            self.colour.setCurrentText(name)
            self.draw()

        failed = lambda sentence: self.notice.say("error", sentence)  # noqa: E731
        _work.start(self, function, self.cohort, source, done=keep, failed=failed)

    def _on_hover(self, row: int) -> None:
        if row == self._hovered or self.cohort is None:
            return
        self._hovered = row
        if row < 0:
            self.picture.clear()
            self.about.setText("")
            return
        point = self.cohort.points[row]
        traits = [f"{name}: {texts[row]}" for name, texts in self.cohort.traits.items() if name != "region"]
        self.about.setText("\n".join([" · ".join(filter(None, (point.case, point.region))), *traits]))
        self._show_picture(point)

    def _show_picture(self, point: Point) -> None:
        """Show the picture of a case, which is read when it was not before; one at a time."""
        if point in self._pictures:
            self.picture.setPixmap(pixmap_of(self._pictures[point]))
            return
        self.picture.clear()
        if self._reading is not None:
            return

        def keep(picture: Any) -> None:
            if len(self._pictures) >= KEPT_PICTURES:
                self._pictures.pop(next(iter(self._pictures)))
            self._pictures[point] = picture

        def ended() -> None:
            self._reading = None

        def kept(picture: Any) -> None:
            keep(picture)
            now = self.cohort.points[self._hovered] if self.cohort is not None and self._hovered >= 0 else None
            if now is not None:
                self._show_picture(now)

        self._reading = _work.start(
            self, cohort_files.thumbnail, point, done=kept, failed=self.about.setText, ended=ended
        )

    def _list_found(self) -> None:
        self.found.clear()
        cohort = self.cohort
        assert cohort is not None
        texts = [([row], f"Outlier: {cohort.points[row].case}, {score:.1f} spreads away") for row, score in cohort.odd]
        for one, other, near in cohort.twins:
            names = f"{cohort.points[one].case} and {cohort.points[other].case}"
            texts.append(([one, other], f"Near-duplicates: {names} ({near:.2f} of the usual distance)"))
        for rows, text in texts[:LISTED]:
            item = QListWidgetItem(text)
            item.setData(Qt.ItemDataRole.UserRole, rows)
            self.found.addItem(item)
        if not texts:
            self.found.addItem("No outliers, no near-duplicates.")

    def _on_found(self, item: QListWidgetItem) -> None:
        rows = item.data(Qt.ItemDataRole.UserRole)
        if rows:
            caught = np.zeros(len(self.chosen), bool)
            caught[rows] = True
            self.take(caught)

    def _add(self, case: str, layers: list[Any]) -> None:
        """Show a case alone: scans of different patients lie at different places."""
        for layer in self._opened:
            layer.visible = False
        self._opened = replace_layers(self._viewer, layers)
        shown = [layer for layer in self._opened if layer.visible]
        self._viewer.fit_to_view(layers=shown)
        centre_slices(self._viewer, shown)
        self.notice.say("ok", f"{case} is open in the viewer.")

    def _ended(self) -> None:
        self._job = None
        self._refresh()

    def _refresh(self) -> None:
        self.sets.setText(", ".join(folder.name for folder in self.folders))
        busy = self._job is not None
        self.bar.setVisible(busy)
        self.cancel_button.setEnabled(busy)
        self.compute_button.setEnabled(not busy)
        for widget in (self.axes, self.colour, self.lasso_button):
            widget.setEnabled(self.cohort is not None)
        for widget in (self.list_button, self.exclude_button, self.name_button):
            widget.setEnabled(bool(self.chosen.any()))
        self.undo_button.setEnabled(bool(self._undo))
