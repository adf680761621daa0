"""What the tasks on texts and volumes share: how volumes are seen, settings and network of latents of both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from training_backend.config import TaskConfig, ui
from training_backend.config.text import TextConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from training_backend.config import RunConfig
    from training_backend.methods.base import Encoder
    from training_backend.nn.text_match import TextMatch

_WHOLE: dict[str, Any] = {"view": "volume", "crops_per_volume": 1, "augment": {"flip": (0.0, 0.0, 0.0)}}
VOLUMES: dict[str, dict[str, Any]] = {
    "tiny": {**_WHOLE, "size": (48, 48, 48), "augment": {**_WHOLE["augment"], "noise": 0.1}},
    "small": {**_WHOLE, "size": (96, 96, 96)},
    "base": {**_WHOLE, "size": (128, 128, 128)},
    "ctrg": {**_WHOLE, "size": (96, 96, 96), "keep_aspect": False},
    "ct-rate": {
        **_WHOLE,
        "size": (240, 480, 480),
        "keep_aspect": False,
        "intensity": {"profile": "window", "low": -1000.0, "high": 200.0},
    },
}
"""Data settings by preset, and as published for two data sets. Left and right are words of reports, so none flips."""
CXR_BERT = {"source": "microsoft/BiomedVLP-CXR-BERT-specialized", "longest": 512}
"""The published text encoder."""


class MatchConfig(TaskConfig):
    """Settings of a network that compares texts with volumes."""

    text: TextConfig = TextConfig()
    latent: int = Field(768, ge=2, json_schema_extra=ui(advanced=True))
    """Numbers of a latent."""
    project: int = Field(0, ge=0, json_schema_extra=ui(advanced=True))
    """Channels of a visual token (published: 768); 0 keeps those of the encoder, or with gates takes those of the text
    model, by a layer of its own unless `maps` is tokens and they are as wide."""
    pool: int = Field(3, ge=1, json_schema_extra=ui(advanced=True))
    """Visual tokens along each axis of the volume."""
    grid: tuple[int, int, int] | None = Field(None, json_schema_extra=ui(advanced=True))
    """Visual tokens along (z, y, x) in place of `pool`; published for MG-3D: 4 3 4, those of the network itself."""
    maps: Literal["joined", "tokens"] = Field("joined", json_schema_extra=ui(advanced=True))
    """What visual tokens are made of. joined: the maps that the encoder names. tokens: its patch tokens without norm,
    as published for MG-3D."""
    as_pretrained: bool = Field(False, json_schema_extra=ui(advanced=True))
    """With gates: project visual tokens and mark them as an image's as the pre-training of MG-3D does, whose weights
    bring these parts; published for retrieval. In place of `project`."""
    norm: Literal["auto", "positions", "channels", "none"] = Field("auto", json_schema_extra=ui(advanced=True))
    """Norm of the visual tokens; published: none."""
    gates: int = Field(0, ge=0, json_schema_extra=ui(advanced=True))
    """Layers in which tokens and sentences gate each other before the latents (MG-3D: 2, CT-CLIP: 0)."""
    reading: Literal["first", "mean"] = Field("first", json_schema_extra=ui(advanced=True))
    """Vector of a text: that of its first token, or the mean of all."""
    temperature: float = Field(1.0, json_schema_extra=ui(advanced=True))
    """Start of the learnt temperature: scores are cosines times its exponential. Published: 1."""


def build_match(
    run: RunConfig,
    encoder: Encoder,
    texts: Callable[[], Sequence[str]],
    *,
    freeze_encoder: bool = False,
    latents_only: bool = False,
) -> TextMatch:
    """Encoder, text encoder and latents of a run.

    A text model given by name or folder is loaded, unless the settings hold its architecture: then weights come from a
    checkpoint. Without a name a small one is made that knows the words of `texts`.
    """
    from training_backend.errors import ConfigError
    from training_backend.nn.text_encoder import text_model
    from training_backend.nn.text_match import TextMatch
    from training_backend.nn.visual_tokens import VisualTokens

    config = settings(run)
    if any(run.data.augment.flip):
        raise ConfigError(
            "Texts tell left from right and front from back, but data.augment.flip mirrors volumes.",
            "Set data.augment.flip to 0 0 0.",
        )
    if config.as_pretrained and (config.project or not config.gates):
        raise ConfigError(
            "task.as_pretrained projects visual tokens for the gates of MG-3D, but "
            + (f"task.project {config.project} does so too." if config.gates else "there are none."),
            "Set task.gates to 2 and task.project to 0.",
        )
    ready = bool(config.text.source or config.text.architecture)
    text, tokeniser = text_model(config.text, () if ready else texts())
    wide = int(text.config.hidden_size)  # type: ignore[union-attr, arg-type]
    as_they_are = config.as_pretrained or (config.maps == "tokens" and encoder.width == wide)
    fitted = wide if config.gates and not as_they_are else 0
    visual = VisualTokens(encoder, config.grid or config.pool, config.norm, config.project or fitted, maps=config.maps)
    if config.gates and not config.as_pretrained and visual.width != wide:
        raise ConfigError(
            f"Gates need visual tokens as wide as the text encoder ({wide}), but they have {visual.width} channels.",
            f"Set task.project to {wide}.",
        )
    network = TextMatch(
        encoder,  # type: ignore[arg-type]
        visual,
        text,
        tokeniser,
        config.latent,
        (visual.number, wide if config.as_pretrained else visual.width),
        gates=config.gates,
        reading=config.reading,
        freeze_encoder=freeze_encoder,
        temperature=config.temperature,
        freeze_text=config.text.freeze and bool(config.text.source),  # a small one of our own has to learn
        latents_only=latents_only,
        pretrained=visual.width if config.as_pretrained else 0,
    )
    network.task = config  # type: ignore[assignment]
    return network


def contained(network: TextMatch, run: RunConfig) -> RunConfig:
    """`run` with architecture and tokeniser of the text encoder, so that the weights are all that is needed."""
    from training_backend.nn.text_encoder import architecture

    assert network.tokeniser is not None  # networks of tasks have one
    text = {"architecture": architecture(network.text_transformer), "tokeniser": network.tokeniser.to_json()}
    return run.updated({"task": {"text": text}})


def layer_id(network: TextMatch, parameter: str) -> int:
    """Depth of a parameter: the encoder's own numbers, and one more for text and latents."""
    from training_backend.nn import heads

    return heads.layer_id(network, parameter)


def settings(run: RunConfig) -> MatchConfig:
    """The task's settings of a run."""
    assert isinstance(run.task, MatchConfig)
    return run.task
