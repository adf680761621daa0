"""The Explore panel: what a model sees in the scan on the screen.

Everything that needs torch is asked of the warm model process (`State.client`); the token maths is numpy and follows
the mouse. Layers lie on the scan in millimetres, token maps at the resolution of the tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from qtpy.QtGui import QHideEvent, QShowEvent
from qtpy.QtWidgets import QCheckBox, QFormLayout, QLabel, QProgressBar, QVBoxLayout, QWidget

from napari_med3dssl import _work
from napari_med3dssl._layers import facts_of, geometry_of, volume_of
from napari_med3dssl._state import State
from napari_med3dssl._widgets import Notice, Page, button, button_row, combo, wrapping
from napari_med3dssl.cohort_map import CohortSection
from napari_med3dssl.explore_beside import BesideSection
from napari_med3dssl.explore_cases import CasesSection
from napari_med3dssl.explore_compare import CompareSection
from napari_med3dssl.explore_export import ExportSection
from napari_med3dssl.explore_findings import FindingsSection
from napari_med3dssl.explore_geometry import GeometryQuestion
from napari_med3dssl.explore_learn import LearnSection
from napari_med3dssl.explore_maths import TokenIndex
from napari_med3dssl.explore_pictures import PictureLayers
from napari_med3dssl.explore_query import QuerySection
from napari_med3dssl.explore_retrieval import TASKS, RetrievalSection
from napari_med3dssl.explore_sections import AttentionSection, EmbeddingSection, MaskingSection
from napari_med3dssl.explore_similarity import SimilaritySection
from napari_med3dssl.explore_strokes import StrokesSection
from napari_med3dssl.explore_text import ReportBox, TextSection
from napari_med3dssl.explore_views import ViewSection
from napari_med3dssl.explore_watch import ScanWatch, fingerprint_of
from napari_med3dssl.predict_box import contrasts
from napari_med3dssl.weights_picker import WeightsPicker
from training_backend.config.registry import methods
from training_backend.data.volume import Geometry
from training_backend.errors import Med3dError
from training_backend.jobs.sources import ModelFacts, WeightsSource, model_facts, run_sources, views_of

if TYPE_CHECKING:
    from training_backend.jobs.client import ServeClient

EMPTY_SCAN = "Open a scan to begin: drop a file on the viewer, or File › Open Sample › Med3D SSL."
ASKED_FROM = 0.5
"""Share of the free memory from which on it is asked before features are computed."""
FULL = 0.9
"""Share of the free memory from which on they are not computed."""
EMPTY_MODEL = "Choose a model: a run that has finished, a weights file, or published weights."

SECTIONS: dict[str, type[ViewSection]] = {"report": TextSection, "query": QuerySection, "findings": FindingsSection}
"""Sections of views by what they read."""


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


@dataclass(frozen=True)
class Asked:
    """What was asked of the model process last: operation, model, parameters, and the layers of the scans."""

    op: str
    source: str
    params: dict[str, Any]
    scan: Any
    other: Any


class ExplorePanel(QWidget):
    """Features, similarity, embedding map, reconstruction, attention and the views of a method, of one scan.

    Args:
        state: what the panels of the viewer share.
    """

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state
        self.features: Features | None = None
        self.views: list[ViewSection] = []
        self.asked: Asked | None = None
        self._facts: ModelFacts | None = None
        self._maps: dict[str, PictureLayers] = {}
        self._job: _work.Job | None = None
        self._scans: list[Any] = []
        self._watch = ScanWatch(self)
        self._watch.changed.connect(self._on_scan_changed)
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
            "Alt-G": self.toggle_grid,
        }
        self.toggles_grid: Callable[[], None] = self.masking.toggle_grid
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
    def others(self) -> list[Any]:
        """The other open scans."""
        return [layer for layer in self._scans if layer is not self.scan]

    @property
    def busy(self) -> bool:
        """Whether the model process works for this panel."""
        return self._job is not None

    def ask(
        self,
        op: str,
        then: Callable[[dict[str, Any]], None],
        doing: str,
        partial: Callable[[dict[str, Any]], None] | None = None,
        stopped: str = "Cancelled; nothing was changed.",
        scan: Any = None,
        other: Any = None,
        scanless: bool = False,
        **params: Any,
    ) -> bool:
        """Send a request for the present scan and model, show how it goes, and hand its values to `then`.

        Args:
            op: of the model process.
            then: gets the values.
            doing: what is said meanwhile.
            partial: gets states of the values to come; of those that come too fast to be drawn, only the newest.
            stopped: what is said after a cancel.
            scan: layer of another scan than the present one.
            other: layer of a scan that is looked at too.
            scanless: whether no scan is looked at.
            params: of the operation.

        Returns:
            Whether it was sent.
        """
        if self.busy or not self._ready(scanless):
            return False
        try:
            if not scanless:
                params["volumes"] = [volume_of(layer) for layer in contrasts(self.viewer, scan or self.scan)]
            if other is not None:
                params["other"] = [volume_of(layer) for layer in contrasts(self.viewer, other)]
        except Med3dError as error:
            self.notice.say("error", str(error))
            return False
        self.asked = Asked(op, self.state.model, {**params}, None if scanless else scan or self.scan, other)
        if partial is not None:
            params["partial"] = _work.Latest(self, partial).put
        client, source = self.state.client, self.state.model
        self.notice.say("busy", doing)
        self._job = _work.start(
            self,
            lambda progress: _prepared(client, op, source=source, progress=progress, **params),
            done=lambda values: self._finish(then, values),
            failed=lambda sentence: self._give_up("error", sentence),
            cancelled=lambda: self._give_up("info", stopped),
            progressed=self._show_progress,
            ended=self._on_ended,
        )
        self._refresh()
        return True

    def compute_other(self, scan: Any, then: Callable[[Features], None]) -> bool:
        """Have the tokens of another scan computed, to look in it for what was picked in the present one."""
        return self._estimated(scan, lambda values: then(self._watched(scan, values)))

    def compute_features(self) -> None:
        """Have the tokens of the present scan computed (or read from the cache)."""
        scan = self.scan
        self._estimated(scan, lambda values: self._keep_features(scan, values))

    def check_unchanged(self) -> None:
        """Look whether the voxels are still those that features were computed of; it is said where they are not."""
        for layer in {self.scan, self.similarity.target} - {None}:
            self._watch.check(layer)

    def say_outside(self) -> None:
        """Say that a click was beside the scan."""
        if self.scan is not None:
            self.notice.say("info", f"This place lies outside {self.scan.name}, and nothing was picked; click inside.")

    @property
    def level(self) -> int:
        """Map of the encoder whose features are computed, 1 the finest; 0 for its tokens."""
        return max(0, self.scale_box.currentIndex())

    def cancel(self) -> None:
        """Stop what the model process does."""
        if self._job is not None:
            self.notice.say("busy", "Stopping…")
            self._job.stop()  # for a request that is still to be sent
            self.state.client.cancel()

    def load(self) -> None:
        """Have the model loaded, which tells what it can show."""
        self.ask("load", lambda _: None, "Loading the model…")

    def leave_picking(self) -> None:
        """Let clicks move the view again, whichever section took them."""
        for section in (self.similarity, *self.views):
            section.leave()

    def toggle_grid(self) -> None:
        """Switch between the pictures that were drawn last, side by side, and the scan."""
        self.toggles_grid()

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
        self.leave_picking()

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
        self.scale_box = combo("Scale")
        self.scale_box.setToolTip("Size of the places whose features are computed; fine ones need much memory.")
        self.scale_box.currentIndexChanged.connect(self._forget_features)
        self.scale_label = QLabel("Scale")
        form.addRow(self.scale_label, self.scale_box)
        self.normalised = QCheckBox("Normalised features")
        self.normalised.setChecked(True)
        self.normalised.setToolTip("Off takes the tokens as the last block leaves them, without the final norm.")
        self.normalised.toggled.connect(self._forget_features)
        form.addRow(self.normalised)
        self.compute_button = button(
            "Compute features", self.compute_features, "Let the model look at every patch of the scan; needed once."
        )
        self.load_button = button("Load model", self.load, "See what this model can show besides features.")
        self.cancel_button = button("Cancel", self.cancel, "Stop what the model process does now.")
        self.progress = QProgressBar()
        self.progress.setAccessibleName("Progress of the model process")
        self.notice, self.warning = Notice(), Notice()
        self.where_asked = GeometryQuestion(self._on_geometry)
        self.summary, self.estimate = wrapping(""), wrapping("")
        self.estimate.hide()
        self.similarity = SimilaritySection(self)
        self.strokes = StrokesSection(self)
        self.comparison = CompareSection(self)
        self.learning = LearnSection(self)
        self.embedding = EmbeddingSection(self)
        self.masking = MaskingSection(self)
        self.attention = AttentionSection(self)
        self.beside = BesideSection(self)
        self.export = ExportSection(self)
        self.cohort = CohortSection(self)
        page = Page()
        page.column.addLayout(form)
        page.column.addWidget(button_row(self.compute_button, self.load_button, self.cancel_button))
        for widget in (self.where_asked, self.progress, self.notice, self.warning, self.summary, self.estimate):
            page.column.addWidget(widget)
        first = (self.similarity, self.strokes, self.comparison, self.learning)
        for section in (*first, self.embedding, self.masking, self.attention):
            page.column.addWidget(section)
        self.retrieval = RetrievalSection(self)
        self.retrieval.hide()
        page.column.addWidget(self.retrieval)
        self.report = ReportBox(self)
        self.report.hide()
        page.column.addWidget(self.report)
        self._column = QVBoxLayout()
        page.column.addLayout(self._column)
        for section in (self.beside, self.cohort, self.export):
            page.column.addWidget(section)
        page.column.addStretch(1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(page)

    def _estimated(self, scan: Any | None, then: Callable[[dict[str, Any]], None]) -> bool:
        """Have the features of a scan computed, after it was told what they take, and asked where that is much."""
        if not self._ready() or scan is None:
            return False
        try:
            grid = geometry_of(scan)
            contrasts_read = len(contrasts(self.viewer, scan))
        except Med3dError as error:
            self.notice.say("error", str(error))
            return False
        how: dict[str, Any] = {"level": self.level, "normalised": self.normalised.isChecked()}
        doing = "Computing features…" if scan is self.scan else f"Computing features of {scan.name}…"

        def compute() -> None:
            self.ask("features", then, doing, scan=scan, **how)

        def told(values: dict[str, Any]) -> None:
            share = values["bytes"] / max(values["free"], 1)
            self.estimate.setText(values["sentence"])
            self.estimate.show()
            if share > FULL:
                advice = "Crop or downsample the scan, choose a coarser scale, or a model with larger patches."
                self.notice.say("error", f"The features of this scan do not fit. {values['sentence']} {advice}")
            elif share > ASKED_FROM:
                said = f"The features of this scan take much of the memory. {values['sentence']}"
                self.notice.say("warning", said, [("Compute", compute), ("Leave it", self.notice.clear)])
            else:
                compute()

        asked: dict[str, Any] = {"geometry": grid, "contrasts": contrasts_read, "level": self.level}
        return self.ask("features_need", told, "Looking what the features take…", scanless=True, **asked)

    def _watched(self, scan: Any, values: dict[str, Any]) -> Features:
        """Features of a scan, which is watched from then on."""
        self._watch.watch(scan, values["fingerprint"])
        return _features(values)

    def _on_scan_changed(self, layer: Any) -> None:
        """Forget what was computed of a scan whose voxels changed, and offer to compute it again."""
        self.similarity.outdate(layer)
        said = f"{layer.name} was changed after its features were computed, so they do not belong to it any more."
        if layer is not self.scan:
            self.notice.say("warning", said, [("Compute again", self.similarity.compute_again)])
            return
        self.features = None
        self.leave_picking()
        self.strokes.forget()
        self.notice.say("warning", said, [("Compute again", self.compute_features)])
        self._refresh()

    def _on_geometry(self) -> None:
        """Begin anew with a scan that has another place or size than was thought."""
        self._refresh_scans()
        self._forget_features()

    def _on_ended(self) -> None:
        self._job = None
        for section in self.views:
            section.drawing = False
        self._refresh()

    def _finish(self, then: Callable[[dict[str, Any]], None], values: dict[str, Any]) -> None:
        self.notice.clear()
        self.summary.setText(str(values.get("summary", "")))
        self._offer_views(ModelFacts(values["method"], values["kind"], values["task"]))
        if values.get("warning"):
            self.warning.say("warning", values["warning"])
        elif "warning" in values:
            self.warning.clear()
        try:
            then(values)
        except Med3dError as error:
            self.notice.say("error", str(error))
        self._go_on()

    def _give_up(self, kind: str, sentence: str) -> None:
        self.notice.say(kind, sentence)
        self._go_on()

    def _go_on(self) -> None:
        """Draw what was asked for while the model process was at work."""
        for section in self.views:
            if section.wanted:
                section.draw()

    def _offer_views(self, facts: ModelFacts | None) -> None:
        """Sections for what a model can show; those of the last model stay when it can show the same."""
        if facts == self._facts:
            return
        self._facts = facts
        for section in self.views:
            section.leave()
            section.setParent(None)
            section.deleteLater()
        method = methods().get(facts.method) if facts else None
        suitable = views_of(facts)
        for view in suitable:
            self._maps.setdefault(view.name, PictureLayers(self.viewer, f" · {view.name}", grid=()))
        kinds = [CasesSection if view.cases else SECTIONS.get(view.text, ViewSection) for view in suitable]
        self.views = [kind(self, view, self._maps[view.name]) for kind, view in zip(kinds, suitable, strict=True)]
        self.report.setVisible(any(view.text == "report" for view in suitable))
        for section in self.views:
            section.offer(self.others)
            self._column.addWidget(section)
        self.retrieval.setVisible(facts is not None and facts.task in TASKS)
        self.retrieval.forget()
        self._offer_scales(() if method is None else method.scales)
        reads = method is not None and method.needs == "text"  # and draws nothing without a report
        self.masking.setVisible(method is None or ("mask_ratio" in method.config.model_fields and not reads))
        self._refresh()

    def _offer_scales(self, scales: tuple[int, ...]) -> None:
        """Tokens, and the maps that the encoders of a method have; nothing to choose for those of one scale."""
        sizes = ["every voxel" if size == 1 else f"{size} voxels" for size in scales]
        names = ["tokens", *(f"map {number}: {size}" for number, size in enumerate(sizes, 1))]
        if [self.scale_box.itemText(k) for k in range(self.scale_box.count())] != names:
            self.scale_box.blockSignals(True)
            self.scale_box.clear()
            self.scale_box.addItems(names)
            self.scale_box.blockSignals(False)
            self._forget_features()
        for widget in (self.scale_box, self.scale_label):
            widget.setVisible(bool(scales))

    def _keep_features(self, scan: Any, values: dict[str, Any]) -> None:
        if scan is not self.scan or self.asked is None or self.asked.source != self.state.model:
            self.notice.say("info", "Another scan or model was chosen meanwhile; the features were kept on disk.")
            return
        self.features = self._watched(scan, values)
        d, h, w, width = self.features.tokens.shape
        how = "read from the cache" if values["cached"] else "computed"
        places = "places" if self.level else "tokens"
        self.notice.say("ok", f"Features {how}: {d} × {h} × {w} {places} of {width} numbers.")
        self._refresh()
        self.similarity.look_again()

    def _show_progress(self, share: float, text: str) -> None:
        self.progress.setValue(round(100 * share))
        if text:
            self.notice.say("busy", f"{text}…")

    def _ready(self, scanless: bool = False) -> bool:
        missing = EMPTY_SCAN if self.scan is None and not scanless else EMPTY_MODEL if not self.state.model else ""
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
        else:
            self.where_asked.ask(self.scan, self.others)
        for section in (self.comparison, self.beside, self.export):
            section.offer()
        self._offer_others()
        self._refresh()

    def _offer_others(self) -> None:
        for section in (self.similarity, *self.views):
            section.offer(self.others)

    def _take_first(self, found: list[WeightsSource]) -> None:
        if not self.state.model and found:
            self.state.model = found[0].source

    def _on_model_chosen(self) -> None:
        self.state.model = self.model.source

    def _on_model_changed(self, source: str) -> None:
        if self.model.source != source:
            self.model.choose(source)
        self.summary.setText("")
        self._offer_views(model_facts(source))
        self._forget_features()

    def _forget_features(self) -> None:
        self.features = None
        self._watch.forget()
        self.estimate.hide()
        self.warning.clear()
        self.where_asked.ask(self.scan, self.others)
        self.leave_picking()
        self.similarity.forget()
        self.strokes.forget()
        self.report.show_scan(self.scan)
        for section in self.views:
            section.forget()
        self._offer_others()
        self._refresh()

    def _refresh(self) -> None:
        """Show only what can be done now."""
        ready = self.scan is not None and bool(self.state.model)
        self.compute_button.setEnabled(ready and not self.busy)
        self.load_button.setVisible(ready and self._facts is None)
        self.load_button.setEnabled(not self.busy)
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
        for section in (self.strokes, self.masking, self.attention):
            section.allow(ready and not self.busy)
        for section in (self.retrieval, *self.views):
            section.allow(ready)

    def _disconnect(self, state: State) -> None:
        try:
            viewer = state.viewer
        except RuntimeError:  # closed with the panel
            return
        viewer.layers.events.inserted.disconnect(self._refresh_scans)
        viewer.layers.events.removed.disconnect(self._refresh_scans)
        for key in self._bound:
            viewer.bind_key(key, None)


def _features(values: dict[str, Any]) -> Features:
    return Features(values["tokens"], values["geometry"], values["body"], values["index"])


def _prepared(client: ServeClient, op: str, **params: Any) -> dict[str, Any]:
    """Values of an answer, with what takes its time done while still in the worker thread.

    Features come with an index for similarity, and with the fingerprint that the scan had when it was sent.
    """
    fingerprint = fingerprint_of(params["volumes"][0].array) if op == "features" else ""
    values: dict[str, Any] = client.request(op, **params)
    if "tokens" in values:
        values |= {"index": TokenIndex(values["tokens"]), "fingerprint": fingerprint}
    return values


def _is_scan(layer: Any) -> bool:
    """Whether a layer is a 3D image that can be explored: no colours, and none of our own maps."""
    if type(layer).__name__ != "Image" or layer.rgb or layer.ndim != 3 or layer.multiscale:
        return False
    facts = facts_of(layer)
    return facts is None or (facts.get("role") == "image" and not facts.get("derived"))


def _without_viewer(function: Callable[[], None]) -> Callable[[Any], None]:
    return lambda _viewer: function()
