from __future__ import annotations

import itertools

import numpy as np
import pytest

from training_backend.data.classes import OKABE_ITO, class_table, colour_of, palette
from training_backend.data.manifest import DatasetInfo


def lab(colours, vision=None) -> np.ndarray:
    """CIE L*a*b* of colours, after Brettel-like projection where `vision` removes a kind of cone.

    Independent of the palette's own colour space: sRGB, Hunt-Pointer-Estevez cones, CIELAB.
    """
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    to_cones = np.array([[0.4002, 0.7076, -0.0808], [-0.2263, 1.1653, 0.0457], [0.0, 0.0, 0.9182]])
    if vision is not None:  # the lost cone answers as the others do for white and blue (red for tritanopia)
        cones = xyz @ to_cones.T
        white, anchor = (to_cones @ v for v in ([0.9505, 1.0, 1.089], [0.1805, 0.0722, 0.9505]))
        if vision == 2:
            anchor = to_cones @ [0.4124, 0.2126, 0.0193]
        kept = [i for i in range(3) if i != vision]
        weights = np.linalg.solve(np.array([white[kept], anchor[kept]]), [white[vision], anchor[vision]])
        cones[:, vision] = cones[:, kept] @ weights
        xyz = cones @ np.linalg.inv(to_cones).T
    ratio = np.clip(xyz, 0, None) / [0.9505, 1.0, 1.089]
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


@pytest.mark.parametrize("vision", [None, 0, 1, 2])
@pytest.mark.parametrize(("count", "least"), [(7, 8.0), (16, 5.0), (32, 2.3)])
def test_colours_differ_for_every_kind_of_vision(vision, count, least) -> None:
    seen = lab(palette()[:count], vision)
    nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))
    assert nearest > least, "a difference of 2.3 is just noticeable"


def test_the_palette_begins_with_okabe_and_ito_and_never_repeats() -> None:
    colours = palette()
    assert colours[:7] == OKABE_ITO
    assert len(set(colours)) == len(colours) == 255
    assert palette(20) == colours[:20]
    assert (lab(colours)[:, 0] > 35).all(), "no colour disappears in the black of a scan"


def test_a_table_names_values_and_colours_them_by_value_alone() -> None:
    table = class_table([0, 2, 5], {"2": "liver", "7": "spleen"})
    assert [(entry.index, entry.name) for entry in table] == [(2, "liver"), (5, "class 5"), (7, "spleen")]
    assert [entry.colour for entry in table] == [palette()[1], palette()[4], palette()[6]]
    assert class_table(np.array([5], np.uint8))[0].colour == table[1].colour
    assert colour_of(256) == colour_of(1)


def test_names_may_be_a_list_from_background_on() -> None:
    assert [(e.index, e.name) for e in class_table([1], ["background", "atrium"])] == [(1, "atrium")]
    assert class_table([0]) == ()


def test_a_table_is_part_of_a_dataset() -> None:
    info = DatasetInfo(name="d", classes=class_table([1, 2]))
    assert DatasetInfo.parse(info.model_dump(mode="json")) == info
