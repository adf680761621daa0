"""The Explore panel: what a model sees in the scan on the screen.

Everything that needs torch is asked of the warm model process (`State.client`); the token maths is numpy and follows
the mouse. Layers lie on the scan in millimetres, token maps at the resolution of the tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from qtpy.QtGui import QHideEvent, QShowEvent
from qtpy.QtWidgets import QFormLayout, QProgressBar, QVBoxLayout, QWidget

from napari_med3dssl import _work
from napari_med3dssl._layers import facts_of, volume_of
from napari_med3dssl._state import State
from napari_med3dssl._widgets import Notice, Page, button, button_row, combo, wrapping
from napari_med3dssl.explore_maths import TokenIndex
from napari_med3dssl.explore_sections import AttentionSection, EmbeddingSection, MaskingSection, SimilaritySection
from napari_med3dssl.predict_box import contrasts
from napari_med3dssl.weights_picker import WeightsPicker
from training_backend.data.volume import Geometry
from training_backend.errors import Med3dError
from training_backend.jobs.sources import WeightsSource, run_sources

EMPTY_SCAN = "Open a scan to begin: drop a file on the viewer, or File › Open Sample › Med3D SSL."
EMPTY_MODEL = "Choose a model: a run that has finished, a weights file, or published weights."


@dataclass(frozen=True)
class Features:
    """Tokens of one scan under one model.

    Attributes:
        tokens: [d, h, w, E] float16.
        geometry: grid whose voxels are the tokens.
        body: [d, h, w], tokens inside the patient.
        index: ready for similarity queries.
    """

    tokens: npt.NDArray[np.float16]
    geometry: Geometry
    body: npt.NDArray[np.bool_]
    index: TokenIndex


class ExplorePanel(QWidget):
    """Features, similarity, embedding map, masked reconstruction and class attention of one scan.

    Args:
        state: what the panels of the viewer share.
    """

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state
        self.features: Features | None = None
        self._job: _work.Job | None = None
        self._scans: list[Any] = []
        self._build()
        state.follow(self, state.model_changed, self._on_model_changed)
        state.follow(self, state.runs_changed, self.suggest_model)
        for event in (self.viewer.layers.events.inserted, self.viewer.layers.events.removed):
            event.connect(self._refresh_scans)
        self.destroyed.connect(lambda: self._disconnect(state))
        self._bound: list[str] = []
        self._keys = {
            "Alt-X": self.similarity.toggle,
            "Alt-M": self.masking.new_mask,
            "Alt-G": self.masking.toggle_grid,
        }
        self._refresh_scans()
        self.suggest_model()

    @property
    def viewer(self) -> Any:
        """The viewer of this panel."""
        return self.state.viewer

    @property
    def scan(self) -> Any | None:
        """The layer that is explored, or None."""
        index = self.scan_box.currentIndex()
        return self._scans[index] if 0 <= index < len(self._scans) else None

    @property
    def busy(self) -> bool:
        """Whether the model process works for this panel."""
        return self._job is not None

    def ask(self, op: str, then: Callable[[dict[str, Any]], None], doing: str, **params: Any) -> None:
        """Send a request for the present scan and model, show how it goes, and hand its values to `then`."""
        if self.busy or not self._ready():
            return
        try:
            params["volumes"] = [volume_of(layer) for layer in contrasts(self.viewer, self.scan)]
        except Med3dError as error:
            self.notice.say("error", str(error))
            return
        client, source = self.state.client, self.state.model
        self.notice.say("busy", doing)
        self._job = _work.start(
            self,
            lambda progress: _prepared(client.request(op, source=source, progress=progress, **params)),
            done=lambda values: self._finish(then, values),
            failed=lambda sentence: self.notice.say("error", sentence),
            cancelled=lambda: self.notice.say("info", "Cancelled; nothing was changed."),
            progressed=self._show_progress,
            ended=self._on_ended,
        )
        self._refresh()

    def compute_features(self) -> None:
        """Have the tokens of the present scan computed (or read from the cache)."""
        self.ask("features", self._keep_features, "Computing features…")

    def cancel(self) -> None:
        """Stop what the model process does."""
        if self._job is not None:
            self.notice.say("busy", "Stopping…")
            self._job.stop()  # for a request that is still to be sent
            self.state.client.cancel()

    def suggest_model(self) -> None:
        """Use the newest run that has a model, as long as nothing else was chosen."""
        _work.start(self, run_sources, done=self._take_first, failed=lambda text: self.notice.say("error", text))

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802
        """Claim the keys of this panel, where nothing else has them."""
        super().showEvent(event)
        for key, function in self._keys.items():
            try:
                self.viewer.bind_key(key, _without_viewer(function))
            except ValueError:  # ours already, or somebody else's; the buttons stay
                continue
            self._bound.append(key)

    def hideEvent(self, event: QHideEvent) -> None:  # noqa: N802
        """Leave the picking mode with the panel."""
        super().hideEvent(event)
        self.similarity.leave()

    def _build(self) -> None:
        self.scan_box = combo("Scan")
        self.scan_box.currentIndexChanged.connect(self._forget_features)
        self.model = WeightsPicker(self.state, "", "Model", "choose a model")
        self.model.choose(self.state.model)
        self.model.changed.connect(self._on_model_chosen)
        form = QFormLayout()
        form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Scan", self.scan_box)
        form.addRow("Model", self.model)
        self.compute_button = button(
            "Compute features", self.compute_features, "Let the model look at every patch of the scan; needed once."
        )
        self.cancel_button = button("Cancel", self.cancel, "Stop what the model process does now.")
        self.progress = QProgressBar()
        self.progress.setAccessibleName("Progress of the model process")
        self.notice = Notice()
        self.summary = wrapping("")
        self.similarity = SimilaritySection(self)
        self.embedding = EmbeddingSection(self)
        self.masking = MaskingSection(self)
        self.attention = AttentionSection(self)
        page = Page()
        page.column.addLayout(form)
        page.column.addWidget(button_row(self.compute_button, self.cancel_button))
        for widget in (self.progress, self.notice, self.summary):
            page.column.addWidget(widget)
        for section in (self.similarity, self.embedding, self.masking, self.attention):
            page.column.addWidget(section)
        page.column.addStretch(1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(page)

    def _on_ended(self) -> None:
        self._job = None
        self._refresh()

    def _finish(self, then: Callable[[dict[str, Any]], None], values: dict[str, Any]) -> None:
        self.notice.clear()
        self.summary.setText(str(values.get("summary", "")))
        try:
            then(values)
        except Med3dError as error:
            self.notice.say("error", str(error))

    def _keep_features(self, values: dict[str, Any]) -> None:
        self.features = Features(values["tokens"], values["geometry"], values["body"], values["index"])
        d, h, w, width = self.features.tokens.shape
        how = "read from the cache" if values["cached"] else "computed"
        self.notice.say("ok", f"Features {how}: {d} × {h} × {w} tokens of {width} numbers.")
        self._refresh()

    def _show_progress(self, share: float, text: str) -> None:
        self.progress.setValue(round(100 * share))
        if text:
            self.notice.say("busy", f"{text}…")

    def _ready(self) -> bool:
        missing = EMPTY_SCAN if self.scan is None else EMPTY_MODEL if not self.state.model else ""
        if missing:
            self.notice.say("info", missing)
        return not missing

    def _refresh_scans(self) -> None:
        chosen = self.scan
        self._scans = [layer for layer in self.viewer.layers if _is_scan(layer)]
        self.scan_box.blockSignals(True)
        self.scan_box.clear()
        for layer in self._scans:
            self.scan_box.addItem(layer.name if facts_of(layer) else f"{layer.name} (geometry from the layer)")
        if chosen in self._scans:
            self.scan_box.setCurrentIndex(self._scans.index(chosen))
        self.scan_box.blockSignals(False)
        if self.scan is not chosen:
            self._forget_features()
        self._refresh()

    def _take_first(self, found: list[WeightsSource]) -> None:
        if not self.state.model and found:
            self.state.model = found[0].source

    def _on_model_chosen(self) -> None:
        self.state.model = self.model.source

    def _on_model_changed(self, source: str) -> None:
        if self.model.source != source:
            self.model.choose(source)
        self.summary.setText("")
        self._forget_features()

    def _forget_features(self) -> None:
        self.features = None
        self.similarity.leave()
        self.similarity.forget()
        self._refresh()

    def _refresh(self) -> None:
        """Show only what can be done now."""
        ready = self.scan is not None and bool(self.state.model)
        self.compute_button.setEnabled(ready and not self.busy)
        self.cancel_button.setVisible(self.busy)
        self.progress.setVisible(self.busy)
        if not self.busy:
            self.progress.setValue(0)
        if not ready and not self.busy:
            self.notice.say("info", EMPTY_SCAN if self.scan is None else EMPTY_MODEL)
        elif self.notice.text in (EMPTY_SCAN, EMPTY_MODEL):
            self.notice.clear()
        for section in (self.similarity, self.embedding):
            section.allow(self.features is not None and not self.busy)
        for section in (self.masking, self.attention):
            section.allow(ready and not self.busy)

    def _disconnect(self, state: State) -> None:
        try:
            viewer = state.viewer
        except RuntimeError:  # closed with the panel
            return
        viewer.layers.events.inserted.disconnect(self._refresh_scans)
        viewer.layers.events.removed.disconnect(self._refresh_scans)
        for key in self._bound:
            viewer.bind_key(key, None)


def _prepared(values: dict[str, Any]) -> dict[str, Any]:
    """Values of an answer, with the similarity index built while still in the worker thread."""
    if "tokens" in values:
        values["index"] = TokenIndex(values["tokens"])
    return values


def _is_scan(layer: Any) -> bool:
    """Whether a layer is a 3D image that can be explored: no colours, and none of our own maps."""
    if type(layer).__name__ != "Image" or layer.rgb or layer.ndim != 3 or layer.multiscale:
        return False
    facts = facts_of(layer)
    return facts is None or (facts.get("role") == "image" and not facts.get("derived"))


def _without_viewer(function: Callable[[], None]) -> Callable[[Any], None]:
    return lambda _viewer: function()
