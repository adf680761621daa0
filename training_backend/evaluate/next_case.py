"""Which case to label next: where the model is least sure, or what is least like all that is labelled; with the reason.

Uncertainty is the mean entropy of the predicted classes over the body's voxels, as a share of the largest possible.
Diversity is the distance between mean tokens of the body under the encoder: the case is chosen that is farthest from
its nearest labelled one, then counts as labelled itself (k-centre, greedy), so a list never holds two of a kind.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from training_backend.errors import ConfigError, DataError, Med3dError
from training_backend.files import write_json
from training_backend.tasks.base import Cancelled, Progress

if TYPE_CHECKING:
    from pathlib import Path

    from training_backend.data.dataset import Dataset
    from training_backend.data.manifest import CaseRecord
    from training_backend.data.prepare import Prepared
    from training_backend.weights.load import LoadedModel

log = logging.getLogger(__name__)

By = Literal["uncertainty", "diversity", "both"]
VERSION = 1


@dataclass(frozen=True)
class Seen:
    """What a model makes of a case.

    Attributes:
        case_id: the case.
        vector: [E], mean token of the body; None where it was not asked for.
        entropy: mean entropy over the body, 0 to 1; None where it was not asked for.
    """

    case_id: str
    vector: npt.NDArray[np.float32] | None = None
    entropy: float | None = None


@dataclass(frozen=True)
class Choice:
    """A case to label, and why.

    Attributes:
        case_id: the case.
        reason: sentences with the numbers.
        entropy: see `Seen`.
        distance: to the nearest case that is labelled or chosen before, in mean distances between cases.
    """

    case_id: str
    reason: str
    entropy: float | None = None
    distance: float | None = None


def next_cases(
    model: LoadedModel,
    dataset: Dataset,
    by: By,
    count: int,
    *,
    device: str = "auto",
    progress: Progress | None = None,
) -> list[Choice]:
    """Cases without label map that are for training or unlabelled, the one to label first at the beginning.

    What the model makes of a case is kept on disk, so asking again costs what changed.

    Args:
        model: of segmentation, or for diversity any.
        dataset: opened dataset.
        by: what decides.
        count: at most so many.
        device: auto, cpu, cuda or cuda:N.
        progress: told the share done; answering False raises `Cancelled`.

    Raises:
        ConfigError: uncertainty of a model that does not segment.
        DataError: no case is left to label, or none could be looked at.
    """
    from training_backend.evaluate.feature_cache import model_hash
    from training_backend.evaluate.predict import chosen_device

    if by != "diversity" and (model.config.task is None or model.config.task.name != "segmentation"):
        raise ConfigError(
            "Only a segmentation model can say how unsure it is.", "Choose one that was fine-tuned, or by diversity."
        )
    usable = [case for case in [*dataset.cases("train"), *dataset.cases("unlabelled")] if case.images]
    left = [case for case in usable if case.label is None]
    if not left:
        raise DataError(f"Every training case of {dataset.info.name} has a label map.", "Add scans to label more.")
    model.module.to(chosen_device(device)).eval()
    key, seen = model_hash(model.module), []
    for done, case in enumerate(usable):
        if progress is not None and not progress(done / len(usable)):
            raise Cancelled
        if case.label is not None and by == "uncertainty":
            continue
        try:
            seen.append(_seen(model, dataset, case, key, vector=by != "uncertainty"))
        except Med3dError as error:
            log.warning("Case %s cannot be looked at: %s", case.id, error)
    ids = {case.id for case in left}
    candidates = [one for one in seen if one.case_id in ids]
    if not candidates:
        raise DataError("None of the unlabelled cases could be looked at.", "Look at: med3dssl data inspect.")
    return ranked(candidates, [one for one in seen if one.case_id not in ids], by, count)


def ranked(candidates: Sequence[Seen], labelled: Sequence[Seen], by: By, count: int) -> list[Choice]:
    """The first `count` of `candidates` in the order to label them; of equals the one that comes first.

    Args:
        candidates: at least one, with what `by` needs.
        labelled: cases whose distance counts.
        by: "both" takes the mean of the two ranks.
        count: at most so many.
    """
    left = list(candidates)
    chosen: list[Choice] = []
    vectors = _centred([*candidates, *labelled]) if by != "uncertainty" else {}
    near = [one.case_id for one in labelled]
    unit = _mean_distance(list(vectors.values()))
    entropy_rank = _ranks([one.entropy or 0.0 for one in candidates])
    rank_of = {one.case_id: rank for one, rank in zip(candidates, entropy_rank, strict=True)}
    while left and len(chosen) < count:
        found = [_nearest(one.case_id, near, vectors) for one in left] if vectors else []
        distance_rank = _ranks([distance for distance, _ in found])
        scores = {
            "uncertainty": [rank_of[one.case_id] for one in left],
            "diversity": distance_rank,
            "both": [rank_of[one.case_id] + rank for one, rank in zip(left, distance_rank, strict=False)],
        }[by]
        best = int(np.argmax(scores))
        one = left.pop(best)
        choice = Choice(one.case_id, "", None if by == "diversity" else one.entropy)
        told = [] if by == "diversity" else [_unsure(one, candidates)]
        if found:
            distance, other = found[best]
            distance = distance / unit if unit else 0.0
            told.append(_unlike(distance, other, {seen.case_id for seen in labelled}))
            choice = replace(choice, distance=distance if other else None)
            near.append(one.case_id)
        chosen.append(replace(choice, reason=" ".join(told)))
    return chosen


def _seen(model: LoadedModel, dataset: Dataset, case: CaseRecord, key: str, *, vector: bool) -> Seen:
    """What the model makes of a case, from the disk where it was computed before."""
    from training_backend.data.prepare import stored_input
    from training_backend.evaluate.feature_cache import cache_folder, content_hash

    unsure = case.label is None and model.config.task is not None and model.config.task.name == "segmentation"
    parts = [str(VERSION), key, model.profile.model_dump_json(), json.dumps([image.sha256 for image in case.images])]
    parts.append(json.dumps([case.store.get("geometry"), vector, unsure]))
    path = cache_folder().parent / "next" / f"{content_hash(*parts)}.json"
    kept = _kept(path)
    if kept is None:
        prepared = stored_input(dataset, case, model.profile)
        found = _vector(model, prepared) if vector else None
        kept = {"vector": None if found is None else found.tolist()}
        kept["entropy"] = mean_entropy(model, prepared) if unsure else None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, kept)
        except (OSError, Med3dError) as error:
            log.warning("What was computed could not be kept: %s", error)
    values = kept["vector"]
    return Seen(case.id, None if values is None else np.asarray(values, np.float32), kept["entropy"])


def mean_entropy(model: LoadedModel, prepared: Prepared) -> float:
    """Mean entropy of the classes that a segmentation model gives the voxels of the body, 0 to 1."""
    import torch

    from training_backend.data.body import find_body
    from training_backend.evaluate.sliding import predict_probabilities
    from training_backend.tasks.segmentation import predictor, tiling

    volume = torch.from_numpy(np.ascontiguousarray(prepared.array))[None]
    shares = predict_probabilities(predictor(model.module, model.config), volume, tiling(model.config, volume))
    body = find_body(prepared.array[0], prepared.geometry.spacing_mm)
    coarse = tuple(slice(None, None, step) for step in body.stride)
    total = np.zeros(int(np.count_nonzero(body.mask)))
    for share in shares:
        p = np.clip(share[coarse].float().numpy()[body.mask].astype(float), 1e-12, 1.0)
        total -= p * np.log(p)
    return float(total.mean() / math.log(len(shares)))


def _vector(model: LoadedModel, prepared: Prepared) -> npt.NDArray[np.float32]:
    from training_backend.evaluate.features import body_tokens, map_tiles, token_features

    tokens = token_features(model.encoder, prepared, model.profile, overlap=0.0)
    tiles = map_tiles(model.encoder, prepared.geometry.shape, model.profile, 0, 0.0)[0]
    body = body_tokens(prepared, tiles)
    inside = tokens.values[body] if body.any() else tokens.values.reshape(-1, tokens.values.shape[-1])
    mean: npt.NDArray[np.float32] = inside.astype(np.float32).mean(axis=0)
    return mean


def _kept(path: Path) -> dict[str, Any] | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) and {"vector", "entropy"} <= set(kept) else None


def _centred(cases: Sequence[Seen]) -> dict[str, npt.NDArray[np.float32]]:
    stacked = np.stack([one.vector for one in cases if one.vector is not None])
    return {one.case_id: vector for one, vector in zip(cases, stacked - stacked.mean(axis=0), strict=True)}


def _mean_distance(vectors: Sequence[npt.NDArray[np.float32]]) -> float:
    """Mean distance between two different ones; 0 for fewer than two."""
    if len(vectors) < 2:
        return 0.0
    stacked = np.stack(vectors)
    sums = sum(float(np.linalg.norm(stacked - one, axis=1).sum()) for one in stacked)
    return sums / (len(vectors) * (len(vectors) - 1))


def _nearest(case: str, near: Sequence[str], vectors: dict[str, npt.NDArray[np.float32]]) -> tuple[float, str]:
    """Distance to the nearest of `near` and its name; without any, the nearer to the middle the larger a number."""
    own = vectors[case]
    if not near:
        return -float(np.linalg.norm(own)), ""
    distances = [float(np.linalg.norm(own - vectors[other])) for other in near]
    best = int(np.argmin(distances))
    return distances[best], near[best]


def _ranks(values: Sequence[float]) -> list[float]:
    """For each value the share of the others that are smaller, 0 to 1."""
    return [sum(other < value for other in values) / max(1, len(values) - 1) for value in values]


def _unsure(one: Seen, candidates: Sequence[Seen]) -> str:
    entropy = one.entropy or 0.0
    place = 1 + sum((other.entropy or 0.0) > entropy for other in candidates)
    return (
        f"The model is unsure of {100 * entropy:.2g} % (mean entropy over the body), "
        f"place {place} of {len(candidates)} unlabelled cases."
    )


def _unlike(distance: float, other: str, labelled: set[str]) -> str:
    if not other:
        return "No case is labelled yet, and this one is most like all others."
    which = f"{other}, the nearest labelled case" if other in labelled else f"{other}, which is higher in this list"
    return f"It is {distance:.2f} times the usual distance of two cases away from {which}."
