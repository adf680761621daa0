"""Settings of sequences that cannot be met, and data that cannot give them: a sentence each."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from training_backend.config.data import SequenceConfig
from training_backend.config.run import RunConfig
from training_backend.data.dataset import Dataset
from training_backend.data.manifest import CaseRecord
from training_backend.data.sequence_crops import stack_extent
from training_backend.errors import ConfigError, DataError, Med3dError

logger = logging.getLogger(__name__)


def check_settings(config: RunConfig, *, listed: bool = False) -> None:
    """Refuse settings that contradict each other, whatever the data; `listed` for published lists."""
    data, settings = config.data, config.data.sequence
    depth, slabs = data.size[0], settings.slabs
    if config.task is not None:
        raise ConfigError("Sequences are for pre-training; a task needs plain views.", "Set data.view to crop.")
    if not listed and settings.spatial + settings.contrast + settings.semantic == 0:
        raise ConfigError(
            "The weights of all three kinds of sequences are 0, so nothing would be drawn.",
            "Raise data.sequence.spatial, contrast or semantic.",
        )
    if depth % slabs:
        near = max(slabs, round(depth / slabs) * slabs)
        raise ConfigError(
            f"A view of {depth} slices cannot be glued from {slabs} equal slabs.",
            f"Set data.size to {near} along z, or change data.sequence.slabs.",
        )
    extent = stack_extent(depth, slabs, settings.stride)
    if (settings.spatial > 0 or listed) and extent > depth:
        raise ConfigError(
            f"The crop of {depth} slices is shorter than the stack of its slabs: {slabs} of {depth // slabs} slices, "
            f"{settings.stride} apart, are {extent} slices long.",
            f"Set data.sequence.stride to {(depth - depth // slabs) // (slabs - 1)} or less.",
        )
    if len(data.contrasts) > 1:
        raise ConfigError(
            f"Sequences have one channel, but data.contrasts names {len(data.contrasts)}.",
            "Contrasts that stand side by side belong into data.sequence.contrasts.",
        )
    augment = data.augment
    turned = {"flip along z": augment.flip[0], "rotate": augment.rotate, "scale": augment.scale}
    used = [name for name, probability in turned.items() if probability > 0]
    if used:
        raise ConfigError(
            f"Sequences cannot be augmented with {', '.join(used)}: that would mix neighbouring slabs.",
            "Set these probabilities of data.augment to 0.",
        )


def check_table(settings: SequenceConfig) -> Path:
    """The table of lesions, which semantic sequences need."""
    if settings.lesions is None:
        raise ConfigError(
            "Semantic sequences need a table of lesions with a type, and data.sequence.lesions names none.",
            "Give DeepLesion's DL_info.csv or a CSV of boxes, or set data.sequence.semantic to 0.",
        )
    return settings.lesions


def contrasts_of(dataset: Dataset, settings: SequenceConfig) -> tuple[str, ...]:
    """Contrasts of a contrast sequence, one per slab, in order."""
    known, slabs = dataset.info.contrasts, settings.slabs
    shown = ", ".join(known) or "none"
    if not settings.contrasts:
        if len(known) < slabs:
            raise ConfigError(
                f"A contrast sequence takes one contrast per slab, {slabs} in all, but the dataset has {len(known)}: "
                f"{shown}.",
                f"Set data.sequence.slabs to {len(known)}, or data.sequence.contrast to 0."
                if len(known) > 1
                else "Set data.sequence.contrast to 0, or use a dataset whose cases have several contrasts.",
            )
        return known[:slabs]
    if len(settings.contrasts) != slabs:
        raise ConfigError(
            f"data.sequence.contrasts names {len(settings.contrasts)} contrasts for {slabs} slabs.",
            "Name one per slab, or set data.sequence.slabs to their number.",
        )
    missing = [name for name in settings.contrasts if name not in known]
    if missing:
        raise ConfigError(f"The dataset has no contrast {', '.join(missing)}; it has {shown}.", "Choose among these.")
    return settings.contrasts


def contrast_groups(
    dataset: Dataset, cases: Sequence[CaseRecord], contrasts: Sequence[str], *, warn: bool = True
) -> tuple[int, ...]:
    """Indices of the `cases` that have all `contrasts`; a `DataError` counts which are missing where none has."""
    names = [{image.contrast for image in case.images} for case in cases]
    found = tuple(index for index, own in enumerate(names) if own >= set(contrasts))
    wanted = ", ".join(contrasts)
    if not found:
        have = ", ".join(f"{name} in {sum(name in own for own in names)}" for name in contrasts)
        raise DataError(
            f"No training case of {dataset.info.name} has all of {wanted}: of {len(cases)} cases, {have}.",
            "Choose other data.sequence.contrasts, or set data.sequence.contrast to 0.",
        )
    if warn and len(found) < len(cases):
        logger.warning(
            "%d of %d training cases have all of %s; contrast sequences are drawn from these alone.",
            len(found),
            len(cases),
            wanted,
        )
    return found


def refuse_semantic(settings: SequenceConfig) -> NoReturn:
    """Say that no type has enough patients."""
    name = settings.lesions.name if settings.lesions else "the table"
    raise DataError(
        f"No type of lesion in {name} is found in {settings.slabs} patients of the training cases or more.",
        "Look at the log for the rows that were left out, lower data.sequence.slabs, or set data.sequence.semantic "
        "to 0.",
    )


def refuse_what_is_asked_for(
    problems: Mapping[str, Med3dError], settings: SequenceConfig, *, alone: bool = False
) -> None:
    """Raise the first of `problems`, by kind of sequence, that cannot be passed over.

    A weight alone may come from a preset; contrasts or a table are named by someone who wants them. Where no kind is
    left (`alone`), nothing can be passed over.
    """
    named = {"contrast": bool(settings.contrasts), "semantic": settings.lesions is not None}
    for kind, error in problems.items():
        if alone or named[kind]:
            raise error


def without(kind: str, error: Med3dError) -> str:
    """That a kind of sequence is not drawn, and why."""
    return f"Training goes on without {kind} sequences. {error}"
