from __future__ import annotations

import pytest

from training_backend.nn.mae import MaskedAutoencoder
from training_backend.nn.param_groups import decay_groups, layer_decay_groups


@pytest.fixture(scope="module")
def model() -> MaskedAutoencoder:
    return MaskedAutoencoder((8, 8, 8), (4, 4, 4), 1, 12, 2, 2, 8, 1, 2)


def test_vectors_and_biases_do_not_decay_and_frozen_tables_are_left_out(model: MaskedAutoencoder) -> None:
    low, high = decay_groups(model, 0.1)
    assert (low["weight_decay"], high["weight_decay"]) == (0.0, 0.1)
    assert {"cls_token", "mask_token"} <= set(high["names"])
    assert all(parameter.ndim > 1 for parameter in high["params"])
    assert "pos_embed" not in low["names"] + high["names"]
    assert len(low["params"]) + len(high["params"]) == sum(p.requires_grad for p in model.parameters())


def test_learning_slows_towards_the_input_and_tokens_do_not_decay(model: MaskedAutoencoder) -> None:
    groups = layer_decay_groups(model, model.layer_id, model.depth + 1, 0.5, 0.1)
    scale = {name: group["lr_scale"] for group in groups for name in group["names"]}
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert scale["patch_embed.proj.weight"] == 0.125
    assert scale["blocks.1.attn.qkv.weight"] == 0.5
    assert scale["norm.weight"] == 1.0
    assert (decay["cls_token"], decay["mask_token"]) == (0.0, 0.1)
