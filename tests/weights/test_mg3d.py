"""Files of MG-3D's authors, in every layout they come in."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from training_backend.config import RunConfig
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.config.registry import method, task
from training_backend.data.dataset import Dataset
from training_backend.data.manifest import CaseRecord, DatasetInfo
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.work import build_network
from training_backend.engine.worker import execute
from training_backend.errors import ConfigError, WeightsError
from training_backend.nn.mg3d import Mg3d
from training_backend.weights.export import export
from training_backend.weights.families import identify
from training_backend.weights.inspect import inspect
from training_backend.weights.load import load_model
from training_backend.weights.mg3d import FAMILY, UNREAD, canonical, describe
from training_backend.weights.transfer import init_from

PARITY = Path(__file__).parents[1] / "fixtures" / "parity" / "mg3d"
QUEUES = {"cml_loss_cls_xbm.queue_1": torch.zeros(4, 8), "ssm_loss_feat_xbm.queue_2_ptr": torch.zeros(1)}
NARROW = {"feature_size": 3, "window": 3, "heads": (1, 2, 3, 6)}
"""Settings of the transformer of `reference`."""


def reference() -> dict[str, Tensor]:
    return load_file(PARITY / "pretrain_a.safetensors")


def saved(folder: Path, state: dict[str, Tensor], prefix: str = "", wrapper: str = "") -> Path:
    stored: Any = {prefix + name: tensor.clone() for name, tensor in state.items()}
    path = folder / "MG-3D-Swin-B.ckpt"
    torch.save({wrapper: stored, "epoch": 3} if wrapper else stored, path)
    return path


def vocabulary(folder: Path, **changes: int) -> str:
    """A folder with settings and vocabulary of the reference's text model, and no weights."""
    import transformers
    from tokenizers import Tokenizer, models

    settings = {"vocab_size": 60, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4} | changes
    config = transformers.BertConfig(**settings, intermediate_size=192, max_position_embeddings=24)
    words = {name: number for number, name in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))}
    words |= {f"w{number}": number for number in range(5, 60)}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokeniser = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", mask_token="[MASK]")
    config.save_pretrained(folder)
    tokeniser.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("wrapper", ["", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_image_encoders_of_every_layout_are_whole(prefix: str, wrapper: str, tmp_path: Path) -> None:
    state = reference()
    model = load_model(saved(tmp_path, {**state, **QUEUES}, prefix, wrapper))
    assert model.kind == "encoder"
    config: Any = model.config.method
    assert (config.encoder, config.feature_size, config.window, config.heads) == ("swin", 3, 3, (1, 2, 3, 6))
    own = model.module.state_dict()
    assert model.report.encoder_matched == model.report.encoder == len(own)
    assert model.report.missing == model.report.unexpected == ()
    assert set(QUEUES) <= set(model.report.dropped)
    assert all(torch.equal(own[name], state[f"vision_encoder.{name}"]) for name in own)
    assert any("method.text.source" in note for note in model.report.notes)


def test_a_whole_file_needs_vocabulary_and_settings_of_its_text_model_alone(tmp_path: Path) -> None:
    state = reference()
    path, source = saved(tmp_path, state), vocabulary(tmp_path / "bert")
    model = load_model(path, changes={"method": {"text": {"source": source}}, "data": {"size": (64, 32, 32)}})
    assert model.kind == "pretrain"
    assert isinstance(model.module, Mg3d)
    own = model.module.state_dict()
    read = {name for name in own if not re.fullmatch(UNREAD, name)}
    assert read == {name for name in state if not re.fullmatch(UNREAD, name)}
    assert all(torch.equal(own[name], state[name]) for name in read)
    assert model.report.unexpected == ()
    other = vocabulary(tmp_path / "other", num_hidden_layers=3)
    with pytest.raises(WeightsError, match=r"60 tokens, 48 channels and 2 layers, but that of .* has 60, 48 and 3"):
        load_model(path, changes={"method": {"text": {"source": other}}})
    (tmp_path / "bert" / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match="no vocabulary"):
        load_model(path, changes={"method": {"text": {"source": source}}})


def test_a_run_of_other_views_starts_from_interpolated_sums(tmp_path: Path) -> None:
    state, source = reference(), vocabulary(tmp_path / "bert")
    changes = {"method": {"text": {"source": source}}, "data": {"size": (64, 32, 32)}}
    path = saved(tmp_path, state)
    run = load_model(path, changes=changes).config.updated({"data": {"size": (64, 64, 96)}})
    network = method("mg3d").build(run)
    report = init_from(network, path, run, changes=changes)
    resized = {name: (old, new) for name, old, new in report.resized}
    assert resized["uni_modal_vision_pooler.fc.weight"] == ((1, 2), (1, 12))
    kernel = network.state_dict()["uni_modal_vision_pooler.fc.weight"]
    torch.testing.assert_close(kernel.sum(), state["uni_modal_vision_pooler.fc.weight"].sum())
    assert report.mismatched == ()


def test_files_of_the_other_encoders(tmp_path: Path) -> None:
    for encoder, options in (("unet", {"feature_size": 2}), ("nnunet", {"features": (4, 4, 4, 4, 4, 6)})):
        run = pretrain_config("mg3d", "tiny", Path("d"), {"method": {"encoder": encoder, **options}})
        network = method("mg3d").build_encoder(run)
        state = {f"vision_encoder.{name}": tensor for name, tensor in network.state_dict().items()}  # type: ignore[attr-defined]
        if encoder == "unet":
            state["vision_encoder.down_tr64.ops.0.bn1.running_mean"] = torch.zeros(2)
        state["mlm_head.bias"] = torch.zeros(5)
        model = load_model(saved(tmp_path, state))
        assert (model.kind, model.config.method.encoder) == ("encoder", encoder)  # type: ignore[attr-defined]
        assert model.report.missing == model.report.unexpected == ()
        assert model.report.share == 1
        assert inspect(saved(tmp_path, state)).family == "mg3d"


def test_very_old_names_of_the_perceptron(tmp_path: Path) -> None:
    state = {name.replace(".mlp.linear", ".mlp.fc"): tensor for name, tensor in reference().items()}
    assert load_model(saved(tmp_path, state)).report.share == 1


def test_exported_files_are_flat_and_wrapped_for_the_authors_scripts(tmp_path: Path) -> None:
    """Their scripts read the flat file, except the one for LUNA16, which looks below ``state_dict``."""
    state, source = reference(), vocabulary(tmp_path / "bert")
    model = load_model(
        saved(tmp_path, state), changes={"method": {"text": {"source": source}}, "data": {"size": (64, 32, 32)}}
    )
    from training_backend.weights.save import save_model

    save_model(tmp_path / "model", model.module, model.card)
    written = torch.load(export(tmp_path / "model", tmp_path / "out.ckpt"), weights_only=True)
    for found in (written, written["state_dict"]):
        taken = {key[15:]: value for key, value in found.items() if key.startswith("vision_encoder")}  # as they do
        assert len(taken) == sum(name.startswith("vision_encoder.") for name in state)
        assert all(torch.equal(tensor, state[f"vision_encoder.{name}"]) for name, tensor in taken.items())
        assert torch.equal(found["multi_modal_vision_proj.weight"], state["multi_modal_vision_proj.weight"])
    again = load_model(tmp_path / "out.ckpt")
    assert again.kind == "pretrain"
    assert (tmp_path / "out.ckpt").stat().st_size < 1.5 * (tmp_path / "model" / "model.safetensors").stat().st_size


@pytest.mark.parametrize("size", ["B", "L"])
def test_the_published_files_are_recognised_by_their_shapes(size: str) -> None:
    shapes = json.loads((PARITY / f"pretrain_swin{size}_keys.json").read_text())
    assert identify(shapes) == "mg3d"
    tensors = {canonical(name): torch.empty(shape, device="meta") for name, shape in shapes.items()}
    described = describe(tensors, {}, {})
    config: Any = described.config.method
    assert (config.encoder, config.size, config.window, config.heads) == ("swin", size, 7, (3, 6, 12, 24))
    assert described.config.data.size == (128, 96, 128)
    assert all(re.fullmatch(FAMILY.known, name) for name in tensors)


def test_gates_go_along_to_prompts_that_are_scored_with_gates(tmp_path: Path) -> None:
    state, path = reference(), saved(tmp_path, reference())
    changes = {
        "task": {"findings": ("nodule",), "gates": 2, "project": 48, "latent": 8, "text": {"width": 48}},
        "method": NARROW,
        "data": {"size": (64, 64, 64)},
        "weights": str(path),
    }
    run: RunConfig = finetune_config("vocabulary", "tiny", Path("d"), "mg3d", changes)
    network, report = build_network(run, method("mg3d"), task("vocabulary"))
    own = network.state_dict()
    name = "local_img_cross_multihead_attention.1.fc2.c_proj.weight"
    assert torch.equal(own[name], state[name])
    assert torch.equal(own["encoder.patch_embed.proj.weight"], state["vision_encoder.patch_embed.proj.weight"])
    assert report is not None
    assert report.share == 1
    bare, report = build_network(run.updated({"task": {"gates": 0}}), method("mg3d"), task("vocabulary"))
    assert torch.equal(bare.state_dict()["encoder.patch_embed.proj.weight"], own["encoder.patch_embed.proj.weight"])


def test_projection_and_marks_go_along_and_alone_learn_with_gates_and_latents(tmp_path: Path) -> None:
    """The loader of CT-RATE takes the image encoder, the gates, the projection of tokens, and the marks, by name."""
    state, path = reference(), saved(tmp_path, reference())
    gated = {
        "gates": 2,
        "as_pretrained": True,
        "grid": (4, 3, 4),
        "maps": "tokens",
        "norm": "none",
        "latents_only": True,
    }
    changes = {
        "task": {**gated, "findings": ("nodule",), "latent": 8, "text": {"width": 48}},
        "method": NARROW,
        "data": {"size": (128, 96, 128)},
        "weights": str(path),
    }
    run: RunConfig = finetune_config("vocabulary", "tiny", Path("d"), "mg3d", changes)
    network, _ = build_network(run, method("mg3d"), task("vocabulary"))
    own = network.state_dict()
    for name in ("multi_modal_vision_proj.weight", "modality_type_embeddings.weight"):
        assert torch.equal(own[name], state[name])
    learning = {name.split(".")[0] for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert learning == {
        "local_img_cross_multihead_attention",
        "multi_modal_vision_proj",
        "modality_type_embeddings",
        "to_visual_latent",
        "to_text_latent",
    }
    volume = torch.rand(1, 1, 128, 96, 128)
    with torch.no_grad():
        last = network.encoder.maps(volume)[-1]  # type: ignore[union-attr, operator]
        rows = last.flatten(2).transpose(1, 2)
        weight, bias = state["multi_modal_vision_proj.weight"], state["multi_modal_vision_proj.bias"]
        wanted = rows @ weight.T + bias + state["modality_type_embeddings.weight"][1]
        torch.testing.assert_close(network.image_tokens(volume), wanted, atol=1e-4, rtol=1e-4)  # type: ignore[operator]
    for wrong, sentence in (({"gates": 0}, "there are none"), ({"project": 48}, "project 48 does so too")):
        with pytest.raises(ConfigError, match=sentence):
            build_network(run.updated({"task": wrong}), method("mg3d"), task("vocabulary"))


def projected() -> dict[str, Tensor]:
    """Weights of a transformer whose tokens are projected from 48 to 24 channels, as the large one's are."""
    torch.manual_seed(0)
    state = reference()
    for number, inputs in ((1, 48), (2, 24), (3, 24)):
        state[f"vision_encoder.proj_head.layer{number}.0.weight"] = torch.randn(24, inputs)
        state[f"vision_encoder.proj_head.layer{number}.0.bias"] = torch.randn(24)
    return state


def test_the_projection_of_the_large_transformer_goes_along(tmp_path: Path) -> None:
    state = projected()
    changes = {
        "task": {"findings": ("nodule",), "gates": 1, "as_pretrained": True, "latent": 8, "text": {"width": 24}},
        "method": NARROW,
        "weights": str(saved(tmp_path, state)),
    }
    run: RunConfig = finetune_config("vocabulary", "tiny", Path("d"), "mg3d", changes)
    own = build_network(run, method("mg3d"), task("vocabulary"))[0].state_dict()
    for number in (1, 2, 3):
        name = f"proj_head.layer{number}.0.weight"
        assert torch.equal(own[name], state[f"vision_encoder.{name}"])


def test_the_projection_goes_along_to_a_classifier(tmp_path: Path) -> None:
    state = projected()
    changes = {
        "task": {"pooling": "projected"},
        "method": NARROW,
        "weights": str(saved(tmp_path, state)),
    }
    run: RunConfig = finetune_config("classification", "tiny", Path("d"), "mg3d", changes)
    network: Any = build_network(run, method("mg3d"), task("classification"))[0]
    volume = torch.rand(3, 1, 48, 48, 48)
    with torch.no_grad():
        tokens = network.encoder.pretrained(volume)
        for number in (1, 2, 3):
            name = f"vision_encoder.proj_head.layer{number}.0"
            tokens = tokens @ state[f"{name}.weight"].T + state[f"{name}.bias"]
            if number < 3:  # each place over patients and channels
                spread = tokens.var((0, 2), keepdim=True, correction=0)
                tokens = ((tokens - tokens.mean((0, 2), keepdim=True)) / (spread + 1e-5).sqrt()).relu()
        wanted = network.head(torch.nn.functional.layer_norm(tokens.mean(1), (24,)))
        torch.testing.assert_close(network(volume), wanted, atol=1e-4, rtol=1e-4)


def test_reports_are_classified_by_the_text_model_of_the_file(tmp_path: Path) -> None:
    """Of the text model only vocabulary and settings are asked for; what predicts later needs neither of them."""
    words = vocabulary(tmp_path / "text")
    cases = [
        CaseRecord(id=f"r{i}", subject=f"r{i}", split="train", report=f"w{6 + i} w8.", target=(i % 2, 1 - i % 2))
        for i in range(4)
    ]
    Dataset(tmp_path / "data", DatasetInfo(name="reports", modality="text"), cases).save()
    changes = {
        "task": {"kind": "multilabel", "classes": 2, "reader": "weights", "text": {"source": words, "longest": 16}},
        "method": NARROW,
        "weights": str(saved(tmp_path, reference())),
        "optim": {"max_steps": 2, "batch_size": 2},
        "data": {"workers": 0},
        "engine": {"device": "cpu", "threads": 1, "preview_minutes": 0},
    }
    run: RunConfig = finetune_config("text_classification", "tiny", tmp_path / "data", "mg3d", changes)
    started = RunDirectory.create(tmp_path / "run", run)
    assert execute(started) == 0, started.error()
    shutil.rmtree(tmp_path / "text")
    own: Any = load_model(started.path).module
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(own.text_transformer.state_dict()[name], reference()[f"language_encoder.{name}"])
    assert run.task is not None
    find: Any = task("text_classification")
    with pytest.raises(ConfigError, match="the run starts from none"):
        find.check(run.updated({"weights": ""}), cases)
    with pytest.raises(ConfigError, match="no vocabulary and settings"):
        build_network(run.updated({"task": {"text": {"source": ""}}}), method("mg3d"), find)
    other = run.updated({"task": {"text": {"source": vocabulary(tmp_path / "deep", num_hidden_layers=3)}}})
    with pytest.raises(WeightsError, match=r"encoder\.layer\.2.* differs"):
        build_network(other, method("mg3d"), find)
    again = run.updated({"weights": str(started.path), "task": {"text": {"source": str(started.path)}}})
    with pytest.raises(WeightsError, match="holds no text model"):  # a classifier is no pre-training
        build_network(again, method("mg3d"), find)


def test_bad_files_get_a_sentence(tmp_path: Path) -> None:
    state = reference()
    with pytest.raises(WeightsError, match="have 5"):
        describe({"patch_embed.proj.weight": torch.zeros(3, 1, 2, 2)}, {}, {})
    with pytest.raises(WeightsError, match="all four stages"):
        load_model(saved(tmp_path, {name: t for name, t in state.items() if "layers3" not in name}))
    with pytest.raises(WeightsError, match=r"no image encoder|no known system"):
        load_model(saved(tmp_path, {name: t for name, t in state.items() if not name.startswith("vision")}))
    run = load_model(saved(tmp_path, state)).config.updated({"method": {"merging": "fixed"}})
    with pytest.raises(WeightsError, match=r"method\.merging legacy"):
        init_from(method("mg3d").build_encoder(run), saved(tmp_path, state), run)  # type: ignore[arg-type]
