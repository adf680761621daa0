"""The layer factory: where voxels and tokens are drawn, and the way back."""

from __future__ import annotations

import itertools
import json
import warnings

import numpy as np
import pytest
from napari.components import ViewerModel

from napari_med3dssl import _layers
from training_backend.data.manifest import ClassEntry
from training_backend.data.volume import Geometry, Volume
from training_backend.errors import GeometryError

ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


def stored(order: tuple[int, ...], signs: tuple[int, ...]) -> tuple[np.ndarray, Geometry]:
    """A file array [i, j, k] whose values tell its index, and its geometry with anisotropic spacing."""
    shape = (4, 5, 6)
    affine = np.zeros((4, 4))
    for axis, (world, sign, spacing) in enumerate(zip(order, signs, (0.7, 1.3, 2.9), strict=True)):
        affine[world, axis] = sign * spacing
    affine[:, 3] = (11.0, -22.0, 33.0, 1.0)
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape), Geometry(affine, shape)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_every_orientation_is_drawn_at_its_patient_position(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    source, geometry = stored(order, signs)
    volume = Volume(geometry.to_canonical(source), geometry)
    viewer = ViewerModel()
    layer = _layers.add(viewer, _layers.volume_layer(volume))
    for index in ((0, 0, 0), (3, 4, 5), (1, 0, 4)):
        right, anterior, superior = (geometry.affine @ (*index, 1.0))[:3]
        world = (-superior, -anterior, -right)
        voxel = np.round(layer.world_to_data(world)).astype(int)
        assert layer.data[tuple(voxel)] == source[index]
        np.testing.assert_allclose(layer.data_to_world(voxel), world, atol=1e-9)
    back = _layers.volume_of(layer)
    np.testing.assert_array_equal(back.geometry.to_source(back.array), source)
    np.testing.assert_array_equal(back.geometry.affine, geometry.affine)


def oblique_geometry(shape: tuple[int, int, int], degrees: float = 12.0) -> Geometry:
    angle = np.radians(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag((0.9, 1.1, 3.0))
    affine[:3, 3] = (-80, -70, 40)
    return Geometry(affine, (shape[2], shape[1], shape[0]))


@pytest.mark.parametrize("degrees", [0.0, 12.0, 40.0])
def test_parallel_grids_overlay_exactly_however_oblique_they_are(degrees: float) -> None:
    scan = oblique_geometry((20, 24, 28), degrees)
    crop = scan.cropped((3, 5, 7), (8, 9, 10))
    viewer = ViewerModel()
    whole = _layers.add(viewer, _layers.picture_layer(np.zeros(scan.shape), scan, "scan"))
    part = _layers.add(viewer, _layers.picture_layer(np.zeros(crop.shape), crop, "crop"))
    np.testing.assert_allclose(whole.world_to_data(part.data_to_world((0, 0, 0))), (3, 5, 7), atol=1e-9)
    np.testing.assert_allclose(whole.world_to_data(part.data_to_world((7, 8, 9))), (10, 13, 16), atol=1e-9)


@pytest.mark.parametrize("start", [(0, 0, 0), (5, -3, 2)], ids=["whole", "cropped and padded"])
@pytest.mark.parametrize("voxels", [(4, 4, 4), (2, 5, 3)])
def test_the_token_that_holds_a_voxel_is_drawn_over_it(start: tuple[int, ...], voxels: tuple[int, ...]) -> None:
    scan = oblique_geometry((21, 25, 29))
    grid = (5, 6, 7)
    network_input = scan.cropped(start, tuple(n * v for n, v in zip(grid, voxels, strict=True)))
    tokens = np.arange(np.prod(grid), dtype=np.float32).reshape(grid)
    viewer = ViewerModel()
    scan_layer = _layers.add(viewer, _layers.picture_layer(np.zeros(scan.shape), scan, "scan"))
    layer = _layers.add(viewer, _layers.picture_layer(tokens, network_input, "sim", role="heatmap", voxels=voxels))
    rng = np.random.default_rng(0)
    for voxel in rng.integers((0, 0, 0), scan.shape, (60, 3)):
        token = (voxel - start) // voxels
        world = scan_layer.data_to_world(voxel)
        viewer.dims.set_point(range(3), world)
        np.testing.assert_array_equal(np.round(layer.world_to_data(world)), token)
        if (token >= 0).all() and (token < grid).all():
            assert layer.get_value(world, world=True) == tokens[tuple(token)]


def test_no_layer_switches_the_units_off() -> None:
    geometry = Geometry.from_spacing((8, 8, 8), (2.0, 1.0, 1.0))
    viewer = ViewerModel()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        array = np.zeros(geometry.shape)
        for made in (
            _layers.volume_layer(Volume(array, geometry)),
            _layers.labels_layer(array.astype(np.uint8), geometry, "labels"),
            *(_layers.picture_layer(array, geometry, role, role=role) for role in ("mask", "heatmap", "error")),
            _layers.picture_layer(np.zeros((*geometry.shape, 3), np.uint8), geometry, "rgb", role="rgb"),
            _layers.picture_layer(np.zeros((2, 2, 2)), geometry, "tokens", role="heatmap", voxels=(4, 4, 4)),
            _layers.points_layer(np.array([[1, 2, 3]]), geometry, "seeds"),
        ):
            _layers.add(viewer, made)
        assert {str(unit) for unit in viewer.layers.extent.units} == {"millimeter"}
    assert all(tuple(layer.axis_labels) == ("z", "y", "x") for layer in viewer.layers)
    assert all(layer.scale[0] < 0 < layer.scale[1] for layer in viewer.layers)


def test_metadata_are_plain_json_and_name_no_file_outside_the_scan() -> None:
    geometry = oblique_geometry((6, 7, 8))
    volume = Volume(np.zeros(geometry.shape), geometry, "MR", "t1", {"format": "nifti", "warnings": ["thick slices"]})
    _, options, _ = _layers.volume_layer(volume)
    facts = json.loads(json.dumps(options["metadata"]))["med3dssl"]
    assert facts["role"] == "image"
    assert facts["oblique_deg"] == pytest.approx(12.0)
    assert facts["provenance"] == {"format": "nifti", "warnings": ["thick slices"]}


def test_class_names_show_on_hover_and_colours_follow_the_table() -> None:
    geometry = Geometry.from_spacing((4, 4, 4), (1.0, 1.0, 1.0))
    array = np.zeros(geometry.shape, np.int64)
    array[2, 2, 2] = 7
    classes = (ClassEntry(index=7, name="liver", colour="#009e73"),)
    viewer = ViewerModel()
    layer = _layers.add(viewer, _layers.labels_layer(array, geometry, "labels", classes))
    assert layer.data.dtype == np.uint8
    status = layer.get_status(layer.data_to_world((2, 2, 2)), world=True)
    assert "liver" in str(status["value"])
    np.testing.assert_allclose(layer.colormap.map(np.uint8(7))[:3], (0, 0x9E / 255, 0x73 / 255), atol=0.01)
    assert _layers.classes_of(layer) == classes


def test_layers_of_other_origin_are_read_by_scale_and_translate() -> None:
    viewer = ViewerModel()
    layer = viewer.add_image(np.zeros((4, 5, 6)), scale=(-3, 1, 2), translate=(-9, 4, 5))
    geometry = _layers.geometry_of(layer)
    assert geometry.spacing_mm == (3, 1, 2)
    assert geometry.origin_lps == (5, 4, 9)
    assert _layers.facts_of(layer) is None


def test_a_layer_whose_shape_was_changed_is_refused_with_a_sentence() -> None:
    geometry = Geometry.from_spacing((4, 4, 4), (1.0, 1.0, 1.0))
    viewer = ViewerModel()
    layer = _layers.add(viewer, _layers.picture_layer(np.zeros(geometry.shape), geometry, "scan"))
    layer.data = np.zeros((2, 4, 4))
    with pytest.raises(GeometryError, match="2, 4, 4"):
        _layers.volume_of(layer)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.pad(np.full((4, 4, 4), 3, np.uint8), 3), True),
        (np.zeros((4, 4, 4), np.int16), True),
        (np.random.default_rng(0).integers(0, 60, (8, 8, 8)).astype(np.uint8), False),
        (np.full((4, 4, 4), -1000, np.int16), False),
        (np.zeros((4, 4, 4), np.float32), False),
    ],
    ids=["labels", "empty", "noise", "CT", "float"],
)
def test_label_maps_are_told_from_scans(array: np.ndarray, expected: bool) -> None:
    geometry = Geometry.from_spacing(array.shape, (1.0, 1.0, 1.0))
    assert _layers.is_labels(Volume(array, geometry)) is expected


@pytest.mark.parametrize("dtype", [bool, np.float16, ">i2", np.uint8, np.float64])
def test_every_number_type_can_be_drawn(dtype: object) -> None:
    geometry = Geometry.from_spacing((4, 4, 4), (1.0, 1.0, 1.0))
    data, options, _ = _layers.picture_layer(np.zeros(geometry.shape, dtype), geometry, "x")
    assert data.dtype.isnative
    assert data.dtype != np.float16
    assert options["contrast_limits"][0] < options["contrast_limits"][1]
