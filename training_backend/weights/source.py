"""Finds weights by what a user may name: a run, a model folder, the authors' file, or an entry of the zoo."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training_backend.config import RunConfig, merged
from training_backend.config.registry import method as find_method
from training_backend.data.manifest import DatasetInfo
from training_backend.data.prepare import InputProfile
from training_backend.errors import WeightsError
from training_backend.weights import zoo
from training_backend.weights.families import Family, family, identified
from training_backend.weights.safe_load import Checkpoint, load_tensors

if TYPE_CHECKING:
    from torch import Tensor

MODEL, CARD = "model.safetensors", "card.json"
CARD_KEY = "med3dssl"
"""Key beside the tensors of exported files that holds the card, as text; the authors' code ignores it."""


@dataclass(frozen=True)
class Source:
    """Weights with everything needed to rebuild and to feed their network.

    Attributes:
        name: file or folder, or ``zoo:NAME``.
        family: how its tensors map onto networks.
        kind: "pretrain", "encoder" or "finetune".
        config: rebuilds the network.
        profile: how scans become its input.
        tensors: by published name; those of an encoder without the prefix ``encoder.``.
        card: as stored, or made for a foreign file.
        notes: sentences on what was assumed about a foreign file.
    """

    name: str
    family: Family
    kind: str
    config: RunConfig
    profile: InputProfile
    tensors: dict[str, Tensor]
    card: dict[str, Any]
    notes: tuple[str, ...] = ()


def open_source(source: str | Path, changes: Mapping[str, Any] | None = None) -> Source:
    """Read weights, whatever names them.

    Args:
        source: run directory, folder of a plan, folder with ``model.safetensors`` and ``card.json`` (or that file), a
            decoder that a run kept of an earlier modality, the authors' file, or ``zoo:NAME``.
        changes: nested changes to the stored or inferred configuration, ``{"method": {"heads": 8}}`` say.

    Raises:
        WeightsError: there is nothing, it is unsafe or damaged, or it belongs to no known system.
    """
    path = locate(source)
    if path.name == MODEL:
        return _own(path, str(source), changes or {})
    from training_backend.weights.earlier import is_earlier, open_earlier  # which open a source themselves

    if is_earlier(path):
        return open_earlier(path)
    checkpoint = load_tensors(path)
    if told := checkpoint.extras.get(CARD_KEY):
        return _with_card(str(told), checkpoint.tensors, str(source), changes or {})
    found = identified(checkpoint.tensors, path.name)
    return _foreign(checkpoint, found, str(source), dict(changes or {}))


def locate(source: str | Path) -> Path:
    """The file behind `source`: ``model.safetensors`` for folders, the downloaded file for zoo entries."""
    if str(source).startswith(zoo.PREFIX):
        return zoo.local_file(str(source))
    path = Path(source).expanduser()
    if not path.is_dir():
        return path
    if (path / MODEL).is_file():
        return path / MODEL
    stages = sorted((path / "stages").glob(f"*/{MODEL}"))  # of a plan, the last one that has a model
    if stages:
        return stages[-1]
    if (path / "run.json").is_file():
        raise WeightsError(f"The run {path.name} has written no model yet.", "Wait until it ends, or stop it.")
    raise WeightsError(f"{path} holds no {MODEL}.", "Choose a run, a model folder, or a weights file.")


def _own(path: Path, name: str, changes: Mapping[str, Any]) -> Source:
    card_path = path.parent / CARD
    try:
        text = card_path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise WeightsError(f"{path} has no {CARD} beside it, which says what it is.", "Copy both files.") from error
    except OSError as error:
        raise WeightsError(f"{card_path} cannot be read: {error}.", "Copy the model again.") from error
    return _with_card(text, _exact(path), name, changes)


def _with_card(text: str, tensors: Mapping[str, Tensor], name: str, changes: Mapping[str, Any]) -> Source:
    """Weights that say themselves what they are."""
    try:
        card = json.loads(text)
    except ValueError as error:
        raise WeightsError(f"The card of {name} cannot be read: {error}.", "Copy or export the model again.") from error
    if not isinstance(card, dict) or not {"config", "profile"} <= set(card):
        raise WeightsError(f"The card of {name} does not describe a model: no config and profile in it.")
    config = RunConfig.parse(merged(card["config"], dict(changes)), where=f"card of {name}")
    profile = InputProfile.parse(card["profile"], where=f"card of {name}")
    importer = replace(family(find_method(config.method.name).family), known=".*")  # any head may be in it
    published = importer.named(tensors, name)
    return Source(name, importer, str(card.get("kind", config.kind)), config, profile, published, card)


def _exact(path: Path) -> dict[str, Tensor]:
    """Tensors of a model of ours, whose names are exact: no common prefix is guessed away."""
    checkpoint = load_tensors(path)
    return {checkpoint.prefix + key: value for key, value in checkpoint.tensors.items()}


def _foreign(checkpoint: Checkpoint, found: Family, name: str, changes: dict[str, Any]) -> Source:
    assert found.describe is not None  # `identified` gives only importers
    tensors = found.named(checkpoint.tensors, name)
    described = found.describe(tensors, checkpoint.extras, changes)
    config = described.config
    profile = InputProfile.of(config, DatasetInfo(name=found.name, crop_body=False))
    entry = zoo.entry(name) if name.startswith(zoo.PREFIX) else None
    card = {
        "kind": described.kind,
        "config": config.model_dump(mode="json"),
        "profile": profile.model_dump(mode="json"),
        "source": entry.title if entry else Path(name).name,
        "licence": entry.licence if entry else "",
        "citation": entry.citation if entry else find_method(config.method.name).card.paper,
        "notes": list(described.notes),
    }
    return Source(name, found, described.kind, config, profile, tensors, card, described.notes)
