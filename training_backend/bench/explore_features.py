"""Time and peak memory of the features of a whole scan, beside what the product estimates before it starts.

Runs in a process of its own that does what the model process does, so that its peak memory is its own: reading of the
model, preparation of the scan, windows, and the copy kept on disk. The scan is generated there too and counted.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from training_backend.bench._explore import MODELS, Clocks, generated_scan, load, untrained, unwatched
from training_backend.bench.step import child, peak_mb


def main(
    size: tuple[int, int, int] = (256, 256, 256),
    model: str = "vitb",
    overlap: float = 0.5,
    threads: int = 2,
    output: Path | None = None,
) -> dict[str, Any]:
    """Seconds, peak memory and what was estimated.

    Args:
        size: voxels of the scan.
        model: "vitb" (768 wide, 12 blocks, windows of 96³, patches of 16³), "vit" (384 wide, 6 blocks, windows of 48³,
            patches of 8³), "wide" or "swin".
        overlap: share of a window that the next one sees again.
        threads: of PyTorch.
        output: folder for the model; a temporary one where it is missing.
    """
    with tempfile.TemporaryDirectory() as temporary:
        source = untrained(Path(output or temporary).resolve(), model)
        idle = child(__name__, source, (16, 16, 16), MODELS[model][3], overlap, threads, temporary)
        found = child(__name__, source, size, MODELS[model][3], overlap, threads, temporary)
        return {"model": model, "overlap": overlap, "threads": threads, "idle_mb": idle["mb"], **found}


def measure(source: str, size: tuple[int, int, int], level: int, overlap: float, threads: int, cache: str) -> None:
    """Body of a child: compute the features once and write what it took to standard output as JSON."""
    import torch

    from training_backend.jobs.serve_ops import Session

    os.environ["MED3DSSL_CACHE"] = cache
    torch.set_num_threads(threads)
    operations = Session("cpu").operations()
    scan, _ = generated_scan(size)
    how: dict[str, Any] = {"source": source, "level": level, "overlap": overlap}
    need = operations["features_need"]({**how, "geometry": scan.geometry}, unwatched())
    begun, clocks = time.perf_counter(), Clocks()
    found = clocks.time(lambda: operations["features"]({**how, "volumes": [scan]}, unwatched()))
    row = {
        "load": load(),
        "size": size,
        "tokens": found["tokens"].shape,
        "patch": found["patch_size"],
        "windows": need["windows"],
        "estimated_mb": round(need["bytes"] / 2**20),
        "mb": peak_mb("cpu"),
        "seconds": round(time.perf_counter() - begun, 1),
        "processor_s": clocks.told()["processor_s"],
    }
    sys.stdout.write(json.dumps(row))
