"""Only some cases, and draws with replacement: the same after every resume."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.data.loader_kit import EVERYTHING, same, steps
from training_backend.data.loader import ViewLoader
from training_backend.errors import ConfigError, DataError


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_only_the_listed_cases_are_used(dataset, run_config, tmp_path):
    ids = [case.id for case in dataset.cases("train")][1:4]
    members = [{"case": id, "cluster": 0, "distance": 0.5} for id in reversed(ids)]
    for number, content in enumerate(("\n".join(ids) + "\n\n", {"members": members}, ids)):
        path = written(tmp_path / f"only{number}", content)
        loader = ViewLoader(dataset, run_config(data={"only": path}))
        assert [case.id for case in loader.cases] == ids
        assert loader.left_out == ()
        held_out = ViewLoader(dataset, run_config(data={"only": path}), split="val")
        assert [case.id for case in held_out.cases] == [case.id for case in dataset.cases("val")]


def test_what_is_wrong_with_a_list_is_said(dataset, run_config, tmp_path):
    def load(content):
        return ViewLoader(dataset, run_config(data={"only": written(tmp_path / "only", content)}))

    with pytest.raises(DataError, match="2 of the 2 cases in only are not in the dataset chests: nobody, somebody"):
        load("nobody\nsomebody")
    with pytest.raises(DataError, match="names none"):
        load("\n")
    with pytest.raises(DataError, match="not valid JSON"):
        load("{")
    with pytest.raises(DataError, match="no list of members"):
        load({"clusters": []})
    with pytest.raises(DataError, match="members without the id of a case"):
        load({"members": [{"cluster": 1}]})
    with pytest.raises(DataError, match="cannot be read: No such file"):
        ViewLoader(dataset, run_config(data={"only": tmp_path / "nowhere"}))
    train, val = dataset.cases("train")[0].id, dataset.cases("val")[0].id
    loader = load(f"{train}\n{val}")
    assert [case.id for case in loader.cases] == [train]
    assert loader.left_out == (f"1 of the 2 cases in only are no training cases that can be used: {val}.",)


@pytest.mark.parametrize("workers", [0, 2])
def test_draws_with_replacement_are_the_same_for_any_worker_and_start(dataset, run_config, workers):
    changes = {"order": "replacement", "augment": EVERYTHING}
    alone = steps(ViewLoader(dataset, run_config(data=changes)))
    loader = ViewLoader(dataset, run_config(data={**changes, "workers": workers}))
    for one, other in zip(alone, steps(loader), strict=True):
        same(one, other)
    for one, other in zip(alone[3:], steps(loader, 3), strict=True):
        same(one, other)


def test_draws_with_replacement_repeat_cases_but_not_their_changes(dataset, run_config):
    data = {"order": "replacement", "crops_per_volume": 1, "augment": EVERYTHING}
    loader = ViewLoader(dataset, run_config(data=data, optim={"batch_size": 5, "max_steps": 200}))
    keys = [loader._key(slot) for slot in range(1000)]
    counts = np.bincount([key[2] for key in keys], minlength=5)
    assert counts.min() > 150, "each case is drawn as often as another in the long run"
    epochs = [sorted(key[2] for key in keys[start : start + 5]) for start in range(0, 1000, 5)]
    whole = sum(epoch == [0, 1, 2, 3, 4] for epoch in epochs) / len(epochs)
    assert whole < 0.15, "5!/5^5 = 4 % of epochs see every case"
    assert len(set(keys)) == 1000
    exact = ViewLoader(dataset, run_config(data={**data, "order": "exact"}))
    assert sorted(exact._key(slot)[2] for slot in range(5)) == [0, 1, 2, 3, 4]


def test_sequences_are_not_drawn_with_replacement(dataset, run_config):
    data = {"order": "replacement", "view": "sequence", "size": (16, 16, 16), "sequence": {"slabs": 2, "stride": 4}}
    with pytest.raises(ConfigError, match=r"Set data\.order to exact"):
        ViewLoader(dataset, run_config(data=data))
