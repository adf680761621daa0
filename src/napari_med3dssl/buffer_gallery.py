"""Rehearsal buffers to look at: members as small pictures with cluster and distance, and the map of all features."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtGui import QIcon, QImage, QPixmap
from qtpy.QtWidgets import (
    QDialog,
    QFormLayout,
    QLabel,
    QListView,
    QListWidget,
    QListWidgetItem,
    QProgressBar,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from napari_med3dssl import _work
from napari_med3dssl._plot import take_theme
from napari_med3dssl._widgets import Notice, button, button_row, combo, wrapping
from napari_med3dssl.buffer_files import (
    SHOWN,
    SIDE,
    FeatureMap,
    Thumbnail,
    buffers_of,
    feature_map,
    member_layers,
    report_of,
    thumbnails,
)
from napari_med3dssl.forgetting_plot import INKS, legend_entry
from napari_med3dssl.point_cloud import PointPlot
from napari_med3dssl.results import show_alone
from training_backend.data.rehearsal import Buffer

SHOWN_GROUPS = 12
"""Entries of the legend of a map."""
FAINT = 0x6E
"""Opacity of cases that are no members."""
STAGES_DIFFER = "Features of each modality are those of the encoder at the end of its own stage."


class BufferGallery(QWidget):
    """Members of one buffer; a click asks for the member."""

    wanted = Signal(object, str)
    """Buffer and case that were clicked."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer: Buffer | None = None
        self.text = wrapping("")
        self.bar = QProgressBar()
        self.bar.setAccessibleName("Reading the members")
        self.notice = Notice()
        self.list = QListWidget()
        self.list.setAccessibleName("Members of the buffer")
        self.list.setViewMode(QListView.ViewMode.IconMode)
        self.list.setResizeMode(QListView.ResizeMode.Adjust)
        self.list.setMovement(QListView.Movement.Static)
        self.list.setIconSize(QSize(SIDE, SIDE))
        self.list.setSpacing(4)
        self.list.setWordWrap(True)
        self.list.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.list.itemClicked.connect(self._ask)
        self.list.itemActivated.connect(self._ask)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (self.text, self.notice, self.bar):
            column.addWidget(widget)
        column.addWidget(self.list, 1)
        self.bar.hide()
        self._job: _work.Job | None = None

    def show_buffer(self, buffer: Buffer) -> None:
        """Have the members of a buffer read and shown."""
        if self._job is not None:
            self._job.stop()
        self.buffer = buffer
        self.text.setText(described(buffer))
        self.list.clear()
        self.notice.clear()
        self.bar.setValue(0)
        self.bar.show()
        self._job = _work.start(
            self,
            lambda progress: (buffer, thumbnails(buffer, progress)),
            done=lambda found: self._fill(*found),
            failed=lambda sentence: self.notice.say("error", sentence),
            progressed=lambda share, _: self.bar.setValue(round(100 * share)),
            ended=self.bar.hide,
        )

    def _fill(self, buffer: Buffer, found: list[Thumbnail]) -> None:
        if buffer is not self.buffer:
            return
        text = buffer.kind == "text"
        self.list.setViewMode(QListView.ViewMode.ListMode if text else QListView.ViewMode.IconMode)
        self.list.setGridSize(QSize() if text else QSize(SIDE + 48, SIDE + 3 * self.fontMetrics().height() + 14))
        for one in found:
            self.list.addItem(_item(one))
        unread = [one for one in found if one.problem]
        if unread:
            self.notice.say("warning", f"{len(unread)} members cannot be read: {unread[0].problem}")

    def _ask(self, item: QListWidgetItem) -> None:
        self.wanted.emit(self.buffer, item.data(Qt.ItemDataRole.UserRole))


class FeaturePlot(QWidget):
    """Cases of all modalities on the two principal axes of their features; members of buffers are framed."""

    wanted = Signal(str, str)
    """Modality and case that were clicked; the case is empty where its name is not known."""

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._viewer = viewer
        self._light = False
        self.found: FeatureMap | None = None
        self.buffers: list[Buffer] = []
        self.which = combo("Cases of")
        self.which.setToolTip("One modality alone is coloured by its clusters.")
        self.which.currentIndexChanged.connect(self._look)
        self.notice = Notice()
        self.plot = PointPlot("Features of all modalities on their principal axes")
        self.plot.setParent(self)
        self.plot.widget.setAspectLocked(True)
        self.plot.clicked.connect(self._clicked)
        self.legend = QLabel()
        self.legend.setWordWrap(True)
        self.text = wrapping("")
        self.points: list[tuple[str, str]] = []
        """Modality and case of each point that is drawn; the case is empty where its name is not known."""
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.which)
        column.addWidget(self.legend)
        column.addWidget(self.plot.widget, 1)
        column.addWidget(self.text)
        column.addWidget(self.notice)
        viewer.events.theme.connect(self.follow_theme)
        self.follow_theme()

    def offer(self, buffers: list[Buffer]) -> None:
        """Have the features of these buffers drawn."""
        self.buffers = buffers
        self.which.blockSignals(True)
        self.which.clear()
        self.which.addItems(["all modalities", *(buffer.modality for buffer in buffers)])
        self.which.blockSignals(False)
        self._look()

    def show_map(self, found: FeatureMap) -> None:
        """Draw a map."""
        self.found = found
        self.notice.clear()
        groups = found.groups.values()
        cases, members = sum(len(one.places) for one in groups), sum(int(one.chosen.sum()) for one in groups)
        first, second = found.explained
        several = f" {STAGES_DIFFER}" if len({one.modality for one in groups}) > 1 else ""
        self.text.setText(
            f"{cases} cases, {members} of them members (framed). The axes explain {first:.0%} and {second:.0%} of the "
            f"variance.{several} Click a framed point to open it."
        )
        self._draw()

    def _look(self) -> None:
        row = self.which.currentIndex()
        chosen = self.buffers if row <= 0 else self.buffers[row - 1 : row]
        failed = partial(self.notice.say, "error")
        _work.start(self, feature_map, chosen, done=self.show_map, failed=failed)

    def follow_theme(self, event: Any = None) -> None:
        """Take background and colours from the viewer's theme."""
        self._light = take_theme(self.plot.widget, self._viewer)
        self._draw()

    def _draw(self) -> None:
        if self.found is None:
            return
        groups = self.found.groups
        self.points = [(group.modality, case) for group in groups.values() for case in group.cases]
        inks = [(INKS[k % len(INKS)][int(self._light)], INKS[k % len(INKS)][2]) for k in range(len(groups))]
        chosen = np.concatenate([group.chosen for group in groups.values()])
        numbers = np.repeat(np.arange(len(groups)), [len(group.places) for group in groups.values()])
        shades = [*inks, *((f"#{FAINT:02x}{ink[1:]}", symbol) for ink, symbol in inks)]
        places = np.concatenate([group.places for group in groups.values()])
        front = "#000000" if self._light else "#ffffff"
        self.plot.cloud.show_points(places, numbers + np.where(chosen, 0, len(groups)), shades, chosen, front)
        self.plot.widget.autoRange()
        legend = [legend_entry(number, name, light=self._light) for number, name in enumerate(groups)]
        self.legend.setText(" &nbsp; ".join(legend[:SHOWN_GROUPS]) + (" …" if len(legend) > SHOWN_GROUPS else ""))
        self.legend.setAccessibleName(f"Points: {', '.join(list(groups)[:SHOWN_GROUPS])}")

    def _clicked(self, row: int) -> None:
        self.wanted.emit(*self.points[row])


class BuffersDialog(QDialog):
    """The buffers of a plan or a run.

    Args:
        owner: of the window.
        viewer: where members are opened.
        name: of the plan or run.
        folder: of it.
    """

    def __init__(self, owner: QWidget, viewer: Any, name: str, folder: Path) -> None:
        super().__init__(owner)
        self.setWindowTitle(f"Rehearsal buffers of {name}")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self._viewer = viewer
        self.buffers: list[Buffer] = []
        self._opened: list[Any] = []
        self.which = combo("Modality")
        self.which.currentIndexChanged.connect(self._choose)
        self.gallery = BufferGallery()
        self.gallery.wanted.connect(self.open_member)
        self.map = FeaturePlot(viewer)
        self.map.wanted.connect(self._from_map)
        self.notice = Notice()
        self.report = wrapping("")
        self.report.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.report.hide()
        rows = QFormLayout()
        rows.addRow("Modality", self.which)
        self.members = QWidget()
        column = QVBoxLayout(self.members)
        column.setContentsMargins(0, 4, 0, 0)
        column.addLayout(rows)
        column.addWidget(self.gallery, 1)
        self.tabs = QTabWidget()
        self.tabs.addTab(self.members, "Members")
        self.tabs.addTab(self.map, "Feature map")
        column = QVBoxLayout(self)
        column.addWidget(self.tabs, 1)
        column.addWidget(self.report)
        column.addWidget(self.notice)
        column.addWidget(button_row(button("Close", self.close)))
        self.resize(560, 520)
        self.notice.say("busy", "Reading the buffers…")
        _work.start(self, buffers_of, folder, done=self._found, failed=self._complain)

    def open_member(self, buffer: Buffer, case: str) -> None:
        """Open a member as layers, or show its report."""
        self.report.hide()
        if buffer.kind == "text":
            _work.start(self, report_of, buffer, case, done=self._tell, failed=self._complain)
            return
        self.notice.say("busy", f"Opening {case}…")
        _work.start(
            self, member_layers, buffer, case, done=lambda layers: self._add(case, layers), failed=self._complain
        )

    def _found(self, buffers: list[Buffer]) -> None:
        self.buffers = buffers
        self.notice.clear()
        if not buffers:
            self.notice.say("info", "There is no buffer yet: the first one is made when a stage has ended.")
            return
        self.which.blockSignals(True)
        for buffer in buffers:
            self.which.addItem(f"{buffer.modality}: {len(buffer.members)} of {buffer.cases} cases")
        self.which.blockSignals(False)
        self._choose(0)
        self.map.offer(buffers)

    def _choose(self, index: int) -> None:
        if 0 <= index < len(self.buffers):
            self.gallery.show_buffer(self.buffers[index])

    def _from_map(self, modality: str, case: str) -> None:
        buffer = next(one for one in self.buffers if one.modality == modality)
        if not case:
            self.notice.say("info", "This case is no member; only members, the framed points, can be opened here.")
            return
        self.open_member(buffer, case)

    def _add(self, case: str, layers: list[Any]) -> None:
        self._opened = show_alone(self._viewer, layers, self._opened)
        self.notice.say("ok", f"{case} is open in the viewer.")

    def _tell(self, text: str) -> None:
        self.report.setText(text)
        self.report.show()

    def _complain(self, sentence: str) -> None:
        self.notice.say("error", sentence)


def described(buffer: Buffer) -> str:
    """How a buffer was chosen, in a sentence."""
    distances = [member.distance for member in buffer.members]
    how = {
        "kmeans": f"the nearest to {buffer.clusters} centres of clusters",
        "random": "chosen at random",
        "herding": "chosen so that their mean is that of all",
    }
    text = f"{len(buffer.members)} of {buffer.cases} cases of {buffer.name}, {how.get(buffer.policy, buffer.policy)}."
    if distances:
        text += f" Distance to the centre {min(distances):.3g} to {max(distances):.3g}."
    if len(buffer.members) > SHOWN:
        text += f" The first {SHOWN} are shown."
    return text


def _item(one: Thumbnail) -> QListWidgetItem:
    member = one.member
    where = f"cluster {member.cluster + 1} · {member.distance:.3g}"
    if one.picture is None and not one.problem:
        item = QListWidgetItem(f"{member.case} · {where}\n{one.text}")
    else:
        item = QListWidgetItem(f"{member.case}\n{where}")
    if one.picture is not None:
        item.setIcon(QIcon(pixmap_of(one.picture)))
    item.setTextAlignment(Qt.AlignmentFlag.AlignHCenter if one.picture is not None else Qt.AlignmentFlag.AlignLeft)
    item.setToolTip(one.problem or f"{member.case}: {where} from its centre. Click to open.")
    item.setData(Qt.ItemDataRole.UserRole, member.case)
    return item


def pixmap_of(picture: Any) -> QPixmap:
    """A picture [h, w, 3] for Qt."""
    height, width = picture.shape[:2]
    image = QImage(np.ascontiguousarray(picture).data, width, height, 3 * width, QImage.Format.Format_RGB888)
    return QPixmap.fromImage(image.copy())
