"""What this machine has: packages, PyTorch build, NVIDIA driver, memory, disk, display. Measured without torch.

PyTorch is asked in a child process, so the caller neither waits for its import nor holds GPU memory.
"""

from __future__ import annotations

import ctypes.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path

import psutil
from packaging.requirements import Requirement

_ASK_TORCH = """
import json, torch
facts = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip, "gpus": [], "error": ""}
facts["mps"] = torch.backends.mps.is_available()
try:
    if torch.cuda.is_available():
        facts["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        volume = torch.ones(1, 1, 8, 8, 8, device="cuda")
        torch.nn.functional.conv3d(volume, volume[..., :3, :3, :3]).sum().item()
except Exception as error:
    facts["error"] = str(error).splitlines()[0]
print(json.dumps(facts))
"""


@dataclass(frozen=True)
class TorchFacts:
    """PyTorch as a child process found it; `gpus` are those it can use."""

    version: str
    cuda: str | None = None
    hip: str | None = None
    gpus: list[str] = field(default_factory=list)
    mps: bool = False
    error: str = ""


@dataclass(frozen=True)
class Gpu:
    """A card as the driver reports it; `capability` is NVIDIA's compute capability."""

    name: str
    driver: str
    capability: float
    memory_mb: int


@dataclass(frozen=True)
class Machine:
    """Everything that the doctor judges.

    Attributes:
        packages: requirement of this project to installed version, None where absent.
        torch: None where PyTorch is not installed.
        disk: folder where runs or weights are kept, to free bytes.
        shared_memory: bytes of ``/dev/shm``, None on systems without it.
        missing_libraries: system libraries that Qt needs and that are not there.
    """

    python: tuple[int, int]
    packages: dict[str, str | None]
    torch: TorchFacts | None
    gpus: list[Gpu]
    memory: int
    memory_free: int
    disk: dict[str, int]
    shared_memory: int | None
    display: bool
    qt: list[str]
    missing_libraries: list[str]
    system: str = field(default_factory=platform.system)


def measure(folders: tuple[Path, ...]) -> Machine:
    """Facts of this machine; takes a few seconds, most of them PyTorch's start in the child.

    Args:
        folders: where runs and weights are kept, whose free space counts.
    """
    memory = psutil.virtual_memory()
    linux = platform.system() == "Linux"
    shared = Path("/dev/shm")
    return Machine(
        python=sys.version_info[:2],
        packages={str(wanted): _installed(wanted.name) for wanted in _requirements()},
        torch=_torch(),
        gpus=_gpus(),
        memory=memory.total,
        memory_free=memory.available,
        disk={str(folder): shutil.disk_usage(_existing(folder)).free for folder in folders},
        shared_memory=shutil.disk_usage(shared).total if linux and shared.is_dir() else None,
        display=not linux or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")),
        qt=[name for name in ("PyQt6", "PySide6") if util.find_spec(name)],
        missing_libraries=[
            name for name in ("xcb-cursor", "EGL", "GL") if linux and not ctypes.util.find_library(name)
        ],
    )


def _requirements() -> list[Requirement]:
    """What this project needs, from its installed metadata, or from ``pyproject.toml`` in a source tree."""
    try:
        lines = metadata.requires("napari-med3dssl") or []
    except metadata.PackageNotFoundError:
        source = Path(__file__).parents[2] / "pyproject.toml"
        lines = tomllib.loads(source.read_text(encoding="utf-8"))["project"]["dependencies"] if source.is_file() else []
    wanted = [Requirement(line) for line in lines]
    return [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torch() -> TorchFacts | None:
    version = _installed("torch")
    if version is None:
        return None
    try:
        child = subprocess.run([sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=180)
        return TorchFacts(**json.loads(child.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return TorchFacts(version, error="it did not start within three minutes")
    except (IndexError, ValueError, TypeError):
        return TorchFacts(version, error=(child.stderr.strip().splitlines() or ["it ended without a word"])[-1])


def _gpus() -> list[Gpu]:
    """NVIDIA cards known to the driver; empty without driver or card."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [gpu for line in answer.splitlines() if (gpu := parse_gpu(line))]


def parse_gpu(line: str) -> Gpu | None:
    """Card of one line of ``nvidia-smi --query-gpu``; fields an old driver does not know count as 0."""
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != 4:
        return None
    numbers = [float(text) if text.replace(".", "", 1).isdigit() else 0.0 for text in fields[2:]]
    return Gpu(fields[0], fields[1], numbers[0], int(numbers[1]))


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())
