"""What an encoder still knows of the modalities that earlier stages taught it.

After each stage every modality so far is asked the same: the loss of fixed held-out cases with the same cases, parts
and words hidden each time, under the decoder of its own stage; and, where cases have a class, whether their nearest
neighbours tell it. A row of the table is one modality after one stage. `forgotten` is how much higher the loss is than
right after the modality was taught.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training_backend.config import RunConfig
from training_backend.config.plan import ProbeConfig
from training_backend.config.registry import method as find_method
from training_backend.data.dataset import Dataset
from training_backend.errors import DataError, Med3dError
from training_backend.evaluate.rehearse import Progress, case_features, fixed_views
from training_backend.files import write_json, write_text
from training_backend.weights.decoders import Decoder, kept, with_decoder
from training_backend.weights.source import open_source

if TYPE_CHECKING:
    from torch import nn

    from training_backend.data.manifest import CaseRecord

JSON, TABLE = "forgetting.json", "forgetting.csv"
_NOISE = 71  # sets its random numbers apart
_MOST_TRAINING = 512
"""Training cases whose classes are the neighbours' votes."""


@dataclass(frozen=True)
class Row:
    """What is known of a modality after a stage.

    Attributes:
        stage: modality that the stage taught, `number` counted from 1.
        modality: that was asked.
        loss: of hidden patches or words; None where it could not be measured.
        forgotten: loss minus that right after the modality was taught.
        accuracy: balanced accuracy of the nearest neighbours, None without classes; `chance` is what guessing gives.
        cases: how many were asked, of `split`.
        note: why something could not be measured.
    """

    number: int
    stage: str
    modality: str
    loss: float | None = None
    forgotten: float | None = None
    accuracy: float | None = None
    chance: float | None = None
    cases: int = 0
    split: str = ""
    note: str = ""


def probe(
    folder: Path,
    settings: ProbeConfig,
    *,
    source: str | Path = "",
    previous: Path | None = None,
    device: str = "cpu",
    progress: Progress = lambda done, total: None,
) -> list[Row]:
    """Ask the model of a stage about all modalities whose decoders it keeps; answers all rows so far.

    Args:
        folder: run of the stage, which gets ``forgetting.json`` and ``forgetting.csv``.
        settings: how much is asked.
        source: the model, where it is not in `folder`.
        previous: run whose rows come before these.
        device: where the networks run.
        progress: told the modalities that are done.
    """
    model, decoders = open_source(source or folder), kept(folder)
    method: Any = model.config.method
    earlier = [] if previous is None else read(previous)
    taught = {row.modality: row.loss for row in earlier if row.stage == row.modality}
    number = 1 + max((row.number for row in earlier), default=0)
    rows = []
    for done, decoder in enumerate(decoders.values()):
        progress(done, len(decoders))
        try:
            found = _asked(with_decoder(model, decoder), decoder, settings, device)
        except Med3dError as error:
            found = {"note": str(error)}
        loss, before = found.get("loss"), taught.get(decoder.modality)
        if loss is not None:
            before = loss if decoder.modality == method.modality else before
            found["forgotten"] = None if before is None else loss - before
        rows.append(Row(number, method.modality, decoder.modality, **found))
    write([*earlier, *rows], folder)
    return [*earlier, *rows]


def read(folder: Path) -> list[Row]:
    """Rows of a run or a plan; none where nothing was measured."""
    path = Path(folder) / JSON
    if not path.is_file():
        return []
    try:
        return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error}.", "Remove it; the next stage writes it anew.") from error


def write(rows: Sequence[Row], folder: Path) -> None:
    """``forgetting.json`` and the same as ``forgetting.csv``."""
    write_json(Path(folder) / JSON, {"schema": 1, "rows": [asdict(row) for row in rows]})
    stream = io.StringIO()
    table = csv.DictWriter(stream, [field.name for field in fields(Row)], lineterminator="\n")
    table.writeheader()
    table.writerows({key: "" if value is None else value for key, value in asdict(row).items()} for row in rows)
    write_text(Path(folder) / TABLE, stream.getvalue())


def mean_forgotten(rows: Iterable[Row]) -> float | None:
    """Mean of `forgotten` over the earlier modalities after the last stage; None with a single stage."""
    listed = list(rows)
    last = max((row.number for row in listed), default=0)
    values = [
        row.forgotten
        for row in listed
        if row.number == last and row.modality != row.stage and row.forgotten is not None
    ]
    return sum(values) / len(values) if values else None


def _asked(network: nn.Module, decoder: Decoder, settings: ProbeConfig, device: str) -> dict[str, Any]:
    config = decoder.config
    split = _split(config)
    found: dict[str, Any] = {"split": split, **_loss(network.to(device), config, split, settings.cases, device)}
    if settings.neighbours:
        found |= _neighbours(network, config, split, settings, device)
    return found


def _split(config: RunConfig) -> str:
    held_out = Dataset.open(config.data.dataset).cases(split="val")
    text = config.data.view == "text"
    return "val" if any(case.has("text") if text else case.images for case in held_out) else "train"


def _loss(network: nn.Module, config: RunConfig, split: str, most: int, device: str) -> dict[str, Any]:
    """Mean loss over the first views of a split, whose hidden parts depend on their places alone."""
    import torch

    from training_backend.data.views import generator

    step = find_method(config.method.name).training_step
    loader = fixed_views(config, split)
    loader.cases = loader.cases[:most]
    loader.visits = len(loader.cases)
    total = weight = 0.0
    seen: set[str] = set()
    with torch.inference_mode():
        for views in loader.batches():
            if not len(views):
                continue
            draws = torch.Generator().manual_seed(int(generator(views.step, _NOISE).integers(2**62)))
            output = step(network, loader.to_batch(views, device), draws)
            count = output.counts.get("loss", len(views))
            total, weight = total + float(output.loss) * count, weight + count
            seen |= set(views.case_ids)
    if not weight:
        raise DataError("None of the held-out cases could be read.", "Is the dataset still in its place?")
    return {"loss": total / weight, "cases": len(seen)}


def _neighbours(
    network: nn.Module, config: RunConfig, split: str, settings: ProbeConfig, device: str
) -> dict[str, Any]:
    """Balanced accuracy of the nearest training cases by cosine, where cases of both splits have one class each."""
    if split == "train" or not all(_classes(config, each) for each in ("train", "val")):
        return {}
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.neighbors import KNeighborsClassifier

    rows = {}
    for each, most in (("train", _MOST_TRAINING), ("val", settings.cases)):
        features, cases = case_features(network, config, device, each, most)
        known = [index for index, case in enumerate(cases) if _class(case) is not None]
        rows[each] = features[known], np.array([_class(cases[index]) for index in known])
    (x, y), (x_val, y_val) = rows["train"], rows["val"]
    if len(set(y.tolist())) < 2 or len(set(y_val.tolist())) < 2:
        return {}
    model = KNeighborsClassifier(min(settings.neighbours, len(y)), metric="cosine").fit(x, y)
    score = float(balanced_accuracy_score(y_val, model.predict(x_val)))
    return {"accuracy": score, "chance": 1 / len(set(y.tolist()) | set(y_val.tolist()))}


def _classes(config: RunConfig, split: str) -> set[int]:
    cases = Dataset.open(config.data.dataset).cases(split=split)  # type: ignore[arg-type]
    return {found for case in cases if (found := _class(case)) is not None}


def _class(case: CaseRecord) -> int | None:
    target = case.target
    return int(target[0]) if target is not None and len(target) == 1 and float(target[0]).is_integer() else None
