"""What the model process does on the way from corrected masks to a better model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training_backend.jobs.serve import Progress
    from training_backend.jobs.serve_ops import Params, Session, Values


def next_cases(session: Session, params: Params, progress: Progress) -> Values:
    """Cases of the dataset `folder` to label next, at most `count`, chosen `by`: `choices` with id and reason."""
    from training_backend.data.dataset import Dataset
    from training_backend.evaluate import next_case

    ready = session.model(params, progress)

    def said(share: float) -> bool:
        progress(share, "Looking at the unlabelled cases")
        return True

    by, count = params.get("by", "both"), int(params.get("count", 10))
    dataset = Dataset.open(Path(params["folder"]))
    found = next_case.next_cases(ready.loaded, dataset, by, count, device=session.device, progress=said)
    return {**ready.facts, "choices": [asdict(choice) for choice in found]}
