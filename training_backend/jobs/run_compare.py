"""Runs beside each other: facts, curves, scores of their cases, paired statistics, and settings that differ."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training_backend.config import RunConfig
from training_backend.engine.rundir import RunDirectory
from training_backend.errors import ConfigError, Med3dError, RunError
from training_backend.evaluate.case_scores import METRICS, Metric, Scores, averaged, metrics_of, read_scores
from training_backend.evaluate.paired import Pair, compare_pairs
from training_backend.evaluate.segmentation_metrics import Mean, bootstrap_mean
from training_backend.files import write_text
from training_backend.jobs.curves import Curves, read_curves
from training_backend.jobs.run_texts import MEAN
from training_backend.jobs.settings_diff import differences, distinct_ends

Progress = Callable[..., Any]
"""Told the share done and what is being done; answering False stops."""

_RUN_HEADS = (
    *("run", "method", "task", "preset", "dataset", "state", "step", "steps", "best", "metric", "structure"),
    *("cases", "mean", "low", "high", "note"),
)
_PAIR_HEADS = (
    *("first", "second", "metric", "structure", "cases", "first_mean", "second_mean"),
    *("difference", "low", "high", "p", "p_holm", "note"),
)


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison.

    Attributes:
        label: its name, made unique among those compared.
        dataset: name of the dataset.
        best: best validation score (lowest loss of pre-training), or None.
        scores: of the chosen metric, by case and structure; empty without any.
        values: of each case, for the chosen structure or the mean over structures.
        mean: over its cases, with 95 % bootstrap interval.
        note: why there are no scores; may be empty.
    """

    label: str
    folder: Path
    config: RunConfig
    dataset: str
    curves: Curves
    metrics: tuple[str, ...]
    scores: Scores
    values: Mapping[str, float]
    mean: Mean
    note: str = ""

    @property
    def best(self) -> float | None:
        """Best validation score (lowest loss of pre-training), or None."""
        return self.curves.summary.score

    @property
    def task(self) -> str:
        """Its task, or "pre-train"."""
        return self.config.task.name if self.config.task else "pre-train"

    def facts(self, metric: Metric | None, structure: str) -> dict[str, Any]:
        """The run's row of the table; numbers that do not exist are None."""
        summary = self.curves.summary
        return {
            "run": self.label,
            "method": self.config.method.name,
            "task": self.task,
            "preset": self.config.recipe or self.config.preset,
            "dataset": self.dataset,
            "state": summary.state,
            "step": summary.step,
            "steps": summary.steps,
            "best": self.best,
            "metric": metric.name if metric else None,
            "structure": structure or MEAN,
            "cases": self.mean.cases,
            "mean": _known(self.mean.mean),
            "low": _known(self.mean.low),
            "high": _known(self.mean.high),
            "note": self.note,
        }


@dataclass(frozen=True)
class RunComparison:
    """What comparing gives.

    Attributes:
        metric: that was compared by case, or None where the runs share none.
        structure: that was compared; empty for the mean over all.
        structures: that can be chosen.
        metrics: that all runs with scores have.
        pairs: statistics of every pair of runs.
        differences: settings that differ: name, and the value of each run.
        notes: sentences about the whole.
    """

    runs: tuple[ComparedRun, ...]
    metric: Metric | None
    structure: str
    structures: tuple[str, ...]
    metrics: tuple[str, ...]
    pairs: tuple[Pair, ...]
    differences: tuple[tuple[str, tuple[str, ...]], ...]
    notes: tuple[str, ...] = field(default=())

    def run_rows(self) -> list[dict[str, Any]]:
        """Facts of each run."""
        return [run.facts(self.metric, self.structure) for run in self.runs]

    def pair_rows(self) -> list[dict[str, Any]]:
        """Statistics of each pair."""
        return [
            {
                "first": pair.first,
                "second": pair.second,
                "metric": self.metric.name if self.metric else None,
                "structure": self.structure or MEAN,
                "cases": pair.cases,
                "first_mean": _known(pair.first_mean),
                "second_mean": _known(pair.second_mean),
                "difference": _known(pair.difference.mean),
                "low": _known(pair.difference.low),
                "high": _known(pair.difference.high),
                "p": pair.p,
                "p_holm": pair.p_holm,
                "note": pair.note,
            }
            for pair in self.pairs
        ]

    def case_rows(self) -> list[list[Any]]:
        """A head, then a row per case and structure with the value of each run; None where it has none."""
        rows: list[list[Any]] = [["case", "structure", *(run.label for run in self.runs)]]
        for case in sorted({case for run in self.runs for case in run.scores}):
            named = dict.fromkeys(name for run in self.runs for name in run.scores.get(case, {}))
            if len(named) != 1:
                means = [averaged(run.scores).get(case) for run in self.runs]
                rows.append([case, MEAN, *means])
            rows += [
                [case, name, *(_known(run.scores.get(case, {}).get(name, math.nan)) for run in self.runs)]
                for name in named
            ]
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Everything but the curves, as JSON types."""
        metric = self.metric
        return {
            "metric": metric and {"name": metric.name, "title": metric.title, "higher": metric.higher},
            "structure": self.structure or MEAN,
            "structures": list(self.structures),
            "metrics": [{"name": name, "title": METRICS[name].title} for name in self.metrics],
            "runs": self.run_rows(),
            "pairs": self.pair_rows(),
            "sentences": [pair_sentence(pair, metric) for pair in self.pairs] if metric else [],
            "differences": [
                {"setting": name, "values": dict(zip((run.label for run in self.runs), values, strict=True))}
                for name, values in self.differences
            ],
            "cases": self.case_rows(),
            "notes": list(self.notes),
        }

    def runs_csv(self) -> str:
        """The table of runs."""
        return _csv([list(_RUN_HEADS), *([row[head] for head in _RUN_HEADS] for row in self.run_rows())])

    def pairs_csv(self) -> str:
        """The statistics of pairs."""
        return _csv([list(_PAIR_HEADS), *([row[head] for head in _PAIR_HEADS] for row in self.pair_rows())])

    def cases_csv(self) -> str:
        """The value of every case of every run."""
        return _csv(self.case_rows())


def compare_runs(
    folders: Sequence[Path], metric: str = "", structure: str = "", *, seed: int = 0, progress: Progress | None = None
) -> RunComparison:
    """Put runs beside each other; whatever one of them lacks is told in a sentence and the rest is compared.

    Args:
        folders: two or more run directories, in the order of the tables.
        metric: one of `METRICS`; empty takes the first that all runs with scores have.
        structure: class to compare by; empty takes the mean over all of a case.
        seed: of the bootstrap.
        progress: told how far measuring on label volumes is.

    Raises:
        RunError: fewer than two runs, one named twice, or a folder that is no run.
        ConfigError: a metric or structure that these runs do not have.
    """
    opened = _opened(folders)
    labels = _labels(opened)
    configs = [run.config() for run in opened]
    have = [metrics_of(run.path, config) for run, config in zip(opened, configs, strict=True)]
    scored = [names for names, _ in have if names]
    common = tuple(name for name in METRICS if scored and all(name in names for names in scored))
    chosen = _chosen(metric, common, scored)
    runs: list[ComparedRun] = []
    for number, (run, config, label) in enumerate(zip(opened, configs, labels, strict=True)):
        scores, note = _scores(run, config, have[number], chosen, _part(progress, label, number, len(opened)))
        values = averaged(scores, structure)
        mean = bootstrap_mean(list(values.values()), seed=seed)
        facts = (_dataset_name(config), read_curves(run), have[number][0], scores, values, mean, note)
        runs.append(ComparedRun(label, run.path, config, *facts))
    structures = tuple(dict.fromkeys(name for run in runs for case in run.scores.values() for name in case))
    if structure and structure not in structures:
        offer = ", ".join(structures) or "none"
        raise ConfigError(f"No case of these runs has the structure {structure!r}.", f"They have: {offer}.")
    tested = {run.label: run.values for run in runs if run.values}
    pairs = tuple(compare_pairs(tested, seed=seed)) if chosen else ()
    return RunComparison(
        tuple(runs), chosen, structure, structures, common, pairs, differences(configs), tuple(_notes(runs, chosen))
    )


def check_target(path: Path) -> None:
    """Refuse, before any work, a file that cannot be written."""
    path = Path(path)
    if path.is_dir():
        raise RunError(f"{path.name} is a folder, but the name of a file is needed.", "Add a name.")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        why = "one may not write there" if path.parent.is_dir() else "there is no such folder"
        raise RunError(f"{path.name} cannot be written to {path.parent}: {why}.", "Choose another place.")


def save(path: Path, text: str) -> Path:
    """Write an export, whole or not at all; a `RunError` says why it cannot be."""
    check_target(path)
    try:
        write_text(path, text)
    except OSError as error:
        why = error.strerror or str(error)
        raise RunError(f"{path.name} cannot be written to {path.parent}: {why}.", "Choose another place.") from error
    return path


def pair_sentence(pair: Pair, metric: Metric) -> str:
    """What the statistics of a pair say, in words."""
    if not pair.cases:
        return f"{pair.second} and {pair.first}: {_small(pair.note)}"
    change = pair.difference
    better = (change.mean > 0) == metric.higher
    count = f"{pair.cases} case{'s' if pair.cases != 1 else ''}"
    between = f"[{change.low:+.3f}, {change.high:+.3f}]"
    what = "as well as" if not change.mean else "better than" if better else "worse than"
    said = f"{pair.second} does {what} {pair.first} on average, {metric.title} {change.mean:+.3f} {between} on {count}"
    if pair.p is None:
        return f"{said}. {pair.note}"
    corrected = "" if pair.p_holm in (None, pair.p) else f", {_p(pair.p_holm)} after Holm's correction"
    return f"{said}, p {_p(pair.p)}{corrected}. {pair.note}".strip()


def _opened(folders: Sequence[Path]) -> list[RunDirectory]:
    if len(folders) < 2:
        raise RunError(
            f"A comparison needs at least two runs, but {len(folders) or 'none'} was named.",
            "Name the reference first, then the others.",
        )
    found = [RunDirectory.open(Path(folder)) for folder in folders]
    twice = [path for path, count in Counter(run.path.resolve() for run in found).items() if count > 1]
    if twice:
        raise RunError(f"The run {twice[0].name} was named twice.", "Compare it with another one.")
    return found


def _labels(runs: Sequence[RunDirectory]) -> list[str]:
    """Names of the runs; those that share one get as much of the end of their path as tells them apart."""
    names = [str(run.record().get("name") or run.path.name) for run in runs]
    ends = distinct_ends([str(run.path.resolve()) for run in runs])
    count = Counter(names)
    return [end if count[name] > 1 or name in ends else name for name, end in zip(names, ends, strict=True)]


def _chosen(metric: str, common: tuple[str, ...], scored: Sequence[tuple[str, ...]]) -> Metric | None:
    if not metric:
        return METRICS[common[0]] if common else None
    if metric not in METRICS:
        raise ConfigError(f"There is no metric {metric!r}.", f"There are: {', '.join(METRICS)}.")
    if metric not in common:
        offer = ", ".join(common) or "none that is shared" if scored else "none, because no run has scored cases"
        raise ConfigError(f"These runs cannot be compared by {metric}.", f"Metrics of all their cases: {offer}.")
    return METRICS[metric]


def _scores(
    run: RunDirectory, config: RunConfig, have: tuple[tuple[str, ...], str], metric: Metric | None, progress: Any
) -> tuple[Scores, str]:
    names, note = have
    if metric is None or metric.name not in names:
        return {}, note
    try:
        scores = read_scores(run.path, config, metric.name, progress)
    except Med3dError as error:
        return {}, str(error)
    return scores, "" if averaged(scores) else "None of its validation cases has the truth to score against."


def _part(progress: Progress | None, label: str, number: int, count: int) -> Any:
    if progress is None:
        return None
    return lambda share: progress((number + share) / count, f"Measuring {label}") is not False


def _notes(runs: Sequence[ComparedRun], metric: Metric | None) -> list[str]:
    notes = []
    tasks = dict.fromkeys(run.task for run in runs)
    if len(tasks) > 1:
        notes.append(f"These runs do different things ({', '.join(tasks)}); their best values do not compare.")
    if metric is None:
        several = sum(bool(run.metrics) for run in runs) > 1
        why = "no metric of a single case is shared by these runs" if several else "fewer than two have scored cases"
        notes.append(f"Only curves and settings are compared, because {why}.")
    notes += [f"{run.label}: {run.note}" for run in runs if run.note]
    damaged = [(run.label, run.curves.damaged) for run in runs if run.curves.damaged]
    for label, count in damaged:
        lines = "1 line of its events is" if count == 1 else f"{count} lines of its events are"
        notes.append(f"{label}: {lines} damaged and left out of the curves.")
    scored = [set(run.values) for run in runs if run.values]
    if len(scored) > 1 and any(cases != scored[0] for cases in scored):
        shared, each = len(set.intersection(*scored)), ", ".join(str(len(cases)) for cases in scored)
        notes.append(
            f"The runs scored different cases ({each}), {shared or 'none'} of them in common. "
            "Means are over each run's own cases; pairs are compared on the cases that both scored."
        )
    if len({run.dataset for run in runs}) > 1:
        notes.append("The runs learnt from different datasets; cases count as the same when their ids are.")
    return notes


def _dataset_name(config: RunConfig) -> str:
    folder = Path(config.data.dataset)
    try:
        return str(json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return folder.name


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    made = io.StringIO()
    csv.writer(made, lineterminator="\n").writerows(rows)
    return made.getvalue()


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _small(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
