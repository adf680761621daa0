"""Configuration models; torch-free, so the viewer builds its forms from them."""

from training_backend.config.data import (
    AugmentConfig,
    DataConfig,
    IngestConfig,
    IntensityConfig,
    LabelledConfig,
    SequenceConfig,
)
from training_backend.config.engine import EngineConfig, OptimConfig
from training_backend.config.model import ConfigModel, merged, ui
from training_backend.config.run import MethodConfig, RunConfig, TaskConfig

__all__ = [
    "AugmentConfig",
    "ConfigModel",
    "DataConfig",
    "EngineConfig",
    "IngestConfig",
    "IntensityConfig",
    "LabelledConfig",
    "MethodConfig",
    "OptimConfig",
    "RunConfig",
    "SequenceConfig",
    "TaskConfig",
    "merged",
    "ui",
]
