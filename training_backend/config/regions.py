"""Regions of a segmentation: unions of classes that are scored besides them, written as text."""

from __future__ import annotations

from collections.abc import Sequence

FORM = "NAME = CLASS + CLASS"


def read_regions(regions: Sequence[str], classes: Sequence[str] = ()) -> dict[str, tuple[int, ...]]:
    """Label values of each region by its name.

    Args:
        regions: texts such as "TC = necrosis + enhancing tumour" or, by label value, "TC = 1 + 3".
        classes: names by label value; where there are none yet, names are not looked up.

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
        values = [_value(member, classes) for member in members]
        if None in values and classes:
            unknown = members[values.index(None)]
            raise ValueError(f"the region {name!r} has no class {unknown!r}; there are {', '.join(classes)}")
        found[name] = tuple(value for value in values if value is not None)
    return found


def _value(member: str, classes: Sequence[str]) -> int | None:
    """Label value of a class by its name, or written as a number; None where there is none."""
    if member in classes:
        return classes.index(member)
    return int(member) if member.isdecimal() and (not classes or int(member) < len(classes)) else None
