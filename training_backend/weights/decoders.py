"""Decoders that the stages of continual learning leave behind, without which an encoder cannot be asked what it forgot.

Every stage begins its decoder anew, so a model holds that of its own modality only. Runs keep those of all stages
before them in a folder, copied from run to run::

    decoders/3D_CT.safetensors    tensors of the decoder alone
    decoders/3D_CT.json           modality, kind, settings of the run that taught it, its dataset, its stage
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training_backend.config import RunConfig
from training_backend.config.registry import method as find_method
from training_backend.data.dataset import found_place, kept_place
from training_backend.errors import WeightsError
from training_backend.files import atomic, write_json
from training_backend.weights.safe_load import load_tensors
from training_backend.weights.source import Source, open_source

if TYPE_CHECKING:
    from torch import nn

FOLDER = "decoders"
_PARTS = ("decoder_", "mask_token", "mlm_head.")
"""Beginnings of the names of a decoder's tensors."""


@dataclass(frozen=True)
class Decoder:
    """A kept decoder.

    Attributes:
        modality: what it reconstructs, and its `kind`.
        stage: run that taught it.
        config: of that run, complete with its words; its dataset is where the run's was.
        path: of its tensors.
    """

    modality: str
    kind: str
    stage: str
    config: RunConfig
    path: Path


def kept(folder: Path) -> dict[str, Decoder]:
    """Decoders of a run by modality, in the order in which the modalities were taught.

    Raises:
        WeightsError: one of them cannot be read.
    """
    found = []
    for path in sorted((Path(folder) / FOLDER).glob("*.json")):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            dataset = found_place(facts, path.parent)
            config = RunConfig.parse(facts["config"]).updated({"data": {"dataset": dataset}})
            tensors = path.with_suffix(".safetensors")
            decoder = Decoder(facts["modality"], facts["kind"], facts["stage"], config, tensors)
            found.append((int(facts["number"]), decoder))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"The kept decoder {path} cannot be read: {error}.", "Copy the run again.") from error
    return {decoder.modality: decoder for _, decoder in sorted(found, key=lambda entry: entry[0])}


def keep(folder: Path, source: str | Path, config: RunConfig, previous: Path | None = None) -> dict[str, Decoder]:
    """Keep the decoder of the model `source` in `folder`, beside those of the run before; answers all of them.

    Args:
        folder: run that keeps them.
        source: run or model whose decoder is kept; often `folder` itself.
        config: of the run that made it, whose dataset is where it says.
        previous: run or folder whose decoders are copied.
    """
    from safetensors.torch import save

    target = Path(folder) / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    earlier = {} if previous is None else kept(previous)
    for number, decoder in enumerate(earlier.values()):
        place = target / decoder.path.name
        if not place.exists():
            _copied(decoder.path, place)
        _describe(place, number, decoder.modality, decoder.kind, decoder.stage, decoder.config)
    model = open_source(source)
    method: Any = model.config.method
    tensors = {name: tensor.contiguous() for name, tensor in model.tensors.items() if name.startswith(_PARTS)}
    place = target / f"{method.modality}.safetensors"
    with atomic(place) as stream:
        stream.write(save(tensors, {"format": "pt"}))
    whole = model.config.updated({"data": {"dataset": config.data.dataset}})
    _describe(place, len(earlier), method.modality, method.kind, Path(source).name, whole)
    return kept(folder)


def with_decoder(source: str | Path | Source, decoder: Decoder) -> nn.Module:
    """The encoder of a later model under the decoder of an earlier stage, in evaluation mode.

    Raises:
        WeightsError: the later model does not read that kind of modality any more.
    """
    import torch

    model = source if isinstance(source, Source) else open_source(source)
    with torch.random.fork_rng(devices=[]):
        network = find_method(decoder.config.method.name).build(decoder.config)
    own = load_tensors(decoder.path).tensors
    fitted: Mapping[str, Any] = {
        name: own[name] if name in own else model.tensors.get(name) for name in network.state_dict()
    }
    lacking = [name for name, tensor in fitted.items() if tensor is None]
    if lacking:
        raise WeightsError(
            f"{model.name} cannot read {decoder.modality} any more: {len(lacking)} tensors of its tokenizer are not in "
            f"it ({lacking[0]}, ...).",
            f"Keep {decoder.kind} in method.encodes of later stages.",
        )
    try:
        network.load_state_dict(fitted)
    except RuntimeError as error:
        raise WeightsError(
            f"The decoder of {decoder.modality} does not fit the encoder of {model.name}.",
            "They are not of one line of stages.",
        ) from error
    return network.eval()


def _describe(place: Path, number: int, modality: str, kind: str, stage: str, config: RunConfig) -> None:
    facts = {"schema": 1, "number": number, "modality": modality, "kind": kind, "stage": stage}
    facts |= kept_place(config.data.dataset, place.parent)
    write_json(place.with_suffix(".json"), {**facts, "config": config.model_dump(mode="json")})


def _copied(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.copyfile(source, temporary)
    temporary.replace(target)
