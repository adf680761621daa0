"""A comparison of runs as one HTML page that needs nothing but a browser: curves, tables, statistics, pictures."""

from __future__ import annotations

import base64
import html
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training_backend.errors import Med3dError, without_paths
from training_backend.evaluate.case_pictures import CasePicture, case_picture, typical_cases
from training_backend.evaluate.case_scores import LABELS
from training_backend.jobs import svg_chart
from training_backend.jobs.curves import FIRST, smoothed, title
from training_backend.jobs.run_compare import Progress, RunComparison, save
from training_backend.jobs.run_texts import case_cells, pair_cells, run_cells, setting_cells

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 1080px; margin: 24px auto;
       padding: 0 16px; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 16px; margin: 26px 0 8px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; }
th, td { border-bottom: 1px solid #ccc; padding: 4px 10px 4px 0; text-align: left; vertical-align: top; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 12px; }
svg text { font: 11px system-ui, sans-serif; fill: #333; } svg text.title { font-weight: 600; font-size: 12px; }
svg .grid { stroke: #e2e2e2; } .key { margin-right: 16px; white-space: nowrap; }
.pictures { display: flex; flex-wrap: wrap; gap: 10px; } figure { margin: 0; } figcaption { font-size: 12px; }
img { display: block; background: #000; max-width: 100%; } .note { border-left: 3px solid #e69f00; padding-left: 8px; }
.small { color: #555; font-size: 12px; }
@media print { body { margin: 0; } h2 { break-after: avoid; } figure, svg { break-inside: avoid; } }
"""
_NUMBER = re.compile(r"[-+]?\d[\d.e+-]*( / \d+| \[.*\])?$|–$")
_HOW = (
    "Intervals are 95 % bootstrap intervals over cases (2,000 draws). P values are those of the two-sided Wilcoxon "
    "signed-rank test on the cases that both runs scored; with more than two runs also after Holm's correction for the "
    "number of pairs tested. Cases that score the same count for no side."
)


def write_report(
    path: Path, comparison: RunComparison, smoothing: float = 0.0, progress: Progress | None = None
) -> Path:
    """Write the page, whole or not at all.

    Args:
        path: HTML file; one that is there is replaced.
        comparison: what is told.
        smoothing: of the curves, 0 to below 1; see `curves.smoothed`.
        progress: told how far the pictures are.

    Raises:
        RunError: the file cannot be written.
    """
    pictures, problems = draw_cases(comparison, progress)
    return save(path, report(comparison, smoothing, pictures, problems))


def draw_cases(comparison: RunComparison, progress: Progress | None = None) -> tuple[list[CasePicture], list[str]]:
    """Pictures of a few cases that all runs scored, and sentences on what cannot be drawn."""
    runs = {
        run.label: (run.folder, Path(run.config.data.dataset))
        for run in comparison.runs
        if run.values and (run.folder / "predictions" / LABELS).is_file()
    }
    higher = comparison.metric is None or comparison.metric.higher
    cases = typical_cases([run.values for run in comparison.runs if run.label in runs], higher=higher)
    drawn, problems = [], []
    for done, case in enumerate(cases):
        if progress is not None:
            progress(done / len(cases), "Drawing cases")
        try:
            drawn.append(case_picture(case, runs))
        except Med3dError as error:
            problems.append(f"No pictures of {case}: {error.sentence}")
    return drawn, problems


def report(
    comparison: RunComparison, smoothing: float, pictures: Sequence[CasePicture], problems: Sequence[str] = ()
) -> str:
    """The page as text."""
    found = comparison.to_dict()
    names = " · ".join(run.label for run in comparison.runs)
    parts = [
        f"<h1>Comparison of runs</h1><p class='small'>{_safe(names)}<br>{time.strftime('%Y-%m-%d %H:%M')}</p>",
        *(f"<p class='note'>{_safe(without_paths(note))}</p>" for note in (*comparison.notes, *problems)),
        _section("Runs", _table(*run_cells(found))),
        _curves(comparison, smoothing),
        _pairs(comparison, found),
        _section("Settings that differ", _table(*setting_cells(found)) if comparison.differences else "<p>None.</p>"),
        _pictures(comparison, pictures),
        _section("All cases", _table(*case_cells(found))) if len(found["cases"]) > 1 else "",
    ]
    head = f'<meta charset="utf-8"><title>{_safe(names)}</title><style>{_STYLE}</style>'
    body = "\n".join(part for part in parts if part)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _curves(comparison: RunComparison, smoothing: float) -> str:
    charts = []
    for name in FIRST:
        lines = []
        for run in comparison.runs:
            series = run.curves.series.get(name)
            steps, values = (series.steps, series.values) if series else ([], [])
            lines.append(svg_chart.Line(run.label, steps, smoothed(values, smoothing)))
        charts.append(svg_chart.chart(title(name), lines))
    if not any(charts):
        return ""
    told = f"<p class='small'>Smoothed with weight {smoothing:g}.</p>" if smoothing else ""
    keys = svg_chart.legend([run.label for run in comparison.runs])
    return _section("Curves", f"<p>{keys}</p><div class='charts'>{''.join(charts)}</div>{told}")


def _pairs(comparison: RunComparison, found: dict[str, Any]) -> str:
    metric = comparison.metric
    if metric is None or not comparison.pairs:
        return ""
    told = "".join(f"<li>{_safe(sentence)}</li>" for sentence in found["sentences"])
    better = "higher" if metric.higher else "lower"
    table = _table(*pair_cells(found))
    head = f"Pairs by {metric.title}, {comparison.structure or 'mean'} ({better} is better)"
    return _section(head, f"{table}<ul>{told}</ul><p class='small'>{_safe(_HOW)}</p>")


def _pictures(comparison: RunComparison, pictures: Sequence[CasePicture]) -> str:
    values = {run.label: run.values for run in comparison.runs}
    metric, rows = comparison.metric, []
    for drawn in pictures:
        figures = []
        for name, data in drawn.pictures.items():
            score = values.get(name, {}).get(drawn.case)
            told = f"{name}: {metric.title} {score:.3f}" if metric and score is not None else name
            source = f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
            figures.append(
                f'<figure><img src="{source}" alt="{_safe(f"{drawn.case}, {name}")}"><figcaption>{_safe(told)}'
                "</figcaption></figure>"
            )
        rows.append(f"<h3>{_safe(drawn.case)}, slice {drawn.slice}</h3><div class='pictures'>{''.join(figures)}</div>")
    told = "<p class='small'>Axial slices through the middle of the true structures; the patient's left is right.</p>"
    return _section("Some cases, the worst first", told + "".join(rows)) if rows else ""


def _section(title: str, content: str) -> str:
    return f"<section><h2>{_safe(title)}</h2>{content}</section>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{_safe(head)}</th>" for head in heads)
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    return f"<div class='scroll'><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(value: str) -> str:
    return f"<td{' class=number' * bool(_NUMBER.match(value))}>{_safe(value)}</td>"


def _safe(value: Any) -> str:
    return html.escape(str(value), quote=True)
