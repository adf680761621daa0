"""Moves weights into a network, and says what became of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training_backend.config import RunConfig
from training_backend.config.registry import method as find_method
from training_backend.errors import Med3dError, WeightsError
from training_backend.weights.families import title
from training_backend.weights.report import ImportReport
from training_backend.weights.source import Source, open_source

if TYPE_CHECKING:
    from torch import Tensor, nn


def init_from(
    module: nn.Module,
    source: str | Path,
    config: RunConfig,
    *,
    changes: Mapping[str, Any] | None = None,
    network: nn.Module | None = None,
) -> ImportReport:
    """Start a run from weights: the whole network for pre-training, the encoder alone for fine-tuning.

    Networks that say so themselves (`starts_whole`) take whatever fits of the weights, a decoder say, or not; so does a
    run that tells the same classes apart as a segmentation model that it starts from.

    Args:
        module: the run's network, or its encoder; unchanged when the weights are refused.
        source: run directory, model folder, weights file, or ``zoo:NAME``.
        config: of the run.
        changes: for what a foreign file does not tell; see `open_source`.
        network: of a fine-tuning run, used in place of its encoder where the task goes on.

    Raises:
        WeightsError: unusable file, weights of another method, or less than 90 % of the encoder found.
    """
    found = open_source(source, changes)
    wanted = find_method(config.method.name).family
    if found.family.name != wanted:
        raise WeightsError(
            f"{source} holds weights of {title(found.family.name)}, but this run learns with {title(wanted)}.",
            f"Choose weights of {title(wanted)}, or the other method.",
        )
    if reason := found.family.conflict(found.config, config):
        raise WeightsError(reason)
    whole = bool(getattr(module, "starts_whole", config.task is None))
    if network is not None and _goes_on(found, config):
        module, whole = network, True
    reader = getattr(network, "text_of_weights", None)
    text = {} if reader is None else _text_model(reader, found)
    report = transfer(module, found, config, encoder_only=not whole)
    if reader is not None:
        reader.load_state_dict(text, strict=False)
    return report


def _text_model(reader: nn.Module, source: Source) -> dict[str, Tensor]:
    """Weights of a text model, all but those that nothing reads.

    Raises:
        WeightsError: the source has none, or another one.
    """
    begin = source.family.text
    given = {name.removeprefix(begin): tensor for name, tensor in source.tensors.items() if name.startswith(begin)}
    if not begin or not given:
        raise WeightsError(
            f"{source.name} holds no text model.",
            "Choose weights of MG-3D's pre-training, or set task.reader to text or phrases.",
        )
    own = {name: tensor for name, tensor in reader.state_dict().items() if not name.startswith("pooler.")}
    lacking = [name for name in own if name not in given and not name.endswith("position_ids")]
    other = [name for name in own if name in given and given[name].shape != own[name].shape]
    deeper = [name for name in given if name.startswith("encoder.layer.") and name not in own]
    if wrong := [*lacking, *other, *deeper]:
        raise WeightsError(
            f"The text model of {source.name} is another one than task.text.source says: {wrong[0]} differs.",
            "Name the text model that the weights were trained with.",
        )
    return {name: given[name] for name in own if name in given}


def _goes_on(source: Source, config: RunConfig) -> bool:
    """Whether a segmentation run begins with weights that tell the same classes apart, thus with their decoder."""
    from training_backend.tasks.segmentation import class_names

    if source.kind != "finetune" or config.task is None or source.config.task is None:
        return False
    if not config.task.name == source.config.task.name == "segmentation":
        return False
    theirs: tuple[str, ...] = getattr(source.config.task, "classes", ())
    return bool(theirs) and theirs == class_names(config)


def transfer(module: nn.Module, source: Source, config: RunConfig, *, encoder_only: bool = False) -> ImportReport:
    """Copy what fits of `source` into `module`, a network (or encoder) of `config`.

    Raises:
        WeightsError: less than 90 % of the encoder, or none of an essential part, was found, or the text model is of
            another width; nothing was copied then.
    """
    own = module.state_dict()
    encoder = {source.family.canonical(name) for name in encoder_names(config)}
    taken: dict[str, Tensor] = {}
    fates: dict[str, list[Any]] = {fate: [] for fate in ("matched", "resized", "missing", "mismatched")}
    for name, tensor in own.items():
        published = source.family.canonical(name)
        given = source.tensors.get(published)
        if given is None or (encoder_only and published not in encoder):
            fates["missing"].append(published)
            continue
        shapes = (published, tuple(given.shape), tuple(tensor.shape))
        fitted = source.family.fit(published, given, shapes[2], source.config, config)
        if fitted is None:
            fates["mismatched"].append(shapes)
            continue
        taken[name] = fitted
        fates["matched"].append(published)
        if fitted is not given:
            fates["resized"].append(shapes)
    if source.family.text and not encoder_only:
        _check_width(source, fates["mismatched"])
    wanted = source.family.asked(encoder, source.tensors, config)
    report = _report(source, fates, wanted & {source.family.canonical(name) for name in own})
    report.checked(source.family.essential, _reason(source.config, config))
    module.load_state_dict(taken, strict=False)
    return report


def _check_width(source: Source, mismatched: list[Any]) -> None:
    """Refuse weights whose text model is of another width; nothing of it could be taken over."""
    for name, theirs, ours in mismatched:
        if name == f"{source.family.text}embeddings.LayerNorm.weight":
            raise WeightsError(
                f"The text model of {source.name} is {theirs[0]} wide, but the one of this run is {ours[0]} wide.",
                f"Name a text model of {theirs[0]} channels in the settings of the text.",
            )


def _report(source: Source, fates: Mapping[str, list[Any]], encoder: set[str]) -> ImportReport:
    matched = set(fates["matched"])
    used = matched | {name for name, *_ in fates["mismatched"]}
    left = [name for name in source.tensors if name not in used]
    known = re.compile(source.family.known)
    return ImportReport(
        source=source.name,
        family=source.family.name,
        kind=source.kind,
        **{fate: tuple(entries) for fate, entries in fates.items()},
        dropped=tuple(name for name in left if known.fullmatch(name)),
        unexpected=tuple(name for name in left if not known.fullmatch(name)),
        encoder=len(encoder),
        encoder_matched=len(encoder & matched),
        licence=str(source.card.get("licence", "")),
        notes=source.notes,
    )


def encoder_names(config: RunConfig) -> set[str]:
    """Names of the encoder's tensors, from one that is built without memory."""
    return set(_shapes(config))


def _shapes(config: RunConfig) -> dict[str, tuple[int, ...]]:
    import torch

    with torch.device("meta"):
        encoder: Any = find_method(config.method.name).build_encoder(config)
    return {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}


def _reason(old: RunConfig, new: RunConfig) -> str:
    """Settings that make the encoders differ, as advice; those that no tensor of an encoder shows are left out."""
    theirs, ours = old.method.model_dump(), new.method.model_dump()
    built, told = _shapes(new), []
    for name in theirs:
        if name not in ours or theirs[name] == ours[name]:
            continue
        try:
            alike = _shapes(new.updated({"method": {name: theirs[name]}})) == built
        except (Med3dError, ValueError):  # the setting agrees only with others of the file
            alike = False
        if not alike:
            words = ["empty" if value is None else value for value in (theirs[name], ours[name])]
            told.append(f"method.{name} {words[0]} (not {words[1]})")
    return f"Its settings are {', '.join(told)}." if told else ""
