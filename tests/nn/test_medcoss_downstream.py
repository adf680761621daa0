"""Outputs of their own sigmoid, the classes that they stand for, and heads on pictures and texts."""

from __future__ import annotations

import itertools

import pytest
import torch

from training_backend.nn.heads import VolumeHead
from training_backend.nn.medcoss import MedcossEncoder, MedcossSettings
from training_backend.nn.medcoss_downstream import (
    SentenceHead,
    class_scores,
    dice_bce,
    own_classes,
    set_targets,
)
from training_backend.nn.unetr_published import PublishedUnetr

TINY = MedcossSettings(
    width=12,
    depth=4,
    heads=2,
    mlp_dim=24,
    vocabulary=20,
    text_rows=8,
    patch_2d=(1, 8, 8),
    patch_3d=(8, 8, 8),
    size_2d=(1, 16, 16),
    size_3d=(8, 16, 16),
    rows_2d=16,
    rows_3d=16,
)
LITS = (frozenset({1, 2}), frozenset({2}))


def test_loss_of_known_voxels_is_the_published_one() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 3, 4, 5, 6), (torch.rand(2, 3, 4, 5, 6) < 0.3).to(torch.int8)
    p, g = logits.sigmoid().flatten(2), targets.flatten(2).float()
    dice, entropy = dice_bce(logits, targets)
    torch.testing.assert_close(dice, (1 - 2 * (p * g).sum(2) / (p.sum(2) + g.sum(2) + 1)).mean())
    torch.testing.assert_close(entropy, -(g * p.log() + (1 - g) * (1 - p).log()).mean())


def test_what_was_not_annotated_costs_nothing_and_moves_nothing() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 3, 4, 5, requires_grad=True)
    targets = (torch.rand(2, 2, 3, 4, 5) < 0.5).to(torch.int8)
    targets[0, 1] = -1  # an organ that nobody looked for
    targets[1, 0, 0] = -1  # a slice that nobody looked at
    dice, entropy = dice_bce(logits, targets)
    (dice + entropy).backward()
    assert logits.grad is not None
    assert not logits.grad[0, 1].any()
    assert not logits.grad[1, 0, 0].any()
    assert logits.grad[targets >= 0].all()
    kept = [
        dice_bce(logits[b : b + 1, c : c + 1], targets[b : b + 1, c : c + 1])[1] for b, c in ((0, 0), (1, 0), (1, 1))
    ]
    torch.testing.assert_close(entropy, torch.stack(kept).mean())
    nothing = dice_bce(logits, torch.full_like(targets, -1))
    assert [term.item() for term in nothing] == [0.0, 0.0]


def test_labels_become_targets_of_nested_outputs() -> None:
    labels = torch.tensor([[[[0, 1, 2, 255]]]])
    assert set_targets(labels, LITS).tolist() == [[[[[0, 1, 1, -1]]], [[[0, 0, 1, -1]]]]]


@pytest.mark.parametrize(
    "sets",
    [
        (frozenset({1}),),
        LITS,
        (frozenset({1}), frozenset({2}), frozenset({3})),
        (frozenset({1}), frozenset({2, 3}), frozenset({3})),
        (frozenset({1, 2, 3}), frozenset({2, 3}), frozenset({3})),
    ],
)
def test_the_best_class_is_what_a_threshold_of_a_half_says(sets: tuple[frozenset[int], ...]) -> None:
    levels = [0.0, 0.1, 0.45, 0.5, 0.55, 0.9, 1.0]
    values = torch.tensor(list(itertools.product(levels, repeat=len(sets)))).T.reshape(len(sets), -1, 1, 1)
    found = class_scores(values, sets).argmax(0).ravel().tolist()
    own = own_classes(sets)
    for point, label in zip(values.reshape(len(sets), -1).T.tolist(), found, strict=True):
        yes = [all(point[k] > 0.5 for k, other in enumerate(sets) if other >= values_) for values_ in sets]
        expected = next((own[k] for k in reversed(range(len(sets))) if yes[k]), 0)
        if 0.5 not in point:
            assert label == expected, point


def test_a_single_output_gives_its_probability() -> None:
    p = torch.rand(1, 2, 3, 4)
    torch.testing.assert_close(class_scores(p, (frozenset({1}),)), torch.cat([1 - p, p]))


def test_outputs_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="exactly one class"):
        own_classes((frozenset({2}), frozenset({1, 2}), frozenset({1})))
    with pytest.raises(ValueError, match="exactly one class"):
        own_classes((frozenset({1, 2}),))


@pytest.mark.parametrize("grey", [True, False])
def test_pictures_of_any_shape_are_segmented_by_a_decoder_of_two_dimensions(grey: bool) -> None:
    torch.manual_seed(0)
    encoder = MedcossEncoder(TINY, {"2d"}, class_token=False, grey=grey)
    network = PublishedUnetr(encoder, 2, feature_size=2).eval()
    picture = torch.rand(2, 1 if grey else 3, 1, 21, 30)
    with torch.no_grad():
        (logits,) = network(picture)
        (repeated,) = network(picture.expand(-1, 3, -1, -1, -1))
    assert logits.shape == (2, 2, 1, 21, 30)
    assert {weight.ndim for name, weight in network.named_parameters() if name.startswith("decoder2.")} == {4}
    torch.testing.assert_close(logits, repeated)


def test_the_class_token_is_left_out_of_the_mean_and_two_layers_end_in_a_layer_norm() -> None:
    torch.manual_seed(0)
    encoder = MedcossEncoder(TINY, {"3d"})
    network = VolumeHead(encoder, 2, "patches", (12,)).eval()
    volume = torch.rand(1, 1, 16, 16, 16)
    expected = network.fc_norm(encoder.encode(volume).tokens.mean(1))
    torch.testing.assert_close(network.features(volume), expected)
    assert [type(layer).__name__ for layer in network.head] == ["Linear", "LayerNorm", "GELU", "Linear"]
    assert network.train()(volume).shape == (1, 2)  # no batch norm, which would need two volumes


def test_a_text_is_classified_by_the_mean_of_all_its_positions() -> None:
    torch.manual_seed(0)
    network = SentenceHead(MedcossEncoder(TINY, {"text"}), 5, freeze=True).train()
    ids, mask = torch.tensor([[1, 5, 2, 0]]), torch.tensor([[1, 1, 1, 0]])
    features = network.encoder.encode_text(ids, mask)
    torch.testing.assert_close(network(ids, mask), network.cls_head(features.mean(1)))
    network(ids, mask).sum().backward()
    assert all(p.grad is None for p in network.encoder.parameters())
    assert all(p.grad is not None for p in network.cls_head.parameters())
