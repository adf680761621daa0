"""The one tree that describes a run: what is learnt, from what, and how."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from training_backend.config.data import DataConfig
from training_backend.config.engine import EngineConfig, OptimConfig
from training_backend.config.model import ConfigModel, ui
from training_backend.config.text import TextConfig


class PartConfig(ConfigModel):
    """Settings of a method or task, of which some may name files."""

    def located(self) -> dict[str, Any]:
        """Changes that make its paths hold from any working directory."""
        text = getattr(self, "text", None)
        return {"text": text.located()} if isinstance(text, TextConfig) else {}

    def portable(self) -> dict[str, Any]:
        """Changes that take the places on this disk out of it."""
        text = getattr(self, "text", None)
        return {"text": text.portable()} if isinstance(text, TextConfig) else {}


class MethodConfig(PartConfig):
    """Settings of a self-supervised method; each method's own model extends this one."""

    name: str
    """Registered name of the method."""


class TaskConfig(PartConfig):
    """Settings of a downstream task; each task's own model extends this one."""

    name: str
    """Registered name of the task."""

    scans: ClassVar[int] = 1
    """Scans that the network sees at once, one behind the other in the channels."""


class RunConfig(ConfigModel):
    """Everything needed to repeat a run, written as ``config.yaml`` into its directory."""

    kind: Literal["pretrain", "finetune"] = Field("pretrain", json_schema_extra=ui(hidden=True))
    """pretrain learns an encoder without labels; finetune puts a task on an encoder."""
    preset: str = Field("custom", json_schema_extra=ui(hidden=True))
    """The preset that the settings started from."""
    recipe: str = Field("", json_schema_extra=ui(hidden=True))
    """The recipe that the settings of a fine-tuning run started from, if any."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Every random choice of the run is a function of this number."""
    weights: str = Field("", json_schema_extra=ui(widget="weights"))
    """Start from a run directory, a weights file, or ``zoo:NAME``; empty starts from random weights."""
    method: SerializeAsAny[MethodConfig]
    """The self-supervised method; for fine-tuning, the method whose encoder is used."""
    task: SerializeAsAny[TaskConfig] | None = None
    """The downstream task of a fine-tuning run."""
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    engine: EngineConfig = EngineConfig()

    @field_validator("method", "task", mode="before")
    @classmethod
    def _resolve(cls, value: Any, info: Any) -> Any:
        if not isinstance(value, dict):
            return value
        from training_backend.config.registry import method, task

        find = method if info.field_name == "method" else task
        return find(str(value.get("name", ""))).config.parse(value, where=info.field_name)

    @model_validator(mode="after")
    def _kind_matches(self) -> RunConfig:
        if (self.kind == "finetune") != (self.task is not None):
            raise ValueError("a fine-tuning run needs a task and a pre-training run has none")
        return self

    def channels(self, per_scan: int | None = None) -> int:
        """Channels of the network's input: those of a scan (as many as contrasts if not given) times the scans."""
        return (per_scan or max(1, len(self.data.contrasts))) * (self.task.scans if self.task else 1)
