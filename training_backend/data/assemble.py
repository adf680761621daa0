"""A dataset made from volumes that are computed rather than read: one case after the other, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from training_backend.config.data import IngestConfig
from training_backend.data.dataset import Dataset, Quarantined, save_quarantine
from training_backend.data.ingest import IngestReport, Progress, largest_number
from training_backend.data.manifest import CaseRecord, DatasetInfo
from training_backend.data.stow import finished, store_volumes, stored_bytes
from training_backend.data.volume import Volume
from training_backend.errors import DataError, Med3dError, ResourceError


@dataclass(frozen=True)
class Recipient:
    """A case to be, and how its volume, or the volumes of its contrasts, are made."""

    case: CaseRecord
    make: Callable[[], Volume | Sequence[Volume]]


def assemble(
    output: Path,
    info: DatasetInfo,
    cases: Iterable[Recipient],
    total: int,
    problems: Iterable[Quarantined] = (),
    progress: Progress | None = None,
) -> IngestReport:
    """Store all cases below `output` and write the manifest; what an earlier call finished is kept.

    Args:
        output: folder of the dataset.
        info: its facts; the whole volume is stored, at its own spacing.
        cases: in any order.
        total: number of cases, for the progress.
        problems: what is no case, with the reasons.
        progress: told the share done; answering False stops, and calling again goes on.

    Raises:
        DataError: no case could be stored.
        ResourceError: the disk is full.
    """
    started, config = time.monotonic(), IngestConfig(crop_body=False)
    output = Path(output)
    (output / "store").mkdir(parents=True, exist_ok=True)
    kept: list[CaseRecord] = []
    refused = list(problems)
    resumed, cancelled = 0, False
    for number, entry in enumerate(cases, 1):
        done = finished(output, entry.case, config)
        if done is not None:
            kept.append(entry.case.model_copy(update={"images": done.images, "store": done.store}))
            resumed += 1
        else:
            try:
                made = entry.make()
                volumes = [made] if isinstance(made, Volume) else made
                kept.append(store_volumes(output, entry.case, volumes, None, config))
            except ResourceError:
                raise
            except Med3dError as error:
                refused.append(Quarantined(entry.case.id, entry.case.images[0].path, "unreadable", str(error)))
            except OSError as error:
                reason = f"It cannot be read: {error.strerror or error}."
                refused.append(Quarantined(entry.case.id, entry.case.images[0].path, "unreadable", reason))
        if progress is not None and progress(number / max(total, 1)) is False:
            cancelled = True
            break
    if not kept:
        raise DataError(f"No case could be made: {refused[0] if refused else 'the source lists none'}")
    facts = {"crop_body": False, "largest": largest_number(kept)}
    Dataset(output, info.model_copy(update=facts), kept).save()
    save_quarantine(output, refused)
    ids = tuple(sorted(case.id for case in kept))
    seconds = time.monotonic() - started
    size = sum(map(stored_bytes, kept))
    return IngestReport(
        output, ids, tuple(refused), resumed=resumed, cancelled=cancelled, stored_bytes=size, seconds=seconds
    )
