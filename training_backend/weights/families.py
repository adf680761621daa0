"""Published checkpoint layouts: which family a file belongs to, and how its tensors map onto our networks.

A family is data. To add one, write a file ``weights/<name>.py`` that defines ``FAMILY``; its name is the `family` of a
`Method`. Files of systems without an importer are still recognised, so that an error can say whose they are, and
methods without one still start from weights of their own.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from training_backend.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

    from training_backend.config import RunConfig

SIGNATURES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "mae3d": (
        "3D-MAE / TANGERINE",
        (r"^cls_token$", r"^patch_embed\.proj\.weight$", r"^blocks\.0\.attn\.qkv\.weight$"),
    ),
    "voco": ("VoCo", (r"(swinViT|swin_vit)\.|encoder10\.layer|^encoder\.stages\.0\.0\.convs",)),
    "ar": (
        "AR-SSL4M",
        (
            r"layers\.0\.self_attn\.q_proj\.weight$",
            r"layers\.0\.post_attention_layernorm",
            r"patchifier\.proj\.weight$",
        ),
    ),
    "medcoss": ("MedCoSS", (r"^fused_encoder\.layers\.0\.",)),
    "mg3d": (
        "MG-3D",
        (r"^(vision_encoder\.)?(layers1\.0\.blocks\.0|down_tr64\.ops\.0)\.|^vision_encoder\.encoder\.stages\.0\.",),
    ),
}
"""Family to title and patterns, each of which must be found among the names of a file."""


@dataclass(frozen=True)
class Described:
    """What a foreign file holds, told from names, shapes and stored settings.

    Attributes:
        kind: "pretrain" (with decoder), "encoder" (without), or "finetune" (with a task's head).
        config: configuration that rebuilds its network.
        notes: sentences on what the file does not tell and was assumed.
    """

    kind: str
    config: RunConfig
    notes: tuple[str, ...] = ()


def same_shape(name: str, tensor: Tensor, shape: tuple[int, ...], old: RunConfig, new: RunConfig) -> Tensor | None:
    """`tensor` where it has the wanted shape, else None."""
    return tensor if tuple(tensor.shape) == shape else None


def plain_name(name: str) -> str:
    """`name` without the prefix that a task gives its encoder."""
    return name.removeprefix("encoder.")


def spread_channels(kernel: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Convolution kernel [E, C, ...] for other channels than it was made for, or None if more than these differ.

    An image that is repeated over all channels gets the features that it got before.
    """
    if (kernel.shape[0], *kernel.shape[2:]) != (shape[0], *shape[2:]):
        return None
    return kernel.mean(dim=1, keepdim=True).expand(shape) * (kernel.shape[1] / shape[1])


@dataclass(frozen=True)
class Family:
    """One published layout; names are the published ones throughout, those of an encoder without any prefix.

    Attributes:
        name: registered name.
        known: pattern of all names that the published files have.
        essential: encoder names that must be found whatever the share.
        canonical: name of a tensor in a file, or in a network of ours, without the prefix of the encoder.
        describe: what a file holds, from its tensors, the settings stored beside them, and the user's changes to the
            configuration; None where the authors' files cannot be read.
        fit: a tensor as a network needs it, or None where that makes no sense; called also when shapes agree.
            Arguments: name, tensor, wanted shape, configuration of the file, configuration of the network.
        asked: of the names of a network's encoder, those that count for the share that a file must have. Arguments:
            names, tensors of the file, configuration of the network.
        conflict: why weights of one configuration mean nothing in another although shapes agree, or "".
        authored: key of the file ("" for a flat one) and tensors under it as the authors write them, from tensors by
            canonical name, their kind and configuration, or None for a head that the authors do not have; none at all
            where their names are ours.
        text: what begins the names of a text model in the files, "" where they have none.
    """

    name: str
    known: str = ".*"
    essential: tuple[str, ...] = ()
    canonical: Callable[[str], str] = plain_name
    describe: Callable[[Mapping[str, Tensor], Mapping[str, Any], Mapping[str, Any]], Described] | None = None
    fit: Callable[[str, Tensor, tuple[int, ...], RunConfig, RunConfig], Tensor | None] = same_shape
    asked: Callable[[set[str], Mapping[str, Any], RunConfig], set[str]] = lambda names, tensors, config: names
    conflict: Callable[[RunConfig, RunConfig], str] = lambda old, new: ""
    authored: Callable[[Mapping[str, Tensor], str, RunConfig], tuple[str, dict[str, Tensor]] | None] | None = None
    text: str = ""

    def named(self, tensors: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
        """`tensors` by canonical name, or a `WeightsError` if two of them would be the same."""
        found = {self.canonical(name): tensor for name, tensor in tensors.items()}
        if len(found) != len(tensors):
            names = sorted(tensors, key=self.canonical)
            first, second = next(pair for pair in pairwise(names) if len({self.canonical(each) for each in pair}) == 1)
            raise WeightsError(f"{file} holds two encoders: {first} and {second} are the same part of a network.")
        return found


def family(name: str) -> Family:
    """The importer called `name`, or one that takes only weights of our own."""
    if name not in importable():
        return Family(name)
    found: Family = importlib.import_module(f"training_backend.weights.{name}").FAMILY
    return found


def importable() -> list[str]:
    """Families whose published files can be read."""
    return [name for name in SIGNATURES if find_spec(f"training_backend.weights.{name}")]


def title(name: str) -> str:
    """Name of the system that a family comes from."""
    return SIGNATURES[name][0] if name in SIGNATURES else name


def identify(names: Iterable[str]) -> str:
    """Family of a file with tensors of these `names`, or "" when none is recognised."""
    listed = list(names)
    for name, (_, patterns) in SIGNATURES.items():
        if all(any(re.search(pattern, each) for each in listed) for pattern in patterns):
            return name
    return ""


def identified(names: Iterable[str], file: str) -> Family:
    """Importer for a file with tensors of these `names`, or a `WeightsError` that says whose file it is."""
    listed = list(names)
    found = identify(listed)
    if not found:
        raise WeightsError(
            f"{file} is a checkpoint of no known system; its tensors are {', '.join(listed[:4])}, ...",
            f"Known are {', '.join(title(name) for name in importable())}, and models saved here.",
        )
    importer = family(found)
    if importer.describe is None:
        raise WeightsError(
            f"{file} is a checkpoint of {title(found)}, which cannot be imported yet.",
            f"Choose weights of {', '.join(title(name) for name in importable())}.",
        )
    return importer
