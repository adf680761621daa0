"""Tables of a comparison as people read them, in the window and on the page; made from `RunComparison.to_dict`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MEAN = "mean"
"""Stands for all structures of a case."""
NOTHING = "–"

Cells = tuple[list[str], list[list[str]]]
"""Heads, and the texts of each row."""


def run_cells(found: dict[str, Any]) -> Cells:
    """The table of runs."""
    heads = ["Run", "Method", "Task", "Preset", "Dataset", "State", "Step", "Best"]
    rows = []
    for run in found["runs"]:
        facts = [str(run[name]) for name in ("run", "method", "task", "preset", "dataset", "state")]
        rows.append([*facts, f"{run['step']} / {run['steps']}", number(run["best"], ".4g")])
        if found["metric"]:
            rows[-1] += [str(run["cases"] or NOTHING), interval(run, "mean")]
    if found["metric"]:
        structure = "" if found["structure"] == MEAN else f" of {found['structure']}"
        heads += ["Cases", f"Mean {found['metric']['title']}{structure} [95 %]"]
    return heads, rows


def pair_cells(found: dict[str, Any]) -> Cells:
    """The statistics of pairs."""
    heads = ["Second − first", "Cases", "First", "Second", "Difference [95 %]", "p", "p (Holm)"]
    rows = [
        [
            f"{pair['second']} − {pair['first']}",
            str(pair["cases"]),
            number(pair["first_mean"]),
            number(pair["second_mean"]),
            interval(pair, "difference", "+.3f"),
            number(pair["p"], ".3g"),
            number(pair["p_holm"], ".3g"),
        ]
        for pair in found["pairs"]
    ]
    return heads, rows


def setting_cells(found: dict[str, Any]) -> Cells:
    """Settings that differ."""
    rows = [[str(entry["setting"]), *entry["values"].values()] for entry in found["differences"]]
    return ["Setting", *_names(found)], rows


def case_cells(found: dict[str, Any]) -> Cells:
    """The value of every case in every run."""
    rows: Sequence[Sequence[Any]] = found["cases"][1:]
    return ["Case", "Structure", *_names(found)], [[*map(str, row[:2]), *map(number, row[2:])] for row in rows]


def number(value: float | None, form: str = ".3f") -> str:
    """A number, or a dash where there is none."""
    return NOTHING if value is None else format(value, form)


def interval(row: dict[str, Any], name: str, form: str = ".3f") -> str:
    """``0.751 [0.689, 0.805]``: the value called `name` with `low` and `high`."""
    if row[name] is None:
        return NOTHING
    return f"{row[name]:{form}} [{row['low']:{form}}, {row['high']:{form}}]"


def _names(found: dict[str, Any]) -> list[str]:
    return [str(run["run"]) for run in found["runs"]]
