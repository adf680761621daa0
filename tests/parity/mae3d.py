"""Checks of the cases of 3D-MAE / TANGERINE, by their kind."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.parity import mae3d_data, mae3d_training
from tests.parity.cases import Case, Check
from tests.parity.mae3d_networks import autoencoder, classifier, finetune_run, full_size
from training_backend.methods import mae3d as mae3d_method
from training_backend.nn import heads
from training_backend.nn.mae import MaskedAutoencoder
from training_backend.nn.patch import PatchEmbed, pad_to_patch, patch_grid, patchify, unpatchify
from training_backend.nn.position import cubic_grid, resize_table, sincos_1d, sincos_table
from training_backend.tasks import classification
from training_backend.weights.transfer import init_from


def checks(folder: Path, manifest: dict[str, Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """A check per case, per list of full-size keys, and per full-size parameter count."""
    for name, entry in manifest["cases"].items():
        yield name, partial(run, name, folder, entry)
    for path in sorted(folder.glob("*_keys.json")):
        yield path.stem, partial(check_keys, path)
    for name, counts in manifest.get("full_configurations", {}).items():
        yield f"{name}_counts", partial(check_counts, name, counts)


def run(name: str, folder: Path, entry: dict[str, Any]) -> None:
    kind = entry.get("kind")
    if kind not in CHECKS:
        pytest.fail(f"case {name} is of a kind that the suite does not understand: {kind!r}")
    case = Case.load(name, folder, entry)
    CHECKS[kind](case)
    assert case.arrays.unseen() == [], "arrays of the case that nothing was compared with"


def check_pretrain(case: Case) -> None:
    network = autoencoder(case.config).eval()
    network.load_state_dict(case.weights())
    volume, noise, ratio = case.tensor("imgs"), case.tensor("noise"), float(case.arrays["mask_ratio"])
    torch.manual_seed(int(case.arrays["mask_seed"]))
    assert torch.equal(torch.rand(noise.shape), noise)

    case.compare("patch_embed", network.patch_embed(volume))
    latent = network.encode_visible(volume, noise, ratio)
    case.compare("latent", latent)
    result = network.reconstruct(volume, noise, ratio)
    case.compare("mask", result.mask)
    case.compare("ids_restore", noise.argsort(1).argsort(1))
    case.compare("pred", result.prediction)
    case.compare("target", patchify(volume, network.patch_size))
    picture = unpatchify(result.prediction, network.patch_size, result.grid, network.in_channels)
    case.compare("unpatchified_pred", picture)
    case.compare("loss", result.loss)

    loss = network(volume, noise, ratio)
    case.compare("loss", loss)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    names = case.arrays["grad_names"].tolist()
    assert sorted(names) == sorted(name for name, gradient in gradients.items() if gradient is not None)
    case.compare("grad_norms", torch.stack([gradients[name].norm() for name in names]))
    for name in case.arrays:
        if name.startswith("grad_") and name not in ("grad_names", "grad_norms"):
            case.compare(name, gradients[name.removeprefix("grad_")])


def check_init(case: Case) -> None:
    torch.manual_seed(int(case.arrays["seed"]))
    state = autoencoder(case.config).state_dict()
    expected, tolerance = case.weights(), case.entry["tolerance"]
    assert set(state) == set(expected)
    for name in ("pos_embed", "decoder_pos_embed"):
        case.compare(name, state[name], atol=tolerance["pos_embed"], rtol=0)
    for index, name in enumerate(case.arrays["std_names"].tolist()):
        assert torch.equal(state[name], expected[name]), f"{name} differs for the same seed"
        scale = float(case.arrays["stds"][index])
        assert float(state[name].std()) == pytest.approx(scale, rel=tolerance["stds_rel"], abs=1e-7)
        assert float(state[name].abs().max()) <= float(case.arrays["absmax"][index]) * (1 + 1e-6)


def check_pos_embed(case: Case) -> None:
    full: dict[int, torch.Tensor] = {}
    for name in case.arrays:
        if match := re.fullmatch(r"pe_(\d+)_(\d+)x(\d+)x(\d+)", name):
            width, *grid = map(int, match.groups())
            case.compare(name, sincos_table(width, tuple(grid), reference_order=True)[0])
            if len(set(grid)) == 1:
                case.compare(name, sincos_table(width, tuple(grid))[0])
        elif match := re.fullmatch(r"pe1d_(\d+)", name):
            positions = np.arange(len(case.arrays[name]), dtype=np.float32)
            case.compare(name, sincos_1d(int(match[1]), positions))
        elif match := re.fullmatch(r"full_(\d+)_(rows|colsum|rowsum)", name):
            width = int(match[1])
            table = full.setdefault(width, sincos_table(width, (16, 16, 16))[0])
            sums = case.entry["tolerance"]["full_sums_atol"]
            if match[2] == "rows":
                case.compare(name, table[case.tensor("rows").long()])
            else:
                case.compare(name, table.double().sum(dim=0 if match[2] == "colsum" else 1), atol=sums)
        else:
            assert name == "rows", f"unknown table {name}"


def check_interpolation(case: Case) -> None:
    old, new = (case.config[key] for key in ("old_grid", "new_grid"))
    for prefix, width in (("", "embed_dim"), ("decoder_", "decoder_embed_dim")):
        table = case.tensor(f"old_{prefix}pos_embed")
        assert table.shape[-1] == case.config[width]
        assert cubic_grid(table.shape[1] - 1) == (old,) * 3
        case.compare(f"new_{prefix}pos_embed", resize_table(table, (old,) * 3, (new,) * 3))


def check_downstream(case: Case) -> None:
    network = classifier(case.config)
    network.load_state_dict(heads.own_names(case.weights()))
    compare_classifier(case, network.eval())


def compare_classifier(case: Case, network: nn.Module) -> None:
    volume = case.tensor("volume")
    with torch.no_grad():
        out = network.encoder.encode(volume)
        logits, embedded = network(volume), heads.embeddings(network, volume)
        features = embedded["concat"] if network.pooling == "global" else network.features(volume)
        actual = {
            "tokens": torch.cat([out.summary[:, None], out.tokens], dim=1),
            "features": features,
            "pre_logits": network.features(volume),
            "logits": logits,
            "sigmoid": logits.sigmoid(),
            "softmax": logits.softmax(-1),
            **{f"emb_{kind}": value for kind, value in embedded.items()},
        }
    for name in case.arrays:
        if name in actual:
            case.compare(name, actual[name])


def check_transfer(case: Case) -> None:
    run = finetune_run(case.config["vit"])
    network = classification.build(run, mae3d_method.build_encoder(run))
    mae = case.config["mae"]
    autoencoder(mae).load_state_dict(case.weights())  # its settings describe the file
    heads_of_file = {"method": {"heads": mae["num_heads"], "decoder_heads": mae["decoder_num_heads"]}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pretrained.pth"
        torch.save({"model": {f"module.{name}": tensor for name, tensor in case.weights().items()}}, path)
        report = init_from(network, path, run, changes=heads_of_file)
    for name, found in (("loaded", report.matched), ("dropped", report.dropped), ("missing", report.missing)):
        assert sorted(found) == sorted(case.arrays[name].tolist()), name
    assert report.unexpected == ()
    assert [name for name, *_ in report.resized] == (["pos_embed"] if mae["img_size"] != run.data.size[0] else [])
    given = {f"{part}.{leaf}": f"vit_{part}_{leaf}" for part in ("head", "fc_norm") for leaf in ("weight", "bias")}
    network.load_state_dict(
        {key: case.tensor(name) for key, name in given.items() if name in case.arrays}, strict=False
    )
    compare_classifier(case, network.eval())


def check_patchify(case: Case) -> None:
    for name in case.arrays:
        if match := re.fullmatch(r"x(\d+)", name):
            patch, grid, channels, batch = case.arrays[f"cfg{match[1]}"].tolist()
            volume = case.tensor(name)
            assert volume.shape == (batch, channels, *(patch * grid,) * 3)
            _round_trip(case, f"y{match[1]}", volume, (patch,) * 3)
    volume, tokens = case.tensor("x_noncubic"), case.arrays["y_noncubic"]
    side = round((tokens.shape[2] / volume.shape[1]) ** (1 / 3))
    _round_trip(case, "y_noncubic", volume, (side,) * 3)
    weight, volume = case.tensor("pe_w"), case.tensor("pe_x")
    embed = PatchEmbed(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]))
    embed.load_state_dict({"proj.weight": weight, "proj.bias": case.tensor("pe_b")})
    case.compare("pe_y", embed(pad_to_patch(volume, embed.patch_size)))


def _round_trip(case: Case, name: str, volume: torch.Tensor, patch: tuple[int, int, int]) -> None:
    tokens = patchify(volume, patch)
    case.compare(name, tokens)
    grid = patch_grid(tuple(volume.shape[2:]), patch)
    assert torch.equal(unpatchify(tokens, patch, grid, volume.shape[1]), volume)


def check_keys(path: Path) -> None:
    """Names, shapes and order of the parameters of a published size."""
    expected = json.loads(path.read_text(encoding="utf-8"))
    network = full_size(path.stem.removesuffix("_keys"))
    ours = {key: list(value.shape) for key, value in heads.authors_names(network.state_dict()).items()}
    assert ours == expected


def check_counts(name: str, counts: dict[str, int]) -> None:
    network = full_size(name)
    state = network.state_dict()
    found = {
        "n_tensors": len(state),
        "n_params": sum(tensor.numel() for tensor in state.values()),
        "trainable": sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad),
    }
    assert found == counts
    assert isinstance(network, MaskedAutoencoder) == name.startswith("mae")


CHECKS: dict[str, Check] = {
    "pretrain": check_pretrain,
    "init": check_init,
    "pos_embed": check_pos_embed,
    "pos_embed_interpolation": check_interpolation,
    "downstream": check_downstream,
    "transfer": check_transfer,
    "patchify": check_patchify,
    "optim": mae3d_training.check_optim,
    "train_trace": mae3d_training.check_trace,
    "data": mae3d_data.check_data,
    "metrics": mae3d_data.check_metrics,
    "cli": mae3d_data.check_cli,
}
