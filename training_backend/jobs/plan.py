"""Plans: a parent run whose stages are runs of their own, worked through one after another by a small process.

::

    PLAN/run.json, config.yaml, events.jsonl, control/ ...   as of any run; kind "plan"
    PLAN/plan.yaml                                           the `PlanConfig`
    PLAN/start/                                              decoders and buffer of a run that the plan starts from
    PLAN/stages/01-1D_text/                                  run of a stage, with decoders/, buffer/, forgetting.json
    PLAN/forgetting.csv, forgetting.json                     what every stage left of every modality

The plan's process trains nothing itself: each stage, and what is measured after it, runs in a child, which saves and
ends when the plan's process is gone. Nothing is done twice: a plan goes on where it was, whatever ended it.
"""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from training_backend.config.plan import PlanConfig, StageConfig
from training_backend.engine import worker
from training_backend.engine.control import Control
from training_backend.engine.events import ENDED, EventReader
from training_backend.engine.identity import process
from training_backend.engine.report import Reporter
from training_backend.engine.rundir import RunDirectory
from training_backend.errors import ConfigError, Med3dError, RunError
from training_backend.evaluate.forgetting import Row, read, write
from training_backend.evaluate.stage_end import DONE
from training_backend.files import write_text
from training_backend.jobs import launcher
from training_backend.jobs.plan_stages import (
    BEGIN,
    CONFIG,
    Start,
    beginning,
    check_data,
    doubt,
    from_run,
    is_plan,
    planned_steps,
    read_plan,
    stage_config,
    stage_folder,
    start_of,
)
from training_backend.jobs.registry import summary

log = logging.getLogger("training_backend.run")

POLL_S = 0.3
KIND = "plan"


def create(folder: Path, plan: PlanConfig) -> RunDirectory:
    """New plan in state "queued"; its data and weights are looked at first.

    Raises:
        DataError: the data of a stage are missing or of another modality.
        RunError: the folder holds a run.
        WeightsError: nothing can start from its weights.
    """
    plan = plan.located()
    for stage in plan.stages:
        check_data(stage)
    stage_config(plan, 1, start_of(plan.weights))
    write = RunDirectory.begun(Path(folder), "", {"kind": KIND, "method": "medcoss", "task": None}, plan.name)
    _write_plan(write, plan)
    return write


def add_stage(run: RunDirectory, stage: StageConfig) -> PlanConfig:
    """Append a stage to a plan, which then has something left to do; refuses while it runs."""
    if _is_worked_on(run):
        raise RunError(f"The plan {run.path.name} is being worked on.", "Stop it before a stage is added.")
    plan = read_plan(run.path)
    stages = [*plan.model_dump()["stages"], stage.model_dump()]
    longer = PlanConfig.parse({**plan.model_dump(), "stages": stages}).located()
    check_data(longer.stages[-1])
    _write_plan(run, longer)
    run.update(state="queued", reason="A stage was added.", ended=None)
    return longer


def change_plan(run: RunDirectory, plan: PlanConfig) -> None:
    """Take other settings over into a plan; stages that have begun stay what they are, but for what is kept of them.

    Raises:
        ConfigError: a stage that has begun would be another one.
    """
    plan, old = plan.located(), read_plan(run.path)
    begun = [number for number, _ in enumerate(old.stages, 1) if (_folder(run, old, number) / "run.json").exists()]
    if begun and _learnt(plan, len(begun)) != _learnt(old, len(begun)):
        raise ConfigError(
            f"{run.path} holds a plan with other settings, {len(begun)} stages of which have begun.",
            "Choose another --output, or add stages with: med3dssl plan add.",
        )
    if plan.to_yaml() != old.to_yaml():
        if _is_worked_on(run):
            raise RunError(f"The plan {run.path.name} is being worked on.", "Stop it before it is changed.")
        for stage in plan.stages:
            check_data(stage)
        _write_plan(run, plan)
        if summary(run).state == "finished":
            run.update(state="queued", reason="The plan was changed.", ended=None)


def _is_worked_on(run: RunDirectory) -> bool:
    found = summary(run)
    return found.alive and found.state not in ENDED


def _learnt(plan: PlanConfig, count: int) -> dict[str, Any]:
    """What decides how the first stages of a plan are trained."""
    values = plan.model_dump(mode="json", exclude={"name", "buffer", "probe"})
    return {**values, "stages": [{**stage, "buffer": None} for stage in values["stages"][:count]]}


def main(arguments: Sequence[str]) -> int:
    """Command line of a worker: a run directory, of a plan or of a single run."""
    if len(arguments) == 1 and is_plan(Path(arguments[0])):
        return worker.execute(RunDirectory.open(Path(arguments[0])), work)
    return worker.main(arguments)


def work(run: RunDirectory, control: Control, report: Reporter) -> str:
    """Work through the stages of a plan from where it is; answers in which state it ends."""
    plan = read_plan(run.path)
    progress = _Progress(run, plan, report)
    report.state("running")
    ending = _begin(run, plan, control, report)
    if ending != "finished":
        return _ended(report, ending, "Before the first stage.")
    start = beginning(run.path, plan)
    rows: list[Row] = []
    for number, stage in enumerate(plan.stages, 1):
        folder = _folder(run, plan, number)
        if not (folder / DONE).exists():
            ending = _stage(run, plan, number, start, control, report, progress)
            if ending != "finished":
                return _ended(report, ending, f"In stage {number} of {len(plan.stages)}, {stage.modality}.")
        progress.finished(number, folder)
        rows = read(folder)
        write(rows, run.path)
        report.event("forgetting", stage=number, modality=stage.modality, rows=[vars(row) for row in rows])
        start = from_run(folder)
    report.event("done", score=None, seconds=0.0)
    return _ended(report, "finished", "")


def _begin(run: RunDirectory, plan: PlanConfig, control: Control, report: Reporter) -> str:
    """Make buffer and decoders of a run that the plan starts from and that has none; without its data that is told."""
    before = beginning(run.path, plan).folder
    if before is None or (before / DONE).exists() or (before / "decoders").exists():
        return "finished"
    folder = run.path / BEGIN
    folder.mkdir(exist_ok=True)
    try:
        return _measured(run, 0, folder, control)
    except RunError as error:
        report.warning(f"Nothing of what {before.name} was taught is rehearsed or measured: {error.sentence}", "data")
        return "finished"


def _ended(report: Reporter, state: str, reason: str) -> str:
    report.state(state, reason)
    return state


def _stage(
    run: RunDirectory,
    plan: PlanConfig,
    number: int,
    start: Start,
    control: Control,
    report: Reporter,
    progress: _Progress,
) -> str:
    """Train a stage and measure after it; answers how that ended."""
    stage, folder = plan.stages[number - 1], _folder(run, plan, number)
    trained = (folder / "run.json").exists() and summary(folder).state == "finished"
    name = folder.relative_to(run.path).as_posix()
    if not trained:
        if told := doubt(stage, check_data(stage)):
            report.warning(told, "data")
        own = _prepared(folder, plan, number, start)
        report.event("stage", stage=number, modality=stage.modality, run=name, phase="training")
        ending = _Child(own, control, report, progress, number).follow()
        if ending != "finished":
            return ending
    report.event("stage", stage=number, modality=stage.modality, run=name, phase="measuring")
    ending = _measured(run, number, folder, control)
    if ending == "finished":
        report.event("stage", stage=number, modality=stage.modality, run=name, phase="finished")
    return ending


def _prepared(folder: Path, plan: PlanConfig, number: int, start: Start) -> RunDirectory:
    """Run directory of a stage; one that has begun gets the places that its files have now."""
    config = stage_config(plan, number, start)
    if not (folder / "run.json").exists():
        return RunDirectory.create(folder, config, folder.name)
    own, method = RunDirectory.open(folder), config.method.model_dump()
    moved = {
        "weights": config.weights,
        "data": {"dataset": config.data.dataset},
        "method": {
            "rehearsal": {"buffers": method["rehearsal"]["buffers"]},
            "text": {"source": method["text"]["source"]},
        },
    }
    write_text(own.config_path, own.config().updated(moved).to_yaml())
    return own


@dataclass
class _Child:
    """The run of a stage as the plan's process sees it: started, told what is asked of the plan, watched to its end."""

    own: RunDirectory
    control: Control
    report: Reporter
    progress: _Progress
    number: int
    pausing: bool = False

    def follow(self) -> str:
        """Start or continue the run and wait; answers "finished", "cancelled" or "paused".

        Raises:
            RunError: the run failed or was lost.
        """
        reader = EventReader(self.own.events_path)
        reader.read()
        launcher.launch(self.own, listed=False, with_parent=True)
        while True:
            time.sleep(POLL_S)
            self.progress.told(self.number, reader.read())
            found = summary(self.own)
            ending = self._forwarded(found.state, found.alive)
            if ending:
                return ending
            if found.alive:
                continue
            if found.state == "paused" and not self.pausing:
                launcher.launch(self.own, listed=False, with_parent=True)
            elif found.state in ("finished", "cancelled"):
                self.control.obeyed("stop")
                return found.state
            elif found.state in ("failed", "lost", "damaged"):
                error = self.own.error() or {}
                why, what = error.get("sentence") or found.sentence, error.get("hint") or "Mend it."
                raise RunError(
                    f"The stage {self.own.path.name} {'failed' if found.state == 'failed' else 'was lost'}: {why}",
                    f"{what} What was learnt is kept; resume the plan then.",
                )

    def _forwarded(self, state: str, alive: bool) -> str:
        """Hand on what is asked of the plan; answers an ending when the process must go at once."""
        asked = self.control.pending()
        if "terminate" in asked:
            self._terminate()
            return "paused"
        for what in ("save", "preview"):
            if what in asked:
                self.own.request(what)
                self.control.obeyed(what)
        if "stop" in asked:
            if not self.own.requested("stop"):
                launcher.stop(self.own)
        elif "pause" in asked:
            if not self.pausing:
                self.own.request("pause")
                self.pausing = True
            if state == "paused":
                self._wait_paused()
        return ""

    def _wait_paused(self) -> None:
        """The plan says that it is paused until the request is withdrawn."""
        self.report.state("paused", f"Paused in stage {self.number}.")
        while self.control.pending() == {"pause"}:
            time.sleep(POLL_S)
        if "pause" not in self.control.pending():
            self.report.state("running")
        self.own.withdraw("pause")
        self.pausing = False

    def _terminate(self) -> None:
        found = process(self.own.record())
        if found is not None:
            found.terminate()
            try:
                found.wait(timeout=30)
            except psutil.TimeoutExpired as error:
                log.warning("the stage did not end in time: %s", error)


def _measured(run: RunDirectory, number: int, folder: Path, control: Control) -> str:
    """Let a child make the buffer of a trained stage and measure what was forgotten.

    Raises:
        RunError: it could not.
    """
    problem = folder / "stage_error.txt"
    problem.unlink(missing_ok=True)
    arguments = ["-m", "training_backend", "end-stage", str(run.path.resolve()), str(number)]
    child = launcher.start_detached(arguments, folder / "log.txt", folder, with_parent=True)
    while child.poll() is None:
        asked = control.pending()
        if asked & {"terminate", "stop", "pause"}:
            child.terminate()
            _reap(child)
            control.obeyed("stop")
            return "cancelled" if "stop" in asked else "paused"
        time.sleep(POLL_S)
    if child.returncode == 0 and (folder / DONE).exists():
        return "finished"
    sentence = problem.read_text(encoding="utf-8") if problem.is_file() else "its process ended without a word."
    raise RunError(f"After the stage {folder.name} was trained, {sentence}", "Resume the plan to try again.")


def _reap(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def end_stage_main(arguments: Sequence[str]) -> int:
    """Command line of the child that measures: the plan's folder and the number of the stage."""
    from training_backend.evaluate.stage_end import end_stage

    run, number = RunDirectory.open(Path(arguments[0])), int(arguments[1])
    plan = read_plan(run.path)
    before = beginning(run.path, plan).folder
    folder = run.path / BEGIN if number == 0 else _folder(run, plan, number)
    source = before if number == 0 and before is not None else folder
    previous = {0: None, 1: before}[number] if number < 2 else _folder(run, plan, number - 1)
    own = None if number == 0 else plan.stages[number - 1].buffer
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    config = RunDirectory.open(source).config()
    kept, device = own or plan.buffer, _device(config.engine.device)
    if config.engine.threads:  # as in training, so that the numbers are the same on any machine
        import torch

        torch.set_num_threads(config.engine.threads)
    try:
        end_stage(folder, config, kept, plan.probe, source=source, previous=previous, device=device)
    except Med3dError as error:
        text = str(error)
        write_text(folder / "stage_error.txt", text[:1].lower() + text[1:])
        log.error("%s", error)
        return 1
    return 0


def _device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class _Progress:
    """Steps of the whole plan, as those of its stages add up, so that curves go on from stage to stage."""

    def __init__(self, run: RunDirectory, plan: PlanConfig, report: Reporter) -> None:
        self.report, self.plan = report, plan
        self.planned = {number: planned_steps(plan, run.path, number) for number in range(1, len(plan.stages) + 1)}
        self.done: dict[int, int] = {}
        begun = [_folder(run, plan, number) for number in self.planned]
        self.report.step = sum(summary(folder).step for folder in begun if (folder / "run.json").exists())

    def told(self, number: int, events: Sequence[dict[str, object]]) -> None:
        """Pass the last training metrics of a stage on."""
        metrics = [event for event in events if event["type"] == "metrics" and event.get("split") == "train"]
        for warning in (event for event in events if event["type"] == "warning"):
            self.report.warning(f"{self.plan.stages[number - 1].modality}: {warning.get('message')}", "stage")
        if not metrics:
            return
        last = metrics[-1]
        self.planned[number] = int(str(last.get("steps", 0)))
        self.report.step = sum(self.done.values()) + int(str(last["step"]))
        kept = {key: last[key] for key in ("values", "lr", "step_s", "memory_mb") if key in last}
        self.report.event("metrics", split="train", epoch=float(number), steps=sum(self.planned.values()), **kept)

    def finished(self, number: int, folder: Path) -> None:
        """Count a stage's steps as done."""
        self.done[number] = self.planned[number] = summary(folder).step
        self.report.step = sum(self.done.values())


def _folder(run: RunDirectory, plan: PlanConfig, number: int) -> Path:
    return stage_folder(run.path, number, plan.stages[number - 1])


def _write_plan(run: RunDirectory, plan: PlanConfig) -> None:
    text = plan.to_yaml()
    write_text(run.path / CONFIG, text)
    write_text(run.config_path, text)
