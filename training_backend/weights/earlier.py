"""A modality that an earlier stage taught, as weights that anything can open: the new encoder, the kept decoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from training_backend.config import RunConfig
from training_backend.data.dataset import Dataset
from training_backend.data.manifest import DatasetInfo
from training_backend.data.prepare import InputProfile
from training_backend.errors import Med3dError, WeightsError
from training_backend.weights.decoders import FOLDER, kept
from training_backend.weights.safe_load import load_tensors
from training_backend.weights.source import Source, locate, open_source


def is_earlier(path: Path) -> bool:
    """Whether `path` names a decoder that a run kept."""
    return path.parent.name == FOLDER and path.suffix == ".safetensors" and path.with_suffix(".json").is_file()


def earlier_decoder(source: str | Path, modality: str) -> Path:
    """File of the decoder that a run, or the last stage of a plan, kept of an earlier modality.

    Raises:
        WeightsError: none was kept, as with the files of the authors.
    """
    folder = locate(source).parent
    found = kept(folder)
    if modality in found:
        return found[modality].path
    has = f"it has those of {', '.join(found)}" if found else "only runs of continual learning keep such"
    raise WeightsError(
        f"{source} has no decoder of {modality}; {has}.",
        "Published files reconstruct what their last stage taught and nothing else; they give features of all.",
    )


def open_earlier(path: Path) -> Source:
    """The model of a run under one of its kept decoders, fed as the stage of that decoder was.

    Args:
        path: tensors of the decoder, ``RUN/decoders/3D_CT.safetensors``.

    Raises:
        WeightsError: unusable decoder or model.
    """
    run = path.parent.parent
    decoder = next((one for one in kept(run).values() if one.path.resolve() == path.resolve()), None)
    if decoder is None:
        raise WeightsError(f"{path} is no decoder that the run {run.name} kept.", "Choose one from the list of models.")
    model, own = open_source(run), load_tensors(path).tensors
    later: Any = model.config.method
    fresh = {} if later.modality == decoder.modality else own
    config, profile = decoder.config, _profile(decoder.config)
    card = {
        **{name: value for name, value in model.card.items() if name != "teacher"},
        "config": config.model_dump(mode="json"),
        "profile": profile.model_dump(mode="json"),
        "notes": [f"{decoder.modality} as the encoder of {run.name} sees it."],
    }
    return replace(model, name=str(path), config=config, profile=profile, tensors={**model.tensors, **fresh}, card=card)


def _profile(config: RunConfig) -> InputProfile:
    """How the stage saw its scans; where its dataset is gone, without resampling."""
    try:
        return InputProfile.of(config, Dataset.open(config.data.dataset).info)
    except Med3dError:
        return InputProfile.of(config, DatasetInfo(name=config.data.dataset.name, crop_body=config.data.size[0] > 1))
