"""What is left to do when a stage of continual learning has been trained: decoders, buffer, and what was forgotten.

Each part is written whole or not at all and left alone when it is there, so this can be stopped and started at any
moment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training_backend.config import RunConfig
from training_backend.config.plan import BufferConfig, ProbeConfig
from training_backend.data.rehearsal import FOLDER, INFO
from training_backend.errors import ConfigError
from training_backend.evaluate.forgetting import JSON, Row, probe, read
from training_backend.evaluate.rehearse import Progress, make_buffer
from training_backend.files import write_json
from training_backend.weights.decoders import keep
from training_backend.weights.load import load_model

DONE = "stage.json"
"""Written last; says that nothing is left to do."""


def end_stage(
    folder: Path,
    config: RunConfig,
    buffer: BufferConfig,
    probing: ProbeConfig,
    *,
    source: str | Path = "",
    previous: Path | None = None,
    device: str = "cpu",
    progress: Progress = lambda done, total: None,
) -> list[Row]:
    """Keep the decoders of a finished run and of those before it, make its buffer, and measure what was forgotten.

    Args:
        folder: where these go, and where the model is unless `source` says otherwise.
        config: of the run.
        buffer: which cases are kept.
        probing: what is measured.
        source: run or model that was trained.
        previous: folder of the stage before.
        device: where the networks run.
        progress: told the views of the buffer that are done.

    Returns:
        Everything that was measured so far.
    """
    folder = Path(folder)
    if config.method.name != "medcoss":
        raise ConfigError(
            f"The run {folder.name} learns with {config.method.name}; only stages of medcoss have buffers.",
            "Choose a run of the method medcoss.",
        )
    if (folder / DONE).exists():
        return read(folder)
    keep(folder, source or folder, config, previous)
    if not (folder / FOLDER / INFO).exists():
        model = load_model(source or folder, device)
        place = {"data": {"dataset": config.data.dataset}}
        make_buffer(model.module, model.config.updated(place), folder / FOLDER, buffer, device, progress)
    rows = read(folder) if (folder / JSON).exists() else []
    method: Any = config.method
    if not any(row.stage == method.modality for row in rows):
        rows = probe(folder, probing, source=source, previous=previous, device=device)
    write_json(folder / DONE, {"schema": 1, "modality": method.modality, "kind": method.kind})
    return rows
