"""VoCo's projections, teacher and losses."""

from __future__ import annotations

import copy

import pytest
import torch

from training_backend.config import OptimConfig
from training_backend.engine.optim import make_optimizer
from training_backend.engine.state import Progress, TrainState
from training_backend.nn.voco import ProjectionHead, Voco
from training_backend.nn.voco_losses import assign, likeness, position_loss


def network(**options: object) -> Voco:
    torch.manual_seed(0)
    return Voco(1, 3, hidden=8, projected=6, window=(3, 3, 3), **options).train()


def crops(number: int = 6) -> torch.Tensor:
    return torch.rand(number, 1, 32, 32, 64, generator=torch.Generator().manual_seed(1))


LABELS = torch.tensor([[[0.25, 0.75]], [[1.0, 0.0]]])
"""Two volumes, one crop and two bases each."""


def step(state: TrainState, seed: int) -> torch.Tensor:
    model = state.network
    keep = model.draw_rows(6, torch.Generator().manual_seed(seed))
    model.follow()
    _, student, teacher = model.project(crops(), keep)
    loss = model.contrast(student, teacher, LABELS).loss
    loss.backward()
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def training(model: Voco) -> TrainState:
    optim = OptimConfig(lr=1e-2, amsgrad=True, decay_all=True)
    return TrainState(model, make_optimizer(model, optim), None, Progress())


def test_the_teacher_follows_before_it_is_asked_and_is_never_trained() -> None:
    model = network()
    before, student = copy.deepcopy(model.teacher), copy.deepcopy(model.student)
    state = training(model)
    trained = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert not trained & {id(parameter) for parameter in model.teacher.parameters()}
    step(state, 0)
    for new, old, target in zip(*(m.parameters() for m in (model.teacher, before, student)), strict=True):
        assert torch.equal(new, 0.9 * old + 0.1 * target)
    assert not torch.equal(model.student.layer1[0].weight, student.layer1[0].weight)


def test_a_run_that_was_killed_goes_on_exactly() -> None:
    whole = training(network())
    losses = [step(whole, seed) for seed in range(3)]
    first = training(network())
    step(first, 0)
    saved = first.saved({})
    torch.manual_seed(99)
    other = Voco(1, 3, hidden=8, projected=6, window=(3, 3, 3)).train()
    resumed = training(other)
    resumed.restore(saved)
    assert [step(resumed, seed) for seed in (1, 2)] == losses[1:]
    expected = whole.network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.network.state_dict().items())


def test_dropped_rows_are_zeros_that_only_the_student_sees() -> None:
    model = network()
    embeddings = torch.rand(4, model.width)
    keep = torch.tensor([True, False, True, True])
    student, teacher = model.heads(embeddings, keep)
    scaled = embeddings / 0.8
    scaled[1] = 0
    torch.testing.assert_close(student, model.student(scaled))
    assert torch.equal(teacher, model.teacher(embeddings))


def test_rows_are_dropped_by_the_given_numbers_alone() -> None:
    model = network().eval()
    drawn = [model.draw_rows(2000, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*drawn)
    assert float(drawn[0].float().mean()) == pytest.approx(0.8, abs=0.03)


def test_a_projection_depends_on_the_rows_beside_it_in_evaluation_too() -> None:
    head = ProjectionHead(5, 8, 3).eval()
    x = torch.rand(4, 5)
    assert not torch.allclose(head(x)[:2], head(x[:2]))
    assert torch.equal(head(x), head.train()(x))


def test_a_cell_is_like_itself_and_nothing_is_like_zero() -> None:
    alike, apart = torch.ones(9, 4), torch.eye(9)
    assert float(likeness(alike)) == pytest.approx(1)
    assert float(likeness(apart)) == 0
    assert torch.equal(assign(torch.zeros(1, 4), alike), torch.zeros(1, 9))
    bases = torch.rand(9, 4, requires_grad=True)
    likeness(bases).backward()
    assert float(bases.grad[8].abs().max()) == 0  # the last one is only compared with
    assert float(bases.grad[0].abs().max()) > 0


def test_the_loss_of_a_crop_outside_of_all_cells_is_that_of_looking_like_any() -> None:
    predicted = torch.tensor([[0.5, 0.0]])
    loss = position_loss(torch.zeros(1, 2), predicted)
    assert float(loss) == pytest.approx(-torch.tensor([0.5, 1.0]).log().mean().item(), abs=1e-5)
    assert float(position_loss(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]))) == pytest.approx(0, abs=1e-5)


def test_volumes_are_compared_with_the_next_and_a_single_one_with_itself() -> None:
    model = network()
    torch.manual_seed(1)
    student, teacher = torch.randn(6, 6), torch.randn(6, 6)
    found = model.contrast(student, teacher, LABELS)
    assert float(found.loss) == pytest.approx(float(found.intra + found.inter + found.regular))
    swapped = model.contrast(student[[1, 0, 4, 5, 2, 3]], teacher[[1, 0, 4, 5, 2, 3]], LABELS.flip(0))
    torch.testing.assert_close(found.loss, swapped.loss)
    assert model.contrast(student[:3], teacher[:3], LABELS[:1]).loss.isfinite()


def test_the_decoder_learns_alone_where_the_encoder_is_frozen() -> None:
    model = network(decoder=True, classes=2)
    embeddings, logits = model.omni(crops(2), frozen=True)
    assert (embeddings.shape, logits.shape) == ((2, 72), (2, 2, 32, 32, 64))
    logits.square().mean().backward()
    assert model.encoder10.layer.conv1.conv.weight.grad is None
    assert model.out.conv.conv.weight.grad.abs().max() > 0
    assert model.swinViT.patch_embed.proj.weight.grad.abs().max() > 0  # through the transformer's own map, as published


def test_the_teacher_of_2024_is_a_network_of_its_own() -> None:
    model = network(whole_teacher=True)
    before = model.teacher.encoder1.layer.conv1.conv.weight.clone()
    model.follow()
    moved = 0.9 * before + 0.1 * model.encoder1.layer.conv1.conv.weight
    torch.testing.assert_close(model.teacher.encoder1.layer.conv1.conv.weight, moved)
    _, student, teacher = model.project(crops(), None)
    found = model.contrast(student, teacher, LABELS)
    assert float(found.inter) == 0
    assert found.predicted.shape == (2, 1, 2)
