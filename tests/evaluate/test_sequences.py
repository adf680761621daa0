"""Example sequences before training: from a dataset or the open scan, beside it, with the borders of the slabs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training_backend.config import IngestConfig, RunConfig
from training_backend.config.presets import pretrain_config
from training_backend.data.ingest import ingest
from training_backend.data.phantoms import mr_contrasts, thorax_ct, write_cohort
from training_backend.errors import ConfigError, Med3dError
from training_backend.evaluate.sequences import example_sequences

SIZE = (16, 24, 20)


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads in three contrasts."""

    def three(seed: int, shape: Any) -> Any:
        return mr_contrasts(seed, shape, contrasts=("T1", "T2", "PD"))

    source = write_cohort(tmp_path_factory.mktemp("heads"), 4, seed=5, shape=(24, 28, 26), kind=three)
    folder = tmp_path_factory.mktemp("dataset")
    ingest(source, folder, IngestConfig(workers=0, crop_body=False, splits=(0.75, 0.25, 0.0)))
    return folder


def config(dataset: Path, **sequence: Any) -> RunConfig:
    changes = {"data": {"size": SIZE, "workers": 0, "sequence": {"stride": 2, **sequence}}}
    return pretrain_config("ar", "tiny", dataset, changes)


def test_without_a_dataset_the_open_scan_gives_a_spatial_sequence(tmp_path: Path) -> None:
    scan = thorax_ct(1, (30, 40, 36)).volume
    pictures, text = example_sequences(config(tmp_path / "none", slabs=4), [scan], seed=3)
    image, slabs = (one.picture for one in pictures)
    assert (image.name, slabs.name) == ("spatial", "spatial slabs")
    assert image.array.shape == slabs.array.shape == SIZE
    assert (image.array.min(), image.array.max()) == (0, 1)
    np.testing.assert_array_equal(np.unique(slabs.array), [1, 2, 3, 4])
    for number in range(1, 4):  # slabs are 4 slices thick and 2 apart, so the last two are the next one's first two
        np.testing.assert_array_equal(
            image.array[4 * number - 2 : 4 * number], image.array[4 * number : 4 * number + 2]
        )
    assert "4 slabs of 4 slices, 2 apart" in text
    again, _ = example_sequences(config(tmp_path / "none", slabs=4), [scan], seed=4)
    assert not np.array_equal(again[0].picture.array, image.array)


def test_every_kind_of_a_dataset_is_shown_beside_the_scan(heads: Path) -> None:
    scan = thorax_ct(1, (30, 40, 36)).volume
    asked = config(heads, slabs=2, contrast=1.0, contrasts=("T2", "T1"))
    pictures, text = example_sequences(asked, [scan])
    assert [one.picture.name for one in pictures] == ["spatial", "spatial slabs", "contrast", "contrast slabs"]
    assert "Contrast: The same box of one case in T2, T1; 8 slices each." in text
    edge = (scan.geometry.to_lps @ (0, 0, scan.array.shape[2] - 1, 1))[0]
    for one in pictures[::2]:  # each to the left of what was before, as high as the scan and at its height
        assert (one.geometry.to_lps @ (0, 0, 0, 1))[0] > edge
        edge = (one.geometry.to_lps @ (0, 0, SIZE[2] - 1, 1))[0]
        middle = one.geometry.to_lps @ ((SIZE[0] - 1) / 2, 0, 0, 1)
        whole = scan.geometry.to_lps @ ((scan.array.shape[0] - 1) / 2, 0, 0, 1)
        assert middle[2] == pytest.approx(whole[2])
        assert SIZE[0] * one.geometry.spacing_mm[0] == pytest.approx(scan.array.shape[0] * scan.geometry.spacing_mm[0])
    np.testing.assert_array_equal(pictures[3].picture.array[:, 0, 0], [1] * 8 + [2] * 8)


def test_a_kind_that_cannot_be_made_is_said_and_the_others_are_shown(heads: Path) -> None:
    asked = config(heads, slabs=4, contrast=1.0, contrasts=("T1", "T2", "PD", "FLAIR"))
    pictures, text = example_sequences(asked, [])
    assert [one.picture.name for one in pictures] == ["spatial", "spatial slabs"]
    assert "No contrast sequence: " in text
    assert "FLAIR" in text
    with pytest.raises(Med3dError, match="FLAIR"):
        example_sequences(config(heads, spatial=0.0, contrast=1.0, contrasts=("T1", "T2", "PD", "FLAIR")), [])


def test_nothing_to_show_and_wrong_settings_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Choose a dataset, or open a scan"):
        example_sequences(config(tmp_path / "none"), [])
    with pytest.raises(ConfigError, match="cannot be glued from 3 equal slabs"):
        example_sequences(config(tmp_path / "none", slabs=3), [thorax_ct(1, (30, 40, 36)).volume])
