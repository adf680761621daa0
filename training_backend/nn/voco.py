"""VoCo's networks: one encoder for all crops of a step, and the projections that compare them.

In version 2 student and teacher are two projections behind a shared encoder; in the CVPR version of 2024 the teacher
is an encoder of its own. The teacher follows the student and is never trained. Names are those of the published
training files without ``backbone.`` (version 2) and ``student.`` (2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from training_backend.nn.gather import gathered, processes
from training_backend.nn.swin_unetr import Maps, SwinUnetr
from training_backend.nn.voco_losses import assign, inter_loss, likeness, position_loss, position_losses_2024

if TYPE_CHECKING:
    from training_backend.data.position import Sampling


@dataclass(frozen=True)
class Contrast:
    """Losses of a step, scalars as means over the volumes, and what they compared.

    Attributes:
        loss: sum of `intra`, `inter` and `regular`.
        intra: crops of a volume against its own bases.
        inter: against the bases of the next volume; 0 in the version of 2024, which has none.
        regular: likeness of a volume's bases.
        predicted: overlap of each crop with the bases of its volume [B, N, K], detached.
    """

    loss: Tensor
    intra: Tensor
    inter: Tensor
    regular: Tensor
    predicted: Tensor


class ProjectionHead(nn.Module):
    """Three linear layers with batch norms, which know no other statistics than those of the rows they see.

    A single row cannot be projected: crops and bases always go through it together.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Linear(inputs, hidden), _norm(hidden), nn.ReLU(inplace=True))
        self.layer2 = nn.Sequential(nn.Linear(hidden, hidden), _norm(hidden), nn.ReLU(inplace=True))
        self.layer3 = nn.Sequential(nn.Linear(hidden, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[N, E'] of `x` [N, E], N at least 2."""
        out: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return out


class WholeTeacher(SwinUnetr):
    """Encoder and projection of the teacher of 2024."""

    proj_head: ProjectionHead

    def embed(self, crops: Tensor) -> Tensor:
        """Embeddings [N, 24F] of crops [N, C, ...] in the network's frame."""
        return self.maps(crops).embedding()


class Voco(SwinUnetr):
    """Encoder and projections.

    Args:
        in_channels: channels of the volume.
        feature_size: channels F of the finest maps; an embedding has 24 F numbers.
        hidden: width of the projections' hidden layers.
        projected: width of a projection.
        drop_rows: probability that the student sees zeros instead of a crop's embedding, in evaluation too.
        momentum: part of the teacher that stays when it follows the student.
        whole_teacher: the version of 2024.
        options: of `SwinUnetr`; with `decoder` and `classes` it is the omni-supervised network.
    """

    def __init__(
        self,
        in_channels: int = 1,
        feature_size: int = 48,
        *,
        hidden: int = 1024,
        projected: int = 1024,
        drop_rows: float = 0.2,
        momentum: float = 0.9,
        whole_teacher: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, feature_size, **options)
        self.drop_rows, self.momentum, self.whole_teacher = drop_rows, momentum, whole_teacher
        self.sampling: Sampling | None = None
        self.spacing_mm: tuple[float, float, float] | None = None
        self.told: list[list[str]] = []
        self.gather = False
        """Whether training compares the volumes of all processes."""
        sizes = (self.width, hidden, projected)
        if whole_teacher:
            self.proj_head = ProjectionHead(*sizes)
            teacher = WholeTeacher(in_channels, feature_size, **options)
            teacher.proj_head = ProjectionHead(*sizes)
            self.teacher: nn.Module = teacher
        else:
            self.student = ProjectionHead(*sizes)
            self.teacher = ProjectionHead(*sizes)
        self.teacher.requires_grad_(False)

    @property
    def projection(self) -> ProjectionHead:
        """The student's projection."""
        return self.proj_head if self.whole_teacher else self.student

    @property
    def moving(self) -> list[Tensor]:
        """What a step changes besides the trained weights: the teacher."""
        return list(self.teacher.parameters())

    @property
    def begins(self) -> bool:
        """Whether an optimiser step begins: no part of it has left a gradient yet."""
        return self.projection.layer3[0].weight.grad is None

    def follow(self) -> None:
        """Move the teacher towards the student."""
        own = dict(self.named_parameters()) if self.whole_teacher else dict(self.student.named_parameters())
        with torch.no_grad():
            for name, parameter in self.teacher.named_parameters():
                parameter.copy_(self.momentum * parameter + (1 - self.momentum) * own[name])

    def draw_rows(self, rows: int, generator: torch.Generator) -> Tensor:
        """Which embeddings the student gets to see, [rows] bool on the CPU."""
        return torch.rand(rows, generator=generator) >= self.drop_rows

    def embed(self, crops: Tensor) -> Tensor:
        """Embeddings [N, 24F] of crops [N, C, ...] in the network's frame."""
        return self.maps(crops).embedding()

    def project(self, crops: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings [N, 24F] of crops [N, C, ...], and what student and teacher make of them, [N, E'] each.

        Args:
            crops: all crops, then all bases, of a step.
            keep: of `draw_rows`; None drops none. The version of 2024 never drops any.
        """
        embeddings = self.embed(crops)
        if not self.whole_teacher:
            return embeddings, *self.heads(embeddings, keep)
        with torch.no_grad():
            teacher = self.teacher.proj_head(self.teacher.embed(crops))  # type: ignore[union-attr, operator]
        return embeddings, self.proj_head(embeddings), teacher

    def heads(self, embeddings: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """Projections of student and teacher behind the shared encoder, [N, E'] each.

        Rows that are dropped stay as zeros among those that the batch norms see; only the student loses them.
        """
        seen = embeddings
        if keep is not None:
            seen = embeddings * (keep.to(embeddings) / (1 - self.drop_rows))[:, None]
        with torch.no_grad():
            teacher = self.teacher(embeddings)
        return self.student(seen), teacher

    def together(self, embeddings: Tensor, labels: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three of all processes, as one has them that holds all their volumes; the gradient goes back to each.

        Args:
            embeddings: [B N + B K, 24F] of this process, all crops, then all bases.
            labels: [B, N, K].
            keep: of `draw_rows`.
        """
        crops = labels.shape[0] * labels.shape[1]

        def in_order(rows: Tensor) -> Tensor:
            parts = gathered(rows).unflatten(0, (processes(), -1))
            return torch.cat([parts[:, :crops].flatten(0, 1), parts[:, crops:].flatten(0, 1)])

        kept = in_order(keep.to(embeddings.device, torch.float32)) > 0
        return in_order(embeddings), gathered(labels), kept

    def contrast(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Contrast:
        """Losses of the projections of a step.

        Args:
            student: [B N + B K, E'], all crops volume by volume, then all bases.
            teacher: the same.
            labels: [B, N, K] overlap of each crop with the bases of its volume.
        """
        if self.whole_teacher:
            near, far, alike, seen = self.terms_2024(student, teacher, labels)
            return Contrast(near + far + alike, near + far, torch.zeros_like(far), alike, seen)
        x, b = _parted(student, labels)
        x_teacher, b_teacher = _parted(teacher, labels)
        predicted = [assign(x[index], b_teacher[index]) for index in range(len(labels))]
        following = [(index + 1) % len(labels) for index in range(len(labels))]
        intra = torch.stack([position_loss(label, one) for label, one in zip(labels, predicted, strict=True)]).mean()
        inter = torch.stack(
            [inter_loss(x[i], x_teacher[i], b[j], b_teacher[j])[0] for i, j in enumerate(following)]
        ).mean()
        regular = torch.stack([likeness(bases) for bases in b]).mean()
        return Contrast(intra + inter + regular, intra, inter, regular, torch.stack(predicted).detach())

    def terms_2024(self, student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Both terms of the position loss and the likeness, means over the volumes, and the overlap [B, N, K].

        The prediction is the mean of both ways round: student crops with teacher bases, teacher crops with student's.
        """
        x, b = _parted(student, labels)
        x_teacher, b_teacher = _parted(teacher, labels)
        predicted = torch.stack(
            [(assign(x[i], b_teacher[i]) + assign(x_teacher[i], b[i])) / 2 for i in range(len(labels))]
        )
        pairs = [position_losses_2024(label, seen) for label, seen in zip(labels, predicted, strict=True)]
        near, far = (torch.stack(terms).mean() for terms in zip(*pairs, strict=True))
        regular = torch.stack([likeness(bases) for bases in b]).mean()
        return near, far, regular, predicted.detach()

    def omni(self, crops: Tensor, *, frozen: bool, decoded: int | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings [N, 24F] and logits [N, classes, ...] of crops in the network's frame.

        Args:
            crops: [N, C, ...].
            decoded: make logits for as many of the first crops only.
            frozen: let the logits train the decoder without the convolution blocks of the encoder; the transformer
                still learns through the map that the decoder takes from it directly, as published.
        """
        maps: Maps = self.maps(crops)
        seen = (maps.frozen() if frozen else maps).first(decoded)
        logits: Tensor = self.out(self.decode(seen))
        return maps.embedding(), logits


def _norm(width: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(width, affine=False, track_running_stats=False)


def _parted(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Crops [B, N, E'] and bases [B, K, E'] of the rows of a step, in full precision."""
    volumes, crops, _ = labels.shape
    split = volumes * crops
    return rows[:split].float().unflatten(0, (volumes, crops)), rows[split:].float().unflatten(0, (volumes, -1))
