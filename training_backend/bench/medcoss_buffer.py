"""How long the choice of a rehearsal buffer takes among many cases, and how tight its clusters are."""

from __future__ import annotations

import time
from typing import Any


def main(
    cases: int = 100_000, width: int = 768, ratio: float = 0.05, centres: float = 0.01, seed: int = 0
) -> dict[str, Any]:
    """Seconds on the clock and of the processor to choose among generated features, by k-means as published.

    The features lie around half as many middles as there are clusters, each 1 away from its own in every direction, so
    that the clusters can be judged: `spread` is the mean squared distance of a case to the centre of its cluster, over
    that to the middle that it was made from.

    Args:
        cases: to choose from.
        width: of the features.
        ratio: share that is chosen.
        centres: clusters as a share of the cases.
        seed: of features and clusters.
    """
    import numpy as np

    from training_backend.data.rehearsal import choose

    rng = np.random.default_rng(seed)
    middles = rng.normal(0, 4, (max(1, int(cases * centres) // 2), width)).astype(np.float32)
    kinds = rng.integers(len(middles), size=cases)
    features = middles[kinds] + rng.standard_normal((cases, width), np.float32)
    noise = float(np.mean([np.square(row - middles[kind]).sum() for row, kind in zip(features, kinds, strict=True)]))
    began, worked = time.perf_counter(), time.process_time()
    chosen = choose(features, "kmeans", ratio, centres, seed=seed)
    wall, processor = time.perf_counter() - began, time.process_time() - worked
    return {
        "cases": cases,
        "features": width,
        "clusters": len(chosen.centres),
        "chosen": len(chosen.indices),
        "wall_s": round(wall, 1),
        "processor_s": round(processor, 1),
        "spread": round(float(np.square(chosen.distances).mean()) / noise, 3),
    }
