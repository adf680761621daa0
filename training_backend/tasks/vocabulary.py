"""Findings named by words: "X." against "not X.", compared with the volume (CT-CLIP VocabFine)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field

from training_backend.config import ui
from training_backend.methods.base import Batch, StepOutput
from training_backend.tasks.base import CaseResult, Progress, Task, Told
from training_backend.tasks.text_match import CXR_BERT, VOLUMES, MatchConfig, build_match, contained, layer_id
from training_backend.tasks.text_views import FINDINGS

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from torch import Tensor, nn

    from training_backend.config import RunConfig
    from training_backend.methods.base import Encoder
    from training_backend.nn.text_match import TextMatch

CT_RATE = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)
"""The 18 findings of CT-RATE."""


class VocabularyConfig(MatchConfig):
    """Settings of vocabulary classification."""

    name: str = Field("vocabulary", json_schema_extra=ui(hidden=True))
    findings: tuple[str, ...] = ()
    """One finding per label of the dataset, in its order; empty takes the names of the dataset's labels."""
    latents_only: bool = False
    """Learn only the maps from tokens and texts to latents, as published; needs encoders that are trained already."""
    group: int = Field(6, ge=1, json_schema_extra=ui(advanced=True))
    """Findings compared at a time (published: 6); sets memory against speed and changes no number."""


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "task": {"latent": 64, "text": {"width": 96, "longest": 32}},
        "data": VOLUMES["tiny"],
        "optim": {"epochs": 1000, "max_steps": 200, "batch_size": 8, "lr": 5e-4},
    },
    "small": {
        "data": VOLUMES["small"],
        "optim": {"epochs": 40, "batch_size": 8, "lr": 2e-4},
    },
    "base": {
        "data": VOLUMES["base"],
        "optim": {"epochs": 40, "batch_size": 8, "lr": 1e-4},
    },
    "published": {
        "task": {
            "project": 768,
            "norm": "none",
            "findings": CT_RATE,
            "latents_only": True,
            "text": CXR_BERT,
        },
        "data": VOLUMES["ct-rate"],
        "optim": {"epochs": 10, "batch_size": 1, "lr": 1e-5, "weight_decay": 0.1, "betas": (0.9, 0.999)},
    },
}
"""Published: warm-up of 10,000 steps, whatever their share."""


def build(run: RunConfig, encoder: Encoder) -> nn.Module:
    """Network of latents; the findings are the configuration's, or those of the dataset."""
    from training_backend.nn.text_match import prompts

    config = _config(run)
    names = config.findings or _dataset_findings(run)
    network = build_match(
        run, encoder, lambda: [text for name in names for text in prompts(name)], latents_only=config.latents_only
    )
    network.findings = names  # type: ignore[assignment]
    return network


def training_step(network: nn.Module, batch: Batch, generator: torch.Generator) -> StepOutput:
    """Squared error of the two probabilities of each finding, as published."""
    import torch

    from training_backend.errors import DataError

    match, config = cast("TextMatch", network), cast("VocabularyConfig", network.task)
    names: tuple[str, ...] = network.findings  # type: ignore[assignment]
    found = 0 if batch.target is None else batch.target.reshape(len(batch.volume), -1).shape[1]
    if batch.target is None or found != len(names):
        raise DataError(
            f"The task has {len(names)} findings, but the dataset has {found} labels per case.",
            "Name one finding per label in task.findings.",
        )
    target = batch.target.reshape(len(batch.volume), -1).float()
    tokens = match.image_tokens(batch.volume)
    parts = [match.presence(tokens, names[i : i + config.group]) for i in range(0, len(names), config.group)]
    present = torch.cat(parts, dim=1).float()
    loss = (present - target).square().mean()  # of both probabilities, which err alike
    right = ((present > 0.5) == (target > 0.5)).float().mean()
    return StepOutput(loss=loss, scalars={"accuracy": right.detach()})


def predict(network: nn.Module, run: RunConfig, volume: Tensor, progress: Progress | None = None) -> Tensor:
    """Probability [K] of each finding of one case [1, C, D, H, W]."""
    import torch

    from training_backend.tasks.base import Cancelled

    if progress is not None and not progress(0.0):
        raise Cancelled
    match = cast("TextMatch", network)
    with torch.inference_mode():
        present = match.presence(match.image_tokens(volume), network.findings)[0].float()  # type: ignore[arg-type]
    if progress is not None:
        progress(1.0)
    return present


def evaluate(run: RunConfig, results: Sequence[CaseResult]) -> dict[str, float]:
    """AUROC, F1, accuracy and more with 95 % bootstrap intervals; "score" is the AUROC.

    ``best_accuracy``, ``best_f1`` and ``best_precision`` are means over findings at each finding's own threshold, the
    one with the largest sensitivity + specificity on these very cases, as the published tables have them.
    """
    import numpy as np

    from training_backend.evaluate.classification_metrics import at_best_thresholds, classification_report

    found = np.stack([np.asarray(result.prediction, float).ravel() for result in results])
    target = np.stack([np.asarray(result.truth, float).ravel() for result in results])
    names = _config(run).findings or _dataset_findings(run)
    kind = "multilabel" if len(names) > 1 else "binary"
    return classification_report(found, target, kind, names=names) | at_best_thresholds(found, target)


def told(run: RunConfig, output: npt.NDArray[Any]) -> Told:
    """Probability of each finding."""
    names = _config(run).findings or _dataset_findings(run)
    return Told(dict(zip(names, output.tolist(), strict=True)))


def _contained(network: nn.Module, run: RunConfig) -> RunConfig:
    """`run` with findings, architecture and tokeniser."""
    return contained(cast("TextMatch", network), run).updated({"task": {"findings": network.findings}})


def _dataset_findings(run: RunConfig) -> tuple[str, ...]:
    from training_backend.data.dataset import Dataset
    from training_backend.errors import ConfigError

    names = Dataset.open(run.data.dataset).info.target_names
    if not names:
        raise ConfigError(
            "The labels of this dataset have no names to make prompts of.",
            "Name them in task.findings, in their order.",
        )
    return tuple(name.replace("_", " ") for name in names)


def _config(run: RunConfig) -> VocabularyConfig:
    assert isinstance(run.task, VocabularyConfig)
    return run.task


TASK = Task(
    name="vocabulary",
    config=VocabularyConfig,
    title="Findings named by words",
    needs="target",
    presets=PRESETS,
    build=build,
    training_step=training_step,
    predict=predict,
    evaluate=evaluate,
    layer_id=layer_id,  # type: ignore[arg-type]
    told=told,
    contained=_contained,
    views=(FINDINGS,),
)
