"""Our models go to the authors' layout and back; files are described without being run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from training_backend.errors import WeightsError
from training_backend.weights.convert import import_file
from training_backend.weights.export import export
from training_backend.weights.inspect import inspect
from training_backend.weights.load import load_model


def test_pre_training_round_trip_with_all_settings(small: SimpleNamespace, tmp_path: Path) -> None:
    config = small.pretrain(
        method={"norm_pix_loss": True, "output": "linear"},
        data={"size": (12, 8, 16), "dataset": "/home/someone/scans", "intensity": {"profile": "zscore"}},
    )
    before = small.saved(tmp_path / "ours", config)
    path = export(tmp_path / "ours", tmp_path / "theirs.pth")
    stored = torch.load(path, weights_only=True)
    assert small.same(stored["model"], before.state_dict())
    after = load_model(path)
    assert small.same(after.module.state_dict(), before.state_dict())
    for name in ("embed_dim", "depth", "heads", "decoder_heads", "norm_pix_loss", "output", "patch_size"):
        assert getattr(after.config.method, name) == getattr(config.method, name), name
    assert after.profile == load_model(tmp_path / "ours").profile
    assert "someone" not in stored["med3dssl"]
    import_file(path, tmp_path / "again")
    assert load_model(tmp_path / "again").profile == after.profile


@pytest.mark.parametrize(
    ("keys", "config"),
    [
        ("mae_vit_base_patch16_dec512d8b", ("pretrain", {})),
        ("vit_base_patch16_gap", ("finetune", {"pooling": "global"})),
        ("vit_base_patch16_cls", ("finetune", {"pooling": "class"})),
    ],
)
def test_exports_have_the_published_names_and_order(
    keys: str, config: tuple[str, dict[str, Any]], small: SimpleNamespace, tmp_path: Path
) -> None:
    published = json.loads((small.parity / f"{keys}_keys.json").read_text())
    depth = 1 + max(int(key.split(".")[1]) for key in published if key.startswith("blocks."))
    method = {"depth": depth, "decoder_depth": 8}
    made = small.pretrain(method=method) if config[0] == "pretrain" else small.finetune(method=method, task=config[1])
    small.saved(tmp_path, made)
    stored = torch.load(export(tmp_path, tmp_path / "theirs.pth"), weights_only=True)
    state = stored["model"] if config[0] == "pretrain" else stored
    assert set(state) == set(published)
    assert [value.ndim for _, value in sorted(state.items())] == [len(shape) for _, shape in sorted(published.items())]


@pytest.mark.parametrize("case", ["mae_pretrain_a", "vit_gap_multi", "vit_cls", "vit_mlp_head"])
def test_the_authors_files_survive_import_and_export(
    case: str, small: SimpleNamespace, reference: Any, tmp_path: Path
) -> None:
    config = small.cases[case]["config"]
    given = {"method": {"decoder_heads": config.get("decoder_num_heads", 4)}}
    report = import_file(reference(case), tmp_path / "ours", heads=config["num_heads"], changes=given)
    assert report.share == 1.0
    stored = torch.load(export(tmp_path / "ours", tmp_path / "theirs.pth"), weights_only=True)
    state = stored.get("model", stored)
    assert small.same(
        dict(sorted(state.items())), dict(sorted(load_file(small.parity / f"{case}.safetensors").items()))
    )


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_fine_tuned_heads_are_bare_as_the_authors_write_them(task: str, small: SimpleNamespace, tmp_path: Path) -> None:
    before = small.saved(tmp_path, small.finetune(task))
    stored = torch.load(export(tmp_path, tmp_path / "theirs.pth"), weights_only=True)
    assert "cls_token" in stored
    assert torch.equal(stored["head.weight"], before.head.weight)
    assert not any(key.startswith("encoder.") for key in stored)


def test_a_segmentation_model_gives_its_encoder(small: SimpleNamespace, tmp_path: Path) -> None:
    before = small.saved(tmp_path / "ours", small.finetune("segmentation"))
    path = export(tmp_path / "ours", tmp_path / "theirs.pth")
    after = load_model(path)
    assert after.kind == "encoder"
    assert small.same(after.module.state_dict(), before.encoder.state_dict())
    report = import_file(path, tmp_path / "again")
    assert report.kind == "encoder"
    again = load_model(tmp_path / "again")
    assert again.kind == "encoder"
    assert small.same(again.module.state_dict(), before.encoder.state_dict())


def test_import_never_overwrites_and_export_wants_a_torch_suffix(small: SimpleNamespace, tmp_path: Path) -> None:
    small.saved(tmp_path, small.pretrain())
    path = export(tmp_path, tmp_path / "theirs.pth")
    with pytest.raises(WeightsError, match="already holds a model"):
        import_file(path, tmp_path)
    with pytest.raises(WeightsError, match=r"not \.onnx"):
        export(tmp_path, tmp_path / "theirs.onnx")


def test_inspect_tells_what_a_file_holds(small: SimpleNamespace, reference: Any, tmp_path: Path) -> None:
    found = inspect(reference("vit_cls", prefix="module."), {"method": {"heads": 3}})
    assert (found.family, found.kind, found.wrapper, found.prefix) == ("mae3d", "finetune", "model", "module.")
    assert found.ok
    assert found.tensors == 44
    assert found.parameters == sum(t.numel() for t in load_file(small.parity / "vit_cls.safetensors").values())
    assert "depth 3" in str(found)
    small.saved(tmp_path / "run", small.pretrain())
    assert inspect(tmp_path / "run").kind == "pretrain"


def test_inspect_reports_what_it_does_not_know(reference: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": {"swinViT.a": torch.ones(2)}, "epoch": 4}, tmp_path / "voco.pt")
    found = inspect(tmp_path / "voco.pt")
    assert (found.family, found.ok) == ("voco", False)
    assert "VoCo" in str(found)
    assert "epoch" in str(found)
    assert "heads" in str(inspect(reference("transfer_interp")))
    torch.save({"conv.weight": torch.ones(2)}, tmp_path / "other.pt")
    assert "unknown" in str(inspect(tmp_path / "other.pt"))


def test_every_entry_of_the_zoo_has_an_importer() -> None:
    from training_backend.weights.families import importable
    from training_backend.weights.zoo import entries

    assert {entry.family for entry in entries()} <= set(importable())
