"""What on this machine would hinder training or viewing, and the command that mends it."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from typing import Literal

from packaging.requirements import Requirement

from training_backend.jobs.machine import Gpu, Machine, TorchFacts, measure

State = Literal["ok", "warn", "bad"]

WHEELS = "https://download.pytorch.org/whl"
_GB = 10**9
_DEBIAN = {"xcb-cursor": "libxcb-cursor0", "EGL": "libegl1", "GL": "libgl1"}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        name: what was looked at.
        state: ok, warn (works, with a loss) or bad (does not work).
        sentence: what was found.
        command: to paste into a terminal; empty when there is nothing to mend.
    """

    name: str
    state: State
    sentence: str
    command: str = ""


def examine(machine: Machine | None = None) -> list[Finding]:
    """Findings about `machine` (this one, measured now, when None), the worst first."""
    if machine is None:
        from training_backend.jobs.registry import runs_root
        from training_backend.weights.zoo import cache_folder

        machine = measure((runs_root(), cache_folder()))
    found = [
        _python(machine),
        _packages(machine),
        *_torch(machine),
        _memory(machine),
        *_disk(machine),
        *_shared_memory(machine),
        *_viewer(machine),
    ]
    return sorted(found, key=lambda finding: ("bad", "warn", "ok").index(finding.state))


def _python(machine: Machine) -> Finding:
    version = ".".join(map(str, machine.python))
    if machine.python < (3, 11):
        return Finding("Python", "bad", f"Python {version} is too old; 3.11 or newer is needed.")
    return Finding("Python", "ok", f"Python {version}.")


def _packages(machine: Machine) -> Finding:
    wrong, names = [], []
    for line, version in machine.packages.items():
        wanted = Requirement(line)
        if wanted.name == "torch" or (version and wanted.specifier.contains(version, prereleases=True)):
            continue  # PyTorch has findings of its own
        wrong.append(f"{wanted.name} {version or 'is missing'} ({wanted.specifier} is needed)")
        names.append(f"{wanted.name}{wanted.specifier}")
    if wrong:
        return Finding(
            "Packages", "bad", f"Not as needed: {'; '.join(wrong)}.", _pip(" ".join(map(shlex.quote, names)))
        )
    return Finding("Packages", "ok", f"All {len(machine.packages)} packages are new enough.")


def _torch(machine: Machine) -> list[Finding]:
    torch, gpus = machine.torch, machine.gpus
    if torch is None:
        return [Finding("PyTorch", "bad", "PyTorch is not installed.", install_torch(gpus))]
    wanted = next((Requirement(line) for line in machine.packages if Requirement(line).name == "torch"), None)
    if wanted and not wanted.specifier.contains(torch.version, prereleases=True):
        text = f"PyTorch {torch.version} is too old; {wanted.specifier} is needed to read weights safely."
        return [Finding("PyTorch", "bad", text, install_torch(gpus))]
    if torch.error and not torch.gpus:
        return [
            Finding("PyTorch", "bad", f"PyTorch {torch.version} does not start: {torch.error}.", install_torch(gpus))
        ]
    return [Finding("PyTorch", "ok", f"PyTorch {torch.version}."), _device(torch, gpus)]


def _device(torch: TorchFacts, gpus: list[Gpu]) -> Finding:
    """Whether PyTorch uses the card there is."""
    if torch.gpus and torch.error:
        text = f"PyTorch {torch.version} cannot compute on the {torch.gpus[0]}: {torch.error}."
        return Finding("GPU", "bad", text, install_torch(gpus))
    if torch.gpus:
        memory = f" with {gpus[0].memory_mb / 1024:.0f} GB" if gpus else ""
        return Finding("GPU", "ok", f"PyTorch uses {', '.join(torch.gpus)}{memory}.")
    if not gpus:
        text = "PyTorch uses Apple's GPU." if torch.mps else "No NVIDIA card found; small models train on the CPU."
        return Finding("GPU", "ok" if torch.mps else "warn", text)
    card = f"{gpus[0].name} (driver {gpus[0].driver})"
    if not wheel(gpus[0]):
        return Finding("GPU", "bad", f"The driver of the {card} is too old for PyTorch; update it to 525 or newer.")
    if torch.cuda is None:
        text = f"PyTorch {torch.version} is a CPU build, but there is a {card}; training would use the CPU."
    else:
        text = f"PyTorch {torch.version} for CUDA {torch.cuda} cannot use the {card}."
    return Finding("GPU", "bad", text, install_torch(gpus))


def wheel(gpu: Gpu) -> str:
    """PyTorch's build for a card and its driver: "cu126", "cu128" or "cu130"; empty when the driver is too old.

    CUDA 13 needs driver 580 and a Turing card or newer; Blackwell cards need CUDA 12.8; CUDA 12 needs driver 525.
    """
    major = int(gpu.driver.split(".")[0]) if gpu.driver.split(".")[0].isdigit() else 0
    if major >= 580 and (gpu.capability >= 7.5 or not gpu.capability):
        return "cu130"
    if gpu.capability >= 10:
        return "cu128" if major >= 570 else ""
    return "cu126" if major >= 525 else ""


def install_torch(gpus: list[Gpu]) -> str:
    """Command that installs the PyTorch build that fits the first card, or the CPU build without one."""
    build = (wheel(gpus[0]) if gpus else "") or "cpu"
    return _pip(f"--force-reinstall torch --index-url {WHEELS}/{build}")


def _pip(arguments: str) -> str:
    return f"{shlex.quote(sys.executable)} -m pip install {arguments}"


def _memory(machine: Machine) -> Finding:
    total, free = machine.memory / _GB, machine.memory_free / _GB
    text = f"{free:.0f} of {total:.0f} GB of memory are free."
    if free < 2:
        return Finding("Memory", "bad", f"{text} Close other programs; even the smallest model needs 2 GB.")
    if free < 8:
        return Finding("Memory", "warn", f"{text} Volumes of 256³ voxels and ViT-L weights need 8 GB.")
    return Finding("Memory", "ok", text)


def _disk(machine: Machine) -> list[Finding]:
    findings = []
    for folder, free in machine.disk.items():
        state: State = "bad" if free < 2 * _GB else "warn" if free < 20 * _GB else "ok"
        advice = "" if state == "ok" else " A run of ViT-L keeps about 12 GB of checkpoints."
        findings.append(Finding("Disk", state, f"{free / _GB:.0f} GB are free for {folder}.{advice}"))
    return findings


def _shared_memory(machine: Machine) -> list[Finding]:
    if machine.shared_memory is None or machine.shared_memory >= _GB:
        return []
    text = f"/dev/shm has {machine.shared_memory / _GB:.2f} GB; loader processes pass volumes through it."
    return [
        Finding("Shared memory", "warn", f"{text} In a container, start it with more.", "docker run --shm-size=8g ...")
    ]


def _viewer(machine: Machine) -> list[Finding]:
    if not machine.qt:
        return [Finding("Viewer", "bad", "No Qt library is installed.", _pip(shlex.quote("napari[pyqt6]")))]
    if machine.missing_libraries:
        packages = " ".join(_DEBIAN[name] for name in machine.missing_libraries)
        text = f"Qt lacks system libraries: {', '.join(f'lib{name}' for name in machine.missing_libraries)}."
        return [Finding("Viewer", "bad", text, f"sudo apt-get install -y {packages}")]
    if not machine.display:
        text = "There is no display; the viewer needs one, a virtual one will do. Training does not."
        return [Finding("Viewer", "warn", text, "xvfb-run -a napari-med3dssl")]
    return [Finding("Viewer", "ok", f"{' and '.join(machine.qt)} can open windows.")]
