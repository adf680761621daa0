"""What networks of tasks on texts show: findings named by words, a written report beside the true one."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from training_backend.config import ConfigModel, ui
from training_backend.methods.base import Frame, ModelView, Passage, Piece, PreviewArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from training_backend.nn.text_match import TextMatch

_HIDDEN = ui(hidden=True)


class FindingsOptions(ConfigModel):
    """What is asked, and which answer is drawn."""

    findings: tuple[str, ...] = Field((), max_length=200, json_schema_extra=_HIDDEN)
    """Names; empty takes those of the model, else the 18 of CT-RATE."""
    present: tuple[str, ...] = Field((), json_schema_extra=_HIDDEN)
    """Prompt of each finding; "NAME." where it is missing or empty."""
    absent: tuple[str, ...] = Field((), json_schema_extra=_HIDDEN)
    """Prompt that each is compared with; "not NAME." where it is missing or empty."""
    sentence: int = Field(0, ge=0, json_schema_extra=_HIDDEN)
    """Number of the finding whose prompt is drawn; 0 draws none."""
    map: Literal["what speaks for it", "gates"] = "what speaks for it"
    """what speaks for it: how much each place adds to the score of the prompt, compared with a usual scan. gates: how
    much the prompt attends to each place, for models with gates."""
    than: Literal["other findings", "its opposite"] = "other findings"
    """What speaks for a finding more than for the mean of the others, or than for the prompt against it."""


class WrittenOptions(ConfigModel):
    """What the written report is compared with."""

    text: str = Field("", max_length=20_000, json_schema_extra=_HIDDEN)
    """Report of the scan; without it nothing is compared."""


def findings(
    network: TextMatch, volume: Tensor, options: FindingsOptions, _generator: torch.Generator
) -> Iterator[Frame]:
    """Probability of each finding: softmax over the scores of two prompts (CT-CLIP, MG-3D)."""
    from training_backend.errors import DataError
    from training_backend.nn.text_match import prompts
    from training_backend.tasks.vocabulary import CT_RATE

    named: Any = getattr(network, "findings", ()) or getattr(network.task, "findings", ()) or CT_RATE
    names = tuple(name for name in options.findings if name.strip()) or tuple(named)
    pairs = []
    for index, name in enumerate(names):
        yes, no = prompts(name)
        pairs.append((_at(options.present, index) or yes, _at(options.absent, index) or no))
    tokens, sure = network.image_tokens(volume), []
    for index, pair in enumerate(pairs):
        sure.append(float(network.preference(tokens, [pair])[0, 0]))
        yield Frame((), share=index / len(pairs))
    passages = [
        Passage((Piece(yes), Piece(no)), name, value) for name, (yes, no), value in zip(names, pairs, sure, strict=True)
    ]
    best = max(range(len(sure)), key=sure.__getitem__)
    text = f"{names[best]} is the likeliest of {len(names)} findings, {sure[best]:.0%}."
    if options.sentence > len(names):
        raise DataError(f"There are {len(names)} findings, so finding {options.sentence} cannot be drawn.")
    if not options.sentence:
        yield Frame((), text, passages=passages)
    elif options.map == "gates":
        gate = network.gates(tokens, pairs[options.sentence - 1][0])
        drawn = "This model has no gates to draw." if gate is None else f"Gates from {_range(gate)}."
        pictures = [] if gate is None else [_map(network, gate[0], volume)]
        yield Frame(pictures, f"{text} {drawn}", passages=passages)
    else:
        share = _speaking(network, tokens, pairs, options)
        told = f"{names[options.sentence - 1]}: places add from {_range(share)}, together {float(share.sum()):+.3f}."
        yield Frame([_map(network, share.clamp_min(0), volume)], f"{text} {told}", passages=passages)


def _speaking(network: TextMatch, tokens: Tensor, pairs: Sequence[tuple[str, str]], options: FindingsOptions) -> Tensor:
    """What each place [L] adds to the score of a prompt more than to others, and more than in a usual scan."""
    import torch

    from training_backend.errors import DataError

    yes, no = pairs[options.sentence - 1]
    others = [pair[0] for pair in pairs if pair[0] != yes]
    if options.than == "its opposite":
        others = [no]
    if not others:
        raise DataError(
            "There is one finding alone, so no other to compare it with.", "Add one, or choose its opposite."
        )
    rows = network.text_rows([yes, *others])
    scans = torch.cat([tokens, network.usual[None].to(tokens)])
    shares = torch.stack([network.contributions(scans, row[None])[:, 0] for row in rows])
    seen, usual = (shares[0] - shares[1:].mean(0)).float()
    return seen - usual


def _range(values: Tensor) -> str:
    return f"{float(values.min()):.3f} (dark) to {float(values.max()):.3f} (bright)"


def written(network: Any, volume: Tensor, options: WrittenOptions, _generator: torch.Generator) -> Iterator[Frame]:
    """The report that the model writes, and the true one with what it lacks and what it has besides."""
    from training_backend.data.text import readable
    from training_backend.data.text import words as words_of
    from training_backend.evaluate.text_metrics import bleu, rouge_l
    from training_backend.nn.text_beam import Beam

    task = network.task
    ids = network.write(volume, Beam(task.beams, task.longest, task.block_trigrams))[0]
    found = network.words.decode(ids.int().tolist())
    mine, theirs = found.split(), words_of(options.text)
    if not theirs:
        text = readable(found) or "(The model wrote nothing.)"
        yield Frame((), "No report to compare with was given.", passages=[Passage((Piece(text),), "written")])
        return
    passages = [
        Passage(_marked(mine, theirs, "added"), "written"),
        Passage(_marked(theirs, mine, "missing"), "true"),
    ]
    scores = bleu([mine], [theirs])
    shared = 100 * rouge_l(mine, theirs)
    extra, lost = (sum(piece.kind != "plain" for piece in one.pieces) for one in passages)
    text = (
        f"BLEU-4 {scores[3]:.2f}, ROUGE-L {shared / 100:.2f}; {extra} words that the true report has not, "
        f"{lost} words of it that are not written."
    )
    yield Frame((), text, passages=passages)


def _marked(own: Sequence[str], other: Sequence[str], kind: Any) -> tuple[Piece, ...]:
    """Words of one text; those that stand elsewhere or not at all in the other one are of this kind."""
    matcher = difflib.SequenceMatcher(a=own, b=other, autojunk=False)
    same = {block.a + step for block in matcher.get_matching_blocks() for step in range(block.size)}
    ends = [index + 1 < len(own) and own[index + 1] == "." for index in range(len(own))]
    return tuple(
        Piece(word if ends[index] else f"{word} ", "plain" if index in same else kind) for index, word in enumerate(own)
    )


def _map(network: TextMatch, gate: Tensor, volume: Tensor) -> PreviewArray:
    """Gates [L] of the joined tokens as a smooth map over the scan."""
    import torch.nn.functional as F

    visual = network.visual
    assert visual is not None  # networks of tasks have one
    grid, order = visual.grid, visual.order
    array = gate.float().view([grid[axis] for axis in order]).permute(*(order.index(axis) for axis in range(3)))
    size = tuple(volume.shape[2:])
    steps = tuple(
        next(k for k in (8, 4, 2, 1) if k == 1 or (n % k == 0 and n // k >= 2 * side))
        for n, side in zip(size, grid, strict=True)
    )
    fine = tuple(n // step for n, step in zip(size, steps, strict=True))
    drawn = F.interpolate(array[None, None], size=fine, mode="trilinear", align_corners=False)[0, 0]
    limits = (float(gate.min()), max(float(gate.max()), float(gate.min()) + 1e-6))
    d, h, w = steps
    return PreviewArray("prompt", drawn.cpu().numpy(), "heatmap", voxels=(d, h, w), limits=limits)


def _at(texts: Sequence[str], index: int) -> str:
    return texts[index].strip() if index < len(texts) else ""


FINDINGS = ModelView(
    "findings",
    "Findings by words",
    "Probabilities of findings that are asked for by words; the words can be changed.",
    FindingsOptions,
    findings,
    needs="finetune",
    text="findings",
)
"""Of networks that compare texts with volumes."""
WRITTEN = ModelView(
    "written",
    "Written report",
    "The report that the model writes beside the true one, with what differs.",
    WrittenOptions,
    written,
    needs="finetune",
    text="report",
)
"""Of networks that write reports."""
