"""Finding volumes by their reports and the reverse: latents of both that agree for pairs (CT-CLIP)."""

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
    from training_backend.data.manifest import CaseRecord
    from training_backend.methods.base import Encoder
    from training_backend.nn.text_match import TextMatch


class RetrievalConfig(MatchConfig):
    """Settings of retrieval."""

    name: str = Field("retrieval", json_schema_extra=ui(hidden=True))
    latent: int = Field(256, ge=2, json_schema_extra=ui(advanced=True))
    """Numbers of a latent."""
    findings: tuple[str, ...] = ()
    """Findings that predictions give a probability of without having learnt them ("Pleural effusion"): softmax over the
    prompts "X." and "not X."."""
    shortlist: int = Field(100, ge=1, json_schema_extra=ui(advanced=True))
    """With gates: volumes that the latents choose for each report, which the gates then rank in an evaluation. The
    authors send every report with every volume through the gates."""
    freeze_encoder: bool = False
    """Train text encoder and latents alone."""
    temperature: float = Field(2.66, json_schema_extra=ui(advanced=True))
    """Start of the learnt temperature: scores are cosines times its exponential. Published: 1."""


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "task": {"latent": 64, "text": {"width": 96, "longest": 96}},
        "data": VOLUMES["tiny"],
        "optim": {"epochs": 1000, "max_steps": 300, "batch_size": 16, "lr": 5e-4},
    },
    "small": {
        "data": VOLUMES["small"],
        "optim": {"epochs": 60, "batch_size": 32, "lr": 2e-4},
    },
    "base": {
        "data": VOLUMES["base"],
        "optim": {"epochs": 60, "batch_size": 32, "lr": 1e-4},
    },
    "published": {
        "task": {
            "latent": 768,
            "project": 768,
            "norm": "none",
            "temperature": 1.0,
            "text": CXR_BERT,
        },
        "data": VOLUMES["ct-rate"],
        "optim": {"epochs": 10, "batch_size": 8, "lr": 1e-5, "weight_decay": 0.1, "betas": (0.9, 0.999)},
    },
}
"""All pairs of a batch are compared, so micro-batches are as large as the batch unless memory runs out."""


def build(run: RunConfig, encoder: Encoder) -> nn.Module:
    """Network of latents that all learn."""
    from training_backend.data.reports import training_reports

    return build_match(run, encoder, lambda: training_reports(run), freeze_encoder=_config(run).freeze_encoder)


def training_step(network: nn.Module, batch: Batch, generator: torch.Generator) -> StepOutput:
    """Symmetric cross entropy of the pairs of a batch, by latents alone and, where there are gates, through these."""
    import torch

    from training_backend.errors import ConfigError, DataError
    from training_backend.nn.text_match import contrast, contrast_of

    match = cast("TextMatch", network)
    texts = batch.extra.get("texts")
    if not texts:
        raise DataError("This task needs a report for each case, but the batch has none.", "Add a Report column.")
    if len(texts) < 2:
        raise ConfigError(
            "Matching reports to volumes compares the cases of a batch, but this batch has 1.",
            "Raise optim.batch_size and engine.micro_batch to 2 or more.",
        )
    tokens, rows = match.image_tokens(batch.volume), match.text_rows(texts)
    images, reports = match.image_latents(tokens), match.text_latents(rows)
    same = torch.tensor([[mine == other for other in texts] for mine in texts], device=images.device)
    loss = contrast(images, reports, match.temperature, same)
    scalars = {}
    if len(match.local_img_cross_multihead_attention):
        scalars["through_gates"] = contrast_of(match.table(tokens, rows).float(), same)
        loss = loss + scalars["through_gates"]
    nearest = (images @ reports.T).argmax(1, keepdim=True)
    return StepOutput(loss=loss, scalars={"pairs_right": same.gather(1, nearest).float().mean(), **scalars})


def predict(network: nn.Module, run: RunConfig, volume: Tensor, progress: Progress | None = None) -> Tensor:
    """Latent of one case [1, C, D, H, W] and, after it, the probability of each finding that the settings name."""
    import torch

    from training_backend.tasks.base import Cancelled

    if progress is not None and not progress(0.0):
        raise Cancelled
    match, findings = cast("TextMatch", network), _config(run).findings
    with torch.inference_mode():
        tokens = match.image_tokens(volume)
        parts = [match.image_latents(tokens)[0].float()]
        if findings:
            parts.append(match.presence(tokens, findings)[0].float())
    if progress is not None:
        progress(1.0)
    return torch.cat(parts)


def truth(network: nn.Module, run: RunConfig, case: CaseRecord) -> npt.NDArray[Any]:
    """Latent of a case's report and, after it, the labels of the case where it has some."""
    import numpy as np
    import torch

    match = cast("TextMatch", network)
    with torch.inference_mode():
        latent = match.text_latents(match.text_rows([case.report]))[0].float().cpu().numpy()
    return np.concatenate([latent, np.asarray(case.target or (), np.float32)])


def evaluate(run: RunConfig, results: Sequence[CaseResult]) -> dict[str, float]:
    """Recall at K from text to volume and back, and how alike the labels of neighbouring volumes are.

    Of cases with the same report each is a right answer to it.
    Ranks are those of latents; `evaluate.two_stage` adds those through gates.
    Where the settings name a finding per label of the dataset, the metrics of finding them without having learnt them
    are there too, as ``zero_shot_NAME``. "score" is the mean reciprocal rank from text to volume.
    """
    import numpy as np

    from training_backend.evaluate.classification_metrics import classification_report
    from training_backend.evaluate.retrieval import retrieval_report, shared_labels

    size, findings = _config(run).latent, _config(run).findings
    images = np.stack([result.prediction[:size] for result in results])
    texts = np.stack([result.truth[:size] for result in results])
    groups = np.unique(texts.round(5), axis=0, return_inverse=True)[1].ravel()  # the same report has the same latent
    report = retrieval_report(texts, images, "text_to_volume_", groups=groups)
    report |= retrieval_report(images, texts, "volume_to_text_", groups=groups)
    widths = {len(result.truth) - size for result in results}
    if widths != {0} and len(widths) == 1:
        labels = np.stack([result.truth[size:] for result in results])
        alike = shared_labels(images, labels)
        report |= {"volume_to_volume_overlap": alike} if np.isfinite(alike) else {}
        if labels.shape[1] == len(findings):
            found = np.stack([result.prediction[size:] for result in results])
            kind = "multilabel" if len(findings) > 1 else "binary"
            scores = classification_report(found, labels, kind, names=findings)
            report |= {f"zero_shot_{name}": value for name, value in scores.items() if name != "score"}
    report["score"] = report["text_to_volume_reciprocal_rank"]
    return report


def told(run: RunConfig, output: npt.NDArray[Any]) -> Told:
    """Probabilities of the findings, or the numbers of the latent where none is named."""
    config = _config(run)
    if config.findings:
        return Told(dict(zip(config.findings, output[config.latent :].tolist(), strict=True)))
    return Told({f"latent {index}": value for index, value in enumerate(output.tolist(), 1)})


def _config(run: RunConfig) -> RetrievalConfig:
    assert isinstance(run.task, RetrievalConfig)
    return run.task


TASK = Task(
    name="retrieval",
    config=RetrievalConfig,
    title="Finding volumes by reports",
    needs="text",
    presets=PRESETS,
    build=build,
    training_step=training_step,
    predict=predict,
    evaluate=evaluate,
    layer_id=layer_id,  # type: ignore[arg-type]
    truth=truth,
    told=told,
    contained=contained,  # type: ignore[arg-type]
    views=(FINDINGS,),
)
