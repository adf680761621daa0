"""Datasets of the stages of MedCoSS from generated stand-ins with the structure of the public sources."""

from __future__ import annotations

import shutil

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from training_backend.api import data_prepare
from training_backend.data import medcoss_published as published
from training_backend.data.dataset import Dataset
from training_backend.data.prepare_adni import prepare_adni
from training_backend.data.prepare_deeplesion import prepare_deeplesion
from training_backend.data.prepare_mimic import prepare_mimic, prepare_mimic_reports
from training_backend.data.prepare_pictures import prepare_tcga
from training_backend.data.store import open_case
from training_backend.errors import ConfigError, DataError

HEAD = "File_name,Patient_index,Slice_range,Spacing_mm_px_,Train_Val_Test"


def write_slices(folder, series, first, last, rows=40, columns=50):
    """Slices whose numbers tell where a voxel lies: 10 per slice, a bright corner at the first row and last column."""
    (folder / series).mkdir(parents=True)
    for number in range(first, last + 1):
        slice_ = np.full((rows, columns), 10 * (number - first) - 500, np.int32)
        slice_[: rows // 4, -columns // 4 :] += 700
        Image.fromarray((slice_ + 32768).astype(np.uint16)).save(folder / series / f"{number:03d}.png")


@pytest.fixture
def lesions(tmp_path):
    folder = tmp_path / "DeepLesion"
    write_slices(folder / "Images_png", "000001_01_01", 103, 115)
    write_slices(folder / "Images_png", "000002_01_03", 1, 4)
    lines = [
        HEAD,
        '000001_01_01_109.png,1,"103, 115","0.8, 0.8, 5",1',
        '000001_01_01_110.png,1,"103, 115","0.8, 0.8, 5",1',
        '000002_01_03_002.png,2,"1, 4","0.8, 0.8, 5",3',
        '000009_01_01_002.png,9,"1, 4","0.8, 0.8, 5",1',
        '000001_01_01_109.png,1,"103","0.8, 0.8",1',
    ]
    (folder / "DL_info.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_slices_of_deeplesion_become_slabs(lesions, tmp_path):
    report = data_prepare("deeplesion", (lesions,), tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    names = [f"000001_01_01_103-115_dep{n}" for n in range(5)] + ["000002_01_03_001-004_dep0"]
    assert sorted(report.ok) == names  # 65 slices of 1 mm: starts 0, 12, 24, 36, 41; then 20, fewer than a slab has
    assert [case.split for case in dataset.cases()] == ["train"] * 5 + ["test"]
    assert {case.subject for case in dataset.cases()} == {"000001", "000002"}
    assert [entry.category for entry in dataset.quarantined()] == ["missing", "list"]
    assert "The slices of 000009_01_01 are not below DeepLesion" in dataset.quarantined()[0].reason
    stored = open_case(dataset, dataset.case(names[0]))
    assert stored.shape == (16, 192, 192)
    assert stored.statistics[0].ct
    image = stored.read_image()[0].astype(int)
    top, bottom = image[-1, 150, 10], image[0, 150, 10]
    assert (top, bottom) == pytest.approx((-500, -500 + 2 * 22.5), abs=6), "slice numbers grow towards the feet"
    assert image[-1, 10, 180] - top == pytest.approx(700, abs=3), "rows go to the back, columns to the left"
    assert abs(image[-1, 10, 10] - top) < 3
    assert abs(image[-1, 180, 180] - top) < 3
    second = open_case(dataset, dataset.case(names[1]))
    assert stored.geometry.to_lps[2, 3] - second.geometry.to_lps[2, 3] == pytest.approx(12), "slabs lie 12 mm apart"


def test_a_slab_is_the_published_one(lesions, tmp_path):
    """The same numbers as the published steps on the whole volume, one after the other."""
    prepare_deeplesion(lesions, tmp_path / "out")
    files = sorted((lesions / "Images_png" / "000001_01_01").iterdir())
    volume = np.stack([np.asarray(Image.open(file)).astype(np.int32) - 32768 for file in files]).astype(np.int16)
    whole = published.respaced(volume, (5.0, 0.8, 0.8))
    expected = published.resized(published.middle(whole[41:65]), (16, 192, 192))
    dataset = Dataset.open(tmp_path / "out")
    stored = open_case(dataset, dataset.case("000001_01_01_103-115_dep4"))
    assert np.array_equal(stored.read_image()[0], expected[::-1])


def test_wide_slices_keep_their_middle():
    wide = np.arange(2 * 400 * 330).reshape(2, 400, 330)
    assert np.array_equal(published.middle(wide), wide[:, 40:360, 33:297])
    assert published.middle(wide[:, :320]) is not None
    assert published.middle(wide[:, :320]).shape == (2, 320, 330)


def test_what_is_wrong_with_deeplesion_is_said(lesions, tmp_path):
    (lesions / "Images_png" / "000001_01_01" / "105.png").unlink()
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(lesions / "Images_png" / "000002_01_03" / "003.png")
    with pytest.raises(DataError, match="No case could be made: "):
        prepare_deeplesion(lesions, tmp_path / "out")
    table = tmp_path / "table.csv"
    table.write_text("File_name,Slice_range\n")
    with pytest.raises(DataError, match=r"table\.csv has no column spacing_mm_px_, train_val_test"):
        prepare_deeplesion(lesions, tmp_path / "out", table=table)
    with pytest.raises(DataError, match="cannot be read as a table"):
        prepare_deeplesion(tmp_path, tmp_path / "out")
    shutil.rmtree(lesions / "Images_png")
    with pytest.raises(DataError, match=r"No series of DL_info\.csv can be used"):
        prepare_deeplesion(lesions, tmp_path / "out")


def test_a_stack_without_one_slice_is_left_out_and_the_others_are_made(lesions, tmp_path):
    (lesions / "Images_png" / "000001_01_01" / "105.png").unlink()
    report = prepare_deeplesion(lesions, tmp_path / "out")
    assert report.ok == ("000002_01_03_001-004_dep0",)
    reasons = [entry.reason for entry in Dataset.open(tmp_path / "out").quarantined()]
    assert sum("105.png does not exist" in reason for reason in reasons) == 5


@pytest.fixture
def brains(tmp_path):
    folder = tmp_path / "ADNI"
    rng = np.random.default_rng(0)
    for subject, depth in (("002_S_0295", 40), ("002_S_0413", 61), ("003_S_0907", 15)):
        (folder / subject).mkdir(parents=True)
        array = rng.gamma(2, 100, (20, 24, depth)).astype(np.float32) + np.arange(depth, dtype=np.float32) * 10
        nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1.0, 1.2, 1])), folder / subject / f"ADNI_{subject}.nii.gz")
    return folder


def test_brains_become_normalised_slabs(brains, tmp_path):
    report = data_prepare("adni", (brains,), tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert sorted(report.ok) == [
        *(f"ADNI_002_S_0295_dep{n}" for n in range(3)),  # 4 ... 36: starts 4, 12, 20
        *(f"ADNI_002_S_0413_dep{n}" for n in range(5)),
    ]
    assert {case.subject for case in dataset.cases()} == {"002_S_0295", "002_S_0413"}
    assert report.stored_bytes == sum(file.stat().st_size for file in (tmp_path / "out").rglob("*.b2nd"))
    assert "has 15 slices; 16 must be left" in dataset.quarantined()[0].reason
    case = dataset.case("ADNI_002_S_0413_dep4")
    stored = open_case(dataset, case)
    whole = np.asarray(nib.load(brains / case.images[0].path).dataobj).transpose(2, 1, 0)
    expected = published.mr_normalised(published.resized(whole, (61, 192, 192))[38:54])
    assert np.allclose(stored.read_image()[0], expected, atol=3e-3)
    assert stored.geometry.spacing_mm == pytest.approx((1.2, 24 / 192, 20 / 192))
    assert stored.geometry.to_lps[:3, 3] == pytest.approx((0, 0, 38 * 1.2))


def test_brains_that_are_not_there_are_missed(tmp_path):
    with pytest.raises(DataError, match="is no folder"):
        prepare_adni(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"No scan in .*empty can be used"):
        prepare_adni(tmp_path / "empty", tmp_path / "out")


def write_tiles(folder, names, size=(30, 40)):
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = np.zeros((*size, 3), np.uint8)
        picture[: size[0] // 2, : size[1] // 2] = (200, 100, 50)
        picture[-size[0] // 4 :, -size[1] // 4 :] = 10 * number
        Image.fromarray(picture).save(path)


def test_tissue_is_drawn_by_patient_and_resized(tmp_path):
    folder = tmp_path / "TCGA"
    write_tiles(folder, [f"THYM/TCGA-3G-AB0Q/{n}.png" for n in range(12)] + ["UVM/TCGA-V3-A9ZX-01Z/a.png"])
    report = prepare_tcga(folder, tmp_path / "out", per_patient=5, size=16)
    dataset = Dataset.open(tmp_path / "out")
    subjects = [case.subject for case in dataset.cases()]
    assert subjects.count("TCGA-3G-AB0Q") == 5
    assert subjects.count("TCGA-V3-A9ZX") == 1
    assert dataset.info.contrasts == ("red", "green", "blue")
    stored = open_case(dataset, dataset.cases()[0])
    assert stored.shape == (1, 16, 16)
    assert stored.read_image()[:, 0, 4, 4].tolist() == [200, 100, 50]
    assert stored.read_image()[:, 0, 4, 12].tolist() == [0, 0, 0], "not mirrored"
    assert stored.read_image()[:, 0, 12, 4].tolist() == [0, 0, 0]
    assert all(one.largest == 255 for one in stored.statistics)
    again = prepare_tcga(folder, tmp_path / "again", per_patient=5, size=16)
    assert again.ok == report.ok
    with pytest.raises(DataError, match="holds no folders of pictures"):
        prepare_tcga(tmp_path / "nowhere", tmp_path / "out")


def test_radiographs_become_grey_squares_with_the_official_split(tmp_path):
    folder = tmp_path / "MIMIC"
    write_tiles(folder, [f"files/p1{n}/p1000000{n}/s5/dicom-{n}.jpg" for n in range(4)], (60, 90))
    table = tmp_path / "split.csv"
    rows = [f"dicom-{n},5,{split}" for n, split in enumerate(("train", "validate", "test", "train"))]
    table.write_text("\n".join(["dicom_id,study_id,split", *rows]) + "\n")
    prepare_mimic(folder, tmp_path / "out", table=table, size=32)
    dataset = Dataset.open(tmp_path / "out")
    assert [(case.id, case.split) for case in dataset.cases()] == [
        ("dicom-0", "train"),
        ("dicom-1", "val"),
        ("dicom-2", "test"),
        ("dicom-3", "train"),
    ]
    assert [case.subject for case in dataset.cases()] == [f"p1000000{n}" for n in range(4)]
    stored = open_case(dataset, dataset.cases()[0])
    assert stored.shape == (1, 32, 32)
    assert stored.contrasts == ("image",)
    grey = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    assert stored.read_image()[0, 0, 8, 8] == pytest.approx(grey, abs=3)
    assert stored.read_image()[0, 0, 8, 26] < 3
    copy = folder / "files/p15/p10000005/s9/dicom-9.jpg"
    copy.parent.mkdir(parents=True)
    shutil.copy(folder / "files/p10/p10000000/s5/dicom-0.jpg", copy)
    report = prepare_mimic(folder, tmp_path / "doubled", table=table, size=32)
    assert [entry.category for entry in report.quarantined] in (["duplicate"], ["leakage"])
    assert len(report.ok) == 4
    assert dataset.info.modality == "XR"
    table.write_text("dicom_id,study_id\na,b\n")
    with pytest.raises(DataError, match=r"split\.csv has no column split; it has dicom_id, study_id"):
        prepare_mimic(folder, tmp_path / "again", table=table)
    with pytest.raises(DataError, match=r"holds no \.jpg file"):
        prepare_mimic(tmp_path / "nowhere", tmp_path / "again")


MASTER = [
    "Path,split,ViewPosition,impression,findings",
    'files/p10/p10000032/s5/a.jpg,train,PA,No acute process.,"1. Heart is normal.\nLungs clear."',
    "files/p10/p10000032/s5/b.jpg,train,LATERAL,No acute process.,Heart is normal.",
    "files/p10/p10000764/s6/c.jpg,valid,AP,ok,",
    "files/p11/p11000011/s7/d.jpg,test,AP,Stable X-ray.,",
    "files/p11/p11000012/s8/e.jpg,holdout,AP,Stable X-ray today.,",
]


def test_reports_of_mimic_are_cleaned(tmp_path):
    table = tmp_path / "master.csv"
    table.write_text("\n".join(MASTER) + "\n")
    report = data_prepare("mimic-cxr-reports", (table,), tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert [(case.id, case.subject, case.split, case.report) for case in dataset.cases()] == [
        ("a", "p10000032", "train", "no acute process heart is normal lungs clear"),
        ("d", "p11000011", "test", "stable x ray"),
    ]
    assert [(entry.case, entry.category) for entry in report.quarantined] == [("c", "list"), ("e", "list")]
    assert "fewer than three words after cleaning" in report.quarantined[0].reason
    assert "has the split 'holdout'" in report.quarantined[1].reason
    assert dataset.info.modality == "text"


def test_what_is_wrong_with_the_table_of_reports_is_said(tmp_path):
    table = tmp_path / "master.csv"
    table.write_text("Path,split,impression\na,train,x\n")
    with pytest.raises(DataError, match=r"master\.csv has no column viewposition, findings; it has impression, path"):
        prepare_mimic_reports(table, tmp_path / "out")
    table.write_text("\n".join([MASTER[0], MASTER[2]]) + "\n")
    with pytest.raises(DataError, match="it has no frontal view"):
        prepare_mimic_reports(table, tmp_path / "out")
    table.write_bytes("Path,split,ViewPosition,impression,findings\na,train,PA,Größe,\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not in UTF-8"):
        prepare_mimic_reports(table, tmp_path / "out")
    with pytest.raises(ConfigError, match="made from one path, the table of reports; 2 were given"):
        data_prepare("mimic-cxr-reports", (table, table), tmp_path / "out")


def test_an_interrupted_preparation_goes_on(brains, tmp_path):
    stopped = prepare_adni(brains, tmp_path / "out", progress=lambda share: share < 0.4)
    assert stopped.cancelled
    whole = prepare_adni(brains, tmp_path / "out")
    assert whole.resumed == len(stopped.ok)
    assert len(whole.ok) == 8
