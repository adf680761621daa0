"""Tables of texts, classified by a model that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from training_backend.config.registry import task as find_task
from training_backend.data.reports import WHOLE, report_of
from training_backend.errors import DataError
from training_backend.evaluate.embed import TableReport, read_rows, vector_json, write_csv
from training_backend.tasks.base import Cancelled, Progress

if TYPE_CHECKING:
    from training_backend.weights.load import LoadedModel

AT_ONCE = 64
"""Texts predicted in one go."""


def predict_table(
    model: LoadedModel, input_csv: Path, output_csv: Path, progress: Progress | None = None
) -> TableReport:
    """Predict the text of every row of a CSV; adds a column "Predictions" of lists, empty where there is no text.

    Args:
        model: of a task on texts, on its device.
        input_csv: has a column Text, Sentence or Report, or Findings and Impression; all its columns are kept.
        output_csv: the same rows with probabilities as ``[0.1, 0.9]``.
        progress: told the share done; answering False raises `Cancelled`.
    """
    rows, columns = read_rows(input_csv)
    texts = [report_of({name.strip().lower(): cell or "" for name, cell in row.items()}) for row in rows]
    if not any(texts):
        raise DataError(
            f"The table {input_csv.name} has no text; its columns are {', '.join(columns) or 'none'}.",
            f"Name the column of the texts one of {', '.join(WHOLE)}.",
        )
    task = find_task(model.config.task.name if model.config.task else "")
    assert task.predict_texts is not None  # the caller looked
    told = [index for index, text in enumerate(texts) if text]
    for row in rows:
        row["Predictions"] = ""
    for first in range(0, len(told), AT_ONCE):
        some = told[first : first + AT_ONCE]
        found = task.predict_texts(model.module, model.config, [texts[index] for index in some]).float().cpu().numpy()
        for index, values in zip(some, found, strict=True):
            rows[index]["Predictions"] = vector_json(values)
        if progress is not None and not progress((first + len(some)) / len(told)):
            raise Cancelled
    write_csv(output_csv, rows)
    refused = {f"row {index + 2}": "It has no text." for index, text in enumerate(texts) if not text}
    return TableReport(output_csv, len(rows), refused)
