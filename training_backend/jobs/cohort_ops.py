"""What the model process answers about whole datasets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training_backend.jobs.serve import Progress
    from training_backend.jobs.serve_ops import Params, Session, Values


def cohort_map(session: Session, params: Params, progress: Progress) -> Values:
    """Cases or `regions` of the datasets `folders` as points.

    Answers `datasets`, `cases`, `regions`, `vectors`, `problems` (see `evaluate.cohort.CohortFeatures`), `umap`
    (whether `cohort_umap` can place them), `odd` (row, score) and `twins` (row, row, distance).
    """
    from training_backend.data.dataset import Dataset
    from training_backend.evaluate import cohort

    ready = session.model(params, progress)

    def said(share: float) -> bool:
        progress(0.9 * share, "Looking at all cases")
        return True

    datasets = [Dataset.open(Path(folder)) for folder in params["folders"]]
    regions = bool(params.get("regions", False))
    found = cohort.cohort_features(ready.loaded, datasets, regions=regions, device=session.device, progress=said)
    progress(0.95, "Drawing the map")
    names = [f"{number} {case}" for number, case in zip(found.datasets, found.cases, strict=True)]
    odd, twins = cohort.odd_and_twins(found.vectors, names)
    points = {"datasets": found.datasets, "cases": found.cases, "regions": found.regions, "vectors": found.vectors}
    told = {"problems": found.problems, "umap": cohort.has_umap(len(found.vectors))}
    return {**ready.facts, **points, **told, "odd": [list(one) for one in odd], "twins": [list(one) for one in twins]}


def cohort_umap(params: Params, progress: Progress) -> Values:
    """`places` [N, 2] of `vectors` [N, E] on the plane of UMAP."""
    import numpy as np

    from training_backend.evaluate.cohort import umap_places

    progress(0.0, "Computing UMAP")
    return {"places": umap_places(np.asarray(params["vectors"], np.float32))}
