"""Phantoms are repeatable, asymmetric, and described truly by their reports."""

from __future__ import annotations

import csv
import time

import numpy as np
import pytest

from training_backend.data.phantoms import mr_contrasts, oblique, thorax_ct, write_cohort
from training_backend.data.read import read_labels, read_volume
from training_backend.data.resample import resample


@pytest.mark.parametrize("kind", [thorax_ct, mr_contrasts, oblique])
def test_a_seed_decides_everything(kind):
    one, again, other = kind(3, (24, 32, 32)), kind(3, (24, 32, 32)), kind(4, (24, 32, 32))
    assert np.array_equal(one.volume.array, again.volume.array)
    assert np.array_equal(one.labels.array, again.labels.array)
    assert (one.report, one.target) == (again.report, again.target)
    assert not np.array_equal(one.volume.array, other.volume.array)


def test_the_thorax_is_in_hounsfield_units_with_organs_on_their_sides():
    phantom = thorax_ct(0, nodules=2)
    array, labels = phantom.volume.array, phantom.labels.array
    names = {entry.name: entry.index for entry in phantom.classes}
    middle = (array.shape[2] - 1) / 2
    side = {name: np.argwhere(labels == value)[:, 2].mean() - middle for name, value in names.items()}
    assert side["liver"] < -5 < 0 < 3 < side["heart"]
    assert abs(side["spine"]) < 1
    assert array[labels == names["lung"]].mean() == pytest.approx(-860, abs=60)
    assert 20 < np.median(array[labels == names["heart"]]) < 170
    assert np.median(array[labels == names["nodule"]]) > -100
    assert np.argwhere(labels == names["spine"])[:, 1].mean() > array.shape[1] / 2, "the back is posterior"
    for axis in range(3):
        flipped = np.flip(array, axis).astype(float)
        assert np.abs(flipped - array).mean() > 25, f"a flip along {axis} must be seen"


def test_the_marker_lies_in_the_air_at_the_left_front():
    phantom = thorax_ct(0)
    dense = np.argwhere((phantom.volume.array > 1000) & (phantom.labels.array == 0))
    front_left = dense[(dense[:, 1] < 15) & (dense[:, 2] > 60)]
    assert len(front_left) > 10
    foot = front_left[front_left[:, 0] == front_left[:, 0].min()]
    top = front_left[front_left[:, 0] == front_left[:, 0].max()]
    assert np.ptp(foot[:, 2]) > np.ptp(top[:, 2]), "an upright L: the foot is below"
    assert foot[:, 2].max() > top[:, 2].max(), "and points to the left"


@pytest.mark.parametrize("seed", range(6))
def test_reports_say_what_is_there(seed):
    phantom = thorax_ct(seed, (32, 48, 48))
    nodules = int((phantom.labels.array == 5).sum())
    assert phantom.target == int(nodules > 0)
    assert ("No pulmonary nodule" in phantom.report) == (phantom.target == 0)
    if phantom.target:
        places = np.argwhere(phantom.labels.array == 5)[:, 2] - 23.5
        assert ("in the left" in phantom.report) == bool((places > 0).any())
        assert ("in the right" in phantom.report) == bool((places < 0).any())


def test_contrasts_show_one_anatomy_differently():
    phantom = mr_contrasts(3)
    t1, t2 = (volume.array.astype(float) for volume in phantom.volumes)
    assert [volume.meta["contrast"] for volume in phantom.volumes] == ["T1", "T2"]
    ventricles, white = phantom.labels.array == 3, phantom.labels.array == 2
    assert t1[white].mean() > 2 * t1[ventricles].mean()
    assert t2[ventricles].mean() > 2 * t2[white].mean()
    assert "lesion in the right" in phantom.report
    assert (phantom.labels.array == 5).any()


def test_the_oblique_scan_shows_the_same_head_tilted():
    upright, tilted = mr_contrasts(3, contrasts=("T2",)), oblique(3)
    assert tilted.volume.geometry.oblique_deg == pytest.approx(17)
    brought = resample(tilted.labels.array, tilted.labels.geometry, upright.labels.geometry, nearest=True)
    both = (brought > 0) & (upright.labels.array > 0)
    assert 2 * both.sum() / ((brought > 0).sum() + (upright.labels.array > 0).sum()) > 0.9


def test_the_patient_does_not_depend_on_the_grid():
    coarse, fine = thorax_ct(7, (32, 48, 48)), thorax_ct(7, (64, 96, 96))
    assert coarse.report == fine.report
    brought = resample(fine.labels.array, fine.labels.geometry, coarse.labels.geometry, nearest=True)
    assert (brought == coarse.labels.array).mean() > 0.97


def test_a_volume_takes_less_than_half_a_second():
    thorax_ct(0)
    started = time.process_time()
    thorax_ct(1)
    assert time.process_time() - started < 0.5 * 2  # twice, for slow machines


def test_a_cohort_can_be_read_back(tmp_path):
    folder = write_cohort(tmp_path / "Kohorte ä", 3, seed=4, shape=(16, 24, 24), labelled=2)
    with (folder / "cases.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3
    for index, row in enumerate(rows):
        phantom = thorax_ct(4000 + index, (16, 24, 24))
        image = read_volume(folder / row["Path"])
        assert np.array_equal(image.array, phantom.volume.array)
        assert image.geometry.same_grid(phantom.volume.geometry)
        assert (int(row["Label"]), row["Report"]) == (phantom.target, phantom.report)
        label = folder / "labelsTr" / f"case_{index:03d}.nii.gz"
        assert label.exists() == (index < 2)
        if index < 2:
            assert np.array_equal(read_labels(label).array, phantom.labels.array)


def test_the_table_of_lesions_has_a_box_around_each(tmp_path):
    folder = write_cohort(tmp_path, 8, seed=5, shape=(16, 24, 24), kind=mr_contrasts)
    with (folder / "lesions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    marked = {}
    for row in rows:
        labels = marked.setdefault(row["case"], read_labels(folder / "labelsTr" / f"{row['case']}.nii.gz").array.copy())
        box = tuple(slice(int(row[f"{axis}0"]), int(row[f"{axis}1"])) for axis in "zyx")
        assert (labels[box] == 5).any()
        assert row["type"] == ("left lesion" if int(row["x0"]) + int(row["x1"]) > 24 else "right lesion")
        labels[box] = 0
    assert {row["type"] for row in rows} == {"left lesion", "right lesion"}
    assert not any((labels == 5).any() for labels in marked.values()), "no lesion is outside its box"
    with (folder / "cases.csv").open() as stream:
        targets = [int(row["Label"]) for row in csv.DictReader(stream)]
    assert len(marked) == sum(targets)
