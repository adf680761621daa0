"""From files to a dataset: parallel, resumable, and nothing dropped without a reason."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from itertools import islice
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

from training_backend.config.data import IngestConfig
from training_backend.data.classes import class_table
from training_backend.data.dataset import (
    MANIFEST,
    QUARANTINE,
    Dataset,
    Quarantined,
    check_splits,
    relative_root,
    save_quarantine,
)
from training_backend.data.drafts import Described
from training_backend.data.importers import describe
from training_backend.data.integrity import in_bytes
from training_backend.data.manifest import CaseRecord, ImageRecord
from training_backend.data.processes import end_with_parent, processors
from training_backend.data.read import YES_VALUES
from training_backend.data.report_clean import cleaned
from training_backend.data.splits import assign_splits
from training_backend.data.stow import Stowed, content_hash, finished, recipe, store_volumes, stored_bytes, stow
from training_backend.data.volume import Volume
from training_backend.errors import DataError, ResourceError

logger = logging.getLogger(__name__)

Progress = Callable[[float], bool | None]
"""Told the share done (0..1); answering False stops after the cases being read."""

_FEW = 3  # so few cases are read in this process: starting others takes longer


@dataclass(frozen=True)
class IngestReport:
    """What became of each case.

    Attributes:
        dataset: folder.
        ok: ids of the cases in the dataset.
        quarantined: what was left out, and why; also in ``quarantine.jsonl``.
        noted: what was unusual about cases that could be used: sentence to ids; also in the manifest.
        resumed: how many cases an earlier ingest had finished.
        cancelled: whether `progress` asked to stop; the same call goes on later.
        predicted_bytes: size foretold before writing.
        stored_bytes: size written.
        seconds: taken.
    """

    dataset: Path
    ok: tuple[str, ...]
    quarantined: tuple[Quarantined, ...]
    noted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    resumed: int = 0
    cancelled: bool = False
    predicted_bytes: int = 0
    stored_bytes: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        """A summary to read."""
        lines = [
            f"{counted(len(self.ok), 'case')} in {self.dataset} ({in_bytes(self.stored_bytes)}, {self.seconds:.1f} s)"
        ]
        if self.resumed:
            lines.append(f"{self.resumed} of them were there already")
        if self.cancelled:
            lines.append("stopped before the end; the same command goes on")
        lines += [f"noted in {_few(cases)}: {sentence}" for sentence, cases in self.noted.items()]
        return "\n".join(lines + [f"left out: {entry}" for entry in self.quarantined])


def counted(number: int, what: str) -> str:
    """A number of things as people write it: 1 case, 2 cases."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def ingest(
    sources: Path | Sequence[Path] | Described,
    output: Path,
    config: IngestConfig | None = None,
    *,
    name: str = "",
    progress: Progress | None = None,
) -> IngestReport:
    """Make (or complete) the dataset in `output`.

    Args:
        sources: paths of any known layout, or what `describe` made of one, perhaps with cases excluded or mended.
        output: folder of the dataset; if one is there from the same sources, its finished cases are kept.
        config: spacing, body box, splits, processes.
        name: of the dataset; the source's own when empty.
        progress: told the share done after each case; answering False stops, and calling again goes on.

    Raises:
        DataError: nothing to ingest, a subject in two splits, or no case survived the checks.
        ResourceError: the disk has no room, before or during writing; finished cases stay.
    """
    from filelock import FileLock, Timeout

    config = config or IngestConfig()
    started = time.monotonic()
    described = _described(sources, name)
    output = Path(output)
    (output / "store").mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / ".lock", timeout=0):
            report = _ingest(described, output, config, progress)
    except Timeout as error:
        raise DataError(f"Another ingest is writing to {output}.", "Wait for it, or choose another folder.") from error
    return replace(report, seconds=time.monotonic() - started)


def predicted_bytes(cases: Iterable[CaseRecord], config: IngestConfig) -> int:
    """Upper estimate of what the store of `cases` takes, from their headers: float16 does not shrink."""
    total = 0.0
    for case in cases:
        for image in case.images:
            voxels = float(np.prod(image.shape)) if image.shape else 0.0
            if voxels > config.max_voxels:
                continue  # will be quarantined; headers can claim anything
            if config.spacing_mm is not None and image.spacing_mm is not None:
                voxels *= float(np.prod(image.spacing_mm) / np.prod(config.spacing_mm))
            total += 2.2 * voxels + 65536
    return int(total)


def add_volumes(dataset: Dataset, case: CaseRecord, volumes: Sequence[Volume], label: Volume | None) -> CaseRecord:
    """Write volumes from memory below ``sources/`` of `dataset` and store them as `case`."""
    from training_backend.data.write import write_volume

    if not volumes:
        raise DataError("A case needs at least one image.", "Open a scan first.")
    folder = dataset.folder / "sources" / case.id
    folder.mkdir(parents=True, exist_ok=True)
    root = (dataset.folder / dataset.info.root).resolve()

    def written(volume: Volume, stem: str, contrast: str) -> ImageRecord:
        path = write_volume(volume, folder / f"{stem}.nii.gz", overwrite=True)
        return ImageRecord(
            path=Path(os.path.relpath(path.resolve(), root)).as_posix(),
            contrast=contrast,
            modality=volume.modality,
            shape=volume.geometry.shape,
            spacing_mm=volume.geometry.spacing_mm,
            sha256=content_hash(path),
        )

    names = dataset.info.contrasts or ("image",)
    contrasts = [
        str(volume.meta.get("contrast") or (names[n] if n < len(names) else f"image {n}"))
        for n, volume in enumerate(volumes)
    ]
    images = tuple(written(volume, f"image_{n}", contrasts[n]) for n, volume in enumerate(volumes))
    marked = None if label is None else written(label, "label", "label")
    config = IngestConfig(spacing_mm=dataset.info.spacing_mm, crop_body=dataset.info.crop_body)
    record = case.model_copy(update={"images": images, "label": marked})
    return store_volumes(dataset.folder, record, volumes, label, config)


def _described(sources: Path | Sequence[Path] | Described, name: str) -> Described:
    if isinstance(sources, Described):
        found = sources
    else:
        paths = [Path(sources)] if isinstance(sources, str | Path) else [Path(path) for path in sources]
        if not paths:
            raise DataError("No source was given.", "Give a folder or a list file.")
        found = describe(paths[0]) if len(paths) == 1 else describe(paths)
    if name:
        found = replace(found, info=found.info.model_copy(update={"name": name}))
    if not found.cases:
        reasons = " ".join(str(problem) for problem in found.problems[:3])
        raise DataError(
            f"No scan was found in {Path(found.root).absolute()}. {reasons}".strip(),
            "Give the folder that holds the scans.",
        )
    return found


def _ingest(described: Described, output: Path, config: IngestConfig, progress: Progress | None) -> IngestReport:
    for leftover in (output / "store").glob(".*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    earlier = _earlier(described, output)
    told, refused = _told(described.cases, config)
    described = replace(described, problems=[*described.problems, *refused])
    cases = [
        case.model_copy(update={"excluded": case.excluded or earlier[case.id].excluded}) if case.id in earlier else case
        for case in assign_splits(told, config.splits, config.seed, described.given_splits)
    ]
    check_splits(cases)
    cases = _not_accepted(cases, earlier, config, output)
    todo = [case for case in cases if finished(output, case, config) is None]
    predicted = predicted_bytes(todo, config)
    free = shutil.disk_usage(output).free
    if predicted > free:
        raise ResourceError(
            f"The store needs about {in_bytes(predicted)}, {in_bytes(free)} are free in {output}.",
            "Free space, choose another folder, or a coarser spacing.",
        )
    results: dict[str, Stowed] = {}
    cancelled = False
    try:
        for id, result in _all(cases, output, described.root, config):
            results[id] = result
            if progress is not None and progress(len(results) / len(cases)) is False:
                cancelled = True
                break
    finally:
        report = _conclude(described, output, config, earlier, results)
    if not report.ok and not cancelled:
        first = report.quarantined[0] if report.quarantined else "no case was read"
        raise DataError(
            f"None of the {len(described.cases)} cases can be used; the first: {first}", f"See {output / QUARANTINE}."
        )
    return replace(report, predicted_bytes=predicted, cancelled=cancelled)


def _told(cases: Sequence[CaseRecord], config: IngestConfig) -> tuple[list[CaseRecord], list[Quarantined]]:
    """Cases with their reports as they are kept; without an image, one whose report is empty is none."""
    kept, refused = [], []
    for case in cases:
        report = cleaned(case.report) if config.clean_reports else case.report
        if not case.images and not report.strip():
            why = "Its report has no sentence left after cleaning" if case.report.strip() else "It has no report"
            reason = f"{why}, and there is no image. Mend its text, or leave it out."
            refused.append(Quarantined(case.id, "", "list", reason))
            continue
        notes = case.problems
        if case.report.strip() and not report:
            notes = (*notes, "Its report has no sentence left after cleaning.")
        kept.append(case.model_copy(update={"report": report, "problems": notes}))
    return kept, refused


def _conclude(
    described: Described,
    output: Path,
    config: IngestConfig,
    earlier: dict[str, CaseRecord],
    results: dict[str, Stowed],
) -> IngestReport:
    """Write manifest and quarantine list of what is there so far; what an earlier ingest stored stays."""
    kept = [result.case for result in results.values() if result.case is not None]
    kept += [case for id, case in earlier.items() if id not in results]
    kept, doubles = without_doubles(kept, described.given_splits)
    for double in doubles:
        shutil.rmtree(output / "store" / double.case, ignore_errors=True)
    quarantined = [*described.problems, *(r.refused for r in results.values() if r.refused is not None), *doubles]
    modalities = {image.modality for case in kept for image in case.images} or ({"text"} if kept else set())
    accepted = {row.index: row.name for case in kept for mask in case.accepted for row in mask.classes}
    names = accepted | _names(described, config)
    values = {int(value) for case in kept for value in case.store.get("label", {}).get("values", {})}
    info = described.info.model_copy(
        update={
            "root": relative_root(described.root, output),
            "spacing_mm": config.spacing_mm,
            "crop_body": config.crop_body,
            "contrasts": tuple(dict.fromkeys(image.contrast for case in kept for image in case.images)),
            "modality": modalities.pop() if len(modalities) == 1 else "unknown",
            "classes": class_table(values, names),
            "largest": largest_number(kept),
        }
    )
    dataset = Dataset(output, info, kept)
    dataset.save()
    save_quarantine(output, quarantined)
    return IngestReport(
        dataset=output,
        ok=tuple(sorted(case.id for case in kept)),
        quarantined=tuple(quarantined),
        noted=_noted(kept),
        resumed=sum(result.resumed for result in results.values()),
        stored_bytes=sum(stored_bytes(case) for case in kept),
    )


def largest_number(cases: Sequence[CaseRecord]) -> float | None:
    """Largest number of the format of all pictures, where it is the same; None with scans."""
    found = {image["statistics"].get("largest") for case in cases for image in case.store.get("images", ())}
    return found.pop() if len(found) == 1 else None


def _noted(cases: Iterable[CaseRecord]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for case in cases:
        for sentence in case.problems:
            found[sentence] = (*found.get(sentence, ()), case.id)
    return found


def _few(cases: Sequence[str]) -> str:
    """Names of cases, or their number where there are many."""
    return ", ".join(cases) if len(cases) <= _FEW else f"{len(cases)} cases ({', '.join(cases[:_FEW])}, ...)"


def _names(described: Described, config: IngestConfig) -> dict[int, str]:
    """Class names of the source by label value as stored; the name of a mask's "yes" goes with it to class 1."""
    given = {entry.index: entry.name for entry in described.info.classes}
    moved = {config.label_values[value]: given[value] for value in given if value in config.label_values}
    names = {value: name for value, name in given.items() if value not in config.label_values}
    names = {value: name for value, name in moved.items() if value} | names
    yes = [names.pop(value) for value in YES_VALUES if value in names]
    return names | ({1: yes[0]} if yes and 1 not in names else {})


def _not_accepted(
    cases: Sequence[CaseRecord], earlier: Mapping[str, CaseRecord], config: IngestConfig, output: Path
) -> list[CaseRecord]:
    """Cases but those whose mask a person stands for, which stay what they are in the manifest.

    Raises:
        DataError: the store of such a case was made with other settings.
    """
    kept = {id for id, case in earlier.items() if case.accepted}
    for id in sorted(kept.intersection(case.id for case in cases)):
        if earlier[id].store.get("recipe") not in (None, recipe(config)):
            raise DataError(
                f"A mask was accepted for case {id} of {output}, which these settings would store anew.",
                "Choose another folder for the dataset, or undo what was accepted: med3dssl data undo.",
            )
    return [case for case in cases if case.id not in kept]


def _earlier(described: Described, output: Path) -> dict[str, CaseRecord]:
    """Cases of the dataset that is in `output` already, which must have been made from the same sources."""
    if not (output / MANIFEST).is_file():
        return {}
    dataset = Dataset.open(output)
    root = (output / dataset.info.root).resolve()
    if root != described.root.resolve():
        raise DataError(
            f"{output} holds a dataset made from {root}, not from {described.root}.",
            "Choose another folder, or give all sources in one command.",
        )
    return dataset.records


def without_doubles(
    cases: Sequence[CaseRecord], given: Collection[str] = ()
) -> tuple[list[CaseRecord], list[Quarantined]]:
    """Cases whose image contents appear once, and the others with the reason.

    Of two that the source gave different splits, the one for testing or validation stays, so that no score is measured
    on training data; else the one with a label map, and the first by id.
    """
    order = {"test": 0, "val": 1, "train": 2, "unlabelled": 3}

    def rank(case: CaseRecord) -> tuple[int, bool, str]:
        return (order[case.split] if case.id in given else 2, case.label is None, case.id)

    first: dict[tuple[str, str], CaseRecord] = {}
    kept, doubles = [], []
    for case in sorted(cases, key=rank):
        contents = [(image.sha256, image.key) for image in case.images]
        twin = next((first[content] for content in contents if content in first), None)
        if twin is None:
            first |= dict.fromkeys(contents, case)
            kept.append(case)
            continue
        across = twin.split != case.split and twin.id in given
        reason = f"Its image is the same as that of case {twin.id}" + (f" in {twin.split}." if across else ".")
        path = case.images[0].path
        doubles.append(Quarantined(case.id, path, "leakage" if across else "duplicate", f"{reason} Keep one of them."))
    return sorted(kept, key=lambda case: case.id), doubles


def _all(cases: Sequence[CaseRecord], folder: Path, root: Path, config: IngestConfig) -> Iterator[tuple[str, Stowed]]:
    """Outcomes as they come, from as many processes as are useful; reports need none."""
    for case in cases:
        if not case.images:
            yield case.id, stow(folder, root, case, config)
    cases = [case for case in cases if case.images]
    workers = config.workers if config.workers is not None else min(processors(), len(cases))
    if workers < 1 or (config.workers is None and len(cases) <= _FEW):
        for case in cases:
            yield case.id, stow(folder, root, case, config)
        return
    left = {case.id: case for case in cases}
    alone = False
    while left:
        try:
            for id, result in _in_pool(list(left.values()), folder, root, config, 1 if alone else workers, alone=alone):
                del left[id]
                yield id, result
        except BrokenProcessPool:
            if alone:  # then it was the case being read that did it
                case = left.pop(next(iter(left)))
                yield case.id, Stowed(None, _killed(case))
            else:
                logger.warning("A reading process was killed; the %d cases left are read one at a time.", len(left))
            alone = True


def _in_pool(
    cases: Sequence[CaseRecord], folder: Path, root: Path, config: IngestConfig, workers: int, *, alone: bool
) -> Iterator[tuple[str, Stowed]]:
    most = 1 if alone else workers + 1  # few in flight, so that stopping is quick
    context = multiprocessing.get_context("spawn")
    waiting = iter(cases)
    begun = context.Event()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(begun,)) as pool:
        running: dict[Future[Stowed], str] = {}
        try:
            while True:
                for case in islice(waiting, most - len(running)):
                    running[pool.submit(stow, folder, root, case, config)] = case.id
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    id = running.pop(future)
                    yield id, future.result()
        except BrokenProcessPool as error:
            if begun.is_set():
                raise
            raise ResourceError(
                "The processes that read scans ended before they began, so nothing was read.",
                'In a script of your own, call it below `if __name__ == "__main__":`, or set workers to 0.',
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _killed(case: CaseRecord) -> Quarantined:
    path = case.images[0].path if case.images else ""
    reason = "The process reading it was killed, most likely for want of memory. Crop or resample the scan first."
    return Quarantined(case.id, path, "too big", reason)


def _start(begun: Event) -> None:
    begun.set()
    end_with_parent()
