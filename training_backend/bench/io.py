"""Random crops per second: the store beside an uncompressed memory map, MONAI's PersistentDataset, and ``.nii.gz``.

One process, one thread, files in the page cache; the competitors take turns so that whatever else the machine does hits
all of them alike. Run: ``med3dssl bench io`` or ``python -m training_backend.bench.io``.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from training_backend.data.volume import Array
from training_backend.files import write_json

SHAPE = (192, 256, 256)
CROP = (96, 96, 96)
VOLUMES = 3
ROUNDS = 12
PER_ROUND = {
    "store": 12,
    "store, opened anew": 12,
    "memory map": 12,
    "memory map, opened anew": 12,
    "MONAI PersistentDataset": 2,
    "nii.gz": 1,
}


def main(output: Path | None = None) -> dict[str, Any]:
    """Measure, write JSON to `output` if given, and return the same.

    Returns:
        ``crops_per_s`` of each reader (median, wall clock), ``crops_per_cpu_s`` (per second of processor time, which
        other programs disturb less), ``ratio`` of the store to each by processor time, bytes on disk, the machine.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="med3dssl-bench-") as name:
            folder = Path(name)
            readers, sizes = _readers(folder)
            seconds, busy = _take_turns(readers)
    finally:
        torch.set_num_threads(threads)
    rate = {name: round(1 / statistics.median(times), 2) for name, times in busy.items()}
    result = {
        "what": f"random {CROP} crops of {VOLUMES} int16 volumes {SHAPE}, one thread, files in the page cache",
        "crops_per_s": {name: round(1 / statistics.median(times), 2) for name, times in seconds.items()},
        "crops_per_cpu_s": rate,
        "ratio": {f"store / {name}": round(rate["store"] / rate[name], 2) for name in rate if name != "store"}
        | {"both opened anew": round(rate["store, opened anew"] / rate["memory map, opened anew"], 2)},
        "quartiles_ms": {
            name: [round(1000 * q, 3) for q in statistics.quantiles(times, n=4)] for name, times in seconds.items()
        },
        "megabytes": {name: round(size / 1e6, 1) for name, size in sizes.items()},
        "machine": {
            "cpu": _processor(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "python": sys.version.split()[0],
        },
    }
    if output is not None:
        write_json(Path(output), result)
    return result


def _readers(folder: Path) -> tuple[dict[str, Callable[[np.random.Generator], Any]], dict[str, int]]:
    """A function per competitor that gives one random crop as a tensor, and the bytes each keeps on disk."""
    import torch

    from training_backend.config import IngestConfig
    from training_backend.data.dataset import Dataset
    from training_backend.data.ingest import ingest
    from training_backend.data.read import read_volume
    from training_backend.data.store import open_case
    from training_backend.data.views import crop_view

    paths = _volumes(folder / "scans")
    maps = []
    for number, path in enumerate(paths):
        np.save(folder / f"{number}.npy", read_volume(path).array)
        maps.append(np.load(folder / f"{number}.npy", mmap_mode="r"))
    ingest(folder / "scans", folder / "dataset", IngestConfig(workers=0, crop_body=False))
    dataset = Dataset.open(folder / "dataset")
    cases = dataset.cases()
    opened = [open_case(dataset, case) for case in cases]
    persistent = _monai(paths, folder / "monai")

    def cut(array: Array, rng: np.random.Generator) -> Any:
        start = [int(rng.integers(0, n - size + 1)) for n, size in zip(array.shape, CROP, strict=True)]
        box = tuple(slice(first, first + n) for first, n in zip(start, CROP, strict=True))
        return torch.from_numpy(np.ascontiguousarray(array[box]))

    def stored(rng: np.random.Generator, anew: bool) -> Any:
        number = int(rng.integers(VOLUMES))
        case = open_case(dataset, cases[number]) if anew else opened[number]
        key = (0, 0, number, int(rng.integers(2**31)))
        return torch.from_numpy(crop_view(case, CROP, key).image)

    readers: dict[str, Callable[[np.random.Generator], Any]] = {
        "store": lambda rng: stored(rng, False),
        "store, opened anew": lambda rng: stored(rng, True),
        "memory map": lambda rng: cut(maps[int(rng.integers(VOLUMES))], rng),
        "memory map, opened anew": lambda rng: cut(
            np.load(folder / f"{rng.integers(VOLUMES)}.npy", mmap_mode="r"), rng
        ),
        "MONAI PersistentDataset": lambda rng: persistent[int(rng.integers(VOLUMES))],
        "nii.gz": lambda rng: cut(read_volume(paths[int(rng.integers(VOLUMES))]).array, rng),
    }
    sizes = {
        "store": sum(file.stat().st_size for file in (folder / "dataset" / "store").rglob("*.b2nd")),
        "memory map": sum(file.stat().st_size for file in folder.glob("*.npy")),
        "MONAI PersistentDataset": sum(file.stat().st_size for file in (folder / "monai").glob("*.pt")),
        "nii.gz": sum(path.stat().st_size for path in paths),
    }
    return readers, sizes


def _volumes(folder: Path) -> list[Path]:
    """Phantom chests enlarged to the size of clinical scans, each with noise of its own."""
    from scipy.ndimage import zoom

    from training_backend.data.phantoms import thorax_ct
    from training_backend.data.volume import Geometry, Volume
    from training_backend.data.write import write_volume

    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = []
    for number in range(VOLUMES):
        small = thorax_ct(number, noise_hu=0.0).volume.array.astype(np.float32)
        large = zoom(small, [n / m for n, m in zip(SHAPE, small.shape, strict=True)], order=1)
        large += rng.normal(0, 15, SHAPE).astype(np.float32)
        array = np.clip(np.rint(large), -1024, 3071).astype(np.int16)
        volume = Volume(array, Geometry.from_spacing(SHAPE, (1.5, 1.3, 1.3)), modality="CT", name=f"chest {number}")
        paths.append(write_volume(volume, folder / f"chest_{number}.nii.gz"))
    return paths


def _monai(paths: list[Path], cache: Path) -> Any:
    """MONAI's way: the deterministic part on disk once, the random crop each time."""
    from monai.data.dataset import PersistentDataset
    from monai.transforms.compose import Compose
    from monai.transforms.croppad.dictionary import RandSpatialCropd
    from monai.transforms.io.dictionary import LoadImaged
    from monai.transforms.utility.dictionary import EnsureChannelFirstd, EnsureTyped

    steps = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            EnsureTyped("image"),
            RandSpatialCropd("image", CROP, random_size=False),
        ]
    )
    dataset = PersistentDataset([{"image": str(path)} for path in paths], steps, cache_dir=cache)
    for number in range(len(paths)):
        _ = dataset[number]
    return dataset


def _take_turns(
    readers: dict[str, Callable[[np.random.Generator], Any]],
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds per crop of each reader, by the wall clock and of processor time; the first round only warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    busy: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(ROUNDS + 1):
        for name, read in readers.items():
            rng = np.random.default_rng([turn, 7])
            for _ in range(PER_ROUND[name]):
                started, worked = time.perf_counter(), time.process_time()
                read(rng)
                if turn:
                    seconds[name].append(time.perf_counter() - started)
                    busy[name].append(time.process_time() - worked)
    return seconds, busy


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    import json

    sys.stdout.write(json.dumps(main(Path(sys.argv[1]) if len(sys.argv) > 1 else None), indent=1) + "\n")
