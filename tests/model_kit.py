"""Small untrained models, saved like the result of a run."""

from __future__ import annotations

from pathlib import Path

SIZE = (16, 16, 16)


def untrained(folder: Path, seed: int = 0) -> str:
    """A masked autoencoder of crops of `SIZE` with tokens of 4 x 4 x 4 voxels, in `folder`; answers where it is."""
    import torch

    from training_backend.config.presets import pretrain_config
    from training_backend.config.registry import method
    from training_backend.data.prepare import InputProfile
    from training_backend.weights.save import save_model

    torch.manual_seed(seed)
    changes = {"data": {"size": SIZE}, "method": {"patch_size": (4, 4, 4), "depth": 2, "decoder_depth": 1}}
    config = pretrain_config("mae3d", "tiny", Path(), changes)
    profile = InputProfile(size=SIZE, crop_body=False).model_dump(mode="json")
    card = {"kind": "pretrain", "config": config.model_dump(mode="json"), "profile": profile}
    save_model(folder, method("mae3d").build(config), card)
    return str(folder)
