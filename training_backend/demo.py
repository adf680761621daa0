"""The whole way once, on phantoms: cohort, ingest, pre-training, fine-tuning, prediction, and the result in napari."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from training_backend.errors import Med3dError, RunError
from training_backend.files import write_json

COHORT = 14
"""Phantom patients: ten to train on, four to validate on; one more is made for the prediction."""


@dataclass
class DemoSummary:
    """What the demo did and measured; ``summary.json`` in its folder."""

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    pretrain_loss: tuple[float, float] = (float("nan"), float("nan"))
    """Masked-reconstruction loss on the validation cases at the first and at the best validation."""
    validation_dice: float = float("nan")
    """Mean foreground Dice of the validation cases."""
    new_case_dice: dict[str, float] = field(default_factory=dict)
    """Dice per class on a phantom that no run has seen, on the grid of its file."""
    screenshots: tuple[str, ...] = ()
    ok: bool = True

    def __str__(self) -> str:
        """A few lines to read."""
        total = sum(self.seconds.values())
        steps = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())
        dice = ", ".join(f"{name} {value:.2f}" for name, value in self.new_case_dice.items())
        lines = [
            f"Done in {total:.0f} s ({steps}).",
            f"Pre-training: validation loss {self.pretrain_loss[0]:.4f} -> {self.pretrain_loss[1]:.4f}",
            f"Fine-tuning: mean Dice {self.validation_dice:.3f} on the validation cases",
            f"Prediction of an unseen phantom: Dice {dice}",
            f"Everything is in {self.folder}",
        ]
        if self.screenshots:
            lines.append(f"Screenshots: {', '.join(self.screenshots)}")
        return "\n".join(lines)


def run_demo(output: Path, *, headless: bool = False, seed: int = 0) -> DemoSummary:
    """Run the demo in `output`; a folder that holds a finished demo only opens the viewer again.

    Args:
        output: folder for the cohort, the dataset, the runs and the prediction.
        headless: do not keep a window open: take screenshots and close it.
        seed: of the phantoms and of the runs.
    """
    output = Path(output).resolve()
    output.mkdir(parents=True, exist_ok=True)
    summary = DemoSummary(output)
    with _timed(summary, "cohort"):
        new_case = _cohort(output, seed)
    with _timed(summary, "ingest"):
        _ingest(output)
    with _timed(summary, "pre-train"):
        pretrained = _train(output, "pretrain", seed)
        losses = _validation_scores(pretrained)
        summary.pretrain_loss = (losses[0], min(losses))
    with _timed(summary, "fine-tune"):
        finetuned = _train(output, "finetune", seed)
        summary.validation_dice = max(_validation_scores(finetuned))
    with _timed(summary, "predict"):
        prediction, summary.new_case_dice = _predict(output, finetuned, new_case)
    with _timed(summary, "view"):
        summary.screenshots = _view(output, new_case, prediction, headless=headless)
    write_json(output / "summary.json", {**asdict(summary), "folder": str(output)})
    return summary


@contextmanager
def _timed(summary: DemoSummary, step: str) -> Iterator[None]:
    sys.stderr.write(f"{step} ...\n")
    start = time.monotonic()
    yield
    summary.seconds[step] = round(time.monotonic() - start, 1)


def _cohort(output: Path, seed: int) -> tuple[Path, Path]:
    """Image and label file of the phantom kept apart, after writing the cohort once."""
    from training_backend.data.phantoms import write_cohort

    cohort, unseen = output / "cohort", output / "unseen"
    if not (unseen / "done").exists():
        write_cohort(cohort, COHORT, seed=seed)
        write_cohort(unseen, 1, seed=seed + 1000)
        (unseen / "done").touch()
    images = sorted((unseen / "imagesTr").glob("*.nii.gz"))
    return images[0], unseen / "labelsTr" / images[0].name


def _ingest(output: Path) -> None:
    from training_backend.config import IngestConfig
    from training_backend.data.ingest import ingest

    report = ingest([output / "cohort"], output / "dataset", IngestConfig(splits=(0.72, 0.28, 0.0)), name="phantoms")
    if report.quarantined:
        raise RunError(f"The demo's own phantoms were refused: {report.quarantined}.")


def _train(output: Path, kind: str, seed: int) -> Path:
    from training_backend.config.presets import finetune_config, pretrain_config
    from training_backend.watch import train

    dataset, runs = output / "dataset", output / "runs"
    changes: dict[str, Any] = {
        "seed": seed,
        "engine": {"threads": 1},
    }  # leaves the other processors to the loader and the user
    if kind == "pretrain":
        config = pretrain_config("mae3d", "tiny", dataset, changes)
    else:
        changes["weights"] = str(runs / "pretrain")
        config = finetune_config("segmentation", "tiny", dataset, "mae3d", changes)
    report = train(config, runs / kind)
    if not report.ok:
        raise RunError(f"The demo's {kind} run did not finish: {report}.", f"See {runs / kind / 'log.txt'}.")
    return runs / kind


def _validation_scores(run: Path) -> list[float]:
    from training_backend.engine.events import EventReader

    events = EventReader(run / "events.jsonl").read()
    return [event["score"] for event in events if event["type"] == "metrics" and event["split"] == "val"]


def _predict(output: Path, run: Path, new_case: tuple[Path, Path]) -> tuple[Path, dict[str, float]]:
    from training_backend.data.read import read_labels
    from training_backend.evaluate.predict import predict_files
    from training_backend.evaluate.segmentation_metrics import dice_per_class

    image, label = new_case
    (prediction,) = predict_files(run, [image], output / "prediction")
    classes = json.loads((run / "card.json").read_text(encoding="utf-8"))["classes"]
    names = {int(entry["index"]): str(entry["name"]) for entry in classes if int(entry["index"]) > 0}
    scores = dice_per_class(read_labels(prediction.path).array, read_labels(label).array, sorted(names))
    present = {names[index]: round(float(value), 4) for index, value in scores.items() if not math.isnan(value)}
    return prediction.path, present


def _view(output: Path, new_case: tuple[Path, Path], prediction: Path, *, headless: bool) -> tuple[str, ...]:
    """Open napari (a process of its own) on the scan, its prediction and the runs of the demo."""
    command = [sys.executable, "-m", "napari_med3dssl", str(new_case[0]), str(prediction)]
    command += ["--dataset", str(output / "dataset")]
    folder = output / "screenshots"
    if headless:
        command += ["--screenshots", str(folder)]
        if not os.environ.get("DISPLAY") and shutil.which("xvfb-run"):
            command = ["xvfb-run", "-a", "-s", "-screen 0 1280x800x24 +extension GLX", *command]
    environment = {**os.environ, "MED3DSSL_RUNS": str(output / "runs")}
    result = subprocess.run(command, env=environment, capture_output=headless, text=True, check=False)
    if result.returncode != 0:
        details: Any = (result.stderr or "").strip().splitlines()[-1:] or ["no details"]
        raise Med3dError(f"The viewer ended with an error: {details[0]}", "Run: med3dssl doctor.")
    return tuple(sorted(path.name for path in folder.glob("*.png"))) if headless else ()
