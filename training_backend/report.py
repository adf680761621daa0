"""A small table: what commands print and write as CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from training_backend.files import write_text


@dataclass
class Table:
    """Rows of text under headings; `ok` tells whether the command that made it succeeded."""

    headings: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    ok: bool = True

    def add(self, *cells: object) -> Self:
        """Append a row; returns the table."""
        self.rows.append(tuple(str(cell) for cell in cells))
        return self

    def __str__(self) -> str:
        """Columns aligned with spaces."""
        lines = [self.headings, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.headings))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )

    def write_csv(self, path: Path) -> None:
        """Write headings and rows as CSV, atomically."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.headings, *self.rows])
        write_text(Path(path), text.getvalue())
