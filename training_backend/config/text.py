"""The encoder of reports and prompts."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from training_backend.config.model import ConfigModel, ui


class TextConfig(ConfigModel):
    """Which text encoder is used, and how much of a text it reads."""

    source: str = ""
    """Folder or hub name of a BERT or RoBERTa model with safetensors weights (RadBERT, CXR-BERT, ClinicalBERT, ...).
    Empty: a small one that learns from the reports of the dataset alone."""
    longest: int = Field(250, ge=2)
    """Tokens of a text; what is longer is cut at its end."""
    freeze: bool = True
    """Keep a pre-trained text encoder as it is; a small one of our own always learns."""
    width: int = Field(128, ge=8, json_schema_extra=ui(advanced=True))
    """Channels of the small text encoder."""
    layers: int = Field(2, ge=1, json_schema_extra=ui(advanced=True))
    """Layers of the small text encoder."""
    heads: int = Field(4, ge=1, json_schema_extra=ui(advanced=True))
    """Attention heads of the small text encoder."""
    least_count: int = Field(1, ge=1, json_schema_extra=ui(advanced=True))
    """The small text encoder knows words that the training reports have at least so often."""
    architecture: str = Field("", json_schema_extra=ui(hidden=True))
    """Settings of the text model as JSON; filled in the card of a trained model, which then needs `source` no more."""
    tokeniser: str = Field("", json_schema_extra=ui(hidden=True))
    """The tokeniser as JSON; filled like `architecture`."""

    def located(self) -> dict[str, str]:
        """Changes that make a folder hold from any working directory."""
        folder = Path(self.source).expanduser()
        return {"source": str(folder.resolve())} if self.source and folder.is_dir() else {}

    def portable(self) -> dict[str, str]:
        """Changes that leave of a folder on this disk its name alone."""
        return {"source": Path(self.source).name} if Path(self.source).is_absolute() else {}
