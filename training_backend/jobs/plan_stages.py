"""From a plan to the settings of its stages: where each one starts, what it rehearses, and whether its data fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training_backend.config import RunConfig, merged
from training_backend.config.plan import PlanConfig, StageConfig
from training_backend.config.presets import pretrain_config
from training_backend.data.dataset import Dataset
from training_backend.data.rehearsal import Buffer, known, load
from training_backend.engine.rundir import RunDirectory
from training_backend.errors import ConfigError, DataError, Med3dError, RunError
from training_backend.methods.medcoss_stage import MODALITIES, TOKENIZER, stage_settings

STAGES = "stages"
BEGIN = "start"
"""Folder of what is made of a run that a plan starts from, and that was no stage of a plan."""
CONFIG = "plan.yaml"
EXPECTED = {"3D_CT": "CT", "3D_MR": "MR"}
"""What the scans of a published modality are, where a dataset says."""
COLOURS = ("blue", "green", "red")
"""Order in which the authors read pathology."""
_NAMES = {"text": "reports", "2d": "2-D images", "3d": "volumes"}


@dataclass(frozen=True)
class Start:
    """What a stage starts from.

    Attributes:
        weights: run or file; empty for random weights.
        method: settings of its network that the stage must share.
        kinds: kinds that its encoder reads.
        buffers: of the modalities that it was taught, the oldest first.
        folder: of its decoders and of what was measured, where it is a run.
    """

    weights: str = ""
    method: dict[str, Any] | None = None
    kinds: tuple[str, ...] = ()
    buffers: tuple[Path, ...] = ()
    folder: Path | None = None


def read_plan(folder: Path) -> PlanConfig:
    """The plan of a plan's folder."""
    return PlanConfig.load(Path(folder) / CONFIG)


def is_plan(folder: Path) -> bool:
    """Whether a folder is that of a plan."""
    return (Path(folder) / CONFIG).is_file() and (Path(folder) / "run.json").is_file()


def stage_folder(folder: Path, number: int, stage: StageConfig) -> Path:
    """Run directory of the stage with a number from 1."""
    return Path(folder) / STAGES / f"{number:02d}-{stage.modality}"


def stage_folders(folder: Path) -> list[Path]:
    """Run directories of all stages of a plan, in order, begun or not."""
    return [stage_folder(folder, number, stage) for number, stage in enumerate(read_plan(folder).stages, 1)]


def start_of(weights: str) -> Start:
    """What `weights` brings: the last finished stage of a plan, a run with its buffers, or a file without any.

    Raises:
        RunError: a plan without a finished stage.
        WeightsError: unusable weights, or not of MedCoSS.
    """
    if not weights:
        return Start()
    folder = Path(weights)
    if is_plan(folder):
        finished = [path for path in stage_folders(folder) if (path / "model.safetensors").is_file()]
        if not finished:
            raise RunError(f"The plan {folder.name} has no finished stage to start from.", "Let it go on first.")
        folder = finished[-1]
    return from_run(folder) if (folder / "run.json").is_file() else _from_file(weights)


def beginning(plan_folder: Path, plan: PlanConfig) -> Start:
    """What the first stage of a plan starts from, with what was made of a run that had no buffer and decoders."""
    start, made = start_of(plan.weights), Path(plan_folder) / BEGIN
    if start.folder is None or not (made / "stage.json").is_file():
        return start
    method = dict(start.method or {})
    if (made / "buffer" / TOKENIZER).is_file():
        method["text"] = {**method.get("text", {}), "source": str(made / "buffer"), "tokeniser": ""}
    return replace(start, method=method, buffers=(*start.buffers, made / "buffer"), folder=made)


def from_run(folder: Path) -> Start:
    """A run of MedCoSS, with the buffers that it rehearsed and its own."""
    import json

    config = RunDirectory.open(folder).config()
    if config.method.name != "medcoss" or config.task is not None:
        raise ConfigError(
            f"{folder.name} is a run of {config.task.name if config.task else config.method.name}, but stages go on "
            "from pre-training with medcoss.",
            "Choose such a run, or a file of MedCoSS or Uni-Perceiver.",
        )
    method: Any = config.method
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))["config"]["method"]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"The run {folder.name} has written no model yet.", "Wait until it ends.") from error
    shared, own = stage_settings(card), folder / "buffer"
    if method.kind != "text" and shared[f"size_{method.kind}"] is None:  # positions were learnt for these views
        shared[f"size_{method.kind}"] = config.data.size
    shared["text"] = method.text.model_dump()  # a card spells the whole tokenizer out, which a file says as well
    if (own / TOKENIZER).is_file():
        shared["text"] |= {"source": str(own), "tokeniser": ""}
    if source := shared["text"]["source"]:
        shared["text"]["source"] = str(_moved(Path(source), folder))
    earlier = (_moved(buffer, folder) for buffer in method.rehearsal.buffers)
    buffers = (*earlier, *((own,) if known(own) else ()))
    kinds = tuple(dict.fromkeys((*method.encodes, method.kind)))
    return Start(str(folder), shared, kinds, buffers, folder)


def _moved(path: Path, folder: Path) -> Path:
    """What the run `folder` calls `path`; when its plan was moved, the same of the stage that lies beside it."""
    beside = [parent.joinpath(*path.parts[-2:]) for parent in (folder.parent, folder.parent.parent)]
    return next((place for place in (path, *beside) if place.exists()), path)


def _from_file(weights: str) -> Start:
    from training_backend.weights.source import open_source

    source = open_source(weights)
    if source.family.name != "medcoss":
        raise ConfigError(
            f"{weights} holds weights of {source.family.name}, but stages go on from MedCoSS or Uni-Perceiver.",
            "Choose another file.",
        )
    method = source.config.method.model_dump()
    kinds = tuple(dict.fromkeys((*method["encodes"], method["kind"])))
    return Start(weights, stage_settings(method), kinds)


def kind_of(stage: StageConfig) -> str:
    """Kind of a stage's modality: as it says, or as published."""
    if stage.kind is not None:
        return stage.kind
    if stage.modality not in MODALITIES:
        raise ConfigError(
            f"{stage.modality} is none of the published modalities ({', '.join(MODALITIES)}), so its kind is unknown.",
            f"Set kind of the stage {stage.modality} to text, 2d or 3d.",
        )
    return MODALITIES[stage.modality]


def check_data(stage: StageConfig) -> Dataset:
    """The dataset of a stage.

    Raises:
        DataError: it is missing, or holds another modality.
    """
    kind = kind_of(stage)
    try:
        dataset = Dataset.open(stage.dataset)
    except DataError as error:
        raise DataError(
            f"The data of the stage {stage.modality} are missing: {error.sentence}",
            "Put them back, or change the stage's dataset in plan.yaml; what was learnt so far is kept.",
        ) from error
    found = _kinds(dataset)
    if kind not in found:
        what = " and ".join(_NAMES[each] for each in found) or "no case that can be used"
        raise DataError(
            f"The stage {stage.modality} teaches {_NAMES[kind]}, but the dataset {dataset.info.name} holds {what}.",
            "Choose another dataset, or another kind of modality.",
        )
    wanted, given = EXPECTED.get(stage.modality), dataset.info.modality
    if wanted and given in ("CT", "MR", "PET", "XR") and given != wanted:
        raise DataError(
            f"The stage {stage.modality} teaches {wanted}, but the dataset {dataset.info.name} holds {given} scans.",
            "Choose another dataset, or give the modality a name of its own.",
        )
    return dataset


def doubt(stage: StageConfig, dataset: Dataset) -> str:
    """What may be wrong with data that could not be refused; empty where nothing is."""
    if stage.modality != "3D_CT" or dataset.info.modality != "unknown" or "intensity" in stage.settings.get("data", {}):
        return ""
    return (
        f"Some scans of the dataset {dataset.info.name} do not look like CT; the stage 3D_CT takes all values for "
        "Hounsfield units."
    )


def _kinds(dataset: Dataset) -> tuple[str, ...]:
    cases = [case for split in ("train", "unlabelled") for case in dataset.cases(split=split)]  # type: ignore[arg-type]
    depths = [case.images[0].shape[0] for case in cases if case.images and case.images[0].shape]
    found = {"text": any(case.has("text") for case in cases), "2d": 1 in depths, "3d": any(d > 1 for d in depths)}
    return tuple(kind for kind, there in found.items() if there)


def stage_config(plan: PlanConfig, number: int, start: Start) -> RunConfig:
    """Settings of the run of the stage with a number from 1.

    Raises:
        ConfigError: settings that do not fit each other.
        DataError: a buffer that cannot be read.
    """
    stage = plan.stages[number - 1]
    kind = kind_of(stage)
    buffers = start.buffers if plan.rehearse else ()
    for folder in buffers:
        load(folder)  # one that has moved is told before a run begins
    optim: dict[str, Any] = {}
    if stage.epochs is not None:
        optim |= {"epochs": stage.epochs, "max_steps": None}
    if stage.steps is not None:
        optim["max_steps"] = stage.steps
    encodes = tuple(each for each in start.kinds if each != kind)
    method = {
        **(start.method or {}),
        "modality": stage.modality,
        "kind": kind,
        "encodes": encodes,
        "rehearsal": {"buffers": buffers},
    }
    wished = merged({"data": _colours(stage, kind)}, merged(plan.settings, stage.settings))
    fixed = {"weights": start.weights, "seed": plan.seed + number - 1, "optim": optim, "method": method}
    return pretrain_config("medcoss", stage.preset or plan.preset, stage.dataset, merged(wished, fixed))


def _colours(stage: StageConfig, kind: str) -> dict[str, Any]:
    """All colours of colour images, in the authors' order, unless the stage says otherwise."""
    try:
        contrasts = Dataset.open(stage.dataset).info.contrasts
    except DataError:  # told when the stage's data are looked at
        return {}
    return {"contrasts": COLOURS} if kind == "2d" and set(contrasts) == set(COLOURS) else {}


def planned_steps(plan: PlanConfig, folder: Path, number: int) -> int:
    """Steps that a stage will take, as far as it can be told before it runs."""
    stage = plan.stages[number - 1]
    try:
        start = Start() if number == 1 else Start(kinds=(), buffers=())
        config = stage_config(plan, number, start)
        if config.optim.max_steps:
            return config.optim.max_steps
        cases = len(Dataset.open(stage.dataset).cases(split="train"))
        return max(1, int(config.optim.epochs * cases / config.optim.batch_size))
    except Med3dError:
        return 0


def buffers_of(folders: Sequence[Path]) -> list[Buffer]:
    """Buffers in the runs `folders`, those that can be read."""
    return [buffer for folder in folders if (buffer := known(folder)) is not None]
