"""Runs start from weights; what cannot be meant is refused, and the report tells what happened to every tensor."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from training_backend.config.registry import method
from training_backend.errors import WeightsError
from training_backend.nn.position import resize_table
from training_backend.weights.transfer import init_from


@pytest.mark.parametrize("name", ["transfer_same_grid", "transfer_interp"])
def test_the_reference_transfer_is_reproduced(name: str, small: SimpleNamespace, reference: Any) -> None:
    """Names taken, dropped and missing, and the tokens, of the published loader."""
    case, arrays = small.cases[name]["config"], small.arrays(name)
    heads = {"heads": case["mae"]["num_heads"], "decoder_heads": case["mae"]["decoder_num_heads"]}
    config = small.finetune(
        method={
            "embed_dim": case["vit"]["embed_dim"],
            "heads": case["vit"]["num_heads"],
            "depth": case["vit"]["depth"],
            "patch_size": (case["vit"]["patch_size"],) * 3,
        },
        data={"size": (case["vit"]["img_size"],) * 3},
        task={"classes": case["vit"]["num_classes"]},
    )
    network = small.network(config)
    report = init_from(network, reference(name, prefix="module."), config, changes={"method": heads})
    assert sorted(report.matched) == sorted(arrays["loaded"])
    assert sorted(report.dropped) == sorted(arrays["dropped"])
    assert sorted(report.missing) == sorted(arrays["missing"])
    assert report.unexpected == report.mismatched == ()
    assert bool(report.resized) == (name == "transfer_interp")
    assert report.share == 1.0
    with torch.no_grad():
        tokens = network.encoder.encode(torch.from_numpy(arrays["volume"])).tokens
    torch.testing.assert_close(tokens, torch.from_numpy(arrays["tokens"])[:, 1:], atol=1e-5, rtol=1e-4)


def test_pre_training_goes_on_from_a_whole_autoencoder(small: SimpleNamespace, tmp_path: Path) -> None:
    source = small.saved(tmp_path, small.pretrain(), seed=1)
    network = small.network(small.pretrain(), seed=2)
    report = init_from(network, tmp_path, small.pretrain())
    assert small.same(source.state_dict(), network.state_dict())
    assert report.missing == report.dropped == ()


def test_both_position_tables_move_to_another_grid(small: SimpleNamespace, tmp_path: Path) -> None:
    source = small.saved(tmp_path, small.pretrain(), seed=1)
    config = small.pretrain(data={"size": (12, 8, 16)})
    network = small.network(config, seed=2)
    report = init_from(network, tmp_path, config)
    assert {name for name, *_ in report.resized} == {"pos_embed", "decoder_pos_embed"}
    for name in ("pos_embed", "decoder_pos_embed"):
        expected = resize_table(getattr(source, name), (2, 2, 2), (3, 2, 4))
        assert torch.equal(getattr(network, name), expected)


def test_grids_with_equally_many_patches_are_not_confused(small: SimpleNamespace, tmp_path: Path) -> None:
    source = small.saved(tmp_path, small.pretrain(data={"size": (16, 8, 8)}), seed=1)
    config = small.pretrain(data={"size": (8, 8, 16)})
    network = small.network(config, seed=2)
    report = init_from(network, tmp_path, config)
    assert {name for name, *_ in report.resized} == {"pos_embed", "decoder_pos_embed"}
    assert not torch.equal(network.pos_embed, source.pos_embed)


def test_more_channels_see_a_grey_image_as_before(small: SimpleNamespace, tmp_path: Path) -> None:
    source = small.saved(tmp_path, small.pretrain(), seed=1)
    config = small.finetune(method={"in_channels": 3})
    network = small.network(config, seed=2)
    report = init_from(network, tmp_path, config)
    assert "patch_embed.proj.weight" in {name for name, *_ in report.resized}
    volume = torch.rand(1, 1, 8, 8, 8)
    with torch.no_grad():
        before = source.encode(volume).tokens
        after = network.encoder.encode(volume.expand(-1, 3, -1, -1, -1)).tokens
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("task", ["classification", "regression", "segmentation"])
@pytest.mark.parametrize("bare", [False, True])
def test_fine_tuning_takes_the_encoder_and_leaves_the_head(
    task: str, bare: bool, small: SimpleNamespace, tmp_path: Path
) -> None:
    source = small.saved(tmp_path, small.pretrain(), seed=1)
    config = small.finetune(task)
    network = small.network(config, seed=2)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    report = init_from(network.encoder if bare else network, tmp_path, config)
    wanted = source.state_dict()
    for key, value in network.state_dict().items():
        mine = key.removeprefix("encoder.")
        assert torch.equal(value, wanted[mine] if key.startswith("encoder.") else before[key]), key
    assert report.share == 1.0
    assert any(name.startswith("decoder_") for name in report.dropped)


def test_a_fine_tuned_model_gives_its_encoder_to_another_task(small: SimpleNamespace, tmp_path: Path) -> None:
    source = small.saved(tmp_path, small.finetune("segmentation"), seed=1)
    config = small.finetune("classification")
    network = small.network(config, seed=2)
    head = network.head.weight.clone()
    report = init_from(network, tmp_path, config)
    assert torch.equal(network.encoder.blocks[2].mlp.fc2.weight, source.encoder.blocks[2].mlp.fc2.weight)
    assert torch.equal(network.head.weight, head)
    assert report.unexpected == ()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": {"heads": 4}}, "2 attention heads, this network 4"),
        ({"method": {"embed_dim": 48}}, r"encoder tensors.*embed_dim 24 \(not 48\)"),
        ({"method": {"depth": 8}}, r"depth 3 \(not 8\)"),
        ({"method": {"patch_size": (8, 8, 8)}}, r"patch_embed.proj.weight is not.*patch_size"),
    ],
)
def test_weights_of_another_network_are_refused_and_change_nothing(
    changes: dict[str, Any], sentence: str, small: SimpleNamespace, tmp_path: Path
) -> None:
    small.saved(tmp_path, small.pretrain(), seed=1)
    config = small.pretrain(**changes)
    network = small.network(config, seed=2)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(WeightsError, match=sentence):
        init_from(network, tmp_path, config)
    assert small.same(before, network.state_dict())


def test_ninety_per_cent_is_the_limit(small: SimpleNamespace, reference: Any) -> None:
    config = small.pretrain(
        method={
            "embed_dim": 64,
            "heads": 4,
            "depth": 2,
            "patch_size": (8, 8, 8),
            "decoder_embed_dim": 32,
            "decoder_heads": 4,
        },
        data={"size": (32, 32, 32)},
    )
    network = small.network(config)
    changes = {"method": {"heads": 4, "decoder_heads": 4}}

    def without(*lost: str) -> Any:
        return lambda state: [state.pop(key) for key in list(state) if key.startswith(lost)] and None

    report = init_from(network, reference("transfer_interp", change=without("norm.")), config, changes=changes)
    assert report.encoder_matched == 28
    assert report.missing[:2] == ("norm.weight", "norm.bias")
    with pytest.raises(WeightsError, match=r"Only 26 of 30 encoder tensors \(87%\)"):
        init_from(
            network,
            reference("transfer_interp", change=without("norm.", "blocks.1.attn.proj")),
            config,
            changes=changes,
        )


def test_a_report_is_a_table_and_json(small: SimpleNamespace, tmp_path: Path) -> None:
    small.saved(tmp_path, small.pretrain())
    config = small.finetune(data={"size": (12, 12, 12)})
    report = init_from(small.network(config), tmp_path, config)
    text = str(report)
    assert "40 of 40 encoder tensors matched (100.0%)" in text
    assert "pos_embed (1, 9, 24) to (1, 28, 24)" in text
    assert "head.weight" in text
    value = json.loads(json.dumps(report.to_dict()))
    assert value["share"] == 1.0
    assert value["resized"] == [["pos_embed", [1, 9, 24], [1, 28, 24]]]


def test_another_methods_weights_are_named(small: SimpleNamespace, tmp_path: Path) -> None:
    config = small.pretrain()
    for shape, sentence in (((2,), "VoCo's networks have 5"), ((6, 1, 2, 2, 2), "none of VoCo's")):
        torch.save({"swinViT.patch_embed.proj.weight": torch.ones(shape)}, tmp_path / "voco.pt")
        with pytest.raises(WeightsError, match=sentence):
            init_from(small.network(config), tmp_path / "voco.pt", config)


def test_every_method_names_an_encoder_that_can_be_transferred() -> None:
    from training_backend.config.registry import methods
    from training_backend.weights.families import family

    for chosen in methods().values():
        assert family(method(chosen.name).family).name == chosen.family
