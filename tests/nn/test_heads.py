from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from training_backend.errors import ConfigError
from training_backend.nn.ar import ArEncoder
from training_backend.nn.heads import KINDS, VolumeHead, authors_names, embeddings, layer_id, own_names
from training_backend.nn.vit import VitEncoder


def encoder() -> VitEncoder:
    torch.manual_seed(0)
    return VitEncoder((16, 16, 16), (8, 8, 8), 1, 24, 2, 3)


@pytest.mark.parametrize("pooling", ["global", "class"])
@pytest.mark.parametrize("hidden", [(), (8,), (8, 4)])
def test_heads_give_one_row_per_volume_and_learn_everywhere(pooling: str, hidden: tuple) -> None:
    network = VolumeHead(encoder(), 3, pooling, hidden)
    outputs = network(torch.rand(2, 1, 16, 16, 16))
    assert outputs.shape == (2, 3)
    outputs.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


def test_activation_comes_before_batch_norm() -> None:
    kinds = [type(layer).__name__ for layer in VolumeHead(encoder(), 1, "global", (8,)).head]
    assert kinds == ["Linear", "LeakyReLU", "BatchNorm1d", "Linear"]


def test_class_pooling_uses_the_final_norm_of_the_encoder() -> None:
    network = VolumeHead(encoder(), 2, "class").eval()
    volume = torch.rand(1, 1, 16, 16, 16)
    summary = network.encoder.encode(volume).summary
    assert torch.equal(network.features(volume), network.encoder.norm(summary))


def test_names_translate_to_the_published_ones_and_back() -> None:
    state = VolumeHead(encoder(), 1, "global").state_dict()
    published = authors_names(state)
    assert {"cls_token", "blocks.0.attn.qkv.weight", "fc_norm.weight", "head.bias"} <= set(published)
    assert not any(name.startswith(("encoder.", "norm.")) for name in published)
    assert list(own_names(published)) == list(state)


def test_embeddings_of_all_kinds() -> None:
    backbone = encoder().eval()
    volume = torch.rand(2, 1, 16, 16, 16)
    out = backbone.encode(volume)
    found = embeddings(backbone, volume)
    assert set(found) == set(KINDS)
    assert torch.equal(found["class"], out.summary)
    torch.testing.assert_close(found["pooled"], out.tokens.mean(1))
    assert torch.equal(found["concat"], torch.cat([found["class"], found["pooled"]], 1))
    torch.testing.assert_close(found["pre_logits"], F.layer_norm(found["concat"], (48,), eps=1e-6))
    normed = embeddings(backbone, volume, normed=True)
    torch.testing.assert_close(normed["class"], backbone.norm(out.summary))


def test_a_frozen_encoder_stays_as_it_is() -> None:
    network = VolumeHead(encoder(), 1, freeze=True).train()
    network(torch.rand(2, 1, 16, 16, 16)).sum().backward()
    assert not network.encoder.training
    assert all(p.grad is None for p in network.encoder.parameters())
    assert network.head.weight.grad is not None


def test_the_head_is_the_last_layer() -> None:
    network = VolumeHead(encoder(), 1)
    assert [layer_id(network, name) for name in ("encoder.cls_token", "encoder.blocks.1.norm1.bias", "head.bias")] == [
        0,
        2,
        3,
    ]


def test_a_head_over_tokens_is_the_mean_of_their_evidence_and_has_no_bias() -> None:
    network = VolumeHead(encoder(), 3, "tokens").eval()
    volume = torch.rand(2, 1, 16, 20, 24)  # padded to whole patches
    evidence = network.evidence(volume)
    assert evidence.shape == (2, 3, 2, 3, 3)
    torch.testing.assert_close(evidence.mean(dim=(2, 3, 4)), network(volume))
    assert [name for name, _ in network.named_parameters() if not name.startswith("encoder.")] == ["score.weight"]
    assert layer_id(network, "score.weight") == 3


def test_other_heads_have_no_evidence_and_say_what_would() -> None:
    with pytest.raises(ConfigError, match=r"task\.pooling tokens"):
        VolumeHead(encoder(), 3, "global").evidence(torch.rand(1, 1, 16, 16, 16))


def test_a_start_token_is_taken_for_a_class_token() -> None:
    network = VolumeHead(ArEncoder((16, 16, 16), (8, 8, 8), 1, 24, 2, 3, 48), 2, "global")
    assert network.head.weight.shape == (2, 48)
    assert network(torch.rand(1, 1, 16, 16, 16)).shape == (1, 2)
