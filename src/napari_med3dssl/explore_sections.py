"""The sections of the Explore panel, each one question to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox, QFormLayout, QSpinBox, QWidget
from superqt import QLabeledDoubleRangeSlider, QLabeledDoubleSlider

from napari_med3dssl import _compat, _work
from napari_med3dssl._layers import add, geometry_of, labels_layer
from napari_med3dssl._widgets import Section, button, button_row, combo, wrapping
from napari_med3dssl.explore_maths import PcaMap, contrast_limits, on_scan, pca_rgb, token_at, voxel_of
from napari_med3dssl.explore_pick import PickMode, Seeds, Voxel, draw_seeds
from napari_med3dssl.explore_pictures import PictureLayers
from training_backend.data.manifest import ClassEntry

if TYPE_CHECKING:
    from napari_med3dssl.explore import ExplorePanel, Features

NEEDS_FEATURES = "Compute features first."


class ExploreSection(Section):
    """A foldable section whose controls are greyed, with the reason, while they cannot do anything."""

    def __init__(self, panel: ExplorePanel, title: str, tip: str, *, folded: bool, needs: str) -> None:
        super().__init__(title, folded=folded, tip=tip)
        self.panel = panel
        self._why = wrapping(needs)
        self.body = QWidget()
        self.form = QFormLayout(self.body)
        self.form.setContentsMargins(0, 4, 0, 0)
        self.form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
        self.form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self.column.addWidget(self._why)
        self.column.addWidget(self.body)

    def allow(self, possible: bool) -> None:
        """Enable the controls, or say what is missing."""
        self.body.setEnabled(possible)
        self._why.setVisible(not possible and not self.panel.busy)


class SimilaritySection(ExploreSection):
    """Click a voxel; a heat map shows what the model finds alike, in this scan or in another open one."""

    def __init__(self, panel: ExplorePanel) -> None:
        tip = "Click a place in the scan; the heat map shows where the model sees something alike."
        super().__init__(panel, "Similarity", tip, folded=False, needs=NEEDS_FEATURES)
        self._pick = PickMode(panel.viewer, self._update, self.leave)
        self._maps = PictureLayers(panel.viewer)
        self._seeds_layer: Any = None
        self._values: Any = None
        self._others: list[Any] = []
        self._features: WeakKeyDictionary[Any, Features] = WeakKeyDictionary()
        self.where = combo("Look in")
        self.where.setToolTip("Scan over which the map is drawn; the places to look for are picked in the scan above.")
        self.where.currentIndexChanged.connect(self._on_where)
        self.match_text = wrapping("")
        self.match_button = button("Go to match", self.go_to_match, "Show the other scan where it is most alike.")
        self.back_button = button("Go to voxel", self.go_to_voxel, "Show the picked voxel again.")
        self.pick_button = button(
            "Pick voxel", self._toggled, "Click in the scan: Shift adds, Ctrl excludes, Esc leaves (Alt+X)."
        )
        self.pick_button.setCheckable(True)
        self.clear_button = button("Clear", self.clear, "Forget the picked voxels.")
        self.seeds_text = wrapping("No voxel picked yet.")
        self.contrast = QLabeledDoubleRangeSlider(Qt.Orientation.Horizontal)
        self.contrast.setRange(0, 100)
        self.contrast.setValue((2, 98))
        self.contrast.setDecimals(0)
        _name(
            self.contrast,
            "Contrast range",
            "Share of tokens, in per cent, below which the map is dark and above which it is bright.",
        )
        self.contrast.valueChanged.connect(self._stretch)
        tip = "Where between the darkest and the brightest colour a voxel becomes part of the label, in per cent."
        self.threshold = _slider("Threshold", 0, 100, 50, tip, decimals=0)
        self.body_only = _body_only("Leave air out of the map and of the label.")
        self.body_only.toggled.connect(self._draw)
        self.labels_button = button(
            "To labels", self.to_labels, "Make a labels layer of all voxels above the threshold."
        )
        self.form.addRow("Look in", self.where)
        self.form.addRow(self.seeds_text)
        self.form.addRow(button_row(self.pick_button, self.clear_button))
        self.form.addRow(self.match_text)
        self.form.addRow(button_row(self.match_button, self.back_button))
        self.form.addRow("Contrast %", self.contrast)
        self.form.addRow(self.body_only)
        self.form.addRow("Threshold %", self.threshold)
        self.form.addRow(button_row(self.labels_button))
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
        """Forget the seeds and remove them from the view."""
        for layer in (self._seeds_layer, self._maps["similarity"]):
            if layer is not None and layer in self.panel.viewer.layers:
                self.panel.viewer.layers.remove(layer)
        self.forget()

    def forget(self) -> None:
        """Forget seeds and similarities, whose scan or model changed; what was drawn stays in the view."""
        self._pick.clear()
        self._features.clear()
        self._seeds_layer = self._values = None
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
            self._look_again()

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
        features, scan = self.looked_in, self.target
        if self._values is None or features is None or scan is None:
            return
        low, high = self._limits()
        similar = self._shown() >= low + (high - low) * self.threshold.value() / 100
        if not similar.any():
            self.panel.notice.say("info", "No voxel lies above the threshold; lower it.")
            return
        grid = geometry_of(scan)
        drawn = on_scan(similar.astype(np.uint8), features.geometry, grid)
        table = (ClassEntry(index=1, name="similar", colour="#009e73"),)
        add(self.panel.viewer, labels_layer(drawn, grid, f"{scan.name} · similar", table, derived=True))

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

    def _toggled(self) -> None:
        if self.pick_button.isChecked() and self.panel.scan is not None:
            self.panel.leave_picking()
            self.pick_button.setChecked(True)
            self._pick.enter(self.panel.scan)
        else:
            self.leave()

    def _update(self, seeds: Seeds) -> None:
        features, scan = self.panel.features, self.panel.scan
        if features is None or scan is None:
            return
        grid = geometry_of(scan)
        tokens = [
            [token_at(voxel, grid, features.geometry) for voxel in kind] for kind in (seeds.positive, seeds.negative)
        ]
        positive, negative = ([token for token in kind if token is not None] for kind in tokens)
        if not positive and not negative:
            self.seeds_text.setText("The model did not see this place of the scan.")
            return
        self._seeds_layer = draw_seeds(self.panel.viewer, self._seeds_layer, seeds, scan)
        looked_in = self.looked_in
        if looked_in is not None:
            self._values = looked_in.index.matches(features.index.query(positive, negative))
            self._draw()
        self._refresh()

    def _on_where(self) -> None:
        """Have the tokens of the scan that is to be looked in computed, where they are not known yet."""
        target, scan = self.target, self.panel.scan
        if self.looked_in is not None or target is None or scan is None or self.panel.features is None:
            self._look_again()
            return

        def keep(features: Features) -> None:
            self._features[target] = features
            self.panel.notice.say("ok", f"Pick a voxel in {scan.name}; the map lies over {target.name}.")
            self._look_again()

        if not self.panel.compute_other(target, keep):
            self.where.setCurrentIndex(0)

    def _look_again(self) -> None:
        self._values = None
        if len(self._pick.seeds):
            self._update(self._pick.seeds)
        self._refresh()

    def _draw(self) -> None:
        """Show the map that `_update` made."""
        features = self.looked_in
        if features is not None and self._values is not None:
            picture = {"name": "similarity", "array": self._shown(), "geometry": features.geometry, "role": "heatmap"}
            self._maps.show([{**picture, "limits": self._limits()}])

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
        match, target = self.best_match(), self.target
        if match is not None and target is not None:
            z, y, x = match[0]
            self.match_text.setText(f"Most alike in {target.name}: voxel z, y, x = {z}, {y}, {x}, {match[1]:.2f}.")
        for widget in (self.match_text, self.match_button, self.back_button):
            widget.setVisible(match is not None)
        self.clear_button.setEnabled(bool(len(seeds)))


class EmbeddingSection(ExploreSection):
    """Principal components of the tokens as colours."""

    def __init__(self, panel: ExplorePanel) -> None:
        tip = "Places with the same colour look alike to the model (principal components of its features)."
        super().__init__(panel, "Embedding map", tip, folded=True, needs=NEEDS_FEATURES)
        self._maps = PictureLayers(panel.viewer)
        self.body_only = _body_only("Leave air out, so that colours tell organs apart.")
        self.first = QSpinBox()
        self.first.setRange(1, 30)
        _name(self.first, "First component", "The component shown as red; the next two are green and blue.")
        self.show_button = button("Show map", self.show_map, "Colour every token by its principal components.")
        self.explained = wrapping("")
        self.form.addRow(self.body_only)
        self.form.addRow("First component", self.first)
        self.form.addRow(button_row(self.show_button))
        self.column.addWidget(self.explained)

    def show_map(self) -> None:
        """Show the components as a colour layer over the scan."""
        features = self.panel.features
        if features is None:
            return
        mask = features.body if self.body_only.isChecked() else None
        self.show_button.setEnabled(False)
        _work.start(
            self,
            lambda: (features, mask, pca_rgb(features.tokens, mask, self.first.value() - 1)),
            done=lambda result: self._show(*result),
            failed=lambda sentence: self.panel.notice.say("error", sentence),
            ended=lambda: self.show_button.setEnabled(True),
        )

    def _show(self, features: Features, mask: npt.NDArray[np.bool_] | None, result: PcaMap) -> None:
        alpha = np.full((*result.rgb.shape[:3], 1), 255, np.uint8)
        if mask is not None and mask.any():
            alpha[~mask] = 0
        rgba = np.concatenate([result.rgb, alpha], axis=-1)
        picture = {"name": "embedding", "array": rgba, "geometry": features.geometry, "role": "rgb"}
        self._maps.show([picture])[0].opacity = 0.7
        shares = ", ".join(f"{100 * share:.0f} %" for share in result.explained)
        self.explained.setText(f"Red, green and blue explain {shares} of the variance.")


class MaskingSection(ExploreSection):
    """Hide patches of the scan and see what the model puts there."""

    def __init__(self, panel: ExplorePanel) -> None:
        tip = "Hide patches and see what the model believes to be there; for models that learnt by reconstructing."
        super().__init__(panel, "Masked reconstruction", tip, folded=True, needs="Choose a scan and a model first.")
        self._maps = PictureLayers(panel.viewer)
        self.ratio = _slider(
            "Mask ratio", 5, 95, 75, "Share of patches hidden from the model, in per cent.", decimals=0
        )
        self.seed = QSpinBox()
        self.seed.setRange(0, 2**31 - 1)
        _name(self.seed, "Seed", "Number that decides which patches are hidden.")
        self.fill = QCheckBox("Fill only masked patches")
        self.fill.setChecked(True)
        self.fill.setToolTip("Off shows the prediction of visible patches too.")
        self.show_button = button(
            "Reconstruct", self.reconstruct, "Around the point where the view stands, for models of crops."
        )
        self.new_button = button("New mask", self.new_mask, "Next seed: hide other patches (Alt+M).")
        self.grid_button = button(
            "2 × 2 view", self.toggle_grid, "The four pictures side by side, or the scan again (Alt+G)."
        )
        self.grid_button.setEnabled(False)
        self.error = wrapping("")
        self.form.addRow("Mask ratio %", self.ratio)
        self.form.addRow("Seed", self.seed)
        self.form.addRow(self.fill)
        self.form.addRow(button_row(self.show_button, self.new_button, self.grid_button))
        self.form.addRow(self.error)

    def reconstruct(self) -> None:
        """Ask for the reconstruction and show it in four pictures."""
        scan = self.panel.scan
        if scan is None:
            return
        self.panel.ask(
            "reconstruct",
            self._show,
            "Reconstructing…",
            mask_ratio=self.ratio.value() / 100,
            seed=self.seed.value(),
            full=not self.fill.isChecked(),
            centre=view_point(self.panel.viewer, scan),
        )

    def new_mask(self) -> None:
        """Hide other patches."""
        if self.body.isEnabled():
            self.seed.setValue(self.seed.value() + 1)
            self.reconstruct()

    def toggle_grid(self) -> None:
        """Switch between the four pictures side by side and the scan."""
        self._maps.to_grid(not self._maps.in_grid)

    def _show(self, values: dict[str, Any]) -> None:
        first = all(self._maps[picture["name"]] is None for picture in values["pictures"])
        self._maps.show([{**picture, "follow": first, "facts": {"derived": True}} for picture in values["pictures"]])
        mask = self._maps["mask"]
        if first:
            if mask is not None:
                mask.visible = False
            self._maps.link_contrast()
            self._maps.to_grid()
        self.grid_button.setEnabled(True)
        self.panel.toggles_grid = self.toggle_grid
        self.error.setText(
            f"Mean absolute error in hidden patches: {values['error']:.3g} {values['unit']}.".replace(" .", ".")
        )


class AttentionSection(ExploreSection):
    """Where the class token looks."""

    def __init__(self, panel: ExplorePanel) -> None:
        tip = "Where the model looks to summarise the scan: attention of its class (or start) token to each patch."
        super().__init__(panel, "Class attention", tip, folded=True, needs="Choose a scan and a model first.")
        self._maps = PictureLayers(panel.viewer)
        self.block = QSpinBox()
        self.block.setRange(0, 64)
        self.block.setSpecialValueText("last")
        _name(self.block, "Block", "Transformer block, counted from 1; the last one when 0.")
        self.head = QSpinBox()
        self.head.setRange(0, 64)
        self.head.setSpecialValueText("mean of all")
        _name(self.head, "Head", "Attention head, counted from 1; the mean of all when 0.")
        self.show_button = button("Show attention", self.show_map, "Draw the attention over the scan.")
        self.form.addRow("Block", self.block)
        self.form.addRow("Head", self.head)
        self.form.addRow(button_row(self.show_button))

    def show_map(self) -> None:
        """Ask for the attention and draw it."""
        block, head = self.block.value() - 1, self.head.value() - 1
        self.panel.ask("attention", self._show, "Computing attention…", block=block, head=head if head >= 0 else None)

    def _show(self, values: dict[str, Any]) -> None:
        self.block.setMaximum(values["depth"])
        self.head.setMaximum(values["heads"])
        picture = {"name": "attention", "array": values["attention"], "geometry": values["geometry"], "role": "heatmap"}
        self._maps.show([{**picture, "limits": contrast_limits(values["attention"])}])


def view_point(viewer: Any, layer: Any) -> list[float]:
    """(z, y, x) voxel of `layer` where the view stands: its sliders, and the middle of the canvas for shown axes."""
    voxel = _looked_at(viewer, layer)
    return [float(value) for value in np.clip(voxel, 0, np.asarray(layer.data.shape[:3]) - 1)]


def point_inside(viewer: Any, layer: Any) -> list[float] | None:
    """`view_point` where that lies inside `layer`, which need not be the scan that is looked at; else None."""
    voxel = _looked_at(viewer, layer)
    inside = (voxel > -1).all() and (voxel < layer.data.shape[:3]).all()
    return view_point(viewer, layer) if inside else None


def _looked_at(viewer: Any, layer: Any) -> npt.NDArray[Any]:
    world = np.asarray(viewer.dims.point, float)
    shown = list(viewer.dims.displayed)
    world[shown] = np.asarray(_compat.camera(viewer).center)[-len(shown) :]
    return np.asarray(layer.world_to_data(world))[-3:]


def go_to(viewer: Any, layer: Any, voxel: Voxel) -> None:
    """Fill the canvas with a scan, cut at a voxel of it."""
    layer.visible = True
    viewer.fit_to_view(layers=[layer])
    viewer.dims.set_point(range(3), layer.data_to_world(voxel))


def _body_only(tip: str) -> QCheckBox:
    box = QCheckBox("Only inside the body")
    box.setChecked(True)
    box.setToolTip(tip)
    return box


def _slider(name: str, low: float, high: float, value: float, tip: str, decimals: int = 2) -> QLabeledDoubleSlider:
    slider = QLabeledDoubleSlider(Qt.Orientation.Horizontal)
    slider.setRange(low, high)
    slider.setDecimals(decimals)
    slider.setValue(value)
    _name(slider, name, tip)
    return slider


def _name(widget: QWidget, name: str, tip: str) -> None:
    widget.setAccessibleName(name)
    widget.setAccessibleDescription(tip)
    widget.setToolTip(tip)
