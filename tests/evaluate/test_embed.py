from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import SimpleITK as sitk
import torch

from training_backend.config.presets import finetune_config, pretrain_config
from training_backend.data.prepare import InputProfile
from training_backend.errors import ConfigError, DataError
from training_backend.evaluate.embed import embed_files, predict_csv, read_published
from training_backend.methods.mae3d import METHOD
from training_backend.tasks.base import Cancelled
from training_backend.tasks.classification import TASK
from training_backend.weights.load import LoadedModel, load_model
from training_backend.weights.save import save_model

METHOD_SETTINGS = {"embed_dim": 24, "depth": 2, "heads": 3, "decoder_embed_dim": 16, "decoder_heads": 2}
DATA = {"size": (16, 16, 16), "view": "volume", "intensity": {"profile": "window"}}


def saved(folder: Path, kind: str) -> Path:
    torch.manual_seed(0)
    changes = {"method": METHOD_SETTINGS, "data": DATA}
    if kind == "pretrain":
        config = pretrain_config("mae3d", "tiny", Path("d"), changes)
        module = METHOD.build(config)
    else:
        config = finetune_config("classification", "tiny", Path("d"), "mae3d", changes)
        module = TASK.build(config, METHOD.build_encoder(config))
        torch.nn.init.normal_(module.head.weight)
    profile = InputProfile(view="volume", size=(16, 16, 16), intensity=config.data.intensity, crop_body=False)
    folder.mkdir()
    card = {"kind": kind, "config": config.model_dump(mode="json"), "profile": profile.model_dump(mode="json")}
    save_model(folder, module, card)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(tmp_path / "model", "pretrain")


@pytest.fixture
def scans(tmp_path: Path) -> list[Path]:
    paths = []
    for index in range(2):
        array = np.random.default_rng(index).integers(-1300, 900, (16, 18, 20)).astype(np.int16)
        paths.append(tmp_path / f"Jürgen scan {index}.nii.gz")
        sitk.WriteImage(sitk.GetImageFromArray(array), str(paths[-1]))
    return paths


@pytest.fixture
def table(tmp_path: Path, scans: list[Path]) -> Path:
    path = tmp_path / "in.csv"
    rows = [f"{scan.name},{index},00{index}" for index, scan in enumerate(scans)]
    path.write_text("\n".join(["Path,Label,Case", *rows]) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_format_holds_the_same_numbers(model: Path, table: Path, tmp_path: Path) -> None:
    for name in ("out.csv", "out.parquet", "out.npz", "out.npy"):
        kinds = ["concat"] if name == "out.npy" else ["concat", "class"]
        assert embed_files(model, [table], tmp_path / name, kinds=kinds).ok
    expected = np.load(tmp_path / "out.npy")
    assert expected.shape == (2, 48)
    rows = read(tmp_path / "out.csv")
    assert list(rows[0]) == ["Path", "Label", "Case", "Embedding_concat", "Embedding_class"]
    assert [row["Case"] for row in rows] == ["000", "001"]
    np.testing.assert_array_equal(np.float32([json.loads(row["Embedding_concat"]) for row in rows]), expected)
    columns = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pydict()
    np.testing.assert_array_equal(np.float32(columns["Embedding_concat"]), expected)
    with np.load(tmp_path / "out.npz") as arrays:
        np.testing.assert_array_equal(arrays["concat"], expected)
        np.testing.assert_array_equal(arrays["class"], expected[:, :24])


def test_flattened_columns_are_numbers(model: Path, scans: list[Path], tmp_path: Path) -> None:
    embed_files(model, scans, tmp_path / "out.csv", kinds=["pooled"], flatten=True)
    rows = read(tmp_path / "out.csv")
    assert list(rows[0]) == ["Path", *(f"Embedding_{index}" for index in range(24))]
    assert np.isfinite([float(value) for value in list(rows[1].values())[1:]]).all()


def test_a_scan_that_cannot_be_read_keeps_its_row_and_gets_a_sentence(model: Path, table: Path, tmp_path: Path) -> None:
    with table.open("a") as stream:
        stream.write("missing.nii.gz,1,9\n")
    report = embed_files(model, [table], tmp_path / "out.csv")
    assert (report.ok, report.rows, len(report.refused)) == (False, 3, 1)
    assert "2 of 3 rows" in str(report)
    assert [bool(row["Embedding"]) for row in read(tmp_path / "out.csv")] == [True, True, False]
    embed_files(model, [table], tmp_path / "out.npy")
    assert np.isnan(np.load(tmp_path / "out.npy")).all(axis=1).tolist() == [False, False, True]


def test_predictions_are_a_column_of_lists(table: Path, tmp_path: Path) -> None:
    model = load_model(saved(tmp_path / "classifier", "finetune"))
    assert predict_csv(model, table, tmp_path / "out.csv").ok
    rows = read(tmp_path / "out.csv")
    assert list(rows[0]) == ["Path", "Label", "Case", "Predictions"]
    values = [json.loads(row["Predictions"]) for row in rows]
    assert all(len(value) == 1 and 0 < value[0] < 1 for value in values)
    assert values[0] != values[1]


def test_an_encoder_predicts_nothing(model: Path, table: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="predict no class"):
        predict_csv(model, table, tmp_path / "out.csv")


def test_work_can_be_cancelled_and_leaves_no_file(model: Path, scans: list[Path], tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        embed_files(model, scans, tmp_path / "out.csv", progress=lambda share: share < 0.4)
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    "output, kinds, sentence",
    [
        ("out.txt", ["class"], "cannot be written"),
        ("out.npy", ["class", "pooled"], "one kind"),
        ("o.csv", ["x"], "no kind"),
    ],
)
def test_impossible_requests_get_a_sentence(
    output: str, kinds: list[str], sentence: str, model: Path, scans: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        embed_files(model, scans[:1], tmp_path / output, kinds=kinds)


def test_a_missing_column_is_named_with_those_there_are(model: Path, table: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'Cases'; it has Path, Label, Case"):
        embed_files(model, [table], tmp_path / "out.csv", path_column="Cases")


def test_published_reading_ignores_the_orientation_and_never_windows_arrays(tmp_path: Path) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(np.int16)
    image = sitk.GetImageFromArray(array)
    image.SetDirection([-1, 0, 0, 0, -1, 0, 0, 0, 1])
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    np.savez(tmp_path / "a.npz", volume=array.astype(np.float32), other=np.zeros((1, 1, 1)))
    np.testing.assert_allclose(read_published(tmp_path / "a.nii.gz")[0], (array + 1200) / 2000, rtol=1e-6)
    assert np.array_equal(read_published(tmp_path / "a.nii.gz", window=False)[0], array)
    assert np.array_equal(read_published(tmp_path / "a.npz")[0], array)
    assert np.array_equal(read_published(tmp_path / "a.npz", reverse_axes=True)[0], array.T)


def test_a_loaded_model_can_be_given(model: Path, scans: list[Path], tmp_path: Path) -> None:
    loaded: LoadedModel = load_model(model)
    embed_files(loaded, scans[:1], tmp_path / "a.npy")
    embed_files(str(model), scans[:1], tmp_path / "b.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))
