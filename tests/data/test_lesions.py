"""Tables of lesions: both layouts, three units, and rows that lie nowhere."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from training_backend.config import IngestConfig
from training_backend.data.dataset import Dataset
from training_backend.data.ingest import ingest
from training_backend.data.lesions import place_lesions, read_table, usable_lesions
from training_backend.data.store import open_case
from training_backend.errors import DataError

DEEP = "File_name,Patient_index,Bounding_boxes,Coarse_lesion_type,Slice_range"


def spots(folder, affine, names=("one", "two"), place=(7, 9, 3)):
    """Files with one bright voxel at index `place` (i, j, k)."""
    for number, name in enumerate(names):
        array = np.zeros((16, 20, 10), np.int16) - 5 - number
        array[2:14, 2:18, 1:9] = 40
        array[place] = 900
        nib.save(nib.Nifti1Image(array, affine), folder / f"{name}.nii.gz")


@pytest.fixture
def dataset(tmp_path):
    def make(affine=None, names=("one", "two"), **config):
        scans = tmp_path / "scans"
        scans.mkdir()
        spots(scans, np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine, names)
        ingest(scans, tmp_path / "data", IngestConfig(workers=0, splits=(1, 0, 0), **config))
        return Dataset.open(tmp_path / "data")

    return make


def table(tmp_path, text):
    path = tmp_path / "lesions.csv"
    path.write_text(text)
    return path


def brightest(dataset, id):
    array = open_case(dataset, dataset.case(id)).read_image()[0]
    return tuple(int(n) for n in np.unravel_index(array.argmax(), array.shape))


OBLIQUE = np.array([[-0.9, 0.1, 0.0, 12], [0.1, 0.9, 0.2, -7], [0.0, -0.2, 1.9, 3], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("affine", [np.diag([1.0, 1.0, 2.0, 1.0]), np.diag([-1.0, 1.0, -2.0, 1.0]), OBLIQUE])
@pytest.mark.parametrize("crop_body", [True, False])
def test_places_in_voxels_and_millimetres_meet_the_stored_voxel(dataset, tmp_path, affine, crop_body):
    made = dataset(affine, crop_body=crop_body)
    native = open_case(made, made.case("one")).native
    file = np.zeros((16, 20, 10))
    file[7, 9, 3] = 1
    voxel = np.argwhere(native.to_canonical(file))[0]
    x, y, z = (native.to_lps @ [*voxel, 1])[:3]
    voxels = ",".join(map(str, voxel))
    box = ",".join(f"{n - 2},{n + 2}" for n in voxel)
    for text in (
        f"case,type,z,y,x\none,a,{voxels}\n",
        f"Path,Class,Z_mm,Y_mm,X_mm\none.nii.gz,a,{z},{y},{x}\n",
        f"image,label,z0,z1,y0,y1,x0,x1\none,a,{box}\n",
    ):
        rows, refused = read_table(table(tmp_path, text))
        (lesion,), others = place_lesions(rows, "lesions.csv", made.cases())
        assert not refused
        assert not others
        assert lesion.centre == brightest(made, "one")
        assert (lesion.patient, lesion.type, lesion.whole_depth) == ("one", "a", False)


def test_deep_lesion_gives_rows_first_and_the_slices_of_its_name(dataset, tmp_path):
    names = ("000001_01_01_103-115", "000002_02_01_009-018")
    made = dataset(np.array([[0, -0.8, 0, 0], [-0.8, 0, 0, 0], [0, 0, -2.0, 0], [0, 0, 0, 1]]), names)
    text = (
        f"{DEEP}\n"
        '000001_01_01_109.png,1,"7.0, 5.5, 11.9, 9.0",5,"103, 115"\n'
        '000002_02_01_012.png,2,"7, 5, 11, 9",-1,"9, 18"\n'
    )
    path = table(tmp_path, text)
    rows, refused = read_table(path)
    assert len(rows) == 1, "type -1 is unknown"
    assert not refused
    (lesion,), others = place_lesions(rows, path.name, made.cases())
    assert not others
    assert (lesion.case, lesion.patient, lesion.type, lesion.whole_depth) == (names[0], "000001", "5", True)
    assert lesion.centre[1:] == brightest(made, names[0])[1:], "x 9, y 7: column 9 of row 7"


def test_rows_that_lie_nowhere_are_left_out_with_a_reason(dataset, tmp_path, caplog):
    made = dataset()
    path = table(
        tmp_path,
        "case,patient,type,z,y,x\n"
        "one,p1,a,4,9,7\n"
        "two,p2,a,4,9,7\n"
        "two,p2,a,4,9,400\n"
        "three,p3,a,4,9,7\n"
        "one,p1,,4,9,7\n"
        "one,p1,a,4,nine,7\n"
        "one,p1,a,4,nan,7\n",
    )
    rows, unread = read_table(path)
    lesions, refused = place_lesions(rows, path.name, made.cases())
    assert [one.patient for one in lesions] == ["p1", "p2"]
    assert {entry.category for entry in (*unread, *refused)} == {"lesion"}
    reasons = [entry.reason for entry in (*unread, *refused)]
    assert len(reasons) == 5
    assert "no case or no type" in reasons[0]
    assert "could not convert" in reasons[1]
    assert "is not a number" in reasons[2]
    assert "4, 9, 400 voxels lies outside scan two of (10, 20, 16) voxels (z, y, x). Check the units" in reasons[3]
    assert "'three' is no case of the dataset" in reasons[4]
    found = usable_lesions(made, path, made.cases(), 2)
    assert list(found) == ["a"]
    assert list(found["a"]) == ["p1", "p2"]
    assert "5 of 7 lesions are left out" in caplog.text


def test_a_box_that_ends_before_it_begins_or_beyond_the_scan(dataset, tmp_path):
    made = dataset()
    head = "case,type,z0,z1,y0,y1,x0,x1\n"
    path = table(tmp_path, f"{head}one,a,6,3,1,2,1,2\none,a,1,30,1,2,1,2\none,a,0,10,0,20,0,16\n")
    rows, unread = read_table(path)
    lesions, refused = place_lesions(rows, path.name, made.cases())
    assert "ends before it begins" in unread[0].reason
    assert "lies outside" in refused[0].reason
    assert len(lesions) == 1, "the whole scan is within the scan"


def test_a_lesion_outside_the_stored_body_box(tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    array = np.full((48, 48, 48), -1000, np.int16)
    array[20:30, 20:30, 20:30] = 50
    nib.save(nib.Nifti1Image(array, np.eye(4)), scans / "one.nii.gz")
    ingest(scans, tmp_path / "data", IngestConfig(workers=0, splits=(1, 0, 0)))
    made = Dataset.open(tmp_path / "data")
    rows, _ = read_table(table(tmp_path, "case,type,z,y,x\none,a,2,2,2\none,a,25,25,25\n"))
    lesions, refused = place_lesions(rows, "lesions.csv", made.cases())
    assert len(lesions) == 1
    assert "outside the box around the body" in refused[0].reason
    assert "--no-crop-body" in refused[0].reason


def test_a_table_of_something_else_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no table of lesions: its columns are path, label. Expected are case, type"):
        read_table(table(tmp_path, "Path,Label\na,1\n"))
    with pytest.raises(DataError, match="its columns are none"):
        read_table(table(tmp_path, ""))
