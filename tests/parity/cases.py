"""What a parity case is: settings, weights and arrays of the reference, and the comparison with ours.

All sizes, seeds, settings and tolerances come from the manifest and its arrays. An array that a check does not look
at, or a setting that it does not know, is a failure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

Check = Callable[["Case"], None]


@dataclass
class Arrays(Mapping[str, np.ndarray]):
    """Arrays of a case; remembers which ones were looked at."""

    content: dict[str, np.ndarray]
    seen: set[str] = field(default_factory=set)

    def __getitem__(self, name: str) -> np.ndarray:
        self.seen.add(name)
        return self.content[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.content)

    def __len__(self) -> int:
        return len(self.content)

    def unseen(self) -> list[str]:
        return sorted(set(self.content) - self.seen)


@dataclass
class Case:
    """One case of a manifest."""

    name: str
    folder: Path
    entry: dict[str, Any]
    arrays: Arrays

    @classmethod
    def load(cls, name: str, folder: Path, entry: dict[str, Any]) -> Case:
        content: dict[str, np.ndarray] = {}
        for file in _files(name, folder, entry):
            if file.endswith(".npz"):
                with np.load(folder / file, allow_pickle=False) as arrays:
                    content |= {key: arrays[key] for key in arrays}
        return cls(name, folder, entry, Arrays(content))

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.entry["config"])

    def weights(self) -> dict[str, torch.Tensor]:
        """Tensors of the case's safetensors file."""
        files = _files(self.name, self.folder, self.entry)
        (path,) = (self.folder / file for file in files if file.endswith(".safetensors"))
        return load_file(path)

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.array(self.arrays[name]))

    def compare(self, name: str, actual: Any, *, atol: float | None = None, rtol: float | None = None) -> None:
        """Our `actual` against the array `name`, within the case's tolerance."""
        tolerance = self.entry["tolerance"]
        if isinstance(actual, torch.Tensor):
            actual = actual.detach().numpy()
        expected = self.arrays[name]
        actual = np.asarray(actual)
        assert actual.shape == expected.shape, f"{name}: {actual.shape} instead of {expected.shape}"
        np.testing.assert_allclose(
            actual,
            expected,
            atol=tolerance.get("atol", 0.0) if atol is None else atol,
            rtol=tolerance.get("rtol", 0.0) if rtol is None else rtol,
            err_msg=name,
        )


def _files(name: str, folder: Path, entry: dict[str, Any]) -> list[str]:
    """Files that the manifest names for a case, else those called after it."""
    usual = [f"{name}_io.npz", f"{name}.safetensors"]
    return list(entry.get("files") or [file for file in usual if (folder / file).is_file()])


def read_manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return manifest
