"""The cohort as a map: every case of datasets, or every region, as a point; look at, open and gather cases there."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QComboBox,
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
from napari_med3dssl.data_panel import SPLITS
from napari_med3dssl.forgetting_plot import INKS, legend_entry
from napari_med3dssl.point_cloud import PointPlot
from napari_med3dssl.results import show_alone
from training_backend.jobs.sources import run_sources

if TYPE_CHECKING:
    from napari_med3dssl.explore import ExplorePanel

NO_UMAP = "UMAP is not installed: pip install 'napari-med3dssl[umap]'. The principal axes are shown."
FEWEST = 4
TOO_FEW = f"UMAP needs at least {FEWEST} points. The principal axes are shown."
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
        self._undo: list[cohort_files.Done] = []
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
        self.split = combo("Split of the chosen cases")
        self.split.addItems(["Move to…", *SPLITS])
        self.split.setToolTip("Train, validate or test on the chosen cases, or leave them unlabelled.")
        self.split.activated.connect(self._on_split)
        self.class_button = button("Class…", self.ask_class, "Give the chosen cases a class that a model can learn.")
        self.undo_button = button("Undo", self.undo, "Take back what was done last with chosen cases.")
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
        buttons = (self.split, self.class_button, self.name_button, self.list_button, self.exclude_button)
        column.addWidget(button_row(self.lasso_button, *buttons, self.undo_button))

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
        def stay(kind: str, sentence: str) -> None:
            self.notice.say(kind, sentence)
            if self.cohort is not None and self.axes.currentText() not in self.cohort.places:
                self.axes.setCurrentText(PCA)  # what is drawn

        self.bar.setRange(0, 100)
        self._job = _work.start(
            self,
            work,
            done=done,
            failed=lambda sentence: stay("error", sentence),
            cancelled=lambda: stay("info", "Cancelled; the map is as it was."),
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
        _offer(self.axes, list(dict.fromkeys([*cohort.places, UMAP])))
        _offer(self.colour, [*cohort.traits, SCORED, BUFFERED])
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
        names = sorted(set(texts), key=_by_numbers)
        numbers = {name: number for number, name in enumerate(names)}
        groups = np.array([numbers[text] for text in texts], np.int64)
        shades = [(INKS[k % len(INKS)][int(self._light)], INKS[k % len(INKS)][2]) for k in range(len(names))]
        places = cohort.places.get(self.axes.currentText(), cohort.places[PCA])
        self.plot.cloud.show_points(places, groups, shades, self.chosen, "#000000" if self._light else "#ffffff")
        legend = [legend_entry(k, name, light=self._light) for k, name in enumerate(names[:SHOWN_GROUPS])]
        self.legend.setText(" &nbsp; ".join(legend) + (" …" if len(names) > SHOWN_GROUPS else ""))
        self.legend.setAccessibleName(f"Points: {', '.join(names[:SHOWN_GROUPS])}")
        if fit:
            self.plot.widget.autoRange()

    def take(self, caught: Any) -> None:
        """Choose the points in a lasso; an empty one changes nothing."""
        if not caught.any():
            self.notice.say("info", EMPTY_LASSO)
            return
        self.chosen = caught
        self.notice.say(
            "info", f"{int(caught.sum())} points chosen: give them a split, a class or a name, save or exclude them."
        )
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
            failed=self._complain,
        )

    def save_list(self) -> None:
        """Ask where to, and write the ids of the chosen cases."""
        path, _ = QFileDialog.getSaveFileName(self, "Save the list of cases", "cases.txt", "List (*.txt)")
        if path:
            self.write_list(Path(path))

    def write_list(self, path: Path) -> None:
        """Write the ids of the chosen cases."""
        said = lambda count: self.notice.say("ok", f"{count} cases in {path.name}; use it as data.only.")  # noqa: E731
        _work.start(self, cohort_files.write_list, self._picked(), path, done=said, failed=self._complain)

    def exclude(self) -> None:
        """Leave the chosen cases out of their datasets."""
        said = "{} excluded from training; Undo takes them in again."
        self._decide(cohort_files.exclude, said=said, shown="split")

    def move_to(self, split: str) -> None:
        """Give the chosen cases a split."""
        self._decide(cohort_files.move, split, said=f"{{}} moved to {split}.", shown="split")

    def ask_class(self) -> None:
        """Ask for a class, and give it to the chosen cases."""
        names = cohort_files.known_classes(self._picked())
        text = "Class of the chosen cases (choose or type one; empty takes it away)"
        name, agreed = QInputDialog.getItem(self, "Class", text, ["", *names], 0, True)
        if agreed:
            self.give_class(name.strip())

    def give_class(self, name: str) -> None:
        """Give the chosen cases a class, the target of a classification."""
        said = f"{{}} of class {name!r} now; Fine-tune › classification learns it." if name else "{} without class now."
        self._decide(cohort_files.classify, name, said=said, shown="class")

    def name_group(self) -> None:
        """Ask for a name, and give it to the chosen cases."""
        name, agreed = QInputDialog.getText(self, "Name the group", "Name (empty takes cases out of their group)")
        if agreed:
            self.give_name(name.strip())

    def give_name(self, name: str) -> None:
        """Give the chosen cases a name, kept beside the dataset and as a colour."""
        count = int(self.chosen.sum())
        said = f"{count} points are named {name!r}." if name else "They have no group any more."
        self._decide(cohort_files.name_group, name, said=said, shown="group")

    def undo(self) -> None:
        """Take back what was done last with chosen cases."""
        if self._undo:
            done = self._undo[-1]
            self._then(lambda: cohort_files.undo(done), lambda _: self._undo.remove(done), "Taken back.", "")

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

    def _decide(self, function: Any, *values: Any, said: str, shown: str) -> None:
        """Do something with the chosen cases that can be undone."""
        points = self._picked()

        def keep(done: cohort_files.Done) -> str:
            self._undo.append(done)
            return "1 case is" if done.count == 1 else f"{done.count} cases are"

        self._then(lambda: function(points, *values), keep, said, shown)

    def _then(self, work: Callable[[], Any], keep: Callable[[Any], Any], said: str, shown: str) -> None:
        """Change datasets in a thread, then show what they say now, coloured by `shown`."""
        cohort = self.cohort
        assert cohort is not None  # the buttons are off without one

        def finish(found: tuple[Any, dict[str, list[str]]]) -> None:
            result, traits = found
            self.notice.say("ok", said.replace("{}", str(keep(result)), 1))
            cohort.traits.update(traits)
            chosen = shown or self.colour.currentText()
            _offer(self.colour, [*cohort.traits, SCORED, BUFFERED])
            self.colour.setCurrentText(chosen)
            self.draw()
            self._refresh()
            if self.state.dataset in self.folders:
                self.state.dataset_changed.emit(self.state.dataset)

        both = lambda: (work(), cohort_files.traits_of(cohort.points))  # noqa: E731
        _work.start(self, both, done=finish, failed=self._complain)

    def _on_split(self, index: int) -> None:
        self.split.setCurrentIndex(0)
        if index > 0:
            self.move_to(SPLITS[index - 1])

    def _complain(self, sentence: str) -> None:
        self.notice.say("error", sentence)

    def _on_axes(self) -> None:
        """Show other axes; those of UMAP are computed when they are first wanted."""
        cohort, client = self.cohort, self.state.client
        if cohort is None or self.axes.currentText() in cohort.places:
            self.draw(fit=True)
            return
        if self._job is not None or not cohort.umap:
            if self._job is None:
                self.notice.say("info", TOO_FEW if len(cohort.points) < FEWEST else NO_UMAP)
            self.axes.setCurrentText(PCA)
            return

        def keep(places: Any) -> None:
            cohort.places[UMAP] = places
            self.notice.clear()
            self.draw(fit=True)

        self.notice.say("busy", "Computing UMAP, which compiles for about a minute the first time…")
        ask = lambda progress: client.request("cohort_umap", vectors=cohort.vectors, progress=progress)["places"]  # noqa: E731
        self._ask(ask, keep)
        self.bar.setRange(0, 0)  # it does not say how far it is

    def _on_lasso(self) -> None:
        self.plot.lasso(self.lasso_button.isChecked())

    def _on_colour(self) -> None:
        wanted = self.colour.currentText()
        if self.cohort is None or wanted not in (SCORED, BUFFERED):
            self.draw()
            return
        if wanted == SCORED:
            _work.start(self, run_sources, "finetune", done=self._ask_run, failed=self._complain)
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

        _work.start(self, function, self.cohort, source, done=keep, failed=self._complain)

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
        self._opened = show_alone(self._viewer, layers, self._opened)
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
        for widget in (self.split, self.class_button, self.list_button, self.exclude_button, self.name_button):
            widget.setEnabled(bool(self.chosen.any()))
        self.undo_button.setEnabled(bool(self._undo))


def _by_numbers(text: str) -> list[tuple[int, str]]:
    """Key that puts "class 2" before "class 10"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def _offer(box: QComboBox, texts: Sequence[str]) -> None:
    """Entries of a list, without announcing a change."""
    box.blockSignals(True)
    box.clear()
    box.addItems(list(texts))
    box.blockSignals(False)
