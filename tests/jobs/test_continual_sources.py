"""What the viewer offers as models of a plan, and what a stage of colour images reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from training_backend.config import IngestConfig
from training_backend.config.plan import PlanConfig
from training_backend.data.ingest import ingest
from training_backend.data.phantom_modalities import write_modality
from training_backend.files import write_json
from training_backend.jobs.launcher import RunDirectory
from training_backend.jobs.plan import create
from training_backend.jobs.plan_stages import Start, read_plan, stage_config, stage_folder
from training_backend.jobs.registry import runs_root
from training_backend.jobs.sources import continual_sources, earlier_sources, modalities, run_sources


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A plan of X-ray and pathology, both stages of which have left a model and decoders."""
    monkeypatch.setenv("MED3DSSL_RUNS", str(tmp_path / "runs"))
    stages = []
    for modality in ("2D_xray", "2D_path"):
        dataset = tmp_path / modality
        ingest(write_modality(tmp_path / "source" / modality, modality, 3, size=32), dataset, IngestConfig(workers=0))
        stages.append({"modality": modality, "dataset": dataset})
    run = create(runs_root() / "both", PlanConfig.parse({"name": "both", "preset": "tiny", "stages": stages}))
    for number, stage in enumerate(read_plan(run.path).stages, 1):
        config = stage_config(read_plan(run.path), number, Start())
        folder = stage_folder(run.path, number, stage)
        RunDirectory.create(folder, config)
        (folder / "model.safetensors").touch()
        write_json(folder / "card.json", {"config": config.model_dump(mode="json")})
        (folder / "decoders").mkdir()
        for kept in [one.modality for one in read_plan(run.path).stages][:number]:
            (folder / "decoders" / f"{kept}.safetensors").touch()
    return run


def test_stages_and_earlier_modalities_are_offered_by_name(plan: RunDirectory) -> None:
    stages = plan.path / "stages"
    titles = {source.title: source.source for source in run_sources("pretrain")}
    assert titles == {"both · 02-2D_path": str(stages / "02-2D_path"), "both · 01-2D_xray": str(stages / "01-2D_xray")}
    (earlier,) = earlier_sources()
    assert earlier.title == "both · 02-2D_path as 2D_xray"
    assert earlier.source == str(stages / "02-2D_path" / "decoders" / "2D_xray.safetensors")
    found = [source.title for source in continual_sources() if source.kind != "zoo"]
    assert found == ["both (this plan goes on)", "both · 02-2D_path", "both · 01-2D_xray"]


def test_colour_images_are_read_in_the_authors_order_unless_the_stage_says_otherwise(plan: RunDirectory) -> None:
    described = read_plan(plan.path)
    assert stage_config(described, 1, Start()).data.contrasts == ()
    assert stage_config(described, 2, Start()).data.contrasts == ("blue", "green", "red")
    values = described.model_dump()
    values["stages"][1]["settings"] = {"data": {"contrasts": ("red",)}}
    assert stage_config(PlanConfig.parse(values), 2, Start()).data.contrasts == ("red",)
    assert modalities()["2D_path"] == "2d"
