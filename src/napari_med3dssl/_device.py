"""One line about the device at hand and its memory, without torch."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache

import psutil

_GB = 1024**3


def device_line() -> str:
    """Name and memory of the NVIDIA card, or of the processors: ``RTX 4090  6.2 / 24 GB``; not for the Qt thread."""
    gpu = _gpu()
    if gpu is not None:
        name, used_mb, total_mb = gpu
        return f"{name}  {used_mb / 1024:.1f} / {total_mb / 1024:.0f} GB"
    memory = psutil.virtual_memory()
    count = psutil.cpu_count() or 1
    used = (memory.total - memory.available) / _GB
    return f"CPU, {count} processor{'s' if count > 1 else ''}  {used:.1f} / {memory.total / _GB:.0f} GB"


def _gpu() -> tuple[str, float, float] | None:
    """Name, used and total megabytes of the first NVIDIA card, or None."""
    if not _has_driver():
        return None
    query = ["nvidia-smi", "--query-gpu=name,memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        name, used, total = answer.splitlines()[0].split(",")
        return name.strip(), float(used), float(total)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


@cache
def _has_driver() -> bool:
    return shutil.which("nvidia-smi") is not None
