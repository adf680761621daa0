"""An earlier modality under a later encoder: named by the decoder that a run kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from training_backend.config.presets import pretrain_config
from training_backend.config.registry import method
from training_backend.data.prepare import InputProfile
from training_backend.errors import ConfigError, WeightsError
from training_backend.evaluate.reconstruct import check_reconstructs
from training_backend.jobs.sources import model_facts
from training_backend.weights.decoders import keep
from training_backend.weights.earlier import earlier_decoder, is_earlier
from training_backend.weights.load import load_model
from training_backend.weights.save import save_model
from training_backend.weights.source import locate

SMALL = {"embed_dim": 24, "depth": 1, "heads": 2, "mlp_dim": 32, "decoder_depth": 1}


def stage(folder: Path, modality: str, **changes: Any) -> tuple[Any, Any]:
    """A freshly initialised stage, saved as its run would."""
    config = pretrain_config("medcoss", "tiny", Path("d"), {"method": {"modality": modality, **SMALL, **changes}})
    torch.manual_seed(len(modality) + len(changes))
    network = method("medcoss").build(config).eval()
    profile = InputProfile(size=config.data.size, crop_body=False, view="crop", intensity=config.data.intensity)
    card = {"kind": "pretrain", "config": config.model_dump(mode="json"), "profile": profile.model_dump(mode="json")}
    save_model(folder, network, {**card, "teacher": {"file": "teacher.safetensors"}})
    return network, config


def test_the_encoder_is_the_later_one_and_the_decoder_that_of_its_stage(tmp_path: Path) -> None:
    first, config = stage(tmp_path / "1", "3D_CT")
    keep(tmp_path / "1", tmp_path / "1", config)
    second, later = stage(tmp_path / "2", "2D_xray", encodes=("3d",))
    keep(tmp_path / "2", tmp_path / "2", later, tmp_path / "1")
    path = tmp_path / "2" / "decoders" / "3D_CT.safetensors"
    assert is_earlier(path)
    loaded = load_model(path)
    assert (loaded.kind, loaded.profile.size, loaded.encoder.learns) == ("pretrain", (16, 48, 48), "3d")
    assert loaded.profile.intensity.high == 1024
    mine = loaded.module.state_dict()
    for name, tensor in second.state_dict().items():
        if name.startswith(("fused_encoder", "video_embed.embeddings_3D", "cls_token")):
            torch.testing.assert_close(mine[name], tensor)
    for name, tensor in first.state_dict().items():
        if name.startswith(("decoder", "mask_token")):
            torch.testing.assert_close(mine[name], tensor)
    facts = model_facts(str(path))
    assert facts is not None
    assert (facts.method, facts.kind, facts.task) == ("medcoss", "pretrain", None)
    assert "teacher" not in loaded.card  # which belongs to the later stage
    volume = torch.rand(1, 1, 16, 48, 48)
    pictures = method("medcoss").preview(loaded.module, volume, {}, torch.Generator())
    assert pictures[2].array.shape == (16, 48, 48)


def test_a_plan_stands_for_its_last_stage_and_names_the_modalities_it_kept(tmp_path: Path) -> None:
    one, two = (tmp_path / "plan" / "stages" / name for name in ("01-3D_CT", "02-3D_MR"))
    _, config = stage(one, "3D_CT")
    keep(one, one, config)
    _, later = stage(two, "3D_MR")
    keep(two, two, later, one)
    (tmp_path / "plan" / "run.json").touch()
    assert locate(tmp_path / "plan") == two / "model.safetensors"
    assert earlier_decoder(tmp_path / "plan", "3D_CT") == two / "decoders" / "3D_CT.safetensors"
    assert earlier_decoder(one, "3D_CT").parent == one / "decoders"
    with pytest.raises(WeightsError, match="has no decoder of 2D_path; it has those of 3D_CT, 3D_MR"):
        earlier_decoder(two, "2D_path")
    alone, _ = stage(tmp_path / "alone", "3D_CT")
    torch.save({"model": alone.state_dict()}, tmp_path / "authors.pth")
    with pytest.raises(WeightsError, match="Published files reconstruct what their last stage taught and nothing else"):
        earlier_decoder(tmp_path / "authors.pth", "3D_CT")


def test_what_a_run_did_not_keep_is_refused(tmp_path: Path) -> None:
    _, config = stage(tmp_path / "1", "3D_CT")
    keep(tmp_path / "1", tmp_path / "1", config)
    own = load_model(tmp_path / "1" / "decoders" / "3D_CT.safetensors")  # its own is the whole model
    torch.testing.assert_close(own.module.state_dict(), load_model(tmp_path / "1").module.state_dict())
    path = tmp_path / "1" / "decoders" / "2D_path.safetensors"
    assert not is_earlier(path)
    with pytest.raises(WeightsError):
        load_model(path)


def test_a_decoder_of_reports_draws_no_scan(tmp_path: Path) -> None:
    stage(tmp_path / "1", "3D_CT")
    loaded = load_model(tmp_path / "1")
    check_reconstructs(loaded)
    reports = pretrain_config("medcoss", "tiny", Path("d"), {"method": {"modality": "1D_text"}})
    with pytest.raises(ConfigError, match="guesses words of reports and draws no scans"):
        check_reconstructs(replace(loaded, config=reports))
