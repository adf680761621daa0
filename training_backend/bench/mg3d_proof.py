"""What MG-3D learns within minutes of one processor: words, voxels, where a finding is, which report fits which scan.

Generated chests may have consolidated lobes, which their reports name by side and place. Everything goes through the
product: ingest, run directories, the engine, the task of retrieval, and the views that look for words, before and after
it. What the gates of pre-training draw is chosen on cases that were learnt from; held-out cases are scored once.
Seconds are those of the processor.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from training_backend.bench.voco_proof import ENGINE, finished
from training_backend.config import IngestConfig, RunConfig
from training_backend.config.model import merged
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.data.phantom_shapes import Phantom, patient_axes
from training_backend.data.phantom_thorax import LUNG, NODULE, thorax_ct

if TYPE_CHECKING:
    from torch import Tensor

    from training_backend.nn.mg3d import Mg3d
    from training_backend.nn.text_match import TextMatch

    Scans = dict[str, tuple[Tensor, npt.NDArray[Any]]]

PARTS = ("losses", "pointing", "retrieval", "speaking")
SIZE = (64, 32, 64)
"""Voxels of a scan: four places, two high and two wide, which a lobe fills about one of."""
EASED: dict[str, Any] = {
    "method": {
        "feature_size": 4,
        "window": 2,
        "heads": (1, 2, 2, 4),
        "text": {"width": 64, "layers": 1, "longest": 64},
    },
    "data": {"size": SIZE, "workers": 0, "intensity": {"profile": "window", "low": -1000.0, "high": 400.0}},
    "optim": {"batch_size": 4, "lr": 2e-3},
    "engine": ENGINE,
}
"""Settings that learn within minutes."""
LOBES = tuple(f"{side} {place} lobe" for side in ("left", "right") for place in ("upper", "lower"))
BORDER_MM = 10.0
"""Height above the middle of the field of view that parts upper from lower lobes."""
HEIGHT_MM = 256.0
"""Of the field of view."""
SOFT_HU = 35
UNPLACED = "Impression: consolidation."
"""What reports say of consolidated lobes without their place."""
DRAWN = tuple(product(("text to scan", "scan to text"), ("first", "second", "both")))
"""Directions and layers of the gates that the view draws."""
STARTS = ("mg3d", "scratch")
"""Weights that retrieval starts from: those of the run, or random ones."""
CHOICE = 60
"""Questions about cases that were learnt from, by which a direction and layer is chosen."""


@dataclass(frozen=True)
class Question:
    """Words that are looked for in a scan, and where they are to be found.

    Attributes:
        case: of the scan.
        text: what is looked for.
        places: share of the finding's voxels in each place of the map.
    """

    case: str
    text: str
    places: npt.NDArray[np.float64]

    def right(self, gates: npt.NDArray[Any]) -> bool:
        """Whether the brightest place is the one that holds most of the finding."""
        return int(gates.ravel().argmax()) == int(self.places.ravel().argmax())


def main(
    output: Path,
    parts: tuple[str, ...] = PARTS,
    steps: int = 240,
    cases: int = 300,
    finetune_steps: int = 300,
    seeds: tuple[int, ...] = (0, 1, 2),
    starts: tuple[str, ...] = STARTS,
) -> dict[str, Any]:
    """Figures of each part.

    losses: of held-out cases, before and after. pointing: share of queries about a consolidated lobe of a held-out case
    whose heat map is brightest where most of it is, beside chance and random weights. retrieval: share of held-out
    reports whose own scan is found first, after ``finetune --task retrieval`` from the run and from random weights,
    beside chance. speaking: share of sentences about a consolidated lobe whose map of *Findings by words* is brightest
    where most of it is, with the networks of retrieval, beside chance and networks that learnt nothing.

    Args:
        output: folder of datasets and runs; what is there already is not trained again.
        parts: of `PARTS`.
        steps: of pre-training.
        cases: generated chests, a fifth of them held out.
        finetune_steps: of retrieval.
        seeds: of random weights, and of fine-tuning.
        starts: of fine-tuning, of `STARTS`; without "mg3d", pre-training is left out where no other part needs it.
    """
    output = Path(output).resolve()
    dataset = cohort(output, cases)
    config = pretrain_config("mg3d", "tiny", dataset, merged(EASED, {"optim": {"max_steps": steps}}))
    found: dict[str, Any] = {}
    if {"losses", "pointing"} & set(parts) or "mg3d" in starts:
        found |= {"processor_s": finished(config, output / "run"), "steps": steps}
    if "losses" in parts:
        found["losses"] = losses(config, output / "run")
    if "pointing" in parts:
        found["pointing"] = pointing(config, output / "run", seeds)
    if "retrieval" in parts:
        found["retrieval"] = _retrieval(dataset, output, finetune_steps, seeds, starts)
    if "speaking" in parts:
        found["speaking"] = speaking(config, output, finetune_steps, seeds, starts)
    return found


def consolidated(seed: int, shape: tuple[int, int, int]) -> Phantom:
    """A chest CT of none, one or two consolidated lobes, with a report that names them; labelled as the last class."""
    rng = np.random.default_rng([seed, 211])
    chest = thorax_ct(seed, shape, nodules=0)
    chosen = sorted(rng.choice(len(LOBES), rng.choice(3, p=(0.15, 0.6, 0.25)), replace=False))
    z, _, x = patient_axes(chest.volume.geometry)
    hu, labels = chest.volume.array.copy(), chest.labels.array.copy()
    lungs = labels == LUNG
    for index in chosen:
        side, upper = (x > 0) if index < 2 else (x < 0), (z > BORDER_MM) == (index % 2 == 0)
        lobe = lungs & side & upper
        hu[lobe] = np.rint(rng.normal(SOFT_HU, 15, int(lobe.sum())))
        labels[lobe] = NODULE
    said = [sentence(LOBES[index]) for index in chosen] or ["No consolidation."]
    report = chest.report.replace("No pulmonary nodule.", " ".join(said))
    classes = tuple(
        entry.model_copy(update={"name": "consolidation"}) if entry.index == NODULE else entry
        for entry in chest.classes
    )
    return Phantom(
        (replace(chest.volume, array=hu),),
        replace(chest.labels, array=labels),
        classes,
        f"{report} {UNPLACED}" if chosen else report,
        int(bool(chosen)),
    )


def cohort(output: Path, cases: int) -> Path:
    """Dataset of `consolidated` chests in `output`."""
    from training_backend.data.ingest import ingest
    from training_backend.data.phantoms import write_cohort

    if not (output / "data" / "dataset.json").exists():
        source = write_cohort(output / "cohort", cases, seed=3, shape=SIZE, kind=consolidated)
        ingest([source], output / "data", IngestConfig(crop_body=False, workers=0))
    return output / "data"


def losses(config: RunConfig, run: Path) -> dict[str, dict[str, float]]:
    """Mean losses of held-out cases, four at a time, and share of hidden words that are guessed, before and after."""
    import torch

    from training_backend.bench.voco_proof import labelled_views, made
    from training_backend.data.dataset import Dataset
    from training_backend.methods.base import Batch
    from training_backend.methods.mg3d import METHOD

    reports = {case.id: case.report for case in Dataset.open(config.data.dataset).cases()}
    scans = list(labelled_views(config, "val").items())
    groups = [scans[start : start + 4] for start in range(0, len(scans) - 3, 4)]
    found = {}
    for name, source in (("before", None), ("after", run)):
        network, generator, rows = made(config, source, config.seed), torch.Generator().manual_seed(0), []
        for group in groups:
            names = [case for case, _ in group]
            volumes = torch.cat([volume for _, (volume, _) in group])
            batch = Batch(volumes, names, extra={"texts": [reports[case] for case in names]})
            with torch.inference_mode():
                scalars = METHOD.training_step(network, batch, generator).scalars
            rows.append({key: float(value) for key, value in scalars.items()})
        found[name] = {key: round(float(np.mean([row[key] for row in rows])), 4) for key in rows[0]}
    return found


def pointing(config: RunConfig, run: Path, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Shares of held-out queries that are found, of the run and of random weights.

    "placed" queries are sentences of the report of a case; "one_of_two" are those of cases with two consolidated lobes.
    "unplaced" ones name no place and are asked of cases with one. "elsewhere" puts each placed query to a case without
    consolidation there: the share whose map is brightest at the place named all the same, which is what words do
    without the scan. Directions and layers of the gates are those that found most placed queries on cases that were
    learnt from, for random weights too.
    """
    from training_backend.bench.voco_proof import labelled_views, made
    from training_backend.data.dataset import Dataset

    scans = {split: labelled_views(config, split) for split in ("train", "val")}
    reports = {case.id: case.report for case in Dataset.open(config.data.dataset).cases()}
    asked = {
        "choice": _placed(scans["train"], reports)[:CHOICE],
        "placed": _placed(scans["val"], reports),
        "unplaced": _unplaced(scans["val"], reports),
    }
    alone = {question.case for question in asked["unplaced"]}
    asked["one_of_two"] = [question for question in asked["placed"] if question.case not in alone]
    asked["elsewhere"] = _elsewhere(asked["placed"], reports)
    volumes = {case: volume for split in scans.values() for case, (volume, _) in split.items()}
    most = np.bincount([int(question.places.argmax()) for question in asked["placed"]])
    return {
        "queries": {name: len(questions) for name, questions in asked.items()},
        "chance": round(1 / asked["placed"][0].places.size, 3),
        "best_blind_guess": round(float(most.max() / most.sum()), 3),
        "trained": pointed(made(config, run), volumes, asked),
        "random": [pointed(made(config, None, seed), volumes, asked) for seed in seeds],
    }


def pointed(network: Mg3d, volumes: dict[str, Tensor], asked: dict[str, list[Question]]) -> dict[str, Any]:
    """Share of each kind of question that is found with the gates that did best on those of "choice"."""
    shares = {drawn: _share(network, volumes, asked["choice"], drawn) for drawn in DRAWN}
    best = max(DRAWN, key=lambda drawn: shares[drawn])
    row: dict[str, Any] = {"gates": " ".join(best), "choice": round(shares[best], 3)}
    others = [name for name in asked if name != "choice"]
    return row | {name: round(_share(network, volumes, asked[name], best), 3) for name in others}


def _share(network: Mg3d, volumes: dict[str, Tensor], questions: list[Question], drawn: tuple[str, str]) -> float:
    """Share of the questions whose heat map, as the view "query" draws it, is brightest at the right place."""
    import torch

    from training_backend.methods.mg3d import METHOD

    view = next(view for view in METHOD.views if view.name == "query")
    right = []
    with torch.inference_mode():
        for one in questions:
            options = {"text": one.text, "looking": drawn[0], "layer": drawn[1], "smooth": False}
            (frame,) = view.draw(network, volumes[one.case], view.options.parse(options), torch.Generator())
            right.append(one.right(frame.pictures[0].array))
    return float(np.mean(right))


def _placed(scans: Scans, reports: dict[str, str]) -> list[Question]:
    """A question per consolidated lobe: the sentence of the report that names it."""
    found = []
    for case, (_, labels) in scans.items():
        for lobe in LOBES:
            text = sentence(lobe)
            if text in reports[case]:
                found.append(Question(case, text, shares(labels == NODULE, lobe)))
    return found


def _unplaced(scans: Scans, reports: dict[str, str]) -> list[Question]:
    """The same without a place, of cases with one consolidated lobe."""
    placed = _placed(scans, reports)
    counts = Counter(question.case for question in placed)
    return [replace(question, text=UNPLACED) for question in placed if counts[question.case] == 1]


def _elsewhere(placed: list[Question], reports: dict[str, str]) -> list[Question]:
    """Each question put to the next case whose report does not say so."""
    cases = list(dict.fromkeys(question.case for question in placed))
    found = []
    for question in placed:
        start = cases.index(question.case)
        others = [case for case in cases[start:] + cases[:start] if question.text not in reports[case]]
        found += [replace(question, case=case) for case in others[:1]]
    return found


def shares(mask: npt.NDArray[np.bool_], lobe: str) -> npt.NDArray[np.float64]:
    """Share of the voxels of `mask` [D, H, W] within `lobe` in each place [d, h, w] of 32 voxels."""
    from training_backend.nn.mg3d_encoders import TOKEN

    depth, _, width = mask.shape
    border = math.floor((depth - 1) / 2 + BORDER_MM * depth / HEIGHT_MM) + 1
    rows = slice(border, None) if "upper" in lobe else slice(border)
    columns = slice(width // 2, None) if "left" in lobe else slice(width // 2)
    inside = np.zeros(mask.shape)
    inside[rows, :, columns] = mask[rows, :, columns]
    d, h, w = (side // TOKEN for side in mask.shape)
    counts = inside.reshape(d, TOKEN, h, TOKEN, w, TOKEN).sum(axis=(1, 3, 5))
    return np.asarray(counts / max(counts.sum(), 1))


def sentence(lobe: str) -> str:
    """What a report says of a consolidated lobe."""
    return f"There is a consolidation in the {lobe}."


def speaking(
    config: RunConfig, output: Path, steps: int, seeds: tuple[int, ...], starts: tuple[str, ...]
) -> dict[str, Any]:
    """Shares of held-out sentences that are found by what speaks for them, with networks of retrieval.

    The view compares a sentence with those about the other lobes, and the scan with a usual one. "placed", "one_of_two"
    and "elsewhere" are those of `pointing`. "told_apart" is the share of the second kind of which the named lobe is
    brighter than the other consolidated one: a half for maps that show what is solid whatever is asked.
    "placed_interval" holds the share that was measured with a probability of 95 %. "untrained" networks know what a
    usual scan looks like, and nothing else.
    """
    import torch

    from training_backend.bench.voco_proof import labelled_views
    from training_backend.data.dataset import Dataset
    from training_backend.weights.load import load_model

    scans = {split: labelled_views(config, split) for split in ("train", "val")}
    reports = {case.id: case.report for case in Dataset.open(config.data.dataset).cases()}
    placed = _placed(scans["val"], reports)
    row: dict[str, Any] = {"queries": len(placed), "chance": round(1 / placed[0].places.size, 3)}
    for name in starts:
        for seed in seeds:
            folder = output / f"retrieval_{name}_{seed}"
            weights = str(output / "run") if name == "mg3d" else ""
            finished(matching(Path(config.data.dataset), weights, steps, seed), folder)
            network = load_model(folder).module.eval()
            row.setdefault(name, []).append(spoken(network, scans["val"], placed, reports))  # type: ignore[arg-type]
    for seed in seeds:
        fresh = _untrained(matching(Path(config.data.dataset), "", steps, seed))
        with torch.inference_mode():
            seen = [fresh.image_tokens(volume)[0] for volume, _ in scans["train"].values()]
            fresh.usual.copy_(torch.stack(seen).mean(0))
        row.setdefault("untrained", []).append(spoken(fresh, scans["val"], placed, reports))
    return row


def spoken(network: TextMatch, scans: Scans, placed: list[Question], reports: dict[str, str]) -> dict[str, Any]:
    """The shares of one network."""
    counts = Counter(question.case for question in placed)
    right, bright = [], []
    for question in placed:
        values = _speaks(network, scans[question.case][0], question)
        right.append(_found(values, question))
        others = [one for one in placed if one.case == question.case and one.text != question.text]
        mine = values.ravel()[int(question.places.argmax())]
        bright += [bool(mine > values.ravel()[int(one.places.argmax())]) for one in others]
    elsewhere = [_found(_speaks(network, scans[one.case][0], one), one) for one in _elsewhere(placed, reports)]
    both = [ok for ok, question in zip(right, placed, strict=True) if counts[question.case] > 1]
    return {
        "placed": round(float(np.mean(right)), 3),
        "placed_interval": interval(sum(right), len(right)),
        "one_of_two": round(float(np.mean(both)), 3),
        "told_apart": round(float(np.mean(bright)), 3),
        "pairs": len(bright),
        "elsewhere": round(float(np.mean(elsewhere)), 3),
    }


def _found(values: npt.NDArray[np.float64], question: Question) -> bool:
    """Whether a map finds what is asked for; one without a place that speaks for it does not."""
    return bool(values.max() > 0) and question.right(values)


def interval(right: int, number: int) -> tuple[float, float]:
    """Wilson's interval of 95 % of a share."""
    share, z = right / number, 1.96
    middle = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = z * math.sqrt(share * (1 - share) / number + z**2 / (4 * number**2)) / (1 + z**2 / number)
    return round(middle - half, 3), round(middle + half, 3)


def _speaks(network: TextMatch, volume: Tensor, question: Question) -> npt.NDArray[np.float64]:
    """Map of the view *Findings by words* as a mean over each place of the question."""
    import torch

    from training_backend.tasks.text_views import FINDINGS

    said = [sentence(lobe) for lobe in LOBES]
    asked = {"findings": LOBES, "present": said, "sentence": said.index(question.text) + 1}
    with torch.inference_mode():
        *_, frame = FINDINGS.draw(network, volume, FINDINGS.options.parse(asked), torch.Generator())
    (picture,) = frame.pictures
    d, h, w = question.places.shape
    array = np.asarray(picture.array, np.float64)
    depth, height, width = (size // parts for size, parts in zip(array.shape, (d, h, w), strict=True))
    return np.asarray(array.reshape(d, depth, h, height, w, width).mean(axis=(1, 3, 5)))


def _untrained(config: RunConfig) -> TextMatch:
    import torch

    from training_backend.config.registry import method
    from training_backend.tasks.retrieval import TASK

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = method(str(config.method.name)).build_encoder(config)
        return TASK.build(config, encoder).eval()  # type: ignore[return-value]


def _retrieval(
    dataset: Path, output: Path, steps: int, seeds: tuple[int, ...], starts: tuple[str, ...]
) -> dict[str, Any]:
    """Metrics of held-out reports and scans after fine-tuning, from the run and from random weights."""
    row: dict[str, Any] = {"steps": steps}
    for name in starts:
        for seed in seeds:
            folder = output / f"retrieval_{name}_{seed}"
            config = matching(dataset, str(output / "run") if name == "mg3d" else "", steps, seed)
            row[f"{name}_processor_s"] = finished(config, folder)
            row.setdefault(name, []).append(_recalled(folder, dataset))
    return row


def matching(dataset: Path, weights: str, steps: int, seed: int) -> RunConfig:
    """Settings of fine-tuning for retrieval from `weights`, or from random ones where these are empty."""
    changes = {
        "seed": seed,
        "weights": weights,
        "task": {"pool": 2, "reading": "mean", "text": EASED["method"]["text"]},
        "optim": {"max_steps": steps, "batch_size": 8, "lr": 2e-3, "layer_decay": 1.0},
    }
    eased = {name: EASED[name] for name in ("method", "data", "engine")}
    return finetune_config("retrieval", "tiny", dataset, "mg3d", merged(eased, changes))


def _recalled(run: Path, dataset: Path) -> dict[str, float]:
    from training_backend.evaluate.score import score_split

    metrics = {str(row[0]): float(row[1]) for row in score_split(run, dataset, "val").rows}
    wanted = ("recall_1", "chance_1", "recall_5", "chance_5")
    return {name: round(metrics[f"text_to_volume_{name}"], 3) for name in wanted}
