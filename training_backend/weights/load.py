"""Rebuilds a trained network, with all that is needed to feed it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from training_backend.config import RunConfig
from training_backend.config.registry import method as find_method
from training_backend.config.registry import task as find_task
from training_backend.data.prepare import InputProfile
from training_backend.errors import WeightsError
from training_backend.methods.base import Encoder, Method
from training_backend.weights.report import ImportReport
from training_backend.weights.source import Source, open_source
from training_backend.weights.transfer import transfer

if TYPE_CHECKING:
    from torch import nn


@dataclass
class LoadedModel:
    """A network ready to use.

    Attributes:
        module: in evaluation mode: the pre-training network, a bare encoder, or encoder and task.
        config: that built it.
        profile: how scans become its input.
        card: what is known about it.
        report: what became of every tensor of the file.
        source: what named it, as of `load_model`.
    """

    module: nn.Module
    config: RunConfig
    profile: InputProfile
    card: dict[str, Any]
    report: ImportReport
    source: str = ""

    @property
    def kind(self) -> str:
        """One of "pretrain", "encoder" and "finetune"."""
        return self.report.kind

    @property
    def method(self) -> Method:
        """Method of the encoder."""
        return find_method(self.config.method.name)

    @property
    def encoder(self) -> Encoder:
        """The encoder, sharing the weights of `module`."""
        if self.kind == "pretrain":
            return self.method.encoder(self.module)
        return cast(Encoder, self.module if self.kind == "encoder" else self.module.encoder)

    @cached_property
    def teacher(self) -> nn.Module:
        """The network that labelled for this one, where it is kept; see `weights.teacher.load_teacher`."""
        from training_backend.weights.teacher import load_teacher

        return load_teacher(self)


def load_model(source: str | Path, device: str = "cpu", *, changes: Mapping[str, Any] | None = None) -> LoadedModel:
    """Network of a run, a model folder, the authors' file or a zoo entry.

    Args:
        source: see `open_source`.
        device: where to put it.
        changes: nested changes to the stored or inferred configuration, ``{"method": {"heads": 8}}`` say.

    Raises:
        WeightsError: unusable file, or tensors that its network needs are not in it.
    """
    found = open_source(source, changes)
    module = _build(found)
    report = transfer(module, found, found.config)
    optional = getattr(module, "optional", ())
    lacking = [*(name for name in report.missing if name not in optional), *(name for name, *_ in report.mismatched)]
    if lacking and found.kind != "encoder":
        raise WeightsError(
            f"{source} lacks {len(lacking)} tensors of its network: {', '.join(lacking[:4])}.",
            "Copy or export it again; it may be the work of another version.",
        )
    module.to(device).eval()
    return LoadedModel(module, found.config, found.profile, found.card, report, str(source))


def _build(source: Source) -> nn.Module:
    """Network of `source` with fresh weights; the caller's random numbers are not used up."""
    import torch

    method, config = find_method(source.config.method.name), source.config
    with torch.random.fork_rng(devices=[]):
        if source.kind == "pretrain":
            return method.build(config)
        encoder = method.build_encoder(config)
        if source.kind == "encoder" or config.task is None:
            return cast("nn.Module", encoder)
        return find_task(config.task.name).build(config, encoder)
