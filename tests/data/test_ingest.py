"""Ingest keeps what is sound, says why the rest is not, and goes on where it was interrupted."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import psutil
import pytest

from training_backend.config import IngestConfig
from training_backend.data import ingest as module
from training_backend.data.dataset import Dataset
from training_backend.data.importers import describe
from training_backend.data.ingest import ingest, predicted_bytes
from training_backend.data.phantoms import thorax_ct, write_cohort
from training_backend.data.read import read_classes, read_labels
from training_backend.data.store import open_case, verify_case
from training_backend.data.volume import Volume
from training_backend.data.write import write_volume
from training_backend.errors import DataError, ResourceError

HERE = IngestConfig(workers=0)
SMALL = (12, 18, 18)


@pytest.fixture
def source(tmp_path):
    return write_cohort(tmp_path / "source", 4, seed=3, shape=SMALL)


def contents(folder):
    """Bytes of every stored array."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted((folder / "store").rglob("*.b2nd"))}


def test_a_cohort_becomes_a_dataset(source, tmp_path):
    shares = []
    report = ingest(source, tmp_path / "out", HERE, name="Brustkorb", progress=lambda share: shares.append(share))
    assert report.ok == ("case_000", "case_001", "case_002", "case_003")
    assert report.quarantined == ()
    assert shares == [0.25, 0.5, 0.75, 1.0]
    assert report.stored_bytes < report.predicted_bytes
    assert "4 cases" in str(report)
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.info.name == "Brustkorb"
    assert [entry.name for entry in dataset.info.classes] == ["lung", "heart", "liver", "spine", "nodule"]
    assert dataset.info.contrasts == ("CT",)
    assert dataset.info.root == "../source"
    for index, case in enumerate(dataset.cases()):
        phantom = thorax_ct(3000 + index, SMALL)
        stored = open_case(dataset, case)
        start = case.store["start"]
        box = tuple(slice(first, first + n) for first, n in zip(start, stored.shape, strict=True))
        assert stored.read_image().dtype == np.int16
        assert np.array_equal(stored.read_image()[0], phantom.volume.array[box])
        assert np.array_equal(stored.read_label(), phantom.labels.array[box])
        assert (case.target, case.report) == ((float(phantom.target),), phantom.report)
        assert case.images[0].sha256
        assert case.images[0].modality == "CT"
        verify_case(dataset, case)


def test_several_processes_write_the_same_store(source, tmp_path):
    one = ingest(source, tmp_path / "one", HERE)
    two = ingest(source, tmp_path / "two", IngestConfig(workers=2))
    assert one.ok == two.ok
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert Dataset.open(one.dataset).cases() == Dataset.open(two.dataset).cases()


def test_a_second_run_takes_up_what_is_there(source, tmp_path):
    out = tmp_path / "out"
    stopped = ingest(source, out, HERE, progress=lambda share: share < 0.5)
    assert stopped.cancelled
    assert len(stopped.ok) == 2
    assert len(Dataset.open(out).cases()) == 2
    times = {path: path.stat().st_mtime_ns for path in (out / "store").rglob("*.b2nd")}
    report = ingest(source, out, HERE)
    assert (len(report.ok), report.resumed) == (4, 2)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in times.items())
    assert contents(out) == contents(ingest(source, tmp_path / "fresh", HERE).dataset)


def test_changed_sources_and_settings_are_read_again(source, tmp_path):
    out = tmp_path / "out"
    ingest(source, out, HERE)
    changed = thorax_ct(99, SMALL)
    write_volume(changed.volume, source / "imagesTr" / "case_001.nii.gz", overwrite=True)
    assert ingest(source, out, HERE).resumed == 3
    dataset = Dataset.open(out)
    box = open_case(dataset, dataset.case("case_001"))
    assert np.isin(box.read_image()[0, :, 9, 9], changed.volume.array[:, 9, 9]).any()
    assert ingest(source, out, IngestConfig(workers=0, crop_body=False)).resumed == 0


def test_the_user_s_exclusions_and_added_cases_survive_a_second_run(source, tmp_path):
    out = tmp_path / "out"
    ingest(source, out, HERE)
    dataset = Dataset.open(out)
    dataset.put(dataset.case("case_002").model_copy(update={"excluded": True}))
    extra = thorax_ct(50, SMALL)
    dataset.add_case(extra.volumes, extra.labels, id="extra")
    ingest(source, out, HERE)
    again = Dataset.open(out)
    assert again.case("case_002").excluded
    assert "extra" in again.records
    with pytest.raises(DataError, match="holds a dataset made from"):
        ingest(write_cohort(tmp_path / "elsewhere", 1, shape=SMALL), out, HERE)


def test_killed_in_the_middle_it_goes_on(tmp_path, repository):
    source, out = write_cohort(tmp_path / "source", 10, seed=3, shape=SMALL), tmp_path / "out"
    code = (
        "from training_backend.data.ingest import ingest\n"
        "from training_backend.config import IngestConfig\n"
        "import time\n"
        "if __name__ == '__main__':\n"
        f"    ingest({str(source)!r}, {str(out)!r}, IngestConfig(workers=1), progress=lambda s: time.sleep(0.05))\n"
    )
    (tmp_path / "go.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "go.py")], env=environment)
    deadline = time.monotonic() + 60
    while len(list(out.glob("store/[!.]*"))) < 3:
        assert time.monotonic() < deadline
        assert parent.poll() is None
        time.sleep(0.01)
    children = psutil.Process(parent.pid).children(recursive=True)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline, "a reading process outlived its parent"
        time.sleep(0.02)
    assert not (out / "manifest.jsonl").exists()
    report = ingest(source, out, HERE)
    assert len(report.ok) == 10
    assert 2 <= report.resumed < 10
    assert not list(out.glob("store/.*"))
    assert contents(out) == contents(ingest(source, tmp_path / "fresh", HERE).dataset)


def test_a_killed_reading_process_loses_no_case(source, tmp_path):
    killed = []

    def kill_once(share):
        if not killed:
            alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
            killed.extend(child for child in alive if "spawn_main" in " ".join(child.cmdline()))
            for child in killed:
                child.kill()

    report = ingest(source, tmp_path / "out", IngestConfig(workers=1), progress=kill_once)
    assert killed
    assert len(report.ok) == 4
    assert contents(tmp_path / "out") == contents(ingest(source, tmp_path / "fresh", HERE).dataset)


def damaged(source, tmp_path):
    """A folder with one sound scan and one of each kind of bad file; the category expected of each."""
    folder = tmp_path / "bad"
    folder.mkdir()
    sound = source / "imagesTr" / "case_000.nii.gz"
    shutil.copy(sound, folder / "sound.nii.gz")
    shutil.copy(sound, folder / "twin.nii.gz")
    other = (source / "imagesTr" / "case_001.nii.gz").read_bytes()
    expected = {"twin": "duplicate"}
    for share in (1, 10, 50, 99):
        (folder / f"cut{share}.nii.gz").write_bytes(other[: len(other) * share // 100])
        expected[f"cut{share}"] = "damaged"
    flipped = bytearray(other)
    flipped[len(flipped) // 2] ^= 0x04
    (folder / "flipped.nii.gz").write_bytes(flipped)
    expected["flipped"] = "damaged"
    image = nib.load(source / "imagesTr" / "case_002.nii.gz")
    values = np.asarray(image.dataobj, np.float32)
    values[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(values, image.affine), folder / "nan.nii.gz")
    expected["nan"] = "not finite"
    raw = bytearray(gzip.decompress((source / "imagesTr" / "case_003.nii.gz").read_bytes()))
    raw[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    (folder / "huge.nii").write_bytes(raw)
    expected["huge"] = "too big"
    plane = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    for name, rows in (("flat", np.diag([1.0, 0.0, 1.0, 1.0])[:3]), ("plane", plane)):
        raw = bytearray(gzip.decompress((source / "imagesTr" / "case_003.nii.gz").read_bytes()))
        raw[252:256] = np.array([0, 1], "<i2").tobytes()  # the affine is in the rows below, and nowhere else
        raw[280:328] = rows.astype("<f4").tobytes()
        (folder / f"{name}.nii").write_bytes(raw)
        expected[name] = "geometry"
    (folder / "empty.nii.gz").write_bytes(b"")
    expected["empty"] = "unreadable"
    return folder, expected


def test_bad_files_are_quarantined_each_with_its_reason(source, tmp_path):
    folder, expected = damaged(source, tmp_path)
    report = ingest(folder, tmp_path / "out", HERE)
    assert report.ok == ("sound",)
    found = {entry.case: entry for entry in report.quarantined}
    assert set(found) == set(expected), "nothing is dropped silently"
    wrong = {case: (entry.category, entry.reason) for case, entry in found.items() if entry.category != expected[case]}
    assert {case: pair for case, pair in wrong.items() if pair[0] not in ("unreadable", "damaged")} == {}
    assert all(entry.reason.endswith(".") and len(entry.reason) > 30 for entry in report.quarantined)
    lines = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert {json.loads(line)["case"] for line in lines} == set(expected)
    assert Dataset.open(tmp_path / "out").quarantined() == list(report.quarantined)
    assert sorted(path.name for path in (tmp_path / "out" / "store").iterdir()) == ["sound"]


def test_bad_labels_are_quarantined(tmp_path):
    phantom = thorax_ct(1, SMALL)
    geometry = phantom.volume.geometry

    def pair(name, label, grid=geometry):
        for part, array, place in (
            ("images", thorax_ct(hash(name) % 97, SMALL).volume.array, geometry),
            ("labels", label, grid),
        ):
            (tmp_path / "in" / part).mkdir(parents=True, exist_ok=True)
            write_volume(Volume(array, place, name=name), tmp_path / "in" / part / f"{name}.nii.gz", labels=False)

    marks = phantom.labels.array
    pair("sound", marks)
    pair("shape", marks[:-1], geometry.cropped((0, 0, 0), (11, 18, 18)))
    pair("moved", marks, geometry.cropped((3, 0, 0), SMALL))
    pair("halves", marks + np.float32(0.5))
    pair("negative", marks.astype(np.int16) - 1)
    pair("many", marks.astype(np.int16) * 100)
    report = ingest(tmp_path / "in", tmp_path / "out", HERE)
    assert report.ok == ("sound",)
    found = {entry.case: (entry.category, entry.reason) for entry in report.quarantined}
    assert {case: category for case, (category, _) in found.items()} == {
        "shape": "geometry",
        "moved": "geometry",
        "halves": "labels",
        "negative": "labels",
        "many": "labels",
    }
    assert "(11, 18, 18) voxels" in found["shape"][1]
    assert "mm away from its image" in found["moved"][1]
    assert "whole numbers" in found["halves"][1]


def test_a_twin_in_another_split_never_trains(source, tmp_path):
    shutil.copy(source / "imagesTr" / "case_000.nii.gz", source / "copy.nii.gz")
    (source / "t.csv").write_text(
        "Path,Label,Split\ncopy.nii.gz,1,train\nimagesTr/case_000.nii.gz,1,test\nimagesTr/case_001.nii.gz,0,train\n"
    )
    report = ingest(source / "t.csv", tmp_path / "out", HERE)
    assert report.ok == ("case_000", "case_001")
    [entry] = report.quarantined
    assert (entry.case, entry.category) == ("copy", "leakage")
    assert "same as that of case case_000 in test" in entry.reason


def test_a_source_without_any_sound_case_is_an_error(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="No scan was found"):
        ingest(tmp_path / "in", tmp_path / "out", HERE)
    values = np.full((5, 5, 5), np.nan, np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "in" / "nan.nii.gz")
    with pytest.raises(DataError, match=r"None of the 1 cases can be used; the first: nan: .* not numbers"):
        ingest(tmp_path / "in", tmp_path / "out", HERE)
    with pytest.raises(DataError, match="No source was given"):
        ingest([], tmp_path / "out", HERE)


def test_too_little_room_is_said_before_anything_is_written(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ResourceError, match=r"needs about .* 1\.0 kB are free"):
        ingest(source, tmp_path / "out", HERE)
    assert list((tmp_path / "out" / "store").iterdir()) == []
    described = describe(source)
    assert predicted_bytes(described.cases, HERE) >= 4 * 2 * np.prod(SMALL)
    half = IngestConfig(spacing_mm=tuple(2 * mm for mm in described.cases[0].images[0].spacing_mm))
    assert predicted_bytes(described.cases, half) < predicted_bytes(described.cases, HERE)


def test_a_disk_that_fills_up_keeps_what_was_finished(source, tmp_path, monkeypatch):
    from training_backend.data import stow

    real, calls = stow.write_array, []

    def filling(path, array):
        calls.append(path)
        if len(calls) > 5:
            raise stow.ResourceError("The disk is full: x could not be written.", "Free space there.")
        return real(path, array)

    monkeypatch.setattr(stow, "write_array", filling)
    with pytest.raises(ResourceError, match="disk is full"):
        ingest(source, tmp_path / "out", HERE)
    assert len(Dataset.open(tmp_path / "out").cases()) == 2
    assert not list((tmp_path / "out" / "store").glob(".*"))
    monkeypatch.undo()
    report = ingest(source, tmp_path / "out", HERE)
    assert (len(report.ok), report.resumed) == (4, 2)


def test_enospc_while_writing_is_that_sentence(tmp_path, monkeypatch):
    from training_backend.data.store import write_array

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="The disk is full"):
        write_array(tmp_path / "a.b2nd", np.zeros((4, 4, 4), np.int16))
    assert list(tmp_path.iterdir()) == []


def test_two_ingests_do_not_collide(source, tmp_path):
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(DataError, match="Another ingest is writing"):
        ingest(source, tmp_path / "out", HERE)


def test_names_with_spaces_and_umlauts(tmp_path):
    folder = tmp_path / "Fälle für Übung 1"
    folder.mkdir()
    write_volume(thorax_ct(0, SMALL).volume, folder / "Größe (α) 1.nii.gz")
    report = ingest(folder, tmp_path / "Aus gabe ß", HERE)
    dataset = Dataset.open(report.dataset)
    [case] = dataset.cases()
    assert case.id.isascii()
    assert dataset.source(case.images[0]).name == "Größe (α) 1.nii.gz"
    verify_case(dataset, case)


def test_spacing_and_several_contrasts(tmp_path):
    from training_backend.data.phantoms import mr_contrasts

    source = write_cohort(tmp_path / "in", 2, shape=(16, 20, 18), kind=mr_contrasts)
    ingest(source, tmp_path / "out", IngestConfig(workers=0, spacing_mm=(10.0, 10.0, 10.0)))
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.info.spacing_mm == (10.0, 10.0, 10.0)
    assert dataset.info.contrasts == ("T1", "T2")
    stored = open_case(dataset, dataset.cases()[0])
    assert stored.geometry.spacing_mm == pytest.approx((10, 10, 10))
    assert stored.read_image().shape == (2, *stored.shape)
    assert stored.native.shape == (16, 20, 18)


def test_real_or_generated_atria(real_data, tmp_path):
    """The left atria of the challenge where they are, else phantoms: everything goes in and comes back."""
    if real_data is not None:
        source = tmp_path / "la"
        source.mkdir()
        names = (real_data / "la" / "val.list").read_text().split()[:2]
        for name in names:
            shutil.copy(real_data / "la" / f"{name}.h5", source)
        (source / "train.list").write_text(names[0])
        (source / "val.list").write_text(names[1])
    else:
        source = write_cohort(tmp_path / "la", 2, shape=SMALL)
    report = ingest(source, tmp_path / "out", HERE)
    assert len(report.ok) == 2
    assert report.quarantined == ()
    dataset = Dataset.open(report.dataset)
    assert {case.split for case in dataset.cases()} == {"train", "val"}
    for case in dataset.cases():
        verify_case(dataset, case)


@pytest.mark.parametrize("yes", [255, 65535])
def test_masks_of_pictures_become_class_1_with_a_note_and_keep_their_name(source, tmp_path, yes):
    for path in sorted((source / "labelsTr").glob("*.nii.gz"))[:3]:
        label = read_labels(path)
        mask = np.where(label.array == 1, yes, 0).astype(np.uint16)
        write_volume(label.with_array(mask, meta={"kind": "labels"}), path, overwrite=True)
    mixed = source / "labelsTr" / "case_003.nii.gz"
    label = read_labels(mixed)
    both = np.where(label.array == 1, yes, label.array)
    write_volume(label.with_array(both.astype(np.uint16), meta={"kind": "labels"}), mixed, overwrite=True)
    facts = json.loads((source / "dataset.json").read_text())
    facts["labels"] = {"0": "background", str(yes): "lung"}
    (source / "dataset.json").write_text(json.dumps(facts))
    report = ingest(source, tmp_path / "out", HERE)
    assert report.ok == ("case_000", "case_001", "case_002")
    assert [entry.category for entry in report.quarantined] == ["labels"]
    assert f"noted in case_000, case_001, case_002: The mask holds 0 and {yes} only" in str(report)
    dataset = Dataset.open(tmp_path / "out")
    assert [(entry.index, entry.name) for entry in dataset.info.classes] == [(1, "lung")]
    for case in dataset.cases():
        assert set(case.store["label"]["values"]) == {"1"}
        assert any(f"{yes} was taken as class 1" in problem for problem in case.problems)
        truth = read_classes(dataset.source(case.label)).array
        assert np.array_equal(truth == 1, read_labels(dataset.source(case.label)).array == yes)


def test_a_script_without_a_main_guard_is_told_and_no_case_is_blamed(source, tmp_path, repository):
    script = tmp_path / "script.py"
    script.write_text(
        "from training_backend.data.ingest import ingest\n"
        "from training_backend.config import IngestConfig\n"
        f"ingest({str(source)!r}, {str(tmp_path / 'out')!r}, IngestConfig(workers=1))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith('call it below `if __name__ == "__main__":`, or set workers to 0.')
    assert Dataset.open(tmp_path / "out").quarantined() == []


def test_label_values_become_classes_and_the_truth_is_read_alike(tmp_path):
    scan = thorax_ct(1, SMALL).volume
    label = np.zeros(SMALL, np.uint16)
    label[2:6, 2:9, 2:9], label[8:10, 2:9, 2:9], label[8:10, 12:, 12:] = 500, 205, 421
    (tmp_path / "source").mkdir()
    write_volume(scan, tmp_path / "source" / "heart.nii.gz")
    drawn = Volume(label, scan.geometry, name="heart", meta={"kind": "labels"})
    write_volume(drawn, tmp_path / "source" / "heart_label.nii.gz")
    names = {"0": "background", "205": "myocardium", "500": "ventricle"}
    entries = [{"image": "heart.nii.gz", "label": "heart_label.nii.gz"}]
    (tmp_path / "source" / "dataset.json").write_text(json.dumps({"labels": names, "training": entries}))
    with pytest.raises(DataError, match=r"values from 0 to 500; 0 to 254 are expected\. .*label_values"):
        ingest(tmp_path / "source", tmp_path / "refused", HERE)

    config = HERE.updated({"label_values": {205: 1, 500: 2, 421: 0}})
    assert ingest(tmp_path / "source", tmp_path / "out", config).ok == ("heart",)
    dataset = Dataset.open(tmp_path / "out")
    (case,) = dataset.cases()
    assert {entry.index: entry.name for entry in dataset.info.classes} == {1: "myocardium", 2: "ventricle"}
    assert set(case.store["label"]["values"]) == {"1", "2"}
    truth = read_classes(dataset.source(case.label), values=case.label.values)
    assert np.array_equal(truth.array == 2, label == 500)
    assert truth.array.dtype == np.uint8
    assert ingest(tmp_path / "source", tmp_path / "out", config).resumed == 1
    other = HERE.updated({"label_values": {205: 2, 500: 1, 421: 0}})
    assert ingest(tmp_path / "source", tmp_path / "out", other).resumed == 0
    assert set(Dataset.open(tmp_path / "out").cases()[0].label.values.items()) == {(205, 2), (500, 1), (421, 0)}
