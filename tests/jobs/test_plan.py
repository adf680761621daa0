"""Plans: made, checked, worked through by real processes, stopped and killed anywhere, made longer."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml

from tests.medcoss_kit import SMALL, begun, dataset, plan_of, trained
from training_backend import watch
from training_backend.api import plan_add, plan_run, plan_show
from training_backend.config.plan import PlanConfig
from training_backend.engine.events import EventReader
from training_backend.engine.identity import process
from training_backend.engine.rundir import RunDirectory
from training_backend.engine.worker import execute
from training_backend.errors import ConfigError, DataError, Med3dError, RunError
from training_backend.evaluate.forgetting import read
from training_backend.jobs import launcher
from training_backend.jobs import plan as plans
from training_backend.jobs.plan_stages import Start, check_data, doubt, from_run, stage_config, start_of
from training_backend.jobs.registry import list_runs, summary


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    return {name: dataset(root, name, 6) for name in ("1D_text", "2D_xray", "3D_CT", "3D_MR")}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans, stages and what is measured run in this process; two tests below start the real ones, which is slow."""

    def launch(run: RunDirectory, **_: bool) -> launcher.Launched:
        plans.main([str(run.path)])
        run.update(pid=None)
        return launcher.Launched(0, attached=False)

    def start_detached(arguments: list[str], *_: Path, **__: bool) -> SimpleNamespace:
        code = plans.end_stage_main(arguments[3:])
        return SimpleNamespace(poll=lambda: code, returncode=code)

    for module in (launcher, watch):
        monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(launcher, "start_detached", start_detached)


def some(data: dict[str, Path], *names: str) -> dict[str, Path]:
    return {name: data[name] for name in names}


def until(condition: Callable[[], bool], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.mark.timeout(900)  # nine processes, each of which loads its libraries
def test_a_plan_that_is_killed_and_stopped_ends_as_if_nothing_had_happened(data, tmp_path):
    """Kill the plan's process in the first stage, stop it in the second: stages end with the bits of quiet ones."""
    plan = plan_of(some(data, "2D_xray", "3D_CT"), steps=30)
    run = plans.create(tmp_path / "plan", plan)
    launcher.launch(run)
    first, second = (run.path / "stages" / name for name in ("01-2D_xray", "02-3D_CT"))
    until(lambda: any(first.glob("checkpoints/step_*")))
    child = process(RunDirectory(first).record())
    worker = process(run.record())
    assert worker is not None
    worker.kill()
    until(lambda: summary(run).state == "lost")
    until(lambda: child is None or not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert summary(first).state in ("paused", "finished")
    launcher.resume(run)
    until(lambda: any(second.glob("checkpoints/step_*")))
    launcher.cancel(run)
    assert summary(run).state == "cancelled"
    assert not summary(second).alive
    launcher.resume(run)
    until(lambda: summary(run).state in ("finished", "failed") and not summary(run).alive)
    assert summary(run).state == "finished", run.log_path.read_text()
    quiet = trained(plan.located(), tmp_path / "quiet")
    for mine, other in zip((first, second), quiet, strict=True):
        assert (mine / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert read(run.path) == read(quiet[-1])
    assert summary(run).step == summary(run).steps == 60
    phases = [(e["stage"], e["phase"]) for e in EventReader(run.events_path).read() if e["type"] == "stage"]
    assert list(dict.fromkeys(phases)) == [(k, p) for k in (1, 2) for p in ("training", "measuring", "finished")]
    listed = [found.path for found in list_runs() if found.path.is_relative_to(run.path)]
    assert listed == [run.path]  # its stages are no entries of their own
    shown = str(plan_show(run.path))
    assert "2 of 5" in shown
    assert "finished" in shown


def test_a_stage_is_added_to_a_plan_and_to_a_run(data, tmp_path):
    (first,) = trained(plan_of(some(data, "3D_CT")), tmp_path)
    report = plan_add(
        first, "3D_MR", data["3D_MR"], output=tmp_path / "longer", preset="tiny", steps=3,
        set=("engine.device=cpu", "data.workers=0", "optim.batch_size=4"),
    )  # fmt: skip
    assert report.summary.state == "finished", report
    rows = read(tmp_path / "longer")
    assert [(row.stage, row.modality) for row in rows] == [("3D_CT", "3D_CT"), ("3D_MR", "3D_CT"), ("3D_MR", "3D_MR")]
    stage = RunDirectory.open(tmp_path / "longer" / "stages" / "01-3D_MR")
    assert stage.config().method.embed_dim == SMALL["method"]["embed_dim"]  # the encoder decides its sizes
    assert stage.config().method.rehearsal.buffers == (first / "buffer",)
    with pytest.raises(DataError, match="volumes, but the dataset 2D_xray holds 2-D images"):
        plan_add(tmp_path / "longer", "own", data["2D_xray"], kind="3d")
    assert len(plans.read_plan(tmp_path / "longer").stages) == 1
    plans.add_stage(RunDirectory.open(tmp_path / "longer"), plan_of(some(data, "2D_xray"), steps=3).stages[0])
    assert summary(tmp_path / "longer").state == "queued"
    start = from_run(stage.path)
    assert start.kinds == ("3d",)
    assert stage_config(plans.read_plan(tmp_path / "longer"), 2, start).method.encodes == ("3d",)


@pytest.mark.parametrize("there", [True, False])
def test_a_run_without_a_buffer_gets_one_as_long_as_its_data_are_there(data, here, tmp_path, there):
    shutil.copytree(data["3D_CT"], tmp_path / "data" / "3D_CT")
    alone = plan_of({"3D_CT": tmp_path / "data" / "3D_CT"}, steps=2)
    single = begun(tmp_path / "single", stage_config(alone, 1, Start()))
    assert execute(single) == 0
    if not there:
        shutil.rmtree(tmp_path / "data")
    run = plans.create(tmp_path / "plan", plan_of(some(data, "3D_MR"), steps=2, weights=str(single.path)))
    assert plans.main([str(run.path)]) == 0, run.error()
    asked = [("3D_CT", "3D_CT"), ("3D_MR", "3D_CT")] if there else []
    assert [(row.stage, row.modality) for row in read(run.path)] == [*asked, ("3D_MR", "3D_MR")]
    buffers = RunDirectory.open(run.path / "stages" / "01-3D_MR").config().method.rehearsal.buffers
    assert buffers == ((run.path / "start" / "buffer",) if there else ())
    assert not (single.path / "buffer").exists()
    warnings = [e["message"] for e in EventReader(run.events_path).read() if e["type"] == "warning"]
    assert there or warnings[0].startswith("Nothing of what single was taught is rehearsed or measured")


def test_data_that_are_missing_or_of_another_kind_are_told_before_anything_begins(data, tmp_path):
    for changes, sentence in (
        ({"3D_CT": tmp_path / "nowhere"}, "The data of the stage 3D_CT are missing"),
        ({"2D_xray": data["3D_CT"]}, "teaches 2-D images, but the dataset 3D_CT holds volumes"),
        ({"1D_text": data["3D_CT"]}, "teaches reports, but the dataset 3D_CT holds volumes"),
        ({"3D_MR": data["3D_CT"]}, "teaches MR, but the dataset 3D_CT holds CT scans"),
    ):
        plan = plan_of(some(data, "2D_xray") | changes)
        with pytest.raises(DataError, match=sentence):
            plans.create(tmp_path / "plan", plan)
        assert not (tmp_path / "plan").exists()


def test_data_that_go_missing_on_the_way_fail_the_plan_and_lose_nothing(data, here, tmp_path):
    shutil.copytree(data["2D_xray"], tmp_path / "data" / "2D_xray")
    shutil.copytree(data["3D_CT"], tmp_path / "data" / "3D_CT")
    plan = plan_of({name: tmp_path / "data" / name for name in ("2D_xray", "3D_CT")}, steps=3)
    run = plans.create(tmp_path / "plan", plan)
    (tmp_path / "data" / "3D_CT").rename(tmp_path / "away")
    assert plans.main([str(run.path)]) == 1
    error = run.error()
    assert error is not None
    assert error["sentence"].startswith("The data of the stage 3D_CT are missing")
    assert (run.path / "stages" / "01-2D_xray" / "stage.json").exists()
    (tmp_path / "away").rename(tmp_path / "data" / "3D_CT")
    (tmp_path / "data" / "2D_xray").rename(tmp_path / "away")  # now what is rehearsed has moved
    assert plans.main([str(run.path)]) == 1
    error = run.error()
    assert error is not None
    assert "rehearses cases of the dataset 2D_xray, which is not at" in error["sentence"]
    assert error["hint"].startswith("Put the dataset back, or write its place as dataset into ")
    assert error["hint"].endswith("What was learnt is kept; resume the plan then.")
    (tmp_path / "away").rename(tmp_path / "data" / "2D_xray")
    before = (run.path / "stages" / "01-2D_xray" / "model.safetensors").stat().st_mtime_ns
    assert plans.main([str(run.path)]) == 0
    assert (run.path / "stages" / "01-2D_xray" / "model.safetensors").stat().st_mtime_ns == before


def test_scans_that_look_like_no_ct_are_doubted(data):
    stage = plan_of({"3D_CT": data["3D_MR"]}).stages[0]
    assert doubt(stage, check_data(stage)).startswith("Some scans of the dataset 3D_MR do not look like CT")
    assert doubt(stage.updated({"dataset": data["3D_CT"]}), check_data(stage.updated({"dataset": data["3D_CT"]}))) == ""
    told = stage.updated({"settings": {"data": {"intensity": {"profile": "identity"}}}})
    assert doubt(told, check_data(told)) == ""


def test_more_clusters_than_cases_fails_after_the_stage_was_trained(data, here, tmp_path):
    plan = plan_of(some(data, "2D_xray"), steps=2, buffer={"clusters": 50})
    run = plans.create(tmp_path / "plan", plan)
    assert plans.main([str(run.path)]) == 1
    error = run.error()
    assert error is not None
    assert "50 clusters were asked for, but there are only 5 cases" in error["sentence"]
    trained_at = (run.path / "stages" / "01-2D_xray" / "model.safetensors").stat().st_mtime_ns
    fewer = plan_of(some(data, "2D_xray"), steps=2)
    with pytest.raises(ConfigError, match="holds a plan with other settings, 1 stages of which have begun"):
        plans.change_plan(run, plan_of(some(data, "2D_xray"), steps=3))
    plans.change_plan(run, fewer)
    assert plans.main([str(run.path)]) == 0
    assert (run.path / "stages" / "01-2D_xray" / "model.safetensors").stat().st_mtime_ns == trained_at


def test_a_plan_of_a_file_goes_on_where_it_was(data, here, tmp_path):
    values = plan_of(some(data, "2D_xray"), steps=2).model_dump(mode="json")
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(values))
    first = plan_run(tmp_path / "plan.yaml", tmp_path / "plan")
    assert first.summary.state == "finished"
    again = plan_run(tmp_path / "plan.yaml", tmp_path / "plan")
    assert again.summary.ended == first.summary.ended
    values["stages"] = [*values["stages"], {"modality": "3D_CT", "dataset": str(data["3D_CT"]), "steps": 2}]
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(values))
    longer = plan_run(tmp_path / "plan.yaml", tmp_path / "plan")
    assert longer.summary.state == "finished"
    assert len(read(tmp_path / "plan")) == 3


def test_nothing_starts_from_what_cannot_be_gone_on_from(data, tmp_path):
    run = plans.create(tmp_path / "plan", plan_of(some(data, "3D_CT")))
    with pytest.raises(RunError, match="has no finished stage to start from"):
        start_of(str(run.path))
    with pytest.raises(RunError, match="has written no model yet"):
        from_run(begun(tmp_path / "run", stage_config(plan_of(some(data, "3D_CT")), 1, Start())).path)
    with pytest.raises(Med3dError):
        start_of(str(tmp_path / "no file.pth"))


def test_names_of_ones_own_need_a_kind_and_come_once(data):
    stage = plan_of({"spine": data["3D_CT"]}).stages[0]
    with pytest.raises(ConfigError, match="spine is none of the published modalities"):
        check_data(stage)
    check_data(stage.updated({"kind": "3d"}))
    with pytest.raises(ConfigError, match="3D_CT is taught twice"):
        PlanConfig.parse({"stages": [{"modality": "3D_CT", "dataset": "a"}] * 2})
    with pytest.raises(ConfigError, match="pattern"):
        PlanConfig.parse({"stages": [{"modality": "../up", "dataset": "a"}]})


def test_a_moved_plan_finds_its_buffers_and_weights_again(data, here, tmp_path):
    (tmp_path / "one").mkdir()
    plan = plan_of(some(data, "1D_text", "2D_xray", "3D_CT"), steps=2)
    run = plans.create(tmp_path / "one" / "plan", plan.updated({"stages": plan.model_dump()["stages"][:2]}))
    assert plans.main([str(run.path)]) == 0
    plans.change_plan(run, plan)
    start = from_run(run.path / "stages" / "02-2D_xray")
    third = plans._prepared(run.path / "stages" / "03-3D_CT", plans.read_plan(run.path), 3, start)
    assert third.config_path.read_text().count("one/plan") == 4  # weights, two buffers, the words of the reports
    (tmp_path / "one").rename(tmp_path / "two")
    assert plans.main([str(tmp_path / "two" / "plan")]) == 0
    assert len(read(tmp_path / "two" / "plan")) == 6
