"""Files that nnU-Net starts from: names, aliases, channels, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from training_backend.errors import WeightsError
from training_backend.nn.plain_unet import PlainUnet, with_aliases
from training_backend.weights.nnunet import export_nnunet, plain_sizes

FEATURES = (4, 6, 8)


def plain(folder: Path, wrapper: str = "", prefix: str = "", **options: Any) -> tuple[Path, PlainUnet]:
    torch.manual_seed(0)
    network = PlainUnet(1, 3, FEATURES, **options)
    state: dict[str, Any] = {prefix + name: tensor for name, tensor in with_aliases(network.state_dict()).items()}
    path = folder / "weights.pth"
    torch.save({wrapper: state, "current_epoch": 3} if wrapper else state, path)
    return path, network


def read(path: Path) -> dict[str, torch.Tensor]:
    content = torch.load(path, weights_only=True)
    assert set(content) == {"network_weights"}
    return content["network_weights"]


@pytest.mark.parametrize(("wrapper", "prefix"), [("", ""), ("network_weights", ""), ("state_dict", "module.")])
def test_plain_networks_are_written_whole_with_all_names_that_nnunet_asks_for(
    wrapper: str, prefix: str, tmp_path: Path
) -> None:
    path, network = plain(tmp_path, wrapper, prefix)
    report = export_nnunet(path, tmp_path / "out.pth")
    stored, wanted = read(tmp_path / "out.pth"), with_aliases(network.state_dict())
    assert set(stored) == set(wanted)
    assert all(torch.equal(stored[name], wanted[name]) for name in wanted)
    assert "decoder.encoder.stages.2.0.convs.1.all_modules.1.bias" in stored
    assert (report.network, report.features, report.channels) == ("PlainConvUNet", FEATURES, 1)
    assert "-pretrained_weights" in str(report)
    assert plain_sizes(network.state_dict()) == (FEATURES, 2)


def test_weights_are_spread_over_more_channels_so_that_features_stay(tmp_path: Path) -> None:
    path, network = plain(tmp_path)
    export_nnunet(path, tmp_path / "out.pth", channels=3)
    wide = PlainUnet(3, 3, FEATURES)
    wide.load_state_dict(
        {name: tensor for name, tensor in read(tmp_path / "out.pth").items() if name in wide.state_dict()}
    )
    volume = torch.rand(1, 1, 8, 8, 8)
    with torch.no_grad():
        assert torch.allclose(wide(volume.repeat(1, 3, 1, 1, 1))[0], network(volume)[0], atol=1e-5)


def test_an_encoder_without_its_decoder_is_not_enough(tmp_path: Path) -> None:
    path, network = plain(tmp_path)
    torch.save({name: t for name, t in network.state_dict().items() if name.startswith("encoder.")}, path)
    with pytest.raises(WeightsError, match=r"3 stages needs decoder\..*more tensors"):
        export_nnunet(path, tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_swin_networks_of_voco_are_written_by_their_bare_names(tmp_path: Path) -> None:
    names = ("swinViT.patch_embed.proj.weight", "encoder1.layer.conv1.conv.weight", "encoder10.layer.conv1.conv.weight")
    state = {f"module.backbone.{name}": torch.rand(4, 1, 2, 2, 2) for name in names}
    state["module.student.layer1.0.weight"] = torch.rand(2, 2)
    torch.save({"state_dict": state}, tmp_path / "voco.pt")
    report = export_nnunet(tmp_path / "voco.pt", tmp_path / "out.pth", channels=2)
    stored = read(tmp_path / "out.pth")
    assert set(stored) == set(names)  # heads of pre-training stay behind
    assert stored[names[0]].shape == (4, 2, 2, 2, 2)
    assert torch.allclose(stored[names[0]].sum(1), state[f"module.backbone.{names[0]}"].sum(1))
    assert "nnUNetTrainer_swin_pre" in str(report)


def test_other_networks_and_endings_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="know its own plain U-Net and VoCo's SwinUNETR"):
        export_nnunet(tmp_path / "other.pth", tmp_path / "out.pth")
    path, _ = plain(tmp_path)
    with pytest.raises(WeightsError, match=r"reads \.pth and \.pt, not \.safetensors"):
        export_nnunet(path, tmp_path / "out.safetensors")
