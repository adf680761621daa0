"""A registration network on any encoder: two scans in, a displacement for every voxel out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from training_backend.nn.pyramid_decoder import DecodedVoxels
from training_backend.nn.registration import DisplacementHead
from training_backend.nn.unetr import Unetr

if TYPE_CHECKING:
    from training_backend.methods.base import Encoder


def registration_net(
    encoder: Encoder, *, channels: Sequence[int] = (16, 32, 64, 128), stem_stride: int = 1, freeze: bool = False
) -> Unetr:
    """Network whose only output is the displacement [B, 3, D, H, W] in voxels along (D, H, W) of pairs [B, 2, D, H, W].

    Args:
        encoder: takes two channels, the moving scan and the fixed one; gives tokens or a pyramid.
        channels: of the decoder's levels, fine to coarse.
        stem_stride: voxels per axis of one position of the finest level; with 2 displacements are learnt for every
            second voxel and interpolated, which is about six times faster and smoother.
        freeze: keep the encoder as it is.
    """
    network = Unetr(encoder, 3, channels=channels, stem_stride=stem_stride, freeze=freeze)
    head = DisplacementHead(channels[0])
    network.head = head if stem_stride == 1 else nn.Sequential(head, _Enlarged(stem_stride))
    return network


def published_registration_net(encoder: Encoder, *, freeze: bool = False) -> DecodedVoxels:
    """The same network with the decoder of SwinUNETR, as VoCo's authors register."""
    network = DecodedVoxels(encoder, freeze)
    network.head = DisplacementHead(network.channels)
    return network


class _Enlarged(nn.Module):
    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=self.factor, mode="trilinear", align_corners=False)
