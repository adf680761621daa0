"""The measurement of the loop: random choices, and its table."""

from __future__ import annotations

import shutil
from pathlib import Path

from training_backend.bench.correct_loop import _chosen, _without_labels, markdown
from training_backend.config import IngestConfig
from training_backend.data.accept import accept
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.phantoms import write_cohort
from training_backend.data.read import read_classes


def test_a_copy_without_labels_is_filled_in_the_order_of_the_seed(tmp_path: Path) -> None:
    ingest(
        write_cohort(tmp_path / "cohort", 5, seed=1, shape=(12, 16, 16)), tmp_path / "whole", IngestConfig(workers=0)
    )
    _without_labels(tmp_path / "whole", tmp_path / "copy")
    truth, copy = Dataset.open(tmp_path / "whole"), Dataset.open(tmp_path / "copy")
    assert not copy.cases(split="train", labelled=True)
    assert copy.cases(split="val", labelled=True) == truth.cases(split="val")
    drawn = _chosen(copy, "", "random", 3, 4)
    assert sorted(drawn) == [case.id for case in truth.cases(split="train")]
    assert drawn != _chosen(copy, "", "random", 4, 4)
    first = truth.case(drawn[0]).label
    assert first is not None
    accept(copy.folder, drawn[0], read_classes(truth.source(first), key=first.key))
    assert _chosen(Dataset.open(copy.folder), "", "random", 3, 2) == drawn[1:3]
    shutil.rmtree(tmp_path / "whole")  # the copy does not need it
    assert Dataset.open(copy.folder).case(drawn[0]).label


def test_the_table_has_the_range_over_seeds() -> None:
    rows = [{"order": "random", "count": 1, "dice": dice} for dice in (0.5, 0.7)]
    rows.append({"order": "both", "count": 1, "dice": 0.65})
    assert markdown(rows).splitlines()[-1] == "| 1 | 0.600 (0.500 to 0.700) | 0.650 (0.650 to 0.650) |"
