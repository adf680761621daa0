"""What the measurements of Explore share: untrained models of a real size, a generated scan, and two clocks."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from training_backend.data.volume import Volume
    from training_backend.jobs.client import ServeClient
    from training_backend.jobs.serve import Progress

MODELS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "vitb": ("mae3d", "base", {"method": {"patch_size": (16, 16, 16)}, "data": {"size": (96, 96, 96)}}, 0),
    "wide": ("mae3d", "base", {"method": {"patch_size": (8, 8, 8), "depth": 1}, "data": {"size": (64, 64, 64)}}, 0),
    "vit": ("mae3d", "small", {"method": {"patch_size": (8, 8, 8)}, "data": {"size": (48, 48, 48)}}, 0),
    "swin": ("voco", "small", {"method": {"crop": 32, "depth": 64}, "data": {"size": (64, 96, 96)}}, 3),
}
"""By name: method, preset, changes, and the map whose features are used.

ViT-B with patches of 16³; a single block of its width with patches of 8³; a small ViT; a Swin pyramid at 4³ voxels.
"""


@dataclass
class Clocks:
    """Seconds of calls, by the clock on the wall and by the processor, of this process and of the model process.

    Attributes:
        child: process id of the model process; 0 for none.
        walls: seconds of each call.
        processor: seconds of the processor of each call; those of the child come in hundredths.
    """

    child: int = 0
    walls: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def time(self, function: Callable[[], Any]) -> Any:
        """Call, remember how long it took, and answer what it answers."""
        worked, begun = self._worked(), time.perf_counter()
        answer = function()
        self.walls.append(time.perf_counter() - begun)
        self.processor.append(self._worked() - worked)
        return answer

    def told(self) -> dict[str, Any]:
        """Median and largest of the wall, and mean of the processor."""
        return {
            "calls": len(self.walls),
            "median_s": round(statistics.median(self.walls), 4),
            "max_s": round(max(self.walls), 4),
            "processor_s": round(statistics.fmean(self.processor), 4),
        }

    def _worked(self) -> float:
        used = time.process_time()
        if self.child:
            import psutil

            times = psutil.Process(self.child).cpu_times()
            used += times.user + times.system
        return used


@contextmanager
def model_process(folder: Path) -> Iterator[ServeClient]:
    """A model process as the viewer has one, on the CPU, which keeps its features in `folder`."""
    from training_backend.jobs.client import ServeClient

    before = os.environ.get("MED3DSSL_CACHE")
    os.environ["MED3DSSL_CACHE"] = str(folder / "cache")
    client = ServeClient("cpu")
    try:
        yield client
    finally:
        client.close()
        if before is None:
            del os.environ["MED3DSSL_CACHE"]
        else:
            os.environ["MED3DSSL_CACHE"] = before


def untrained(folder: Path, name: str) -> str:
    """Where the model `name` of `MODELS` lies in `folder`; it is made there with random weights where it is missing."""
    import torch

    from training_backend.config.presets import pretrain_config
    from training_backend.config.registry import method
    from training_backend.data.prepare import InputProfile
    from training_backend.weights.save import save_model

    kind, preset, changes, _ = MODELS[name]
    path = folder / "models" / name
    if not (path / "model.safetensors").exists():
        torch.manual_seed(0)
        config = pretrain_config(kind, preset, Path(), changes)
        profile = InputProfile(size=config.data.size, crop_body=False, intensity=config.data.intensity)
        told = {"config": config.model_dump(mode="json"), "profile": profile.model_dump(mode="json")}
        save_model(path, method(kind).build(config), {"kind": "pretrain", **told})
    return str(path)


def generated_scan(shape: tuple[int, int, int]) -> tuple[Volume, Volume]:
    """A chest CT of `shape` and its label map, drawn at half the resolution, which is quicker, with finer noise."""
    from training_backend.data.phantoms import thorax_ct
    from training_backend.data.volume import Geometry, Volume

    coarse = thorax_ct(3, (-(-shape[0] // 2), -(-shape[1] // 2), -(-shape[2] // 2)), noise_hu=0.0)
    spacing = coarse.volume.geometry.spacing_mm
    geometry = Geometry.from_spacing(shape, (spacing[0] / 2, spacing[1] / 2, spacing[2] / 2))
    doubled = tuple(np.arange(n) // 2 for n in shape)
    noise = np.random.default_rng(0).normal(0, 18, shape).astype(np.float32)
    array = coarse.volume.array[np.ix_(*doubled)] + noise
    labels = Volume(coarse.labels.array[np.ix_(*doubled)], geometry, "CT", "labels")
    return Volume(np.rint(array).astype(np.int16), geometry, "CT", "scan"), labels


def load() -> list[float]:
    """Mean numbers of busy processes of the last 1, 5 and 15 minutes; empty where the system does not count them."""
    return [round(one, 1) for one in os.getloadavg()] if hasattr(os, "getloadavg") else []


def unwatched() -> Progress:
    """Progress of an operation that nobody looks at."""
    from training_backend.jobs.serve import Progress

    return Progress(lambda _share, _text: None, lambda: False)
