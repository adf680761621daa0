"""What the tasks on reports learn from phantoms within minutes, against what knows nothing of the scans."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training_backend.config import RunConfig
from training_backend.config.presets import finetune_config
from training_backend.data.dataset import Dataset
from training_backend.data.manifest import CaseRecord, DatasetInfo
from training_backend.data.phantoms import thorax_ct
from training_backend.data.text import words
from training_backend.evaluate.text_metrics import report_metrics
from training_backend.methods.base import Batch
from training_backend.methods.mae3d import METHOD
from training_backend.tasks import report_generation, retrieval
from training_backend.tasks.base import CaseResult

SIZE = (16, 24, 24)
TRAIN, HELD = 160, 40
ENCODER = {"embed_dim": 48, "depth": 2, "heads": 4, "patch_size": (8, 8, 8)}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """Manifest of phantom reports on hearts and effusions, and the scans as network input."""
    folder = tmp_path_factory.mktemp("learning")
    cases, scans = [], []
    for index in range(TRAIN + HELD):
        phantom = thorax_ct(index, (32, 48, 48), nodules=0)  # on this grid nodules are not to be seen
        split = "train" if index < TRAIN else "val"
        cases.append(CaseRecord(id=f"c{index:03d}", subject=f"c{index:03d}", split=split, report=phantom.report))
        hu = torch.from_numpy(phantom.volume.array.astype(np.float32))[None]
        scans.append(F.avg_pool3d(((hu + 1000) / 1400).clamp(0, 1)[None], 2)[0])
    Dataset(folder, DatasetInfo(name="told"), cases).save()
    return folder, torch.stack(scans)


@pytest.fixture(scope="module")
def finder(cohort: tuple[Path, torch.Tensor]) -> tuple[RunConfig, torch.nn.Module]:
    """A retrieval run and its network."""
    run = finetune_config("retrieval", "tiny", cohort[0], "mae3d", {"method": ENCODER, "data": {"size": SIZE}})
    return run, trained(retrieval, run, cohort, 200)


def trained(
    module, run: RunConfig, cohort: tuple[Path, torch.Tensor], steps: int, encoder: torch.nn.Module | None = None
) -> torch.nn.Module:
    folder, scans = cohort
    reports = [case.report for case in Dataset.open(folder).cases()]
    torch.manual_seed(0)
    model = module.TASK.build(run, METHOD.build_encoder(run)).train()
    if encoder is not None:
        weights = encoder.state_dict()
        model.encoder.load_state_dict({name: weights[name] for name in model.encoder.state_dict()})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        torch.manual_seed(step)
        chosen = torch.randperm(TRAIN)[:16]
        texts = [reports[index] for index in chosen]
        batch = Batch(volume=scans[chosen], case_ids=[str(int(i)) for i in chosen], extra={"texts": texts})
        loss = module.TASK.training_step(model, batch, torch.Generator().manual_seed(step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def results(module, model: torch.nn.Module, run: RunConfig, cohort: tuple[Path, torch.Tensor]) -> list[CaseResult]:
    folder, scans = cohort
    held = Dataset.open(folder).cases("val")
    return [
        CaseResult(
            case.id,
            module.TASK.predict(model, run, scans[TRAIN + index][None], None).numpy(),
            module.TASK.truth(model, run, case),
            (1, 1, 1),
        )
        for index, case in enumerate(held)
    ]


@pytest.mark.learning
@pytest.mark.timeout(1800)
def test_written_reports_are_closer_than_the_most_frequent_one(cohort, finder, record_property) -> None:
    """The writer starts from the encoder of retrieval; from random weights it learns the words but not to look."""
    folder, _ = cohort
    changes = {
        "method": ENCODER,
        "data": {"size": SIZE},
        "task": {"width": 64, "hidden": 128, "longest": 32, "dropout": 0.0},
    }
    run = finetune_config("report_generation", "tiny", folder, "mae3d", changes)
    model = trained(report_generation, run, cohort, 400, finder[1].encoder)
    written = report_generation.TASK.evaluate(run, results(report_generation, model, run, cohort))
    dataset = Dataset.open(folder)
    usual = Counter(case.report for case in dataset.cases("train")).most_common(1)[0][0]
    true = [words(case.report) for case in dataset.cases("val")]
    copied = report_metrics([words(usual)] * len(true), true, samples=0)
    for name in ("bleu_1", "bleu_4", "rouge_l", "cider"):
        record_property(name, f"{written[name]:.3f} written, {copied[name]:.3f} copied")
        assert written[name] > copied[name], name


@pytest.mark.learning
@pytest.mark.timeout(1800)
def test_reports_find_their_scans_above_chance(cohort, finder, record_property) -> None:
    run, model = finder
    report = retrieval.TASK.evaluate(run, results(retrieval, model, run, cohort))
    for way in ("text_to_volume", "volume_to_text"):
        chance, recall = report[f"{way}_chance_1"], report[f"{way}_recall_1"]
        record_property(f"{way}_1", f"{recall:.3f} found, {chance:.3f} by chance")
        assert report[f"{way}_recall_1_low"] > chance, way
