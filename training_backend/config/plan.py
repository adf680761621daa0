"""The description of a plan: stages of continual learning, each a modality with its data, one after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from training_backend.config.model import ConfigModel, ui

NAME = r"^[\w][\w.+-]*$"
"""Names of modalities, which are names of files too."""


class BufferConfig(ConfigModel):
    """Which cases of a stage are kept for rehearsal."""

    policy: Literal["kmeans", "random", "herding"] = "kmeans"
    """kmeans: those nearest to the centres of clusters of features, as published. random: any. herding: those whose
    mean is nearest to that of all."""
    ratio: float = Field(0.05, gt=0, le=1)
    """Share of the cases that is kept."""
    centres: float = Field(0.01, gt=0, le=1, json_schema_extra=ui(advanced=True))
    """Clusters as a share of the cases."""
    clusters: int | None = Field(None, ge=1, json_schema_extra=ui(advanced=True))
    """Number of clusters, in place of a share."""
    fill: bool = Field(False, json_schema_extra=ui(advanced=True))
    """Fill the places that small clusters leave empty, so that the share is met; not so in the published code."""


class ProbeConfig(ConfigModel):
    """What is measured of every earlier modality after each stage."""

    cases: int = Field(64, ge=1)
    """Held-out cases whose loss is measured with the decoder of their own stage; training cases if none is held out."""
    neighbours: int = Field(5, ge=0)
    """Nearest neighbours that tell the class of a case, where cases have one; 0 leaves it out."""


class StageConfig(ConfigModel):
    """One stage: what it teaches, from which data, for how long."""

    modality: str = Field(pattern=NAME)
    """1D_text, 2D_xray, 3D_CT, 3D_MR or 2D_path as published, or a name of your own."""
    kind: Literal["text", "2d", "3d"] | None = None
    """text, 2d or 3d; empty takes that of a published modality."""
    dataset: Path = Field(json_schema_extra=ui(widget="dataset"))
    """Folder made by ``med3dssl data ingest``."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the cases and the buffers; empty takes those of the preset."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps; set, it wins over `epochs`."""
    preset: str = ""
    """Of this stage; empty takes that of the plan."""
    settings: dict[str, Any] = Field({}, json_schema_extra=ui(hidden=True))
    """Further settings of the run, as in its ``config.yaml``: {optim: {lr: 0.001}}."""
    buffer: BufferConfig | None = Field(None, json_schema_extra=ui(advanced=True))
    """What is kept of this stage; empty takes that of the plan."""


class PlanConfig(ConfigModel):
    """Stages, from what they start, and how earlier ones are kept alive."""

    name: str = ""
    """Shown in lists; empty takes the folder's name."""
    weights: str = Field("", json_schema_extra=ui(widget="weights"))
    """What the first stage starts from: a run, an earlier plan, a file of MedCoSS or Uni-Perceiver, or nothing."""
    preset: str = "small"
    """Sizes and recipe: tiny, small, base or published."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Every random choice of the plan is a function of this number."""
    rehearse: bool = True
    """Look at the buffers of earlier stages again; off shows how much is forgotten without."""
    buffer: BufferConfig = BufferConfig()
    probe: ProbeConfig = ProbeConfig()
    settings: dict[str, Any] = Field({}, json_schema_extra=ui(hidden=True))
    """Further settings of all stages, as in a run's ``config.yaml``."""
    stages: tuple[StageConfig, ...] = Field(min_length=1)

    @field_validator("stages")
    @classmethod
    def _named_once(cls, stages: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
        names = [stage.modality for stage in stages]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is taught twice; give the later stage another name")
        return stages

    def located(self, base: Path | None = None) -> PlanConfig:
        """The same with paths that hold from any working directory; relative ones are taken from `base`."""
        root = Path(base or ".").resolve()
        stages = [{**stage.model_dump(), "dataset": (root / stage.dataset).resolve()} for stage in self.stages]
        weights = self.weights
        if weights and not weights.startswith("zoo:") and (root / weights).exists():
            weights = str((root / weights).resolve())
        return PlanConfig.parse({**self.model_dump(), "stages": stages, "weights": weights})
