"""The workbench: one dock with the tabs Data, Pre-train, Fine-tune, Explore and Runs, and the panels as docks apart."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import QHBoxLayout, QMainWindow, QTabWidget, QVBoxLayout, QWidget
from superqt import QElidingLabel

from napari_med3dssl import _canvas, _work
from napari_med3dssl._device import device_line
from napari_med3dssl._state import State, dataset_name, state_of
from napari_med3dssl._widgets import button, wrapping
from napari_med3dssl.geometry_offer import GeometryOffer
from napari_med3dssl.window_chooser import WindowChooser

if TYPE_CHECKING:
    import napari.viewer

WIDTH = 400
DEVICE_MS = 5000
TABS = ("Data", "Pre-train", "Fine-tune", "Explore", "Runs")


class Workbench(QWidget):
    """Everything in one dock.

    Args:
        viewer: the viewer it is docked in.
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.state = state_of(viewer)
        _canvas.attach(viewer)
        self._asked_width = False
        self.device = QElidingLabel("looking at the device…")
        self.device.setAccessibleName("Device and memory")
        self.doctor = button("Doctor", self.show_doctor, "What would hinder training here, and how to mend it.")
        header = QHBoxLayout()
        header.addWidget(self.device, 1)
        header.addWidget(self.doctor)
        self.offer = GeometryOffer(self.state)
        self.window_chooser = WindowChooser(self.state)
        self.panels = make_panels(self.state)
        self.tabs = QTabWidget()
        self.tabs.setDocumentMode(True)
        self.tabs.setUsesScrollButtons(True)
        for name, panel in self.panels.items():
            self.tabs.addTab(panel, name)
        self.footer = QElidingLabel("")
        self.footer.setAccessibleName("Status")
        column = QVBoxLayout(self)
        column.setContentsMargins(2, 2, 2, 2)
        column.setSpacing(4)
        column.addLayout(header)
        column.addWidget(self.window_chooser)
        column.addWidget(self.offer)
        column.addWidget(self.tabs, 1)
        column.addWidget(self.footer)
        self.setMinimumWidth(240)
        self.state.follow(self, self.state.tab_wanted, self.show_tab)
        self.state.follow(self, self.state.message, self.footer.setText)
        self.state.follow(self, self.state.dataset_changed, lambda _: self._tell_dataset())
        self._tell_dataset()
        self._timer = QTimer(self)
        self._timer.setInterval(DEVICE_MS)
        self._timer.timeout.connect(self._look_at_device)
        self._timer.start()
        self._look_at_device()
        state = self.state
        self.destroyed.connect(lambda: state.close())

    def show_tab(self, name: str, what: Any = None) -> None:
        """Show a tab, and in it a run when `what` is its folder."""
        panel = self.panels[name]
        self.tabs.setCurrentWidget(panel)
        if isinstance(what, Path):
            (panel.choose if name == "Runs" else panel.show_run)(what)

    def show_doctor(self) -> None:
        """Open the Doctor."""
        from napari_med3dssl.doctor_panel import DoctorDialog

        DoctorDialog(self).show()

    def showEvent(self, event: QShowEvent | None) -> None:  # noqa: N802
        """Ask for a comfortable width the first time; napari remembers it afterwards."""
        super().showEvent(event)
        if not self._asked_width:
            self._asked_width = True
            QTimer.singleShot(0, self._ask_width)

    def _ask_width(self) -> None:
        window, dock = self.window(), self.parentWidget()
        if isinstance(window, QMainWindow) and dock is not None and dock.parentWidget() is window:
            window.resizeDocks([dock], [WIDTH], Qt.Orientation.Horizontal)

    def _look_at_device(self) -> None:
        _work.start(self, device_line, done=self.device.setText)

    def _tell_dataset(self) -> None:
        folder = self.state.dataset
        self.footer.setText(f"Dataset: {dataset_name(folder)}" if folder else "No dataset chosen; begin in Data.")
        self.footer.setToolTip(str(folder or ""))


class RunsDock(QWidget):
    """The Runs panel in a dock of its own."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        from napari_med3dssl.runs_panel import RunsPanel

        _fill(self, RunsPanel(state_of(viewer)))


class ExploreDock(QWidget):
    """The Explore panel in a dock of its own."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        _canvas.attach(viewer)
        _fill(self, make_explore(state_of(viewer)))


def make_panels(state: State) -> dict[str, Any]:
    """All panels by the name of their tab; imported here, so that reading a scan loads none of them."""
    from napari_med3dssl.data_panel import DataPanel
    from napari_med3dssl.finetune_panel import FinetunePanel
    from napari_med3dssl.pretrain_panel import PretrainPanel
    from napari_med3dssl.runs_panel import RunsPanel

    made = (DataPanel, PretrainPanel, FinetunePanel, make_explore, RunsPanel)
    return {name: make(state) for name, make in zip(TABS, made, strict=True)}


def make_explore(state: State) -> QWidget:
    """The Explore panel, or a sentence where this installation lacks it."""
    if importlib.util.find_spec("napari_med3dssl.explore") is None:
        empty = QWidget()
        _fill(empty, wrapping("Exploring models is not part of this installation."))
        return empty
    from napari_med3dssl.explore import ExplorePanel

    return ExplorePanel(state)


def _fill(widget: QWidget, content: QWidget) -> None:
    layout = QVBoxLayout(widget)
    layout.setContentsMargins(2, 2, 2, 2)
    layout.addWidget(content)
