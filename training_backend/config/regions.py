"""Regions of a segmentation: unions of classes that are scored besides them, written as text."""

from __future__ import annotations

from collections.abc import Sequence

FORM = "NAME = CLASS + CLASS"


def read_regions(regions: Sequence[str], classes: Sequence[str] = ()) -> dict[str, tuple[int, ...]]:
    """Label values of each region by its name.

    Args:
        regions: texts such as "TC = necrosis + enhancing tumour".
        classes: names by label value; where there are none yet, nothing is looked up and the values are empty.

    Raises:
        ValueError: not of that form, a class that does not exist, or a name that occurs twice or is a class.
    """
    found: dict[str, tuple[int, ...]] = {}
    for text in regions:
        name, equals, union = (part.strip() for part in text.partition("="))
        members = [member.strip() for member in union.split("+")]
        if not name or not equals or not all(members):
            raise ValueError(f"write regions as {FORM!r}, not {text!r}")
        if name in found or name in classes:
            raise ValueError(f"the region {name!r} has the name of another region or class")
        unknown = [member for member in members if classes and member not in classes]
        if unknown:
            raise ValueError(f"the region {name!r} has no class {unknown[0]!r}; there are {', '.join(classes)}")
        found[name] = tuple(classes.index(member) for member in members) if classes else ()
    return found
