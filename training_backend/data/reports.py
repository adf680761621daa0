"""Reports of a dataset: for vocabularies, and what a check finds wrong with them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from training_backend.data.text import sentences

if TYPE_CHECKING:
    from training_backend.config import RunConfig
    from training_backend.config.data import ReportPart

WHOLE = ("report", "report_text", "text", "sentence")
FINDINGS = ("findings", "findings_en")
IMPRESSION = ("impression", "impressions", "impressions_en", "conclusion")
PARTS = ("findings", "impression")
COLUMNS = (*WHOLE, *FINDINGS, *IMPRESSION)
"""Names of columns that hold reports, or a part of them."""

_BROKEN = ("\ufffd", "Ã¤", "Ã¶", "Ã¼", "Ã©", "Ã¨", "Ã§", "Ã±", "Ã³", "Ã¡", "â€", "Â°", "Â±", "Ä±", "Å\x9f")
"""What UTF-8 text looks like after it was read as another encoding."""


_HEADINGS = {
    "findings": r"(?:ct\s+)?findings?",
    "impression": r"(?:ct\s+)?impressions?|conclusions?|opinion|summary",
    "": r"technique|history|indication|comparison|clinical\s+(?:information|history)|examination|procedure",
}
_HEADING = re.compile(
    r"(?:^|\n|(?<=[.!?])\s)[ \t]*(?:" + "|".join(f"({names})" for names in _HEADINGS.values()) + r")[ \t]*:\s*",
    re.IGNORECASE,
)
_PARAGRAPHS = re.compile(r"\n[ \t]*\n")


def sections(report: str) -> dict[str, str]:
    """Findings and impression of a report, as far as it tells them apart.

    Headings with a colon do so ("Findings:", "CT Findings:", "Impression:", "Conclusion:", "Opinion:", "Summary:");
    what stands below others, as "Technique:", belongs to neither. Without headings a report of two paragraphs has its
    findings in the first and its impression in the second, as reports are joined when a table has a column of each.
    """
    marks = list(_HEADING.finditer(report))
    found: dict[str, list[str]] = {}
    if not marks:
        paragraphs = [part.strip() for part in _PARAGRAPHS.split(report) if part.strip()]
        return dict(zip(("findings", "impression"), paragraphs, strict=True)) if len(paragraphs) == len(PARTS) else {}
    for mark, after in zip(marks, [*(mark.start() for mark in marks[1:]), len(report)], strict=True):
        name = list(_HEADINGS)[(mark.lastindex or 1) - 1]
        if name:
            found.setdefault(name, []).append(report[mark.end() : after].strip())
    return {name: "\n".join(part for part in parts if part) for name, parts in found.items() if any(parts)}


def part_of(report: str, part: ReportPart) -> str:
    """The part of a report that a run reads; empty where the report does not have it."""
    return report if part == "whole" else sections(report).get(part, "")


def training_reports(run: RunConfig) -> list[str]:
    """Reports of the training cases of a run's dataset, those that few-shot training leaves out included."""
    from training_backend.data.dataset import Dataset

    cases = Dataset.open(run.data.dataset).reading(run.data.report_part).cases(split="train")
    return [case.report for case in cases if case.has("text")]


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
    return _first(cells, WHOLE) or joined(_first(cells, FINDINGS), _first(cells, IMPRESSION))


def joined(findings: str, impression: str) -> str:
    """One report of two parts, a blank line between them."""
    return "\n\n".join(part.strip() for part in (findings, impression) if part.strip())


def _first(cells: Mapping[str, str], names: Sequence[str]) -> str:
    return next((cells[name].strip() for name in names if cells.get(name, "").strip()), "")
