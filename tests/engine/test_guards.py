"""What a run does when numbers, memory or the disk give out; faults are injected, all else is real."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from training_backend.config.registry import method
from training_backend.engine import checkpoint, work
from training_backend.engine.events import EventReader
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.worker import RESERVE_BYTES, execute
from training_backend.jobs import summary


def warnings(run, category: str) -> list[dict]:
    found = [event for event in EventReader(run.events_path).read() if event["type"] == "warning"]
    return [event for event in found if event["category"] == category]


@pytest.fixture
def spoil(monkeypatch):
    """Replaces the method's training step by one that may spoil what the real one gives."""

    def use(spoiler) -> None:
        real = method("mae3d")

        def step(network, batch, generator):
            return spoiler(lambda: real.training_step(network, batch, generator), batch)

        monkeypatch.setattr(work, "find_method", lambda name: dataclasses.replace(real, training_step=step))

    return use


def not_a_number(times: int, *cases: str):
    """Loss that is not a number in the first `times` training batches (of certain cases, or any)."""
    left = [times]

    def spoiler(real, batch):
        output = real()
        hit = not cases or set(cases) & set(batch.case_ids)
        if left[0] > 0 and hit and torch.is_grad_enabled():
            left[0] -= 1
            output.loss = output.loss * float("nan")
        return output

    return spoiler


def test_single_bad_step_is_skipped_and_said_with_its_cases(pretrain, start, spoil):
    spoil(not_a_number(1))
    run = start(pretrain())
    assert execute(run) == 0
    (warning,) = warnings(run, "diverged")
    assert "step 1 is not a finite number; the step was skipped" in warning["message"]
    assert warning["cases"]


def test_skipped_step_changes_no_weight(pretrain, start, spoil):
    spoil(not_a_number(1000))
    run = start(pretrain(optim={"max_steps": 3}, engine={"checkpoint_steps": 1, "keep_last": 9, "val_steps": 100}))
    execute(run)
    first, last = (
        checkpoint.read(folder).tensors["model"]
        for folder in (checkpoint.all_steps(run.checkpoints)[0], checkpoint.all_steps(run.checkpoints)[-1])
    )
    assert all(torch.equal(first[key], last[key]) for key in first)


def test_more_than_three_bad_steps_roll_back_with_half_the_rate(pretrain, start, spoil):
    spoil(not_a_number(4))
    run = start(pretrain(optim={"max_steps": 8, "schedule": "constant"}, engine={"val_steps": 100}))
    assert execute(run) == 0
    messages = [warning["message"] for warning in warnings(run, "diverged")]
    assert len(messages) == 4
    assert "returns to an earlier checkpoint" in messages[-1]
    trained = [event for event in EventReader(run.events_path).read() if event["type"] == "metrics"]
    assert [event["step"] for event in trained if event["split"] == "train"] == list(range(1, 9))
    assert {event["lr"] for event in trained if event["split"] == "train"} == {run.config().optim.lr / 2}
    state = checkpoint.read(checkpoint.newest_verified(run.checkpoints)[0]).state
    assert (state["guard"]["rollbacks"], state["guard"]["lr_factor"]) == (1, 0.5)


def test_run_that_keeps_diverging_stops_and_names_the_case(pretrain, start, spoil, dataset):
    from training_backend.data.dataset import Dataset

    culprit = Dataset.open(dataset).cases("train")[0].id
    spoil(not_a_number(10**6, culprit))
    run = start(
        pretrain(optim={"max_steps": 200}, engine={"val_steps": 1000, "micro_batch": 1, "checkpoint_steps": 50})
    )
    assert execute(run) == 1
    error = run.error()
    assert error["category"] == "diverged"
    assert f"cases first: {culprit};" in error["hint"]
    assert summary(run).state == "failed"
    folder, complaints = checkpoint.newest_verified(run.checkpoints)
    assert folder is not None
    assert complaints == []


def test_memory_that_runs_out_halves_the_micro_batch_and_keeps_the_batch(pretrain, start, spoil):
    sizes = []

    def spoiler(real, batch):
        if torch.is_grad_enabled():
            sizes.append(len(batch.case_ids))
        if len(batch.case_ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return real()

    spoil(spoiler)
    run = start(pretrain(engine={"val_steps": 100}))
    execute(run)
    assert sizes[:6] == [4, 2, 1, 1, 1, 1]
    (warning,) = warnings(run, "resource")
    assert "take 1 views at a time" in warning["message"]
    state = checkpoint.read(checkpoint.newest_verified(run.checkpoints)[0]).state
    assert state["micro_batch"] == 1


def test_view_that_never_fits_is_an_error_with_numbers(pretrain, start, spoil):
    def spoiler(real, batch):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory")

    spoil(spoiler)
    run = start(pretrain())
    assert execute(run) == 1
    assert run.error()["category"] == "resource"
    assert "16 × 16 × 16 voxels does not fit" in run.error()["sentence"]
    assert "activation_checkpointing" in run.error()["hint"]


class Disk:
    """A disk of `budget` bytes under a folder: synced files beyond it raise what a full disk raises."""

    def __init__(self, folder: Path, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.budget, self.refused = folder, budget, 0
        self._sync = os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)

    def used(self) -> int:
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def fsync(self, descriptor: int) -> None:
        if self.used() > self.budget:
            self.refused += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        self._sync(descriptor)


@contextmanager
def real_disk(folder: Path, size: int, wanted: bool) -> Iterator[bool]:
    """A memory disk of `size` bytes at `folder` if `wanted` and the system permits it; says whether there is one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    possible = wanted and shutil.which("mount") is not None
    mounted = possible and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("real", [False, True])
def test_full_disk_fails_with_a_sentence_keeps_checkpoints_and_resumes_when_there_is_room(
    pretrain, start, monkeypatch, tmp_path, real
):
    config = pretrain(optim={"max_steps": 8}, engine={"checkpoint_steps": 2, "val_steps": 100, "keep_last": 9})
    whole = start(config, "whole")
    assert execute(whole) == 0
    largest = max(sum(f.stat().st_size for f in folder.iterdir()) for folder in checkpoint.all_steps(whole.checkpoints))
    size = int(1.6 * largest) + RESERVE_BYTES
    with real_disk(tmp_path / "disk", size, wanted=real) as mounted:
        run = RunDirectory.create(tmp_path / "disk" / "run", config)
        with monkeypatch.context() as patch:
            disk = Disk(run.path, 1 << 40 if mounted else size, patch)
            assert execute(run) == 1
            assert disk.refused > 0 or mounted
        _failed_for_want_of_room(run)
        if mounted:
            subprocess.run(["mount", "-o", f"remount,size={1 << 30}", str(tmp_path / "disk")], check=True)
        assert execute(run) == 0
        assert run.model_path.read_bytes() == whole.model_path.read_bytes()


def _failed_for_want_of_room(run: RunDirectory) -> None:
    assert run.error()["category"] == "resource"
    assert "The disk is full" in run.error()["sentence"]
    assert summary(run).state == "failed"
    folder, complaints = checkpoint.newest_verified(run.checkpoints)
    assert folder is not None
    assert complaints == []
    assert checkpoint.step_of(folder) > 0


def test_older_checkpoints_make_room_before_a_run_gives_up(pretrain, start, monkeypatch):
    config = pretrain(optim={"max_steps": 8}, engine={"checkpoint_steps": 1, "val_steps": 100, "keep_last": 9})
    whole, run = start(config, "whole"), start(config, "run")
    execute(whole)
    largest = max(sum(f.stat().st_size for f in folder.iterdir()) for folder in checkpoint.all_steps(whole.checkpoints))
    with monkeypatch.context() as patch:
        disk = Disk(run.path, int(5.5 * largest), patch)
        assert execute(run) == 0
        assert disk.refused > 0
    assert any("made room" in warning["message"] for warning in warnings(run, "resource"))
    assert run.model_path.read_bytes() == whole.model_path.read_bytes()


def test_truncated_checkpoint_falls_back_loudly_and_the_run_ends_the_same(pretrain, start):
    config = pretrain(engine={"checkpoint_steps": 2, "keep_last": 9})
    whole, run = start(config, "whole"), start(config, "run")
    execute(whole)
    execute(run)
    run.update(state="cancelled")
    run.model_path.unlink()
    for folder in checkpoint.all_steps(run.checkpoints)[-2:]:
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
    assert execute(run) == 0
    messages = [warning["message"] for warning in warnings(run, "checkpoint")]
    assert len(messages) == 2
    assert all("is damaged" in message and "an earlier one is used" in message for message in messages)
    assert run.model_path.read_bytes() == whole.model_path.read_bytes()


def test_all_checkpoints_damaged_starts_again_and_says_so(pretrain, start):
    run = start(pretrain(engine={"keep_last": 1}))
    execute(run)
    run.update(state="cancelled")
    for folder in checkpoint.all_steps(run.checkpoints):
        (folder / "manifest.json").unlink()
    assert execute(run) == 0
    assert warnings(run, "checkpoint")


def test_half_precision_lowers_its_scale_and_goes_on(pretrain, start, spoil, monkeypatch):
    """Loss scaling as on an older GPU: an overflow is no fault, a loss that is not a number is skipped."""
    from lightning_fabric.plugins.precision.amp import MixedPrecision

    from training_backend.engine import runtime

    def scaled(self, engine):
        original(self, engine)
        self.precision = "fp16"
        self._fabric.strategy._precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", 2.0**40))

    original = runtime.Runtime.__init__
    monkeypatch.setattr(runtime.Runtime, "__init__", scaled)
    calls = [0]

    def spoiler(real, batch):
        output = real()
        calls[0] += torch.is_grad_enabled()
        if calls[0] == 5:
            output.loss = output.loss * float("nan")
        return output

    spoil(spoiler)
    run = start(pretrain(optim={"max_steps": 30}, engine={"val_steps": 100, "checkpoint_steps": 10}))
    assert execute(run) == 0
    assert len(warnings(run, "diverged")) == 1
    saved = checkpoint.read(checkpoint.newest_verified(run.checkpoints)[0])
    assert saved.state["scaler"]["scale"] < 2.0**40
    steps = {float(value) for name, value in saved.tensors["optimizer"].items() if name.endswith(":step")}
    assert 0 < max(steps) < 30
