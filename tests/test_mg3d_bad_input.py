"""MG-3D and its tasks answer bad pairs with a sentence each: missing, broken or long texts, models that do not fit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training_backend.config import IngestConfig, RunConfig
from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.data.dataset import Dataset
from training_backend.data.importers import describe
from training_backend.data.ingest import ingest
from training_backend.data.manifest import DatasetInfo
from training_backend.data.volume import Geometry, Volume
from training_backend.data.write import write_volume
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.worker import execute
from training_backend.errors import ConfigError, DataError, WeightsError
from training_backend.methods import mg3d
from training_backend.methods.base import Batch

SIZE = (32, 32, 64)
TEXT = {"width": 96, "layers": 1, "heads": 2, "longest": 24}
REPORT = "Zwerchfell is high. A nodule of 9 mm."


def scan(seed: int) -> Volume:
    array = 40 + 20 * np.random.default_rng(seed).standard_normal((16, 24, 24))
    return Volume(array.astype(np.float32), Geometry.from_spacing((16, 24, 24), (2.0, 1.0, 1.0)), "CT", "scan")


def cohort(folder: Path, reports: list[str]) -> Dataset:
    dataset = Dataset(folder, DatasetInfo(name="chests", modality="CT"))
    dataset.save()
    for index, report in enumerate(reports):
        dataset.add_case([scan(index)], None, id=f"case_{index}", split="train", report=report)
    return dataset


def config(folder: Path, **changes: Any) -> RunConfig:
    small = {
        "method": {"text": TEXT, "heads": (1, 2, 3, 6), "window": 4},
        "data": {"size": SIZE, "workers": 0},
        "optim": {"max_steps": 2, "batch_size": 2},
        "engine": {"device": "cpu", "threads": 1, "preview_minutes": 0},
    }
    return pretrain_config("mg3d", "tiny", folder, small).updated(changes)


def said(folder: Path, run: RunConfig) -> str:
    """What a run that fails leaves as its reason."""
    started = RunDirectory.create(folder, run)
    assert execute(started) != 0
    return str(started.error())


def test_a_report_without_sentences_is_refused_by_name_before_training(tmp_path: Path) -> None:
    dataset = cohort(tmp_path / "data", [REPORT, "... - ..."])
    assert "The reports of 1 cases have no sentence: case_1." in said(tmp_path / "run", config(dataset.folder))


def test_volumes_without_reports_are_left_out_and_none_at_all_is_said(tmp_path: Path) -> None:
    dataset = cohort(tmp_path / "data", ["", ""])
    assert "has no case with a report in its train split" in said(tmp_path / "run", config(dataset.folder))
    some = cohort(tmp_path / "some", [REPORT, "", REPORT + " Clear."])
    run = RunDirectory.create(tmp_path / "half", config(some.folder))
    assert execute(run) == 0, run.error()
    assert "1 cases of the train split have no report." in run.events_path.read_text()
    network = mg3d.build(config(some.folder))
    with pytest.raises(DataError, match="learns from volumes with reports, but the views come without"):
        mg3d.training_step(network, Batch(torch.rand(1, 1, *SIZE), ["a"]), torch.Generator().manual_seed(0))


def test_a_part_that_reports_lack_is_said(tmp_path: Path) -> None:
    dataset = cohort(tmp_path / "data", [REPORT, f"{REPORT}\n\nNodule.", "Impression: Normal."])
    run = RunDirectory.create(tmp_path / "run", config(dataset.folder, data={"report_part": "impression"}))
    assert execute(run) == 0, run.error()
    assert "1 cases of the train split have no impression in a report." in run.events_path.read_text()
    none = cohort(tmp_path / "none", [REPORT, REPORT])
    text = said(tmp_path / "refused", config(none.folder, data={"report_part": "impression"}))
    assert "has no case with a report in its train split" in text


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl"])
def test_a_list_in_another_encoding_is_refused(ending: str, tmp_path: Path) -> None:
    between = "\t" if ending == "tsv" else ","
    text = f"Path{between}Report\na.nii.gz{between}Verkürzt.\n"
    if ending.startswith("json"):
        text = '{"volume": "a.nii.gz", "report": "Verkürzt."}'
        text = f"[{text}]" if ending == "json" else text
    (tmp_path / f"pairs.{ending}").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=rf"pairs\.{ending} (is not in UTF-8|is not valid JSON|cannot be read as JSON)"):
        describe(tmp_path / f"pairs.{ending}")


def test_letters_of_another_encoding_are_noted_with_the_case(tmp_path: Path) -> None:
    write_volume(scan(0), tmp_path / "a.nii.gz")
    (tmp_path / "pairs.csv").write_text("Path,Report\na.nii.gz,VerkÃ¼rzt. Normal.\n", encoding="utf-8")
    report = ingest(tmp_path / "pairs.csv", tmp_path / "data", IngestConfig(workers=0))
    (sentence,) = report.noted
    assert sentence == "Its report holds letters of another encoding; save its table as UTF-8 and ingest again."


def test_what_is_cut_of_a_long_report_is_said_without_its_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = cohort(tmp_path / "data", [" ".join([REPORT] * 6), REPORT])
    run = RunDirectory.create(tmp_path / "run", config(dataset.folder))
    with caplog.at_level(logging.WARNING):
        assert execute(run) == 0, run.error()
    assert "tokens, but 24 are read; what comes after is left out" in caplog.text
    assert "Zwerchfell" not in caplog.text


def test_no_word_of_a_report_is_in_events_logs_or_checkpoints(tmp_path: Path) -> None:
    secret = "Quillfeather came at noon."
    dataset = cohort(tmp_path / "data", [f"{REPORT} {secret}", REPORT, REPORT])
    run = RunDirectory.create(
        tmp_path / "run", config(dataset.folder, method={"text": {**TEXT, "least_count": 2}}, engine={"val_steps": 1})
    )
    assert execute(run) == 0, run.error()
    for file in run.path.rglob("*"):
        if file.is_file():
            content = file.read_bytes().lower()
            assert b"quillfeather" not in content, file
            assert REPORT.lower().encode() not in content, file


def test_text_models_that_do_not_fit_are_said(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    dataset = cohort(tmp_path / "data", [REPORT, REPORT])
    BertModel(BertConfig(vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(
        tmp_path / "bert"
    )
    wordless = config(dataset.folder, method={"text": {"source": str(tmp_path / "bert")}})
    with pytest.raises(WeightsError, match=r"has no vocabulary \(tokenizer\.json.*Copy the tokeniser's files"):
        mg3d.build(wordless)
    narrow = {"text": {**TEXT, "width": 32}, "encoder": "unet", "size": "tiny"}
    with pytest.raises(ConfigError, match="The tokens of the U-Net have 96 channels, the text model has 32"):
        mg3d.build(config(dataset.folder, method=narrow))
    gates = {"gates": 2, "project": 24, "text": {"width": 32, "layers": 1, "heads": 2}}
    match = finetune_config("retrieval", "tiny", dataset.folder, "mg3d", {"task": gates, "data": {"size": SIZE}})
    from training_backend.tasks import retrieval

    with pytest.raises(ConfigError, match=r"as wide as the text encoder \(32\), but they have 24 channels"):
        retrieval.build(match, mg3d.build_encoder(match))


def test_processes_with_different_shares_are_refused(tmp_path: Path) -> None:
    from training_backend.engine.work import _check_shares

    run = config(tmp_path, optim={"batch_size": 3})
    with pytest.raises(ConfigError, match=r"2 of them cannot share optim\.batch_size 3 evenly"):
        _check_shares(run, 2)
    _check_shares(config(tmp_path, optim={"batch_size": 4}), 2)


def test_weights_with_a_text_model_of_another_width_are_refused(tmp_path: Path) -> None:
    dataset = cohort(tmp_path / "data", [REPORT, REPORT, REPORT])
    first = RunDirectory.create(tmp_path / "first", config(dataset.folder, engine={"val_steps": 1}))
    assert execute(first) == 0, first.error()
    wider = {"method": {"text": {**TEXT, "width": 48}}, "weights": str(first.path)}
    told = said(tmp_path / "second", config(dataset.folder, **wider))
    assert "first is 96 wide, but the one of this run is 48 wide. Name a text model of 96 channels" in told
