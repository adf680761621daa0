"""All cases of datasets as points: what an encoder makes of each, on two axes, with what is odd and what comes twice.

A case is the mean token of its body, a region the mean token of the places that its label map gives to a class. Points
lie on the two principal axes, and, where umap-learn is installed, on the plane of UMAP (McInnes et al., 2018).
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from training_backend.errors import ConfigError, DataError, Med3dError
from training_backend.files import atomic
from training_backend.tasks.base import Cancelled, Progress

if TYPE_CHECKING:
    from training_backend.data.dataset import Dataset
    from training_backend.data.manifest import CaseRecord
    from training_backend.weights.load import LoadedModel

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Odd = tuple[int, float]
Twins = tuple[int, int, float]
VERSION = 1
NEIGHBOURS = 5
FAR = 3.5
"""Robust standard deviations above the median distance to the neighbours from which a point is odd."""
TWIN = 0.1
"""Share of the median distance to the nearest neighbour below which two cases count as the same."""
FEWEST_FOR_UMAP = 4


@dataclass(frozen=True)
class CohortFeatures:
    """What an encoder makes of cases.

    Attributes:
        datasets: [N], number of the dataset of each point.
        cases: [N], ids.
        regions: [N], names of classes; empty text for whole cases.
        vectors: [N, E].
        problems: a sentence for each case that could not be looked at.
    """

    datasets: list[int]
    cases: list[str]
    regions: list[str]
    vectors: Floats
    problems: list[str]


def cohort_features(
    model: LoadedModel,
    datasets: Sequence[Dataset],
    *,
    regions: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> CohortFeatures:
    """Mean tokens of all cases with pictures, excluded ones left out; from the disk where they were computed before.

    Args:
        model: any with an encoder.
        datasets: opened; their contrasts must be those that the model knows.
        regions: the classes of label maps in place of whole cases.
        device: auto, cpu, cuda or cuda:N.
        progress: told the share done; answering False raises `Cancelled`.

    Raises:
        DataError: there is no such case, or none could be looked at.
    """
    from training_backend.evaluate.feature_cache import model_hash
    from training_backend.evaluate.predict import chosen_device

    model.module.to(chosen_device(device)).eval()
    key, problems = model_hash(model.module), []
    numbers: list[int] = []
    cases: list[str] = []
    names: list[str] = []
    vectors: list[Floats] = []
    wanted = [(n, case) for n, dataset in enumerate(datasets) for case in dataset.cases() if case.images]
    wanted = [(n, case) for n, case in wanted if case.label is not None or not regions]
    if not wanted:
        raise DataError("There is no case with a label map." if regions else "There is no case with a scan.")
    for done, (number, case) in enumerate(wanted):
        if progress is not None and not progress(done / len(wanted)):
            raise Cancelled
        dataset = datasets[number]
        try:
            found = _vectors(model, dataset, case, key, regions)
        except Med3dError as error:
            problems.append(f"{case.id}: {error.sentence}")
            continue
        known = {str(entry.index): entry.name for entry in dataset.info.classes}
        for value, vector in found.items():
            numbers.append(number)
            cases.append(case.id)
            names.append(known.get(value, f"class {value}") if value else "")
            vectors.append(vector)
    if not vectors:
        raise DataError(
            f"None of the {len(wanted)} cases could be looked at. The first: {problems[0]}"
            if problems
            else "No labelled region is as large as a token."
        )
    return CohortFeatures(numbers, cases, names, np.stack(vectors), problems)


def has_umap(count: int) -> bool:
    """Whether so many points can be placed by UMAP: umap-learn is installed, and there are enough."""
    return _installed() and count >= FEWEST_FOR_UMAP


def umap_places(vectors: Floats, seed: int = 0) -> Floats:
    """Places [N, 2] on the plane of UMAP; the first call of a process compiles for up to a minute.

    Raises:
        ConfigError: umap-learn is not installed.
        DataError: there are too few points.
    """
    if not _installed():
        raise ConfigError("UMAP needs the package umap-learn.", "pip install 'napari-med3dssl[umap]'.")
    if len(vectors) < FEWEST_FOR_UMAP:
        raise DataError(
            f"UMAP needs {FEWEST_FOR_UMAP} points, but there are {len(vectors)}.", "Use the principal axes."
        )
    import warnings

    import umap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells that a seed costs speed
        count = min(15, len(vectors) - 1)
        start = "spectral" if len(vectors) > 10 * FEWEST_FOR_UMAP else "random"  # which needs more points than axes
        places = umap.UMAP(n_neighbors=count, random_state=seed, init=start).fit_transform(vectors)
    return np.asarray(places, np.float32)


def odd_and_twins(vectors: Floats, cases: Sequence[str]) -> tuple[list[Odd], list[Twins]]:
    """Points far from all others, the farthest first, and pairs of cases that are almost one, the nearest first.

    Args:
        vectors: [N, E].
        cases: [N]; two points of one case are no pair.

    Returns:
        Row and robust score of each odd point (see `FAR`); rows and distance of each pair, the distance as a share of
        the median distance to the nearest neighbour (see `TWIN`).
    """
    from sklearn.neighbors import NearestNeighbors

    count = len(vectors)
    if count < 3:
        return [], []
    centred = vectors - vectors.mean(axis=0)
    scaled = centred / max(float(np.sqrt((centred**2).sum(axis=1).mean())), 1e-12)
    neighbours = min(NEIGHBOURS, count - 1)
    distances, rows = NearestNeighbors(n_neighbors=neighbours + 1).fit(scaled).kneighbors(scaled)
    mean = distances[:, 1:].mean(axis=1)
    spread = 1.4826 * float(np.median(np.abs(mean - np.median(mean))))
    scores = (mean - np.median(mean)) / max(spread, 1e-6)
    odd = [(int(row), float(scores[row])) for row in np.argsort(-scores) if scores[row] > FAR]
    usual = max(float(np.median(distances[:, 1])), 1e-12)
    pairs: dict[tuple[int, int], float] = {}
    for row in range(count):
        for distance, other in zip(distances[row], rows[row], strict=True):
            near = float(distance) / usual
            if other != row and cases[row] != cases[other] and near < TWIN:
                pairs[min(row, int(other)), max(row, int(other))] = near
    return odd, [(one, other, near) for (one, other), near in sorted(pairs.items(), key=lambda item: item[1])]


def _vectors(model: LoadedModel, dataset: Dataset, case: CaseRecord, key: str, regions: bool) -> dict[str, Floats]:
    """Vector of the case under an empty name, or vectors of its regions by value."""
    from training_backend.evaluate.feature_cache import cache_folder, content_hash

    images = [*case.images, case.label] if regions and case.label else [*case.images]
    parts = [str(VERSION), key, model.profile.model_dump_json(), str(regions)]
    parts += [json.dumps([image.sha256 for image in images]), json.dumps(case.store, sort_keys=True, default=str)]
    path = cache_folder().parent / "cohort" / f"{content_hash(*parts)}.npz"
    try:
        with np.load(path) as kept:
            return {name.removeprefix("v"): kept[name] for name in kept.files}
    except (OSError, ValueError, EOFError):
        pass
    found = _computed(model, dataset, case, regions)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as stream:
            arrays: dict[str, Any] = {f"v{name}": vector for name, vector in found.items()}
            np.savez(stream, **arrays)
    except (OSError, Med3dError) as error:
        log.warning("What was computed could not be kept: %s", error)
    return found


def _computed(model: LoadedModel, dataset: Dataset, case: CaseRecord, regions: bool) -> dict[str, Floats]:
    from training_backend.data.prepare import stored_input
    from training_backend.data.resample import resample
    from training_backend.evaluate.features import body_tokens, map_tiles, token_features

    prepared = stored_input(dataset, case, model.profile)
    tokens = token_features(model.encoder, prepared, model.profile, overlap=0.0)
    values = tokens.values.astype(np.float32)
    if not regions:
        body = body_tokens(prepared, map_tiles(model.encoder, prepared.geometry.shape, model.profile, 0, 0.0)[0])
        inside = values[body] if body.any() else values.reshape(-1, values.shape[-1])
        return {"": inside.mean(axis=0)}
    if prepared.label is None:
        return {}
    label = resample(prepared.label, prepared.geometry, tokens.geometry, nearest=True)
    return {str(int(value)): values[label == value].mean(axis=0) for value in np.unique(label) if value > 0}


def _installed() -> bool:
    found = importlib.util.find_spec("umap")
    return found is not None and found.origin is not None  # a mere folder of that name has none
