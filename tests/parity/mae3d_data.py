"""Reading, resampling, metrics and the CSV commands of 3D-MAE."""

from __future__ import annotations

import csv
import io
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from tests.parity.cases import Case
from tests.parity.mae3d_networks import finetune_run
from training_backend.data.tangerine import read_list, resample_published
from training_backend.evaluate.classification_metrics import reference_metrics
from training_backend.evaluate.embed import embed_files, predict_csv, read_published, read_table
from training_backend.weights.load import load_model


def check_data(case: Case) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scan = _scan(case, folder / "scan.nii.gz")
        (folder / "train.csv").write_text(f"Path,Label\n{scan},{float(case.arrays['fine_label'])}\n")
        rows, (path,) = read_table([folder / "train.csv"])
        case.compare("fine_label", float(rows[0]["Label"]))
        case.compare("fine_volume", read_published(path))
        case.compare("extract_orientation_mod", read_published(path, reverse_axes=True))
        case.compare("extract_no_hu", read_published(path, window=False))
        _check_resampled(case, scan)
        _check_list(case, folder)


def _scan(case: Case, path: Path) -> Path:
    image = sitk.GetImageFromArray(case.arrays["raw"])
    image.SetSpacing(case.arrays["spacing"].tolist())
    image.SetOrigin(case.arrays["resampled_origin"].tolist())
    sitk.WriteImage(image, str(path))
    return path


def _check_resampled(case: Case, scan: Path) -> None:
    result = resample_published(sitk.ReadImage(str(scan)), tuple(case.arrays["new_size"].tolist()))
    tolerance = case.entry["tolerance"]
    case.compare("resampled", sitk.GetArrayFromImage(result), atol=tolerance["resampled_atol"])
    case.compare("resampled_spacing", result.GetSpacing())
    case.compare("resampled_origin", result.GetOrigin())


def _check_list(case: Case, folder: Path) -> None:
    raw, count = case.arrays["pretrain_raw"], int(case.arrays["pretrain_count"])
    stored = folder / "stored.npz"
    np.savez(stored, volume=raw)
    (folder / "list.txt").write_text("\n".join([str(stored)] * count + ["scan.nii.gz", "scan.NPZ"]) + "\n")
    kept, others = read_list(folder / "list.txt")
    assert (len(kept), len(others)) == (count, 2)
    case.compare("pretrain_volume", read_published(kept[0]))


def check_metrics(case: Case) -> None:
    for name in [name.removesuffix("_logits") for name in case.arrays if name.endswith("_logits")]:
        loss = "mse" if name.startswith("regression") else "ce" if name.startswith("ce") else "bce"
        logits, target = case.arrays[f"{name}_logits"], case.arrays[f"{name}_y"]
        if loss != "ce":
            target = target.reshape(logits.shape)
        expected = dict(zip(case.arrays[f"{name}_keys"].tolist(), case.arrays[f"{name}_vals"].tolist(), strict=True))
        weight = _positive_weights(logits, target, expected["loss"]) if loss == "bce" else None
        found = reference_metrics(logits, target, loss, weight)
        assert set(found) == set(expected)
        case.compare(f"{name}_vals", [found[key] for key in case.arrays[f"{name}_keys"].tolist()])


def _positive_weights(logits: np.ndarray, target: np.ndarray, loss: float) -> list[float]:
    """The weight of each label, which the manifest does not give: round numbers that explain the loss, 1 if they do."""
    negative = (np.logaddexp(0, logits) * (1 - target)).sum()
    positive = (np.logaddexp(0, -logits) * target).sum(axis=0)
    round_numbers = (1.0, 0.5, 2.0, 3.0, 4.0, 1.5, 0.25, 5.0)
    candidates = np.array(list(itertools.product(round_numbers, repeat=len(positive))))
    off = np.abs((negative + candidates @ positive) / logits.size - loss)
    return candidates[int(np.argmax(off < 1e-6))].tolist()


def check_cli(case: Case) -> None:
    run = finetune_run(case.config)
    told = {"method": {"heads": case.config["num_heads"]}, "task": run.task.model_dump(include={"name", "kind"})}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table, weights = _table(case, folder), folder / "finetuned.pth"
        extracts = "predictions" not in case.arrays
        state = {f"module.{key}": value for key, value in case.weights().items()} if extracts else case.weights()
        torch.save({"model": state} if extracts else state, weights)
        model = load_model(weights, changes=told)
        assert (model.config.data.size, model.config.task) == (run.data.size, run.task)
        if not extracts:
            predict_csv(model, table, folder / "out.csv", as_published=True)
            rows = _compare_table(case, folder)
            case.compare("predictions", [json.loads(row["Predictions"]) for row in rows])
            return
        embed_files(model, [table], folder / "out.csv", kinds=["all"], as_published=True)
        embed_files(model, [table], folder / "out.npz", kinds=["all"], as_published=True)
        rows = _compare_table(case, folder)
        with np.load(folder / "out.npz") as arrays:
            for kind in arrays:
                case.compare(f"npz_{kind}", arrays[kind])
                case.compare(f"npz_{kind}", [json.loads(row[f"Embedding_{kind}"]) for row in rows])


def _table(case: Case, folder: Path) -> Path:
    """The input of the reference's run: its output without the columns that it added, and the scans beside it."""
    rows = list(csv.DictReader(io.StringIO(str(case.arrays["out_csv"]))))
    for row, voxels in zip(rows, case.arrays["raw"], strict=True):
        path = Path(row["Path"].replace("DIR", str(folder), 1))
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))
        row["Path"] = str(path)
    added = [name for name in rows[0] if name == "Predictions" or name.startswith("Embedding")]
    with (folder / "in.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [name for name in rows[0] if name not in added], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return folder / "in.csv"


def _compare_table(case: Case, folder: Path) -> list[dict[str, str]]:
    """Columns in order, text cells equal, numbers within the tolerance."""
    with (folder / "out.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == case.arrays["out_columns"].tolist()
    expected = list(csv.DictReader(io.StringIO(str(case.arrays["out_csv"]))))
    tolerance = case.entry["tolerance"]
    for row, wanted in zip(rows, expected, strict=True):
        for name, cell in wanted.items():
            if cell.startswith("["):
                np.testing.assert_allclose(json.loads(row[name]), json.loads(cell), **tolerance)
            else:
                assert row[name].replace(str(folder), "DIR", 1) == cell
    return rows
