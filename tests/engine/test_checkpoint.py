from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from training_backend.engine import checkpoint
from training_backend.engine.checkpoint import Saved
from training_backend.errors import ResourceError, WeightsError


def saved(value: float) -> Saved:
    return Saved({"model": {"weight": torch.full((3, 2), value)}, "optimizer": {}}, {"step": int(value), "name": "ä"})


def test_read_gives_back_what_was_written(tmp_path):
    folder = checkpoint.write(tmp_path, 7, saved(7.0))
    assert folder.name == "step_00000007"
    back = checkpoint.read(folder)
    assert torch.equal(back.tensors["model"]["weight"], torch.full((3, 2), 7.0))
    assert dict(back.state) == {"step": 7, "name": "ä"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_damaged_checkpoint_is_named_and_passed_over(tmp_path, damage):
    good, bad = checkpoint.write(tmp_path, 1, saved(1.0)), checkpoint.write(tmp_path, 2, saved(2.0))
    weights = bad / "model.safetensors"
    content = weights.read_bytes()
    if damage == "truncate":
        weights.write_bytes(content[:-5])
    elif damage == "flip":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "remove":
        weights.unlink()
    else:
        (bad / "manifest.json").write_text('{"files"', encoding="utf-8")
    found, complaints = checkpoint.newest_verified(tmp_path)
    assert found == good
    assert len(complaints) == 1
    assert bad.name in complaints[0]
    with pytest.raises(WeightsError, match="damaged"):
        checkpoint.read(bad)


def test_nothing_verified_is_none(tmp_path):
    assert checkpoint.newest_verified(tmp_path / "absent") == (None, [])


def test_prune_keeps_the_newest_and_the_best(tmp_path):
    for step in range(1, 7):
        checkpoint.write(tmp_path, step, saved(step))
    checkpoint.prune(tmp_path, 2, {3})
    assert [checkpoint.step_of(folder) for folder in checkpoint.all_steps(tmp_path)] == [3, 5, 6]


@pytest.mark.parametrize("call", range(1, 12))
def test_death_at_any_file_operation_leaves_a_verified_checkpoint(tmp_path, monkeypatch, call):
    """Every fsync and rename inside a save of an existing step is made to be the last thing the process does."""
    checkpoint.write(tmp_path, 5, saved(1.0))

    class Died(BaseException):
        pass

    count = 0

    def dies(real):
        def wrapped(*arguments, **keywords):
            nonlocal count
            count += 1
            if count == call:
                raise Died
            return real(*arguments, **keywords)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", dies(os.fsync))
        patch.setattr(Path, "replace", dies(Path.replace))
        patch.setattr("shutil.rmtree", lambda *a, **k: None)  # a dead process cleans nothing up
        try:
            checkpoint.write(tmp_path, 5, saved(2.0))
        except Died:
            pass
        else:
            assert count < call
    checkpoint.tidy(tmp_path)
    found, complaints = checkpoint.newest_verified(tmp_path)
    assert complaints == []
    assert found is not None
    value = float(checkpoint.read(found).tensors["model"]["weight"][0, 0])
    assert value in (1.0, 2.0)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000005"]


def test_full_disk_is_a_sentence_and_leaves_earlier_checkpoints(tmp_path, monkeypatch):
    first = checkpoint.write(tmp_path, 1, saved(1.0))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match="disk is full"):
            checkpoint.write(tmp_path, 2, saved(2.0))
    assert checkpoint.newest_verified(tmp_path)[0] == first
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_full_disk_inside_the_tensor_writer_is_the_same_sentence(tmp_path, monkeypatch):
    import safetensors.torch

    def full(tensors, path):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(ResourceError, match="disk is full"):
        checkpoint.write(tmp_path, 2, saved(2.0))


def test_manifest_has_size_and_hash_of_every_other_file(tmp_path):
    import hashlib

    folder = checkpoint.write(tmp_path, 1, saved(1.0))
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert set(listed) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    for name, facts in listed.items():
        content = (folder / name).read_bytes()
        assert facts == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_wanted_state_selects_an_older_one(tmp_path):
    for step in (1, 2, 3):
        checkpoint.write(tmp_path, step, saved(step))
    assert checkpoint.newest_verified(tmp_path, lambda state: state["step"] < 3)[0] == checkpoint.folder_of(tmp_path, 2)
