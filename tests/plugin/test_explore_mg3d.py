"""Texts and scans in a real viewer with a model process: sentences, queries, findings, patients, found cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from qtpy.QtCore import Qt, QUrl

from napari_med3dssl._layers import add
from napari_med3dssl.explore import ExplorePanel
from napari_med3dssl.explore_retrieval import layers_in
from napari_med3dssl.explore_text import Passages
from tests.plugin.explore_kit import finish, work_done
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.config.registry import method, task
from training_backend.data.dataset import Dataset
from training_backend.data.prepare import InputProfile
from training_backend.weights.save import save_model

pytestmark = pytest.mark.gl

SMALL = {
    "feature_size": 2,
    "window": 3,
    "heads": (1, 1, 2, 2),
    "text": {"width": 32, "heads": 4, "layers": 1, "longest": 64},
}


@pytest.fixture(scope="module")
def models(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained network and one that finds cases, both with random weights."""
    import torch

    folder, info = tmp_path_factory.mktemp("texts"), Dataset.open(dataset).info
    torch.manual_seed(0)
    run = pretrain_config("mg3d", "tiny", dataset, {"method": SMALL, "data": {"size": (64, 32, 32)}})
    _save(folder / "mg3d", method("mg3d").build(run), method("mg3d").contained, run, info, "pretrain")
    sizes = {
        "latent": 16,
        "gates": 1,
        "findings": ("Nodule", "Effusion"),
        "text": {"width": 32, "heads": 4, "layers": 1},
    }
    tiny = {"method": {"embed_dim": 24, "depth": 1, "heads": 3}, "data": {"size": (16, 16, 16)}, "task": sizes}
    run = finetune_config("retrieval", "tiny", dataset, "mae3d", tiny)
    network = task("retrieval").build(run, method("mae3d").build_encoder(run))
    _save(folder / "find", network, task("retrieval").contained, run, info, "finetune")
    return folder


def _save(folder: Path, network: Any, contained: Any, run: Any, info: Any, kind: str) -> None:
    profile = InputProfile.of(run, info).model_dump(mode="json")
    save_model(
        folder, network, {"kind": kind, "config": contained(network, run).model_dump(mode="json"), "profile": profile}
    )


@pytest.fixture
def ready(panel: ExplorePanel, models: Path, dataset: Path, qtbot: Any) -> ExplorePanel:
    """Panel with the first case of the dataset in use, and its report."""
    panel.state.dataset = dataset
    add(panel.viewer, layers_in(dataset, "case_000")[0])
    panel.state.model = str(models / "mg3d")
    work_done(qtbot)
    return panel


def section(panel: ExplorePanel, name: str) -> Any:
    found = next(one for one in panel.views if one.view.name == name)
    found.fold(False)
    return found


def test_sentences_words_and_queries_lie_over_the_scan_and_no_text_in_layers(
    ready: ExplorePanel, dataset: Path, qtbot: Any
) -> None:
    report = Dataset.open(dataset).case("case_000").report
    assert ready.report.text == report
    assert [one.view.name for one in ready.views] == ["sentences", "query", "voxels", "words", "patients"]
    assert not ready.masking.isVisibleTo(ready)
    sentences = section(ready, "sentences")
    sentences.show_button.click()
    finish(ready, qtbot)
    layer = ready.viewer.layers["gates · sentences"]
    assert "Sentence 1 of" in sentences.text.text()
    first = layer.data.copy()
    sentences.passages.anchorClicked.emit(QUrl("2-3"))
    finish(ready, qtbot)
    assert "Word 3 of sentence 2" in sentences.text.text()
    assert layer.data.shape == first.shape
    assert (layer.data != first).any()
    assert tuple(layer.contrast_limits) == pytest.approx((layer.data.min(), layer.data.max()), abs=2e-3)
    query = section(ready, "query")
    query.stack.setChecked(True)
    for text in ("nodule", "large heart", "nodule"):
        query.look_for(text)
        finish(ready, qtbot)
    assert query.history == ["nodule", "large heart"]
    assert query.shown == {1: "nodule", 2: "large heart"}
    maps = [ready.viewer.layers[f"query {number} · query"] for number in (1, 2)]
    maps[0].opacity = 0.3
    assert maps[1].opacity == pytest.approx(0.3)
    assert maps[0].colormap.name != maps[1].colormap.name
    query.stack.setChecked(False)
    query.look_for("effusion")
    finish(ready, qtbot)
    assert [one.name for one in ready.viewer.layers if "query" in one.name] == ["query 1 · query"]
    words = section(ready, "words")
    words.settings.put("word_ratio", 0.5)
    words.show_button.click()
    finish(ready, qtbot)
    assert {"right", "wrong"} & {piece["kind"] for one in words.passages.passages for piece in one["pieces"]}
    told = str([(one.name, dict(one.metadata)) for one in ready.viewer.layers]).lower()
    assert not [part for part in (*report.lower().split(". "), "large heart") if part in told]


def test_each_scan_keeps_its_own_report(ready: ExplorePanel, dataset: Path, qtbot: Any) -> None:
    ready.report.edit.setPlainText("Typed by hand.")
    add(ready.viewer, layers_in(dataset, "case_001")[0])
    ready.scan_box.setCurrentText("case_001")
    work_done(qtbot)
    assert ready.report.text == Dataset.open(dataset).case("case_001").report
    ready.scan_box.setCurrentText("case_000")
    assert ready.report.text == "Typed by hand."
    ready.report.case_button.click()
    work_done(qtbot)
    assert ready.report.text == Dataset.open(dataset).case("case_000").report
    ready.report.edit.setPlainText("")
    section(ready, "sentences").show_button.click()
    assert "Paste the report" in ready.notice.text


def test_patients_need_no_scan(ready: ExplorePanel, qtbot: Any) -> None:
    ready.viewer.layers.clear()
    patients = section(ready, "patients")
    assert patients.body.isEnabled()
    assert len(patients.chosen) == 4
    patients.show_button.click()
    finish(ready, qtbot)
    names = list(patients.matrices.pictures)
    assert names[0] == "sentences as texts"
    matrix = patients.matrices.pictures[names[0]]
    assert len(matrix.values) == len(patients.passages.passages)
    assert matrix.value_at(20, 20).startswith("case_")
    assert "in the scans" in patients.text.text() or "agree" in patients.text.text()


def test_findings_are_asked_and_cases_are_found_and_opened(ready: ExplorePanel, models: Path, qtbot: Any) -> None:
    ready.state.model = str(models / "find")
    work_done(qtbot)
    assert "findings" in [one.view.name for one in ready.views]
    findings = section(ready, "findings")
    findings.show_button.click()
    finish(ready, qtbot)
    before = findings.probabilities
    assert list(before) == ["Nodule", "Effusion"]
    findings.table.item(0, 2).setText("No pulmonary nodule.")
    findings.table.item(0, 3).setText("Nodule.")
    findings.table.setCurrentCell(0, 0)
    findings.draw_button.click()
    finish(ready, qtbot)
    assert findings.probabilities["Effusion"] == pytest.approx(before["Effusion"], abs=2e-3)
    assert findings.table.item(0, 2).text() == "No pulmonary nodule."
    assert "prompt · findings" in ready.viewer.layers
    found = ready.retrieval
    found.fold(False)
    found.scan_button.click()
    finish(ready, qtbot)
    assert found.hits[0]["case"] == "case_000"
    assert found.hits[0]["score"] == pytest.approx(1, abs=0.05)
    found.words.setEditText("nodule")
    found.text_button.click()
    finish(ready, qtbot)
    assert sorted(hit["case"] for hit in found.hits) == [f"case_{number:03d}" for number in range(4)]
    row = [hit["case"] for hit in found.hits].index("case_002")
    found.table.setCurrentCell(row, 0)
    assert found.report.toPlainText() == found.hits[row]["report"]
    found.open_button.click()
    work_done(qtbot)
    assert ready.viewer.layers["case_002"].visible
    assert not ready.viewer.layers["case_000"].visible


def test_texts_are_shown_as_they_are(qtbot: Any) -> None:
    shown = Passages()
    qtbot.addWidget(shown)
    pieces = [
        {"text": "<b>5 > 3</b> ", "kind": "missing", "told": ""},
        {"text": "mm.", "kind": "right", "told": "cm 5%"},
    ]
    shown.show_passages([{"title": "a & b", "value": 0.5, "pieces": pieces}], 1, 2)
    assert shown.toPlainText() == "▶ a & b (0.50) <b>5 > 3</b> mm.✓"
    assert (shown.told(1, 2), shown.told(1, 1), shown.told(4, 1), shown.told(1, 9)) == ("cm 5%", "", "", "")


def test_links_are_followed_as_a_click_does(qtbot: Any) -> None:
    shown = Passages()
    qtbot.addWidget(shown)
    plain = [{"text": f"{word} ", "kind": "plain", "told": ""} for word in ("no", "effusion")]
    shown.show_passages([{"title": "", "value": None, "pieces": plain}] * 2)
    shown.show()
    place = shown.document().toPlainText().rindex("effusion") + 2
    cursor = shown.textCursor()
    cursor.setPosition(place)
    with qtbot.waitSignal(shown.picked) as signal:
        qtbot.mouseClick(shown.viewport(), Qt.MouseButton.LeftButton, pos=shown.cursorRect(cursor).center())
    assert signal.args == [2, 2]
