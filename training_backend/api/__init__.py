"""The Python API; each function is also a sub-command of ``med3dssl``, with its arguments as flags.

Functions return values whose text is what the command prints; a value with a false `ok` makes the command fail.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from training_backend.api.data import (
    data_candidates,
    data_export,
    data_ingest,
    data_inspect,
    data_prepare,
    data_split,
    recipes_list,
    recipes_show,
)
from training_backend.api.find import find
from training_backend.api.learn import data_accept, data_assign, data_next, data_undo
from training_backend.api.masks import agreement, strokes
from training_backend.api.models import (
    compare,
    embed,
    evaluate,
    predict,
    reconstruct,
    view,
)
from training_backend.api.plan import plan_add, plan_buffer, plan_run, plan_show
from training_backend.api.runs import (
    runs_clone,
    runs_compare,
    runs_list,
    runs_resume,
    runs_show,
    runs_stop,
)
from training_backend.api.weights import (
    weights_export,
    weights_import,
    weights_inspect,
    weights_probe_orientation,
    zoo_download,
    zoo_list,
)
from training_backend.report import Table
from training_backend.watch import train

if TYPE_CHECKING:
    from training_backend.demo import DemoSummary

__all__ = [
    "agreement",
    "compare",
    "data_accept",
    "data_assign",
    "data_candidates",
    "data_export",
    "data_ingest",
    "data_inspect",
    "data_next",
    "data_prepare",
    "data_split",
    "data_undo",
    "demo",
    "doctor",
    "embed",
    "evaluate",
    "find",
    "plan_add",
    "plan_buffer",
    "plan_run",
    "plan_show",
    "predict",
    "recipes_list",
    "recipes_show",
    "reconstruct",
    "runs_clone",
    "runs_compare",
    "runs_list",
    "runs_resume",
    "runs_show",
    "runs_stop",
    "strokes",
    "train",
    "view",
    "weights_export",
    "weights_import",
    "weights_inspect",
    "weights_probe_orientation",
    "zoo_download",
    "zoo_list",
]


def demo(output: Path = Path("demo-output"), headless: bool = False, seed: int = 0) -> DemoSummary:
    """Run the whole way on generated patients and open napari with the result.

    Args:
        output: Folder for everything the demo makes.
        headless: Take screenshots in place of leaving a window open.
        seed: Of the phantoms and the runs.
    """
    from training_backend.demo import run_demo

    return run_demo(output, headless=headless, seed=seed)


def doctor() -> Table:
    """Look for what would hinder training on this machine, with the command that mends it."""
    from training_backend.jobs.doctor import examine

    findings = examine()
    table = Table(("state", "finding", "do"), ok=all(finding.state != "bad" for finding in findings))
    for finding in findings:
        table.add(finding.state, finding.sentence, finding.command or "")
    return table
