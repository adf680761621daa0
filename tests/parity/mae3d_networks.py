"""Our networks from the settings of a 3D-MAE manifest; a setting that is not known is a failure."""

from __future__ import annotations

import re
from typing import Any

import torch

from training_backend.config import RunConfig
from training_backend.methods.mae3d import SIZES
from training_backend.nn.heads import VolumeHead
from training_backend.nn.mae import MaskedAutoencoder
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


HEAD = ("num_classes", "global_pool", "hidden_layers")


def classifier(config: dict[str, Any]) -> VolumeHead:
    config = dict(config)
    classes, pooled, hidden = config.pop("num_classes"), config.pop("global_pool"), config.pop("hidden_layers", [])
    encoder = VitEncoder(**_arguments(config, ENCODER))
    return VolumeHead(encoder, classes, "global" if pooled else "class", hidden)


def finetune_run(config: dict[str, Any]) -> RunConfig:
    """Configuration of our run that builds the same network as `classifier`."""
    arguments = _arguments({key: config[key] for key in config if key not in HEAD}, ENCODER)
    names = {"width": "embed_dim", "depth": "depth", "heads": "heads", "in_channels": "in_channels"}
    method = {ours: arguments[name] for name, ours in names.items() if name in arguments}
    classes = config["num_classes"]
    task = {
        "name": "classification",
        "kind": "binary" if classes == 1 else "multiclass",
        "classes": classes,
        "pooling": "global" if config["global_pool"] else "class",
    }
    return RunConfig.parse(
        {
            "kind": "finetune",
            "method": {"name": "mae3d", "patch_size": arguments["patch_size"], **method},
            "data": {"size": arguments["size"]},
            "task": task,
        }
    )


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
