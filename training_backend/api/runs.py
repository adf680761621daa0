"""Runs from outside: listed, shown, stopped, resumed, cloned."""

from __future__ import annotations

import json as json_text
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training_backend.errors import ConfigError
from training_backend.report import Table
from training_backend.watch import RunReport, train

if TYPE_CHECKING:
    from training_backend.jobs.run_compare import RunComparison


@dataclass(frozen=True)
class ComparisonReport:
    """A comparison of runs as text, or as JSON."""

    found: RunComparison
    as_json: bool = False

    def __str__(self) -> str:
        """Tables of runs, pairs and settings with the sentences about them; or one JSON object."""
        return json_text.dumps(self.found.to_dict(), ensure_ascii=False, indent=1) if self.as_json else told(self.found)


def runs_list() -> Table:
    """List all runs of this user, newest first."""
    from training_backend.jobs.registry import list_runs

    table = Table(("run", "kind", "state", "step", "best", "folder"))
    for run in list_runs():
        score = "-" if run.score is None else f"{run.score:.4f}"
        table.add(run.name, run.task or run.kind, run.state, f"{run.step}/{run.steps}", score, str(run.path))
    return table


def runs_show(folder: Path) -> Table:
    """Show the state of a run, its last warnings, and where everything is.

    Args:
        folder: Run directory.
    """
    from training_backend.engine.rundir import RunDirectory
    from training_backend.jobs.monitor import Monitor

    monitor = Monitor(RunDirectory.open(folder))
    now = monitor.update().summary
    table = Table(("what", "value"))
    table.add("state", f"{now.state}. {now.sentence}")
    table.add("step", f"{now.step} of {now.steps}")
    table.add("can be asked to", ", ".join(now.actions))
    for name, series in sorted(monitor.series.items()):
        table.add(name, f"{series.values[-1]:.5g} (step {series.steps[-1]})")
    for warning in monitor.warnings[-5:]:
        table.add("warning", warning)
    table.add("folder", str(now.path))
    return table


def runs_stop(folder: Path) -> RunReport:
    """Ask a run to save and stop, and see to it that it does.

    Args:
        folder: Run directory.
    """
    from training_backend.engine.rundir import RunDirectory
    from training_backend.jobs.launcher import cancel

    return RunReport(cancel(RunDirectory.open(folder)))


def runs_resume(folder: Path, detach: bool = False) -> RunReport:
    """Go on with a run from its last verified checkpoint.

    Args:
        folder: Run directory.
        detach: Return as soon as the process has started.
    """
    from training_backend.engine.rundir import RunDirectory
    from training_backend.watch import resume

    return resume(RunDirectory.open(folder), detach=detach)


def runs_clone(folder: Path, output: Path, set: tuple[str, ...] = (), detach: bool = False) -> RunReport:
    """Start a new run with the settings of another one, some of them changed.

    Args:
        folder: Run directory whose settings are taken.
        output: Run directory of the new run.
        set: Changes as KEY=VALUE, e.g. optim.lr=3e-4; values are read as YAML.
        detach: Return as soon as the process has started.
    """
    from training_backend.engine.rundir import RunDirectory

    return train(RunDirectory.open(folder).config().updated(changes(set)), output, detach=detach)


def runs_compare(
    runs: tuple[Path, ...],
    metric: str = "",
    structure: str = "",
    seed: int = 0,
    csv: Path | None = None,
    pairs_csv: Path | None = None,
    cases_csv: Path | None = None,
    html: Path | None = None,
    smoothing: float = 0.0,
    json: bool = False,
) -> ComparisonReport:
    """Put runs beside each other: results, paired statistics on the cases they share, and settings that differ.

    Args:
        runs: Two or more run directories; the first is the reference.
        metric: dice, hd95_mm, nsd, correct, brier or absolute_error; empty takes the first that all runs have.
        structure: Class to compare by; empty takes the mean over all classes of a case.
        seed: Of the bootstrap.
        csv: File for the table of runs.
        pairs_csv: File for the statistics of pairs.
        cases_csv: File for the value of every case.
        html: File for a page with curves, tables and pictures of a few cases.
        smoothing: Of the curves on that page, 0 to below 1.
        json: Print everything as JSON in place of tables.
    """
    from training_backend.api.progress import progress_bar
    from training_backend.jobs import run_compare
    from training_backend.jobs.run_report import write_report

    if not 0 <= smoothing < 1:
        raise ConfigError(f"Smoothing lies between 0 and below 1, found {smoothing:g}.", "Try 0.9.")
    for target in (csv, pairs_csv, cases_csv, html):
        if target is not None:
            run_compare.check_target(target)
    bar: list[Any] = []  # drawn only when something has to be measured

    def measuring(share: float, _text: str) -> bool:
        bar[:] = bar or [progress_bar("compare")]
        return bool(bar[0](share))

    found = run_compare.compare_runs(list(runs), metric, structure, seed=seed, progress=measuring)
    for path, text in ((csv, found.runs_csv()), (pairs_csv, found.pairs_csv()), (cases_csv, found.cases_csv())):
        if path is not None:
            run_compare.save(path, text)
    if html is not None:
        write_report(html, found, smoothing)
    return ComparisonReport(found, json)


def told(found: RunComparison) -> str:
    """A comparison as text of a terminal."""
    from training_backend.jobs.run_compare import MEAN, pair_sentence

    metric = found.metric
    what = f"{metric.title}, {found.structure or MEAN}" if metric else "score"
    table = Table(("run", "task", "state", "step", "best", "cases", what))
    for run, row in zip(found.runs, found.run_rows(), strict=True):
        best = "-" if run.best is None else f"{run.best:.4f}"
        step = f"{row['step']}/{row['steps']}"
        table.add(run.label, run.task, row["state"], step, best, run.mean.cases or "-", run.mean)
    parts = [str(table)]
    if metric is not None and found.pairs:
        parts.append("\n".join(pair_sentence(pair, metric) for pair in found.pairs))
    if found.differences:
        settings = Table(("setting", *(run.label for run in found.runs)))
        for name, values in found.differences:
            settings.add(name, *values)
        parts.append(str(settings))
    parts += ["\n".join(found.notes)] if found.notes else []
    return "\n\n".join(parts)


def changes(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Nested dictionary of ``a.b=value`` pairs."""
    import yaml

    changes: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"A change is written KEY=VALUE, e.g. optim.lr=3e-4; found {pair!r}.")
        *parents, last = key.split(".")
        level = changes
        for parent in parents:
            level = level.setdefault(parent, {})
            if not isinstance(level, dict):
                raise ConfigError(f"{key} is set twice in ways that exclude each other.", "Leave one of them out.")
        if last in level:
            raise ConfigError(f"{key} is set twice in ways that exclude each other.", "Leave one of them out.")
        try:
            level[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"The value of {key} is no YAML: {text!r}.", "Check its brackets and quotes.") from error
    return changes
