"""Views that compare cases of the dataset in use: which ones, and what their sentences say of each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QListWidget, QListWidgetItem

from napari_med3dssl import _work
from napari_med3dssl.explore_text import Passages
from napari_med3dssl.explore_views import ViewSection

if TYPE_CHECKING:
    from napari_med3dssl.explore import ExplorePanel

FIRST = 4
"""Cases that are chosen at first."""
LISTED = 500
"""Cases in the list."""
LACKING = "Open a dataset with scans and reports in the Data tab first."


class CasesSection(ViewSection):
    """A list of cases to choose from; what is seen are matrices, and the sentences that their rows stand for."""

    def __init__(self, panel: ExplorePanel, view: Any, maps: Any) -> None:
        super().__init__(panel, view, maps)
        self.cases = QListWidget()
        self.cases.setAccessibleName("Cases to compare")
        self.cases.setFixedHeight(110)
        self.passages = Passages()
        self.form.insertRow(0, "Cases", self.cases)
        self.column.addWidget(self.passages)
        self._why.setText(f"Choose a model first. {LACKING}")
        panel.state.follow(self, panel.state.dataset_changed, lambda _: self.look_up())
        self.look_up()

    @property
    def chosen(self) -> list[str]:
        """Ids of the cases that are ticked."""
        items = [self.cases.item(row) for row in range(self.cases.count())]
        return [item.text() for item in items if item is not None and item.checkState() == Qt.CheckState.Checked]

    def look_up(self) -> None:
        """List the cases of the dataset in use that have scan and report."""
        folder = self.panel.state.dataset
        self.cases.clear()
        if folder is not None:
            _work.start(self, reported_cases, folder, done=self._fill, failed=self._complain)
        self.allow(bool(self.panel.state.model))

    def allow(self, possible: bool) -> None:
        """A model and a dataset are needed, but no scan."""
        super().allow(bool(self.panel.state.model) and self.panel.state.dataset is not None)

    def show_pictures(self) -> None:
        """Compare the chosen cases."""
        self._centre = [0.0, 0.0, 0.0]
        self.draw()

    def _beside(self) -> dict[str, Any] | None:
        beside = super()._beside()
        if beside is None:
            return None
        if self.panel.state.dataset is None or len(self.chosen) < 2:
            lacking = LACKING if self.panel.state.dataset is None else "Tick two cases at least."
            self.panel.notice.say("info", lacking)
            return None
        return {**beside, "dataset": str(self.panel.state.dataset), "cases": self.chosen, "scanless": True}

    def _tell(self, values: dict[str, Any]) -> None:
        self.passages.show_passages(values["passages"])

    def _fill(self, names: list[str]) -> None:
        self.cases.clear()
        for index, name in enumerate(names[:LISTED]):
            item = QListWidgetItem(name)
            item.setFlags(Qt.ItemFlag.ItemIsUserCheckable | Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable)
            item.setCheckState(Qt.CheckState.Checked if index < FIRST else Qt.CheckState.Unchecked)
            self.cases.addItem(item)

    def _complain(self, sentence: str) -> None:
        self.panel.notice.say("error", sentence)


def reported_cases(folder: Path) -> list[str]:
    """Ids of the cases of a dataset that have a scan and a report; those held out come first."""
    from training_backend.data.dataset import Dataset

    found = [case for case in Dataset.open(folder).cases() if case.images and case.has("text")]
    return [case.id for case in sorted(found, key=lambda case: case.split == "train")]
