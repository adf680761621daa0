"""Results of a run, scans rotated against each other, and the Doctor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtWidgets import QApplication, QLineEdit, QWidget

from napari_med3dssl import _layers, _reader, _samples
from napari_med3dssl._canvas import parallel
from napari_med3dssl._state import State
from napari_med3dssl._widgets import Notice
from napari_med3dssl.doctor_panel import DoctorDialog
from napari_med3dssl.geometry_offer import GeometryOffer
from napari_med3dssl.results import ResultsDialog, case_layers, open_results, read_results
from training_backend.config.presets import finetune_config
from training_backend.data.dataset import Dataset
from training_backend.data.phantoms import mr_contrasts, oblique
from training_backend.data.read import read_labels
from training_backend.data.write import write_volume
from training_backend.files import write_json
from training_backend.jobs import doctor
from training_backend.jobs.registry import new_run, summary


@pytest.fixture
def finished(dataset: Path, state: State) -> Path:
    """A run with predictions of two cases of the dataset; those of the second are empty."""
    run = new_run(finetune_config("segmentation", "tiny", dataset), "run")
    run.predictions.mkdir()
    opened, entries = Dataset.open(dataset), []
    for number, id in enumerate(("case_000", "case_001")):
        case = opened.case(id)
        truth = read_labels(opened.source(case.label))
        array = truth.array if number == 0 else np.zeros_like(truth.array)
        path = write_volume(truth.with_array(array), run.predictions / f"{id}.nii.gz")
        dice = {"lung": 1.0, "heart": 0.5} if number == 0 else {"lung": 0.0, "heart": 0.0}
        entries.append(
            {
                "case": id,
                "prediction": f"predictions/{path.name}",
                "image": case.images[0].path,
                "label": case.label.path,
                "dice": dice,
            }
        )
    write_json(run.predictions / "cases.json", entries)
    run.update(state="finished")
    return run.path


def test_cases_are_listed_the_worst_first(finished: Path) -> None:
    cases, classes = read_results(finished)
    assert [case.case for case in cases] == ["case_001", "case_000"]
    assert cases[1].mean == 0.75
    assert [entry.name for entry in classes] == ["lung", "heart", "liver", "spine", "nodule"]


def test_scan_truth_and_prediction_overlay_with_dice_in_the_features(finished: Path) -> None:
    cases, classes = read_results(finished)
    scan, truth, prediction = case_layers(cases[1], classes)
    assert [made[1]["name"] for made in (scan, truth, prediction)] == [
        "case_000",
        "case_000 · truth",
        "case_000 · prediction",
    ]
    np.testing.assert_array_equal(truth[0], prediction[0])
    for made in (truth, prediction):
        np.testing.assert_allclose(made[1]["translate"], scan[1]["translate"], atol=1e-3)
    table = prediction[1]["features"].set_index("class")["Dice"]
    assert table["lung"] == 1.0
    assert table["heart"] == 0.5
    assert np.isnan(table["spine"])


def test_opening_results_shows_the_worst_case_and_others_on_demand(
    finished: Path, state: State, shown: Callable[[QWidget], QWidget], wait: Callable[..., None]
) -> None:
    owner, notice = shown(QWidget()), Notice()
    open_results(owner, state.viewer, summary(finished), notice)
    wait(lambda: len(state.viewer.layers) == 3)
    assert [getattr(layer, "contour", None) for layer in state.viewer.layers] == [None, 1, 0]  # told apart by the line
    dialog = owner.findChild(ResultsDialog)
    assert dialog.table.item(0, 0).text() == "case_001"
    assert [dialog.table.item(1, column).text() for column in (1, 2, 3)] == ["0.750", "1.000", "0.500"]
    dialog.open_case(1)
    wait(lambda: len(state.viewer.layers) == 6)
    dialog.open_case(1)
    wait(lambda: dialog.notice.text == "")
    assert len(state.viewer.layers) == 6


def test_a_dataset_that_is_gone_is_told(finished: Path, state: State, wait: Callable[..., None], qtbot: Any) -> None:
    config = (finished / "config.yaml").read_text(encoding="utf-8")
    folder = str(Dataset.open(Path(config.split("dataset: ")[1].splitlines()[0])).folder)
    (finished / "config.yaml").write_text(config.replace(folder, "/nowhere"), encoding="utf-8")
    owner, notice = QWidget(), Notice()
    qtbot.addWidget(owner)
    qtbot.addWidget(notice)
    open_results(owner, state.viewer, summary(finished), notice)
    wait(lambda: "is not a dataset" in notice.text)


def test_rotated_scans_are_offered_resampled_and_then_overlay(
    state: State, shown: Callable[[QWidget], QWidget], wait: Callable[..., None]
) -> None:
    offer = shown(GeometryOffer(state))
    assert offer.text == ""
    first = _layers.add(state.viewer, _samples.mr_phantom()[0])
    assert offer.text == ""
    other = _layers.add(state.viewer, _samples.oblique_phantom()[0])
    assert f"{other.name} is rotated against {first.name}" in offer.text
    offer.resample()
    wait(lambda: len(state.viewer.layers) == 3)
    added = state.viewer.layers[-1]
    assert offer.text == ""
    assert not other.visible
    assert parallel(first, added)
    assert _layers.geometry_of(added).same_grid(_layers.geometry_of(first))


def test_two_contrasts_of_one_patient_overlay_truly(
    state: State, shown: Callable[[QWidget], QWidget], wait: Callable[..., None], real_data: Path | None, tmp_path: Path
) -> None:
    if real_data is not None:
        paths = [real_data / "brain" / name for name in ("chris_t1.nii.gz", "chris_PD.nii.gz")]
    else:
        volumes = (mr_contrasts(7, (24, 40, 36)).volume, oblique(7, (24, 40, 36)).volume)
        paths = [write_volume(volume, tmp_path / f"{index}.nii.gz") for index, volume in enumerate(volumes)]
    offer = shown(GeometryOffer(state))
    first, other = (_layers.add(state.viewer, _reader.read_layers(path)[0]) for path in paths)
    angle = _layers.geometry_of(other).oblique_deg
    assert angle > 5
    assert "rotated" in offer.text
    offer.resample()
    wait(lambda: len(state.viewer.layers) == 3, 60)
    added = state.viewer.layers[-1]
    # the same patient position has (nearly) the same value in the original and in the resampled copy
    exact, grid = _layers.geometry_of(other), _layers.geometry_of(added)
    middle = np.array([n // 2 for n in exact.shape])
    voxel = np.linalg.solve(grid.to_lps, exact.to_lps @ (*middle, 1.0))[:3]
    around = tuple(slice(round(v) - 1, round(v) + 2) for v in voxel)
    box = tuple(slice(m - 1, m + 2) for m in middle)
    assert abs(added.data[around].mean() - other.data[box].mean()) < 0.2 * np.ptp(other.contrast_limits)
    assert first.name in offer.text or offer.text == ""


def test_a_declined_offer_does_not_come_back(state: State, shown: Callable[[QWidget], QWidget]) -> None:
    for layer in (_samples.mr_phantom()[0], _samples.oblique_phantom()[0]):
        _layers.add(state.viewer, layer)
    offer = shown(GeometryOffer(state))
    assert offer.text
    offer.decline()
    assert offer.text == ""
    _layers.add(state.viewer, _samples.mr_phantom()[1])
    assert offer.text == ""


@pytest.mark.parametrize("broken", [True, False], ids=["broken", "sound"])
def test_the_doctor_shows_findings_with_commands_to_copy(
    broken: bool, shown: Callable[[QWidget], QWidget], wait: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = doctor.Finding("PyTorch", "bad", "PyTorch is not installed.", "pip install torch")
    fine = doctor.Finding("Python", "ok", "Python 3.11.")
    monkeypatch.setattr(doctor, "examine", lambda: [bad, fine] if broken else [fine])
    dialog = shown(DoctorDialog(None))
    wait(lambda: bool(dialog.findings) and dialog.again.isEnabled())
    assert dialog.notice.text == ("1 thing to mend." if broken else "Nothing hinders training here.")
    assert [field.text() for field in dialog.findChildren(QLineEdit)] == (["pip install torch"] if broken else [])
    dialog._copy()
    assert QApplication.clipboard().text().splitlines()[-1] == "[ok] Python: Python 3.11."
