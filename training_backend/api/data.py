"""Scans and datasets, and the recipes for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from training_backend.api.progress import progress_bar
from training_backend.errors import ConfigError
from training_backend.report import Table

if TYPE_CHECKING:
    from training_backend.data.ingest import IngestReport
    from training_backend.data.nnunet import NnunetReport
    from training_backend.data.tangerine import PrepareReport


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
    clean_reports: bool = False,
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
        clean_reports: Reduce reports to lower-case words without punctuation, as MedCoSS's text stage reads them.
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
        clean_reports=clean_reports,
        splits=splits,
        seed=seed,
        workers=workers,
    )
    return ingest(list(paths), output, config, name=name, progress=progress_bar("ingest"))


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
    recipe: Literal[
        "tangerine",
        "nodulemnist3d",
        "ricord",
        "cc-ccii",
        "deeplesion",
        "adni",
        "tcga",
        "mimic-cxr",
        "mimic-cxr-reports",
    ],
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
            ricord: a dataset of DICOM folders with a table of labels, in Hounsfield units. cc-ccii: a dataset of its
            folders of slices, CLASS/PATIENT/SCAN/0001.png, in grey levels. deeplesion, adni: slabs of
            16 x 192 x 192 voxels for the CT and MR stages of MedCoSS. tcga, mimic-cxr: pictures of tissue and
            radiographs of 224 x 224 pixels for its 2-D stages. mimic-cxr-reports: cleaned reports for its text stage.
        paths: CT files or DICOM folders; the one .npz file; the one folder that the table's paths are relative to; the
            one folder of the data set; for mimic-cxr-reports the table master.csv.
        output: Folder to write into.
        size: Voxels per axis (tangerine, and nodulemnist3d with `truncate`, where it is 128); pixels per side (tcga,
            mimic-cxr, 224; ricord, 128, of 64 slices: 192 for MedCoSS).
        keep_aspect: tangerine: pad with air in place of stretching each axis.
        labels: ricord: CSV with the columns Path, Label and, if known, Subject and Split. deeplesion: DL_info.csv where
            it is not in the folder. mimic-cxr: the table of its official split, which is drawn otherwise.
        truncate: nodulemnist3d: store interpolated cubes of whole grey levels, as published.
        raw_window: ricord: window stored values 0 to 1400 in place of Hounsfield units, as published.
    """
    if recipe != "tangerine":
        if len(paths) != 1:
            files = {"nodulemnist3d": "the .npz file", "mimic-cxr-reports": "the table of reports"}
            what = files.get(recipe, "the folder of the scans")
            raise ConfigError(f"{recipe} is made from one path, {what}; {len(paths)} were given.")
        if recipe == "nodulemnist3d":
            from training_backend.data.prepare_nodules import prepare_nodules

            return prepare_nodules(
                paths[0], output, size=size or 128, truncate=truncate, progress=progress_bar("prepare")
            )
        if recipe == "cc-ccii":
            from training_backend.data.prepare_ccii import prepare_ccii

            return prepare_ccii(paths[0], output, progress=progress_bar("prepare"))
        if recipe != "ricord":
            return _prepare_stage(recipe, paths[0], output, size, labels)
        from training_backend.data.prepare_ricord import SIZE, prepare_ricord

        if labels is None:
            raise ConfigError("ricord needs a table of labels.", "Give --labels FILE.csv with columns Path and Label.")
        wide = (SIZE[0], size or SIZE[1], size or SIZE[2])
        return prepare_ricord(
            paths[0], labels, output, size=wide, raw_window=raw_window, progress=progress_bar("prepare")
        )
    from tqdm import tqdm

    from training_backend.data.tangerine import prepare

    with tqdm(total=len(paths), unit="scan", delay=0.5) as bar:
        return prepare(paths, output, size=size or 256, keep_aspect=keep_aspect, progress=lambda _: bar.update(1))


def _prepare_stage(recipe: str, path: Path, output: Path, size: int | None, table: Path | None) -> IngestReport:
    """The dataset of a stage of MedCoSS."""
    from training_backend.data.prepare_adni import prepare_adni
    from training_backend.data.prepare_deeplesion import prepare_deeplesion
    from training_backend.data.prepare_mimic import prepare_mimic, prepare_mimic_reports
    from training_backend.data.prepare_pictures import SIZE, prepare_tcga

    progress = progress_bar("prepare")
    if recipe == "deeplesion":
        return prepare_deeplesion(path, output, table=table, progress=progress)
    if recipe == "adni":
        return prepare_adni(path, output, progress=progress)
    if recipe == "tcga":
        return prepare_tcga(path, output, size=size or SIZE, progress=progress)
    if recipe == "mimic-cxr":
        return prepare_mimic(path, output, table=table, size=size or SIZE, progress=progress)
    return prepare_mimic_reports(path, output, progress=progress)


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
        progress=progress_bar("candidates"),
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

    return write_nnunet(Dataset.open(folder), output, number=number, name=name, progress=progress_bar(layout))


def recipes_list(system: str = "") -> Table:
    """List the recipes: for one public dataset each, the settings of a published system.

    Args:
        system: Only those of this method.
    """
    from training_backend.config.recipes import recipes

    which = () if system else ("system",)
    table = Table(("recipe", *which, "task", "scan", "in", "classes", "what"))
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
