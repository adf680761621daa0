"""Choose what a run starts from: random weights, an earlier run, a file, or published weights after their licence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFileDialog, QMessageBox, QProgressBar, QVBoxLayout, QWidget

from napari_med3dssl import _work
from napari_med3dssl._state import State
from napari_med3dssl._widgets import Notice, button, combo
from training_backend.jobs.sources import WeightsSource, download, earlier_sources, run_sources, zoo_sources

FILES = "Weights (*.safetensors *.pt *.pth *.ckpt);;All files (*)"
BROWSE = "browse"


class WeightsPicker(QWidget):
    """A list of weights; `source` is what a configuration names.

    Args:
        state: what the panels of the viewer share.
        kind: list runs of this kind.
        name: what a screen reader says.
        nothing: text of the entry without weights.
        find: lists other weights than the runs of that kind and all published ones.
    """

    changed = Signal()

    def __init__(
        self, state: State, kind: str, name: str, nothing: str, find: Callable[[], list[WeightsSource]] | None = None
    ) -> None:
        super().__init__()
        self._kind, self._nothing, self._other = kind, nothing, find
        self._known: dict[str, WeightsSource] = {}
        self.source = ""
        self.box = combo(name)
        self.box.activated.connect(self._on_choice)
        self.notice = Notice()
        self.bar = QProgressBar()
        self.bar.hide()
        self.cancel = button("Cancel", self._cancel)
        self.cancel.hide()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (self.box, self.notice, self.bar, self.cancel):
            column.addWidget(widget)
        self.setFocusProxy(self.box)
        state.follow(self, state.runs_changed, self.refresh)
        self._job: _work.Job | None = None
        self._fill([])
        self.refresh()

    def refresh(self) -> None:
        """Look for runs and published weights again."""
        _work.start(self, self._find, done=self._fill, failed=lambda text: self.notice.say("error", text))

    def choose(self, source: str) -> None:
        """Choose weights by what a configuration names."""
        self.source = source
        if source and self.box.findData(source) < 0:
            self.box.insertItem(self.box.count() - 1, Path(source).name, source)
        self.box.setCurrentIndex(max(0, self.box.findData(source)))
        self.box.setToolTip(source)
        self.notice.clear()
        self.changed.emit()

    def name_nothing(self, text: str) -> None:
        """Change the text of the entry without weights."""
        self._nothing = text
        self.box.setItemText(0, text)

    def _find(self) -> list[WeightsSource]:
        if self._other is not None:
            return self._other()
        return [*run_sources(self._kind), *(() if self._kind else earlier_sources()), *zoo_sources()]

    def _fill(self, found: list[WeightsSource]) -> None:
        self._known = {each.source: each for each in found}
        self.box.blockSignals(True)
        self.box.clear()
        self.box.addItem(self._nothing, "")
        for each in found:
            self.box.addItem(each.title if each.local else f"{each.title} (download)", each.source)
            self.box.setItemData(self.box.count() - 1, each.detail, 3)  # 3 is the tooltip's role
        if self.source and self.source not in self._known:
            self.box.addItem(Path(self.source).name, self.source)
        self.box.addItem("File…", BROWSE)
        self.box.setCurrentIndex(max(0, self.box.findData(self.source)))
        self.box.blockSignals(False)

    def _on_choice(self, index: int) -> None:
        source = str(self.box.itemData(index) or "")
        if source == BROWSE:
            source, _ = QFileDialog.getOpenFileName(self, "Weights", str(Path.home()), FILES)
            self.choose(source or self.source)
            return
        known = self._known.get(source)
        if known is None or known.local:
            self.choose(source)
        elif known.downloadable:
            self._offer(known)
        else:
            text = f"{known.detail} Fetch the file in a browser from {known.page}, then choose File…"
            self.notice.say("info", text)
            self.box.setCurrentIndex(max(0, self.box.findData(self.source)))

    def _offer(self, chosen: WeightsSource) -> None:
        """Show the licence, and download after it was accepted."""
        text = f"{chosen.detail}\n\nPublished at {chosen.page}.\n\nAccept the licence and download?"
        answer = QMessageBox.question(self, chosen.title, text)
        if answer != QMessageBox.StandardButton.Yes:
            self.box.setCurrentIndex(max(0, self.box.findData(self.source)))
            return
        self.bar.show()
        self.cancel.show()
        self._job = _work.start(
            self,
            lambda progress: download(chosen.source, lambda share: progress(share)),
            done=lambda _: self._downloaded(chosen.source),
            failed=lambda sentence: self.notice.say("error", sentence),
            cancelled=lambda: self.notice.say("info", "Cancelled; the download goes on from here next time."),
            progressed=lambda share, _: self.bar.setValue(round(100 * share)),
            ended=self._idle,
        )

    def _downloaded(self, source: str) -> None:
        self.refresh()
        self.choose(source)

    def _idle(self) -> None:
        self.bar.hide()
        self.cancel.hide()

    def _cancel(self) -> None:
        if self._job is not None:
            self._job.stop()
