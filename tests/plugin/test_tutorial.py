"""The tutorial works as it is written: its script goes the whole way by clicks, and the model gets better."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "tutorial_correct.py"


@pytest.mark.gl
@pytest.mark.learning  # minutes
@pytest.mark.timeout(2400)
def test_a_newcomer_gets_a_better_model(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--home", str(tmp_path / "home"), "--output", str(tmp_path / "images")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2400)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "home" / "tutorial.json").read_text())
    assert told["dice_after"] > told["dice_before"] + 0.05
    assert all("unlabelled cases" in reason for reason in told["reasons"])
    assert len(list((tmp_path / "images").glob("tutorial-*.png"))) == 9
