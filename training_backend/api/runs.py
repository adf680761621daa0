"""Runs from outside: listed, shown, stopped, resumed, cloned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training_backend.errors import ConfigError
from training_backend.report import Table
from training_backend.watch import RunReport, train


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
        try:
            level[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"The value of {key} is no YAML: {text!r}.", "Check its brackets and quotes.") from error
    return changes
