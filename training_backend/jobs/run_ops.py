"""What the model process does with runs beside each other: distances and pictures take too long for the viewer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training_backend.jobs.run_compare import RunComparison
    from training_backend.jobs.serve import Progress
    from training_backend.jobs.serve_ops import Params, Values


def compare_runs(params: Params, progress: Progress) -> Values:
    """`runs` (folders) by `metric` and `structure`: see `RunComparison.to_dict`, and its tables as CSV."""
    found = _compared(params, progress)
    return {
        **found.to_dict(),
        "runs_csv": found.runs_csv(),
        "pairs_csv": found.pairs_csv(),
        "cases_csv": found.cases_csv(),
    }


def report_runs(params: Params, progress: Progress) -> Values:
    """The same as a page, written to `path` with curves smoothed by `smoothing`: `path`."""
    from training_backend.jobs.run_compare import check_target
    from training_backend.jobs.run_report import write_report

    path = Path(params["path"])
    check_target(path)
    found = _compared(params, progress)
    written = write_report(path, found, float(params.get("smoothing") or 0.0), progress)
    return {"path": written}


def _compared(params: Params, progress: Progress) -> RunComparison:
    from training_backend.jobs import run_compare

    progress(0.0, "Comparing")
    folders = [Path(folder) for folder in params.get("runs") or ()]
    metric, structure = str(params.get("metric") or ""), str(params.get("structure") or "")
    return run_compare.compare_runs(folders, metric, structure, progress=progress)
