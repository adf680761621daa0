"""Views depend on the seed and a counter alone: not on workers, micro-batches, processes or the step one starts at."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch

from tests.data.loader_kit import EVERYTHING, same, steps
from training_backend.data.dataset import Dataset
from training_backend.data.loader import ViewLoader
from training_backend.data.store import open_case
from training_backend.errors import ConfigError, DataError


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(dataset, run_config, workers):
    alone = steps(ViewLoader(dataset, run_config(data={"augment": EVERYTHING}), needs="labels"))
    config = run_config(data={"augment": EVERYTHING, "workers": workers})
    for one, other in zip(alone, steps(ViewLoader(dataset, config, needs="labels")), strict=True):
        same(one, other)


def test_any_step_can_be_computed_without_the_ones_before(dataset, run_config):
    loader = ViewLoader(dataset, run_config(data={"augment": EVERYTHING, "crops_per_volume": 3}))
    everything = steps(loader)
    assert len(everything) == loader.total_steps == 5
    for start in (1, 3):
        for one, other in zip(everything[start:], steps(loader, start), strict=True):
            same(one, other)


@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batches_are_the_same_views(dataset, run_config, micro):
    loader = ViewLoader(dataset, run_config(data={"augment": EVERYTHING}), needs="labels")
    views = next(loader.batches())
    whole = loader.to_batch(views, "cpu")
    parts = [loader.to_batch(views[start : start + micro], "cpu") for start in range(0, len(views), micro)]
    assert torch.allclose(torch.cat([part.volume for part in parts]), whole.volume, atol=1e-6)
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)


def test_processes_share_a_step_and_together_see_what_one_would(dataset, run_config):
    config = run_config()
    alone = list(ViewLoader(dataset, config).batches())
    ranks = [list(ViewLoader(dataset, config, rank=rank, world=2).batches()) for rank in (0, 1)]
    for whole, first, second in zip(alone, *ranks, strict=True):
        assert len(first) == len(second) == 2
        assert torch.equal(torch.cat([first.images, second.images]), whole.images)
        assert [*first.keys, *second.keys] == list(whole.keys)


def test_each_epoch_visits_every_case_once_and_in_another_order(dataset, run_config):
    loader = ViewLoader(dataset, run_config(data={"crops_per_volume": 2}, optim={"batch_size": 10, "max_steps": 3}))
    assert loader.views_per_epoch == 10
    orders = [list(views.case_ids) for views in loader.batches()]
    assert all(sorted(order) == sorted(2 * [case.id for case in dataset.cases("train")]) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_epochs_become_steps(dataset, run_config):
    loader = ViewLoader(dataset, run_config(optim={"max_steps": None, "epochs": 3, "batch_size": 4}))
    assert loader.views_per_epoch == 10
    assert loader.total_steps == 8  # ceil(30 / 4)


def test_stored_values_reach_the_view(dataset, run_config):
    config = run_config(data={"foreground": 0.0, "augment": {"flip": (0, 0, 0)}})
    views = next(ViewLoader(dataset, config).batches())
    assert views.images.dtype == torch.int16
    batch = ViewLoader(dataset, config).to_batch(views, "cpu")
    expected = ((views.images.float() + 1200) / 2000).clamp(0, 1)
    assert torch.allclose(batch.volume, expected, atol=1e-6)
    whole = open_case(dataset, dataset.case(views.case_ids[0])).read_image()[0]
    view = views.images[0, 0].numpy()
    windows = np.lib.stride_tricks.sliding_window_view(whole, view.shape)
    assert (windows[..., 0, 0, 0] == view[0, 0, 0]).any()
    found = np.argwhere((windows[..., 0, :, 0] == view[0, :, 0]).all(-1))
    assert any(np.array_equal(windows[tuple(place)], view) for place in found)


def test_foreground_share_is_met(dataset, run_config):
    config = run_config(data={"foreground": 1.0, "size": (8, 8, 8)}, optim={"batch_size": 32, "max_steps": 1})
    with_labels = next(ViewLoader(dataset, config, needs="labels").batches())
    assert ((with_labels.labels > 0).flatten(1).any(1)).all()
    values = set(np.unique(with_labels.labels))
    assert {1, 2, 3, 4} <= values, "classes are drawn first, so small ones are seen"
    body = next(ViewLoader(dataset, config).batches())
    assert (body.images[:, 0].float().amax((1, 2, 3)) > -900).all()


def test_volumes_smaller_than_the_view_are_padded_and_say_where(dataset, run_config):
    config = run_config(data={"size": (48, 24, 24)})
    loader = ViewLoader(dataset, config, needs="labels")
    views = next(loader.batches())
    assert views.padding[:, :8].all()
    assert not views.padding[:, 8:40].any()
    assert (views.labels[views.padding] == 255).all()
    assert (views.labels[~views.padding] < 255).all()
    batch = loader.to_batch(views, "cpu")
    assert batch.volume[0, 0][batch.padding[0]].unique().numel() == 1


@pytest.mark.parametrize("keep_aspect", [True, False])
def test_whole_volume_views(dataset, run_config, keep_aspect):
    config = run_config(data={"view": "volume", "size": (24, 24, 24), "keep_aspect": keep_aspect})
    loader = ViewLoader(dataset, config, needs="labels")
    assert loader.views_per_epoch == 5
    first = next(loader.batches())
    again = next(ViewLoader(dataset, config, needs="labels").batches())  # from what the first kept
    assert torch.equal(first.images, again.images)
    assert (first.padding is not None) == keep_aspect
    labels = first.labels[first.labels < 255]
    assert {0, 1, 2, 3, 4} <= set(labels.unique().tolist())


def test_contrasts_become_channels_in_the_order_asked_for(mr_dataset, run_config):
    def images(*contrasts):
        config = run_config(mr_dataset.folder, data={"contrasts": contrasts, "augment": {"flip": (0, 0, 0)}})
        return next(ViewLoader(mr_dataset, config).batches()).images

    both, swapped = images("T1", "T2"), images("T2", "T1")
    assert both.shape[1] == 2
    assert torch.equal(both, swapped.flip(1))


def test_few_shot_choices_are_nested(dataset, run_config):
    def chosen(count, seed=0):
        config = run_config(data={"train_cases": count}, seed=seed)
        return {case.id for case in ViewLoader(dataset, config, needs="labels").cases}

    assert chosen(1) < chosen(2) < chosen(4) < chosen(5)
    assert len({frozenset(chosen(2, seed)) for seed in range(8)}) > 1
    with pytest.raises(ConfigError, match="asks for 6 cases, the dataset has 5"):
        chosen(6)


def test_validation_is_one_plain_pass(dataset, run_config):
    config = run_config(data={"augment": EVERYTHING})
    loader = ViewLoader(dataset, config, needs="target", split="val")
    first, again = (list(loader.batches()) for _ in range(2))
    assert len(first) == loader.total_steps == 1
    assert len(first[0]) == 2
    assert torch.equal(first[0].images, again[0].images)
    batch = loader.to_batch(first[0], "cpu")
    assert batch.target.shape == (2,)
    assert torch.allclose(batch.volume, ((first[0].images.float() + 1200) / 2000).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_case_that_cannot_be_read_is_reported_and_not_replaced(dataset, run_config, tmp_path, workers):
    shutil.copytree(dataset.folder, tmp_path / "copy")
    broken = Dataset.open(tmp_path / "copy")
    victim = broken.cases("train")[2]
    path = broken.folder / victim.store["folder"] / "0.b2nd"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    config = run_config(broken.folder, data={"workers": workers}, optim={"batch_size": 10, "max_steps": 1})
    [whole] = ViewLoader(dataset, config).batches()
    [views] = ViewLoader(broken, config).batches()
    assert len(views) == 8
    assert views.failures == [(victim.id, views.failures[0][1])]
    assert "damaged" in views.failures[0][1]
    kept = [index for index, id in enumerate(whole.case_ids) if id != victim.id]
    assert torch.equal(views.images, whole.images[kept])


def test_a_step_whose_cases_all_fail_is_empty(dataset, run_config, tmp_path):
    shutil.copytree(dataset.folder, tmp_path / "copy")
    broken = Dataset.open(tmp_path / "copy")
    shutil.rmtree(broken.folder / "store")
    views = next(ViewLoader(broken, run_config(broken.folder)).batches())
    assert len(views) == 0
    assert views.images.shape == (0, 1, 16, 24, 24)
    assert len(views.failures) == 2
    assert "missing from the store" in views.failures[0][1]


def test_a_killed_worker_does_not_change_the_batches(dataset, run_config, monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.3)
    config = run_config(data={"workers": 1}, optim={"max_steps": 12})
    expected = [views.images for views in ViewLoader(dataset, config).batches()]
    found = []
    for number, views in enumerate(ViewLoader(dataset, config).batches()):
        found.append(views.images)
        if number == 1:
            for child in psutil.Process().children():
                child.kill()
    assert len(found) == 12
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_workers_end_with_a_killed_parent(dataset, run_config, tmp_path, repository):
    config = run_config(data={"workers": 1}, optim={"max_steps": 100000})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    code = (
        "import sys, time, torch\n"
        "from pathlib import Path\n"
        "from training_backend.config import RunConfig\n"
        "from training_backend.data.dataset import Dataset\n"
        "from training_backend.data.loader import ViewLoader\n"
        f"config = RunConfig.load(Path({str(tmp_path / 'config.yaml')!r}))\n"
        "batches = ViewLoader(Dataset.open(config.data.dataset), config).batches()\n"
        "next(batches); print('ready', flush=True); time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout.readline().strip() == "ready"
    children = psutil.Process(parent.pid).children(recursive=True)
    assert children
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_reports_go_with_their_views(dataset, run_config, workers):
    loader = ViewLoader(dataset, run_config(data={"workers": workers}), needs="text")
    for views in loader.batches():
        batch = loader.to_batch(views, "cpu")
        assert batch.extra["texts"] == [dataset.case(id).report for id in batch.case_ids]
        assert all(batch.extra["texts"])
        assert batch.target.tolist() == [dataset.case(id).target[0] for id in batch.case_ids]
        part = loader.to_batch(views[1:3], "cpu")
        assert part.extra["texts"] == batch.extra["texts"][1:3]
        assert not any(text in repr(views) for text in batch.extra["texts"])
    plain = ViewLoader(dataset, run_config(), needs="target")
    assert "texts" not in plain.to_batch(next(plain.batches()), "cpu").extra


def test_cases_without_a_report_are_left_out_where_one_is_needed(dataset, run_config, tmp_path):
    shutil.copytree(dataset.folder, tmp_path / "copy")
    copy = Dataset.open(tmp_path / "copy")
    first = copy.cases("train")[0]
    copy.put(first.model_copy(update={"report": "  "}))
    loader = ViewLoader(copy, run_config(copy.folder), needs="text")
    assert first.id not in [case.id for case in loader.cases]
    assert len(loader.cases) == 4
    for case in copy.cases():
        copy.put(case.model_copy(update={"report": ""}))
    with pytest.raises(DataError, match="no case with a report in its train split"):
        ViewLoader(copy, run_config(copy.folder), needs="text")


def test_a_dataset_without_fitting_cases_is_refused(mr_dataset, run_config):
    with pytest.raises(DataError, match="no case with a label map in its test split"):
        ViewLoader(mr_dataset, run_config(mr_dataset.folder), needs="labels", split="test")


def test_a_failure_of_the_system_is_told_without_the_path(dataset, run_config, monkeypatch):
    def unreadable(*_):
        raise PermissionError(13, "Permission denied", "/scans/Doe_Jane/0.b2nd")

    monkeypatch.setattr("training_backend.data.loader.open_case", unreadable)
    views = next(ViewLoader(dataset, run_config(dataset.folder, data={"workers": 0})).batches())
    assert {sentence for _, sentence in views.failures} == {"Permission denied"}
