"""Plans of continual learning: run, shown, made longer; and buffers of single runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from training_backend.errors import ConfigError
from training_backend.report import Table
from training_backend.watch import RunReport


def plan_run(file: Path, output: Path, detach: bool = False) -> RunReport:
    """Work through a plan: stages, each a modality with its data, taught to one encoder one after another.

    Args:
        file: YAML file of the plan, as the guide on continual learning says.
        output: Folder of the plan; one that exists goes on where it was.
        detach: Return as soon as the process has started.
    """
    from training_backend.config.plan import PlanConfig
    from training_backend.engine.rundir import RunDirectory
    from training_backend.jobs import plan as plans
    from training_backend.jobs.registry import summary
    from training_backend.watch import resume

    given = PlanConfig.load(file).located(Path(file).parent)
    output = Path(output)
    if not (output / "run.json").exists():
        run = plans.create(output, given)
    elif plans.is_plan(output):
        run = RunDirectory.open(output)
        plans.change_plan(run, given)
        if summary(run).state == "finished":
            return RunReport(summary(run))
    else:
        raise ConfigError(f"{output} holds a single run.", "Choose another --output, or: med3dssl plan add.")
    return resume(run, detach=detach)


def plan_add(
    folder: Path,
    modality: str,
    data: Path,
    kind: Literal["", "text", "2d", "3d"] = "",
    output: Path | None = None,
    preset: str = "",
    epochs: float | None = None,
    steps: int | None = None,
    set: tuple[str, ...] = (),
    detach: bool = False,
) -> RunReport:
    """Teach an existing encoder a new modality, without forgetting what its buffers show.

    Args:
        folder: What to start from: a plan, which gets one stage more; or a run, or a file of MedCoSS or
            Uni-Perceiver, from which a plan of one stage begins in --output.
        modality: 1D_text, 2D_xray, 3D_CT, 3D_MR, 2D_path, or a name of your own.
        data: Dataset made by med3dssl data ingest.
        kind: text, 2d or 3d, where the modality has a name of your own.
        output: Folder of a new plan; without one, the plan that is given gets the stage.
        preset: tiny, small, base or published; that of the plan, or small.
        epochs: Passes over the data; those of the preset.
        steps: Optimiser steps, in place of epochs.
        set: Further settings of the run as KEY=VALUE, e.g. optim.lr=3e-4.
        detach: Return as soon as the process has started.
    """
    from training_backend.api.runs import changes
    from training_backend.config.plan import PlanConfig, StageConfig
    from training_backend.engine.rundir import RunDirectory
    from training_backend.jobs import plan as plans
    from training_backend.watch import resume

    stage = StageConfig.parse(
        {
            "modality": modality,
            "kind": kind or None,
            "dataset": Path(data).resolve(),
            "preset": preset,
            "epochs": epochs,
            "steps": steps,
            "settings": changes(set),
        },
        where="stage",
    )
    if plans.is_plan(folder) and output is None:
        run = RunDirectory.open(folder)
        plans.add_stage(run, stage)
    elif output is None:
        raise ConfigError(f"{folder} is no plan, so a new one begins.", "Say where with --output FOLDER.")
    else:
        weights = str(Path(folder).resolve()) if Path(folder).exists() else str(folder)
        begun = {"weights": weights, "preset": preset or "small", "stages": [stage.model_dump()]}
        run = plans.create(Path(output), PlanConfig.parse(begun))
    return resume(run, detach=detach)


def plan_show(folder: Path) -> Table:
    """Show the stages of a plan, and what each of them left of the modalities before it.

    Args:
        folder: Folder of the plan.
    """
    from training_backend.evaluate.forgetting import read
    from training_backend.jobs.plan_stages import read_plan, stage_folder
    from training_backend.jobs.registry import summary

    plan = read_plan(folder)
    rows = read(folder)
    table = Table(("stage", "modality", "state", "step", "cases kept", "loss of each modality since (forgotten)"))
    for number, stage in enumerate(plan.stages, 1):
        place = stage_folder(folder, number, stage)
        begun = (place / "run.json").exists()
        now = summary(place) if begun else None
        told = [
            f"{row.modality} {row.loss:.4f}" + (f" ({row.forgotten:+.4f})" if row.modality != row.stage else "")
            for row in rows
            if row.stage == stage.modality and row.loss is not None and row.forgotten is not None
        ]
        table.add(
            str(number),
            stage.modality,
            now.state if now else "waits",
            f"{now.step}/{now.steps}" if now else "-",
            _kept(place),
            ", ".join(told) or "-",
        )
    return table


def plan_buffer(
    folder: Path,
    policy: Literal["kmeans", "random", "herding"] = "kmeans",
    ratio: float = 0.05,
    centres: float = 0.01,
    clusters: int | None = None,
    fill: bool = False,
) -> Table:
    """Choose the cases of a finished run of medcoss that later stages look at again, and show them.

    Args:
        folder: Run directory; a buffer that it has is made anew.
        policy: kmeans as published, random, or herding.
        ratio: Share of the cases that is kept.
        centres: Clusters as a share of the cases.
        clusters: Number of clusters, in place of a share.
        fill: Fill places that small clusters leave empty.
    """
    from training_backend.config.plan import BufferConfig
    from training_backend.data.rehearsal import FOLDER
    from training_backend.engine.rundir import RunDirectory
    from training_backend.evaluate.rehearse import make_buffer
    from training_backend.weights.load import load_model

    config = RunDirectory.open(folder).config()
    settings = BufferConfig(policy=policy, ratio=ratio, centres=centres, clusters=clusters, fill=fill)
    model = load_model(folder)
    placed = model.config.updated({"data": {"dataset": config.data.dataset}})
    buffer = make_buffer(model.module, placed, Path(folder) / FOLDER, settings)
    table = Table(("case", "cluster", "distance"))
    for member in buffer.members:
        table.add(member.case, str(member.cluster), f"{member.distance:.4f}")
    return table


def _kept(place: Path) -> str:
    from training_backend.data.rehearsal import known

    buffer = known(place)
    return "-" if buffer is None else f"{len(buffer.members)} of {buffer.cases}"
