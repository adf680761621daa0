"""Scans found by words, or by another scan."""

from __future__ import annotations

from pathlib import Path

from training_backend.api.progress import progress_bar
from training_backend.report import Table


def find(
    run: str, data: Path, text: str = "", scan: str = "", top: int = 10, shortlist: int = 100, store: Path | None = None
) -> Table:
    """Find the scans of a dataset that words fit best, or those that are most like one of them.

    Args:
        run: Model of the task retrieval.
        data: Dataset.
        text: Words or a report to look for.
        scan: Case to find others like, in place of words.
        top: Scans to list.
        shortlist: Scans that the latents choose and the gates rank, for models with gates.
        store: Folder that keeps what the model makes of the scans, so that the next search is quick; empty keeps it in
            the cache, where the viewer looks too.
    """
    from training_backend.data.dataset import Dataset
    from training_backend.errors import ConfigError
    from training_backend.evaluate.find_cases import kept_store
    from training_backend.evaluate.two_stage import find_scans, scans_like, store_of
    from training_backend.weights.load import load_model

    if bool(text.strip()) == bool(scan):
        raise ConfigError("Looked for are either words or scans like one.", "Give --text or --scan.")
    model = load_model(run)
    dataset, progress = Dataset.open(data), progress_bar("read scans")
    known = kept_store(model, dataset, progress) if store is None else store_of(model, dataset, store, progress)
    if scan:
        found = scans_like(known, scan, top=top)
    else:
        found = find_scans(model.module, known, text, top=top, shortlist=shortlist)  # type: ignore[arg-type]
    table = Table(("place", "scan", "score"))
    for place, (name, score) in enumerate(found, 1):
        table.add(place, name, f"{score:.4f}")
    return table
