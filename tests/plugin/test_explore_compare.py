"""Comparing masks in a real viewer: the layer, the table, and the way from one disagreement to the next."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from napari_med3dssl._layers import add, labels_layer, volume_layer
from napari_med3dssl._state import State
from napari_med3dssl._widgets import Page
from napari_med3dssl.explore import ExplorePanel
from napari_med3dssl.explore_compare import HIDDEN, NEEDS_TWO, CompareSection
from training_backend.data.classes import class_table
from training_backend.data.phantoms import Phantom

pytestmark = pytest.mark.gl


@pytest.fixture
def state(window_state: State) -> State:
    return window_state


@pytest.fixture
def section(panel: ExplorePanel, phantom: Phantom) -> CompareSection:
    """The section with a truth and a prediction that misses a slab of one lung and sees one voxel too much."""
    add(panel.viewer, volume_layer(phantom.volume))
    panel.comparison.fold(False)
    assert panel.comparison.told.text() == NEEDS_TWO
    truth = phantom.labels.array
    wrong = truth.copy()
    wrong[8:12][truth[8:12] == 1] = 0
    wrong[2, 1, 1] = 1
    for name, array in (("prediction", wrong), ("truth", truth)):
        add(panel.viewer, labels_layer(array, phantom.volume.geometry, name, phantom.classes))
    return panel.comparison


def compare(section: CompareSection, qtbot: Any) -> None:
    section.compare_button.click()
    qtbot.waitUntil(lambda: section._job is None, timeout=60_000)


def test_agreement_as_layer_table_and_csv(section: CompareSection, phantom: Phantom, qtbot: Any) -> None:
    assert (section.one.currentText(), section.other.currentText()) == ("prediction", "truth")
    compare(section, qtbot)
    layer = section.panel.viewer.layers["agreement"]
    truth = phantom.labels.array
    assert (np.asarray(layer.data) == 3).sum() == (truth[8:12] == 1).sum()
    assert (np.asarray(layer.data) == 2).sum() == 1
    rows = {
        section.table.item(row, 0).text(): section.table.item(row, 1).text() for row in range(section.table.rowCount())
    }
    found = (truth == 1).sum() - (truth[8:12] == 1).sum()
    assert rows[phantom.classes[0].name] == f"{2 * found / (found + 1 + (truth == 1).sum()):.3f}"
    assert section.as_csv().splitlines()[0] == "class,Dice,HD95 mm,NSD,A ml,B ml"
    assert len(section.as_csv().splitlines()) == 1 + len(rows)
    assert "agreement" not in [section.one.itemText(k) for k in range(section.one.count())]


def test_next_leads_to_the_largest_place_first(section: CompareSection, qtbot: Any) -> None:
    compare(section, qtbot)
    section.next_button.click()
    layer = section.panel.viewer.layers["agreement"]
    at = tuple(round(n) for n in layer.world_to_data(section.panel.viewer.dims.point))
    assert 8 <= at[0] < 12
    assert layer.data[at] == 3
    assert "only B" in section.told.text()
    section.back_button.click()  # before the first comes the last, which is the single voxel
    assert "voxel z, y, x = 2, 1, 1" in section.told.text()


def test_one_class_alone(section: CompareSection, phantom: Phantom, qtbot: Any) -> None:
    section.chosen.setCurrentIndex(section.chosen.findData(phantom.classes[1].index))
    compare(section, qtbot)
    assert section.told.text().startswith("The maps agree everywhere.")
    assert not section.next_button.isEnabled()


def test_the_agreement_is_seen_alone_at_first(section: CompareSection, qtbot: Any) -> None:
    maps = [section.panel.viewer.layers[name] for name in ("prediction", "truth")]
    compare(section, qtbot)
    assert not any(layer.visible for layer in maps)
    assert HIDDEN in section.told.text()
    maps[0].visible = True
    compare(section, qtbot)
    assert maps[0].visible
    assert HIDDEN not in section.told.text()


def test_other_names_of_a_value_are_told(section: CompareSection, phantom: Phantom, qtbot: Any) -> None:
    value, name = phantom.classes[0].index, phantom.classes[0].name
    table = class_table([value], {value: "tumour"})
    add(section.panel.viewer, labels_layer(phantom.labels.array, phantom.volume.geometry, "other names", table))
    section.other.setCurrentText("other names")
    compare(section, qtbot)
    assert f"{value} is {name} in A but tumour in B" in section.told.text()


def test_an_answer_below_what_is_seen_comes_in_sight(section: CompareSection, qtbot: Any) -> None:
    page = section.panel.findChild(Page)
    assert page is not None
    section.panel.resize(360, 300)
    page.verticalScrollBar().setValue(0)
    assert section.told.visibleRegion().isEmpty()
    compare(section, qtbot)
    qtbot.waitUntil(lambda: section.told.visibleRegion().boundingRect().height() == section.told.height())
