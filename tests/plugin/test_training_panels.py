"""Pre-train and Fine-tune: from the form to a started run, with a model process that answers from a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtWidgets import QApplication, QFileDialog, QMessageBox

from napari_med3dssl import _layers, weights_picker
from napari_med3dssl._state import State
from napari_med3dssl.finetune_panel import FinetunePanel
from napari_med3dssl.import_report import ImportReportDialog
from napari_med3dssl.pretrain_panel import PretrainPanel
from training_backend.config import RunConfig
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.config.recipes import recipe_config
from training_backend.data.phantoms import thorax_ct
from training_backend.errors import ResourceError, WeightsError
from training_backend.jobs import launcher
from training_backend.jobs.registry import list_runs, new_run
from training_backend.jobs.sources import WeightsSource


class FakeClient:
    """Answers requests from a table and remembers them."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.requests: list[tuple[str, dict[str, Any]]] = []

    def request(self, op: str, *, progress: Any = None, **params: Any) -> dict[str, Any]:
        self.requests.append((op, params))
        progress(0.5, "Working")
        answer = self.answers[op]
        if isinstance(answer, Exception):
            raise answer
        return answer(params) if callable(answer) else answer

    def cancel(self) -> None:
        self.answers["cancelled"] = True

    def close(self) -> None:
        pass


@pytest.fixture
def client(state: State) -> FakeClient:
    state._client = FakeClient()
    return state._client


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Runs that would have been launched."""
    runs: list[Path] = []
    monkeypatch.setattr(launcher, "launch", lambda run: runs.append(run.path))
    return runs


@pytest.fixture
def pretrain(state: State, client: FakeClient, shown: Callable[..., Any]) -> PretrainPanel:
    panel = shown(PretrainPanel(state))
    panel.method.setCurrentIndex(panel.method.findData("mae3d"))
    panel.method.activated.emit(panel.method.currentIndex())
    return panel


@pytest.fixture
def finetune(state: State, client: FakeClient, shown: Callable[..., Any]) -> FinetunePanel:
    return shown(FinetunePanel(state))


def ready(panel: Any, dataset: Path, wait: Callable[..., None]) -> None:
    panel.state.dataset = dataset
    for path in ("data.size",):
        panel.form.editor(path).show_value((16, 32, 32))
    panel.launch.check()
    wait(panel.launch.start_button.isEnabled, 60, panel.launch.list.text)


def test_without_a_dataset_the_way_to_one_is_shown_and_nothing_can_start(
    pretrain: PretrainPanel, wait: Callable[..., None]
) -> None:
    wait(lambda: "Data tab" in pretrain.launch.list.text())
    assert not pretrain.launch.start_button.isEnabled()
    assert "Data tab" in pretrain.dataset.text()


def test_the_form_starts_exactly_the_run_it_shows(
    pretrain: PretrainPanel, dataset: Path, started: list[Path], wait: Callable[..., None]
) -> None:
    ready(pretrain, dataset, wait)
    wanted: list[Any] = []
    pretrain.state.tab_wanted.connect(lambda *what: wanted.append(what))
    pretrain.form.editor("optim.lr").show_value(0.003)
    pretrain.launch.name.setText("my run ä")
    pretrain.launch.start(queue=False)
    wait(lambda: bool(wanted))
    assert wanted == [("Runs", started[0])]
    [run] = list_runs()
    assert run.name == "my run ä"
    changes = {"data": {"size": (16, 32, 32)}, "optim": {"lr": 0.003}}
    assert RunConfig.load(run.path / "config.yaml") == pretrain_config("mae3d", "tiny", dataset, changes)


def test_mistakes_forbid_the_start_and_name_the_field(
    pretrain: PretrainPanel, dataset: Path, wait: Callable[..., None]
) -> None:
    ready(pretrain, dataset, wait)
    edit = pretrain.form.editor("optim.lr").edit
    edit.setText("-3")
    edit.textEdited.emit("-3")
    wait(lambda: "optim.lr" in pretrain.launch.list.text())
    assert not pretrain.launch.start_button.isEnabled()


def test_estimate_yaml_and_command(
    pretrain: PretrainPanel,
    client: FakeClient,
    dataset: Path,
    tmp_path: Path,
    wait: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ready(pretrain, dataset, wait)
    client.answers["estimate"] = {"sentence": "About 3 minutes."}
    pretrain.launch.estimate()
    wait(lambda: pretrain.launch.notice.text == "About 3 minutes.")
    assert client.requests[0][1]["config"]["data"]["size"] == [16, 32, 32]
    client.answers["estimate"] = ResourceError("Not even one view fits.", "Choose a smaller view.")
    pretrain.launch.estimate()
    wait(lambda: pretrain.launch.notice.text == "Not even one view fits. Choose a smaller view.")
    path = tmp_path / "settings.yaml"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(path), ""))
    pretrain.launch.save_yaml()
    assert RunConfig.load(path) == pretrain.config()
    pretrain.launch.copy_command()
    assert "--data.size 16 32 32" in QApplication.clipboard().text()


def test_masking_is_previewed_on_the_open_scan(
    pretrain: PretrainPanel, client: FakeClient, dataset: Path, wait: Callable[..., None]
) -> None:
    ready(pretrain, dataset, wait)
    pretrain.preview_masking()
    assert "Open a scan first" in pretrain.launch.notice.text
    phantom = thorax_ct(0, (16, 24, 24))
    _layers.add(pretrain.state.viewer, _layers.volume_layer(phantom.volume))
    picture = {"geometry": phantom.volume.geometry, "role": "image", "limits": [0.0, 1.0], "classes": []}
    array = np.zeros(phantom.volume.array.shape, np.float32)
    client.answers["preview_masking"] = {"pictures": [{"name": "masked", "array": array, **picture}]}
    pretrain.preview_masking()
    wait(lambda: len(pretrain.state.viewer.layers) == 2)
    assert client.requests[-1][1]["volumes"][0].array is not None
    np.testing.assert_allclose(*(layer.translate for layer in pretrain.state.viewer.layers))


def test_a_run_fills_the_form_again(pretrain: PretrainPanel, dataset: Path) -> None:
    config = pretrain_config("mae3d", "small", dataset, {"method": {"mask_ratio": 0.6}, "seed": 5})
    run = new_run(config, "old")
    pretrain.show_run(run.path)
    assert pretrain.config() == config
    assert pretrain.preset.currentData() == "small"


def test_fine_tuning_takes_classes_and_the_encoder_s_settings(
    finetune: FinetunePanel, dataset: Path, started: list[Path], wait: Callable[..., None]
) -> None:
    changes = {"method": {"embed_dim": 48, "heads": 4}, "data": {"intensity": {"profile": "zscore"}}}
    backbone = new_run(pretrain_config("mae3d", "tiny", dataset, changes), "backbone")
    finetune.state.dataset = dataset
    assert [finetune.classes.item(row, 2).text() for row in range(5)] == ["lung", "heart", "liver", "spine", "nodule"]
    finetune.weights.choose(str(backbone.path))
    ready(finetune, dataset, wait)
    config = finetune.config()
    assert config.method.embed_dim == 48
    assert config.data.intensity.profile == "zscore"
    assert config.weights == str(backbone.path)
    assert config.task.classes == ()
    finetune.classes.item(1, 2).setText("Herz")
    assert finetune.config().task.classes == ("background", "lung", "Herz", "liver", "spine", "nodule")
    finetune.classes.item(1, 2).setText("lung")
    wait(lambda: "different names" in finetune.launch.list.text())
    assert not finetune.launch.start_button.isEnabled()


REPORT = {
    "share": 0.92,
    "encoder": 50,
    "encoder_matched": 46,
    "text": "many names",
    "matched": ["a"] * 46,
    "missing": ["b"] * 4,
    "unexpected": [],
    "resized": [],
    "mismatched": [],
    "data": {"size": [32, 32, 32], "view": "crop"},
}


def test_weights_of_a_file_are_judged_before_they_are_used(
    finetune: FinetunePanel, client: FakeClient, dataset: Path, tmp_path: Path, wait: Callable[..., None]
) -> None:
    finetune.state.dataset = dataset
    method = pretrain_config("mae3d", "base", dataset).method.model_dump()
    client.answers["import_report"] = {**REPORT, "method": method}
    path = tmp_path / "weights.pth"
    path.touch()
    finetune.weights.choose(str(path))
    wait(lambda: finetune.findChild(ImportReportDialog) is not None)
    dialog = finetune.findChild(ImportReportDialog)
    assert "46 of 50 encoder tensors match (92.0%)" in dialog.notice.text
    dialog.accept()
    assert finetune.config().method.size == "base"
    assert finetune.config().weights == str(path)


def test_refused_weights_are_told_and_declined_ones_forgotten(
    finetune: FinetunePanel, client: FakeClient, dataset: Path, tmp_path: Path, wait: Callable[..., None]
) -> None:
    finetune.state.dataset = dataset
    client.answers["import_report"] = WeightsError("Only 3 of 50 encoder tensors match.", "Choose others.")
    finetune.weights.choose(str(tmp_path / "other.pth"))
    wait(lambda: "Only 3 of 50" in finetune.launch.notice.text)
    client.answers["import_report"] = {
        **REPORT,
        "method": pretrain_config("mae3d", "tiny", dataset).method.model_dump(),
    }
    finetune.weights.choose(str(tmp_path / "third.pth"))
    wait(lambda: finetune.findChild(ImportReportDialog) is not None)
    finetune.findChild(ImportReportDialog).reject()
    assert finetune.weights.source == ""


def test_published_weights_are_downloaded_after_their_licence_was_accepted(
    finetune: FinetunePanel, wait: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = WeightsSource("zoo:x", "zoo: x", "Licence: CC-BY-NC-4.0.", False, "https://x", True)
    browser = WeightsSource("zoo:y", "zoo: y", "Licence: not stated.", False, "https://y", False)
    picker = finetune.weights
    wait(lambda: picker.box.count() > 3)
    monkeypatch.setattr(picker, "_find", lambda: [entry, browser])
    picker._fill([entry, browser])
    asked: list[str] = []
    answer = QMessageBox.StandardButton.No

    def question(_parent: Any, _title: str, text: str) -> QMessageBox.StandardButton:
        asked.append(text)
        return answer

    monkeypatch.setattr(QMessageBox, "question", question)
    monkeypatch.setattr(weights_picker, "download", lambda source, progress: progress(0.5) and source)
    picker._on_choice(picker.box.findData("zoo:x"))
    assert "CC-BY-NC-4.0" in asked[0]
    assert picker.source == ""
    answer = QMessageBox.StandardButton.Yes
    monkeypatch.setattr(finetune, "read_report", lambda: None)
    picker._on_choice(picker.box.findData("zoo:x"))
    wait(lambda: picker.source == "zoo:x")
    picker._on_choice(picker.box.findData("zoo:y"))
    assert "browser from https://y" in picker.notice.text


def test_the_selected_scan_is_predicted_and_exported_on_its_own_grid(
    finetune: FinetunePanel, client: FakeClient, dataset: Path, tmp_path: Path, wait: Callable[..., None]
) -> None:
    from training_backend.data.read import read_labels

    run = new_run(finetune_config("segmentation", "tiny", dataset), "model")
    (run.path / "model.safetensors").touch()
    box = finetune.predict
    box.refresh()
    wait(lambda: box.model.count() == 1)
    box.predict()
    assert "Open a scan first" in box.notice.text
    phantom = thorax_ct(1, (16, 24, 24))
    viewer = finetune.state.viewer
    _layers.add(viewer, _layers.volume_layer(phantom.volume, name="scan"))

    def answer(params: dict[str, Any]) -> dict[str, Any]:
        [volume] = params["volumes"]
        return {
            "labels": volume.with_array(phantom.labels.array, name="scan segmentation", meta={"kind": "labels"}),
            "classes": [entry.model_dump() for entry in phantom.classes],
            "volumes_ml": {"lung": 3.25, "heart": 1.5},
            "probabilities": [volume.with_array(np.zeros(volume.array.shape, np.float32), name="lung")],
            "values": {},
            "notes": [],
        }

    client.answers["predict"] = answer
    box.probabilities.setChecked(True)
    box.predict()
    wait(lambda: len(viewer.layers) == 3)
    names = [layer.name for layer in viewer.layers]
    assert names == ["scan", "scan · lung · model", "scan · pred · model"]
    features = viewer.layers[-1].features
    assert float(features[features["class"] == "lung"]["ml"].iloc[0]) == 3.25
    assert [box.table.item(0, column).text() for column in (0, 1)] == ["lung", "3.2 ml"]
    target = tmp_path / "out.nii.gz"
    box.export_to(target)
    wait(lambda: "Saved" in box.notice.text)
    written = read_labels(target)
    np.testing.assert_array_equal(written.array, phantom.labels.array)
    np.testing.assert_allclose(written.geometry.affine, phantom.volume.geometry.affine, atol=1e-4)
    viewer.layers.selection.active = viewer.layers[0]
    box.predict()
    wait(lambda: box._job is not None and not box._job.running)
    assert len(viewer.layers) == 3  # replaced, not added again


def test_queueing_waits_for_the_device(
    pretrain: PretrainPanel, dataset: Path, wait: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from training_backend.jobs import queue

    queued: list[Path] = []
    monkeypatch.setattr(queue, "enqueue", lambda run: queued.append(run.path))
    ready(pretrain, dataset, wait)
    pretrain.launch.start(queue=True)
    wait(lambda: bool(queued))


def test_a_recipe_fills_the_form_is_remembered_and_says_whether_the_dataset_fits(
    finetune: FinetunePanel, dataset: Path, shown: Callable[..., Any], wait: Callable[..., None]
) -> None:
    assert finetune.recipe.itemData(0) == ""
    assert finetune.about.isHidden()
    finetune.state.dataset = dataset
    finetune.recipe.setCurrentIndex(finetune.recipe.findData("msd06-lung"))
    finetune._on_recipe()
    assert finetune.config() == recipe_config("msd06-lung", dataset)
    assert not finetune.task.isEnabled()
    assert "--spacing-mm 1 1 1" in finetune.about.text()
    finetune.launch.check()
    wait(lambda: "2 classes (background, cancer), but the dataset has label value" in finetune.launch.list.text())
    assert not finetune.launch.start_button.isEnabled()

    again = shown(FinetunePanel(finetune.state))
    assert again.recipe.currentData() == "msd06-lung"
    assert again.config() == finetune.config()
    again.recipe.setCurrentIndex(0)
    again._on_recipe()
    assert again.task.isEnabled()
    assert again.config().recipe == ""


@pytest.mark.parametrize("name", ["voco-brats21", "voco-totalsegmentator", "voco-mm-whs"])
def test_recipes_of_voco_fill_the_form(finetune: FinetunePanel, dataset: Path, name: str) -> None:
    finetune.state.dataset = dataset
    finetune.recipe.setCurrentIndex(finetune.recipe.findData(name))
    finetune._on_recipe()
    assert finetune.config() == recipe_config(name, dataset)
    assert ("--label-values" in finetune.about.text()) == (name != "voco-totalsegmentator")
    large = new_run(pretrain_config("voco", "published", dataset, {"method": {"size": "L"}}), "large")
    finetune.weights.choose(str(large.path))
    assert (finetune.config().method.size, finetune.config().method.region) == ("L", "custom")


def test_a_recipe_wants_the_backbone_of_its_system(
    finetune: FinetunePanel, client: FakeClient, dataset: Path, wait: Callable[..., None]
) -> None:
    finetune.state.dataset = dataset
    finetune.recipe.setCurrentIndex(finetune.recipe.findData("msd09-spleen"))
    finetune._on_recipe()
    finetune._accept({**REPORT, "method": pretrain_config("mae3d", "tiny", dataset).method.model_dump()})
    assert finetune.config().method.name == "ar"
    other = new_run(pretrain_config("mae3d", "tiny", dataset), "other")
    finetune.weights.choose(str(other.path))
    assert "for backbones of ar, but the one chosen is of mae3d" in finetune.launch.notice.text
    own = new_run(pretrain_config("ar", "tiny", dataset), "own")
    finetune.weights.choose(str(own.path))
    config = finetune.config()
    assert (config.method.size, config.weights) == ("tiny", str(own.path))
    assert (config.optim.lr, config.optim.layer_decay) == (3e-4, 0.75)  # not those for random weights


def test_a_run_by_a_recipe_is_shown_as_such(finetune: FinetunePanel, dataset: Path) -> None:
    run = new_run(recipe_config("la", dataset, changes={"optim": {"epochs": 3}}), "atrium")
    finetune.show_run(run.path)
    assert finetune.recipe.currentData() == "la"
    assert finetune.config().optim.epochs == 3
