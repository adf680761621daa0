"""Reports of a dataset: for vocabularies, and what a check finds wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from training_backend.data.text import sentences

if TYPE_CHECKING:
    from training_backend.config import RunConfig

WHOLE = ("report", "report_text", "text", "sentence")
FINDINGS = ("findings", "findings_en")
IMPRESSION = ("impression", "impressions", "impressions_en", "conclusion")
COLUMNS = (*WHOLE, *FINDINGS, *IMPRESSION)
"""Names of columns that hold reports, or a part of them."""

_BROKEN = ("\ufffd", "Ã¤", "Ã¶", "Ã¼", "Ã©", "Ã¨", "Ã§", "Ã±", "Ã³", "Ã¡", "â€", "Â°", "Â±", "Ä±", "Å\x9f")
"""What UTF-8 text looks like after it was read as another encoding."""


def training_reports(run: RunConfig) -> list[str]:
    """Reports of the training cases of a run's dataset, those that few-shot training leaves out included."""
    from training_backend.data.dataset import Dataset

    return [case.report for case in Dataset.open(run.data.dataset).cases(split="train") if case.has("text")]


def report_problems(report: str) -> tuple[str, ...]:
    """Sentences about a report that is missing or hardly usable as it is; they never quote it."""
    if not report.strip():
        return ("It has no report.",)
    if not sentences(report):
        return ("Its report has no sentence.",)
    found = []
    if any(mark in report for mark in _BROKEN):
        found.append("Its report holds letters of another encoding; save its table as UTF-8 and ingest again.")
    if any(ord(letter) < 32 and letter not in "\t\n\r" for letter in report):
        found.append("Its report holds control characters; is it text?")
    return tuple(found)


def report_of(cells: Mapping[str, str]) -> str:
    """Report among the cells of a row by lower-case column name: one text, else findings and impression.

    The two are parted by a blank line.
    """
    whole = _first(cells, WHOLE)
    return whole or "\n\n".join(part for part in (_first(cells, FINDINGS), _first(cells, IMPRESSION)) if part)


def _first(cells: Mapping[str, str], names: Sequence[str]) -> str:
    return next((cells[name].strip() for name in names if cells.get(name, "").strip()), "")
