"""What would hinder a run, found before it starts: one line per check, each a sentence."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from training_backend.config import ConfigModel, RunConfig
from training_backend.config.registry import method as find_method
from training_backend.config.registry import task as find_task
from training_backend.errors import Med3dError

if TYPE_CHECKING:
    from training_backend.data.dataset import Dataset
    from training_backend.data.manifest import CaseRecord
    from training_backend.data.streams import Stream

Kind = Literal["ok", "warning", "error"]
LEAST_FREE_GB = 1.0


@dataclass(frozen=True)
class Check:
    """One line of the list; an "error" forbids the start."""

    kind: Kind
    sentence: str


def checks(config: RunConfig, runs_folder: Path) -> list[Check]:
    """All checks of a run that is about to start; reads the dataset's manifest, so call it off the Qt thread."""
    found = [_torch(), *_data(config), *_sequences(config), *_views(config), *_method(config)]
    if config.kind == "finetune" and not config.weights:
        found.append(Check("warning", "No backbone is chosen: training starts from random weights."))
    found.append(_disk(runs_folder))
    return found


def _torch() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check("error", "PyTorch is not installed; the Doctor has the command that installs it.")
    return Check("ok", "PyTorch is installed.")


def _data(config: RunConfig) -> list[Check]:
    from training_backend.data.ar_lists import open_dataset

    try:
        dataset = open_dataset(config)
    except Med3dError as error:
        return [Check("error", f"{error} Choose or make one in Data.")]
    train, val = (_usable(config, dataset.cases(split=split)) for split in ("train", "val"))
    if config.kind == "pretrain":
        train += dataset.cases(split="unlabelled")
    if not train:
        what = {"labels": " with a label map", "target": " with a target", "text": " with a report"}
        return [Check("error", f"The dataset {dataset.info.name} has no training case{what.get(_needs(config), '')}.")]
    found = [Check("ok", f"{len(train)} cases to train on in {dataset.info.name}.")]
    if not val:
        found.append(Check("warning", "No case is held out, so nothing tells how good the model is on new scans."))
    return [*found, *_recipe(config, dataset), *_contrasts(config, dataset, train), *_sizes(config, train)]


def _recipe(config: RunConfig, dataset: Dataset) -> list[Check]:
    if not config.recipe:
        return []
    from training_backend.config.recipes import recipe
    from training_backend.data.fits import misfits

    try:
        return [Check(misfit.kind, misfit.sentence) for misfit in misfits(recipe(config.recipe), dataset)]
    except Med3dError as error:
        return [Check("error", str(error))]


def _contrasts(config: RunConfig, dataset: Dataset, cases: Sequence[CaseRecord]) -> list[Check]:
    missing = sorted(set(config.data.contrasts) - set(dataset.info.contrasts))
    if missing and dataset.info.contrasts:
        known = ", ".join(dataset.info.contrasts)
        return [Check("error", f"The dataset has no contrast {', '.join(missing)}; it has {known}.")]
    return []


def _sizes(config: RunConfig, cases: Sequence[CaseRecord]) -> list[Check]:
    shapes = [case.images[0].shape for case in cases if case.images and case.images[0].shape]
    small = [shape for shape in shapes if any(n < want for n, want in zip(shape, config.data.size, strict=True))]
    if config.data.view == "crop" and small:
        view = _times(config.data.size)
        text = f"{len(small)} of {len(cases)} scans are smaller than a view of {view}; they are padded."
        return [Check("warning", text)]
    return []


def _sequences(config: RunConfig) -> list[Check]:
    if config.data.view != "sequence":
        return []
    from training_backend.data.ar_lists import open_dataset
    from training_backend.data.sequence import open_sequences

    try:
        dataset = open_dataset(config)
    except Med3dError:
        return []  # told already
    cases = [case for split in ("train", "unlabelled") for case in dataset.cases(split=split)]  # type: ignore[arg-type]
    try:
        sequences = open_sequences(dataset, config, cases, "train")
    except Med3dError as error:
        return [Check("error", str(error))]
    if sequences.left_out:
        return [Check("warning", sentence) for sentence in sequences.left_out]
    return [Check("ok", "The data can give every kind of sequence that is asked for.")]


def _views(config: RunConfig) -> list[Check]:
    patch = getattr(config.method, "patch_size", None)
    if not patch:
        return []
    size = config.data.size
    if all(n % p == 0 for n, p in zip(size, patch, strict=True)):
        tokens = 1
        for n, p in zip(size, patch, strict=True):
            tokens *= n // p
        return [Check("ok", f"A view of {_times(size)} voxels has {tokens} patches of {_times(patch)}.")]
    near = tuple(max(p, round(n / p) * p) for n, p in zip(size, patch, strict=True))
    text = f"The view {_times(size)} is no multiple of the patch {_times(patch)}; the nearest size is {_times(near)}."
    return [Check("error", text)]


def _method(config: RunConfig) -> list[Check]:
    """Settings other than those that the method's own ask for, a teacher to come, and labels where it wants some."""
    if config.kind != "pretrain":
        return []
    method, found = find_method(config.method.name), []
    asked = method.implied(config.method.model_dump()).get("data", {})
    for name, value in asked.items():
        given = getattr(config.data, name)
        plain = given.model_dump() if isinstance(given, ConfigModel) else given
        same = {**plain, **value} == plain if isinstance(value, Mapping) else plain == value
        if not same:
            text = f"data.{name} is not what the settings of the method ask for: {_plain(value)}."
            found.append(Check("warning", text))
    try:
        part, streams = method.snapshot(config), method.streams(config)
    except Med3dError as error:
        return [*found, Check("error", str(error))]
    for name, stream in streams.items():
        found.append(_stream(name, stream))
    if part is not None:
        text = f"After {part.share:.0%} of the steps a copy of the network labels for it"
        found.append(Check("ok", f"{text}, which takes memory and time; Estimate counts them."))
    return found


def _stream(name: str, stream: Stream) -> Check:
    from training_backend.data.dataset import Dataset

    try:
        dataset = Dataset.open(stream.config.data.dataset)
    except Med3dError as error:
        return Check("error", f"The {name} cases: {error}")
    usable = [case for case in dataset.cases(split="train") if case.has(stream.needs)]  # type: ignore[arg-type]
    if not usable:
        return Check("error", f"{dataset.info.name} has no {name} training case, which this stage learns from.")
    try:
        if stream.check is not None and stream.config.data.train_cases is None:
            stream.check(usable)
    except Med3dError as error:
        return Check("error", str(error))
    return Check("ok", f"{len(usable)} {name} cases in {dataset.info.name}.")


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items())
    return _times(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free / 1e9
    if free < LEAST_FREE_GB:
        return Check("error", f"Only {free:.1f} GB are free for runs in {folder}; free some space.")
    return Check("ok", f"{free:.0f} GB are free for runs.")


def _usable(config: RunConfig, cases: list[CaseRecord]) -> list[CaseRecord]:
    return [case for case in cases if case.has(_needs(config))]


def _needs(config: RunConfig) -> str:
    return find_task(config.task.name).needs if config.task is not None else ""


def _times(numbers: Sequence[int]) -> str:
    return "×".join(str(n) for n in numbers)
