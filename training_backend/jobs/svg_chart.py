"""Line charts as SVG text, for reports that need nothing but a browser."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

INKS = ("#0072b2", "#b35c00", "#00704f", "#9c3f74", "#7a6f00", "#a84a00", "#555555")
"""Colours of lines on white, in their order."""
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 4", "1 4")
"""Patterns of lines, so that they can be told apart without colour."""
WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 26, 36
MOST_POINTS = 400


@dataclass(frozen=True)
class Line:
    """One curve: `values[i]` at `steps[i]`."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]


def chart(title: str, lines: Sequence[Line]) -> str:
    """An ``<svg>`` element with axes, and a line for each of `lines` that has finite values."""
    points = [_finite(line) for line in lines]
    xs, ys = ([point[axis] for drawn in points for point in drawn] for axis in (0, 1))
    if not xs:
        return ""
    x_low, x_high = _room(min(xs), max(xs), 0.0)
    y_low, y_high = _room(min(ys), max(ys), 0.05)

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text class="title" x="{LEFT}" y="16">{html.escape(title)}</text>']
    for value in ticks(y_low, y_high):
        _, y = place(x_low, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in ticks(x_low, x_high):
        x, _ = place(value, y_low)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">step</text>')
    for number, (line, drawn) in enumerate(zip(lines, points, strict=True)):
        parts.append(_drawn(line.label, [place(*point) for point in drawn], number))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
    return f'{head} aria-label="{html.escape(title, quote=True)}">{"".join(parts)}</svg>'


def legend(labels: Sequence[str]) -> str:
    """Labels with a sample of their line, as inline HTML."""
    entries = []
    for number, label in enumerate(labels):
        sample = f'<line x1="0" x2="34" y1="6" y2="6" {_stroke(number)}/>'
        drawn = f'<svg width="34" height="12" aria-hidden="true">{sample}</svg>'
        entries.append(f'<span class="key">{drawn} {html.escape(label)}</span>')
    return " ".join(entries)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= 0.7 * raw)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _drawn(label: str, places: Sequence[tuple[float, float]], number: int) -> str:
    title = f"<title>{html.escape(label)}</title>"
    if len(places) == 1:
        x, y = places[0]
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{INKS[number % len(INKS)]}">{title}</circle>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline points="{path}" fill="none" {_stroke(number)}>{title}</polyline>'


def _stroke(number: int) -> str:
    dash = DASHES[number % len(DASHES)]
    pattern = f' stroke-dasharray="{dash}"' if dash else ""
    return f'stroke="{INKS[number % len(INKS)]}" stroke-width="1.8"{pattern}'


def _finite(line: Line) -> list[tuple[float, float]]:
    """Points that can be drawn, at most `MOST_POINTS` and the last."""
    known = [(x, y) for x, y in zip(line.steps, line.values, strict=True) if math.isfinite(y)]
    stride = max(1, math.ceil(len(known) / MOST_POINTS))
    return known[::stride] + (known[-1:] if (len(known) - 1) % stride else [])


def _room(low: float, high: float, share: float) -> tuple[float, float]:
    """An interval that is not empty, `share` wider on each side."""
    span = high - low or abs(high) or 1.0
    return (low - share * span, high + share * span) if high > low else (low - span / 2, high + span / 2)
