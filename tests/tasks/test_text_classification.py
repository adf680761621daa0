"""Texts are classified by what they say, from training to a table of predictions, without a scan anywhere."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from training_backend.config import RunConfig
from training_backend.config.presets import PRESETS, finetune_config
from training_backend.data.dataset import Dataset
from training_backend.data.manifest import CaseRecord, DatasetInfo
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.worker import execute
from training_backend.errors import ConfigError, DataError
from training_backend.evaluate.embed import predict_csv
from training_backend.evaluate.score import score_split
from training_backend.methods import mae3d, medcoss
from training_backend.methods.base import Batch
from training_backend.tasks.text_classification import TASK, TextClassificationConfig, predict_texts
from training_backend.weights.load import load_model

SENTENCES = {
    0: ("we aimed to study {}", "the aim was to compare {}"),
    1: ("patients were assigned to {}", "we measured {} in all patients"),
    2: ("{} fell significantly", "there was no difference in {}"),
}
THINGS = ("pain", "pressure", "sleep", "fever", "weight", "mood", "sugar", "cough")
NAMES = ("aim", "methods", "results")
TINY = {
    "method": {
        "embed_dim": 24,
        "depth": 2,
        "heads": 2,
        "mlp_dim": 48,
        "vocabulary": 64,
        "text_rows": 16,
        "drop_path": 0.0,
        "text": {"longest": 12},
    },
    "task": {"classes": 3, "class_names": NAMES},
    "data": {"workers": 0},
    "optim": {"max_steps": 60, "batch_size": 12, "lr": 3e-3},
    "engine": {"device": "cpu", "threads": 1, "val_steps": 60, "preview_minutes": 0},
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset of 48 sentences of three kinds."""
    folder, cases = tmp_path_factory.mktemp("sentences"), []
    for kind, forms in SENTENCES.items():
        for number, thing in enumerate(THINGS):
            for form, text in enumerate(forms):
                split = "val" if number < 2 else "train"
                name = f"s{kind}{number}{form}"
                cases.append(
                    CaseRecord(id=name, subject=name, split=split, report=text.format(thing), target=(float(kind),))
                )
    Dataset(folder, DatasetInfo(name="sentences", modality="text"), cases).save()
    return folder


def config(folder: Path, **changes: dict[str, object]) -> RunConfig:
    run = finetune_config("text_classification", "tiny", folder, "medcoss", TINY)
    return run.updated(changes) if changes else run


@pytest.fixture(scope="module")
def trained(told: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished run."""
    run = RunDirectory.create(tmp_path_factory.mktemp("run") / "run", config(told))
    assert execute(run) == 0, run.error()
    return run.path


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_looks_at_texts(preset: str) -> None:
    run = finetune_config("text_classification", preset, Path("d"), "medcoss", {})
    assert run.task == TextClassificationConfig()
    assert run.data.view == "text"


def test_sentences_are_told_apart_and_the_card_is_enough(trained: Path, told: Path) -> None:
    table = dict(score_split(trained, told, "val").rows)
    assert float(table["accuracy"]) > 0.9
    assert float(table["auc_pairs"]) > 0.95
    loaded = load_model(trained)
    assert loaded.config.method.text.tokeniser  # type: ignore[attr-defined]
    loaded.config = loaded.config.updated({"data": {"dataset": "nowhere"}})
    found = predict_texts(loaded.module, loaded.config, ["we aimed to study snow", "snow fell significantly"])
    assert found.argmax(1).tolist() == [0, 2]
    torch.testing.assert_close(found.sum(1), torch.ones(2))


def test_a_table_of_texts_comes_back_with_predictions(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(
        'Id,Sentence\na,"we aimed to study rain"\nb,\nc,"patients were assigned to rain"\n'
    )
    report = predict_csv(trained, tmp_path / "in.csv", tmp_path / "out.csv", device="cpu")
    assert not report.ok
    assert list(report.refused) == ["row 3"]
    with (tmp_path / "out.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["Id"] for row in rows] == ["a", "b", "c"]
    assert rows[1]["Predictions"] == ""
    assert [int(np.argmax(json.loads(row["Predictions"]))) for row in (rows[0], rows[2])] == [0, 1]
    (tmp_path / "bare.csv").write_text("Id\na\n")
    with pytest.raises(DataError, match="has no text; its columns are Id"):
        predict_csv(trained, tmp_path / "bare.csv", tmp_path / "out.csv", device="cpu")


def test_an_encoder_that_mixes_up_padding_answers_each_text_as_if_alone(told: Path) -> None:
    run = config(told, method={"text_mask": "compatible"})
    network = TASK.build(run, medcoss.METHOD.build_encoder(run)).eval()
    texts = ["pain fell", "we aimed to study the weight and the pressure", "cough"]
    together = predict_texts(network, run, texts)
    alone = torch.cat([predict_texts(network, run, [text]) for text in texts])
    torch.testing.assert_close(together, alone)


def test_what_cannot_be_gets_a_sentence(told: Path) -> None:
    run = config(told)
    encoder = medcoss.METHOD.build_encoder(run)
    scans = finetune_config("text_classification", "tiny", told, "mae3d")
    with pytest.raises(ConfigError, match=r"mae3d reads none"):
        TASK.build(scans, mae3d.METHOD.build_encoder(scans.updated({"data": {"size": (48, 48, 48)}})))
    with pytest.raises(ConfigError, match=r"data\.view is crop"):
        TASK.build(run.updated({"data": {"view": "crop", "size": (16, 16, 16)}}), encoder)
    network = TASK.build(run, encoder)
    with pytest.raises(DataError, match="a CSV with a column Text"):
        TASK.predict(network, run, torch.zeros(1, 0, 1, 1, 1), None)
    batch = Batch(torch.zeros(1, 0, 1, 1, 1), ["a"], extra={"texts": ["pain"]})
    with pytest.raises(DataError, match="target for each text"):
        TASK.training_step(network, batch, torch.Generator())
    assert TASK.check is not None
    with pytest.raises(ConfigError, match="numbered 0 to 1"):
        TASK.check(run.updated({"task": {"classes": 2, "class_names": ()}}), Dataset.open(told).cases(split="train"))
