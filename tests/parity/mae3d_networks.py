"""Our networks from the settings of a 3D-MAE manifest; a setting that is not known is a failure."""

from __future__ import annotations

import re
from typing import Any

import torch

from training_backend.methods.mae3d import SIZES
from training_backend.nn.heads import VolumeHead, own_names
from training_backend.nn.mae import MaskedAutoencoder
from training_backend.nn.position import resize_table
from training_backend.nn.vit import VitEncoder

ENCODER = {
    "in_chans": "in_channels",
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "heads",
    "mlp_ratio": "mlp_ratio",
}
AUTOENCODER = {
    **ENCODER,
    "decoder_embed_dim": "decoder_width",
    "decoder_depth": "decoder_depth",
    "decoder_num_heads": "decoder_heads",
    "norm_pix_loss": "norm_pix_loss",
}


def autoencoder(config: dict[str, Any]) -> MaskedAutoencoder:
    return MaskedAutoencoder(**_arguments(config, AUTOENCODER))


def classifier(config: dict[str, Any]) -> VolumeHead:
    config = dict(config)
    classes, pooled, hidden = config.pop("num_classes"), config.pop("global_pool"), config.pop("hidden_layers", [])
    encoder = VitEncoder(**_arguments(config, ENCODER))
    return VolumeHead(encoder, classes, "global" if pooled else "class", hidden)


def load_classifier(
    network: VolumeHead, state: dict[str, torch.Tensor], grid: tuple[int, int, int]
) -> tuple[list[str], list[str], list[str]]:
    """Put pre-training weights into a classifier; names that were loaded, not needed, and not there."""
    encoder = network.encoder
    state = {**state, "pos_embed": resize_table(state["pos_embed"], grid, encoder.grid)}
    wanted = encoder.state_dict()
    used = {key: value for key, value in state.items() if key in wanted}
    encoder.load_state_dict(used)
    missing = [key for key in network.state_dict() if key not in own_names(used)]
    return list(used), [key for key in state if key not in used], missing


def full_size(name: str) -> MaskedAutoencoder | VolumeHead:
    """Network of a published factory, without memory for its weights; sizes that are not whole patches are cut."""
    size, patch = re.search(r"vit_(\w+?)_patch(\d+)", name).groups()
    width, depth, heads = SIZES[size]
    side = 256 // int(patch) * int(patch)
    config = {"img_size": side, "patch_size": int(patch), "embed_dim": width, "depth": depth, "num_heads": heads}
    with torch.device("meta"):
        if match := re.fullmatch(r"mae_vit_\w+_dec(\d+)d(\d+)b", name):
            decoder = {"decoder_embed_dim": int(match[1]), "decoder_depth": int(match[2]), "decoder_num_heads": 16}
            return autoencoder(config | decoder)
        pooling = {"gap": True, "cls": False}[name.rpartition("_")[2]]
        hidden = [64] if "power_2" in name else []
        classes = 1
        return classifier(config | {"num_classes": classes, "global_pool": pooling, "hidden_layers": hidden})


def _arguments(config: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    config = dict(config)
    assert config.pop("norm_layer", "LayerNorm eps=1e-6") == "LayerNorm eps=1e-6"
    assert config.pop("qkv_bias", True) is True
    arguments: dict[str, Any] = {
        "size": _triple(config.pop("img_size")),
        "patch_size": _triple(config.pop("patch_size")),
    }
    unknown = set(config) - set(names)
    assert not unknown, f"settings that the suite does not understand: {sorted(unknown)}"
    return arguments | {names[key]: value for key, value in config.items()}


def _triple(value: Any) -> tuple[int, int, int]:
    return (value, value, value) if isinstance(value, int) else tuple(value)
