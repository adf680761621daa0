"""What MG-3D's networks show: sentences and words that light up in the scan, hidden voxels and words, patients."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from pydantic import Field

from training_backend.config import ConfigModel, ui
from training_backend.methods.base import Frame, ModelView, Passage, Piece, PreviewArray, ReportedCase

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from training_backend.nn.mg3d import Mg3d
    from training_backend.nn.reports import Reports

_HIDDEN = ui(hidden=True)
_SLIDER = ui(widget="slider")
FINE = 4
"""Voxels along each axis of an element of a smooth map."""
FAINT = 1e-3
"""Difference of gates below which a map is not worth looking at."""
LONGEST = 20_000
"""Letters of a text that a view takes."""
_CASES = 12
"""Cases that are compared at most; more do not fit on a screen."""

Layer = Literal["both", "first", "second"]
Looking = Literal["text to scan", "scan to text"]


class GateOptions(ConfigModel):
    """Which gates are drawn."""

    text: str = Field("", max_length=LONGEST, json_schema_extra=_HIDDEN)
    """What is looked for in the scan."""
    layer: Layer = "both"
    """Layer of gates; both gives their mean."""
    looking: Looking = "text to scan"
    """text to scan: how much the text attends to each place. scan to text: how much each place attends to the text."""
    smooth: bool = True
    """Interpolate between the places that the network has, which are 32 voxels wide."""


class SentenceOptions(GateOptions):
    """Which sentence or word of a report is drawn."""

    sentence: int = Field(1, ge=1, json_schema_extra=_HIDDEN)
    """Number of the sentence."""
    word: int = Field(0, ge=0, json_schema_extra=_HIDDEN)
    """Number of a word of it; 0 takes the whole sentence."""


class VoxelOptions(ConfigModel):
    """What is hidden of the scan."""

    text: str = Field("", max_length=LONGEST, json_schema_extra=_HIDDEN)
    """Report that helps to draw what is hidden."""
    mask_ratio: float = Field(0.5, ge=0.05, le=0.95, json_schema_extra=_SLIDER)
    """Share of hidden blocks of 16 x 16 x 16 voxels."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Number that decides which blocks are hidden."""


class WordOptions(ConfigModel):
    """What is hidden of the report."""

    text: str = Field("", max_length=LONGEST, json_schema_extra=_HIDDEN)
    """Report of the scan."""
    word_ratio: float = Field(0.15, ge=0.05, le=0.95, json_schema_extra=_SLIDER)
    """Share of hidden tokens."""
    guesses: int = Field(5, ge=1, le=20)
    """Likeliest words that are told of each hidden one."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Number that decides which words are hidden."""


class PatientOptions(ConfigModel):
    """Which cases are compared."""


def sentence_gates(
    network: Mg3d, volume: Tensor, options: SentenceOptions, generator: torch.Generator
) -> Iterator[Frame]:
    """Gates between the scan and one sentence, or one word, of its report; and how much each sentence counts.

    Sentences: gates of the pass that aligns scan and report. Words: those of the pass that guesses words, with nothing
    hidden. Both are independent sigmoids, so a map says which places are open to a text, not how they share it.
    """
    from training_backend.errors import DataError

    said = _sentences(network, options.text)
    reports = _read(network, [said], generator, padded=bool(options.word))
    kept = int(reports.present.sum())
    if options.sentence > kept:
        raise DataError(f"The report has {kept} sentences that are read, so sentence {options.sentence} is none.")
    tokens, texts, grid = _looked(network, volume), network.read(reports, hidden=False), _grid(volume)
    passages = [
        Passage(tuple(Piece(part) for part, _ in _words(network, sentence)), str(number), value)
        for number, (sentence, value) in enumerate(
            zip(said[:kept], _relevance(network, tokens, texts, reports, grid), strict=True), 1
        )
    ]
    if not options.word:
        pairs = network.wholes(tokens, texts, reports, grid).gates
        gate = _reduced(
            [(one[0, :, options.sentence - 1], two[0, options.sentence - 1]) for one, two in pairs], options
        )
        what = f"sentence {options.sentence}"
    else:
        place = _places(network, reports, said, options)
        pairs = network.words(texts, reports, tokens, grid).gates
        gate = _reduced([(two[0][:, place].mean(1), one[0][place].mean(0)) for one, two in pairs], options)
        what = f"word {options.word} of sentence {options.sentence}"
    yield Frame(
        [_map("gates", gate, grid, options)], f"{what.capitalize()} of {kept}. {_ranging(gate)}.", passages=passages
    )


def query(network: Mg3d, volume: Tensor, options: GateOptions, generator: torch.Generator) -> Iterator[Frame]:
    """Gates between the scan and free words, taken as the only sentence of a report.

    What the image encoder makes of the scan is remembered, so the next words take as long as reading them.
    """
    text = " ".join(options.text.split())
    _refuse_silence(text, "Nothing to look for was entered.", "Type a finding, such as: nodule in the left lung.")
    reports = _read(network, [[text]], generator)
    grid = _grid(volume)
    tokens = _looked(network, volume)
    pairs = network.wholes(tokens, network.read(reports, hidden=False), reports, grid).gates
    gate = _reduced([(one[0, :, 0], two[0, 0]) for one, two in pairs], options)
    unknown = _unknown(network, reports)
    hint = f" {unknown} of its tokens are no words that the model knows." if unknown else ""
    yield Frame([_map("query", gate, grid, options)], f"{_ranging(gate)}.{hint}")


def voxels(network: Mg3d, volume: Tensor, options: VoxelOptions, generator: torch.Generator) -> Iterator[Frame]:
    """Hidden blocks as the network draws them with the help of the report (MG-3D, masked image modelling)."""
    from training_backend.methods.mg3d import preview

    _sentences(network, options.text)
    given = {"report": options.text, "mask_ratio": options.mask_ratio, "seed": options.seed}
    pictures = preview(network, volume, given, generator)
    error = next(one.array for one in pictures if one.name == "error")
    hidden = next(one.array for one in pictures if one.name == "mask").mean()
    text = (
        f"{hidden:.0%} of the blocks are hidden. Mean error inside them, as a share of the range of intensities: "
        f"{error.mean() / max(hidden, 1e-9):.3f}."
    )
    yield Frame([one for one in pictures if one.name != "mask"], text)


def words(network: Mg3d, volume: Tensor, options: WordOptions, generator: torch.Generator) -> Iterator[Frame]:
    """Hidden words of the report as the network guesses them with the help of the scan (masked language modelling)."""
    from training_backend.nn.reports import IGNORED

    said = _sentences(network, options.text)
    reports = _read(network, [said], generator, options.word_ratio, padded=True)
    found = network.words(network.read(reports), reports, _looked(network, volume), _grid(volume))
    labels, sure = reports.labels[0], found.logits[0].float().softmax(-1)
    passages, right, hidden = [], 0, 0
    for number in range(int(reports.present.sum())):
        places = (reports.sentence[0] == number + 1).nonzero()[:, 0]
        pieces = []
        for part, members in _words(network, said[number], len(places)):
            here = [place for place in places[members].tolist() if labels[place] != IGNORED]
            if not here:
                pieces.append(Piece(part))
                continue
            good = [int(sure[place].argmax()) == int(labels[place]) for place in here]
            right, hidden = right + sum(good), hidden + len(good)
            told = " | ".join(_guesses(network, sure[place], options.guesses) for place in here)
            pieces.append(Piece(part, "right" if all(good) else "wrong", told))
        passages.append(Passage(tuple(pieces), str(number + 1)))
    text = f"{right} of {hidden} hidden tokens are guessed right; what was guessed in place of each is told with it."
    yield Frame((), text, passages=passages)


def patients(
    network: Mg3d,
    _volume: Tensor,
    _options: PatientOptions,
    generator: torch.Generator,
    *,
    cases: Sequence[ReportedCase],
) -> Iterator[Frame]:
    """Cosines of the sentences of several patients, as texts and as the scans show them, and of whole cases.

    Sentences with a cosine of at least 0.9 as texts count as saying the same and shall look alike in the scans; up to
    0.6 they count as different (soft-target similarity matching).
    """
    import torch
    import torch.nn.functional as F

    from training_backend.errors import DataError
    from training_backend.nn.mg3d_heads import ALIKE, TEMPERATURE, UNLIKE

    if not 2 <= len(cases) <= _CASES:
        raise DataError(f"{len(cases)} cases cannot be compared.", f"Choose 2 to {_CASES}.")
    tokens = []
    for done, case in enumerate(cases, 1):
        _sentences(network, case.report)
        tokens.append(network.look(case.volume))
        yield Frame((), share=done / (len(cases) + 1))
    grid = _grid(cases[0].volume)
    if any(_grid(case.volume) != grid for case in cases):
        raise DataError("The views of these cases differ in size.", "Choose cases of one size.")
    said = [_sentences(network, case.report) for case in cases]
    reports = _read(network, said, generator)
    texts = network.read(reports, hidden=False)
    found = network.wholes(torch.cat(tokens), texts, reports, grid)
    there = reports.present
    wanted, seen = (_cosines(rows[there]) for rows in (texts.alone, found.sentences))
    counts = there.sum(1).tolist()
    names = tuple(f"{case.id} · {k}" for case, n in zip(cases, counts, strict=True) for k in range(1, n + 1))
    whole = tuple(case.id for case in cases)
    bands = (wanted >= ALIKE).int() - (wanted <= UNLIKE).int()
    apart = F.one_hot(torch.arange(len(cases)).repeat_interleave(torch.tensor(counts))).float()
    other = (apart @ apart.T == 0).to(wanted.device)
    pictures = [
        _matrix("sentences as texts", wanted, names, (0.0, 1.0)),
        _matrix("sentences as the scans show them", seen, names, (-1.0, 1.0)),
        _matrix("same (1), between (0), different (-1)", bands.float(), names, (-1.0, 1.0)),
        _matrix("cases: own summaries beside those that looked", found.cross_logits * TEMPERATURE, whole, (-1.0, 1.0)),
    ]
    passages = [
        Passage((Piece(sentence),), f"{case.id} · {k}")
        for case, one, n in zip(cases, said, counts, strict=True)
        for k, sentence in enumerate(one[:n], 1)
    ]
    yield Frame(pictures, _matched(wanted, seen, bands, other), passages=passages)


def _matched(wanted: Tensor, seen: Tensor, bands: Tensor, other: Tensor) -> str:
    """Mean cosines in the scans of what says the same, and of what says different things, between patients."""
    told = []
    for value, what in ((1, "say the same"), (-1, "say different things")):
        chosen = other & (bands == value)
        if chosen.any():
            mean = float(seen[chosen].mean())
            told.append(f"{int(chosen.sum()) // 2} pairs of sentences of different patients {what}: {mean:.2f}")
    return f"Mean cosine in the scans: {'; '.join(told)}." if told else "No two sentences of different patients agree."


def _matrix(name: str, values: Tensor, names: tuple[str, ...], limits: tuple[float, float]) -> PreviewArray:
    array = values.float().cpu().numpy()
    return PreviewArray(name, array, "matrix", limits=limits, sides=("row", "column"), names=(names, names))


def _cosines(rows: Tensor) -> Tensor:
    import torch.nn.functional as F

    unit = F.normalize(rows.float(), dim=-1, eps=1e-8)
    return unit @ unit.T


def _relevance(network: Mg3d, tokens: Tensor, texts: Any, reports: Reports, grid: tuple[int, int, int]) -> list[float]:
    """Gate of each sentence where the image gathers its summary from them, a mean over both layers."""
    from training_backend.nn.mg3d import sentence_means

    present = reports.present
    rows = sentence_means(texts.whole, reports)
    summary = network.uni_modal_vision_pooler(network.image(tokens), grid)
    found = []
    for gate in network.agg_img_cross_attention:
        found.append(gate.weights(rows, summary[:, None])[0, 0])  # type: ignore[operator]
        rows = gate.each(rows, summary)  # type: ignore[operator]
        summary = network.multi_modal_agg_vision_pooler(rows, present)
    mean = sum(found) / len(found)
    return [float(value) for value in mean[present[0]]]


def _reduced(pairs: Sequence[tuple[Tensor, Tensor]], options: GateOptions) -> Tensor:
    """Gates [L] of the layers and the direction asked for; each pair is (scan to text, text to scan)."""
    import torch

    chosen = {"first": pairs[:1], "second": pairs[1:], "both": pairs}[options.layer]
    return torch.stack([pair[options.looking == "text to scan"] for pair in chosen]).mean(0).float()


def _map(name: str, gate: Tensor, grid: tuple[int, int, int], options: GateOptions) -> PreviewArray:
    import torch.nn.functional as F

    from training_backend.nn.mg3d_encoders import TOKEN

    array, side = gate.view(1, 1, *grid), TOKEN
    if options.smooth:
        array, side = F.interpolate(array, scale_factor=TOKEN // FINE, mode="trilinear", align_corners=False), FINE
    low, high = float(gate.min()), float(gate.max())
    limits = (low, max(high, low + 1e-6))
    return PreviewArray(name, array[0, 0].cpu().numpy(), "heatmap", voxels=(side, side, side), limits=limits)


def _ranging(gate: Tensor) -> str:
    low, high = float(gate.min()), float(gate.max())
    faint = ", which differ so little that they tell no place" if high - low < FAINT else ""
    return f"Gates from {low:.4f} (dark) to {high:.4f} (bright){faint}"


def _places(network: Mg3d, reports: Reports, said: Sequence[str], options: SentenceOptions) -> Tensor:
    """Places in the report of the tokens of the word asked for."""
    from training_backend.errors import DataError

    places = (reports.sentence[0] == options.sentence).nonzero()[:, 0]
    found = _words(network, said[options.sentence - 1], len(places))
    if options.word > len(found):
        raise DataError(f"Sentence {options.sentence} has {len(found)} words that are read, not {options.word}.")
    return places[found[options.word - 1][1]]


def _words(network: Mg3d, sentence: str, tokens: int | None = None) -> list[tuple[str, list[int]]]:
    """Words of a sentence with the blanks behind them, and the numbers of the tokens of each; of the first `tokens`."""
    lower = sentence.lower()
    shown = sentence if len(sentence) == len(lower) else lower
    _, parts = network.tokeniser.pieces(lower)
    spans = network.tokeniser.spans(lower)
    parts = parts[:tokens]
    found: list[tuple[int, list[int]]] = []
    for index, part in enumerate(parts):
        if index and part == parts[index - 1]:
            found[-1][1].append(index)
        else:
            found.append((spans[index][0], [index]))
    ends = [start for start, _ in found[1:]] + [len(shown) if len(parts) == len(spans) else spans[len(parts)][0]]
    return [(shown[start:end], members) for (start, members), end in zip(found, ends, strict=True)]


def _guesses(network: Mg3d, sure: Tensor, number: int) -> str:
    values, ids = sure.topk(min(number, len(sure)))
    name = network.tokeniser.backend.id_to_token
    return ", ".join(f"{name(int(i))} {float(value):.0%}" for value, i in zip(values, ids, strict=True))


def _unknown(network: Mg3d, reports: Reports) -> int:
    """Tokens that stand for words which the vocabulary lacks."""
    numbers = {network.tokeniser.backend.token_to_id(name) for name in ("[UNK]", "<unk>")} - {None}
    return sum(int((reports.ids == number).sum()) for number in numbers)


def _sentences(network: Mg3d, text: str) -> list[str]:
    from training_backend.data.text import sentences

    found = sentences(text, network.settings.level)
    advice = "Paste the report, or open a case of a dataset with reports; on the command line give --report FILE."
    _refuse_silence(found, "There is no report with a sentence to look at.", advice)
    return found


def _refuse_silence(said: object, sentence: str, advice: str) -> None:
    from training_backend.errors import DataError

    if not said:
        raise DataError(sentence, advice)


def _read(
    network: Mg3d,
    said: Sequence[Sequence[str]],
    generator: torch.Generator,
    hidden: float = 0.15,
    *,
    padded: bool = False,
) -> Reports:
    """Reports as the network was trained to read them; padding, which words see and sentences do not, on wish alone."""
    from training_backend.nn.reports import read_reports

    device = next(network.parameters()).device
    fill = padded and network.settings.all_padding
    return read_reports(said, network.tokeniser, generator, hidden=hidden, padded=fill).to(device)


_seen: WeakKeyDictionary[Any, tuple[tuple[str, int], Tensor]] = WeakKeyDictionary()
"""What each network saw last: a name of the volume and of the weights, and the tokens."""


def _looked(network: Mg3d, volume: Tensor) -> Tensor:
    """Tokens of a volume, remembered for the last one that a network looked at."""
    digest = hashlib.blake2b(volume.cpu().numpy().tobytes(), digest_size=16).hexdigest()
    key = (f"{tuple(volume.shape)} {digest}", sum(one._version for one in network.vision_encoder.parameters()))
    kept = _seen.get(network)
    if kept is None or kept[0] != key:
        kept = (key, network.look(volume))
        _seen[network] = kept
    return kept[1]


def _grid(volume: Tensor) -> tuple[int, int, int]:
    from training_backend.methods.mg3d import token_grid

    return token_grid(volume)


VIEWS = (
    ModelView(
        "sentences",
        "Sentences in the scan",
        "Click a sentence of the report, or a word of it: which places of the scan are open to it.",
        SentenceOptions,
        sentence_gates,
        text="report",
    ),
    ModelView(
        "query",
        "Look for words",
        "Type what to look for: which places of the scan are open to it.",
        GateOptions,
        query,
        text="query",
    ),
    ModelView(
        "voxels",
        "Hidden blocks",
        "Blocks of the scan are hidden, and drawn with the help of the rest and of the report.",
        VoxelOptions,
        voxels,
        text="report",
    ),
    ModelView(
        "words",
        "Hidden words",
        "Words of the report are hidden, and guessed with the help of the rest and of the scan.",
        WordOptions,
        words,
        text="report",
    ),
    ModelView(
        "patients",
        "Patients beside each other",
        "Which sentences of several cases say the same, and whether their scans look alike there.",
        PatientOptions,
        patients,
        cases=True,
    ),
)
