"""Every layout is recognised, every file is either a case or a reported problem."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import h5py
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset

from training_backend.data.drafts import file_safe, unique_ids
from training_backend.data.importers import LAYOUTS, describe, layout_of
from training_backend.data.phantoms import mr_contrasts, thorax_ct, write_cohort
from training_backend.data.volume import Volume
from training_backend.data.write import write_volume
from training_backend.errors import ConfigError, DataError

SMALL = (8, 12, 12)


@pytest.fixture(scope="module")
def phantoms():
    return [thorax_ct(seed, SMALL) for seed in range(4)]


def put(volume, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_volume(volume, path, overwrite=True)


def by_id(found):
    return {case.id: case for case in found.cases}


def reasons(found):
    return [problem.reason for problem in found.problems]


def test_plain_folder(tmp_path, phantoms):
    put(phantoms[0].volume, tmp_path / "anna" / "first.nii.gz")
    put(phantoms[1].volume, tmp_path / "anna" / "second.nrrd")
    put(phantoms[2].volume, tmp_path / "Björn Ö" / "ct.mha")
    put(phantoms[2].labels, tmp_path / "Björn Ö" / "ct_seg.mha")
    (tmp_path / "notes.txt").write_text("beside")
    (tmp_path / "setup.exe").write_bytes(b"MZ")
    found = describe(tmp_path)
    assert found.info.layout == "folder"
    cases = by_id(found)
    assert len(cases) == 3
    assert cases["anna_first"].subject == cases["anna_second"].subject == "anna"
    [third] = [case for case in found.cases if case.subject == "Björn Ö"]
    assert third.label.path.endswith("ct_seg.mha")
    assert third.id.isascii()
    assert third.images[0].shape == SMALL
    assert reasons(found) == ["setup.exe is no format read here."]


def test_label_maps_find_their_scan_by_name_then_by_grid(tmp_path, phantoms):
    put(phantoms[0].volume, tmp_path / "a.nii.gz")
    put(phantoms[0].labels, tmp_path / "a-label.nii.gz")
    other = thorax_ct(9, (10, 12, 12))
    put(other.volume, tmp_path / "thorax_ct.nii.gz")
    put(other.labels, tmp_path / "thorax_mask.nii.gz")
    put(thorax_ct(9, (6, 8, 8)).labels, tmp_path / "lost_seg.nii.gz")
    found = describe(tmp_path)
    assert {id: case.label and case.label.path for id, case in by_id(found).items()} == {
        "a": "a-label.nii.gz",
        "thorax_ct": "thorax_mask.nii.gz",
    }
    assert "lost_seg.nii.gz is a label map by its name, but no scan beside it fits" in reasons(found)[0]


def test_arrays_in_a_plain_folder_bring_the_label_map_beside_their_image(tmp_path):
    def put_arrays(name, **arrays):
        with h5py.File(tmp_path / name, "w") as file:
            for key, array in arrays.items():
                file[key] = array

    image = np.zeros(SMALL, np.float32)
    put_arrays("a.h5", image=image, label=np.ones(SMALL, np.uint8))
    put_arrays("b.h5", image=image, label=np.uint8(1))  # a class, not a label map
    put_arrays("c.h5", image=image)
    np.savez(tmp_path / "d.npz", volume=image, seg=np.ones(SMALL, np.uint8))
    found = by_id(describe(tmp_path))
    assert {id: case.label and (case.label.path, case.label.key) for id, case in found.items()} == {
        "a": ("a.h5", "label"),
        "b": None,
        "c": None,
        "d": ("d.npz", "seg"),
    }
    [alone] = describe(tmp_path / "a.h5").cases
    assert alone.label.key == "label"


def test_one_file(tmp_path, phantoms):
    path = put(phantoms[0].volume, tmp_path / "one scan.nii.gz")
    [case] = describe(path).cases
    assert case.images[0].path == "one scan.nii.gz"


def test_paired_folders(tmp_path, phantoms):
    for split, phantom in zip(("train", "val"), phantoms, strict=False):
        put(phantom.volume, tmp_path / split / "images" / f"{split}_0000.nii.gz")
        put(phantom.labels, tmp_path / split / "labels" / f"{split}.nii.gz")
    put(phantoms[2].volume, tmp_path / "train" / "images" / "alone.nii.gz")
    put(phantoms[2].labels, tmp_path / "val" / "labels" / "orphan.nii.gz")
    found = describe(tmp_path)
    assert found.info.layout == "paired"
    cases = by_id(found)
    assert {id: (case.split, case.label is not None) for id, case in cases.items()} == {
        "train": ("train", True),
        "alone": ("train", False),
        "val": ("val", True),
    }
    assert found.given_splits == {"train", "alone", "val"}
    assert cases["alone"].problems == ("There is no label map for it in labels.",)
    assert reasons(found) == ["orphan.nii.gz has no image of its name in images."]


def test_decathlon_with_targets_and_reports(tmp_path):
    folder = write_cohort(tmp_path / "Task", 3, seed=5, shape=SMALL, labelled=2)
    content = json.loads((folder / "dataset.json").read_text())
    content["test"] = ["imagesTr/case_000.nii.gz", {"image": "imagesTr/gone.nii.gz"}, {"label": "x"}]
    (folder / "dataset.json").write_text(json.dumps(content))
    found = describe(folder)
    assert found.info.layout == "msd"
    assert [entry.name for entry in found.info.classes] == ["lung", "heart", "liver", "spine", "nodule"]
    cases = by_id(found)
    assert cases["case_001"].report.startswith("CT of the chest.")
    assert cases["case_002"].label is None
    assert all(case.target in ((0.0,), (1.0,)) for id, case in cases.items() if id != "case_000-2")
    assert cases["case_000-2"].split == "unlabelled"
    assert found.given_splits == {"case_000-2"}
    assert sorted(problem.category for problem in found.problems) == ["list", "missing"]


def test_four_dimensional_decathlon_volumes_become_contrasts(tmp_path):
    import nibabel as nib

    phantom = mr_contrasts(0, SMALL)
    arrays = [volume.geometry.to_source(volume.array) for volume in phantom.volumes]
    (tmp_path / "imagesTr").mkdir()
    nib.save(
        nib.Nifti1Image(np.stack(arrays, -1), phantom.volume.geometry.affine), tmp_path / "imagesTr" / "BRATS.nii.gz"
    )
    content = {
        "modality": {"0": "T1", "1": "T2"},
        "labels": {"0": "b"},
        "training": [{"image": "./imagesTr/BRATS.nii.gz"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    [case] = describe(tmp_path).cases
    assert [(image.contrast, image.key) for image in case.images] == [("T1", "0"), ("T2", "1")]


def test_nnunet_raw(tmp_path):
    phantom = mr_contrasts(1, SMALL)
    for number, volume in enumerate(phantom.volumes):
        put(volume, tmp_path / "imagesTr" / f"case_7_{number:04d}.nii.gz")
        put(volume, tmp_path / "imagesTs" / f"new_{number:04d}.nii.gz")
    put(phantom.labels, tmp_path / "labelsTr" / "case_7.nii.gz")
    put(phantom.volume, tmp_path / "imagesTr" / "stray.nii.gz")
    content = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "whole": [1, 2], "csf": 3},
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found = describe(tmp_path)
    assert found.info.layout == "nnunet"
    cases = by_id(found)
    assert [image.contrast for image in cases["case_7"].images] == ["T1", "T2"]
    assert cases["case_7"].label.path == "labelsTr/case_7.nii.gz"
    assert cases["new"].split == "unlabelled"
    assert {entry.index: entry.name for entry in found.info.classes} == {2: "whole", 3: "csf"}
    assert reasons(found) == ["stray.nii.gz has no channel number (CASE_0000)."]


def test_bids_groups_contrasts_by_session(tmp_path):
    (tmp_path / "dataset_description.json").write_text("{}")
    phantom = mr_contrasts(2, SMALL)
    t1, t2 = phantom.volumes
    for session in ("ses-1", "ses-2"):
        anat = tmp_path / "sub-01" / session / "anat"
        put(t1, anat / f"sub-01_{session}_T1w.nii.gz")
        put(t2, anat / f"sub-01_{session}_T2w.nii.gz")
    put(t1, tmp_path / "sub-02" / "anat" / "sub-02_run-2_T1w.nii.gz")
    put(t1, tmp_path / "sub-02" / "func" / "sub-02_task-rest_bold.nii.gz")
    put(phantom.labels, tmp_path / "derivatives" / "seg" / "sub-01" / "ses-2" / "sub-01_ses-2_dseg.nii.gz")
    found = describe(tmp_path)
    cases = by_id(found)
    assert sorted(cases) == ["sub-01_ses-1", "sub-01_ses-2", "sub-02"]
    assert [image.contrast for image in cases["sub-01_ses-1"].images] == ["T1w", "T2w"]
    assert cases["sub-01_ses-1"].label is None
    assert cases["sub-01_ses-2"].label is not None
    assert cases["sub-01_ses-1"].subject == cases["sub-01_ses-2"].subject == "sub-01"
    assert cases["sub-02"].images[0].contrast == "T1w_run-2"
    assert reasons(found) == ["It is a func scan; anat, ct, pet are taken."]


def test_monai_datalist(tmp_path, phantoms):
    for number, phantom in enumerate(phantoms):
        put(phantom.volume, tmp_path / f"{number}.nii.gz")
        put(phantom.labels, tmp_path / f"{number}_l.nii.gz")
    entry = [{"image": f"{n}.nii.gz", "label": f"{n}_l.nii.gz"} for n in range(4)]
    (tmp_path / "list.json").write_text(
        json.dumps({"training": entry[:2], "validation": entry[2:3], "test": entry[3:]})
    )
    found = describe(tmp_path / "list.json")
    assert found.info.layout == "monai"
    assert [case.split for case in found.cases] == ["train", "train", "val", "test"]
    folds = [{**one, "fold": n % 2} for n, one in enumerate(entry)]
    (tmp_path / "list.json").write_text(json.dumps({"training": folds}))
    assert [case.split for case in describe(tmp_path / "list.json").cases] == ["val", "train", "val", "train"]
    (tmp_path / "list.json").write_text(json.dumps([{"image": "0.nii.gz", "label": 3}]))
    assert describe(tmp_path / "list.json").cases[0].target == (3.0,)
    (tmp_path / "list.json").write_text('{"training": [')
    with pytest.raises(DataError, match="not valid JSON"):
        describe(tmp_path / "list.json")


def test_csv_path_label(tmp_path, phantoms):
    for number, phantom in enumerate(phantoms):
        put(phantom.volume, tmp_path / "ct scans" / f"{number}.nii.gz")
    rows = [
        "Path,Label",
        "ct scans/0.nii.gz,1",
        "ct scans/1.nii.gz,0",
        "ct scans/2.nii.gz,",
        "gone.nii.gz,1",
        ",1",
        "x.docx,0",
    ]
    (tmp_path / "table.csv").write_text("\n".join(rows))
    (tmp_path / "x.docx").write_bytes(b"PK")
    found = describe(tmp_path / "table.csv")
    assert found.info.layout == "csv"
    assert [case.target for case in found.cases] == [(1.0,), (0.0,), None]
    assert found.cases[2].problems == ("Its row has no label.",)
    assert Counter(problem.category for problem in found.problems) == {"missing": 1, "list": 2}
    assert "gone.nii.gz, named in table.csv, does not exist." in " ".join(reasons(found))


def test_csv_with_more_columns(tmp_path, phantoms):
    for number, phantom in enumerate(phantoms[:2]):
        put(phantom.volume, tmp_path / f"{number}.nii.gz")
        put(phantom.labels, tmp_path / f"{number}_seg.nii.gz")
    (tmp_path / "multi.csv").write_text(
        "Subject,Image,Nodule,Effusion,Split,Report,Mask,Hospital\n"
        'p1,0.nii.gz,1,0,train,"A nodule, left.",0_seg.nii.gz,North\np2,1.nii.gz,0,1,test,Clear.,1_seg.nii.gz,South\n'
    )
    found = describe(tmp_path / "multi.csv")
    assert found.info.target_names == ("Nodule", "Effusion")
    first, second = found.cases
    assert (first.target, second.target) == ((1.0, 0.0), (0.0, 1.0))
    assert (first.subject, first.split, first.report) == ("p1", "train", "A nodule, left.")
    assert second.label.path == "1_seg.nii.gz"
    (tmp_path / "words.csv").write_text("path,label\n0.nii.gz,malignant\n1.nii.gz,benign\n")
    found = describe(tmp_path / "words.csv")
    assert found.info.target_names == ("benign", "malignant")
    assert [case.target for case in found.cases] == [(1.0,), (0.0,)]
    (tmp_path / "masks.csv").write_text("path,label\n0.nii.gz,0_seg.nii.gz\n")
    assert describe(tmp_path / "masks.csv").cases[0].label.path == "0_seg.nii.gz"
    (tmp_path / "bad.csv").write_text("name,age\na,1\n")
    with pytest.raises(DataError, match="no column Path; it has name, age"):
        describe(tmp_path / "bad.csv")


def test_the_list_file_of_tangerine_loses_no_line_silently(tmp_path):
    np.savez(tmp_path / "a.npz", volume=np.random.default_rng(0).random((6, 6, 6), np.float32))
    np.savez(tmp_path / "objects.npz", volume=np.array([{"a": 1}], object))
    lines = ["a.npz", "", "# comment", "missing.npz", "scan.pdf", "objects.npz"]
    (tmp_path / "scan.pdf").write_bytes(b"%PDF")
    (tmp_path / "train.txt").write_text("\n".join(lines))
    found = describe(tmp_path / "train.txt")
    assert found.info.layout == "list"
    assert [case.images[0].key for case in found.cases] == ["volume"]
    assert {problem.case for problem in found.problems} == {"missing", "scan.pdf", "objects"}


def test_ua_mt(tmp_path):
    for name in ("A1", "B2", "C3"):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["image"] = np.random.default_rng(0).normal(size=(10, 8, 6)).astype(np.float32)
            if name != "B2":
                file["label"] = np.ones((10, 8, 6), np.uint8)
    (tmp_path / "train.list").write_text("A1\nGone\n")
    (tmp_path / "val.list").write_text("B2\n")
    found = describe(tmp_path)
    assert found.info.layout == "ua-mt"
    assert {id: (case.split, case.label is not None) for id, case in by_id(found).items()} == {
        "A1": ("train", True),
        "B2": ("val", False),
    }
    assert found.cases[0].images[0].shape == (6, 8, 10)
    assert [entry.name for entry in found.info.classes] == ["left atrium"]
    assert sorted(problem.case for problem in found.problems) == ["C3", "Gone"]


def write_series(folder, patient, series, slices=4, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        meta.MediaStorageSOPInstanceUID = f"{series}.{number + 1}"
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        path = folder / f"IM{series.rsplit('.')[-1]}{number:03d}"
        one = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        one.SOPClassUID, one.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        one.SeriesInstanceUID, one.StudyInstanceUID = series, "1.2.3"
        one.PatientID, one.PatientName, one.Modality = patient, "Doe^Jane", "CT"
        one.Rows, one.Columns, one.SamplesPerPixel, one.PhotometricInterpretation = 6, 7, 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        one.PixelSpacing, one.SliceThickness = [0.8, 0.8], 2.0
        one.ImagePositionPatient, one.ImageOrientationPatient = [0.0, 0.0, 2.0 * number], [1, 0, 0, 0, 1, 0]
        one.RescaleSlope, one.RescaleIntercept, one.InstanceNumber, one.SeriesNumber = 1, -1024, number + 1, 1
        one.PixelData = rng.integers(0, 2000, (6, 7)).astype(np.int16).tobytes()
        one.save_as(path, enforce_file_format=True)


def test_dicom_tree_of_several_series_and_patients(tmp_path):
    write_series(tmp_path / "Doe Jane" / "mixed", "MRN-42", "1.2.3.1", seed=1)
    write_series(tmp_path / "Doe Jane" / "mixed", "MRN-42", "1.2.3.2", slices=5, seed=2)
    write_series(tmp_path / "other", "MRN-43", "1.2.3.3", seed=3)
    found = describe(tmp_path)
    assert found.info.layout == "dicom"
    assert len(found.cases) == 3
    assert sorted(Counter(case.subject for case in found.cases).values()) == [1, 2]
    told = " ".join(f"{case.id} {case.subject}" for case in found.cases)
    assert not any(word in told for word in ("MRN", "Doe", "Jane"))
    assert sorted(case.images[0].shape for case in found.cases) == [(4, 6, 7), (4, 6, 7), (5, 6, 7)]


def test_dicom_folders_among_other_scans(tmp_path, phantoms):
    write_series(tmp_path / "series", "x", "1.2.3.9")
    put(phantoms[0].volume, tmp_path / "scan.nii.gz")
    found = describe(tmp_path)
    assert found.info.layout == "folder"
    assert len(found.cases) == 2


def test_real_or_generated_examples_are_recognised(real_data, tmp_path, phantoms):
    folder = tmp_path
    if real_data is not None:
        folder = real_data / "totalsegmentator"
    else:
        put(phantoms[0].volume, tmp_path / "example_ct_sm.nii.gz")
        put(phantoms[0].labels, tmp_path / "example_seg.nii.gz")
    found = describe(folder)
    assert by_id(found)["example_ct_sm"].label.path == "example_seg.nii.gz"
    assert found.problems == []


def test_several_sources_become_one(tmp_path, phantoms):
    for name in ("north", "south"):
        put(phantoms[0].volume, tmp_path / name / "scan.nii.gz")
    found = describe([tmp_path / "north", tmp_path / "south"])
    assert {case.id: case.images[0].path for case in found.cases} == {
        "scan": "north/scan.nii.gz",
        "scan-2": "south/scan.nii.gz",
    }
    assert found.root == tmp_path
    assert len({case.subject for case in found.cases}) == 2


def test_subjects_in_two_given_splits_are_refused(tmp_path, phantoms):
    for number in range(2):
        put(phantoms[number].volume, tmp_path / f"{number}.nii.gz")
    (tmp_path / "t.csv").write_text("Path,Label,Subject,Split\n0.nii.gz,1,anna,train\n1.nii.gz,0,anna,val\n")
    with pytest.raises(DataError, match="Subject 'anna' is in train"):
        describe(tmp_path / "t.csv")


def test_unreadable_files_are_problems(tmp_path, phantoms):
    put(phantoms[0].volume, tmp_path / "good.nii.gz")
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    (tmp_path / "junk.nrrd").write_bytes(b"not a scan")
    found = describe(tmp_path)
    assert [case.id for case in found.cases] == ["good"]
    assert {problem.case for problem in found.problems} == {"empty", "junk"}


def test_layouts_can_be_forced_and_misuse_is_said(tmp_path, phantoms, dataset):
    put(phantoms[0].volume, tmp_path / "images" / "a.nii.gz")
    put(phantoms[0].labels, tmp_path / "labels" / "a.nii.gz")
    assert layout_of(tmp_path) == "paired"
    assert describe(tmp_path, layout="folder").info.layout == "folder"
    with pytest.raises(ConfigError, match="no layout 'dcm'"):
        describe(tmp_path, layout="dcm")
    with pytest.raises(DataError, match="does not exist"):
        describe(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is a dataset already"):
        describe(dataset.folder)
    shutil.rmtree(tmp_path / "labels")
    with pytest.raises(DataError, match="Call them images and labels"):
        describe(tmp_path, layout="paired")
    layouts = {"folder", "paired", "msd", "nnunet", "bids", "monai", "csv", "list", "reports", "ua-mt", "dicom"}
    assert set(LAYOUTS) == {*layouts, "abstracts", "ct-rate", "ctrg", "arrow"}


@pytest.mark.parametrize("name", ["a", "CT_01.v2-b"])
def test_safe_names_stay(name):
    assert file_safe(name) == name


@pytest.mark.parametrize("name", ["über größe", "a/b", "..", "con", "x" * 300, "日本", "a b", "-rf"])
def test_other_names_become_safe_and_stay_apart(name):
    safe = file_safe(name)
    assert safe.isascii()
    assert len(safe) <= 100
    assert not set(safe) & set("/\\ :*?")
    assert safe.strip(".") == safe
    assert not safe.startswith("-")
    assert safe != file_safe(name + "!")


def test_ids_are_unique_on_any_file_system():
    ids = unique_ids(["A", "a", "a", "b"])
    assert len({id.lower() for id in ids}) == 4
    assert ids[0] == "A"


def test_nothing_is_written_beside_the_sources(tmp_path, phantoms):
    put(Volume(phantoms[0].volume.array, phantoms[0].volume.geometry), tmp_path / "a.nii.gz")
    before = sorted(tmp_path.rglob("*"))
    describe(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
