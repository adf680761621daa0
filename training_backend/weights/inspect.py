"""Says what a checkpoint holds, without running any of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training_backend.config import RunConfig
from training_backend.errors import WeightsError
from training_backend.weights.families import identify, title
from training_backend.weights.safe_load import load_tensors
from training_backend.weights.source import MODEL, locate, open_source


@dataclass(frozen=True)
class InspectReport:
    """What a file holds.

    Attributes:
        file: its name.
        family: whose layout it has, "" when unknown.
        kind: "pretrain", "encoder" or "finetune"; "" when unknown.
        wrapper: key that holds the tensors, "" for a bare dictionary.
        prefix: what every name begins with.
        tensors: how many.
        parameters: numbers in them.
        config: configuration that rebuilds the network, or None when it cannot be told.
        extras: what is stored beside the tensors.
        notes: sentences on what was assumed or could not be told.
    """

    file: str
    family: str
    kind: str
    wrapper: str
    prefix: str
    tensors: int
    parameters: int
    config: RunConfig | None
    extras: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether a network can be made of it."""
        return self.config is not None

    def __str__(self) -> str:
        """One fact per line."""
        lines = {
            "file": self.file,
            "system": title(self.family) if self.family else "unknown",
            "kind": self.kind or "unknown",
            "wrapper": self.wrapper or "none",
            "prefix": self.prefix or "none",
            "tensors": f"{self.tensors} with {self.parameters:,} numbers",
        }
        if self.config:
            hidden: Any = {"name": True, "text": {"tokeniser"}}  # as long as all words of a language
            settings = self.config.method.model_dump(mode="json", exclude_none=True, exclude=hidden)
            lines["network"] = ", ".join(f"{name} {value}" for name, value in settings.items())
            lines["input"] = f"{self.config.data.view} of {' x '.join(map(str, self.config.data.size))} voxels"
        if self.extras:
            lines["beside them"] = ", ".join(self.extras)
        return "\n".join(
            [f"{name:12}{value}" for name, value in lines.items()] + [f"            {note}" for note in self.notes]
        )


def inspect(source: str | Path, changes: Mapping[str, Any] | None = None) -> InspectReport:
    """Facts about a weights file, run directory, model folder or zoo entry.

    Raises:
        WeightsError: when it is missing, damaged or unsafe. A safe file of an unknown system gives a report.
    """
    path = locate(source)
    checkpoint = load_tensors(path)
    found = identify(checkpoint.tensors)
    kind, config = "", None
    notes: tuple[str, ...] = ()
    try:
        opened = open_source(path, changes)
        found, kind, config, notes = opened.family.name, opened.kind, opened.config, opened.notes
    except WeightsError as error:
        notes = (str(error),)
    return InspectReport(
        file=path.name if path.name != MODEL else str(path.parent),
        family=found,
        kind=kind,
        wrapper=checkpoint.wrapper,
        prefix=checkpoint.prefix,
        tensors=len(checkpoint.tensors),
        parameters=sum(tensor.numel() for tensor in checkpoint.tensors.values()),
        config=config,
        extras=checkpoint.extras,
        notes=notes,
    )
