"""The result of a run: the best model with its card, and its predictions of the validation cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from training_backend.config import RunConfig
from training_backend.data.manifest import CaseRecord
from training_backend.data.prepare import Prepared, stored_input
from training_backend.data.views import IGNORED
from training_backend.data.volume import Volume
from training_backend.data.write import write_volume
from training_backend.engine import checkpoint
from training_backend.engine.files import write_json
from training_backend.engine.pairs import write_pair_predictions
from training_backend.engine.report import log
from training_backend.engine.session import Session, with_room
from training_backend.engine.state import load_evaluated
from training_backend.engine.validate import case_results, predict_case, profile_of, validation_cases
from training_backend.errors import DataError
from training_backend.tasks.base import Task

if TYPE_CHECKING:
    from training_backend.engine.work import Work


def export_model(session: Session) -> None:
    """Write ``model.safetensors`` and ``card.json`` of the best checkpoint, or of the newest where none was scored.

    A run that learnt from a snapshot of itself has it beside them, as ``teacher.safetensors``.
    """
    from training_backend.weights.save import save_model
    from training_backend.weights.teacher import save_teacher

    work = session.work
    if not work.runtime.is_main:
        return
    folder, _ = checkpoint.newest_verified(session.run.checkpoints)
    best = work.state.progress.best_step
    if best is not None and not checkpoint.problem(checkpoint.folder_of(session.run.checkpoints, best)):
        folder = checkpoint.folder_of(session.run.checkpoints, best)
    if folder is None:
        return
    load_evaluated(work.state.evaluated, checkpoint.read(folder))
    card = card_of(work, checkpoint.step_of(folder))
    card["licence"] = session.run.record().get("weights_licence", "")

    def write() -> None:
        if told := save_teacher(session.run.path, work.state.snapshot, work.snapshot_step or 0):
            card["teacher"] = told
        save_model(session.run.path, work.state.evaluated, card)

    with_room(session, write)
    log.info("exported the model of %s", folder.name)


def card_of(work: Work, step: int) -> dict[str, Any]:
    """What a reader of the weights must know: how to build, prepare and judge the model, and what it learnt from."""
    progress, info = work.state.progress, work.dataset.info
    network = work.state.evaluated
    config = self_contained(work.config)
    if work.task is not None and work.task.contained is not None:
        config = work.task.contained(network, config)
    elif work.task is None:
        config = work.method.contained(network, config)
    config = config.updated({"method": config.method.portable()})
    if config.task is not None:
        config = config.updated({"task": config.task.portable()})
    return {
        "kind": work.config.kind,
        "config": config.model_dump(mode="json"),
        "profile": profile_of(work).model_dump(mode="json"),
        "classes": [entry.model_dump(mode="json") for entry in info.classes],
        "target_names": list(info.target_names),
        "scores": {**progress.best_values, "score": progress.best_score},
        "step": step,
        "seconds": progress.seconds,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "dataset": {"name": info.name, "fingerprint": work.dataset.fingerprint()},
        "left_out": list(work.loader.left_out),
    }


def self_contained(config: RunConfig) -> RunConfig:
    """`config` with everything that the task would look up in the dataset written into it."""
    if config.task is None or config.task.name not in ("segmentation", "registration"):
        return config
    from training_backend.tasks.registration import label_names
    from training_backend.tasks.segmentation import class_names

    names = class_names(config) if config.task.name == "segmentation" else label_names(config)
    return config.updated({"task": {"classes": names}})


def write_predictions(session: Session, stop: Callable[[], bool]) -> None:
    """Label volumes of all validation cases on the grid of each file, and ``cases.json`` with Dice per class.

    ``cases.json`` is a list of `case`, `prediction` (below the run), `image` and `label` (relative to the dataset's
    root), `dice` by class name. Tasks of one answer per case get ``values.json``, a list of `case`, `values` [K] and
    `truth`.
    """
    work = session.work
    if work.task is None or work.needs not in ("labels", "pairs", "target") or not work.runtime.is_main:
        return
    folder, entries = session.run.predictions, []
    folder.mkdir(exist_ok=True)
    if work.needs == "target":
        write_json(folder / "values.json", _answers(work, work.task, stop))
        return
    if work.needs == "pairs":
        write_json(folder / "cases.json", write_pair_predictions(work, folder, stop))
        return
    for case in validation_cases(work):
        prepared = stored_input(work.dataset, case, profile_of(work))
        labels = prepared.restore_labels(predict_case(work, work.task, prepared, stop)).astype(np.uint8)
        path = folder / f"{case.id}.nii.gz"
        write_volume(Volume(labels, prepared.native, name=f"{case.id} prediction"), path, overwrite=True)
        entries.append(
            {
                "case": case.id,
                "prediction": path.relative_to(session.run.path).as_posix(),
                "image": case.images[0].path,
                "label": case.label.path if case.label else None,
                "dice": _dice(work, case, prepared, labels),
            }
        )
    write_json(folder / "cases.json", entries)
    log.info("wrote predictions of %d validation cases", len(entries))


def _answers(work: Work, task: Task, stop: Callable[[], bool]) -> list[dict[str, Any]]:
    work.state.evaluated.eval()
    with torch.no_grad():
        results = case_results(work, task, validation_cases(work), stop)
    return [
        {
            "case": result.case_id,
            "values": np.ravel(result.prediction).tolist(),
            "truth": np.ravel(result.truth).tolist(),
        }
        for result in results
    ]


def _dice(work: Work, case: CaseRecord, prepared: Prepared, labels: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Dice per class name on the grid of the file; classes in neither volume, or not looked for, are left out."""
    from training_backend.data.read import read_classes

    if case.label is None:
        return {}
    try:
        truth = read_classes(work.dataset.source(case.label), key=case.label.key, values=case.label.values).array
    except DataError as error:  # the source was moved away: the stored labels stand in for it
        log.warning("%s", error)
        if prepared.label is None:
            return {}
        truth = prepared.restore_labels(prepared.label)
    result = {}
    known = truth != IGNORED
    for entry in work.dataset.info.classes:
        if case.annotated is not None and entry.index not in case.annotated:
            continue
        mine, theirs = (labels == entry.index) & known, truth == entry.index
        total = int(mine.sum()) + int(theirs.sum())
        if entry.index and total:
            result[entry.name] = 2.0 * int((mine & theirs).sum()) / total
    return result
