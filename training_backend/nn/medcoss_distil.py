"""What keeps MedCoSS from forgetting: samples of earlier modalities, mixed within theirs, seen as the teacher does.

Ye et al., CVPR 2024, section 3. The teacher is the encoder of the stage before, frozen. In evaluation mode (as from
``teacher.eval()``) its targets are exact; the authors leave it in training mode, which is what ``teacher.train()``
gives: branches are skipped at random, and moments are drawn for it as for the student.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training_backend.nn.medcoss import MedcossEncoder


@dataclass(frozen=True)
class ImageDraws:
    """All that is random in a step on images of the buffer.

    Attributes:
        order: [B] which sample each one is mixed with; None mixes nothing.
        share: [B, 1, 1, 1, 1] of the sample itself in the mixture.
        noise: [B, L] that hides patches, the same ones for student and teacher.
        row: of the student's table of moments.
        teacher_row: of the teacher's.
    """

    order: Tensor | None
    share: Tensor | None
    noise: Tensor
    row: int = 0
    teacher_row: int = 0

    @classmethod
    def draw(
        cls,
        student: MedcossEncoder,
        teacher: MedcossEncoder,
        volume: Tensor,
        generator: torch.Generator,
        mix: bool = True,
    ) -> ImageDraws:
        """For `volume` [B, C, D, H, W], on its device; `generator` is on the CPU."""
        order = share = None
        if mix:
            order = torch.randperm(len(volume), generator=generator).to(volume.device)
            share = torch.rand(len(volume), 1, 1, 1, 1, generator=generator).to(volume.device)
        noise = student.draw_noise(volume, generator)
        return cls(order, share, noise, student.draw_row(generator), teacher.draw_row(generator))


@dataclass(frozen=True)
class TextDraws:
    """All that is random in a step on reports of the buffer.

    Attributes:
        order: [B] which sample each one is mixed with.
        ratio: [1] probability of a token to stay its own, the same for the whole batch.
        uniform: [B, T] numbers that are compared with it.
    """

    order: Tensor
    ratio: Tensor
    uniform: Tensor

    @classmethod
    def draw(cls, ids: Tensor, generator: torch.Generator) -> TextDraws:
        """For token numbers [B, T], on their device; `generator` is on the CPU."""
        order = torch.randperm(len(ids), generator=generator)
        ratio, uniform = torch.rand(1, generator=generator), torch.rand(ids.shape, generator=generator)
        return cls(order.to(ids.device), ratio.to(ids.device), uniform.to(ids.device))


def mix_images(volume: Tensor, order: Tensor, share: Tensor) -> Tensor:
    """``share * volume + (1 - share) * volume[order]`` [B, C, D, H, W]."""
    return share * volume + (1 - share) * volume[order]


def mix_text(ids: Tensor, attention: Tensor, draws: TextDraws) -> tuple[Tensor, Tensor]:
    """Token numbers and mask [B, T] of which each token is the sample's own or that of another sample."""
    own = draws.uniform < draws.ratio
    return torch.where(own, ids, ids[draws.order]), torch.where(own, attention, attention[draws.order])


def distil_images(student: MedcossEncoder, teacher: MedcossEncoder, volume: Tensor, draws: ImageDraws) -> Tensor:
    """Loss of a step on images [B, C, D, H, W] of the buffer."""
    if draws.order is not None and draws.share is not None:
        volume = mix_images(volume, draws.order, draws.share)
    with torch.no_grad():
        wanted = teacher.encode_image(volume, draws.noise, draws.teacher_row)
    return distillation_loss(student.encode_image(volume, draws.noise, draws.row), wanted)


def distil_text(
    student: MedcossEncoder, teacher: MedcossEncoder, ids: Tensor, attention: Tensor, draws: TextDraws | None
) -> Tensor:
    """Loss of a step on reports of the buffer: token numbers and mask (1: a token) [B, T]; None mixes nothing."""
    if draws is not None:
        ids, attention = mix_text(ids, attention, draws)
    with torch.no_grad():
        wanted = teacher.encode_text(ids, attention)
    return distillation_loss(student.encode_text(ids, attention), wanted)


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of features [B, N, E], over samples, all tokens and channels."""
    return F.mse_loss(student.float(), teacher.float())
