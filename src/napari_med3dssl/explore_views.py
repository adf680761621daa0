"""A section of the Explore panel for each thing that a method can show of its networks, made from its `ModelView`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QTimer

from napari_med3dssl._widgets import button, button_row, combo, wrapping
from napari_med3dssl.explore_matrix import Matrices
from napari_med3dssl.explore_pick import PickMode, Seeds, Voxel, draw_seeds, raise_to_top
from napari_med3dssl.explore_pictures import PictureLayers
from napari_med3dssl.explore_sections import ExploreSection, point_inside, view_point
from napari_med3dssl.forms import Form
from napari_med3dssl.weights_picker import WeightsPicker
from training_backend.errors import ConfigError

if TYPE_CHECKING:
    from napari_med3dssl.explore import ExplorePanel
    from training_backend.methods.base import ModelView

SETTLE_MS = 150
"""Milliseconds after the last change of an option until what is shown is drawn again."""
OWN_TEACHER = "what it started from (its teacher)"
BANNER = "Click: pick a voxel · Esc: leave"


class ViewSection(ExploreSection):
    """Options, buttons and pictures of one view.

    A change of the options draws again what is already shown. There is one drawing at a time, and the newest wish wins:
    it stops the drawing before it.

    Args:
        panel: the Explore panel.
        view: what is shown.
        maps: the layers of its pictures, kept by the panel so that another model draws into the same ones.
    """

    def __init__(self, panel: ExplorePanel, view: ModelView, maps: PictureLayers) -> None:
        super().__init__(panel, view.title, view.tip, folded=True, needs="Choose a scan and a model first.")
        self.view = view
        self.drawing = False
        """Whether the model process draws for this section."""
        self.wanted = False
        """Whether to draw once the model process is free."""
        self._maps = maps
        self._follow = self._starting = True
        self._centre: list[float] | None = None
        self._over: list[str] = []
        self._others: list[Any] = []
        self._voxel: Voxel | None = None
        self._marker: Any = None
        self._pick = PickMode(panel.viewer, self._on_picked, self.leave, BANNER, panel.say_outside)
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(SETTLE_MS)
        self._settle.timeout.connect(self.draw)
        self.settings = Form(view.options())
        self.settings.changed.connect(self._on_options)
        self.about = wrapping(view.tip)
        self.where = combo("Other scan")
        self.where.setToolTip("Scan that the one above is compared with; open both.")
        self.where.currentIndexChanged.connect(self._on_options)
        self.against = WeightsPicker(panel.state, "", "Compared with", OWN_TEACHER) if view.against else None
        self.show_button = button("Show", self.show_pictures, "Around the point where the view stands.")
        self.pick_button = button("Pick voxel", self._on_pick_button, "Click in the scan to choose; Esc leaves.")
        self.pick_button.setCheckable(True)
        self.stop_button = button("Stop", self.stop, "Keep what is drawn so far.")
        self.grid_button = button("2 × 2 view", self.toggle_grid, "Pictures side by side, or the scan again (Alt+G).")
        self.text = wrapping("")
        self.matrices = Matrices()
        first = self.pick_button if view.point else self.show_button
        self.rows.insertWidget(0, self.about)  # not into the form: it would cut lines off
        if view.other:
            self.form.addRow("Other scan", self.where)
        if self.against is not None:
            self.against.changed.connect(self._on_options)
            self.form.addRow("Compared with", self.against)
        self.form.addRow(self.settings)
        self.form.addRow(button_row(first, self.stop_button, self.grid_button))
        self.column.addWidget(self.text)
        self.column.addWidget(self.matrices)
        self.grid_button.setEnabled(False)

    def allow(self, possible: bool) -> None:
        """Enable the controls, also while something is drawn: a slider that is dragged must not let go."""
        super().allow(possible)
        self.stop_button.setEnabled(self.drawing)

    @property
    def other(self) -> Any | None:
        """The scan that the present one is compared with, or None."""
        index = self.where.currentIndex()
        return self._others[index] if 0 <= index < len(self._others) else None

    def offer(self, others: list[Any]) -> None:
        """The scans besides the present one that can be compared with it."""
        if not self.view.other:
            return
        chosen = self.other
        self._others = others
        self.where.blockSignals(True)
        self.where.clear()
        self.where.addItems([layer.name for layer in others])
        if chosen in others:
            self.where.setCurrentIndex(others.index(chosen))
        self.where.blockSignals(False)
        if self.other is not chosen and self.other is not None:
            self._on_options()

    def show_pictures(self) -> None:
        """Draw around the place where the view stands now."""
        if self.panel.scan is not None:
            self._centre = view_point(self.panel.viewer, self.panel.scan)
            self._starting = True
            self.draw()

    def draw(self) -> None:
        """Draw with the options as entered; a drawing of this section that is under way is stopped first."""
        self._settle.stop()
        try:
            options = self.settings.config()
        except ConfigError:  # said below the field
            return
        beside = self._beside()
        if beside is None:
            return
        asked = {**options.model_dump(mode="json"), **beside.pop("options", {})}
        self.wanted = self.panel.busy
        if self.panel.busy:
            if self.drawing:
                self.panel.cancel()
            return
        self.drawing = self.panel.ask(
            "view",
            self._show,
            f"{self.view.title}…",
            partial=self._show,
            stopped="Stopped; what was drawn so far stays.",
            name=self.view.name,
            options=asked,
            centre=self._centre,
            point=self._voxel,
            **beside,
        )
        self.stop_button.setEnabled(self.drawing)

    def stop(self) -> None:
        """Stop drawing; what is drawn so far stays."""
        self.wanted = False
        if self.drawing:
            self.panel.cancel()

    def leave(self) -> None:
        """Leave the picking mode; clicks move the view again."""
        self.pick_button.setChecked(False)
        self._pick.leave()

    def forget(self) -> None:
        """Draw nothing of itself for another scan or model; what was drawn stays in the view."""
        self._settle.stop()
        self._pick.forget()
        self._centre = self._voxel = self._marker = None
        self.wanted, self._follow = False, True

    def toggle_grid(self) -> None:
        """Switch between the pictures side by side and the scan."""
        if self._maps.in_grid and self._over:
            self._maps.over_scan(self._over)
        else:
            self._maps.to_grid(not self._maps.in_grid)

    def _beside(self) -> dict[str, Any] | None:
        """What is asked for besides the form, and `options` to lie over it; None after saying what is missing."""
        beside: dict[str, Any] = {}
        if self.view.other:
            if self.other is None:
                self.panel.notice.say("info", "Open a second scan to compare with: drop another file on the viewer.")
                return None
            beside = {"other": self.other, "other_centre": point_inside(self.panel.viewer, self.other)}
        if self.against is not None:
            beside["against"] = self.against.source
        return beside

    def _tell(self, values: dict[str, Any]) -> None:
        """Show the texts that come with pictures; sections that have a place for them do."""

    def _on_options(self) -> None:
        if self._centre is not None or self._voxel is not None:
            self._settle.start()

    def _on_pick_button(self) -> None:
        if self.pick_button.isChecked() and self.panel.scan is not None:
            self.panel.leave_picking()
            self.pick_button.setChecked(True)
            self._pick.enter(self.panel.scan)
        else:
            self.leave()

    def _on_picked(self, seeds: Seeds) -> None:
        voxel = next(iter([*seeds.positive[-1:], *seeds.negative[-1:]]), None)
        scan = self.panel.scan
        if voxel is None or scan is None:
            return
        self._voxel = voxel
        self._centre = self._centre or [float(n) for n in voxel]
        self._marker = draw_seeds(self.panel.viewer, self._marker, Seeds([voxel]), scan)
        self.draw()

    def _show(self, values: dict[str, Any]) -> None:
        """Draw a frame; contrast limits follow the pictures of the first drawing and are the user's own after it.

        A drawing that was asked for comes to the front; one that only follows a slider leaves the view as it is.
        """
        pictures = [one for one in values["pictures"] if one["role"] != "matrix"]
        if values["passages"]:
            self._tell(values)
        if values["pictures"] or values["passages"]:
            self.text.setText(values["text"])
        if not values["pictures"]:  # on its way, with nothing to see yet, or a text alone
            self.grid_button.setVisible(not values["passages"])
            return
        self.matrices.show_all([one for one in values["pictures"] if one["role"] == "matrix"])
        follow = self._follow
        new = all(self._maps[picture["name"]] is None for picture in pictures)
        facts = {"derived": True}
        layers = self._maps.show([{**picture, "follow": follow or new, "facts": facts} for picture in pictures])
        self.panel.toggles_grid = self.toggle_grid
        self.grid_button.setVisible(len(pictures) > 2)
        self.grid_button.setEnabled(True)
        if pictures and (new or self._starting):
            self._maps.link_contrast()
            arrows = [one["name"] for one in pictures if one["role"] == "vectors"]
            self._over = [pictures[0]["name"], *arrows] if arrows else []  # arrows tell nothing without what is below
            if arrows:
                self._maps.over_scan(self._over)
            elif len(pictures) > 2:
                self._maps.to_grid()
            else:
                self._maps.over_scan()
                self._maps.to_front(pictures[0]["name"])
            for one in pictures:
                if one.get("other") and self.other is not None:  # where its scan is hidden, it would lie on the wrong
                    self._maps[one["name"]].visible = self.other.visible
        self._starting = False
        if values["share"] >= 1:
            self._follow = False
        if self._marker is not None and self._marker in self.panel.viewer.layers and len(layers) == 1:
            raise_to_top(self.panel.viewer, self._marker)
