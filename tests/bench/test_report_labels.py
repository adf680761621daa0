"""Cross-validation of findings: every report is scored once, and doubles never by a model that learnt them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from training_backend.bench import report_labels
from training_backend.data.dataset import Dataset


def test_each_report_is_scored_by_a_model_that_never_saw_it(tmp_path: Path) -> None:
    with (tmp_path / "reports.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Id", "report_text", "Effusion", "Nodule"])
        for index in range(24):
            effusion, nodule = index % 2, index // 2 % 2
            text = f"{'There is an' if effusion else 'No'} effusion. {'A' if nodule else 'No'} nodule is seen."
            writer.writerow([f"r{index}", text + (f" Slice {index}." if index > 3 else ""), effusion, nodule])
        writer.writerow(["twin", "There is an effusion. No nodule is seen.", 1, 0])  # words of r1
    scores, labels, names = report_labels.cross_validated(tmp_path / "reports.csv", tmp_path / "out", 2, 150)
    assert (scores.shape, labels.shape, names) == ((25, 2), (25, 2), ("Effusion", "Nodule"))
    assert np.isfinite(scores).all()
    for index in range(2):
        assert scores[labels[:, index] == 1, index].min() > scores[labels[:, index] == 0, index].max()
    last = Dataset.open(tmp_path / "out" / "data").records
    assert last["twin"].split == last["r1"].split
    assert last["twin"].subject == last["r1"].subject
