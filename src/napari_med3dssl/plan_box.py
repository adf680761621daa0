"""What the card of a plan shows in place of the curves of a run: the chart of forgetting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QVBoxLayout, QWidget

from napari_med3dssl import _work
from napari_med3dssl._widgets import wrapping
from napari_med3dssl.forgetting_plot import Forgetting, ForgettingPlot
from napari_med3dssl.plan_files import read_forgetting

ABOUT = (
    "After each stage the new encoder reconstructs held-out cases of every modality so far, or guesses their words, "
    "with the decoder of their own stage; a loss that rises is forgetting. The stages are listed below the plan."
)


class PlanBox(QWidget):
    """Follows one plan; `look` reads its folder in a thread.

    Args:
        viewer: whose theme is followed.
    """

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self.folder: Path | None = None
        self.chart = ForgettingPlot(viewer)
        self.chart.hide()
        self._look: _work.Job | None = None
        self.about = wrapping(ABOUT)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.chart, 1)
        column.addWidget(self.about)
        column.addStretch(0)

    def follow(self, folder: Path | None) -> None:
        """Show another plan, or none."""
        if folder != self.folder:
            self.chart.hide()
            self.about.show()
        self.folder = folder
        self.setVisible(folder is not None)
        self.look()

    def look(self) -> None:
        """Read what is new."""
        if self.folder is None or (self._look is not None and self._look.running):
            return
        self._look = _work.start(
            self, _read, self.folder, done=self._show, failed=lambda text: self.chart.notice.say("error", text)
        )

    def _show(self, found: tuple[Path, Forgetting]) -> None:
        folder, measured = found
        if folder == self.folder:
            self.chart.show_forgetting(measured)
            self.chart.setVisible(bool(measured.stages))
            self.about.setVisible(len(measured.stages) < 2)


def _read(folder: Path) -> tuple[Path, Forgetting]:
    return folder, read_forgetting(folder)
