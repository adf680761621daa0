"""Vectors and predictions of whole scans as tables: a CSV or a list of files in, the same rows with results out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from training_backend.data.tangerine import window_hu
from training_backend.errors import ConfigError, DataError, Med3dError
from training_backend.files import atomic, write_text
from training_backend.tasks.base import Cancelled, Progress

if TYPE_CHECKING:
    from torch import Tensor

    from training_backend.weights.load import LoadedModel

Row = dict[str, str]
T = TypeVar("T")
Floats = npt.NDArray[np.float32]

KINDS = ("class", "pooled", "concat", "pre_logits", "normalised")
"""See `training_backend.nn.heads.embeddings`."""


@dataclass
class TableReport:
    """A written table.

    Attributes:
        output: the file.
        rows: rows written, one per input.
        refused: a sentence by input path for each row whose result is empty.
    """

    output: Path
    rows: int
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every row has its result."""
        return not self.refused

    def __str__(self) -> str:
        """A summary to read."""
        lines = [f"{self.rows - len(self.refused)} of {self.rows} rows written to {self.output}"]
        return "\n".join(lines + [f"no result: {path}: {reason}" for path, reason in self.refused.items()])


def embed_files(
    source: str | Path | LoadedModel,
    inputs: Sequence[Path],
    output: Path,
    *,
    kinds: Sequence[str] = ("pre_logits",),
    levels: Sequence[int] = (),
    normed: bool = False,
    flatten: bool = False,
    as_published: bool = False,
    reverse_axes: bool = False,
    path_column: str = "Path",
    device: str = "auto",
    progress: Progress | None = None,
) -> TableReport:
    """Embed whole scans with the encoder of a model, one row per scan.

    Args:
        source: run directory, weights file or ``zoo:NAME``, or a model already loaded.
        inputs: scans, or one CSV with a column of paths, whose other columns are kept.
        output: ``.csv`` (numbers as a JSON list per kind), ``.parquet``, ``.npy`` (one kind) or ``.npz`` (any).
        kinds: any of `KINDS`, or "all" for the four different ones.
        levels: maps of a hierarchical encoder, counted from 1, the finest: their means over the scan, called map1 and
            so on, in place of the kinds.
        normed: apply the encoder's final norm to tokens first; the published embeddings do not.
        flatten: one numeric column per number instead of lists.
        as_published: see `read_published`; else the model's own pre-processing.
        reverse_axes: give the volume to the network as (x, y, z), as some of the authors' old files are stored.
        path_column: column of a CSV with the paths.
        device: auto, cpu, cuda or cuda:N.
        progress: told the share done; answers whether to go on.
    """
    from training_backend.evaluate.features import check_level
    from training_backend.nn.heads import embeddings

    chosen = tuple(f"map{level}" for level in levels) or _kinds(kinds)
    rows, paths = read_table(inputs, path_column)
    model = _loaded(source, device)
    network = model.module if model.kind == "finetune" else model.encoder

    for level in levels:
        check_level(model.encoder, level)

    def function(volume: Tensor) -> dict[str, Floats]:
        if levels:
            maps = model.encoder.encode(volume).pyramid
            means = {f"map{level}": maps[level - 1][0].mean(dim=(1, 2, 3)) for level in levels}
            return {kind: value.float().cpu().numpy() for kind, value in means.items()}
        return {kind: value[0].float().cpu().numpy() for kind, value in embeddings(network, volume, normed).items()}

    read = _reader(model, as_published, reverse_axes)
    results, refused = _over(paths, read, function, model, progress)
    columns = {kind: [result[kind] if result else None for result in results] for kind in chosen}
    _write(Path(output), rows, columns, flatten)
    return TableReport(Path(output), len(rows), refused)


def predict_csv(
    source: str | Path | LoadedModel,
    input_csv: Path,
    output_csv: Path,
    *,
    as_published: bool = False,
    path_column: str = "Path",
    device: str = "auto",
    progress: Progress | None = None,
) -> TableReport:
    """Predict every scan of a CSV with a classification or regression model; adds a column "Predictions" of lists.

    Args:
        source: run directory, weights file, or a model already loaded.
        input_csv: has a column of paths, or for models of texts one called Text, Sentence or Report; all its columns
            are kept.
        output_csv: the same rows with probabilities (sigmoid or softmax) or values, as ``[0.73]``.
        as_published: see `read_published`; else the model's own pre-processing.
        path_column: column with the paths.
        device: auto, cpu, cuda or cuda:N.
        progress: told the share done; answers whether to go on.
    """
    from training_backend.config.registry import task

    model = _loaded(source, device)
    if model.config.task is not None and task(model.config.task.name).predict_texts is not None:
        from training_backend.evaluate.texts import predict_table

        return predict_table(model, Path(input_csv), Path(output_csv), progress)
    rows, paths = read_table([input_csv], path_column)
    if model.config.task is None or task(model.config.task.name).needs != "target":
        raise ConfigError(
            "These weights predict no class or value of a whole volume.", "Choose a classification or regression model."
        )
    head = task(model.config.task.name)

    def function(volume: Tensor) -> Floats:
        values: Floats = head.predict(model.module, model.config, volume, None).float().cpu().numpy()
        return values

    results, refused = _over(paths, _reader(model, as_published, False), function, model, progress)
    for row, result in zip(rows, results, strict=True):
        row["Predictions"] = "" if result is None else vector_json(result)
    write_csv(Path(output_csv), rows)
    return TableReport(Path(output_csv), len(rows), refused)


def read_published(path: Path, *, key: str = "volume", window: bool = True, reverse_axes: bool = False) -> Floats:
    """A scan [1, D, H, W] exactly as the authors' loaders read it.

    The axes are those of the file, slowest first, whatever its orientation; nothing is resampled. Files of other
    formats than ``.npz`` and ``.npy``, which hold normalised volumes, are windowed from [-1200, 800] HU to [0, 1].

    Args:
        path: any readable format.
        key: array of an ``.npz``.
        window: off leaves the file's numbers.
        reverse_axes: (W, H, D) in place of (D, H, W).
    """
    from training_backend.data.read import read_volume

    path = Path(path)
    volume = read_volume(path, key=key if path.suffix == ".npz" else "")
    array = np.asarray(volume.geometry.to_source(volume.array).T, np.float32)
    if window and path.suffix not in (".npz", ".npy"):
        array = window_hu(array)
    return np.ascontiguousarray(array.T if reverse_axes else array)[None]


def read_table(inputs: Sequence[Path], path_column: str = "Path") -> tuple[list[Row], list[Path]]:
    """Rows of a CSV (or one row per file) and the file of each row; relative paths may be relative to the CSV."""
    if len(inputs) != 1 or Path(inputs[0]).suffix.lower() != ".csv":
        return [{path_column: str(path)} for path in inputs], [Path(path) for path in inputs]
    table = Path(inputs[0])
    rows, columns = read_rows(table)
    if path_column not in columns:
        raise DataError(
            f"The table {table.name} has no column {path_column!r}; it has {', '.join(columns) or 'none'}.",
            "Name the column that holds the paths.",
        )
    return rows, [_resolved(Path(row[path_column]), table.parent) for row in rows]


def read_rows(table: Path) -> tuple[list[Row], list[str]]:
    """Rows and columns of a CSV."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            return list(reader), list(reader.fieldnames or ())
    except OSError as error:
        raise DataError(f"The table {table} cannot be read: {error.strerror}.") from error


def _resolved(path: Path, folder: Path) -> Path:
    return path if path.is_absolute() or path.exists() else folder / path


def _kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    chosen = KINDS[:4] if "all" in kinds else tuple(kinds)
    unknown = [kind for kind in chosen if kind not in KINDS]
    if unknown or not chosen:
        raise ConfigError(f"There is no kind of embedding {', '.join(unknown)!r}.", f"Choose from {', '.join(KINDS)}.")
    return chosen


def _loaded(source: str | Path | LoadedModel, device: str) -> LoadedModel:
    """Model in evaluation mode on its device."""
    from training_backend.evaluate.predict import chosen_device

    if isinstance(source, str | Path):
        from training_backend.weights.load import load_model

        source = load_model(source)
    source.module.to(chosen_device(device)).eval()
    return source


def _reader(model: LoadedModel, as_published: bool, reverse_axes: bool) -> Callable[[Path], Floats]:
    """Function from a path to network input [C, D, H, W]."""
    if as_published:
        return lambda path: read_published(path, reverse_axes=reverse_axes)

    def read(path: Path) -> Floats:
        from training_backend.data.prepare import prepare
        from training_backend.data.read import read_volumes

        array = prepare(read_volumes(path), model.profile).array
        return np.ascontiguousarray(array.transpose(0, 3, 2, 1)) if reverse_axes else array

    return read


def _over(
    paths: Sequence[Path],
    read: Callable[[Path], Floats],
    function: Callable[[Tensor], T],
    model: LoadedModel,
    progress: Progress | None,
) -> tuple[list[T | None], dict[str, str]]:
    """`function` of every scan; None, and a sentence by path, where the scan cannot be used."""
    import torch

    device = next(model.module.parameters()).device
    results: list[T | None] = []
    refused: dict[str, str] = {}
    for done, path in enumerate(paths):
        if progress is not None and not progress(done / len(paths)):
            raise Cancelled
        try:
            volume = torch.from_numpy(read(path))[None].to(device)
            with torch.inference_mode():
                results.append(function(volume))
        except Med3dError as error:
            refused[str(path)] = str(error)
            results.append(None)
    return results, refused


def _write(output: Path, rows: list[Row], columns: Mapping[str, list[Floats | None]], flatten: bool) -> None:
    """Write columns of vectors beside `rows`, in the format that the name of `output` asks for."""
    writers: dict[str, Callable[[], None]] = {
        ".csv": lambda: write_csv(output, _table(rows, columns, flatten, vector_json)),
        ".parquet": lambda: _write_parquet(output, _table(rows, columns, flatten, np.ndarray.tolist)),
        ".npy": lambda: _write_arrays(output, columns),
        ".npz": lambda: _write_arrays(output, columns),
    }
    if output.suffix not in writers:
        raise ConfigError(f"Embeddings cannot be written as {output.name!r}.", f"End it in {', '.join(writers)}.")
    if output.suffix == ".npy" and len(columns) > 1:
        raise ConfigError("An .npy file holds one kind of embedding.", "Choose one kind, or write .npz.")
    writers[output.suffix]()


def _table(
    rows: list[Row],
    columns: Mapping[str, list[Floats | None]],
    flatten: bool,
    written: Callable[[Floats], Any],
) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = [dict(row) for row in rows]
    for kind, vectors in columns.items():
        name = "Embedding" if len(columns) == 1 else f"Embedding_{kind}"
        width = max((len(vector) for vector in vectors if vector is not None), default=0)
        for row, vector in zip(table, vectors, strict=True):
            if not flatten:
                row[name] = None if vector is None else written(vector)
                continue
            numbers: list[Any] = [None] * width if vector is None else vector.tolist()
            row.update({f"{name}_{index}": number for index, number in enumerate(numbers)})
    return table


def write_csv(output: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows under the columns of the first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(output, text.getvalue())


def _write_parquet(output: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(
            "Parquet files need the package pyarrow.", "pip install 'napari-med3dssl[parquet]'."
        ) from error
    with atomic(output) as stream:
        parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), stream)


def _write_arrays(output: Path, columns: Mapping[str, list[Floats | None]]) -> None:
    """One array [N, E] per kind; rows without result are NaN."""
    arrays: dict[str, Any] = {}
    for kind, vectors in columns.items():
        width = max((len(vector) for vector in vectors if vector is not None), default=0)
        empty = np.full(width, np.nan, np.float32)
        arrays[kind] = np.stack([empty if vector is None else vector for vector in vectors])
    with atomic(output) as stream:
        if output.suffix == ".npy":
            np.save(stream, next(iter(arrays.values())))
        else:
            np.savez_compressed(stream, **arrays)


def vector_json(vector: Floats) -> str:
    """Numbers as a JSON list."""
    return json.dumps([float(number) for number in vector])
