"""How good the network is now: the loss on fixed views when pre-training, the task's metrics on whole cases after."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from training_backend.config.data import AugmentConfig
from training_backend.data.loader import ViewLoader
from training_backend.data.manifest import CaseRecord, Split
from training_backend.data.prepare import InputProfile, Prepared, stored_input
from training_backend.data.streams import joined, open_streams, to_batch
from training_backend.data.views import IGNORED
from training_backend.engine import seeds
from training_backend.engine.pairs import pair_result, read_pair, validation_pairs
from training_backend.tasks.base import Cancelled, CaseResult, Task

if TYPE_CHECKING:
    import numpy.typing as npt

    from training_backend.data.loader import StepViews
    from training_backend.engine.work import Work

TEXTS_AT_ONCE = 64
"""Texts that are predicted in one go."""
MOST_VIEWS = 64
"""Views that the validation loss of pre-training is averaged over."""
UNCHANGED = AugmentConfig(flip=(0, 0, 0)).model_dump()
"""No augmentation."""


def validate(work: Work, stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
    """Metrics of the network that would be exported now; "score" is what the best one is chosen by.

    Returns:
        Metrics by name; empty for a task without a single labelled validation case.

    Raises:
        Cancelled: `stop` answered True in the middle.
    """
    network = work.state.evaluated
    network.eval()
    with torch.no_grad():
        if work.task is None:
            return _view_loss(work, stop)
        return _case_metrics(work, work.task, stop)


def improves(work: Work, score: float) -> bool:
    """Whether `score` beats the best so far: a task's is maximised, the loss of pre-training minimised."""
    best = work.state.progress.best_score
    if not math.isfinite(score):
        return False
    return best is None or (score > best if work.task else score < best)


def validation_cases(work: Work, split: Split = "val") -> list[CaseRecord]:
    """Cases of `split` that have what the task needs."""
    return [case for case in work.dataset.cases(split=split) if case.has(work.needs)]


def predict_case(work: Work, task: Task, prepared: Prepared, stop: Callable[[], bool]) -> npt.NDArray[np.float32]:
    """Probabilities [K, D, H, W] or values [K] of one case."""
    volume = torch.from_numpy(np.ascontiguousarray(prepared.array))[None].to(work.runtime.device)
    with torch.no_grad(), work.runtime.autocast():
        output = task.predict(work.state.evaluated, work.config, volume, lambda share: not stop())
    result: npt.NDArray[np.float32] = output.float().cpu().numpy()
    return result


def profile_of(work: Work) -> InputProfile:
    """How whole cases are prepared for this run's network."""
    return InputProfile.of(work.config, work.dataset.info)


def _view_loss(work: Work, stop: Callable[[], bool]) -> dict[str, float]:
    """Mean loss over fixed views with fixed masks, and scalars of the method; of training cases if none is held out."""
    runtime = work.runtime
    sums: dict[str, tuple[float, float]] = {}
    loader, streams, steps = _fixed_views(work)
    for start, views in steps:
        _check(work, stop)
        micro = work.state.progress.micro_batch
        for offset in range(0, len(views), micro):
            part = views[offset : offset + micro]
            slot = start + runtime.rank * work.views_per_process + offset
            generator = seeds.generator(work.config.seed, seeds.VALIDATION, slot)
            batch = to_batch(loader, streams, part, runtime.device)
            batch.extra = {**batch.extra, "slots": range(slot, slot + len(part))}
            with runtime.autocast():
                output = work.loss(work.state.evaluated, batch, generator)
            for name, value in {**output.scalars, "loss": output.loss}.items():
                count, (total, number) = output.counts.get(name, len(part)), sums.get(name, (0.0, 0.0))
                sums[name] = (total + float(value) * count, number + count)
    means = _means(runtime.gather([sums]))
    return {**means, "score": means["loss"]} if means else {"loss": 0.0, "score": 0.0}


def _means(sums: Sequence[dict[str, tuple[float, float]]]) -> dict[str, float]:
    """Means by name of the (sum, count) of all processes, the loss first."""
    names = sorted({name for own in sums for name in own}, key=lambda name: (name != "loss", name))
    totals = {name: [sum(own.get(name, (0.0, 0.0))[k] for own in sums) for k in range(2)] for name in names}
    return {name: total / max(count, 1) for name, (total, count) in totals.items()}


def _fixed_views(work: Work) -> tuple[ViewLoader, dict[str, ViewLoader], Iterator[tuple[int, StepViews]]]:
    """Loaders of the views, which change none of them at random, and the views of each step by its first slot."""
    config = work.config.updated({"data": {"workers": 0, "augment": UNCHANGED}})
    needs, runtime = work.needs, work.runtime
    split: Split = "val" if any(case.has(needs) for case in work.dataset.cases(split="val")) else "train"
    loader = ViewLoader(work.dataset, config, needs=needs, split=split, rank=runtime.rank, world=runtime.world)
    if work.loader.read_from:  # they wait for a teacher, and here there is none
        loader.read_from = loader.total_steps
    asked = {
        name: replace(stream, config=stream.config.updated({"data": {"augment": UNCHANGED}}))
        for name, stream in work.method.streams(config).items()
        if not stream.interleaved
    }
    streams = open_streams(asked, loader)
    batch = config.optim.batch_size
    steps = math.ceil(min(MOST_VIEWS, loader.views_per_epoch) / batch)
    views_of = itertools.islice(joined(loader, streams), steps)
    return loader, streams, ((index * batch, views) for index, views in enumerate(views_of))


def _case_metrics(work: Work, task: Task, stop: Callable[[], bool]) -> dict[str, float]:
    results = []
    if work.needs == "pairs":
        for moving, fixed in validation_pairs(work)[work.runtime.rank :: work.runtime.world]:
            _check(work, stop)
            pair = read_pair(work, moving, fixed)
            results.append(pair_result(work, pair, f"{moving.id} to {fixed.id}", stop))
    else:
        results = case_results(work, task, validation_cases(work)[work.runtime.rank :: work.runtime.world], stop)
    everyone = sorted(work.runtime.gather(results), key=lambda result: result.case_id)
    return dict(task.evaluate(work.config, everyone)) if everyone else {}


def case_results(work: Work, task: Task, cases: Sequence[CaseRecord], stop: Callable[[], bool]) -> list[CaseResult]:
    """Prediction and truth of single cases, of the network that would be exported now."""
    results: list[CaseResult] = []
    if task.predict_texts is not None:
        for first in range(0, len(cases), TEXTS_AT_ONCE):
            _check(work, stop)
            some = cases[first : first + TEXTS_AT_ONCE]
            with work.runtime.autocast():
                output = task.predict_texts(work.state.evaluated, work.config, [case.report for case in some])
            results += text_results(some, output.float().cpu().numpy())
        return results
    profile = profile_of(work)
    for case in cases:
        _check(work, stop)
        prepared = stored_input(work.dataset, case, profile)
        result = case_result(case, prepared, predict_case(work, task, prepared, stop))
        if task.truth is not None:
            result = replace(result, truth=task.truth(work.state.evaluated, work.config, case))
        results.append(result)
    return results


def case_result(case: CaseRecord, prepared: Prepared, output: npt.NDArray[np.float32]) -> CaseResult:
    """Prediction and truth of a case on the grid of the network's input."""
    spacing = prepared.geometry.spacing_mm
    if prepared.label is not None and output.ndim == 4:
        truth = prepared.label if prepared.padding is None else np.where(prepared.padding, IGNORED, prepared.label)
        return CaseResult(case.id, output.argmax(0).astype(np.uint8), truth, spacing, case.annotated)
    return CaseResult(case.id, output, np.asarray(case.target, np.float32), spacing)


def text_results(cases: Sequence[CaseRecord], outputs: npt.NDArray[np.float32]) -> list[CaseResult]:
    """Prediction and truth of cases whose texts gave `outputs` [B, K]."""
    return [
        CaseResult(case.id, output, np.asarray(case.target, np.float32), (1.0, 1.0, 1.0))
        for case, output in zip(cases, outputs, strict=True)
    ]


def _check(work: Work, stop: Callable[[], bool]) -> None:
    """Give up when the process must end; several processes go on, since all must agree."""
    if work.runtime.world == 1 and stop():
        raise Cancelled
