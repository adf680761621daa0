"""Sequences, pre-processing and lists of AR-SSL4M against the reference."""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.parity.cases import Case, Check
from training_backend.data.ar_lists import ListSequences, in_subset, read_crop, split_lines
from training_backend.data.ar_published import covid_resized, covid_window, nodules_resized
from training_backend.data.sequence_crops import Box, crop_box, glued, prepared
from training_backend.nn.ar import END, START
from training_backend.nn.ar_sequence import visible

HIDDEN = 3
"""Number that the reference gives to every patch; only those of the start and end token are looked up."""


def check_sequences(case: Case) -> None:
    """Slabs, masks and numbers of tokens, drawn with the reference's seeds in its order."""
    config = case.config
    size, patch = config.pop("img_size"), config.pop("patch_size")
    slabs, stride, attention = config.pop("series_length"), config.pop("stride"), config.pop("attention_type")
    assert not config, f"settings that are not understood: {sorted(config)}"
    assert attention in ("prefix", "causal")
    tokens = int(np.prod([n // patch[0] for n in size]))  # the reference divides by the first number throughout
    stored = case.arrays["stored_volume"]
    sequences = ListSequences((), stored.shape[::-1], slabs, stride)
    for index in _numbers(case):
        draws = random.Random(int(case.arrays[f"{index}/seed"]))
        start = sequences.start(draws.randint)
        prefix = draws.randint(0, tokens - 1) if attention == "prefix" else 0
        case.compare(f"{index}/start", start, atol=0)
        case.compare(f"{index}/prefix_length", prefix, atol=0)
        ours = glued(_as_read(stored), start, slabs, stride, depth=size[2])
        case.compare(f"{index}/input_image", ours[:, ::-1, ::-1].transpose(2, 1, 0).ravel(), atol=0)
        mask = visible(torch.tensor([prefix]), tokens + 2)[0, 0]
        _equal(case, f"{index}/attention_mask", mask.flatten().numpy())
        _equal(case, f"{index}/prefix_mask", ~mask[0].numpy())  # what the start token sees carries no loss
        _equal(case, f"{index}/input_ids", np.array([START, *[HIDDEN] * tokens, END]))


def check_preprocessing(case: Case) -> None:
    """Boxes, resizing with percentiles, and the files of the two classification tasks."""
    said = case.entry["arrays"]
    patch = _told(r"patch \((\d+),\s*(\d+),\s*(\d+)\)", said)
    spacing = _told(r"input spacing ([\d.]+),\s*([\d.]+),\s*([\d.]+)", said)
    size = (int(patch[0]), int(patch[1]), int(patch[2]))
    for index in _numbers(case):
        raw, target = case.arrays[f"{index}/in"], tuple(case.arrays[f"{index}/target"].tolist())
        case.compare(f"{index}/resize_percentile", prepared(raw, target), atol=1e-5)
        draws = random.Random(int(case.arrays[f"{index}/cut_seed"]))
        _equal(case, f"{index}/cut_box_zyx", _ends(crop_box(raw.shape, size, draws.randint)))
        draws = random.Random(int(case.arrays[f"{index}/cut_boxes20_seed"]))
        count = len(case.arrays[f"{index}/cut_boxes20"])
        boxes = [_ends(crop_box(raw.shape, size, draws.randint)) for _ in range(count)]
        _equal(case, f"{index}/cut_boxes20", np.array(boxes))
        image = sitk.GetImageFromArray(case.arrays[f"{index}/itk_in"])
        image.SetSpacing(spacing)
        result = covid_resized(image, target)
        case.compare(f"{index}/itk_out", sitk.GetArrayFromImage(result), atol=1)
        case.compare(f"{index}/itk_spacing", result.GetSpacing(), rtol=1e-12)
    expected = case.arrays["npz_out"].astype(int)
    ours = nodules_resized(case.arrays["npz_in"], expected.shape[1]).astype(int)
    assert np.abs(ours - expected).max() <= 1
    assert np.mean(ours != expected) < 0.01, "fractions are cut off; only whole numbers may fall to either side"
    case.compare("covid_window", covid_window(case.arrays["covid_in"]), atol=1e-12)


def check_split(folder: Path, value: Any) -> None:
    """Which lines of the combined lists are for training and which for validation."""
    rule = dict(value["rule_inputs"])
    names = re.findall(r"'([^']+)'", rule["spatial_name"])
    spatial = [f"/d/patch_random_spatial/{names[i % len(names)]}_{i}_0_1.npy" for i in range(rule["n_spatial"])]
    series = [f"/c/{i}_a.npy,/c/{i}_b.npy" for i in range(rule["n_contrast"])]
    series += [f"/s/{i}.npy,/s/{i}x.npy" for i in range(rule["n_semantic"])]
    if rule["is_subset"]:
        spatial, series = in_subset(spatial, series)
    train, val = split_lines([*spatial, *series])
    assert (len(train), len(val)) == (value["n_train"], value["n_val"])
    assert val == value["val"]
    first, last = value["train_first"], value["train_last"]
    assert train[: len(first)] == first
    assert train[-len(last) :] == last


def _as_read(stored: np.ndarray) -> np.ndarray:
    """The array of the reference as the loader reads it from a file."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "crop.npy"
        np.save(path, stored)
        return read_crop(path)


def _numbers(case: Case) -> list[int]:
    return sorted({int(name.partition("/")[0]) for name in case.arrays if name[0].isdigit()})


def _ends(box: Box) -> list[int]:
    return [end for first, n in zip(box.start, box.size, strict=True) for end in (first, first + n)]


def _equal(case: Case, name: str, actual: Any) -> None:
    np.testing.assert_array_equal(actual, case.arrays[name], err_msg=name)


def _told(pattern: str, sentences: dict[str, str]) -> list[float]:
    """Numbers that the manifest tells in words."""
    found = next((match for text in sentences.values() if (match := re.search(pattern, text))), None)
    if found is None:
        pytest.fail(f"the manifest does not say {pattern}")
    return [float(number) for number in found.groups()]


CHECKS: dict[str, Check] = {r"pretrain/image_dataset\.py": check_sequences, r"^preprocess/": check_preprocessing}
LISTS: dict[str, Callable[[Path, Any], None]] = {r"list_split_\w+": check_split}
