"""Files of MedCoSS's authors and of Uni-Perceiver: stages, teachers, tasks, and the way back."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from training_backend.config import RunConfig
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.config.registry import method, task
from training_backend.errors import WeightsError
from training_backend.nn.medcoss import KINDS, MedcossNetwork
from training_backend.weights.export import export
from training_backend.weights.load import load_model
from training_backend.weights.medcoss import FIRST, describe
from training_backend.weights.transfer import init_from

PARITY = Path(__file__).parents[1] / "fixtures" / "parity" / "medcoss"
TOLD: dict[str, Any] = {"method": {"heads": 4, "decoder_heads": 2, "size_3d": (8, 16, 16)}}
"""What no shape of the small files tells."""
SMALL = {
    "embed_dim": 24,
    "depth": 2,
    "heads": 4,
    "mlp_dim": 96,
    "patch_2d": (1, 4, 4),
    "patch_3d": (4, 4, 4),
    "size_2d": (1, 16, 16),
    "size_3d": (8, 16, 16),
    "rows_2d": 64,
    "rows_3d": 256,
    "vocabulary": 101,
    "text_rows": 20,
    "decoder_embed_dim": 16,
    "decoder_depth": 2,
    "decoder_heads": 2,
    "axes": "zxy",
}
"""Settings of a network that the small files fit."""


def reference(case: str) -> dict[str, Tensor]:
    return load_file(PARITY / f"{case}.safetensors")


def saved(folder: Path, state: dict[str, Tensor], prefix: str = "", **beside: Any) -> Path:
    path = folder / "checkpoint-299.pth"
    torch.save({"model": {prefix + name: tensor.clone() for name, tensor in state.items()}, **beside}, path)
    return path


def stage(kind: str, **changes: Any) -> RunConfig:
    modality = {"text": "1D_text", "2d": "2D_xray", "3d": "3D_CT"}[kind]
    return pretrain_config(
        "medcoss", "tiny", Path(), {"method": {**SMALL, "kind": kind, "modality": modality, **changes}}
    )


def arguments(modality: str) -> argparse.Namespace:
    return argparse.Namespace(task_modality=modality, batch_size=128, norm_pix_loss=True)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_of_a_stage_loads_one_to_one_and_goes_back(prefix: str, tmp_path: Path) -> None:
    state = reference("pretrain_3d")
    path = saved(tmp_path, state, prefix, epoch=299, args=arguments("2D_path"))
    model = load_model(path, changes=TOLD)
    report, settings = model.report, model.config.method
    assert (model.kind, settings.kind, settings.modality) == ("pretrain", "2d", "2D_path")
    assert report.missing == report.unexpected == report.dropped == report.mismatched == report.resized == ()
    assert len(report.matched) == len(state)
    own = model.module.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in state.items())
    assert any("reconstruct means nothing" in note for note in report.notes)

    back = torch.load(export(path_with_card(model, tmp_path), tmp_path / "back.pth"), weights_only=True)
    assert back["model"].keys() == state.keys()
    assert all(torch.equal(back["model"][name], tensor) for name, tensor in state.items())


def test_a_teacher_is_an_encoder(tmp_path: Path) -> None:
    state = reference("distill_3d_teacher")
    model = load_model(saved(tmp_path, state), changes=TOLD)
    assert (model.kind, model.config.method.modality) == ("encoder", "3D_CT")
    assert len(model.report.matched) == len(state)
    assert any("which modality was taught last" in note for note in model.report.notes)


def test_the_next_stage_takes_the_encoder_and_begins_its_decoder_anew(tmp_path: Path) -> None:
    state = reference("pretrain_3d")
    path = saved(tmp_path, state, args=arguments("3D_CT"))
    run = stage("3d", encodes=("text", "2d"))
    torch.manual_seed(0)
    network = method("medcoss").build(run)
    report = init_from(network, path, run, changes=TOLD)
    assert report.share == 1
    assert report.unexpected == ()
    own = network.state_dict()
    for name, tensor in own.items():
        carried = name.startswith(("fused_encoder", "token_embed", "video_embed", "cls_token"))
        assert torch.equal(tensor, state[name]) == carried or not carried, name
    assert not torch.equal(own["decoder_embed.weight"], state["decoder_embed.weight"])
    assert not any(name.startswith("mlm_head") for name in own)
    assert {"mlm_head.bias", "decoder_pred_3D.weight"} <= {*report.dropped, *report.missing}


def test_a_new_kind_of_modality_begins_with_a_new_tokenizer(tmp_path: Path) -> None:
    state = reference("pretrain_3d")
    text = {name: tensor for name, tensor in state.items() if name.startswith(("fused_encoder", "token_embed"))}
    path, run = saved(tmp_path, text), stage("3d", encodes=("text",))
    network = method("medcoss").build(run)
    report = init_from(network, path, run, changes=TOLD)
    assert (report.encoder, report.encoder_matched) == (33, 33)  # 28 of two layers and 5 of the words
    assert "video_embed.embeddings_3D.weight" in report.missing
    finetuned = finetune_config("classification", "tiny", Path(), "medcoss", {"method": SMALL})
    encoder: Any = method("medcoss").build_encoder(finetuned)
    with pytest.raises(WeightsError, match="Only 28 of 35 encoder tensors"):
        init_from(encoder, path, finetuned, changes=TOLD)


def test_uni_perceiver_gives_what_the_authors_take_of_it(tmp_path: Path) -> None:
    """Layers, words, and of images the projection of patches and the norm."""
    state = reference("pretrain_3d")
    other = {
        name: tensor
        for name, tensor in state.items()
        if name.startswith(("fused_encoder", "token_embed", "video_embed.embeddings.", "video_embed.embeddings_norm"))
    }
    other |= {
        "video_embed.embeddings_st_pos.spatial_pos_embed.weight": torch.ones(16, 24),
        "video_embed.embeddings_st_pos.temporal_pos_embed.weight": torch.ones(8, 24),
        "video_embed.embeddings_pos.position_embeddings.weight": torch.ones(10, 24),
        "logit_scale": torch.ones(1),
    }
    path = saved(tmp_path, other)
    model = load_model(path, changes={"method": {"heads": 4}})
    assert (model.kind, model.config.method.modality, model.config.method.encodes) == ("encoder", "1D_text", ("2d",))
    assert model.report.unexpected == ("logit_scale",)
    assert set(model.report.missing) == {
        "cls_token",
        "video_embed.embeddings_st_pos_2D.spatial_pos_embed.weight",
        "video_embed.embeddings_st_pos_2D.temporal_pos_embed.weight",
    }
    assert any("begin anew" in note for note in model.report.notes)
    run = stage("2d", encodes=("text",))
    network = method("medcoss").build(run)
    report = init_from(network, path, run, changes={"method": {"heads": 4, "size_2d": (1, 16, 16)}})
    assert "video_embed.embeddings.weight" in report.matched
    assert report.encoder_matched == 28 + 5 + 4


def test_positions_move_to_the_grid_of_a_task(tmp_path: Path) -> None:
    state = reference("pretrain_3d")
    path = saved(tmp_path, state, args=arguments("3D_CT"))
    rows, name = 4 * 6 * 4, "video_embed.embeddings_st_pos_3D.spatial_pos_embed.weight"
    for positions in ("interpolate", "flat"):
        settings = {"method": {**SMALL, "positions": positions}, "data": {"size": (16, 16, 24)}}
        run = finetune_config("classification", "tiny", Path(), "medcoss", settings)
        encoder: Any = method("medcoss").build_encoder(run)
        report = init_from(encoder, path, run, changes=TOLD)
        table = encoder.state_dict()[name]
        assert encoder.settings.grid("3d") == (4, 6, 4)
        if positions == "flat":
            assert torch.equal(table, state[name])
            assert report.resized == ()
            continue
        before = state[name][:32].T.reshape(1, 24, 2, 4, 4)
        after = torch.nn.functional.interpolate(before, (4, 6, 4), mode="trilinear")
        torch.testing.assert_close(table[:rows], after.reshape(24, rows).T)
        assert [entry[0] for entry in report.resized] == [name]
        assert "decoder_pos_embed_3D" in report.dropped


@pytest.mark.parametrize(
    ("case", "changes", "head"),
    [
        ("ds_chestxr", {}, "patches"),
        ("ds_ricord", {}, "patches"),
        ("ds_qata", {"data": {"size": (1, 32, 32)}}, "unetr"),
        ("ds_la", {"data": {"size": (16, 32, 32)}}, "unetr"),
    ],
)
def test_fine_tuned_files_give_their_network_and_go_back(
    case: str, changes: dict[str, Any], head: str, tmp_path: Path
) -> None:
    state = reference(case)
    told = {"method": {"heads": 4}, **changes}
    if "data" not in changes:
        told["data"] = {"size": (1, 16, 16) if case == "ds_chestxr" else (16, 16, 24)}
    if case in ("ds_la", "ds_ricord"):
        told["method"]["axes"] = "zyx"
    path = saved(tmp_path, state, epoch=9)
    model = load_model(path, changes=told)
    assert model.kind == "finetune"
    assert model.report.missing == model.report.unexpected == ()
    assert getattr(model.config.task, "decoder" if head == "unetr" else "pooling") == head
    own = {name.removeprefix("encoder."): tensor for name, tensor in model.module.state_dict().items()}
    flat = case in ("ds_chestxr", "ds_qata")
    other = ("video_embed.embeddings_3D", "video_embed.embeddings_st_pos_3D")
    if not flat:
        other = ("video_embed.embeddings.", "video_embed.embeddings_st_pos_2D")
    assert {name for name in state if not name.startswith(other)} == own.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in own.items() if name not in _resized(model))
    with np_arrays(case) as arrays:
        image = torch.from_numpy(arrays["image"])
        volume = image if image.ndim == 5 else image.unsqueeze(2)
        with torch.no_grad():
            found = model.module(volume)
        logits = torch.from_numpy(arrays["logits"])
    found = (found[0] if isinstance(found, tuple) else found).reshape(logits.shape)
    torch.testing.assert_close(found, logits, atol=1e-4, rtol=0)
    stored = torch.load(export(path_with_card(model, tmp_path), tmp_path / "back.pth"), weights_only=True)["model"]
    assert stored.keys() == own.keys()


def _resized(model: Any) -> set[str]:
    return {name for name, *_ in model.report.resized}


def np_arrays(case: str) -> Any:
    import numpy as np

    return np.load(PARITY / f"{case}_io.npz", allow_pickle=False)


def path_with_card(model: Any, folder: Path) -> Path:
    from training_backend.weights.save import save_model

    save_model(folder / "model", model.module, model.card)
    return folder / "model"


@pytest.mark.parametrize("path", sorted(PARITY.glob("ds_*_full_keys.json")), ids=lambda path: path.stem)
def test_each_task_takes_of_a_pretraining_file_what_the_authors_do(path: Path) -> None:
    """Names and shapes at full size, on no memory: what the authors' loaders find, and what ours hold of it."""
    pretrained = json.loads((PARITY / "pretrain_full_keys.json").read_text(encoding="utf-8"))
    wanted = json.loads(path.read_text(encoding="utf-8"))
    reported = json.loads((PARITY / "full_config_report.json").read_text(encoding="utf-8"))
    entry = reported[path.stem.removesuffix("_keys")]
    mapped = {name for name, shape in wanted.items() if pretrained.get(name) == shape}
    assert len(mapped) == entry["loaded_from_pretrain"]
    tensors = {name: torch.empty(shape, device="meta") for name, shape in pretrained.items()}
    described = describe(tensors, {"args": {"task_modality": "2D_path"}}, {})
    assert described.config.method.size == "base"  # type: ignore[attr-defined]
    name = path.stem.split("_")[1]
    kind = "text" if name == "pubmed" else "2d" if name in ("chestxr", "nch", "qata", "glas") else "3d"
    classification = name in ("chestxr", "nch", "ricord")
    size = (1, 224, 224) if kind == "2d" else (64, 192, 192) if kind == "3d" else (1, 1, 1)
    settings: dict[str, Any] = {"data": {"size": size, "view": "text" if kind == "text" else "volume"}}
    chosen = "classification" if classification or kind == "text" else "segmentation"
    run = finetune_config(chosen, "published", Path(), "medcoss", settings)
    with torch.device("meta"):
        encoder: Any = method("medcoss").build_encoder(run)
    own = {key: list(tensor.shape) for key, tensor in encoder.state_dict().items()}
    left = mapped - own.keys()  # the tokenizer of the other kind of images, which the network never looks at
    other = ("video_embed.embeddings_3D.", "video_embed.embeddings_st_pos_3D.")
    if kind == "3d":
        other = ("video_embed.embeddings.", "video_embed.embeddings_st_pos_2D.")
    assert all(key.startswith(other) for key in left), left
    assert len(left) == (0 if kind == "text" else 4)
    assert {key: pretrained[key] for key in mapped - left} == own


def test_heads_and_grids_that_no_shape_tells_are_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path, reference("pretrain_3d"))
    with pytest.raises(WeightsError, match=r"width 24 has.*--heads"):
        load_model(path)
    with pytest.raises(WeightsError, match="32 patches, which is no square"):
        load_model(path, changes={"method": {"heads": 4}})
    with pytest.raises(WeightsError, match="attention heads its decoder of width 16"):
        load_model(path, changes={"method": {"heads": 4, "decoder_heads": 3, "size_3d": (8, 16, 16)}})


def test_what_is_no_file_of_medcoss_gets_a_sentence(tmp_path: Path) -> None:
    state = reference("pretrain_3d")
    for change, message in (
        ({FIRST: torch.ones(3)}, "has 1 axes"),
        ({FIRST: None}, "which every MedCoSS encoder has"),
        ({name: None for name in state if name.startswith(("token_embed", "video_embed"))}, "without any tokenizer"),
    ):
        changed = {name: tensor for name, tensor in {**state, **change}.items() if tensor is not None}
        with pytest.raises(WeightsError, match=message):
            load_model(saved(tmp_path, changed), changes=TOLD)


def test_less_than_the_better_part_of_the_encoder_is_refused(tmp_path: Path) -> None:
    state = reference("pretrain_3d")
    half = {name: tensor for name, tensor in state.items() if ".layers.1." not in name}
    path, run = saved(tmp_path, half), stage("3d")
    network = method("medcoss").build(run)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(WeightsError, match=r"Only 21 of 35 encoder tensors"):
        init_from(network, path, run, changes=TOLD)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_weights_with_other_attention_heads_are_refused(tmp_path: Path) -> None:
    path, run = saved(tmp_path, reference("pretrain_3d")), stage("3d", heads=2)
    with pytest.raises(WeightsError, match="4 attention heads, this network 2"):
        init_from(method("medcoss").build(run), path, run, changes=TOLD)


def test_volumes_in_another_frame_are_refused_where_both_read_volumes(tmp_path: Path) -> None:
    path, run = saved(tmp_path, reference("pretrain_3d")), stage("3d", axes="zyx")
    with pytest.raises(WeightsError, match=r"method\.axes zxy, this run has zyx"):
        init_from(method("medcoss").build(run), path, run, changes=TOLD)
    flat = stage("2d", axes="zyx")
    assert init_from(method("medcoss").build(flat), path, flat, changes=TOLD).share == 1


def test_the_published_file_is_described_at_full_size() -> None:
    keys = json.loads((PARITY / "pretrain_full_keys.json").read_text(encoding="utf-8"))
    tensors = {name: torch.empty(shape, device="meta") for name, shape in keys.items()}
    described = describe(tensors, {"args": {"task_modality": "2D_path"}}, {})
    settings: Any = described.config.method
    assert (settings.size, settings.embed_dim, settings.vocabulary, settings.rows_3d) == ("base", None, 49411, 4096)
    assert (settings.size_2d, settings.size_3d) == ((1, 224, 224), (16, 192, 192))
    with torch.device("meta"):
        network = method("medcoss").build(described.config)
    assert isinstance(network, MedcossNetwork)
    assert network.decodes == KINDS
    assert {name: list(tensor.shape) for name, tensor in network.state_dict().items()} == keys


def test_a_task_that_the_authors_do_not_have_gives_its_encoder(tmp_path: Path) -> None:
    run = finetune_config("classification", "tiny", Path(), "medcoss", {"method": SMALL, "data": {"size": (8, 16, 16)}})
    from training_backend.data.manifest import DatasetInfo
    from training_backend.data.prepare import InputProfile
    from training_backend.weights.save import save_model

    torch.manual_seed(0)
    network = task("classification").build(run, method("medcoss").build_encoder(run))
    profile = InputProfile.of(run, DatasetInfo(name="none"))
    card = {"kind": run.kind, "config": run.model_dump(mode="json"), "profile": profile.model_dump(mode="json")}
    save_model(tmp_path / "model", network, card)
    stored = torch.load(export(tmp_path / "model", tmp_path / "out.pth"), weights_only=True)["model"]
    assert not any(name.startswith(("head", "fc_norm")) for name in stored)
    assert FIRST in stored


def test_a_stage_of_reports_loads_without_its_words(tmp_path: Path) -> None:
    state = reference("pretrain_text")
    model = load_model(saved(tmp_path, state, args=arguments("1D_text")), changes=TOLD)
    assert (model.kind, model.config.method.kind, model.config.method.modality) == ("pretrain", "text", "1D_text")
    assert len(model.report.matched) == len(state)
    assert any("method.text.source" in note for note in model.report.notes)


def test_a_classifier_of_sentences_needs_its_words(tmp_path: Path) -> None:
    state = reference("ds_pubmed")
    path = saved(tmp_path, state)
    with pytest.raises(WeightsError, match=r"not the words.*method\.text\.source"):
        load_model(path, changes={"method": {"heads": 4}})
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4} | {f"w{k}": k for k in range(5, 101)}
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    changes = {"method": {"heads": 4, "text_mask": "compatible", "text": {"source": str(folder), "longest": 12}}}
    model = load_model(path, changes=changes)
    assert (model.kind, model.config.task.name, model.config.task.classes) == ("finetune", "text_classification", 5)
    assert model.report.missing == model.report.unexpected == model.report.dropped == ()
    with np_arrays("ds_pubmed") as stored:
        ids, attention = (torch.from_numpy(stored[name]) for name in ("input_ids", "attention_mask"))
        with torch.no_grad():
            found = model.module(ids, attention).softmax(1)
        torch.testing.assert_close(found, torch.from_numpy(stored["prob"]), atol=2e-5, rtol=0)
    back = torch.load(export(path_with_card(model, tmp_path), tmp_path / "back.pth"), weights_only=True)["model"]
    assert back.keys() == state.keys()
