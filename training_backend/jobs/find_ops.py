"""What the model process does to find cases of a dataset.

==================  =================================================  =============================================
operation           parameters                                         values
==================  =================================================  =============================================
``find_cases``      `source`, `dataset`, `top`, and `text` or          `hits`, a list of `case`, `score`, `split`,
                    `volumes`                                          `report`; `searched`, how many cases; `seconds`
                                                                       that the search itself took
==================  =================================================  =============================================

The scans of the dataset that was searched last are kept in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training_backend.errors import RunError

if TYPE_CHECKING:
    from training_backend.evaluate.two_stage import ScanStore
    from training_backend.jobs.serve import Progress
    from training_backend.jobs.serve_ops import Params, Session, Values


class FindOps:
    """Searches in datasets.

    Args:
        session: the process's memory, whose model makes the latents.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._kept: tuple[tuple[Any, ...], ScanStore] | None = None

    def operations(self) -> dict[str, Callable[[Params, Progress], Values]]:
        """All operations by name."""
        return {"find_cases": self.find}

    def find(self, params: Params, progress: Progress) -> Values:
        """Cases that fit a text, or resemble a scan, best first."""
        from training_backend.data.dataset import Dataset
        from training_backend.data.prepare import prepare
        from training_backend.evaluate.find_cases import find_by_scan
        from training_backend.evaluate.two_stage import find_scans

        ready = self._session.model(params, progress)
        folder = Path(str(params.get("dataset") or ""))
        dataset = Dataset.open(folder)
        store = self._store(ready, dataset, progress)
        text, volumes, top = params.get("text"), params.get("volumes"), int(params.get("top") or 10)
        begun = time.perf_counter()
        if text is not None:
            found = find_scans(ready.loaded.module, store, str(text), top=top)  # type: ignore[arg-type]
        elif volumes:
            found = find_by_scan(ready.loaded, store, prepare(volumes, ready.loaded.profile), top)
        else:
            raise RunError("Neither words nor a scan were given to look for.", "Type words, or open a scan.")
        hits = [
            {"case": case, "score": score, "split": dataset.case(case).split, "report": dataset.case(case).report}
            for case, score in found
        ]
        return {**ready.facts, "hits": hits, "searched": len(store.latents.ids), "seconds": time.perf_counter() - begun}

    def _store(self, ready: Any, dataset: Any, progress: Progress) -> ScanStore:
        from training_backend.evaluate.find_cases import kept_store

        manifest = dataset.folder / "manifest.jsonl"
        key = (ready.stamp, str(dataset.folder.resolve()), manifest.stat().st_mtime_ns)
        if self._kept is None or self._kept[0] != key:
            self._kept = None

            def said(share: float) -> bool:
                return progress(share, "Looking at the scans of the dataset")

            self._kept = (key, kept_store(ready.loaded, dataset, said))
        return self._kept[1]
