"""What the model process does with strokes: features once per scan, then a classifier as quickly as one paints.

==================  =================================================  =============================================
operation           parameters                                         values
==================  =================================================  =============================================
``strokes_open``    as ``features``; `near` and `size` of a box that   `key` of the scan, `cached`
                    will be painted in, or None
``strokes_fill``    `key`, `points` [N, 3], `values` [N], `classes`,   `labels`, `doubt`, `geometry` of the box,
                    `size` of the box or None for the whole scan,      `start`, `seconds`, `painted` by class
                    `near`, a voxel that the box should hold
``strokes_save``    `key`, `path`                                      `path`
``strokes_apply``   as ``features``, and `path`                        as ``strokes_fill``, `notes`, `classes`, `key`
==================  =================================================  =============================================

The scan that was opened last is kept, so a stroke costs the way of its voxels only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training_backend.data.manifest import ClassEntry
from training_backend.errors import RunError
from training_backend.evaluate.strokes import Box, FeatureFacts, Filled, StrokeModel, StrokeScan, around, teach

if TYPE_CHECKING:
    from training_backend.jobs.serve import Progress
    from training_backend.jobs.serve_ops import Params, Session, Values

_OF_FEATURES = ("tokens", "geometry", "body", "cached", "features")
FORGOTTEN = "The model process does not have this scan ready any more."


class StrokeOps:
    """Operations on the scan that is painted on.

    Args:
        session: the process's memory, whose model gives the features.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._key = ""
        self._scan: StrokeScan | None = None
        self._taught: StrokeModel | None = None
        self._box: Box | None = None

    def operations(self) -> dict[str, Callable[[Params, Progress], Values]]:
        """All operations by name."""
        return {
            "strokes_open": self.open,
            "strokes_fill": self.fill,
            "strokes_save": self.save,
            "strokes_apply": self.apply,
        }

    def open(self, params: Params, progress: Progress) -> Values:
        """Make a scan ready to be painted on: its features are computed, or read from the cache."""
        facts, answer = self._open(params, progress)
        scan, size, near = self._known({"key": self._key}), params.get("size"), params.get("near")
        if size is not None and near is not None:
            progress(1.0, "Filtering the region")
            self._box = self._moved(scan, size, near)
            scan.channels(self._box, scan.bounds)  # so that the first stroke does not wait for it
        return {**facts, "key": self._key, "cached": answer["cached"]}

    def fill(self, params: Params, progress: Progress) -> Values:
        """Learn from the strokes, and fill the box around them or the whole scan."""
        scan, begun = self._known(params), time.perf_counter()
        classes = [ClassEntry(**entry) for entry in params["classes"]]
        points, values = np.asarray(params["points"]), np.asarray(params["values"])
        self._taught = teach(scan, points, values, classes)
        size = params.get("size")
        if size is None:
            answer = _whole(scan, self._taught, progress)
        else:
            self._box = self._moved(scan, size, params.get("near") or points.mean(axis=0))
            answer = _answer(scan, self._box, self._taught.fill(scan, self._box))
        painted = {classes[int(value)].name: int((values == value).sum()) for value in np.unique(values)}
        return {**answer, "painted": painted, "seconds": time.perf_counter() - begun}

    def save(self, params: Params, progress: Progress) -> Values:
        """Write what was learnt last."""
        self._known(params)
        if self._taught is None:
            raise RunError("Nothing was learnt from strokes yet.", "Paint voxels of two classes first.")
        path = Path(params["path"])
        self._taught.save(path)
        return {"path": str(path)}

    def apply(self, params: Params, progress: Progress) -> Values:
        """Fill another scan with a model that was saved."""
        model = StrokeModel.load(Path(params["path"]))
        facts, _ = self._open(params, progress)
        scan = self._known({"key": self._key})
        notes = model.check(scan.facts)
        classes = [entry.model_dump() for entry in model.classes]
        return {**facts, **_whole(scan, model, progress), "notes": notes, "classes": classes, "key": self._key}

    def _moved(self, scan: StrokeScan, size: Any, near: Any) -> Box:
        """The box filled last, as long as the brush stays in it, else one around the brush."""
        wanted: Any = scan.array.shape
        new = around(np.asarray(near).reshape(1, 3), wanted, (int(size[0]), int(size[1]), int(size[2])))
        box = self._box
        if box is None or box.size != new.size:
            return new
        inside = all(a <= at < a + n for a, n, at in zip(box.start, box.size, near, strict=True))
        return box if inside else new

    def _open(self, params: Params, progress: Progress) -> tuple[Values, Values]:
        from training_backend.evaluate.feature_cache import content_hash

        answer = self._session.features(params, progress)
        volume = params["volumes"][0]
        facts = {name: value for name, value in answer.items() if name not in _OF_FEATURES}
        told = FeatureFacts(answer["features"], volume.modality)
        key = content_hash(told.features, str(volume.geometry.to_dict()), volume.array)
        if key != self._key or self._scan is None:
            self._taught = self._box = None
            self._scan = StrokeScan(volume.array, volume.geometry, answer["tokens"], answer["geometry"], told)
            self._key = key
            _ = self._scan.components, self._scan.bounds  # before the first stroke, which should not wait for them
            import sklearn.linear_model  # noqa: F401
        return facts, answer

    def _known(self, params: Params) -> StrokeScan:
        if self._scan is None or params.get("key") != self._key:
            raise RunError(FORGOTTEN, "Prepare it again.")
        return self._scan


def _whole(scan: StrokeScan, model: StrokeModel, progress: Progress) -> Values:
    def said(share: float) -> bool:
        progress(share, "Filling the scan")
        return True

    shape: Any = scan.array.shape
    return _answer(scan, Box((0, 0, 0), shape), model.fill_all(scan, said))


def _answer(scan: StrokeScan, box: Box, filled: Filled) -> Values:
    geometry = scan.geometry if box.size == scan.array.shape else scan.geometry.cropped(box.start, box.size)
    return {"labels": filled.labels, "doubt": filled.doubt, "geometry": geometry, "start": list(box.start)}
