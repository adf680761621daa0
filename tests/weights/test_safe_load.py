"""Checkpoints load whatever their wrapper; hostile files do nothing and get a sentence."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from training_backend.errors import WeightsError
from training_backend.weights.safe_load import load_tensors

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


class Touch:
    """Pickles to a call of os.system that would leave a file behind."""

    def __init__(self, sentinel: Path) -> None:
        self.command = f"touch {sentinel}"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class Evaluate(Touch):
    """The same through builtins.eval."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"__import__('os').system({self.command!r})",)


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    return tmp_path / "sentinel"


def _zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _saved(value: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def _stride_bomb() -> bytes:
    return _saved({"a": torch.zeros(1).expand(1 << 40)})


def _legacy_bomb(sentinel: Path) -> bytes:
    return _saved({"state_dict": TENSORS, "x": Touch(sentinel)}, _use_new_zipfile_serialization=False)


def _bomb_zip(path: Path, sentinel: Path) -> None:
    _zip(path, {"archive/data.pkl": b"\0" * 10_000_000, "archive/version": b"3"}, zipfile.ZIP_DEFLATED)


def _overlapping_zip(path: Path, sentinel: Path) -> None:
    """A member whose directory entry claims a terabyte."""
    _zip(path, {"archive/data.pkl": b"abcd", "archive/data/0": b"1234"})
    content = path.read_bytes()
    at = content.rindex(b"PK\x01\x02")
    path.write_bytes(content[: at + 20] + b"\xf0\xff\xff\xf0" * 2 + content[at + 28 :])


def _tar(path: Path, sentinel: Path) -> None:
    with tarfile.open(path, "w") as archive:
        content = pickle.dumps(Touch(sentinel))
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _script(path: Path, sentinel: Path) -> None:
    _zip(path, {"m/data.pkl": pickle.dumps({}), "m/constants.pkl": pickle.dumps(()), "m/code/__torch__.py": b"0"})


def _bytes(make: Callable[[Path], bytes]) -> Callable[[Path, Path], None]:
    return lambda path, sentinel: path.write_bytes(make(sentinel)) and None


HOSTILE: dict[str, tuple[str, Callable[[Path, Path], None], str]] = {
    "os.system in a zip": ("a.pth", _bytes(lambda s: _saved({"model": TENSORS, "args": Touch(s)})), "posix.system"),
    "eval in a zip": ("a.ckpt", _bytes(lambda s: _saved({"model": TENSORS, "x": Evaluate(s)})), "eval"),
    "os.system, protocol 4": ("a.pt", _bytes(lambda s: _saved(Touch(s), pickle_protocol=4)), "posix.system"),
    "old format": ("a.pth", _bytes(_legacy_bomb), "posix.system"),
    "raw pickle": ("a.pt", _bytes(lambda s: pickle.dumps(Touch(s))), "posix.system"),
    "raw pickle, protocol 2": ("a.pt", _bytes(lambda s: pickle.dumps(Touch(s), protocol=2)), "posix.system"),
    "raw pickle, protocol 0": ("a.pt", _bytes(lambda s: pickle.dumps(Touch(s), protocol=0)), "not a PyTorch"),
    "bait: tensors first, bomb behind": (
        "a.pth",
        _bytes(lambda s: _saved(TENSORS, _use_new_zipfile_serialization=False) + pickle.dumps(Touch(s))),
        "",
    ),
    "bait: .pkl with a valid checkpoint": ("a.pkl", _bytes(lambda s: _saved(TENSORS)), "opened safely"),
    "bait: pickle called safetensors": ("a.safetensors", _bytes(lambda s: pickle.dumps(Touch(s))), "safetensors"),
    "bait: safetensors called pth": (
        "a.pth",
        _bytes(lambda s: b"\x40\0\0\0\0\0\0\0{}" + pickle.dumps(Touch(s))),
        "not a",
    ),
    "joblib": ("a.joblib", _bytes(lambda s: pickle.dumps(Touch(s))), "opened safely"),
    "nested zip": (
        "a.pth",
        lambda path, s: _zip(path, {"archive/data.pkl": pickle.dumps({}), "archive/inner.zip": _saved(Touch(s))}),
        "inner.zip",
    ),
    "two archives in one": (
        "a.pth",
        lambda path, s: _zip(path, {"a/data.pkl": pickle.dumps({}), "b/data.pkl": pickle.dumps(Touch(s))}),
        "several archives",
    ),
    "path traversal": ("a.pth", lambda path, s: _zip(path, {"a/../../data.pkl": b""}), "holds"),
    "zip bomb": ("a.pth", _bomb_zip, "compressed"),
    "claims a terabyte": ("a.pth", _overlapping_zip, "claim more bytes"),
    "stride bomb": ("a.pth", _bytes(lambda s: _stride_bomb()), "backed by the file"),
    "tar": ("a.pth", _tar, "tar file"),
    "TorchScript": ("a.pt", _script, "TorchScript"),
    "truncated zip": ("a.pth", _bytes(lambda s: _saved(TENSORS)[:-60]), "truncated"),
    "truncated in the middle": ("a.pth", _bytes(lambda s: _saved(TENSORS)[:300]), ""),
    "truncated old format": ("a.pth", _bytes(lambda s: _saved(TENSORS, _use_new_zipfile_serialization=False)[:-9]), ""),
    "text": ("a.pth", _bytes(lambda s: b"<html>Sign in to download</html>"), "not a PyTorch checkpoint"),
    "empty": ("a.pth", _bytes(lambda s: b""), "not a PyTorch checkpoint"),
    "empty safetensors": ("a.safetensors", _bytes(lambda s: b""), "safetensors"),
    "no tensors": ("a.pth", _bytes(lambda s: _saved({"epoch": 3})), "no tensors"),
    "a lone tensor": ("a.pth", _bytes(lambda s: _saved(torch.ones(3))), "not named tensors"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_do_nothing_and_get_a_sentence(case: str, tmp_path: Path, sentinel: Path) -> None:
    name, make, expected = HOSTILE[case]
    path = tmp_path / name
    make(path, sentinel)
    before = path.read_bytes()
    if case == "bait: tensors first, bomb behind":
        assert set(load_tensors(path).tensors) == set(TENSORS)  # what lies behind the tensors is never reached
    else:
        with pytest.raises(WeightsError) as caught:
            load_tensors(path)
        assert expected in str(caught.value)
        assert str(caught.value).startswith(("a.", path.name))
        assert str(caught.value).rstrip().endswith(".")
    assert not sentinel.exists()
    assert path.read_bytes() == before


def test_the_corpus_is_armed(tmp_path: Path, sentinel: Path) -> None:
    """The bombs go off when somebody opens them the unsafe way, so the test above proves something."""
    pickle.loads(pickle.dumps(Touch(sentinel)))
    assert sentinel.exists()


@pytest.mark.parametrize("kind", ["zip", "old format", "safetensors"])
def test_damage_anywhere_gives_tensors_or_a_sentence(kind: str, tmp_path: Path) -> None:
    whole = {
        "zip": _saved({"model": TENSORS, "args": argparse.Namespace(lr=1.0), "best": np.float64(1)}),
        "old format": _saved(TENSORS, _use_new_zipfile_serialization=False),
        "safetensors": save(TENSORS),
    }[kind]
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    chance = random.Random(kind)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 2, 10])):
            place = chance.randrange(len(damaged))
            damaged[place : place + chance.choice([0, 1, 1, 1, 30])] = chance.randbytes(1)
        path.write_bytes(damaged)
        try:
            load_tensors(path)
        except WeightsError:
            refused += 1
    assert 30 < refused <= 150


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights file"):
        load_tensors(tmp_path / "absent.pth")


@pytest.mark.parametrize("wrapper", ["", "model", "model_state", "state_dict", "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "module.model.", "encoder."])
def test_wrappers_and_common_prefixes_are_removed(wrapper: str, prefix: str, tmp_path: Path) -> None:
    tensors = {prefix + key: value for key, value in TENSORS.items()}
    path = tmp_path / "a.pth"
    torch.save({wrapper: tensors, "epoch": 7} if wrapper else tensors, path)
    loaded = load_tensors(path)
    assert (loaded.wrapper, loaded.prefix) == (wrapper, prefix)
    assert all(torch.equal(loaded.tensors[key], value) for key, value in TENSORS.items())
    assert loaded.extras == ({"epoch": 7} if wrapper else {})


def test_a_prefix_that_one_key_lacks_stays(tmp_path: Path) -> None:
    torch.save({"encoder.a": torch.ones(1), "decoder.b": torch.ones(1)}, tmp_path / "a.pth")
    assert set(load_tensors(tmp_path / "a.pth").tensors) == {"encoder.a", "decoder.b"}


@pytest.mark.parametrize("legacy", [False, True])
def test_training_checkpoints_with_arguments_and_optimiser_load(legacy: bool, tmp_path: Path) -> None:
    """What MAE-style scripts write: Namespace, NumPy values, paths, optimiser and scaler beside the model."""
    model = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    arguments = argparse.Namespace(
        model="mae_vit_large", lr=1e-4, output_dir=Path("out"), resume=None, betas=[0.9, 0.95]
    )
    content = {
        "model": model.state_dict(),
        "optimizer": optimiser.state_dict(),
        "epoch": 4,
        "best": np.float64(0.5),
        "count": np.int64(3),
        "curve": np.arange(4.0),
        "scaler": {"scale": 65536.0},
        "args": arguments,
        "order": collections.OrderedDict(a=1),
    }
    path = tmp_path / "checkpoint-4.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    loaded = load_tensors(path)
    assert torch.equal(loaded.tensors["weight"], model.weight)
    assert loaded.extras["epoch"] == 4
    assert loaded.extras["args"] == {"model": "mae_vit_large", "lr": 1e-4, "betas": [0.9, 0.95]}


def test_safetensors_with_metadata(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors", metadata={"licence": "CC0"})
    loaded = load_tensors(tmp_path / "a.safetensors")
    assert torch.equal(loaded.tensors["a.weight"], TENSORS["a.weight"])
    assert loaded.extras == {"licence": "CC0"}


def test_parameters_come_back_as_plain_tensors_without_gradient(tmp_path: Path) -> None:
    torch.save({"w": torch.nn.Parameter(torch.ones(2))}, tmp_path / "a.pth")
    tensor = load_tensors(tmp_path / "a.pth").tensors["w"]
    assert type(tensor) is torch.Tensor
    assert not tensor.requires_grad
