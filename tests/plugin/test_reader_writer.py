"""Files to layers and back, as napari does it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from napari.components import ViewerModel
from napari.utils.notifications import notification_manager

from napari_med3dssl import _layers, _reader, _samples, _writer
from training_backend.data.phantoms import mr_contrasts, oblique
from training_backend.data.write import write_volume


def opened(path: Path) -> list[object]:
    viewer = ViewerModel()
    reader = _reader.get_reader(str(path))
    assert reader is not None
    return [_layers.add(viewer, layer) for layer in reader(str(path))]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_read_write_read_keeps_voxels_and_geometry(suffix: str, tmp_path: Path) -> None:
    phantom = oblique(3, (12, 20, 16))
    first = write_volume(phantom.volume, tmp_path / f"in{suffix}")
    [layer] = opened(first)
    target = tmp_path / f"out{suffix}"
    assert _writer.write_image(str(target), *layer.as_layer_data_tuple()[:2]) == [str(target)]
    [again] = opened(target)
    np.testing.assert_array_equal(again.data, layer.data)
    np.testing.assert_allclose(_layers.geometry_of(again).affine, _layers.geometry_of(layer).affine, atol=1e-4)
    assert _layers.facts_of(again)["oblique_deg"] == pytest.approx(phantom.volume.geometry.oblique_deg, abs=1e-3)


def test_label_maps_open_as_labels_and_are_saved_small(tmp_path: Path) -> None:
    phantom = mr_contrasts(3, (12, 20, 16))
    path = write_volume(phantom.labels, tmp_path / "labels.nii.gz")
    [layer] = opened(path)
    assert type(layer).__name__ == "Labels"
    layer.data = layer.data.astype(np.int64)
    [written] = _writer.write_labels(str(tmp_path / "out.nii.gz"), *layer.as_layer_data_tuple()[:2])
    image = nib.load(written)
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(image.dataobj), phantom.labels.geometry.to_source(phantom.labels.array))


def test_all_layers_are_saved_into_one_folder_without_replacing_each_other(tmp_path: Path) -> None:
    layers = _samples.mr_phantom()
    layers[1][1]["name"] = layers[0][1]["name"]
    written = _writer.write_all(str(tmp_path / "all ä"), layers)
    assert len(set(written)) == 3
    assert all(Path(path).is_file() for path in written)


def test_a_damaged_file_is_told_in_a_sentence_and_opens_nothing(tmp_path: Path) -> None:
    path = tmp_path / "broken.nii.gz"
    path.write_bytes(b"\x1f\x8b\x08" + bytes(50))
    told = []
    notification_manager.notification_ready.connect(lambda event: told.append(event.message))
    assert _reader.get_reader(str(path))(str(path)) == _reader.NOTHING
    assert len(told) == 1
    assert "broken.nii.gz" in told[0]
    assert "Traceback" not in told[0]


def test_other_files_and_empty_folders_are_left_to_other_readers(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    assert _reader.get_reader(str(text)) is None
    assert _reader.get_reader(str(tmp_path)) is None
    assert _reader.get_reader([str(text), str(text)]) is None
    assert _reader.get_reader(tmp_path / "missing.nii") is None


def test_several_dropped_files_are_all_opened(tmp_path: Path) -> None:
    phantom = mr_contrasts(1, (8, 12, 10))
    paths = [write_volume(volume, tmp_path / f"{index}.nii.gz") for index, volume in enumerate(phantom.volumes)]
    assert len(_reader.get_reader([str(path) for path in paths])(paths)) == 2


@pytest.mark.parametrize("sample", [_samples.ct_phantom, _samples.mr_phantom, _samples.oblique_phantom])
def test_samples_have_an_image_and_named_classes(sample: object) -> None:
    layers = sample()
    assert [kind for _, _, kind in layers][-1] == "labels"
    assert {kind for _, _, kind in layers[:-1]} == {"image"}
    assert len(layers[-1][1]["features"]) > 3
