"""Checkpoints of AR-SSL4M in every wrapper, to other grids and channels, and back to the authors' layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from training_backend.config import RunConfig
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.config.registry import method, task
from training_backend.data.manifest import DatasetInfo
from training_backend.data.prepare import InputProfile
from training_backend.errors import WeightsError
from training_backend.weights.convert import import_file
from training_backend.weights.export import export
from training_backend.weights.families import identify
from training_backend.weights.load import load_model
from training_backend.weights.save import save_model
from training_backend.weights.transfer import init_from

PARITY = Path(__file__).parents[1] / "fixtures" / "parity" / "ar"
CASES = json.loads((PARITY / "manifest.json").read_text(encoding="utf-8"))["cases"]
SMALL: dict[str, Any] = {
    "method": {"embed_dim": 24, "heads": 2, "depth": 3, "patch_size": (2, 4, 4), "mlp_dim": 36},
    "data": {"size": (8, 8, 16)},
}
CLASSES = ("background", "organ", "tumour")
TASKS: dict[str, dict[str, Any]] = {
    "unetr": {"name": "segmentation", "classes": CLASSES, "decoder": "unetr", "feature_size": 4},
    "lean": {"name": "segmentation", "classes": CLASSES, "channels": (4, 8)},
    "tokens": {"name": "classification", "kind": "multiclass", "classes": 3, "pooling": "tokens"},
    "ricord": {"name": "classification", "kind": "multiclass", "classes": 2, "pooling": "tokens", "balanced": True},
    "global": {"name": "classification", "kind": "multiclass", "classes": 3, "pooling": "global"},
}


def pretrain(**changes: Any) -> RunConfig:
    return pretrain_config("ar", "tiny", Path("data"), SMALL).updated(changes)


def finetune(name: str, **changes: Any) -> RunConfig:
    chosen = TASKS[name]
    return finetune_config(chosen["name"], "tiny", Path("data"), "ar", {**SMALL, "task": chosen}).updated(changes)


def network(config: RunConfig, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    chosen = method("ar")
    built = chosen.build(config) if config.task is None else None
    if built is None:
        built = task(config.task.name).build(config, chosen.build_encoder(config))
    with torch.no_grad():
        for value in built.state_dict().values():
            value.add_(0.02 * torch.randn_like(value))
    return built.eval()


def saved(folder: Path, config: RunConfig, seed: int = 0) -> nn.Module:
    built = network(config, seed)
    profile = InputProfile.of(config, DatasetInfo(name="phantoms"))
    card = {
        "kind": config.kind,
        "config": config.model_dump(mode="json"),
        "profile": profile.model_dump(mode="json"),
    }
    save_model(folder, built, card)
    return built


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def published(case: str = "pretrain_prefix_norm") -> dict[str, Tensor]:
    return load_file(PARITY / f"{case}.safetensors")


def sharded(name: str) -> str:
    """As FSDP and activation checkpointing name it: one unit per layer."""
    parts = name.split(".")
    if "layers" in parts:
        parts[parts.index("layers") + 2 : parts.index("layers") + 2] = [
            "_fsdp_wrapped_module",
            "_checkpoint_wrapped_module",
        ]
    return ".".join(parts)


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 9, "best_acc": 0.5},
    "model": lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 9},
    "net": lambda state: {"net": state},
    "module": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    "fsdp": lambda state: {f"_fsdp_wrapped_module.{sharded(name)}": value for name, value in state.items()},
    "checkpointed": lambda state: {f"module._orig_mod.{sharded(name)}": value for name, value in state.items()},
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_the_published_file_is_read_in_every_wrapper(wrapper: str, tmp_path: Path) -> None:
    torch.save(WRAPPED[wrapper](published()), tmp_path / "theirs.pth")
    changes = {"method": {"heads": 4}, "data": {"size": (32, 32, 32)}}
    model = load_model(tmp_path / "theirs.pth", changes=changes)
    assert (model.kind, model.report.share, model.report.unexpected, model.report.missing) == ("pretrain", 1.0, (), ())
    assert same(model.module.state_dict(), published())
    assert (model.config.method.depth, model.config.method.embed_dim, model.config.method.mlp_dim) == (3, 48, 96)
    assert model.config.method.patch_size == (8, 8, 8)
    assert model.profile.view == "crop"
    assert (model.profile.intensity.low, model.profile.intensity.high) == (1.0, 99.9)


def test_the_published_widths_tell_the_heads_and_other_widths_ask(tmp_path: Path) -> None:
    torch.save(published(), tmp_path / "theirs.pth")
    with pytest.raises(WeightsError, match="how many attention heads its encoder of width 48") as raised:
        load_model(tmp_path / "theirs.pth")
    assert "--heads" in str(raised.value.hint)
    wide = pretrain(method={"embed_dim": 768, "heads": 12, "depth": 1, "mlp_dim": 24})
    torch.save(network(wide).state_dict(), tmp_path / "wide.pth")
    model = load_model(tmp_path / "wide.pth")
    assert model.config.method.heads == 12
    assert model.config.data.size == (128, 128, 128)
    assert len(model.card["notes"]) == 3
    assert str(model.report).endswith(
        "Targets normalised patch by patch are assumed, as published; see method.norm_pixel_loss."
    )


@pytest.mark.parametrize(("case", "name"), [("seg_unetr_2cls", "segmentation"), ("nodule_cls", "classification")])
def test_fine_tuned_files_of_the_authors_survive_import_and_export(case: str, name: str, tmp_path: Path) -> None:
    wrapper = {"segmentation": "state_dict", "classification": "net"}[name]
    torch.save({wrapper: published(case)}, tmp_path / "theirs.pth")
    report = import_file(tmp_path / "theirs.pth", tmp_path / "ours", heads=CASES[case]["config"]["num_heads"])
    assert (report.kind, report.share, report.unexpected, report.dropped) == ("finetune", 1.0, (), ())
    model = load_model(tmp_path / "ours")
    assert model.config.task.name == name
    stored = torch.load(export(tmp_path / "ours", tmp_path / "again.pth"), weights_only=True)
    assert same(stored[wrapper], published(case))


def test_a_published_classifier_sees_the_arrays_as_the_authors_loader_gives_them(tmp_path: Path) -> None:
    """The authors read (C, D, H, W) from the .npz and turn it to (C, W, H, D)."""
    arrays = np.load(PARITY / "nodule_cls_io.npz")
    torch.save({"net": published("nodule_cls")}, tmp_path / "theirs.pth")
    heads = CASES["nodule_cls"]["config"]["num_heads"]
    import_file(tmp_path / "theirs.pth", tmp_path / "ours", heads, recipe="nodulemnist3d")
    model = load_model(tmp_path / "ours")
    in_file = torch.from_numpy(arrays["image"]).permute(0, 1, 4, 3, 2)
    with torch.no_grad():
        torch.testing.assert_close(model.module(in_file), torch.from_numpy(arrays["logits"]), atol=2e-5, rtol=1e-4)
    assert (model.profile.view, model.profile.size, model.profile.keep_aspect) == ("volume", (128, 128, 128), False)
    assert (model.profile.intensity.profile, model.profile.crop_body) == ("identity", False)


def test_a_published_covid_classifier_sees_rows_columns_and_slices(tmp_path: Path) -> None:
    arrays = np.load(PARITY / "covid_cls_io.npz")
    torch.save({"model": published("covid_cls")}, tmp_path / "theirs.pth")
    heads = CASES["covid_cls"]["config"]["num_heads"]
    import_file(tmp_path / "theirs.pth", tmp_path / "ours", heads, recipe="ricord")
    model = load_model(tmp_path / "ours")
    slices_first = torch.from_numpy(arrays["image"]).permute(0, 1, 4, 2, 3)  # slices of rows and columns
    with torch.no_grad():
        found = model.module(slices_first).softmax(1)
    torch.testing.assert_close(found, torch.from_numpy(arrays["softmax"]), atol=2e-5, rtol=1e-4)
    assert (model.profile.size, model.profile.intensity.low) == ((64, 128, 128), -1024.0)
    assert model.config.task.class_names == ("negative", "positive")


def test_a_published_segmenter_takes_views_and_spacing_of_its_recipe(tmp_path: Path) -> None:
    torch.save({"state_dict": published("seg_unetr_2cls")}, tmp_path / "theirs.pth")
    heads = CASES["seg_unetr_2cls"]["config"]["num_heads"]
    import_file(tmp_path / "theirs.pth", tmp_path / "ours", heads, recipe="msd09-spleen")
    model = load_model(tmp_path / "ours")
    assert model.config.task.classes == ("background", "spleen")
    assert (model.profile.spacing_mm, model.profile.intensity.low) == ((1.0, 1.0, 1.0), -57.0)
    import_file(tmp_path / "theirs.pth", tmp_path / "atria", heads, recipe="la")
    assert load_model(tmp_path / "atria").config.method.axes == "xyz-lps"


def test_encoders_go_between_the_frames_of_the_authors(tmp_path: Path) -> None:
    saved(tmp_path, pretrain())
    config = finetune("tokens", method={"axes": "xyz-lps"})
    assert init_from(method("ar").build_encoder(config), tmp_path, config).share == 1.0


@pytest.mark.parametrize("name", ["pretrain", *TASKS])
@pytest.mark.parametrize("positions", ["sincos3d", "learnable"])
def test_our_models_go_to_the_authors_layout_and_back(name: str, positions: str, tmp_path: Path) -> None:
    changes = {"method": {"positions": positions, "order": "slab-major"}}
    config = pretrain(**changes) if name == "pretrain" else finetune(name, **changes)
    before = saved(tmp_path / "ours", config)
    stored = torch.load(export(tmp_path / "ours", tmp_path / "theirs.pth"), weights_only=True)
    wrapper = {"tokens": "net", "ricord": "model"}.get(name, "state_dict")
    assert set(stored) == {wrapper, "med3dssl"}
    prefix = "vit." if name == "unetr" else "model."
    table = f"{prefix}{'pos_embed_learn' if name == 'pretrain' else 'pos_embed'}"
    assert (table in stored[wrapper]) == (positions == "learnable")
    assert f"{prefix}layers.0.self_attn.q_proj.weight" in stored[wrapper]
    after = load_model(tmp_path / "theirs.pth")
    assert after.config.method.order == "slab-major"
    if name in ("lean", "global"):
        assert after.kind == "encoder"
        kept = {key: value for key, value in before.encoder.state_dict().items() if key in after.module.state_dict()}
        assert all(torch.equal(value, after.module.state_dict()[key]) for key, value in kept.items())
    else:
        assert same(after.module.state_dict(), before.state_dict())


def test_an_encoder_goes_into_tasks_and_keeps_its_numbers(tmp_path: Path) -> None:
    for positions in ("sincos3d", "learnable"):
        before = saved(tmp_path / positions, pretrain(method={"positions": positions}))
        config = finetune("tokens", method={"positions": positions}, data={"size": (8, 8, 16)})
        encoder = method("ar").build_encoder(config).eval()
        report = init_from(encoder, tmp_path / positions, config)
        assert (report.share, report.missing) == (1.0, ())
        assert set(report.dropped) >= {"decoder_pred.weight", "decoder_pred.bias"}
        given = torch.rand(1, 1, 8, 8, 16)
        torch.testing.assert_close(encoder.encode(given).tokens, before.model.encode(given).tokens)


def test_learnt_positions_move_to_another_grid_with_a_note(tmp_path: Path) -> None:
    before = saved(tmp_path / "ours", pretrain(method={"positions": "learnable"}))
    config = finetune("tokens", method={"positions": "learnable"}, data={"size": (16, 8, 8)})
    encoder = method("ar").build_encoder(config)
    report = init_from(encoder, tmp_path / "ours", config)
    assert [name for name, *_ in report.resized] == ["pos_embed"]
    assert "pos_embed (34, 24) to (33, 24)" in str(report)
    expected = before.model.positions((2, 2, 8))
    torch.testing.assert_close(encoder.positions((2, 2, 8)), expected)
    again = network(pretrain(method={"positions": "learnable"}, data={"size": (8, 16, 16)}))
    init_from(again, tmp_path / "ours", pretrain(method={"positions": "learnable"}, data={"size": (8, 16, 16)}))
    assert torch.equal(again.model.pos_embed_learn[-1], before.model.pos_embed_learn[-1]), "the end token's row stays"


def test_learnt_positions_of_no_cube_ask_for_the_size(tmp_path: Path) -> None:
    config = pretrain(method={"positions": "learnable"})
    torch.save(network(config).state_dict(), tmp_path / "theirs.pth")
    with pytest.raises(WeightsError, match="32 patches, which is no cube"):
        load_model(tmp_path / "theirs.pth", changes={"method": {"heads": 2}})
    changes = {"method": {"heads": 2}, "data": {"size": (8, 8, 16)}}
    assert same(load_model(tmp_path / "theirs.pth", changes=changes).module.state_dict(), network(config).state_dict())


def test_one_channel_is_spread_over_several(tmp_path: Path) -> None:
    before = saved(tmp_path / "ours", pretrain())
    config = finetune("tokens", data={"contrasts": ("T1", "T2")})
    encoder = method("ar").build_encoder(config).eval()
    init_from(encoder, tmp_path / "ours", config)
    given = torch.rand(1, 1, 8, 8, 16)
    expected = before.model.encode(given).tokens
    torch.testing.assert_close(encoder.encode(given.expand(-1, 2, -1, -1, -1)).tokens, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"heads": 3}, "2 attention heads, this network 3"),
        ({"axes": "zyx"}, "method.axes xyz, this run has zyx"),
        ({"positions": "learnable"}, "method.positions sincos3d, this run has learnable"),
    ],
)
def test_what_no_shape_shows_is_refused_with_a_sentence(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    saved(tmp_path, pretrain())
    config = finetune("tokens", method=changes)
    with pytest.raises(WeightsError, match=sentence):
        init_from(method("ar").build_encoder(config), tmp_path, config)


def test_too_little_is_refused_with_a_sentence(tmp_path: Path) -> None:
    state = published()
    for name in [name for name in state if ".layers.1." in name]:
        del state[name]
    torch.save({"state_dict": state}, tmp_path / "theirs.pth")
    config = finetune("tokens", method={"embed_dim": 48, "heads": 4, "mlp_dim": 96, "patch_size": (8, 8, 8)})
    encoder = method("ar").build_encoder(config)
    untouched = {name: value.clone() for name, value in encoder.state_dict().items()}
    with pytest.raises(WeightsError, match="encoder tensors"):
        init_from(encoder, tmp_path / "theirs.pth", config, changes={"method": {"heads": 4}})
    assert same(encoder.state_dict(), untouched)
    torch.save({"weights": published()}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="holds no tensors") as raised:
        load_model(tmp_path / "other.pth")
    assert "weights" in str(raised.value.hint)


def test_files_that_hold_a_part_twice_are_refused(tmp_path: Path) -> None:
    state = published()
    torch.save({**state, **{f"vit.{name.removeprefix('model.')}": state[name] for name in state}}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="holds two encoders"):
        load_model(tmp_path / "a.pth", changes={"method": {"heads": 4}})
    torch.save({**state, **{sharded(name): state[name] for name in state if "layers" in name}}, tmp_path / "b.pth")
    with pytest.raises(WeightsError, match="twice, wrapped and unwrapped"):
        load_model(tmp_path / "b.pth", changes={"method": {"heads": 4}})


def test_language_models_with_the_same_layers_are_not_taken_for_ours() -> None:
    names = ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.post_attention_layernorm.weight"]
    assert identify(names) == ""
    assert identify([*names, "model.patchifier.proj.weight"]) == "ar"
