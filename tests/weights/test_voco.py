"""Files of VoCo's authors, in every layout they come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from training_backend.config import RunConfig
from training_backend.config.presets import pretrain_config
from training_backend.config.registry import method, task
from training_backend.engine.work import build_network
from training_backend.errors import WeightsError
from training_backend.weights.export import export
from training_backend.weights.inspect import inspect
from training_backend.weights.load import load_model
from training_backend.weights.transfer import init_from
from training_backend.weights.voco import describe

PARITY = Path(__file__).parents[1] / "fixtures" / "parity" / "voco"


def reference(case: str) -> dict[str, Tensor]:
    return load_file(PARITY / f"{case}.safetensors")


def saved(folder: Path, state: dict[str, Tensor], prefix: str = "", wrapper: str = "") -> Path:
    stored: Any = {prefix + name: tensor.clone() for name, tensor in state.items()}
    path = folder / "file.pt"
    torch.save({wrapper: stored, "global_step": 7} if wrapper else stored, path)
    return path


def backbone(case: str = "pre_ssl_a") -> dict[str, Tensor]:
    state = reference(case)
    return {n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")}


@pytest.mark.parametrize("wrapper", ["", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone."])
def test_backbones_of_every_layout_are_whole(prefix: str, wrapper: str, tmp_path: Path) -> None:
    state = backbone()
    assert len(state) == 145
    model = load_model(saved(tmp_path, state, prefix, wrapper))
    assert model.kind == "encoder"
    assert (model.report.encoder, model.report.encoder_matched) == (145, 145)
    assert model.report.unexpected == model.report.missing == ()
    own = model.module.state_dict()
    assert all(torch.equal(own[name].float(), tensor.float()) for name, tensor in state.items())
    assert (model.config.method.size, model.config.method.window, model.config.method.merging) == ("tiny", 3, "legacy")


def test_names_of_older_releases(tmp_path: Path) -> None:
    state = {name.replace("swinViT", "swin_vit"): tensor for name, tensor in backbone().items()}
    assert load_model(saved(tmp_path, state, "module.")).report.encoder_matched == 145


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_training_file_never_loses_its_backbone(prefix: str, tmp_path: Path) -> None:
    """The authors' loader strips "backbone." from the file alone, and goes on with heads on a random encoder."""
    state = reference("pre_ssl_a")
    path = saved(tmp_path, state, prefix, "state_dict")
    model = load_model(path)
    assert model.kind == "pretrain"
    assert (model.config.method.hidden, model.config.method.projected, model.config.method.version) == (32, 24, "2")
    run = model.config.updated({"method": {"crop": 32, "depth": 64}, "data": {"size": (64, 96, 96)}})
    network = method("voco").build(run)
    report = init_from(network, path, run)
    assert len(report.matched) == 157
    own = network.state_dict()
    for name, tensor in state.items():
        assert torch.equal(own[name.removeprefix("backbone.")].float(), tensor.float())
    heads = {name: tensor for name, tensor in state.items() if not name.startswith("backbone.")}
    with pytest.raises(WeightsError, match=r"projections only|no known system"):
        load_model(saved(tmp_path, heads, prefix))


def test_an_omni_supervised_file_keeps_its_decoder(tmp_path: Path) -> None:
    model = load_model(saved(tmp_path, reference("pre_omni_a"), "module.", "state_dict"))
    assert (model.kind, model.config.method.decoder_classes, model.config.method.feature_size) == ("pretrain", 4, 3)
    assert len(model.report.matched) == 179


def test_a_file_of_2024_gives_the_student(tmp_path: Path) -> None:
    state = reference("pre_v1_cvpr24")
    model = load_model(saved(tmp_path, state, "module."))
    assert (model.kind, model.config.method.version, model.config.method.cells) == ("pretrain", "2024", 4)
    assert len(model.report.matched) == len(state) == 302
    name = "encoder1.layer.conv1.conv.weight"
    assert torch.equal(model.encoder.state_dict()[name], state[f"student.{name}"].float())


def test_a_whole_segmentation_network_segments(tmp_path: Path) -> None:
    state = reference("down_swinunetr_seg")
    path = saved(tmp_path, state, "module.", "state_dict")
    model = load_model(path)
    assert model.kind == "finetune"
    assert model.config.task is not None
    assert (model.config.task.decoder, len(model.config.task.classes)) == ("swinunetr", 4)  # type: ignore[attr-defined]
    assert len(model.report.matched) == len(state) == 167
    assert model.report.missing == model.report.unexpected == ()
    written = torch.load(export(path, tmp_path / "out.pt"), weights_only=True)["state_dict"]
    assert written.keys() == state.keys()


def test_fine_tuning_starts_from_a_decoder_where_the_weights_have_one(tmp_path: Path) -> None:
    state = reference("down_swinunetr_seg")
    path = saved(tmp_path, state)
    found = load_model(path).config
    run = found.updated({"weights": str(path), "task": {"classes": ("rest", "organ")}})
    network, report = build_network(run, method("voco"), task("segmentation"))
    own = network.state_dict()
    name = "decoder5.transp_conv.conv.weight"
    torch.testing.assert_close(own[name], state[name].float())
    assert report is not None
    assert {shapes[0] for shapes in report.mismatched} == {"out.conv.conv.weight", "out.conv.conv.bias"}
    lean = run.updated({"task": {"decoder": "lean"}})
    assert build_network(lean, method("voco"), task("segmentation"))[1].encoder_matched == 145  # type: ignore[union-attr]
    bare = run.updated({"weights": str(saved(tmp_path, backbone()))})
    report = build_network(bare, method("voco"), task("segmentation"))[1]
    assert report is not None
    assert (report.encoder_matched, len(report.missing)) == (145, 22)


def test_the_published_files_are_recognised_by_their_shapes() -> None:
    expected = {"B": "B", "L": "L", "H": "H"}
    for path in sorted(PARITY.glob("Vo*_keys.json")):
        if "nnunet" in path.name:
            continue
        shapes = json.loads(path.read_text())
        names = method_names(shapes)
        described = describe({name: torch.empty(shape, device="meta") for name, shape in names.items()}, {}, {})
        size = next(part for part in path.stem.split("_") if part in expected)
        assert (described.config.method.size, described.config.method.window) == (size, 7), path.name
        heads = "VoCoHead" in path.name or "v1" in path.name
        whole = "out.conv.conv.weight" in names
        assert described.kind == ("pretrain" if heads else "finetune" if whole else "encoder"), path.name
        if whole and not heads:
            assert described.config.task.classes[20] == "lung cancer"  # type: ignore[union-attr]


def method_names(shapes: dict[str, Any]) -> dict[str, Any]:
    from training_backend.weights.voco import canonical

    return {canonical(name): shape for name, shape in shapes.items()}


def test_the_file_for_nnunet_is_named_and_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, reference("down_plainconvunet"), wrapper="network_weights")
    with pytest.raises(WeightsError, match=r"plain U-Net of nnU-Net.*layout nnunet"):
        load_model(path)
    assert inspect(path).family == "voco"


def test_nothing_is_loaded_from_a_file_that_fits_nothing(tmp_path: Path) -> None:
    run = small()
    network = method("voco").build(run)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(WeightsError, match=r"Only .* of 145 encoder tensors"):
        init_from(network, saved(tmp_path, backbone("pre_omni_a")), run)  # of another width
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    lacking = {name: tensor for name, tensor in backbone().items() if "patch_embed" not in name}
    with pytest.raises(WeightsError, match="without its transformer"):
        load_model(saved(tmp_path, lacking))


def test_other_merging_orders_and_frames_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, backbone())
    for changes in ({"merging": "fixed"}, {"axes": "zyx"}):
        run = small(**changes)
        with pytest.raises(WeightsError, match=f"method.{next(iter(changes))}"):
            init_from(method("voco").build(run), path, run)


def test_two_contrasts_get_what_one_had(tmp_path: Path) -> None:
    state = {name: tensor.float() for name, tensor in backbone().items()}
    run = small(in_channels=2)
    network = method("voco").build(run)
    report = init_from(network, saved(tmp_path, state), run)
    assert len(report.resized) == 3
    name = "swinViT.patch_embed.proj.weight"
    torch.testing.assert_close(network.state_dict()[name].sum(1), state[name].sum(1))


@pytest.mark.parametrize("case", ["pre_ssl_a", "pre_v1_cvpr24", "pre_omni_a"])
def test_training_files_come_back_under_the_authors_names(case: str, tmp_path: Path) -> None:
    state = reference(case)
    out = export(saved(tmp_path, state), tmp_path / "out.pt")
    written = torch.load(out, weights_only=True)["state_dict"]
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name].float(), tensor.float()) for name, tensor in state.items())
    assert load_model(out).kind == "pretrain"


def test_an_exported_backbone_is_bare(tmp_path: Path) -> None:
    out = export(saved(tmp_path, backbone()), tmp_path / "out.pt")
    assert torch.load(out, weights_only=True)["state_dict"].keys() == backbone().keys()


def small(**changes: Any) -> RunConfig:
    sizes = {"size": "tiny", "window": 3, "crop": 32, "depth": 64, "hidden": 8, "projected": 8}
    return pretrain_config("voco", "tiny", Path("d"), {"method": {**sizes, **changes}})
