"""Where a run may take its first weights from: earlier runs and the zoo. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from training_backend.jobs.registry import RunSummary, list_runs, summary
from training_backend.weights import zoo

if TYPE_CHECKING:
    from training_backend.methods.base import ModelView


DECODERS = "decoders"
"""Folder of a run with the decoders of earlier modalities; each names a model."""


@dataclass(frozen=True)
class WeightsSource:
    """One choice of weights.

    Attributes:
        source: what a configuration names: a run's folder, a decoder that it kept, or ``zoo:NAME``.
        title: what a list shows.
        detail: sentences on origin and licence.
        local: whether it can be used at once.
        page: where it is published; empty for runs.
        downloadable: whether `download` can fetch it.
        kind: "pretrain" or "finetune" for runs, "zoo" for published weights.
    """

    source: str
    title: str
    detail: str
    local: bool = True
    page: str = ""
    downloadable: bool = False
    kind: str = "zoo"


@dataclass(frozen=True)
class ModelFacts:
    """What decides how a model can be shown.

    Attributes:
        method: name of its method.
        kind: "pretrain", "encoder" or "finetune".
        task: name of its task, or None.
    """

    method: str
    kind: str
    task: str | None = None


def model_facts(source: str) -> ModelFacts | None:
    """What the card of a run or model folder says, without reading weights; None where only the weights tell."""
    path = Path(source)
    kept = path.parent.name == DECODERS and path.with_suffix(".json").is_file()
    card = path.with_suffix(".json") if kept else (path if path.is_dir() else path.parent) / "card.json"
    if not kept and not path.is_dir() and not (path.is_file() and path.name == "model.safetensors"):
        return None
    try:
        told = json.loads(card.read_text(encoding="utf-8"))
        config = told["config"]
        task = (config.get("task") or {}).get("name")
        kind = config.get("kind", "pretrain")  # in the description of a decoder, "kind" is that of the modality
        return ModelFacts(config["method"]["name"], kind if kept else told.get("kind", kind), task)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def views_of(facts: ModelFacts | None) -> tuple[ModelView, ...]:
    """What can be shown of a model besides features, similarity and attention, as far as its facts tell."""
    from training_backend.config.registry import methods
    from training_backend.methods.shared_views import all_views

    method = methods().get(facts.method) if facts else None
    if facts is None or method is None:
        return ()
    return tuple(view for view in all_views(method, facts.task) if view.suits(facts.kind, facts.task))


def run_sources(kind: str = "") -> list[WeightsSource]:
    """Runs that have a model, stages of plans among them, newest first; all, or those of one kind."""
    return [
        WeightsSource(str(run.path), name, f"{run.method} {run.task or run.kind} run: {run.sentence}", kind=run.kind)
        for run, name in _named_runs()
        if (run.path / "model.safetensors").is_file() and kind in ("", run.kind)
    ]


def earlier_sources() -> list[WeightsSource]:
    """Modalities of earlier stages, each as the newest encoder after it sees it with the decoder that was kept."""
    found = []
    for run, name in _named_runs():
        for path in sorted((run.path / DECODERS).glob("*.safetensors")):
            own = run.path / "model.safetensors"
            if path.stem == _modality(run.path) or not own.is_file():
                continue
            detail = f"Encoder of {name}, decoder and views of the stage that taught {path.stem}."
            found.append(WeightsSource(str(path), f"{name} as {path.stem}", detail, kind="pretrain"))
    return found


def modalities() -> Mapping[str, str]:
    """Modalities of MedCoSS's authors in the order in which they are taught, and the kind of each: text, 2d or 3d."""
    from training_backend.methods.medcoss_stage import MODALITIES

    return MODALITIES


def continual_sources() -> list[WeightsSource]:
    """What a stage of continual learning may start from: plans, which go on, runs of MedCoSS, and published files."""
    plans = [
        WeightsSource(str(run.path), f"{run.name} (this plan goes on)", "One stage more is appended.", kind=run.kind)
        for run in list_runs()
        if run.kind == "plan" and any((run.path / "stages").glob("*/model.safetensors"))
    ]
    runs = [
        WeightsSource(str(run.path), name, f"Run of {run.method}: {run.sentence}", kind=run.kind)
        for run, name in _named_runs()
        if run.method == "medcoss" and run.task is None and (run.path / "model.safetensors").is_file()
    ]
    return [*plans, *runs, *zoo_sources("medcoss")]


def _named_runs() -> list[tuple[RunSummary, str]]:
    """Every run and its name, each plan followed by its stages, the last first."""
    found: dict[Path, tuple[RunSummary, str]] = {}
    for run in list_runs():
        found.setdefault(run.path.resolve(), (run, run.name))
        if run.kind == "plan":
            for record in sorted((run.path / "stages").glob("*/run.json"), reverse=True):
                stage = summary(record.parent)
                found[record.parent.resolve()] = (stage, f"{run.name} · {stage.name}")
    return list(found.values())


def _modality(run: Path) -> str:
    """What a run of continual learning taught itself, as its card says."""
    try:
        told = json.loads((run / "card.json").read_text(encoding="utf-8"))
        return str(told["config"]["method"]["modality"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def zoo_sources(family: str = "") -> list[WeightsSource]:
    """Published weights; all, or those of one method's family."""
    found = []
    for entry in zoo.entries():
        if family not in ("", entry.family):
            continue
        size = f", {entry.size_mb} MB" if entry.size_mb else ""
        licence = f"Licence: {entry.licence or 'not stated'}{size}. {entry.terms}"
        detail = " ".join(part for part in (f"{entry.title}.", licence, entry.notes, entry.citation) if part)
        local = zoo.target(entry.name).is_file()
        found.append(
            WeightsSource(f"zoo:{entry.name}", f"zoo: {entry.name}", detail, local, entry.page, bool(entry.url))
        )
    return found


def download(source: str, progress: Callable[[float], bool]) -> Path:
    """Fetch published weights whose licence the user has read and accepted; see `weights.zoo.download`."""
    return zoo.download(source, progress, accept_licence=True)
