"""Click a voxel and see what the model finds alike: in this scan, in another one, in another visit of the patient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from qtpy.QtCore import Qt, QTimer
from superqt import QLabeledDoubleRangeSlider

from napari_med3dssl import _work
from napari_med3dssl._layers import add, geometry_of, labels_layer
from napari_med3dssl._scans import is_scan
from napari_med3dssl._widgets import button, button_row, combo, wrapping
from napari_med3dssl.explore_maths import contrast_limits, on_scan, token_at, voxel_of
from napari_med3dssl.explore_pick import PickMode, Seeds, draw_seeds, raise_to_top
from napari_med3dssl.explore_pictures import PictureLayers
from napari_med3dssl.explore_sections import NEEDS_FEATURES, ExploreSection, body_check, describe, go_to, slider_of
from napari_med3dssl.explore_text import case_name
from napari_med3dssl.explore_visits import NO_DATASET, contrast_of, names_of, visit_beside, visit_layers
from training_backend.data.manifest import ClassEntry

if TYPE_CHECKING:
    from pathlib import Path

    from napari_med3dssl.explore import ExplorePanel, Features
    from napari_med3dssl.explore_rays import Voxel
    from training_backend.data.manifest import CaseRecord

SETTLE_MS = 120
"""Milliseconds after the last move of the threshold until the label follows."""
UNSEEN = "The model did not see this place of the scan."


class SimilaritySection(ExploreSection):
    """Click a voxel; a heat map shows what the model finds alike, in this scan or in another open one."""

    def __init__(self, panel: ExplorePanel) -> None:
        tip = "Click a place in the scan; the heat map shows where the model sees something alike."
        super().__init__(panel, "Similarity", tip, folded=False, needs=NEEDS_FEATURES)
        self._pick = PickMode(panel.viewer, self._update, self.leave, outside=panel.say_outside)
        self._maps = PictureLayers(panel.viewer)
        self._seeds_layer: Any = None
        self._labels: Any = None
        self._values: Any = None
        self._others: list[Any] = []
        self._features: WeakKeyDictionary[Any, Features] = WeakKeyDictionary()
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(SETTLE_MS)
        self._settle.timeout.connect(self._follow_threshold)
        self._build()
        self._refresh()

    def toggle(self) -> None:
        """Enter or leave the picking mode."""
        if self.body.isEnabled() or self.pick_button.isChecked():
            self.pick_button.setChecked(not self.pick_button.isChecked())
            self._toggled()

    def leave(self) -> None:
        """Leave the picking mode; clicks move the view again."""
        self.pick_button.setChecked(False)
        self._pick.leave()

    def clear(self) -> None:
        """Remove the seeds, and from the view what was made of them; labels stay."""
        self._pick.clear()
        self._remove_drawn()

    def undo(self) -> None:
        """Take the label that still follows the slider back, else the last change of the seeds."""
        if self._followed is not None:
            self.panel.viewer.layers.remove(self._labels)
            self._labels = None
            self._refresh()
        else:
            self._pick.undo()

    def forget(self) -> None:
        """Forget seeds and similarities, whose scan or model changed; what was drawn stays in the view."""
        self._pick.forget()
        self._features.clear()
        self._seeds_layer = self._values = self._labels = None
        self._refresh()

    def outdate(self, layer: Any) -> None:
        """Forget what was computed of a scan whose voxels changed; seeds stay, and are looked for again later."""
        self._features.pop(layer, None)
        if layer in (self.panel.scan, self.target):
            self._values = None
        self._refresh()

    def look_again(self) -> None:
        """Draw the map for the seeds there are, over the scan that is looked in now."""
        self._values = None
        if len(self._pick.seeds):
            self._update(self._pick.seeds)
        self._refresh()

    def offer(self, others: list[Any]) -> None:
        """The scans besides the present one that can be looked in."""
        chosen = self.target
        self._others = others
        self.where.blockSignals(True)
        self.where.clear()
        self.where.addItem("this scan")
        for layer in others:
            self.where.addItem(layer.name)
        if chosen in others:
            self.where.setCurrentIndex(1 + others.index(chosen))
        self.where.blockSignals(False)
        if self.target is not chosen:
            self.look_again()

    @property
    def target(self) -> Any | None:
        """The scan that the map lies over."""
        index = self.where.currentIndex() - 1
        return self._others[index] if 0 <= index < len(self._others) else self.panel.scan

    @property
    def looked_in(self) -> Features | None:
        """Tokens of that scan, once they are computed."""
        if self.target is self.panel.scan:
            return self.panel.features
        return self._features.get(self.target)

    def to_labels(self) -> None:
        """Labels on the own grid of the scan that is looked in, where the similarity exceeds the threshold."""
        drawn, scan = self._above(), self.target
        if drawn is None or scan is None:
            return
        if not drawn.any():
            self.panel.notice.say("info", "No voxel lies above the threshold; lower it.")
            return
        table = (ClassEntry(index=1, name="similar", colour="#009e73"),)
        made = labels_layer(drawn, geometry_of(scan), f"{scan.name} · similar", table, derived=True)
        self._labels = layer = add(self.panel.viewer, made)
        layer.events.paint.connect(lambda _: self._let_go(layer))
        self._raise_seeds()
        self._refresh()

    def open_visit(self, step: int) -> None:
        """Look in the next (or previous) visit of the patient in the scan that is looked in now."""
        folder, target = self.panel.state.dataset, self.target
        if folder is None or target is None:
            self.panel.notice.say("info", NO_DATASET)
            return
        self.panel.notice.say("busy", "Looking for the visit…")
        _work.start(
            self,
            visit_beside,
            folder,
            names_of(target),
            step,
            done=lambda case: self._open(folder, case),
            failed=lambda sentence: self.panel.notice.say("info", sentence),
        )

    def best_match(self) -> tuple[Voxel, float] | None:
        """Voxel of another scan that is most alike, and how much; None while the picked scan itself is looked in."""
        target, features = self.target, self.looked_in
        if self._values is None or target is None or features is None or target is self.panel.scan:
            return None
        shown = self._shown()
        token = np.unravel_index(int(np.argmax(shown)), shown.shape)
        z, y, x = voxel_of(token, features.geometry, geometry_of(target))
        return (z, y, x), float(shown.max())

    def go_to_match(self) -> None:
        """Show the other scan at its most similar voxel."""
        match = self.best_match()
        if match is not None:
            go_to(self.panel.viewer, self.target, match[0])

    def go_to_voxel(self) -> None:
        """Show the scan at the voxel that was picked last."""
        picked = [*self._pick.seeds.positive, *self._pick.seeds.negative]
        if picked and self.panel.scan is not None:
            go_to(self.panel.viewer, self.panel.scan, picked[-1])

    def _build(self) -> None:
        self.where = combo("Look in")
        self.where.setToolTip("Scan over which the map is drawn; the places to look for are picked in the scan above.")
        self.where.currentIndexChanged.connect(self._on_where)
        self.before_button = button("Previous visit", lambda: self.open_visit(-1), "Look in the visit before.")
        self.after_button = button("Next visit", lambda: self.open_visit(1), "Look in the next visit of this patient.")
        self.match_text = wrapping("")
        self.match_button = button("Go to match", self.go_to_match, "Show the other scan where it is most alike.")
        self.back_button = button("Go to voxel", self.go_to_voxel, "Show the picked voxel again.")
        tip = "Click in the scan: Shift adds, Ctrl excludes, Esc leaves (Alt+X)."
        self.pick_button = button("Pick voxel", self._toggled, tip)
        self.pick_button.setCheckable(True)
        self.undo_button = button("Undo", self.undo, "Take the last label, click or drag back.")
        self.clear_button = button("Clear", self.clear, "Remove the picked voxels.")
        self.seeds_text = wrapping("No voxel picked yet.")
        self.contrast = QLabeledDoubleRangeSlider(Qt.Orientation.Horizontal)
        self.contrast.setRange(0, 100)
        self.contrast.setValue((2, 98))
        self.contrast.setDecimals(0)
        tip = "Share of tokens, in per cent, below which the map is dark and above which it is bright."
        describe(self.contrast, "Contrast range", tip)
        self.contrast.valueChanged.connect(self._stretch)
        tip = "Where between the darkest and the brightest colour a voxel becomes part of the label, in per cent."
        self.threshold = slider_of("Threshold", 0, 100, 50, tip, decimals=0)
        self.threshold.valueChanged.connect(lambda _: self._settle.start())
        self.body_only = body_check("Leave air out of the map and of the label.")
        self.body_only.toggled.connect(self._draw)
        self.body_only.toggled.connect(lambda _: self._settle.start())
        tip = "Make a label of all voxels above the threshold; it follows the slider until you paint on it."
        self.labels_button = button("To labels", self.to_labels, tip)
        self.form.addRow("Look in", self.where)
        self.rows.addWidget(button_row(self.before_button, self.after_button))
        self.rows.addWidget(self.seeds_text)
        self.rows.addWidget(button_row(self.pick_button, self.undo_button, self.clear_button))
        self.rows.addWidget(self.match_text)
        self.match_row = button_row(self.match_button, self.back_button)
        self.rows.addWidget(self.match_row)
        form = self.add_form()
        form.addRow("Contrast %", self.contrast)
        form.addRow(self.body_only)
        form.addRow("Threshold %", self.threshold)
        form.addRow(button_row(self.labels_button))

    def _toggled(self) -> None:
        if self.pick_button.isChecked() and self.panel.scan is not None:
            self.panel.leave_picking()
            self.pick_button.setChecked(True)
            self._pick.enter(self.panel.scan)
            self.panel.check_unchanged()
        else:
            self.leave()

    def _update(self, seeds: Seeds) -> None:
        features, scan = self.panel.features, self.panel.scan
        if features is None or scan is None:
            return
        self._labels = None  # made of other seeds; it stays as it is
        if not len(seeds):
            self._remove_drawn()
            return
        grid = geometry_of(scan)
        tokens = [
            [token_at(voxel, grid, features.geometry) for voxel in kind] for kind in (seeds.positive, seeds.negative)
        ]
        positive, negative = ([token for token in kind if token is not None] for kind in tokens)
        self._seeds_layer = draw_seeds(self.panel.viewer, self._seeds_layer, seeds, scan)
        looked_in = self.looked_in
        if looked_in is not None and (positive or negative):
            self._values = looked_in.index.matches(features.index.query(positive, negative))
            self._draw()
            self._raise_seeds()
        self._refresh()
        if len(positive) + len(negative) < len(seeds):
            self.seeds_text.setText(f"{self.seeds_text.text()} {UNSEEN}")

    def compute_again(self) -> None:
        """Have the tokens of the scan that is looked in computed once more, after it changed."""
        self._on_where()

    def _on_where(self) -> None:
        """Have the tokens of the scan that is to be looked in computed, where they are not known yet."""
        target, scan = self.target, self.panel.scan
        if self.looked_in is not None or target is None or scan is None or self.panel.features is None:
            self.look_again()
            return

        def keep(features: Features) -> None:
            self._features[target] = features
            self.panel.notice.say("ok", f"Pick a voxel in {scan.name}; the map lies over {target.name}.")
            self.look_again()

        if not self.panel.compute_other(target, keep):
            self.where.setCurrentIndex(0)

    def _open(self, folder: Path, case: CaseRecord) -> None:
        """Look in a visit, which is read first where it is not open."""
        if self._look_in_case(case.id):
            return
        self.panel.notice.say("busy", f"Reading {case.id}…")

        def show(made: list[Any]) -> None:
            viewer, scan = self.panel.viewer, self.panel.scan
            for one in made:
                layer = add(viewer, one)
                if scan in viewer.layers:  # below what is drawn on the scan
                    viewer.layers.move(viewer.layers.index(layer), viewer.layers.index(scan) + 1)
            if scan in viewer.layers:
                viewer.layers.selection.active = scan
            self._look_in_case(case.id)

        _work.start(
            self,
            visit_layers,
            folder,
            case,
            done=show,
            failed=lambda sentence: self.panel.notice.say("error", sentence),
        )

    def _look_in_case(self, id: str) -> bool:
        """Look in the open scan of a case, of the contrast that is explored where it has several."""
        here = self.panel.scan
        opened = [layer for layer in (here, *self._others) if case_name(layer) == id and is_scan(layer)]
        if not opened:
            return False
        alike = [layer for layer in opened if contrast_of(layer) == contrast_of(here)]
        chosen = (alike or opened)[0]
        self.panel.notice.say("ok", f"Looking in {chosen.name}.")
        self.where.setCurrentIndex(0 if chosen is here else 1 + self._others.index(chosen))
        return True

    @property
    def _followed(self) -> Any | None:
        """The label that follows the slider."""
        return self._labels if self._labels is not None and self._labels in self.panel.viewer.layers else None

    def _let_go(self, layer: Any) -> None:
        """Follow the slider no more with a label that was painted on."""
        if layer is self._labels:
            self._labels = None
            self._refresh()

    def _follow_threshold(self) -> None:
        layer, drawn = self._followed, self._above()
        if layer is not None and drawn is not None and layer.data.shape == drawn.shape:
            layer.data = drawn

    def _above(self) -> Any:
        """[z, y, x] of the scan that is looked in: 1 where the similarity exceeds the threshold, or None."""
        features, scan = self.looked_in, self.target
        if self._values is None or features is None or scan is None:
            return None
        low, high = self._limits()
        similar = self._shown() >= low + (high - low) * self.threshold.value() / 100
        return on_scan(similar.astype(np.uint8), features.geometry, geometry_of(scan))

    def _raise_seeds(self) -> None:
        """What was picked is seen on what was made of it; the selection stays."""
        layers = self.panel.viewer.layers
        if self._seeds_layer is not None and self._seeds_layer in layers:
            active = layers.selection.active
            raise_to_top(self.panel.viewer, self._seeds_layer)
            layers.selection.active = active

    def _remove_drawn(self) -> None:
        for layer in (self._seeds_layer, self._maps["similarity"]):
            if layer is not None and layer in self.panel.viewer.layers:
                self.panel.viewer.layers.remove(layer)
        self._seeds_layer = self._values = None
        self._refresh()

    def _draw(self) -> None:
        """Show the map that `_update` made."""
        features = self.looked_in
        if features is not None and self._values is not None:
            picture = {"name": "similarity", "array": self._shown(), "geometry": features.geometry, "role": "heatmap"}
            self._maps.show([{**picture, "limits": self._limits()}])
            self._maps.to_front("similarity")

    def _shown(self) -> Any:
        """The similarities; where asked for, with air as dark as the darkest token of the body."""
        features = self.looked_in
        if features is None or not self.body_only.isChecked() or not features.body.any():
            return self._values
        return np.where(features.body, self._values, self._values[features.body].min())

    def _stretch(self) -> None:
        layer = self._maps["similarity"]
        if layer is not None and self._values is not None:
            layer.contrast_limits = self._limits()

    def _limits(self) -> tuple[float, float]:
        """Contrast limits of the heat map: percentiles of the tokens inside the body."""
        features = self.looked_in
        inside = self._values if features is None or not features.body.any() else self._values[features.body]
        return contrast_limits(inside, *self.contrast.value())

    def _refresh(self) -> None:
        seeds = self._pick.seeds
        alike, unlike = len(seeds.positive), len(seeds.negative)
        self.seeds_text.setText(f"Like {alike}, unlike {unlike} picked." if len(seeds) else "No voxel picked yet.")
        self.labels_button.setEnabled(self._values is not None)
        self.undo_button.setEnabled(self._pick.undoable or self._followed is not None)
        match, target = self.best_match(), self.target
        if match is not None and target is not None:
            z, y, x = match[0]
            self.match_text.setText(f"Most alike in {target.name}: voxel z, y, x = {z}, {y}, {x}, {match[1]:.2f}.")
        for widget in (self.match_text, self.match_row):
            widget.setVisible(match is not None)
        self.clear_button.setEnabled(bool(len(seeds)))
