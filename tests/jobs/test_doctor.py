"""The doctor names what is wrong and the command that mends it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training_backend.jobs import machine as machine_module
from training_backend.jobs.doctor import Finding, examine, install_torch, wheel
from training_backend.jobs.machine import Gpu, Machine, TorchFacts, measure, parse_gpu

GB = 10**9
CARD = Gpu("NVIDIA RTX 4090", "565.57.01", 8.9, 24564)
SOUND = Machine(
    python=(3, 12),
    packages={"torch>=2.10": "2.13.0+cu126", "napari>=0.9": "0.9.2"},
    torch=TorchFacts("2.13.0+cu126", cuda="12.6", gpus=[CARD.name]),
    gpus=[CARD],
    memory=64 * GB,
    memory_free=40 * GB,
    disk={"/home/someone": 500 * GB},
    shared_memory=32 * GB,
    display=True,
    qt=["PyQt6"],
    missing_libraries=[],
    system="Linux",
)


def finding(name: str, **changes: Any) -> Finding:
    return next(each for each in examine(replace(SOUND, **changes)) if each.name == name)


def test_a_sound_machine_has_nothing_to_mend() -> None:
    found = examine(SOUND)
    assert {each.state for each in found} == {"ok"}
    assert all(each.sentence.endswith(".") and not each.command for each in found)


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        (Gpu("Pascal", "580.65", 6.1, 8192), "cu126"),
        (Gpu("Ampere", "535.183", 8.6, 8192), "cu126"),
        (Gpu("Ampere", "580.65", 8.6, 8192), "cu130"),
        (Gpu("Blackwell", "572.16", 12.0, 8192), "cu128"),
        (Gpu("Blackwell", "590.1", 12.0, 8192), "cu130"),
        (Gpu("Blackwell", "565.1", 12.0, 8192), ""),
        (Gpu("old driver", "470.82", 8.6, 8192), ""),
        (Gpu("odd", "[N/A]", 0.0, 0), ""),
    ],
)
def test_the_build_fits_card_and_driver(gpu: Gpu, expected: str) -> None:
    assert wheel(gpu) == expected


def test_a_cpu_build_beside_a_card_gets_the_exact_command() -> None:
    found = finding("GPU", torch=TorchFacts("2.13.0+cpu"))
    assert found.state == "bad"
    assert "CPU build" in found.sentence
    assert found.command.endswith("torch --index-url https://download.pytorch.org/whl/cu126")
    assert sys.executable in found.command


def test_without_a_card_the_cpu_build_is_right() -> None:
    assert finding("GPU", torch=TorchFacts("2.13.0+cpu"), gpus=[]).state == "warn"
    assert finding("GPU", torch=TorchFacts("2.13.0", mps=True), gpus=[]).state == "ok"
    assert install_torch([]).endswith("/whl/cpu")


@pytest.mark.parametrize(
    ("name", "changes", "state", "text", "command"),
    [
        ("GPU", {"torch": TorchFacts("2.13.0+cu130", cuda="13.0")}, "bad", "cannot use", "cu126"),
        (
            "GPU",
            {"torch": TorchFacts("2.13.0", "12.6", gpus=["X"], error="no kernel image")},
            "bad",
            "no kernel",
            "cu126",
        ),
        (
            "GPU",
            {"torch": TorchFacts("2.13.0+cpu"), "gpus": [replace(CARD, driver="470.1")]},
            "bad",
            "update it",
            "",
        ),
        ("PyTorch", {"torch": None}, "bad", "not installed", "cu126"),
        ("PyTorch", {"torch": TorchFacts("2.9.1")}, "bad", "too old", "cu126"),
        ("PyTorch", {"torch": TorchFacts("2.13", error="libc10.so is missing")}, "bad", "libc10", "cu126"),
        (
            "Packages",
            {"packages": {"napari>=0.9": "0.5.6", "monai>=1.5.2": None}},
            "bad",
            "monai is missing",
            "napari>=0.9",
        ),
        ("Python", {"python": (3, 10)}, "bad", "3.11", ""),
        ("Memory", {"memory_free": 1 * GB}, "bad", "1 of 64 GB", ""),
        ("Memory", {"memory_free": 5 * GB}, "warn", "5 of 64 GB", ""),
        ("Disk", {"disk": {"/full": GB}}, "bad", "/full", ""),
        ("Shared memory", {"shared_memory": 64 * 2**20}, "warn", "0.07 GB", "--shm-size"),
        ("Viewer", {"qt": []}, "bad", "No Qt", "napari[pyqt6]"),
        ("Viewer", {"missing_libraries": ["xcb-cursor"]}, "bad", "libxcb-cursor", "apt-get install -y libxcb-cursor0"),
        ("Viewer", {"display": False}, "warn", "no display", "xvfb-run"),
    ],
)
def test_every_fault_has_a_sentence(name: str, changes: dict[str, Any], state: str, text: str, command: str) -> None:
    found = finding(name, **changes)
    assert found.state == state
    assert text in found.sentence
    assert command in found.command
    assert examine(replace(SOUND, **changes))[0].state == state, "the worst comes first"


def test_nvidia_smi_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100, 80GB HBM3'\necho 'NVIDIA A100, 560.35.03, 8.0, 40960'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert machine_module._gpus() == [Gpu("NVIDIA A100", "560.35.03", 8.0, 40960)]
    assert parse_gpu("NVIDIA K80, 460.1, [N/A], 11441") == Gpu("NVIDIA K80", "460.1", 0.0, 11441)


def test_a_broken_pytorch_is_reported_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "_ASK_TORCH", "import sys; sys.exit('ImportError: libcudart.so.12')")
    found = machine_module._torch()
    assert found is not None
    assert "libcudart" in found.error


def test_this_machine_is_measured_from_a_process_without_torch(repository: Path) -> None:
    code = (
        "import sys, pathlib; from training_backend.jobs.doctor import examine;"
        "found = examine(); print([f.name for f in found]); print('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=repository,
        env={**os.environ, "PYTHONPATH": "."},
    )
    names, torch_loaded = result.stdout.splitlines()
    assert {"PyTorch", "GPU", "Memory", "Disk", "Viewer"} <= set(names.replace("'", " ").replace(",", " ").split())
    assert torch_loaded == "False"


def test_versions_are_compared_with_the_projects_own_requirements(tmp_path: Path) -> None:
    packages = measure((tmp_path / "not" / "there",)).packages
    assert any(line.startswith("torch>=") for line in packages)
    assert not any("pytest" in line for line in packages), "extras are not required"
