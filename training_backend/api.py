"""The Python API; each function is also a sub-command of ``med3dssl``, with its arguments as flags.

Functions return values whose text is what the command prints; a value with a false `ok` makes the command fail.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from training_backend.errors import ConfigError
from training_backend.report import Table
from training_backend.watch import RunReport
from training_backend.watch import train as train

if TYPE_CHECKING:
    from training_backend.data.ingest import IngestReport
    from training_backend.data.nnunet import NnunetReport
    from training_backend.data.tangerine import PrepareReport
    from training_backend.demo import DemoSummary


def demo(output: Path = Path("demo-output"), headless: bool = False, seed: int = 0) -> DemoSummary:
    """Run the whole way on generated patients and open napari with the result.

    Args:
        output: Folder for everything the demo makes.
        headless: Take screenshots in place of leaving a window open.
        seed: Of the phantoms and the runs.
    """
    from training_backend.demo import run_demo

    return run_demo(output, headless=headless, seed=seed)


def doctor() -> Table:
    """Look for what would hinder training on this machine, with the command that mends it."""
    from training_backend.jobs.doctor import examine

    findings = examine()
    table = Table(("state", "finding", "do"), ok=all(finding.state != "bad" for finding in findings))
    for finding in findings:
        table.add(finding.state, finding.sentence, finding.command or "")
    return table


def data_inspect(path: Path) -> Table:
    """Say what a scan, a folder of scans or a dataset holds, without changing anything.

    Args:
        path: File, DICOM folder, folder of any known layout, or dataset.
    """
    from training_backend.data.inspect import inspect

    return inspect(path)


def data_ingest(
    paths: tuple[Path, ...],
    output: Path,
    name: str = "",
    spacing_mm: tuple[float, float, float] | None = None,
    crop_body: bool = True,
    align: bool = False,
    label_values: dict[int, int] | None = None,
    splits: tuple[float, float, float] = (0.8, 0.2, 0.0),
    seed: int = 0,
    workers: int | None = None,
) -> IngestReport:
    """Make a dataset: check every file, bring it into one frame, and store it for fast reading. Resumable.

    Args:
        paths: Folders or list files of any known layout.
        output: Folder of the dataset.
        name: Name of the dataset; the source's own when empty.
        spacing_mm: Resample to these millimetres along z, y, x; keep each scan's own when empty.
        crop_body: Store only the box around the body.
        align: Turn and shift further contrasts of a case to fit its first one, for headers that do not agree.
        label_values: Class that a value of the label maps stands for, in pairs: 205 1 420 2. Others stay what they are.
        splits: Shares of subjects in train, val, test where the source gives none.
        seed: Of the split.
        workers: Reading processes; chosen from the processors when empty.
    """
    from training_backend.config import IngestConfig
    from training_backend.data.ingest import ingest

    config = IngestConfig(
        spacing_mm=spacing_mm,
        crop_body=crop_body,
        align=align,
        label_values=label_values or {},
        splits=splits,
        seed=seed,
        workers=workers,
    )
    return ingest(list(paths), output, config, name=name, progress=_bar("ingest"))


def data_split(folder: Path, folds: int = 5, fold: int = 0, seed: int = 0) -> Table:
    """Cut validation cases from the training cases of a dataset, by subject; its test cases stay what they are.

    Args:
        folder: Dataset.
        folds: Into how many parts the subjects of train and val are dealt.
        fold: Which part becomes val, counted from 0; the others become train.
        seed: Of the deal.
    """
    from training_backend.data.dataset import Dataset
    from training_backend.data.splits import fold_splits

    dataset = Dataset.open(folder)
    for case in fold_splits(list(dataset.records.values()), folds, fold, seed):
        dataset.put(case)
    dataset.save()
    table = Table(("split", "cases"))
    for split in ("train", "val", "test", "unlabelled"):
        table.add(split, len(dataset.cases(split=split)))  # type: ignore[arg-type]
    return table


def data_prepare(
    recipe: Literal["tangerine", "nodulemnist3d", "ricord"],
    paths: tuple[Path, ...],
    output: Path,
    size: int | None = None,
    keep_aspect: bool = False,
    labels: Path | None = None,
    truncate: bool = False,
    raw_window: bool = False,
) -> PrepareReport | IngestReport:
    """Bring public data into the form that a published system expects.

    Args:
        recipe: tangerine: whole CT on a cube of `size` voxels (256), [-1200, 800] HU to [0, 1], .npz files and their
            list, for the authors' own tools. nodulemnist3d: a dataset of the MedMNIST file, official splits kept.
            ricord: a dataset of DICOM folders with a table of labels, in Hounsfield units.
        paths: CT files or DICOM folders; the one .npz file; the one folder that the table's paths are relative to.
        output: Folder to write into.
        size: Voxels per axis (tangerine, and nodulemnist3d with `truncate`, where it is 128).
        keep_aspect: tangerine: pad with air in place of stretching each axis.
        labels: ricord: CSV with the columns Path, Label and, if known, Subject and Split.
        truncate: nodulemnist3d: store interpolated cubes of whole grey levels, as published.
        raw_window: ricord: window stored values 0 to 1400 in place of Hounsfield units, as published.
    """
    if recipe != "tangerine":
        if len(paths) != 1:
            what = "the .npz file" if recipe == "nodulemnist3d" else "the folder of the scans"
            raise ConfigError(f"{recipe} is made from one path, {what}; {len(paths)} were given.")
        if recipe == "nodulemnist3d":
            from training_backend.data.prepare_nodules import prepare_nodules

            return prepare_nodules(paths[0], output, size=size or 128, truncate=truncate, progress=_bar("prepare"))
        from training_backend.data.prepare_ricord import prepare_ricord

        if labels is None:
            raise ConfigError("ricord needs a table of labels.", "Give --labels FILE.csv with columns Path and Label.")
        return prepare_ricord(paths[0], labels, output, raw_window=raw_window, progress=_bar("prepare"))
    from tqdm import tqdm

    from training_backend.data.tangerine import prepare

    with tqdm(total=len(paths), unit="scan", delay=0.5) as bar:
        return prepare(paths, output, size=size or 256, keep_aspect=keep_aspect, progress=lambda _: bar.update(1))


def data_candidates(
    file: Path,
    folder: Path,
    output: Path,
    size: int = 64,
    spacing_mm: float = 1.0,
    negatives: int = 3,
    seed: int = 0,
) -> IngestReport:
    """Make a dataset of crops around candidates with a class each, such as LUNA16's candidates.csv.

    Args:
        file: CSV with seriesuid, coordX, coordY, coordZ (LPS millimetres) and class (0 or 1).
        folder: Scans, each called after its series; subset folders of LUNA16 decide the split.
        output: Folder of the dataset.
        size: Voxels of a crop along each axis.
        spacing_mm: Of a crop's voxels.
        negatives: Negative candidates kept for each positive one; 0 keeps all.
        seed: Of the draw of negatives.
    """
    from training_backend.data.prepare_candidates import prepare_candidates

    return prepare_candidates(
        file,
        folder,
        output,
        size=size,
        spacing_mm=spacing_mm,
        negatives=negatives,
        seed=seed,
        progress=_bar("candidates"),
    )


def data_export(
    folder: Path, output: Path, layout: Literal["nnunet"] = "nnunet", number: int = 501, name: str = ""
) -> NnunetReport:
    """Write a dataset in the layout of another tool.

    Args:
        folder: Dataset, with its source files in place.
        output: Folder to write into; nnU-Net calls it nnUNet_raw.
        layout: nnunet: a raw dataset of nnU-Net v2.
        number: Of the dataset in nnU-Net.
        name: In nnU-Net; from the dataset's when empty.
    """
    from training_backend.data.dataset import Dataset
    from training_backend.data.nnunet import write_nnunet

    return write_nnunet(Dataset.open(folder), output, number=number, name=name, progress=_bar(layout))


def recipes_list(system: str = "") -> Table:
    """List the recipes: for one public dataset each, the settings of a published system.

    Args:
        system: Only those of this method.
    """
    from training_backend.config.recipes import recipes

    which = () if system else ("system",)
    table = Table(("recipe", *which, "task", "modality", "channels", "classes", "what"))
    for name, found in recipes(system).items():
        facts, owner = found.dataset, () if system else (found.system,)
        table.add(name, *owner, found.task, facts.modality, len(facts.channels), len(facts.classes), found.title)
    return table


def recipes_show(recipe: str) -> str:
    """Show a recipe as YAML, and the commands that follow it.

    Args:
        recipe: Name in ``med3dssl recipes list``.
    """
    from training_backend.config.recipes import recipe as find_recipe

    found = find_recipe(recipe)
    commands = [f"# {found.ingest_command()}"]
    if found.dataset.splits.validation == "kfold":
        commands.append(f"# med3dssl data split DATASET --folds {found.dataset.splits.folds} --fold 0")
    commands.append(f"# med3dssl finetune --recipe {found.name} --data DATASET --weights WEIGHTS --output RUN")
    return "\n".join([*commands, found.to_yaml().rstrip()])


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
        progress=_bar("predict"),
    )
    table = Table(("scan", "written", "result"))
    for prediction in predictions:
        table.add(prediction.source.name, str(prediction.path or "-"), prediction.summary())
    return table


def evaluate(run: str, data: Path, split: Literal["train", "val", "test"] = "val", output: Path | None = None) -> Table:
    """Score a fine-tuned model on a split of a dataset: every case, every class, and their means with intervals.

    Args:
        run: Run directory or model folder.
        data: Dataset.
        split: Which cases.
        output: CSV to write as well.
    """
    from training_backend.evaluate.score import score_split

    table = score_split(run, data, split, progress=_bar("evaluate"))
    if output is not None:
        table.write_csv(output)
    return table


def compare(runs: tuple[Path, ...], output: Path | None = None) -> Table:
    """Put fine-tuning runs beside each other on the validation cases they share, with paired statistics.

    Args:
        runs: Two or more run directories; the first is the reference.
        output: CSV to write as well.
    """
    from training_backend.evaluate.score import compare_runs

    table = compare_runs(list(runs))
    if output is not None:
        table.write_csv(output)
    return table


def reconstruct(
    run: str, input: Path, output: Path, mask_ratio: float = 0.75, seed: int = 0, device: str = "auto"
) -> Table:
    """Mask a scan, let a pre-trained model fill the gaps, and write masked input, reconstruction and error as volumes.

    Args:
        run: Pre-training run, model folder, or the authors' file.
        input: Scan.
        output: Folder for the volumes.
        mask_ratio: Share of hidden patches.
        seed: Of the mask.
        device: auto, cpu, cuda or cuda:N.
    """
    from training_backend.evaluate.reconstruct import reconstruct_file

    paths = reconstruct_file(run, input, output, mask_ratio=mask_ratio, seed=seed, device=device)
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
        device: auto, cpu, cuda or cuda:N.
    """
    from training_backend.evaluate.view import draw_file, views_of

    if input is None and not name:
        from training_backend.weights.load import load_model

        table = Table(("view", "from a point", "settings", "what"))
        for found in views_of(load_model(run)):
            settings = [key for key in found.options.model_fields if key != "point"]
            table.add(found.name, "yes" if found.point else "no", ", ".join(settings) or "-", found.tip)
        return table
    if input is None or output is None or not name:
        raise ConfigError("A view needs --input SCAN, --name NAME and --output DIR.", "Leave all out for a list.")
    written, text = draw_file(run, input, output, name, _changes(set), point=point, centre=centre, device=device)
    table = Table(("what", "value"))
    for path in written:
        table.add("written", path)
    return table.add("seen", text) if text else table


def embed(
    weights: str,
    input: tuple[Path, ...],
    output: Path,
    kinds: tuple[Literal["class", "pooled", "concat", "pre_logits", "normalised"], ...] = ("pre_logits",),
    device: str = "auto",
) -> Any:
    """One feature vector per scan and kind, as CSV, npy, npz or parquet by the suffix of the output.

    Args:
        weights: Run directory, model folder, or the authors' file.
        input: Scans, or one CSV with a column Path.
        output: Table to write.
        kinds: class token, mean of patches, both, both after the norm of the head (two names).
        device: auto, cpu, cuda or cuda:N.
    """
    from training_backend.evaluate.embed import embed_files

    return embed_files(weights, list(input), output, kinds=kinds, device=device)


def weights_inspect(file: str) -> Any:
    """Say what a checkpoint holds, without running any of it: family, kind, sizes, wrapper.

    Args:
        file: .safetensors, .pt, .pth or .ckpt file, run directory, model folder, or zoo:NAME.
    """
    from training_backend.weights.inspect import inspect

    return inspect(file)


def weights_import(file: str, output: Path, heads: int | None = None) -> Any:
    """Turn the authors' file into a model folder of ours, with a report of every key.

    Args:
        file: The authors' checkpoint, or zoo:NAME.
        output: Folder to write model.safetensors and card.json into.
        heads: Attention heads when the width does not tell them.
    """
    from training_backend.weights.convert import import_file

    return import_file(file, output, heads=heads)


def weights_export(
    file: str, output: Path, layout: Literal["authors", "nnunet"] = "authors", channels: int | None = None
) -> Any:
    """Write a model in the authors' layout for their own scripts, or as nnU-Net v2's trainers read it.

    Args:
        file: Run directory or model folder; for nnU-Net also a checkpoint.
        output: .pth file to write.
        layout: authors: of the method. nnunet: plain U-Nets and VoCo's SwinUNETR under `network_weights`.
        channels: nnunet: channels of the scans there, where they differ.
    """
    if layout == "nnunet":
        from training_backend.weights.nnunet import export_nnunet

        return export_nnunet(file, output, channels=channels)
    if channels is not None:
        raise ConfigError("Channels can be changed for nnU-Net only.", "Add --layout nnunet, or leave them out.")
    from training_backend.weights.export import export

    return export(file, output)


def weights_probe_orientation(weights: str, input: Path, mask_ratio: float = 0.75, seed: int = 0) -> Table:
    """Measure in which axis order and direction a masked autoencoder knows a scan best.

    Args:
        weights: Pre-trained model.
        input: Scan.
        mask_ratio: Share of hidden patches.
        seed: Of the mask, the same for all orientations.
    """
    from training_backend.data.read import read_volume
    from training_backend.evaluate.orientation import probe_orientation

    table = Table(("axes", "flipped", "loss"))
    for row in probe_orientation(weights, read_volume(input), mask_ratio=mask_ratio, seed=seed):
        table.add(row.axes, row.flipped or "-", f"{row.loss:.6f}")
    return table


def zoo_list() -> Table:
    """List the published weights with their licences."""
    from training_backend.weights.zoo import entries

    table = Table(("name", "family", "size", "licence", "what"))
    for entry in entries():
        size = f"{entry.size_mb} MB" if entry.size_mb else "-"
        table.add(entry.name, entry.family, size, entry.licence or "unknown", entry.title)
    return table


def zoo_download(entry: str, accept_licence: bool = False) -> Table:
    """Download published weights with resume and verification.

    Args:
        entry: Name in ``med3dssl zoo list``.
        accept_licence: Say that you have read the entry's licence and accept it.
    """
    from training_backend.weights.zoo import download

    return Table(("written",)).add(str(download(entry, _bar("download"), accept_licence=accept_licence)))


def runs_list() -> Table:
    """List all runs of this user, newest first."""
    from training_backend.jobs.registry import list_runs

    table = Table(("run", "kind", "state", "step", "best", "folder"))
    for run in list_runs():
        score = "-" if run.score is None else f"{run.score:.4f}"
        table.add(run.name, run.task or run.kind, run.state, f"{run.step}/{run.steps}", score, str(run.path))
    return table


def runs_show(folder: Path) -> Table:
    """Show the state of a run, its last warnings, and where everything is.

    Args:
        folder: Run directory.
    """
    from training_backend.engine.rundir import RunDirectory
    from training_backend.jobs.monitor import Monitor

    monitor = Monitor(RunDirectory.open(folder))
    now = monitor.update().summary
    table = Table(("what", "value"))
    table.add("state", f"{now.state}. {now.sentence}")
    table.add("step", f"{now.step} of {now.steps}")
    table.add("can be asked to", ", ".join(now.actions))
    for name, series in sorted(monitor.series.items()):
        table.add(name, f"{series.values[-1]:.5g} (step {series.steps[-1]})")
    for warning in monitor.warnings[-5:]:
        table.add("warning", warning)
    table.add("folder", str(now.path))
    return table


def runs_stop(folder: Path) -> RunReport:
    """Ask a run to save and stop, and see to it that it does.

    Args:
        folder: Run directory.
    """
    from training_backend.engine.rundir import RunDirectory
    from training_backend.jobs.launcher import cancel

    return RunReport(cancel(RunDirectory.open(folder)))


def runs_resume(folder: Path, detach: bool = False) -> RunReport:
    """Go on with a run from its last verified checkpoint.

    Args:
        folder: Run directory.
        detach: Return as soon as the process has started.
    """
    from training_backend.engine.rundir import RunDirectory
    from training_backend.watch import resume

    return resume(RunDirectory.open(folder), detach=detach)


def runs_clone(folder: Path, output: Path, set: tuple[str, ...] = (), detach: bool = False) -> RunReport:
    """Start a new run with the settings of another one, some of them changed.

    Args:
        folder: Run directory whose settings are taken.
        output: Run directory of the new run.
        set: Changes as KEY=VALUE, e.g. optim.lr=3e-4; values are read as YAML.
        detach: Return as soon as the process has started.
    """
    from training_backend.engine.rundir import RunDirectory

    return train(RunDirectory.open(folder).config().updated(_changes(set)), output, detach=detach)


def _changes(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Nested dictionary of ``a.b=value`` pairs."""
    import yaml

    changes: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"A change is written KEY=VALUE, e.g. optim.lr=3e-4; found {pair!r}.")
        *parents, last = key.split(".")
        level = changes
        for parent in parents:
            level = level.setdefault(parent, {})
            if not isinstance(level, dict):
                raise ConfigError(f"{key} is set twice in ways that exclude each other.", "Leave one of them out.")
        try:
            level[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"The value of {key} is no YAML: {text!r}.", "Check its brackets and quotes.") from error
    return changes


def _bar(label: str) -> Any:
    """Progress function that draws a bar on standard error."""
    from tqdm import tqdm

    bar = tqdm(total=1.0, desc=label, bar_format="{l_bar}{bar}| {elapsed}", mininterval=1.0, delay=0.5)

    def progress(share: float) -> bool:
        bar.update(share - bar.n)
        return True

    return progress
