"""Unexpected errors are told without the paths they quote, which may name a patient."""

from __future__ import annotations

import pytest

from training_backend.errors import DataError, said, trace, without_paths


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("Unable to open '/home/Jane Doe/a b.nii' now", "Unable to open a file now"),
        ("cannot read /home/Jane Doe/scan 1/x.nii.gz: bad", "cannot read a file: bad"),
        ("C:\\Users\\Jane Doe\\x.nii is bad", "a file is bad"),
        ('no such file: "~/me/x"', "no such file: a file"),
        ("given=/tmp/a/b.nii, y=3", "given=a file, y=3"),
        ("ratio 3/4 of mm/s, a / b", "ratio 3/4 of mm/s, a / b"),
        ("https://example.org/weights/x is unreachable", "https://example.org/weights/x is unreachable"),
        ("shape (1, 2) and [3, 4]", "shape (1, 2) and [3, 4]"),
    ],
)
def test_paths_are_left_out_and_nothing_else(text: str, without: str) -> None:
    assert without_paths(text) == without


def test_our_own_sentences_and_the_reason_of_system_errors_stay() -> None:
    assert said(DataError("x.nii is empty.", "Copy it to /data.")) == "x.nii is empty. Copy it to /data."
    assert said(PermissionError(13, "Permission denied", "/home/jane/x")) == "Permission denied"
    assert said(KeyError()) == "KeyError"


def test_a_trace_tells_the_causes_without_their_paths() -> None:
    path = "/home/" + "Jane".lower() + "/x.nii"
    try:
        try:
            raise RuntimeError(f"lost {path}")
        except RuntimeError as error:
            raise ValueError("then this") from error
    except ValueError as error:
        text = trace(error)
    assert "RuntimeError: lost a file" in text
    assert text.index("lost") < text.index("which led to") < text.index("then this")
    assert "test_errors.py" in text
    assert "jane" not in text
