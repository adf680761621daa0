"""Layouts that are told by the names of files and folders."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from pathlib import Path

from training_backend.data.dataset import Quarantined
from training_backend.data.drafts import Draft, Drafts, Source, stem
from training_backend.data.facts import is_picture, suffix_of
from training_backend.data.manifest import Split
from training_backend.data.read import can_read, probe
from training_backend.errors import DataError, Med3dError

_PAIRS = tuple(
    (images, labels)
    for images in ("images", "imagesTr", "image", "img", "imgs", "scans", "volumes", "ct", "mr")
    for labels in ("labels", "labelsTr", "label", "masks", "mask", "segmentations", "seg", "gt")
)
_MARK = re.compile(r"(?i)(^|[._ -])(seg|segmentation|label|labels|mask|gt|anno)(?=$|[._ -])")
_BESIDE = {".json", ".txt", ".csv", ".tsv", ".md", ".pdf", ".list", ".yaml", ".yml", ".xlsx", ".bval", ".bvec", ".py"}
_LABEL_KEYS = ("label", "labels", "mask", "seg", "segmentation")  # arrays of .h5 and .npz files
_TAKEN = ("anat", "ct", "pet")


def is_scan(path: Path) -> bool:
    """Whether a file is a scan by its name (all formats but DICOM)."""
    return path.is_file() and suffix_of(path) not in ("", ".dcm", ".ima") and not path.name.startswith(".")


def plain(path: Path) -> Drafts:
    """Any folder of scans, DICOM folders among them, or one scan.

    Files called ``..._seg``, ``label``, ``mask`` and so on are label maps of the scan with the same name, else of the
    only one on the same grid; an array called ``label`` or the like, of the image's shape, inside a .h5 or .npz
    file is its label map. A subject is a folder below the top one, or else each scan.
    """
    if path.is_file():
        return Drafts("folder", path.parent, [Draft(stem(path), (Source(path),), _inside(path))], name=stem(path))
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    scans, beside = _without_beside([file for file in files if is_scan(file)], files)
    images = [file for file in scans if not _MARK.search(stem(file))]
    labels = [file for file in scans if _MARK.search(stem(file))]
    dicom_folders = sorted({file.parent for file in files if not is_scan(file) and can_read(file)})
    sources = [(Source(image), "") for image in images]
    problems = [
        Quarantined("", str(file), "list", f"{file.name} is a picture beside scans; give the folder of pictures alone.")
        for file in beside
    ]
    for folder in dicom_folders:
        found, lost = _series_of(folder, deep=False)
        sources += found
        problems += lost
    pairs, unpaired = _paired_labels([source for source, _ in sources], labels)
    problems += unpaired
    known = {*scans, *beside, *(file for folder in dicom_folders for file in folder.iterdir())}
    problems += [
        Quarantined("", str(file), "unreadable", f"{file.name} is no format read here.")
        for file in files
        if file not in known and file.suffix.lower() not in _BESIDE
    ]
    cases = [
        Draft(
            _name(path, source),
            (source,),
            pairs.get(source) or _inside(source.path),
            subject=subject or _subject(path, source.path),
        )
        for source, subject in sources
    ]
    return Drafts("folder", path, cases, problems)


def paired(path: Path) -> Drafts:
    """A folder of images beside one of label maps with the same names; perhaps below ``train``, ``val``, ``test``."""
    cases: list[Draft] = []
    problems: list[Quarantined] = []
    for folder, split in _split_folders(path):
        pair = _pair_in(folder)
        if pair is None:
            continue
        images, labels = pair
        maps = {_bare(file): file for file in sorted(labels.rglob("*")) if is_scan(file)}
        groups: dict[str, list[Path]] = defaultdict(list)
        for file in sorted(images.rglob("*")):
            if is_scan(file):
                groups[_without_channel(file)].append(file)
        for name, members in groups.items():
            label = maps.pop(_bare(members[0]), None) or maps.pop(name.lower(), None)
            contrasts = ["image"] if len(members) == 1 else [f"channel {n}" for n in range(len(members))]
            cases.append(
                Draft(
                    name,
                    tuple(Source(file, contrast=c) for file, c in zip(members, contrasts, strict=True)),
                    Source(label, contrast="label") if label else None,
                    split=split,
                    problems=() if label else (f"There is no label map for it in {labels.name}.",),
                )
            )
        problems += [
            Quarantined("", str(file), "list", f"{file.name} has no image of its name in {images.name}.")
            for file in maps.values()
        ]
    if not cases:
        raise DataError(f"{path} holds no folder of images beside one of label maps.", "Call them images and labels.")
    return Drafts("paired", path, cases, problems)


def bids(path: Path) -> Drafts:
    """BIDS: one case per subject and session, contrasts from ``anat``, ``ct`` and ``pet``, masks from derivatives."""
    cases, problems = [], []
    masks = sorted(
        file
        for pattern in ("*_dseg.nii*", "*_mask.nii*", "*_seg.nii*")
        for file in path.rglob(pattern)
        if file.is_file()
    )
    for subject in sorted(path.glob("sub-*/")):
        for session in sorted(subject.glob("ses-*/")) or [subject]:
            marks = [file for file in masks if f"/{subject.name}/" in file.as_posix()]
            if session != subject:
                marks = [file for file in marks if f"_{session.name}_" in file.name]
            images = []
            for file in sorted(file for file in session.rglob("*") if is_scan(file) and file not in masks):
                if file.parent.name not in _TAKEN:
                    reason = f"It is a {file.parent.name} scan; {', '.join(_TAKEN)} are taken."
                    problems.append(Quarantined("", str(file), "list", reason))
                    continue
                entities = [part for part in stem(file).split("_") if not part.startswith(("sub-", "ses-"))]
                images.append(Source(file, contrast="_".join([entities[-1], *entities[:-1]])))
            name = subject.name if session == subject else f"{subject.name}_{session.name}"
            if not images:
                problems.append(Quarantined(name, str(session), "list", "There is no anatomical scan in it."))
                continue
            extra = [
                Quarantined("", str(file), "list", "A case has one label map; this is another.") for file in marks[1:]
            ]
            problems += extra
            label = Source(marks[0], contrast="label") if marks else None
            cases.append(Draft(name, tuple(images), label, subject.name, "" if session == subject else session.name))
    return Drafts("bids", path, cases, problems)


def ua_mt(path: Path) -> Drafts:
    """UA-MT's left atria: ``train.list``, ``val.list``, ``test.list`` of ids; ``ID.h5`` or ``ID/mri_norm2.h5``."""
    cases, problems = [], []
    listed: set[Path] = set()
    splits: tuple[Split, ...] = ("train", "val", "test")
    for split in splits:
        table = path / f"{split}.list"
        if not table.is_file():
            continue
        for line in table.read_text(encoding="utf-8").split():
            name = line.removesuffix(".h5").split("/")[0]
            places = [path / f"{name}.h5", *sorted(path.rglob(f"{name}/*.h5"))]
            file = next((place for place in places if place.is_file()), None)
            if file is None:
                problems.append(
                    Quarantined(name, str(places[0]), "missing", f"{name}.h5, in {table.name}, is not there.")
                )
                continue
            listed.add(file)
            label = Source(file, key="label", contrast="label") if _has(file, "label") else None
            cases.append(Draft(name, (Source(file, key="image", contrast="LGE"),), label, split=split))
    for file in sorted(path.rglob("*.h5")):
        if file not in listed:
            problems.append(Quarantined(stem(file), str(file), "list", f"{file.name} is in none of the lists."))
    return Drafts("ua-mt", path, cases, problems, class_names={1: "left atrium"})


def dicom(path: Path) -> Drafts:
    """A tree of DICOM files: one case per series, subjects told apart by a hash of the patient's number."""
    found, problems = _series_of(path if path.is_dir() else path.parent, deep=True)
    root = path if path.is_dir() else path.parent
    cases = [Draft(f"{subject}-{source.key}", (source,), subject=subject) for source, subject in found]
    return Drafts("dicom", root, cases, problems, name="dicom")


def pair_folders(path: Path) -> tuple[Path, Path] | None:
    """Folders of images and label maps in `path` or in its train, val or test folder."""
    return next((pair for folder, _ in _split_folders(path) if (pair := _pair_in(folder)) is not None), None)


def _split_folders(path: Path) -> list[tuple[Path, Split | None]]:
    names: dict[str, Split] = {
        "train": "train",
        "training": "train",
        "val": "val",
        "validation": "val",
        "test": "test",
    }
    return [(path, None), *((path / name, split) for name, split in names.items() if (path / name).is_dir())]


def _pair_in(folder: Path) -> tuple[Path, Path] | None:
    inside = {child.name.lower(): child for child in folder.iterdir() if child.is_dir()}
    for images, labels in _PAIRS:
        if images.lower() in inside and labels.lower() in inside:
            return inside[images.lower()], inside[labels.lower()]
    return None


def _without_beside(scans: list[Path], files: list[Path]) -> tuple[list[Path], list[Path]]:
    """Scans, and the pictures among them that are not taken: a figure or preview beside scans shows no new patient."""
    pictures = [file for file in scans if is_picture(file)]
    if not pictures:
        return scans, []
    others = [file for file in scans if not is_picture(file)]
    if others or any(can_read(file) for file in files if not is_scan(file)):
        return others, pictures
    return scans, []


def _bare(path: Path) -> str:
    """Name of a scan or label map without what only one of them carries."""
    return _MARK.sub("", _without_channel(path)).lower()


def _without_channel(path: Path) -> str:
    """Name of a scan without the number of its channel (``_0000``); what ends a picture's name is its own number."""
    return stem(path) if is_picture(path) else re.sub(r"_\d{4}$", "", stem(path))


def _paired_labels(images: list[Source], labels: list[Path]) -> tuple[dict[Source, Source], list[Quarantined]]:
    """Label maps by image: by name in the same folder, else by the only scan there on the same grid."""
    pairs: dict[Source, Source] = {}
    problems = []
    for label in labels:
        near = [image for image in images if image not in pairs and _beside(image.path, label)]
        named = [image for image in near if stem(image.path).lower() == _bare(label)]
        matching = named or [image for image in near if _same_grid(image, label)]
        if len(matching) == 1:
            pairs[matching[0]] = Source(label, contrast="label")
        else:
            found = f"{len(matching)} scans beside it fit" if matching else "no scan beside it fits"
            reason = f"{label.name} is a label map by its name, but {found}. Give both the same name."
            problems.append(Quarantined("", str(label), "list", reason))
    return pairs, problems


def _beside(image: Path, label: Path) -> bool:
    return label.parent in (image.parent, image) or (image.is_dir() and image.parent == label.parent)


def _same_grid(image: Source, label: Path) -> bool:
    try:
        one, other = probe(image.path, key=image.key).geometry, probe(label).geometry
    except Med3dError:
        return False
    return one.same_grid(other, tolerance_mm=0.5 * min(one.spacing_mm))


def _series_of(folder: Path, *, deep: bool) -> tuple[list[tuple[Source, str]], list[Quarantined]]:
    """Series of a folder with their subjects; `deep` looks into folders below, too."""
    from training_backend.data.dicom import list_series

    found, problems = [], []
    for series in list_series(folder):
        files = series.files if deep else [file for file in series.files if file.parent == folder]
        if not files:
            continue
        place = Path(os.path.commonpath([file.parent for file in files]))
        if series.problem:
            problems.append(Quarantined("", str(place), "geometry", f"Series {series.id}: {series.problem}"))
            continue
        found.append((Source(place, key=series.id, contrast=series.modality), _patient(files[0])))
    return found, problems


def _patient(file: Path) -> str:
    """A name for the patient that does not tell who it is: a hash of the patient's or study's number."""
    import pydicom

    header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["PatientID", "StudyInstanceUID"], force=True)
    number = str(header.get("PatientID") or header.get("StudyInstanceUID") or file.parent)
    return "subject-" + hashlib.sha256(number.encode()).hexdigest()[:8]


def _name(root: Path, source: Source) -> str:
    parts = source.path.relative_to(root).parts
    last = f"series-{source.key}" if source.path.is_dir() else stem(source.path)
    return "_".join([*(() if source.path.is_dir() else parts[:-1]), last])


def _subject(root: Path, path: Path) -> str:
    parts = path.relative_to(root).parts
    return parts[0] if len(parts) > 1 else ""


def _inside(file: Path) -> Source | None:
    """The label map that a .h5 or .npz file holds beside its image."""
    if suffix_of(file) not in (".h5", ".hdf5", ".npz"):
        return None
    for key in _LABEL_KEYS:
        try:
            if probe(file, key=key).shape == probe(file).shape:
                return Source(file, key=key, contrast="label")
        except Med3dError:  # there is none of this name, or `describe` says what is wrong with the image
            continue
    return None


def _has(file: Path, key: str) -> bool:
    try:
        probe(file, key=key)
    except Med3dError:
        return False
    return True
