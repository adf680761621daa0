"""What a self-supervised method is to the rest of the project: one frozen object per file, no class hierarchy.

A method's file imports torch only inside its functions, so the viewer can read its config model, presets and card.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from training_backend.data.views import Batch
from training_backend.nn.output import EncoderOutput

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from torch import Tensor, nn

    from training_backend.config import ConfigModel, MethodConfig, RunConfig
    from training_backend.data.manifest import CaseRecord
    from training_backend.data.streams import Stream

__all__ = [
    "Batch",
    "Card",
    "Encoder",
    "EncoderOutput",
    "Frame",
    "Method",
    "ModelView",
    "Passage",
    "Piece",
    "PreviewArray",
    "ReportedCase",
    "Snapshot",
    "StepOutput",
]


@dataclass(frozen=True)
class Card:
    """What a reader must know about a method before using it."""

    title: str
    summary: str
    paper: str
    url: str
    weights_licence: str
    """Licence of the authors' published weights."""


@dataclass
class StepOutput:
    """Loss to differentiate (a scalar tensor) and further scalars to plot.

    Attributes:
        counts: how many things each scalar (or "loss") is the mean of, where that is not the views of the batch; means
            over several batches weigh by it, and a scalar that a batch says nothing about is simply left out.
    """

    loss: Tensor
    scalars: Mapping[str, float | Tensor] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PreviewArray:
    """A picture for the viewer, on the grid of the network input, or a matrix that has no place in the scan.

    Attributes:
        name: layer name, e.g. "reconstruction".
        array: (z, y, x), (z, y, x, 3) for role "rgb", (rows, columns) for role "matrix", or (N, 2, 3) for role
            "vectors": where each arrow begins and how far it goes along (z, y, x), in elements of the grid.
        role: "image", "labels", "heatmap", "error", "mask", "rgb", "matrix" or "vectors".
        voxels: input voxels covered by one element along (z, y, x): (1, 1, 1) for images, the patch size for tokens.
        limits: contrast limits, or None for the data's own.
        classes: class names by label value, for role "labels".
        start: (z, y, x) of the input voxel at which the array begins.
        sides: what a row and a column of a matrix are, e.g. ("crop", "cell").
        other: whether it lies on the other scan that the view was given.
        names: of the rows and of the columns of a matrix, where numbers do not tell enough.
    """

    name: str
    array: npt.NDArray[Any]
    role: str
    voxels: tuple[int, int, int] = (1, 1, 1)
    limits: tuple[float, float] | None = None
    classes: Mapping[int, str] = field(default_factory=dict)
    start: tuple[float, float, float] = (0.0, 0.0, 0.0)
    sides: tuple[str, str] = ("row", "column")
    other: bool = False
    names: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


@dataclass(frozen=True)
class Piece:
    """A part of a text that something is known of, a word say.

    Attributes:
        text: as it is read, with the blanks behind it.
        kind: "plain"; "right" and "wrong" for guessed words; "added" and "missing" for what differs from another text.
        told: what is known of it, in words.
    """

    text: str
    kind: Literal["plain", "right", "wrong", "added", "missing"] = "plain"
    told: str = ""


@dataclass(frozen=True)
class Passage:
    """A sentence or a whole text that a view speaks of; shown, and never written anywhere.

    Attributes:
        pieces: of the text, in order.
        title: what it is, e.g. "reference".
        value: a number that belongs to it, or None.
    """

    pieces: tuple[Piece, ...]
    title: str = ""
    value: float | None = None

    @property
    def text(self) -> str:
        """All pieces."""
        return "".join(piece.text for piece in self.pieces).strip()


@dataclass(frozen=True)
class ReportedCase:
    """A case of a dataset, as a view that compares cases gets it.

    Attributes:
        id: of the case.
        volume: its view [1, C, D, H, W].
        report: its text.
    """

    id: str
    volume: Tensor
    report: str


class Encoder(Protocol):
    """What tasks and the Explore panel need from any pre-trained network (an ``nn.Module``)."""

    width: int
    """Channels E of a token."""
    depth: int
    """Number of blocks."""
    in_channels: int
    patch_size: tuple[int, int, int]
    """Voxels of one token along (z, y, x)."""

    def encode(self, volume: Tensor, hidden: Sequence[int] = ()) -> EncoderOutput:
        """Features of `volume` [B, C, D, H, W]; any D, H, W divisible by the patch. `hidden` are block indices."""
        ...

    def layer_id(self, parameter: str) -> int:
        """Depth of a parameter for layer-wise decay: 0 embeddings, i + 1 block i, depth + 1 anything later."""
        ...

    def attention(self, volume: Tensor, block: int) -> Tensor:
        """Attention of the class token (or of the token mean) to patches at `block`: [B, heads, d, h, w]."""
        ...


@dataclass(frozen=True)
class Frame:
    """One state of a drawing that may go on.

    Attributes:
        pictures: replace those of the same name that came before. Their arrays may be changed by the next frame, so
            whoever keeps them takes a copy.
        text: a sentence on what is seen, with its numbers.
        share: of the work done, 0..1.
        passages: texts that the pictures speak of, for the viewer alone.
    """

    pictures: Sequence[PreviewArray]
    text: str = ""
    share: float = 1.0
    passages: Sequence[Passage] = ()


@dataclass(frozen=True)
class ModelView:
    """Something that a method can show of its network: a section of the Explore panel and of ``med3dssl view``.

    Attributes:
        name: registered name, e.g. "next-patch"; of `med3dssl view --name`.
        title: of the section.
        tip: one or two sentences on what is seen.
        options: settings model; its fields become the section's form and the flags. A field called ``point`` (hidden)
            receives the voxel (z, y, x) of the network's view that the user clicked, where `point` is true; one called
            ``seed`` seeds the generator.
        draw: frames of one view [1, C, D, H, W] for a network in evaluation mode, the options and a generator on the
            CPU; called without gradients. The caller may stop between two frames, so long work has many. Keywords give
            what it asks for besides: ``other``, a view [1, C, D, H, W] of another scan, ``teacher``, the snapshot
            of the run (see `Snapshot`) in evaluation mode, ``against``, the encoder of another model, and ``cases``, a
            list of `ReportedCase`.
        needs: "pretrain" for networks with their pre-training heads, "encoder" for the encoder of any model of the
            method, "finetune" for networks with a task.
        task: name of that task, for "finetune".
        point: whether it starts from a clicked voxel.
        other: whether it compares the scan with another one.
        teacher: whether it compares the network with the one that labelled for it.
        against: whether it compares the encoder with that of another model, or with the teacher where none is named.
        text: what it reads. "report": the report of the scan. "query": words that a user looks for. "findings": names
            of findings, with a field ``findings`` in place of ``text``. The options' field ``text`` (hidden) receives
            it; fields ``sentence`` and ``word`` (hidden, from 1) what was clicked in it.
        cases: whether it compares cases of a dataset, and looks at no scan besides.
    """

    name: str
    title: str
    tip: str
    options: type[ConfigModel]
    draw: Callable[..., Iterator[Frame]]
    needs: Literal["pretrain", "encoder", "finetune"] = "pretrain"
    task: str = ""
    point: bool = False
    other: bool = False
    teacher: bool = False
    against: bool = False
    text: Literal["", "report", "query", "findings"] = ""
    cases: bool = False

    def suits(self, kind: str, task: str | None = None) -> bool:
        """Whether a model of a kind ("pretrain", "encoder" or "finetune") and task can be shown this way."""
        return self.needs in ("encoder", kind) and self.task in ("", task)


@dataclass(frozen=True)
class Snapshot:
    """A copy of a part of the network that learns no more, from which the network learns from then on.

    Attributes:
        share: of the run's steps after which it is taken.
        build: the part, whose tensors have the names that they have in the network.
        weights: run or file whose weights it gets, in place of those that the network has then.
        awaited: whether nothing looks at the run's own views before, or in validation; then they are not read, and
            batches have them without channels.
    """

    share: float
    build: Callable[[RunConfig], nn.Module]
    weights: str = ""
    awaited: bool = False


@dataclass(frozen=True)
class Method:
    """A self-supervised method; from this object follow form, flags, docs page, smoke test and preview layers.

    Attributes:
        name: registered name, e.g. "mae3d".
        config: the method's settings model, a `MethodConfig` whose `name` defaults to `name`.
        card: paper, licence, one-line summary.
        presets: preset name to nested overrides of a `RunConfig` (``{"method": {...}, "data": {...}, ...}``); has
            "tiny", "small", "base" and "published".
        build: network with its initial weights for a run (reads `run.method` and `run.data.size`); uses torch's
            global generator, which the caller has seeded.
        training_step: loss of a batch; all its randomness from the generator (on the CPU).
        preview: pictures of what the network does with one view [1, C, D, H, W]; methods that need text get the
            case's as the option `report`.
        encoder: the encoder of a built network, sharing its weights.
        build_encoder: the same encoder without the pre-training heads, for fine-tuning.
        family: name of the importer in `weights.families` for the authors' checkpoints.
        views: what can be shown of its networks besides features, similarity and attention.
        implied: nested settings of a run that follow from those of the method (a mapping by name, as far as they are
            given); they lie over a preset and below what the user says.
        streams: further streams of views for a run, by name; batches have them as `streams`.
        snapshot: of the network, for a run that learns from one; batches of training have it as `extra["snapshot"]`,
            in evaluation mode, and the run keeps it beside its model.
        needs: "text" for methods that learn from volumes with reports: cases without one are left out, and batches have
            the reports as `extra["texts"]`. None for all others.
        check: refuses, with a `Med3dError`, cases to train or validate on that do not fit the run; None takes all.
        rate: learning rate of a parameter by name, in those of the rest.
        gathers: whether a step of a run looks at the views of other processes, so that all need as many.
        contained: configuration for the card of a model, with all that the network would look up elsewhere.
        scales: voxels along each axis of a place of each map of the encoder's pyramid, from fine to coarse; empty for
            encoders with tokens of one size.
    """

    name: str
    config: type[MethodConfig]
    card: Card
    presets: Mapping[str, Mapping[str, Any]]
    build: Callable[[RunConfig], nn.Module]
    training_step: Callable[[nn.Module, Batch, torch.Generator], StepOutput]
    preview: Callable[[nn.Module, Tensor, Mapping[str, Any], torch.Generator], list[PreviewArray]]
    encoder: Callable[[nn.Module], Encoder]
    build_encoder: Callable[[RunConfig], Encoder]
    family: str
    views: tuple[ModelView, ...] = ()
    implied: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda method: {}
    streams: Callable[[RunConfig], Mapping[str, Stream]] = lambda run: {}
    snapshot: Callable[[RunConfig], Snapshot | None] = lambda run: None
    needs: Literal["text"] | None = None
    check: Callable[[RunConfig, Sequence[CaseRecord]], None] | None = None
    rate: Callable[[str], float] = lambda parameter: 1.0
    gathers: Callable[[RunConfig], bool] = lambda run: False
    contained: Callable[[nn.Module, RunConfig], RunConfig] = lambda network, config: config
    scales: tuple[int, ...] = ()
