"""Findings of reports by phrases and by a text model: what is learnt, what the card keeps, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training_backend.config import RunConfig
from training_backend.config.presets import finetune_config
from training_backend.data.dataset import Dataset
from training_backend.data.manifest import CaseRecord, DatasetInfo
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.worker import execute
from training_backend.errors import ConfigError, DataError, WeightsError
from training_backend.evaluate.score import score_split
from training_backend.nn.text_readers import PhraseReader, known_phrases, phrases_of
from training_backend.weights.load import load_model

SAID = {
    0: ("There is a pleural effusion on the {}.", "No pleural effusion on the {}."),
    1: ("A nodule is seen in the {} lung.", "No nodule is seen in the {} lung."),
}
SECRET = "Mrs Quillfeather, seen at 14:35."


def report(labels: tuple[int, int], number: int) -> str:
    side = ("left", "right")[number % 2]
    return " ".join([SAID[kind][1 - label].format(side) for kind, label in enumerate(labels)]) + " Bones are intact."


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 reports of two findings; one of them has a name in it."""
    folder, cases = tmp_path_factory.mktemp("reports"), []
    for number in range(48):
        labels = (number // 2 % 2, number // 4 % 2)
        text = report(labels, number) + (f" {SECRET}" if number == 1 else "")
        split = "val" if number % 5 == 3 else "train"
        name = f"r{number:02d}"
        cases.append(CaseRecord(id=name, subject=name, split=split, report=text, target=tuple(map(float, labels))))  # type: ignore[arg-type]
    Dataset(folder, DatasetInfo(name="reports", modality="text", target_names=("effusion", "nodule")), cases).save()
    return folder


def config(folder: Path, reader: str, **changes: Any) -> RunConfig:
    small = {
        "method": {"size": "tiny", "text": {"width": 16, "layers": 1, "heads": 2}},
        "task": {
            "kind": "multilabel",
            "classes": 2,
            "reader": reader,
            "text": {"width": 32, "layers": 1, "heads": 2, "longest": 40},
        },
        "data": {"workers": 0},
        "optim": {"max_steps": 60, "batch_size": 12, "lr": 2e-2 if reader == "phrases" else 1.5e-3},
        "engine": {"device": "cpu", "threads": 1, "val_steps": 240, "preview_minutes": 0},
    }
    run = finetune_config("text_classification", "tiny", folder, "mg3d", small)
    return run.updated(changes) if changes else run


@pytest.mark.parametrize("reader", ["phrases", "text"])
def test_findings_are_learnt_and_the_run_holds_no_report(reader: str, told: Path, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", config(told, reader))
    assert execute(run) == 0, run.error()
    loaded = load_model(run.path)
    assert not any(name.startswith("encoder.") for name in loaded.module.state_dict())
    metrics = dict(score_split(run.path, told, "val").rows)
    assert float(metrics["auc"]) > (0.95 if reader == "phrases" else 0.6)  # 38 reports teach a fresh model little
    kept = b"".join(file.read_bytes() for file in run.path.rglob("*") if file.is_file())
    assert report((0, 1), 3).encode() not in kept
    if reader == "phrases":
        assert b"quillfeather" not in kept.lower()  # said once, and phrases are learnt that three texts have
        assert "no pleural" in loaded.config.task.phrases  # type: ignore[union-attr]


def test_one_sentence_that_says_so_is_enough() -> None:
    reader = PhraseReader(object(), ("effusion", "no effusion"), 1)  # type: ignore[arg-type]
    with torch.no_grad():
        reader.bias.fill_(-6 / 20)
        reader.weight[:, 0] = torch.tensor([12.0, -16.0]) / 20
    texts = ["Effusion.", "No effusion.", "Heart is normal. Effusion. Bones are intact.", "Heart is normal.", "", "..."]
    p = reader.logits(texts).sigmoid()[:, 0]
    single, text = reader.sentence_logits(texts)
    assert text.tolist() == [0, 1, 2, 2, 2, 3, 4, 5]
    q = single.sigmoid()[:, 0]
    by_hand = torch.stack([1 - (1 - q[text == index]).prod() for index in range(len(texts))])
    torch.testing.assert_close(p, by_hand, rtol=1e-4, atol=1e-6)
    assert p[0] > 0.99
    assert p[2] > 0.99
    assert p[1] < 0.02
    assert p[3] < 0.01
    assert torch.isfinite(reader.logits([". ".join(["Effusion"] * 400)])).all()


def test_phrases_are_runs_of_words_without_numbers() -> None:
    assert phrases_of("No 12 mm nodule.") == ["no", "mm", "nodule", "no mm", "mm nodule"]
    assert known_phrases(["A b. A b.", "A c."], 2) == ("a",)
    assert known_phrases(["One, two.", "one two."], 2) == ("one", "one two", "two")
    assert known_phrases(["One, two.", "One, two."], 2, "clause") == ("one", "two")


def test_what_cannot_be_read_is_said(told: Path) -> None:
    from training_backend.methods import mg3d
    from training_backend.tasks.text_classification import TASK

    with pytest.raises(ConfigError, match=r"method mg3d reads none.*set task\.reader to text or phrases"):
        TASK.build(config(told, "encoder"), mg3d.build_encoder(config(told, "encoder")))
    rare = config(told, "phrases").updated({"task": {"least_count": 100}})
    with pytest.raises(DataError, match="No phrase is in 100 training texts"):
        TASK.build(rare, mg3d.build_encoder(rare))
    lost = config(told, "text").updated({"task": {"text": {"source": str(told / "nowhere")}}})
    with pytest.raises(WeightsError, match=r"There is no folder .*nowhere with a text model"):
        TASK.build(lost, mg3d.build_encoder(lost))


def test_texts_are_answered_one_by_one_as_together(told: Path) -> None:
    from training_backend.methods import mg3d
    from training_backend.tasks.text_classification import TASK, predict_texts

    for reader in ("phrases", "text"):
        run = config(told, reader)
        network = TASK.build(run, mg3d.build_encoder(run)).eval()
        texts = [report((1, 0), 0), "Short.", report((0, 1), 1)]
        together = predict_texts(network, run, texts)
        alone = torch.cat([predict_texts(network, run, [text]) for text in texts])
        np.testing.assert_allclose(together.numpy(), alone.numpy(), atol=1e-5)
