"""The measurement of buffers, on few cases."""

from __future__ import annotations

from training_backend.bench.medcoss_buffer import main


def test_a_buffer_of_generated_features_is_chosen():
    row = main(cases=2400, width=16)
    assert row["clusters"] == 24
    assert 100 <= row["chosen"] <= 120
    assert row["spread"] < 1.5
