"""Every setting of sequences that cannot be met, and every dataset that cannot give them, is told in a sentence."""

from __future__ import annotations

import pytest

from training_backend.config import RunConfig
from training_backend.data.loader import ViewLoader
from training_backend.errors import ConfigError, DataError


@pytest.fixture
def refused(mr_dataset):
    """Opens a loader of sequences on three heads in T1 and T2 with changed settings."""

    def attempt(sequence=None, dataset=mr_dataset, **data):
        settings = {"slabs": 2, "stride": 2, "spatial": 1.0, **(sequence or {})}
        base = {
            "method": {"name": "mae3d"},
            "data": {
                "dataset": dataset.folder,
                "view": "sequence",
                "size": (16, 16, 16),
                "sequence": settings,
                "augment": {"flip": (0, 0, 0)},
                **data,
            },
        }
        return ViewLoader(dataset, RunConfig.parse(base))

    return attempt


def test_without_any_weight_there_is_nothing_to_draw(refused):
    with pytest.raises(ConfigError, match=r"of all three kinds of sequences are 0.*Raise data.sequence.spatial"):
        refused({"spatial": 0})


def test_a_view_is_glued_from_equal_slabs(refused):
    with pytest.raises(ConfigError, match=r"16 slices cannot be glued from 3 equal slabs. Set data.size to 15"):
        refused({"slabs": 3})


def test_a_crop_is_at_least_as_long_as_the_stack_of_its_slabs(refused):
    with pytest.raises(ConfigError, match=r"16 slices is shorter than the stack.*4 of 4 slices, 8 apart, are 28.*4 or"):
        refused({"slabs": 4, "stride": 8})
    assert refused({"slabs": 4, "stride": 4}).sequences is not None, "the advice is followed"


def test_slabs_of_other_kinds_need_no_stack(refused):
    assert refused({"spatial": 0, "contrast": 1, "stride": 50}).sequences is not None


def test_a_contrast_sequence_takes_one_contrast_per_slab(refused):
    with pytest.raises(ConfigError, match=r"per slab, 4 in all, but the dataset has 2: T1, T2. Set .* to 2"):
        refused({"spatial": 0, "contrast": 1, "slabs": 4})
    with pytest.raises(ConfigError, match="names 1 contrasts for 2 slabs"):
        refused({"contrast": 1, "contrasts": ("T1",)})
    with pytest.raises(ConfigError, match="has no contrast FLAIR; it has T1, T2"):
        refused({"contrast": 1, "contrasts": ("T1", "FLAIR")})


def test_a_dataset_of_one_contrast_gives_no_contrast_sequences(refused, dataset):
    with pytest.raises(ConfigError, match=r"but the dataset has 1: CT.*Set data.sequence.contrast to 0"):
        refused({"spatial": 0, "contrast": 1}, dataset=dataset)


def test_groups_with_a_missing_contrast_are_counted(refused, mr_dataset):
    from training_backend.data.dataset import Dataset

    poor = Dataset.open(mr_dataset.folder)
    for case in poor.cases():
        poor.put(case.model_copy(update={"images": case.images[:1]}))
    with pytest.raises(DataError, match=r"No training case .* has all of T1, T2: of 2 cases, T1 in 2, T2 in 0"):
        refused({"contrast": 1, "contrasts": ("T1", "T2")}, dataset=poor)


def test_semantic_sequences_need_a_table(refused, tmp_path):
    with pytest.raises(ConfigError, match=r"need a table of lesions.*DL_info.csv"):
        refused({"spatial": 0, "semantic": 1})
    with pytest.raises(DataError, match=r"lesions gone.csv cannot be read: No such file"):
        refused({"semantic": 1, "lesions": tmp_path / "gone.csv"})


def test_a_type_needs_as_many_patients_as_slabs(refused, mr_dataset, tmp_path, caplog):
    table = tmp_path / "lesions.csv"
    first, second = (case.id for case in mr_dataset.cases("train"))
    table.write_text(f"case,type,z,y,x\n{first},cyst,9,9,9\n{first},cyst,8,8,8\n{second},node,9,9,9\n")
    with pytest.raises(DataError, match=r"No type of lesion in lesions.csv is found in 2 patients"):
        refused({"semantic": 1, "lesions": table})
    assert "fewer than 2 patients are left out: cyst (1), node (1)" in caplog.text
    table.write_text(f"case,type,z,y,x\n{first},cyst,9,9,9\n{second},cyst,9,9,9\n")
    assert refused({"semantic": 1, "lesions": table}).sequences is not None


def test_weights_of_a_preset_suit_any_dataset_and_what_is_left_out_is_told(refused, dataset):
    everything = {"spatial": 1, "contrast": 1, "semantic": 1}
    loader = refused(everything, dataset=dataset)
    assert loader.sequences.weights == {"spatial": 1}
    contrast, semantic = loader.left_out
    assert contrast.startswith("Training goes on without contrast sequences. A contrast sequence takes one contrast")
    assert contrast.endswith("Set data.sequence.contrast to 0, or use a dataset whose cases have several contrasts.")
    assert semantic.startswith("Training goes on without semantic sequences. Semantic sequences need a table")
    assert {recipe.kind for recipe in map(loader.sequences.draw, [(0, n, 0, 0) for n in range(20)])} == {"spatial"}
    assert refused(everything).sequences.weights == {"spatial": 1, "contrast": 1}, "two contrasts for two slabs"
    assert refused().left_out == ()


def test_what_is_named_is_wanted(refused, dataset, tmp_path):
    with pytest.raises(ConfigError, match="has no contrast T1, T2"):
        refused({"contrast": 1, "contrasts": ("T1", "T2")}, dataset=dataset)
    with pytest.raises(DataError, match="cannot be read"):
        refused({"contrast": 1, "semantic": 1, "lesions": tmp_path / "gone.csv"}, dataset=dataset)
    with pytest.raises(ConfigError, match="but the dataset has 1"):
        refused({"spatial": 0, "contrast": 1, "semantic": 1}, dataset=dataset)


def test_changes_that_would_mix_slabs_are_refused(refused):
    with pytest.raises(ConfigError, match="cannot be augmented with flip along z, rotate: that would mix"):
        refused(augment={"flip": (0.5, 0, 0), "rotate": 0.2})


def test_sequences_have_one_channel(refused):
    with pytest.raises(ConfigError, match=r"one channel, but data.contrasts names 2.*data.sequence.contrasts"):
        refused(contrasts=("T1", "T2"))


def test_sequences_are_for_pretraining(mr_dataset, refused):
    config = refused().config.updated({"kind": "finetune", "task": {"name": "segmentation"}})
    with pytest.raises(ConfigError, match="Sequences are for pre-training"):
        ViewLoader(mr_dataset, config, needs="labels")
