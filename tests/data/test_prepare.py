"""What a network sees, and the way back: labels return to the grid of the file they came from."""

from __future__ import annotations

import numpy as np
import pytest

from training_backend.config import DataConfig, IngestConfig, IntensityConfig
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.phantoms import mr_contrasts, oblique, thorax_ct, write_cohort
from training_backend.data.prepare import InputProfile, Prepared, prepare, stored_input
from training_backend.data.read import read_labels, read_volumes
from training_backend.data.resample import resample
from training_backend.data.standard import standardise
from training_backend.data.store import open_case
from training_backend.data.volume import Geometry, Volume
from training_backend.errors import DataError, GeometryError


def dice(one, other):
    return 2 * (one & other).sum() / max(1, one.sum() + other.sum())


def on_grid(phantom, prepared):
    """Labels of the phantom on the prepared grid, as a perfect network would draw them."""
    return resample(phantom.labels.array, phantom.labels.geometry, prepared.geometry, nearest=True)


@pytest.mark.parametrize("crop_body", [True, False])
@pytest.mark.parametrize("kind", [thorax_ct, oblique])
def test_without_a_spacing_the_way_back_is_exact(kind, crop_body):
    phantom = kind(0)
    prepared = prepare(phantom.volumes, InputProfile(crop_body=crop_body))
    labels = on_grid(phantom, prepared)
    restored = prepared.restore_labels(labels)
    assert restored.shape == phantom.volume.geometry.shape
    assert np.array_equal(restored, phantom.labels.array)
    assert (prepared.geometry.shape != prepared.native.shape) == (crop_body and kind is thorax_ct)


@pytest.mark.parametrize("kind", [thorax_ct, oblique, mr_contrasts])
def test_through_spacing_and_body_box_labels_come_back(kind):
    phantom = kind(3)
    spacing = tuple(mm * 0.6 for mm in phantom.volume.geometry.spacing_mm)
    prepared = prepare(phantom.volumes[:1], InputProfile(spacing_mm=spacing))
    assert prepared.geometry.spacing_mm == pytest.approx(spacing)
    labels = on_grid(phantom, prepared)
    restored = prepared.restore_labels(labels)
    probabilities = np.stack([(labels == value).astype(np.float32) for value in range(6)])
    smooth = prepared.restore_labels(probabilities)
    for entry in phantom.classes:
        truth = phantom.labels.array == entry.index
        if not truth.any():
            continue
        assert dice(restored == entry.index, truth) > 0.97, entry.name
        assert dice(smooth == entry.index, truth) > 0.97, entry.name


@pytest.mark.parametrize("keep_aspect", [True, False])
def test_through_a_whole_volume_view_labels_come_back(keep_aspect):
    phantom = thorax_ct(2, (40, 60, 60))
    profile = InputProfile(view="volume", size=(96, 96, 96), keep_aspect=keep_aspect)
    prepared = prepare(phantom.volumes, profile)
    assert prepared.array.shape == (1, 96, 96, 96)
    assert (prepared.padding is not None) == keep_aspect
    steps = prepared.geometry.spacing_mm
    assert (max(steps) / min(steps) < 1.001) == keep_aspect
    restored = prepared.restore_labels(on_grid(phantom, prepared))
    for entry in phantom.classes[:4]:
        assert dice(restored == entry.index, phantom.labels.array == entry.index) > 0.93, entry.name
    if prepared.padding is not None:
        assert (prepared.array[0][prepared.padding] == prepared.array.min()).all(), "padding looks like air"


def test_the_middle_is_seen_larger_and_lies_where_it_was():
    phantom, shares = thorax_ct(2, (40, 60, 60)), (0.88, 0.65625, 0.875)
    profile = InputProfile(view="volume", size=(96, 64, 96), keep_aspect=False, centre=shares, crop_body=False)
    prepared = prepare(phantom.volumes, profile)
    extent = np.multiply(phantom.volume.array.shape, phantom.volume.geometry.spacing_mm)
    seen = np.multiply(prepared.geometry.shape, prepared.geometry.spacing_mm)
    np.testing.assert_allclose(seen / extent, shares, rtol=1e-6)
    kept = tuple(slice(round(n * (1 - s) / 2) + 1, -round(n * (1 - s) / 2) - 1) for n, s in zip((40, 60, 60), shares))
    error = prepared.restore(prepared.in_units(prepared.array[0]), fill=-1000)[kept] - phantom.volume.array[kept]
    assert np.median(np.abs(error[np.abs(phantom.volume.array[kept]) < 500])) < 25
    restored = prepared.restore_labels(on_grid(phantom, prepared))
    inside = np.zeros(restored.shape, bool)
    inside[kept] = True
    assert dice((restored > 0) & inside, (phantom.labels.array > 0) & inside) > 0.93
    assert not restored[:2].any(), "nothing is told of what was not seen"


def test_one_share_is_that_of_slices_as_earlier_versions_wrote_it():
    assert InputProfile(centre=0.75).centre == (1.0, 0.75, 0.75)
    assert DataConfig(centre=0.75).centre == (1.0, 0.75, 0.75)
    with pytest.raises(ValueError, match="above 0 and up to 1"):
        DataConfig(centre=(1.0, 0.0, 1.0))


def test_continuous_maps_return_to_their_place():
    phantom = thorax_ct(1, (32, 48, 48))
    prepared = prepare(
        phantom.volumes, InputProfile(spacing_mm=(4.0, 4.0, 4.0), intensity=IntensityConfig(low=-1000, high=1000))
    )
    hu = prepared.restore(prepared.in_units(prepared.array[0]), fill=-1000)
    error = np.abs(hu - np.clip(phantom.volume.array, -1000, 1000))
    assert np.median(error) < 25
    assert prepared.in_units(np.zeros(3), differences=True) == pytest.approx([0, 0, 0])
    assert prepared.in_units(np.ones(1), differences=True) == pytest.approx([2000])


def test_the_store_and_a_file_give_the_same_input(dataset, mr_dataset, run_config):
    for one, contrasts in ((dataset, ()), (mr_dataset, ("T2", "T1"))):
        config = run_config(one.folder, data={"contrasts": contrasts})
        profile = InputProfile.of(config, one.info)
        for case in one.cases()[:2]:
            stored = stored_input(one, case, profile)
            volumes = [read_volumes(one.source(image))[0] for image in case.images]
            named = [
                Volume(v.array, v.geometry, v.modality, v.name, {**v.meta, "contrast": image.contrast})
                for v, image in zip(volumes, case.images, strict=True)
            ]
            fresh = prepare(named, profile)
            assert np.array_equal(stored.array, fresh.array)
            assert stored.geometry.same_grid(fresh.geometry)
            assert stored.native.same_grid(fresh.native)
            truth = read_labels(one.source(case.label)).array
            assert np.array_equal(stored.restore_labels(stored.label), truth)


def test_auto_is_settled_for_ct(dataset, mr_dataset, run_config):
    assert dataset.info.modality == "CT"
    assert InputProfile.of(run_config(), dataset.info).intensity.profile == "window"
    assert InputProfile.of(run_config(), mr_dataset.info).intensity.profile == "auto"
    inside = thorax_ct(0).volume.array[30:50, 30:60, 30:60]  # no air around: not recognised as CT
    geometry = Geometry.from_spacing(inside.shape, (1.0, 1.0, 1.0))
    prepared = prepare([Volume(inside, geometry)], InputProfile.of(run_config(), dataset.info))
    np.testing.assert_allclose(prepared.array[0], np.clip((inside + 1200) / 2000, 0, 1), atol=1e-6)


def test_a_profile_with_another_spacing_resamples_the_store(dataset):
    case = dataset.cases()[0]
    native = open_case(dataset, case).native.spacing_mm
    profile = InputProfile(spacing_mm=tuple(1.5 * mm for mm in native))
    prepared = stored_input(dataset, case, profile)
    assert prepared.geometry.spacing_mm == pytest.approx(profile.spacing_mm)
    assert prepared.label.shape == prepared.array.shape[1:]
    truth = read_labels(dataset.source(case.label)).array
    assert dice(prepared.restore_labels(prepared.label) == 1, truth == 1) > 0.9


def test_ingest_with_spacing_comes_back_to_the_file(tmp_path):
    source = write_cohort(tmp_path / "in", 1, seed=9, shape=(48, 72, 72))
    ingest(source, tmp_path / "out", IngestConfig(spacing_mm=(4.0, 4.0, 4.0), workers=0))
    dataset = Dataset.open(tmp_path / "out")
    [case] = dataset.cases()
    prepared = stored_input(dataset, case, InputProfile(spacing_mm=(4.0, 4.0, 4.0)))
    truth = read_labels(dataset.source(case.label)).array
    restored = prepared.restore_labels(prepared.label)
    for value in (1, 2, 3, 4):
        assert dice(restored == value, truth == value) > 0.9


def test_a_contrast_on_another_grid_is_brought_onto_the_first():
    upright, tilted = mr_contrasts(3, contrasts=("T1",)), oblique(3)
    prepared = prepare([upright.volume, tilted.volume], InputProfile(contrasts=("T1", "T2"), crop_body=False))
    direct = mr_contrasts(3).volumes[1].array.astype(float)
    inside = upright.labels.array > 0
    assert np.corrcoef(prepared.array[1][inside], direct[inside])[0, 1] > 0.85


def test_missing_contrasts_and_wrong_shapes_are_sentences():
    phantom = mr_contrasts(1, (16, 20, 18))
    with pytest.raises(DataError, match=r"looks at 3 contrasts \(T1, T2, PD\), but 2 were given \(T1, T2\)"):
        prepare(phantom.volumes, InputProfile(contrasts=("T1", "T2", "PD")))
    with pytest.raises(DataError, match="No volume"):
        prepare([], InputProfile())
    prepared = prepare(phantom.volumes, InputProfile())
    with pytest.raises(DataError, match="the prepared scan"):
        prepared.restore_labels(np.zeros((3, 3, 3), np.uint8))


def test_labels_that_do_not_belong_are_refused():
    phantom = thorax_ct(0, (16, 24, 24))
    geometry = phantom.volume.geometry
    shifted = Geometry.from_spacing(geometry.shape, geometry.spacing_mm, (50.0, 0.0, 0.0))
    with pytest.raises(GeometryError, match="mm away from its image"):
        standardise([phantom.volume], Volume(phantom.labels.array, shifted), None, crop_body=True)
    small = Volume(phantom.labels.array[:-1], geometry.cropped((0, 0, 0), (15, 24, 24)))
    with pytest.raises(GeometryError, match="Give the label map that was drawn on this image"):
        standardise([phantom.volume], small, None, crop_body=True)
    with pytest.raises(DataError, match="0 to 254 are expected"):
        standardise(
            [phantom.volume], phantom.labels.with_array(phantom.labels.array.astype(int) - 1), None, crop_body=True
        )


def test_labels_outside_the_body_keep_the_whole_volume():
    phantom = thorax_ct(0)
    marks = phantom.labels.array.copy()
    marks[2, 1, 1] = 3
    standard = standardise([phantom.volume], phantom.labels.with_array(marks), None, crop_body=True)
    assert standard.images[0].shape == phantom.volume.array.shape
    assert any("outside the detected body" in problem for problem in standard.problems)


def test_many_classes_do_not_need_many_volumes():
    phantom = thorax_ct(0, (16, 24, 24))
    prepared = prepare(phantom.volumes, InputProfile())
    assert isinstance(prepared, Prepared)
    probabilities = np.zeros((300, *prepared.geometry.shape), np.float16)
    probabilities[299] = 1
    assert (prepared.restore_labels(probabilities) == 299).sum() == np.prod(prepared.geometry.shape)
