"""Features of a CT of 400 x 512 x 512 voxels on a machine of 16 GiB, for docs/benchmarks/explore.md: time and memory.

The model process gets no more address space than ``--limit`` GiB, so it fails where it would need more. Without
``--model`` an untrained masked autoencoder of the preset is used, which costs what a trained one costs::

    python docs/measure_large_scan.py --preset tiny
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / part) for part in ("", "src")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="run, model folder or weights file")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--shape", type=int, nargs=3, default=(400, 512, 512))
    parser.add_argument("--spacing", type=float, nargs=3, default=(1.0, 0.7, 0.7), help="of the scan in mm")
    parser.add_argument("--resampled", type=float, help="mm of the grid that the untrained model sees; else the scan's")
    parser.add_argument("--limit", type=float, default=16.0, help="GiB of address space of the model process")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MED3DSSL_CACHE"] = str(Path(folder) / "cache")
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
        model = arguments.model or untrained(Path(folder) / "model", arguments.preset, arguments.resampled)
        print(json.dumps(measured(model, tuple(arguments.shape), tuple(arguments.spacing), arguments.limit), indent=1))


def measured(model: str, shape: tuple[int, int, int], spacing: tuple[float, float, float], limit: float) -> Any:
    """Seconds and GiB of the features of a scan, what was told of them before, and how fast a click is answered."""
    from napari_med3dssl.explore_maths import TokenIndex
    from training_backend.data.volume import Geometry, Volume
    from training_backend.jobs.client import COMMAND, ServeClient

    volume = Volume(body(shape), Geometry.from_spacing(shape, spacing), "CT", "measured")
    held = f'ulimit -v {int(limit * 2**20)}; exec "$@"'
    client = ServeClient("cpu", command=("bash", "-c", held, "bash", *COMMAND))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = client.request("features_need", source=model, geometry=volume.geometry)
    begun = time.perf_counter()
    values = client.request("features", source=model, volumes=[volume])
    took = time.perf_counter() - begun
    begun = time.perf_counter()
    kept = client.request("features", source=model, volumes=[volume])
    again = time.perf_counter() - begun
    index = TokenIndex(values["tokens"])
    begun = time.perf_counter()
    index.similarity([(0, 0, 0)])
    click = time.perf_counter() - begun
    peak = next(
        int(line.split()[1]) for line in Path(f"/proc/{client.pid}/status").read_text().splitlines() if "VmHWM" in line
    )
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    client.close()
    return {
        "tokens": list(values["tokens"].shape),
        "looks": told["windows"],
        "told GiB": round(told["bytes"] / 2**30, 2),
        "peak of the model process GiB": round(peak / 2**20, 2),
        "viewer's share GiB": round((after - before) / 2**20, 2),
        "seconds": round(took, 1),
        "seconds from the cache": round(again, 1),
        "cached": kept["cached"],
        "similarity ms": round(1000 * click, 1),
    }


def body(shape: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    """A generated thorax, each voxel of which is repeated four times along each axis."""
    from training_backend.data.phantoms import thorax_ct

    z, y, x = (-(-n // 4) for n in shape)
    array = thorax_ct(0, (z, y, x)).volume.array.astype(np.int16)
    for axis in range(3):
        array = array.repeat(4, axis=axis)
    return np.ascontiguousarray(array[: shape[0], : shape[1], : shape[2]])


def untrained(folder: Path, preset: str, mm: float | None) -> str:
    """A masked autoencoder with fresh weights."""
    import torch

    from training_backend.config.presets import pretrain_config
    from training_backend.config.registry import method
    from training_backend.data.prepare import InputProfile
    from training_backend.weights.save import save_model

    torch.manual_seed(0)
    config = pretrain_config("mae3d", preset, Path())
    spacing = None if mm is None else (mm, mm, mm)
    profile = InputProfile(size=config.data.size, crop_body=False, modality="CT", spacing_mm=spacing)
    card = {"kind": "pretrain", "config": config.model_dump(mode="json"), "profile": profile.model_dump(mode="json")}
    save_model(folder, method("mae3d").build(config), card)
    return str(folder)


if __name__ == "__main__":
    main()
