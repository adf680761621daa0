"""Rehearsal buffers: the few cases of an earlier modality that later stages look at again, and why they were chosen.

A buffer is a folder that a run leaves behind::

    buffer/buffer.json            modality, dataset, how its views are cut, policy, members
    buffer/features.safetensors   features [N, E] of all cases, labels [N], centres [K, E]

Its dataset is named by its place and as it lies from the folder, so the two can be moved as one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from training_backend.data.dataset import Dataset, found_place, kept_place
from training_backend.data.views import generator
from training_backend.errors import ConfigError, DataError, Med3dError
from training_backend.files import atomic, write_json

if TYPE_CHECKING:
    from training_backend.data.manifest import CaseRecord

FOLDER = "buffer"
"""Name of the folder below a run."""
INFO, FEATURES = "buffer.json", "features.safetensors"
SMALL = 2_000
"""Cases up to which k-means sees all of them in every round; above, it sees `_BLOCK` at a time."""
_BLOCK = 4096
_RANDOM, _KMEANS = 21, 22  # set the streams of random numbers apart

Policy = Literal["kmeans", "random", "herding"]
Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Chosen:
    """What a policy found.

    Attributes:
        indices: chosen cases [M].
        labels: cluster of every case [N]; 0 without clusters.
        centres: [K, E]; the mean of all features without clusters.
        distances: of every case to the centre of its cluster [N].
    """

    indices: Numbers
    labels: Numbers
    centres: Floats
    distances: Floats


@dataclass(frozen=True)
class Member:
    """A case of the buffer: its cluster, and how far its features lie from the centre of that."""

    case: str
    cluster: int
    distance: float


@dataclass(frozen=True)
class Buffer:
    """Cases of a modality to be rehearsed.

    Attributes:
        modality: name of the modality, and `kind` "text", "2d" or "3d".
        dataset: folder of the dataset.
        name: of the dataset, and its `fingerprint` when the buffer was made.
        data: settings of the views, as in `RunConfig.data`, without the dataset.
        policy: how the cases were chosen, with `clusters`, `ratio` and `seed`.
        members: in the order in which they were chosen.
        cases: how many there were to choose from.
        folder: where it was read from, or None.
    """

    modality: str
    kind: str
    dataset: Path
    name: str
    fingerprint: str
    data: Mapping[str, Any]
    policy: str
    clusters: int
    ratio: float
    seed: int
    members: Sequence[Member]
    cases: int
    folder: Path | None = field(default=None, compare=False)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the members."""
        return tuple(member.case for member in self.members)

    def open(self) -> Dataset:
        """The dataset of the members.

        Raises:
            DataError: it is not where the buffer says, or lacks members.
        """
        try:
            dataset = Dataset.open(self.dataset)
        except DataError as error:
            raise DataError(
                f"The buffer of {self.modality} rehearses cases of the dataset {self.name}, which is not at "
                f"{self.dataset}: {error.sentence}",
                f"Put the dataset back, or write its place as dataset into {self._where}.",
            ) from error
        lacking = [case for case in self.ids if case not in dataset.records or dataset.records[case].excluded]
        if lacking:
            raise DataError(
                f"{len(lacking)} of the {len(self.ids)} cases that the buffer of {self.modality} rehearses are not in "
                f"the dataset {dataset.info.name} any more: {', '.join(lacking[:3])}.",
                f"Put them back, or take them out of {self._where}.",
            )
        return dataset

    def check(self, cases: Sequence[CaseRecord]) -> None:
        """Refuse a buffer none of whose stored files are there."""
        gone = [case.id for case in cases if case.images and not (self.dataset / _stored(case)).exists()]
        if gone:
            raise DataError(
                f"The stored views of {len(gone)} of the {len(cases)} cases that the buffer of {self.modality} "
                f"rehearses have moved from {self.dataset}: {', '.join(gone[:3])}.",
                "Put the dataset's store back, or ingest it again.",
            )

    def save(self, folder: Path, features: Floats, chosen: Chosen) -> Buffer:
        """Write the buffer into `folder`, its description last; answers it as `load` would."""
        from safetensors.numpy import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {"features": features, "labels": chosen.labels, "centres": chosen.centres}
        arrays |= {"distances": chosen.distances, "chosen": chosen.indices}
        with atomic(folder / FEATURES) as stream:
            stream.write(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
        values = {**asdict(self), **kept_place(self.dataset, folder)}
        values.pop("folder")
        write_json(folder / INFO, {"schema": 1, **values})
        return load(folder)

    @property
    def _where(self) -> str:
        return str(self.folder / INFO) if self.folder else INFO


def load(folder: Path) -> Buffer:
    """Buffer in `folder`, or in the run `folder`.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    folder = Path(folder)
    folder = folder / FOLDER if (folder / FOLDER / INFO).is_file() else folder
    path = folder / INFO
    if not path.is_file():
        raise DataError(
            f"{folder} holds no rehearsal buffer ({INFO}).",
            "A buffer is made when a stage of a plan ends, or with: med3dssl plan buffer RUN.",
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        dataset = found_place(values, folder)
        for name in ("schema", "beside"):
            values.pop(name, None)
        members = [Member(str(one["case"]), int(one["cluster"]), float(one["distance"])) for one in values["members"]]
        return Buffer(**{**values, "members": members, "dataset": dataset, "folder": folder})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"The buffer {path} cannot be read ({type(error).__name__}: {error}).", "Make it again from its run."
        ) from error


def arrays(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """`features` [N, E], `labels`, `distances` [N], `centres` [K, E] and `chosen` [M] of a buffer's folder."""
    from safetensors.numpy import load_file

    path = Path(folder) / FEATURES
    try:
        return dict(load_file(path))
    except Exception as error:
        raise DataError(f"The features of the buffer {folder} cannot be read: {error}.", "Make it again.") from error


def choose(
    features: Floats,
    policy: Policy = "kmeans",
    ratio: float = 0.05,
    centres: float = 0.01,
    *,
    clusters: int | None = None,
    fill: bool = False,
    seed: int = 0,
) -> Chosen:
    """Cases worth rehearsing, by their features [N, E].

    kmeans (as published): `centres` N clusters, and of each the ``ratio N // clusters`` cases nearest to its centre.
    random: ``ratio N`` cases. herding: as many, each the one that brings the mean of the chosen nearest to that of all.
    At least one case is chosen.

    Args:
        features: one row per case.
        policy: see above.
        ratio: share of the cases that is chosen.
        centres: clusters as a share of the cases; at least one cluster.
        clusters: their number, in place of a share.
        fill: let the next nearest cases of all clusters take the places that small clusters leave empty, and those
            that the division leaves over.
        seed: of everything random.

    Raises:
        ConfigError: more clusters than cases.
        DataError: features that are not finite.
    """
    cases = len(features)
    if not np.isfinite(features).all():
        raise DataError("Some features of the cases are no finite numbers.", "The encoder has diverged; train again.")
    wanted = max(1, int(cases * ratio))
    if policy == "kmeans":
        count = clusters or max(1, int(cases * centres))
        if count > cases:
            raise ConfigError(
                f"{count} clusters were asked for, but there are only {cases} cases to choose from.",
                "Ask for fewer, or for a share: clusters and centres of the plan's buffer, or of med3dssl plan buffer.",
            )
        labels, middle = cluster(features, count, seed)
        found = nearest(features, labels, middle, max(1, wanted // count))
        distances = _distances(features, labels, middle)
        if fill:
            others = np.setdiff1d(np.argsort(distances, kind="stable"), found, assume_unique=True)
            others = others[np.argsort(distances[others], kind="stable")]
            found = np.concatenate([found, others[: max(0, wanted - len(found))]])
        return Chosen(found, labels, middle, distances)
    labels, middle = np.zeros(cases, np.int64), features.mean(axis=0, keepdims=True).astype(np.float32)
    if policy == "random":
        found = np.sort(generator(seed, _RANDOM).permutation(cases)[:wanted])
    else:
        found = _herded(features, wanted)
    return Chosen(found.astype(np.int64), labels, middle, _distances(features, labels, middle))


def nearest(features: Floats, labels: npt.NDArray[Any], centres: Floats, per_cluster: int) -> Numbers:
    """Cases by cluster, in each the `per_cluster` nearest to its centre in order; small clusters give fewer."""
    distances = _distances(features, labels, centres)
    found = []
    for number in range(len(centres)):
        inside = np.flatnonzero(labels == number)
        found.append(inside[np.argsort(distances[inside], kind="stable")[:per_cluster]])
    return np.concatenate(found).astype(np.int64)


def cluster(features: Floats, count: int, seed: int = 0) -> tuple[Numbers, Floats]:
    """Cluster of every case [N] and centres [count, E] by k-means, in blocks of cases where there are many."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    state = int(generator(seed, _KMEANS).integers(2**31))
    if len(features) <= SMALL:
        model: Any = KMeans(count, n_init=10, random_state=state)
    else:
        model = MiniBatchKMeans(
            count, batch_size=_BLOCK, max_iter=20, n_init=1, init_size=max(3 * count, _BLOCK), random_state=state
        )
    labels = model.fit_predict(np.ascontiguousarray(features, np.float32))
    return labels.astype(np.int64), np.asarray(model.cluster_centers_, np.float32)


def make(
    modality: str,
    kind: str,
    dataset: Dataset,
    data: Mapping[str, Any],
    cases: Sequence[CaseRecord],
    chosen: Chosen,
    *,
    policy: Policy,
    ratio: float,
    seed: int,
) -> Buffer:
    """Buffer of the `chosen` of `cases`; `data` are the settings of their views."""
    members = [
        Member(cases[index].id, int(chosen.labels[index]), round(float(chosen.distances[index]), 6))
        for index in chosen.indices
    ]
    kept = {name: value for name, value in data.items() if name not in _OF_THE_RUN}
    return Buffer(
        modality=modality,
        kind=kind,
        dataset=dataset.folder.resolve(),
        name=dataset.info.name,
        fingerprint=dataset.fingerprint(),
        data=kept,
        policy=policy,
        clusters=len(chosen.centres),
        ratio=ratio,
        seed=seed,
        members=members,
        cases=len(cases),
    )


def known(folder: Path) -> Buffer | None:
    """Buffer in `folder`, or None where there is none that can be read."""
    try:
        return load(folder)
    except Med3dError:
        return None


_OF_THE_RUN = ("dataset", "workers", "train_cases", "labelled", "only")
"""Data settings that are not of the views."""


def _distances(features: Floats, labels: npt.NDArray[Any], centres: Floats) -> Floats:
    """Distance of every case to the centre of its cluster."""
    result: Floats = np.sqrt(np.square(features - centres[labels]).sum(axis=1)).astype(np.float32)
    return result


def _herded(features: Floats, count: int) -> Numbers:
    wide = features.astype(np.float64)
    aim, total, found = wide.mean(axis=0), np.zeros(wide.shape[1]), []
    free = np.ones(len(wide), bool)
    for number in range(1, count + 1):
        gaps = np.square((total + wide) / number - aim).sum(axis=1)
        best = int(np.where(free, gaps, np.inf).argmin())
        free[best] = False
        total += wide[best]
        found.append(best)
    return np.array(found, np.int64)


def _stored(case: CaseRecord) -> str:
    return str(case.store.get("folder", ""))
