"""What a stage of MedCoSS teaches, what it looks at again, and its presets, as data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from training_backend.config import ConfigModel, ui
from training_backend.config.plan import NAME
from training_backend.methods.medcoss_settings import PUBLISHED_SIZES, Kind, MedcossNetworkConfig

TOKENIZER = "tokenizer.json"
"""File beside a buffer of reports."""
MODALITIES: Mapping[str, Kind] = {"1D_text": "text", "2D_xray": "2d", "3D_CT": "3d", "3D_MR": "3d", "2D_path": "2d"}
"""Kind of each published modality, in the order in which the authors teach them."""


class WordsConfig(ConfigModel):
    """How reports become tokens."""

    source: str = ""
    """Folder or hub name of a BERT tokenizer (Bio_ClinicalBERT as published). Empty: one that knows the words of the
    training reports."""
    longest: int = Field(112, ge=4)
    """Tokens of a report; what is longer is cut at its end, shorter ones are padded."""
    least_count: int = Field(1, ge=1, json_schema_extra=ui(advanced=True))
    """Without a source: words count that the training reports have at least so often."""
    masked: float = Field(0.15, gt=0, lt=1, json_schema_extra=ui(advanced=True))
    """Share of the tokens that are to be guessed, in whole words."""
    tokeniser: str = Field("", json_schema_extra=ui(hidden=True))
    """The tokenizer as JSON; filled in the card of a trained model, which then needs `source` no more."""


class RehearsalConfig(ConfigModel):
    """Which earlier modalities are looked at again, and how."""

    buffers: tuple[Path, ...] = ()
    """Buffers that the earlier stages left behind: their run directories, or the folders ``buffer`` in them."""
    kinds: tuple[Kind, ...] = Field((), json_schema_extra=ui(hidden=True))
    """Kinds of what is rehearsed; filled in the card of a trained model, whose buffers may be elsewhere."""
    mix: bool = True
    """Mix the samples of a buffer's batch with each other, within their modality."""
    teacher: str = Field("", json_schema_extra=ui(advanced=True))
    """Run or file whose encoder shows how features were; empty takes the weights that the stage starts from."""
    teacher_mode: Literal["eval", "train"] = Field("eval", json_schema_extra=ui(advanced=True))
    """eval: exact targets. train: the teacher skips branches and draws moments at random, as published."""


class MedcossConfig(MedcossNetworkConfig):
    """Settings of one stage of continual learning."""

    modality: str = Field("3D_CT", pattern=NAME)
    """Name of what this stage teaches: 1D_text, 2D_xray, 3D_CT, 3D_MR, 2D_path as published, or one of your own."""
    text: WordsConfig = WordsConfig()
    rehearsal: RehearsalConfig = RehearsalConfig()
    decoder: Literal["new", "carried"] = Field("new", json_schema_extra=ui(advanced=True))
    """new: every stage begins its decoder anew, as published. carried: it goes on with that of the weights."""

    def located(self) -> dict[str, Any]:
        """Places of buffers and teacher that hold from any working directory."""
        found: dict[str, Any] = {"buffers": tuple(Path(path).resolve() for path in self.rehearsal.buffers)}
        if self.rehearsal.teacher and Path(self.rehearsal.teacher).exists():
            found["teacher"] = str(Path(self.rehearsal.teacher).resolve())
        changes: dict[str, Any] = {"rehearsal": found}
        if self.text.source and Path(self.text.source).is_dir():
            changes["text"] = {"source": str(Path(self.text.source).resolve())}
        return changes

    def portable(self) -> dict[str, Any]:
        """The same without places on this disk."""
        named = tuple(Path(*path.parts[-2:]) for path in self.rehearsal.buffers)
        source = Path(self.text.source)
        words = {"source": source.name if source.is_absolute() else self.text.source}
        return {"rehearsal": {"buffers": named, "teacher": Path(self.rehearsal.teacher).name}, "text": words}


_TINY = {
    "size": "tiny",
    "patch_2d": (1, 8, 8),
    "patch_3d": (8, 8, 8),
    "size_2d": (1, 64, 64),
    "size_3d": (16, 48, 48),
    "rows_2d": 256,
    "rows_3d": 512,
    "vocabulary": 2048,
    "text_rows": 128,
    "text": {"longest": 64},
    "drop_path": 0.0,
    "random_row": False,
    "decoder_embed_dim": 64,
    "decoder_depth": 2,
    "decoder_heads": 4,
}
_SMALL = {"size": "small", "decoder_embed_dim": 192, "decoder_depth": 4, "decoder_heads": 6}
_PUBLISHED = {
    "positions": "flat",
    "text_mask": "compatible",
    "axes": "zxy",
    "rehearsal": {"teacher_mode": "train"},
}
_LENGTH = {"epochs": 300, "lr": 3e-4, "warmup": 40 / 300, "warmup_start": "zero", "betas": (0.9, 0.95)}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "method": _TINY,
        "data": {"crops_per_volume": 1},
        "optim": {"epochs": 1000, "max_steps": 200, "batch_size": 8, "lr": 1e-3, "warmup": 0.1},
        "engine": {"device": "auto", "val_steps": 50, "preview_minutes": 0.5},
    },
    "small": {
        "method": {**_SMALL, "random_row": False},
        "data": {"crops_per_volume": 1},
        "optim": {**_LENGTH, "batch_size": 64},
        "engine": {"micro_batch": 16},
    },
    "base": {
        "method": {"random_row": False},
        "data": {"crops_per_volume": 1},
        "optim": {**_LENGTH, "batch_size": 512},
        "engine": {"micro_batch": 32},
    },
    "published": {
        "method": _PUBLISHED,
        "data": {"crops_per_volume": 1, "order": "replacement"},
        "optim": {**_LENGTH, "batch_size": 512, "zero_gradients": True},
        "engine": {"micro_batch": 32},
    },
}
"""The authors train on four devices with 128 samples each."""


def implied(method: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of the data that follow from the modality, and the kinds that the buffers bring.

    Images are resized from random parts and flipped from left to right, half of the volumes along every axis or
    not, as published; CT is divided by 1024, pictures by their largest value, MR is taken as stored if it was prepared.
    """
    modality = str(method.get("modality", "3D_CT"))
    kind = str(method.get("kind") or MODALITIES.get(modality, "3d"))
    if "kind" not in method:
        kind = MODALITIES.get(modality, kind)
    data: dict[str, Any] = {"foreground": 0.0}
    if kind == "text":
        data |= {"view": "text", "size": (1, 1, 1)}
    elif kind == "2d":
        size = tuple(method.get("size_2d") or PUBLISHED_SIZES["2d"])
        data |= {"view": "resized", "size": size, "augment": {"flip": (0.0, 0.0, 0.5)}}
    else:
        size = tuple(method.get("size_3d") or PUBLISHED_SIZES["3d"])
        data |= {"view": "crop", "size": size, "augment": {"flip": (0.5, 0.5, 0.5), "flipped": 0.5}}
    intensity = {"3D_CT": {"profile": "scaled", "high": 1024.0}}.get(modality)
    if intensity is not None and kind == "3d":
        data["intensity"] = intensity
    rehearsal = method.get("rehearsal") or {}
    kinds = buffered_kinds(rehearsal.get("buffers", ()) if isinstance(rehearsal, Mapping) else rehearsal.buffers)
    encodes = tuple(dict.fromkeys([*method.get("encodes", ()), *kinds]))
    return {"data": data, "method": {"kind": kind, **({"encodes": encodes} if encodes else {})}}


def buffered_kinds(buffers: Any) -> tuple[Kind, ...]:
    """Kinds of the modalities in `buffers`, as far as these can be read."""
    from training_backend.data.rehearsal import known

    found = [known(Path(folder)) for folder in buffers]
    return tuple(dict.fromkeys(buffer.kind for buffer in found if buffer is not None))  # type: ignore[misc]


def stage_settings(previous: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a stage's method that the next one must share for the weights to fit."""
    return {name: previous[name] for name in SHARED if name in previous}


SHARED = (
    "size",
    "embed_dim",
    "depth",
    "heads",
    "mlp_dim",
    "patch_2d",
    "patch_3d",
    "size_2d",
    "size_3d",
    "rows_2d",
    "rows_3d",
    "in_channels",
    "axes",
    "vocabulary",
    "text_rows",
    "text",
    "text_mask",
    "positions",
    "unused_rows",
)
"""Settings of the shared encoder and its tokenizers."""
