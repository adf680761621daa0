"""Finding by latents: how high the right one ranks, and a store of latents to search in. Knows arrays only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training_backend.errors import DataError
from training_backend.evaluate.classification_metrics import Floats, bootstrap
from training_backend.files import atomic

RANKS = (1, 5, 10, 50, 100)
"""K of recall at K; those that are not smaller than the number of candidates are left out."""


def ranks(scores: npt.ArrayLike, groups: npt.ArrayLike | None = None) -> npt.NDArray[np.int64]:
    """Place of the first right candidate of each query, from 1.

    Wrong candidates with the same score count half, rounded against the query, so constant scores are no success.

    Args:
        scores: [N, N] of queries against candidates.
        groups: [N] numbers; candidates of the query's own group are right. Each is its own group when left out.
    """
    table = np.asarray(scores, float)
    right = _right(len(table), groups)
    own = np.where(right, table, -np.inf).max(axis=1, keepdims=True)
    ahead, level = (~right & (table > own)).sum(axis=1), (~right & (table == own)).sum(axis=1)
    return np.asarray(1 + ahead + (level + 1) // 2, np.int64)


def retrieval_report(
    queries: npt.ArrayLike,
    candidates: npt.ArrayLike,
    name: str = "",
    *,
    groups: npt.ArrayLike | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Recall at K, mean reciprocal rank and median rank with 95 % bootstrap intervals over queries.

    Names are ``recall_K``, ``reciprocal_rank`` and ``median_rank`` after `name`; ``chance_K`` is what guessing gives.

    Args:
        queries: unit vectors [N, E].
        candidates: unit vectors [N, E]; the one with the same index is right.
        name: put before each metric, e.g. "text_to_volume_".
        groups: [N]; all candidates of the query's own group are right, for cases with the same report.
        samples: bootstrap samples; 0 gives no intervals.
        seed: of the bootstrap.
    """
    return rank_report(
        np.asarray(queries, float) @ np.asarray(candidates, float).T, name, groups=groups, samples=samples, seed=seed
    )


def rank_report(
    scores: npt.ArrayLike, name: str = "", *, groups: npt.ArrayLike | None = None, samples: int = 1000, seed: int = 0
) -> dict[str, float]:
    """`retrieval_report` of scores [N, N] of queries against candidates."""
    place = ranks(scores, groups)
    number = len(place)
    chosen = [k for k in RANKS if k < number]

    def metrics(weights: Floats) -> dict[str, Floats]:
        share = weights / weights.sum(axis=1, keepdims=True)
        found = {f"{name}recall_{k}": share @ (place <= k).astype(float) for k in chosen}
        return found | {f"{name}reciprocal_rank": share @ (1 / place)}

    report = bootstrap(metrics, number, samples, seed)
    report[f"{name}median_rank"] = float(np.median(place))
    found = _right(number, groups).sum(axis=1)
    return report | {f"{name}chance_{k}": float(np.mean([_chance(number, n, k) for n in found])) for k in chosen}


def _right(number: int, groups: npt.ArrayLike | None) -> npt.NDArray[np.bool_]:
    if groups is None:
        return np.eye(number, dtype=bool)
    own = np.asarray(groups)
    return np.asarray(own[:, None] == own[None])


def _chance(number: int, right: int, k: int) -> float:
    """Probability that `k` of `number` candidates, drawn at random, hold one of the `right` ones."""
    return 1 - math.comb(number - right, k) / math.comb(number, k)


def shared_labels(latents: npt.ArrayLike, labels: npt.ArrayLike, top: int = 5) -> float:
    """How alike the findings of a volume are to those of its `top` nearest other volumes, 0..1.

    Mean over volumes and neighbours of the findings that both have by those that either has; pairs without any finding
    are left out.

    Args:
        latents: unit vectors [N, E].
        labels: [N, K] of 0 and 1.
        top: neighbours.
    """
    vectors, truth = np.asarray(latents, float), np.asarray(labels, float) > 0.5
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -np.inf)
    near = np.argsort(-similar, axis=1, kind="stable")[:, : min(top, len(vectors) - 1)]
    both = (truth[:, None] & truth[near]).sum(-1)
    either = (truth[:, None] | truth[near]).sum(-1)
    return float((both[either > 0] / either[either > 0]).mean()) if (either > 0).any() else float("nan")


@dataclass(frozen=True)
class LatentStore:
    """Latents of cases, to search in.

    Attributes:
        ids: of the cases.
        latents: unit vectors [N, E] float32.
    """

    ids: tuple[str, ...]
    latents: npt.NDArray[np.float32]

    def search(self, query: npt.ArrayLike, top: int = 10) -> list[tuple[str, float]]:
        """The `top` cases with the largest cosine to the vector `query` [E], best first."""
        vector = np.asarray(query, np.float32)
        if vector.shape != self.latents.shape[1:]:
            raise DataError(
                f"The query has {vector.shape} numbers, but the stored latents have {self.latents.shape[1]} each.",
                "Make both with the same model.",
            )
        scores = self.latents @ (vector / max(float(np.linalg.norm(vector)), 1e-12))
        top = min(top, len(scores))
        best = np.argpartition(-scores, top - 1)[:top] if top else np.empty(0, np.int64)
        best = best[np.argsort(-scores[best], kind="stable")]
        return [(self.ids[index], float(scores[index])) for index in best]

    def save(self, path: Path) -> Path:
        """Write an ``.npz`` file, whole or not at all."""
        with atomic(path) as stream:
            np.savez(stream, ids=np.asarray(self.ids, str), latents=self.latents)
        return path

    @classmethod
    def load(cls, path: Path) -> LatentStore:
        """Store written by `save`."""
        try:
            with np.load(path, allow_pickle=False) as content:
                return cls(tuple(str(id) for id in content["ids"]), np.asarray(content["latents"], np.float32))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path.name} holds no stored latents.", "Make it again.") from error

    @classmethod
    def of(cls, ids: Sequence[str], latents: npt.ArrayLike) -> LatentStore:
        """Store of `latents` [N, E], normalised."""
        vectors = np.asarray(latents, np.float32)
        return cls(tuple(ids), vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))
