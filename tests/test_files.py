"""Files that are whole or absent, and as readable as any other that a program writes."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from training_backend.files import atomic, write_text


def test_a_written_file_has_the_rights_of_an_ordinary_one(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_text("x")
    write_text(tmp_path / "ours", "x")
    ordinary, ours = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ordinary", "ours"))
    assert ours == ordinary


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "kept", "old")
    with pytest.raises(TypeError), atomic(tmp_path / "kept") as stream:
        stream.writelines([b"half", None])  # the second is no bytes
    assert (tmp_path / "kept").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
