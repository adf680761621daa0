"""What a plan's run directory tells: its stages, and what was measured after each of them. Read off the Qt thread."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from napari_med3dssl.forgetting_plot import Forgetting
from napari_med3dssl.preflight import Check
from training_backend.data.rehearsal import known
from training_backend.errors import Med3dError

if TYPE_CHECKING:
    from training_backend.config.plan import PlanConfig
    from training_backend.jobs.registry import RunSummary

STAGES = "stages"
"""Folder of the stages below a plan's."""
KIND = "plan"
QUANTITIES = {"loss": "loss", "accuracy": "accuracy of neighbours"}
"""What is measured, and what it is called in the chart."""
STAGE_ACTIONS = ("preview", "save", "clone")
"""What may be asked of a stage itself; its plan starts, pauses and stops it."""


def with_stages(runs: Iterable[RunSummary]) -> list[RunSummary]:
    """The runs, each plan followed by its stages, which are not listed a second time."""
    from training_backend.jobs.registry import summary

    runs = list(runs)
    plans = {run.path.resolve() for run in runs if run.kind == KIND}
    found = []
    for run in runs:
        if plan_of(run) in plans:
            continue
        found.append(run)
        if run.kind == KIND:
            for record in sorted((run.path / STAGES).glob("*/run.json")):
                found.append(limited(summary(record.parent)))
    return found


def limited(run: RunSummary) -> RunSummary:
    """A run with what may be asked of it; of a stage that is less than of a run of its own."""
    plan = plan_of(run)
    if plan is None or not (plan / "plan.yaml").is_file():
        return run
    return replace(run, actions=tuple(action for action in run.actions if action in STAGE_ACTIONS))


def plan_of(run: RunSummary) -> Path | None:
    """Folder of the plan that a run is a stage of, told from its place; None for all others."""
    parent = run.path.resolve().parent
    return parent.parent if parent.name == STAGES else None


def read_forgetting(folder: Path) -> Forgetting:
    """What was measured after each stage of a plan, or of the stages until a run; nothing where it cannot be read."""
    try:
        rows = json.loads((folder / "forgetting.json").read_text(encoding="utf-8"))["rows"]
        stages = list(dict.fromkeys(str(row["stage"]) for row in rows))
        modalities = list(dict.fromkeys(str(row["modality"]) for row in rows))
        values: dict[str, dict[tuple[str, str], float]] = {}
        for row in rows:
            for key, quantity in QUANTITIES.items():
                if row.get(key) is not None:
                    values.setdefault(quantity, {})[row["stage"], row["modality"]] = float(row[key])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return Forgetting()
    return Forgetting(stages, modalities, values)


def plan_checks(plan: PlanConfig) -> list[Check]:
    """What would hinder a plan: data of each stage, and what its first stage can rehearse."""
    from training_backend.jobs.plan_stages import check_data, doubt

    found = []
    for stage in plan.stages:
        try:
            dataset = check_data(stage)
        except Med3dError as error:
            found.append(Check("error", str(error)))
            continue
        cases = len(dataset.cases(split="train"))
        found.append(Check("ok", f"{stage.modality}: {cases} cases to train on in {dataset.info.name}."))
        if told := doubt(stage, dataset):
            found.append(Check("warning", told))
    return [*found, *_start_checks(plan)]


def _start_checks(plan: PlanConfig) -> list[Check]:
    from training_backend.jobs.plan_stages import is_plan, start_of

    folder = Path(plan.weights or "-")
    if not plan.weights:
        return [Check("ok", "The first stage starts from random weights.")]
    if not is_plan(folder) and not (folder / "run.json").is_file():
        text = (
            "A file brings no rehearsal buffers, so what its encoder knew is not kept alive. The published file holds "
            "the decoder of its last stage only: it cannot reconstruct CT and MR."
        )
        return [Check("warning", text)]
    try:
        buffers = [known(place) for place in start_of(plan.weights).buffers]
    except Med3dError as error:
        return [Check("error", str(error))]
    told = [f"{buffer.modality} ({len(buffer.members)} cases)" for buffer in buffers if buffer is not None]
    if not plan.rehearse:
        return [Check("warning", "Nothing is rehearsed, so what the encoder knew may be forgotten.")]
    if not told:
        text = (
            "This run has no rehearsal buffer, so what it knew may be forgotten; make one with: med3dssl plan buffer."
        )
        return [Check("warning", text)]
    taught = sorted({stage.modality for stage in plan.stages} & {one.modality for one in buffers if one is not None})
    if taught:
        text = f"{', '.join(taught)} was taught to this encoder before; give the new stage a name of its own."
        return [Check("error", text)]
    return [Check("ok", f"Rehearses {', '.join(told)}.")]
