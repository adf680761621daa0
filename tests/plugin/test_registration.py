"""Registration in a real window: a second scan is asked for, and warped scan, grid, Jacobian and labels come back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_med3dssl import _layers
from napari_med3dssl._state import State
from napari_med3dssl.predict_box import PredictBox
from tests.plugin.explore_kit import work_done
from training_backend.config.presets import finetune_config
from training_backend.config.registry import method, task
from training_backend.data.phantom_deformed import deformed_head
from training_backend.data.prepare import InputProfile
from training_backend.data.read import read_volume

pytestmark = pytest.mark.gl

SIZE = (16, 16, 16)


@pytest.fixture
def model(window_state: State, tmp_path: Path) -> Path:
    """A finished run whose network moves every voxel by one along x."""
    import torch

    from training_backend.jobs.registry import new_run
    from training_backend.weights.save import save_model

    small = {"method": {"embed_dim": 24, "heads": 2, "depth": 1}, "task": {"channels": (4, 8), "stem_stride": 1}}
    config = finetune_config("registration", "tiny", Path(), changes={**small, "data": {"size": SIZE}})
    network = task("registration").build(config, method("mae3d").build_encoder(config))
    with torch.no_grad():
        network.head.weight.zero_()  # type: ignore[union-attr]
        network.head.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))  # type: ignore[union-attr]
    profile = InputProfile(size=SIZE, view="volume", crop_body=False).model_dump(mode="json")
    run = new_run(config, name="register")
    save_model(run.path, network, {"kind": "finetune", "config": config.model_dump(mode="json"), "profile": profile})
    record = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    (run.path / "run.json").write_text(json.dumps({**record, "state": "finished"}), encoding="utf-8")
    return run.path


@pytest.fixture
def box(window_state: State, model: Path, qtbot: Any) -> PredictBox:
    box = PredictBox(window_state)
    window_state.viewer.window.add_dock_widget(box, name="Predict", area="right")
    work_done(qtbot)
    return box


def open_heads(viewer: Any) -> None:
    for seed, shape in ((1, (20, 26, 22)), (2, (24, 28, 20))):
        phantom = deformed_head(seed, shape)
        _layers.add(viewer, _layers.volume_layer(phantom.volume, name=f"head {seed}"))
        if seed == 1:
            labels = phantom.labels
            _layers.add(viewer, _layers.labels_layer(labels.array, labels.geometry, "tissues", phantom.classes))


def test_a_second_scan_is_asked_for_and_layers_come_back(
    window_state: State, box: PredictBox, wait: Callable[..., None], tmp_path: Path, qtbot: Any
) -> None:
    viewer = window_state.viewer
    assert box.registers
    assert box.moving.box.isVisible()
    assert not box.probabilities.isVisible()
    box.predict()
    assert "Open a scan first" in box.notice.text
    phantom = deformed_head(2, (24, 28, 20))
    _layers.add(viewer, _layers.volume_layer(phantom.volume, name="head 2"))
    box.predict()
    assert "needs two scans" in box.notice.text
    viewer.layers.clear()
    open_heads(viewer)
    assert [box.moving.box.itemText(n) for n in range(box.moving.box.count())] == ["head 1", "head 2"]
    viewer.layers.selection.active = viewer.layers["head 2"]
    box.moving.box.setCurrentText("head 1")
    box.predict()
    wait(lambda: "was moved onto" in box.notice.text, 90, lambda: box.notice.text)
    title = "head 1 onto head 2"
    made = {name: viewer.layers[f"{title} · {name}"] for name in ("warped", "Jacobian", "grid", "labels")}
    fixed = _layers.geometry_of(viewer.layers["head 2"])
    assert all(_layers.geometry_of(layer).same_grid(fixed) for layer in made.values())
    np.testing.assert_allclose(made["warped"].scale, viewer.layers["head 2"].scale)
    assert set(np.unique(made["labels"].data)) <= set(np.unique(viewer.layers["tissues"].data))
    assert made["grid"].data.max() == 1
    assert not made["Jacobian"].visible
    assert "Largest displacement 1.0 voxels" in box.notice.text
    box.export_to(tmp_path / "warped.nii.gz")
    work_done(qtbot)
    assert read_volume(tmp_path / "warped.nii.gz").geometry.same_grid(fixed)
    box.predict()  # once more: layers are replaced, not doubled
    wait(lambda: not box._job.running, 60)  # type: ignore[union-attr]
    assert sum(layer.name.startswith(title) for layer in viewer.layers) == 4


def test_models_of_other_tasks_ask_for_no_second_scan(box: PredictBox, window_state: State, qtbot: Any) -> None:
    box.model.addItem("none", "nowhere")
    box.model.setCurrentIndex(box.model.findData("nowhere"))
    assert not box.registers
    assert not box.moving.box.isVisible()
    assert box.probabilities.isVisible()
