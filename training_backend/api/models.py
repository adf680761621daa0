"""What trained models do with scans."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from training_backend.api.progress import progress_bar
from training_backend.api.runs import ComparisonReport, changes, runs_compare
from training_backend.errors import ConfigError
from training_backend.report import Table


def predict(
    run: str,
    input: tuple[Path, ...],
    output: Path,
    probabilities: bool = False,
    overlap: float | None = None,
    labels: Path | None = None,
    device: str = "auto",
) -> Any:
    """Apply a fine-tuned model to scans; label volumes lie exactly on the grid of each file.

    Args:
        run: Run directory, model folder, or the authors' fine-tuned file.
        input: Scans, or one CSV with a column Path for classifiers (the same table comes back with Predictions). For
            registration two: the scan to be moved, then the one that stays.
        output: Folder for the results; for a CSV, the CSV to write.
        probabilities: Also write one probability map per class.
        overlap: Overlap of sliding windows, 0 to 0.9; that of the model when empty.
        labels: Label map of the scan to be moved, which is moved with it (registration).
        device: auto, cpu, cuda or cuda:N.
    """
    if len(input) == 1 and input[0].suffix.lower() == ".csv":
        from training_backend.evaluate.embed import predict_csv

        return predict_csv(run, input[0], output, device=device)
    from training_backend.evaluate.predict import predict_files

    predictions = predict_files(
        run,
        list(input),
        output,
        probabilities=probabilities,
        overlap=overlap,
        labels=labels,
        device=device,
        progress=progress_bar("predict"),
    )
    table = Table(("scan", "written", "result"))
    for prediction in predictions:
        table.add(prediction.source.name, str(prediction.path or "-"), prediction.summary())
    return table


def evaluate(
    run: str,
    data: Path,
    split: Literal["train", "val", "test"] = "val",
    output: Path | None = None,
    classifier: str | None = None,
) -> Table:
    """Score a fine-tuned model on a split of a dataset: every case, every class, and their means with intervals.

    Args:
        run: Run directory or model folder.
        data: Dataset.
        split: Which cases.
        output: CSV to write as well.
        classifier: Model that tells findings of reports, to compare written reports with the true ones by.
    """
    from training_backend.evaluate.score import score_split

    table = score_split(run, data, split, progress=progress_bar("evaluate"), classifier=classifier)
    if output is not None:
        table.write_csv(output)
    return table


def compare(runs: tuple[Path, ...], output: Path | None = None) -> ComparisonReport:
    """Put runs beside each other, with paired statistics on the cases they share; `runs compare` has more options.

    Args:
        runs: Two or more run directories; the first is the reference.
        output: CSV to write as well.
    """
    return runs_compare(runs, csv=output)


def reconstruct(
    run: str,
    input: Path,
    output: Path,
    modality: str = "",
    mask_ratio: float = 0.75,
    seed: int = 0,
    device: str = "auto",
) -> Table:
    """Mask a scan, let a pre-trained model fill the gaps, and write masked input, reconstruction and error as volumes.

    Args:
        run: Pre-training run, model folder, or the authors' file.
        input: Scan.
        output: Folder for the volumes.
        modality: Of an earlier stage of continual learning, such as 3D_CT; runs and plans keep the decoders of all.
        mask_ratio: Share of hidden patches.
        seed: Of the mask.
        device: auto, cpu, cuda or cuda:N.
    """
    from training_backend.evaluate.reconstruct import reconstruct_file

    paths = reconstruct_file(run, input, output, modality=modality, mask_ratio=mask_ratio, seed=seed, device=device)
    table = Table(("written",))
    for path in paths:
        table.add(str(path))
    return table


def view(
    run: str,
    input: Path | None = None,
    name: str = "",
    output: Path | None = None,
    set: tuple[str, ...] = (),
    point: tuple[int, int, int] | None = None,
    centre: tuple[int, int, int] | None = None,
    other: Path | None = None,
    other_centre: tuple[int, int, int] | None = None,
    against: str = "",
    report: Path | None = None,
    dataset: Path | None = None,
    cases: tuple[str, ...] = (),
    device: str = "auto",
) -> Table:
    """Write what a model shows of a scan as volumes on the scan; without a scan, list what it can show.

    Args:
        run: Run directory, model folder, or the authors' file.
        input: Scan.
        name: What to show, from the list.
        output: Folder for the volumes.
        set: Settings of the view as KEY=VALUE, e.g. prefix=0.5; values are read as YAML.
        point: Voxel (z, y, x) of the scan, for views that start from one.
        centre: Voxel (z, y, x) of the scan around which a model of crops looks; its middle when empty.
        other: Second scan, for views that compare two.
        other_centre: Voxel (z, y, x) of the second scan around which a model of crops looks; its middle when empty.
        against: Second model, for views that compare two; the teacher beside the first when empty.
        report: Text file (UTF-8) with the report of the scan, for views that read one.
        dataset: Dataset folder, for views that compare cases.
        cases: Ids of the cases.
        device: auto, cpu, cuda or cuda:N.
    """
    from training_backend.evaluate.view import draw_file, views_of

    if input is None and not name:
        from training_backend.weights.load import load_model

        table = Table(("view", "needs", "settings", "what"))
        for found in views_of(load_model(run)):
            settings = [key for key in found.options.model_fields if key != "point"]
            wants = {"--point": found.point, "--other": found.other, "a teacher": found.teacher}
            wants["--against, or a teacher"] = found.against
            wants |= {"--report": found.text == "report", "--set text=WORDS": found.text == "query"}
            wants["--dataset and --cases"] = found.cases
            needs = ", ".join(name for name, wanted in wants.items() if wanted)
            table.add(found.name, needs or "-", ", ".join(settings) or "-", found.tip)
        return table
    if input is None or output is None or not name:
        raise ConfigError("A view needs --input SCAN, --name NAME and --output DIR.", "Leave all out for a list.")
    beside: dict[str, Any] = {"point": point, "centre": centre, "other_centre": other_centre, "against": against}
    beside |= {"report": report, "dataset": dataset, "cases": cases}
    written, text = draw_file(run, input, output, name, changes(set), other=other, device=device, **beside)
    table = Table(("what", "value"))
    for path in written:
        table.add("written", path)
    return table.add("seen", text) if text else table


def embed(
    weights: str,
    input: tuple[Path, ...],
    output: Path,
    kinds: tuple[Literal["class", "pooled", "concat", "pre_logits", "normalised"], ...] = ("pre_logits",),
    levels: tuple[int, ...] = (),
    device: str = "auto",
) -> Any:
    """One feature vector per scan and kind, as CSV, npy, npz or parquet by the suffix of the output.

    Args:
        weights: Run directory, model folder, or the authors' file.
        input: Scans, or one CSV with a column Path.
        output: Table to write.
        kinds: class token, mean of patches, both, both after the norm of the head (two names).
        levels: Maps of a hierarchical encoder, 1 the finest, whose means are written in place of the kinds.
        device: auto, cpu, cuda or cuda:N.
    """
    from training_backend.evaluate.embed import embed_files

    return embed_files(weights, list(input), output, kinds=kinds, levels=levels, device=device)
