"""Models come back as they were saved, and the authors' files as the networks they were."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from training_backend.errors import ConfigError, WeightsError
from training_backend.weights import zoo
from training_backend.weights.load import load_model
from training_backend.weights.save import save_model


@pytest.mark.parametrize("kind", ["pretrain", "classification", "regression", "segmentation"])
def test_saved_models_come_back_bit_for_bit(kind: str, small: SimpleNamespace, tmp_path: Path) -> None:
    config = small.pretrain() if kind == "pretrain" else small.finetune(kind)
    before = small.saved(tmp_path / "modèl é", config)
    after = load_model(tmp_path / "modèl é")
    assert small.same(before.state_dict(), after.module.state_dict())
    assert after.config.method == config.method
    assert after.config.task == config.task
    assert after.profile.size == config.data.size
    assert after.report.share == 1.0
    assert not after.module.training
    volume = torch.rand(1, 1, 8, 8, 8)
    own = before if kind == "pretrain" else before.encoder
    with torch.no_grad():
        assert torch.equal(after.encoder.encode(volume).tokens, own.encode(volume).tokens)


def test_the_model_file_itself_and_a_run_directory_are_sources(small: SimpleNamespace, tmp_path: Path) -> None:
    before = small.saved(tmp_path, small.pretrain())
    (tmp_path / "run.json").write_text("{}")
    for source in (tmp_path / "model.safetensors", str(tmp_path)):
        assert small.same(before.state_dict(), load_model(source).module.state_dict())


def test_loading_does_not_touch_the_callers_random_numbers(small: SimpleNamespace, tmp_path: Path) -> None:
    small.saved(tmp_path, small.pretrain())
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load_model(tmp_path)
    assert torch.equal(torch.rand(4), expected)


def test_the_card_tells_no_paths_of_this_machine(small: SimpleNamespace, tmp_path: Path) -> None:
    config = small.pretrain(data={"dataset": "/home/someone/Hospital A/lungs"}, weights="/home/someone/runs/first")
    small.saved(tmp_path, config)
    card = json.loads((tmp_path / "card.json").read_text())
    assert "someone" not in json.dumps(card)
    assert card["config"]["data"]["dataset"] == "lungs"
    assert card["config"]["weights"] == "first"


def test_names_of_compiled_blocks_are_restored(small: SimpleNamespace, tmp_path: Path) -> None:
    config = small.pretrain()
    built = small.saved(tmp_path, config)
    for index, block in enumerate(built.blocks):
        built.blocks[index] = torch.nn.Module()
        built.blocks[index]._orig_mod = block  # as torch.compile wraps it
    save_model(tmp_path, built, small.card(config))
    assert load_model(tmp_path).report.missing == ()


def damage_card(folder: Path) -> None:
    (folder / "card.json").write_text('{"config": ')


def empty_card(folder: Path) -> None:
    (folder / "card.json").write_text("{}")


def remove_card(folder: Path) -> None:
    (folder / "card.json").unlink()


def remove_model(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def make_run(folder: Path) -> None:
    remove_model(folder)
    (folder / "run.json").write_text("{}")


def other_depth(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    card["config"]["method"]["depth"] = 4
    (folder / "card.json").write_text(json.dumps(card))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (damage_card, "cannot be read"),
        (empty_card, "no config and profile"),
        (remove_card, "beside it"),
        (remove_model, "holds no model.safetensors"),
        (make_run, "no model yet"),
        (other_depth, "encoder tensors"),
        (cut, "not a whole safetensors file"),
    ],
)
def test_damaged_folders_get_a_sentence(change: Any, sentence: str, small: SimpleNamespace, tmp_path: Path) -> None:
    small.saved(tmp_path, small.pretrain())
    change(tmp_path)
    with pytest.raises(WeightsError, match=sentence):
        load_model(tmp_path)


def test_a_card_with_an_unknown_setting_names_it(small: SimpleNamespace, tmp_path: Path) -> None:
    small.saved(tmp_path, small.pretrain())
    card = json.loads((tmp_path / "card.json").read_text())
    card["config"]["method"]["haeds"] = 4
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(ConfigError, match="heads"):
        load_model(tmp_path)


def heads_of(case: dict[str, Any]) -> dict[str, Any]:
    config = case["config"]
    given = {"heads": config["num_heads"]}
    if "decoder_num_heads" in config:
        given |= {"decoder_heads": config["decoder_num_heads"], "norm_pix_loss": config["norm_pix_loss"]}
    return given


@pytest.mark.parametrize("name", ["mae_pretrain_a", "mae_pretrain_normpix", "mae_pretrain_multichannel"])
@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_authors_pre_training_files_give_the_authors_loss(
    name: str, wrap: bool, prefix: str, small: SimpleNamespace, reference: Any
) -> None:
    case, arrays = small.cases[name], small.arrays(name)
    changes = {"method": heads_of(case) | {"mask_ratio": float(arrays["mask_ratio"])}}
    model = load_model(reference(name, wrap, prefix), changes=changes)
    assert model.kind == "pretrain"
    with torch.no_grad():
        loss = model.module(torch.from_numpy(arrays["imgs"]), torch.from_numpy(arrays["noise"]))
    assert float(loss) == pytest.approx(float(arrays["loss"]), rel=1e-4)


@pytest.mark.parametrize("name", ["vit_gap_binary", "vit_gap_multi", "vit_cls", "vit_mlp_head"])
def test_the_authors_fine_tuned_files_give_the_authors_logits(
    name: str, small: SimpleNamespace, reference: Any
) -> None:
    case, arrays = small.cases[name], small.arrays(name)
    model = load_model(reference(name, wrap=False), changes={"method": heads_of(case)})
    assert model.kind == "finetune"
    assert model.config.task.classes == case["config"]["num_classes"]
    assert list(model.config.task.hidden) == case["config"].get("hidden_layers", [])
    assert (model.config.task.pooling == "global") == case["config"]["global_pool"]
    with torch.no_grad():
        logits = model.module(torch.from_numpy(arrays["volume"]))
    torch.testing.assert_close(logits, torch.from_numpy(arrays["logits"]), atol=1e-5, rtol=1e-4)


def test_a_fine_tuned_file_can_be_read_as_regression(reference: Any) -> None:
    changes = {"method": {"heads": 4}, "task": {"name": "regression"}}
    model = load_model(reference("vit_gap_binary", wrap=False), changes=changes)
    assert model.config.task.name == "regression"
    assert model.config.task.values == 1


def test_an_encoder_without_decoder_is_an_encoder(reference: Any) -> None:
    def only_encoder(state: dict[str, torch.Tensor]) -> None:
        for key in [key for key in state if key.startswith("decoder") or key == "mask_token"]:
            del state[key]

    model = load_model(reference("transfer_interp", change=only_encoder), changes={"method": {"heads": 4}})
    assert model.kind == "encoder"
    assert model.encoder.encode(torch.rand(1, 1, 16, 16, 16)).tokens.shape == (1, 8, 64)


def test_published_sizes_are_recognised_from_shapes_alone(small: SimpleNamespace) -> None:
    from training_backend.weights.mae3d import describe

    for name, size in (("base_patch16", "base"), ("large_patch16", "large")):
        shapes = json.loads((small.parity / f"mae_vit_{name}_dec512d8b_keys.json").read_text())
        described = describe({key: torch.empty(shape, device="meta") for key, shape in shapes.items()}, {}, {})
        method = described.config.method
        assert (method.size, method.embed_dim, method.depth) == (size, None, None)
        assert (method.decoder_embed_dim, method.decoder_depth, method.decoder_heads) == (512, 8, 16)
        assert (described.config.data.size, described.config.data.view) == ((256, 256, 256), "volume")
        assert described.config.data.intensity.low == -1200


def test_the_authors_arguments_are_used(reference: Any, tmp_path: Path) -> None:
    from argparse import Namespace

    path = reference("transfer_interp")
    state = torch.load(path, weights_only=True)["model"]
    torch.save({"model": state, "args": Namespace(norm_pix_loss=True, mask_ratio=0.9, lr=1e-4)}, path)
    model = load_model(path, changes={"method": {"heads": 4, "decoder_heads": 4}})
    assert model.config.method.norm_pix_loss
    assert model.config.method.mask_ratio == 0.9


def test_unknown_heads_are_asked_for(reference: Any) -> None:
    with pytest.raises(WeightsError, match=r"width 64.*--heads"):
        load_model(reference("transfer_interp"))


def test_files_of_other_systems_are_named(small: SimpleNamespace, tmp_path: Path) -> None:
    norm = {"vision_encoder.layers1.0.blocks.0.norm1.weight": torch.ones(2), "x": torch.ones(1)}
    torch.save({"state_dict": norm}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="no image encoder of MG-3D"):
        load_model(tmp_path / "other.pt")
    layer = "model.layers.0"
    torch.save(
        {f"{layer}.self_attn.q_proj.weight": torch.ones(2), f"{layer}.post_attention_layernorm.weight": torch.ones(2)},
        tmp_path / "other.pt",
    )
    with pytest.raises(WeightsError, match="AR-SSL4M"):
        load_model(tmp_path / "other.pt")
    torch.save({"conv1.weight": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="no known system"):
        load_model(tmp_path / "other.pt")


def test_zoo_entries_are_sources(small: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MED3DSSL_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="zoo download tangerine"):
        load_model("zoo:tangerine")
    path = zoo.target("tangerine")
    path.parent.mkdir(parents=True)
    torch.save({"model": load_file(small.parity / "transfer_interp.safetensors")}, path)
    model = load_model("zoo:tangerine", changes={"method": {"heads": 4, "decoder_heads": 4}})
    assert model.card["licence"] == "CC-BY-NC-4.0"
    assert "McConnell" in model.card["citation"]
