"""Asks where the voxels of an image lie that was not opened by this plugin, and writes the answer into its layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qtpy.QtWidgets import QInputDialog, QWidget

from napari_med3dssl._layers import facts_of, geometry_of, set_geometry
from napari_med3dssl._widgets import Notice
from training_backend.data.volume import Geometry
from training_backend.errors import DataError, Med3dError

SPACING = "Millimetres between voxels along z, y and x (slices, rows, columns):"


class GeometryQuestion(Notice):
    """Appears while an image is explored whose place and voxel size only its scale tells.

    Args:
        answered: called after the geometry of the layer was set.
    """

    def __init__(self, answered: Callable[[], None]) -> None:
        super().__init__()
        self._answered = answered
        self._accepted: set[str] = set()
        self.layer: Any = None

    def ask(self, layer: Any | None, scans: Sequence[Any] = ()) -> None:
        """Ask about a layer, if there is something to ask; other open scans may have the same grid."""
        self.layer = layer
        if layer is None or facts_of(layer) is not None or str(layer.unique_id) in self._accepted:
            self.clear()
            return
        spacing = " × ".join(f"{mm:g}" for mm in geometry_of(layer).spacing_mm)
        text = (
            f"{layer.name} does not say where its voxels lie. By its scale they are {spacing} mm (z × y × x), with "
            "slices from the feet up, rows from front to back and columns from right to left."
        )
        alike = [one for one in scans if facts_of(one) is not None and tuple(one.data.shape) == tuple(layer.data.shape)]
        choices: list[tuple[str, Callable[[], object]]] = [
            (f"As {one.name}", lambda one=one: self.take(geometry_of(one)))  # type: ignore[misc]
            for one in alike[:3]
        ]
        choices += [("Set spacing…", self.ask_spacing), ("That is right", self.accept)]
        self.say("info", text, choices)

    def accept(self) -> None:
        """The scale tells the truth."""
        self._accepted.add(str(self.layer.unique_id))
        self.take(geometry_of(self.layer))

    def ask_spacing(self) -> None:
        """Ask for the size of a voxel."""
        parent: QWidget | None = self.parentWidget()
        now = " ".join(f"{mm:g}" for mm in geometry_of(self.layer).spacing_mm)
        typed, given = QInputDialog.getText(parent, "Size of a voxel", SPACING, text=now)
        if given:
            self.set_spacing(typed)

    def set_spacing(self, typed: str) -> None:
        """Give the layer voxels of a size that was typed; anything but three numbers above 0 is refused."""
        try:
            grid = geometry_of(self.layer)
            z, y, x = _three(typed)
            start = grid.to_lps[:3, 3]
            self.take(Geometry.from_spacing(grid.shape, (z, y, x), (start[0], start[1], start[2])))
        except Med3dError as error:
            self.say("error", str(error), [("Set spacing…", self.ask_spacing), ("Leave it", self._leave)])

    def take(self, geometry: Geometry) -> None:
        """Put the layer onto a grid."""
        set_geometry(self.layer, geometry)
        self.clear()
        self._answered()

    def _leave(self) -> None:
        self.ask(self.layer)


def _three(typed: str) -> tuple[float, float, float]:
    try:
        numbers = [float(part) for part in typed.replace(",", " ").replace("×", " ").split()]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not all(0 < mm < 1000 for mm in numbers):
        raise DataError(f"Three millimetres above 0 are expected, as 3 0.7 0.7; found {typed!r}.")
    return (numbers[0], numbers[1], numbers[2])
