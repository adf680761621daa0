"""The sections of the Explore panel, each one question to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox, QFormLayout, QSpinBox, QVBoxLayout, QWidget
from superqt import QLabeledDoubleSlider

from napari_med3dssl import _compat, _work
from napari_med3dssl._widgets import Section, button, button_row, wrapping
from napari_med3dssl.explore_maths import PcaMap, contrast_limits, pca_rgb
from napari_med3dssl.explore_pick import Voxel
from napari_med3dssl.explore_pictures import PictureLayers

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
        self.rows = QVBoxLayout(self.body)
        self.rows.setContentsMargins(0, 0, 0, 0)
        self.form = self.add_form()
        self.column.addWidget(self._why)
        self.column.addWidget(self.body)

    def add_form(self) -> QFormLayout:
        """A form below what the body holds; texts that wrap stand between forms, as in one their lines are cut off."""
        form = QFormLayout()
        form.setContentsMargins(0, 4, 0, 0)
        form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self.rows.addLayout(form)
        return form

    def allow(self, possible: bool) -> None:
        """Enable the controls, or say what is missing."""
        self.body.setEnabled(possible)
        self._why.setVisible(not possible and not self.panel.busy)


class EmbeddingSection(ExploreSection):
    """Principal components of the tokens as colours."""

    def __init__(self, panel: ExplorePanel) -> None:
        tip = "Places with the same colour look alike to the model (principal components of its features)."
        super().__init__(panel, "Embedding map", tip, folded=True, needs=NEEDS_FEATURES)
        self._maps = PictureLayers(panel.viewer)
        self.body_only = body_check("Leave air out, so that colours tell organs apart.")
        self.first = QSpinBox()
        self.first.setRange(1, 30)
        describe(self.first, "First component", "The component shown as red; the next two are green and blue.")
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
        self.panel.check_unchanged()
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
        self._maps.to_front("embedding")
        shares = ", ".join(f"{100 * share:.0f} %" for share in result.explained)
        self.explained.setText(f"Red, green and blue explain {shares} of the variance.")


class MaskingSection(ExploreSection):
    """Hide patches of the scan and see what the model puts there."""

    def __init__(self, panel: ExplorePanel) -> None:
        tip = "Hide patches and see what the model believes to be there; for models that learnt by reconstructing."
        super().__init__(panel, "Masked reconstruction", tip, folded=True, needs="Choose a scan and a model first.")
        self._maps = PictureLayers(panel.viewer)
        self.ratio = slider_of(
            "Mask ratio", 5, 95, 75, "Share of patches hidden from the model, in per cent.", decimals=0
        )
        self.seed = QSpinBox()
        self.seed.setRange(0, 2**31 - 1)
        describe(self.seed, "Seed", "Number that decides which patches are hidden.")
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
        self.rows.addWidget(self.error)

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
        describe(self.block, "Block", "Transformer block, counted from 1; the last one when 0.")
        self.head = QSpinBox()
        self.head.setRange(0, 64)
        self.head.setSpecialValueText("mean of all")
        describe(self.head, "Head", "Attention head, counted from 1; the mean of all when 0.")
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
        self._maps.to_front("attention")


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


def body_check(tip: str) -> QCheckBox:
    """A box that leaves air out, ticked at first."""
    box = QCheckBox("Only inside the body")
    box.setChecked(True)
    box.setToolTip(tip)
    return box


def slider_of(name: str, low: float, high: float, value: float, tip: str, decimals: int = 2) -> QLabeledDoubleSlider:
    """A slider that shows its number."""
    slider = QLabeledDoubleSlider(Qt.Orientation.Horizontal)
    slider.setRange(low, high)
    slider.setDecimals(decimals)
    slider.setValue(value)
    describe(slider, name, tip)
    return slider


def describe(widget: QWidget, name: str, tip: str) -> None:
    """Give a widget its accessible name and its tip."""
    widget.setAccessibleName(name)
    widget.setAccessibleDescription(tip)
    widget.setToolTip(tip)
