"""Makes the rehearsal buffer of a trained stage: features of all its cases, and the few that are worth keeping."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from training_backend.config import RunConfig
from training_backend.config.plan import BufferConfig
from training_backend.data import rehearsal
from training_backend.data.dataset import Dataset
from training_backend.data.loader import ViewLoader
from training_backend.data.manifest import CaseRecord
from training_backend.data.rehearsal import Buffer
from training_backend.data.views import Batch
from training_backend.errors import DataError
from training_backend.files import write_text

if TYPE_CHECKING:
    from torch import Tensor, nn

UNCHANGED = {"flip": (0.0, 0.0, 0.0)}
Progress = Callable[[int, int], None]


def make_buffer(
    network: nn.Module,
    config: RunConfig,
    folder: Path,
    settings: BufferConfig,
    device: str = "cpu",
    progress: Progress = lambda done, total: None,
) -> Buffer:
    """Choose cases of the training split of `config` by the features of `network`, and write them into `folder`.

    Features are the mean of all output tokens of a view that is neither hidden nor changed; of several views of a case,
    their mean. The network is in evaluation mode, so the same buffer comes out again.

    Args:
        network: of `config`, with its words.
        config: of the run; its dataset is where it says.
        folder: of the buffer, made if needed.
        settings: policy and sizes.
        device: on which the features are computed.
        progress: told the views that are done.

    Raises:
        DataError: no case could be read.
        ConfigError: more clusters than cases.
    """
    features, cases = case_features(network, config, device, progress=progress)
    chosen = rehearsal.choose(
        features,
        settings.policy,
        settings.ratio,
        settings.centres,
        clusters=settings.clusters,
        fill=settings.fill,
        seed=config.seed,
    )
    method: Any = config.method
    buffer = rehearsal.make(
        method.modality,
        method.kind,
        Dataset.open(config.data.dataset),
        config.data.model_dump(mode="json"),
        cases,
        chosen,
        policy=settings.policy,
        ratio=settings.ratio,
        seed=config.seed,
    )
    if getattr(network, "words", None) is not None and method.kind == "text":
        from training_backend.methods.medcoss_stage import TOKENIZER

        folder.mkdir(parents=True, exist_ok=True)
        words: Any = network.words
        write_text(folder / TOKENIZER, words.to_json())
    return buffer.save(folder, features, chosen)


def case_features(
    network: nn.Module,
    config: RunConfig,
    device: str = "cpu",
    split: str = "train",
    most: int | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[npt.NDArray[np.float32], list[CaseRecord]]:
    """Features [N, E] of the cases of a split that can be read, at most of the first so many, and these cases."""
    import torch

    loader = fixed_views(config, split)
    if most is not None:
        loader.cases = loader.cases[:most]
        loader.visits = len(loader.cases)
    sums: dict[int, list[Any]] = {}
    network.to(device).eval()
    done = 0
    with torch.inference_mode():
        for views in loader.batches():
            if len(views):
                found = view_features(network, loader.to_batch(views, device)).float().cpu().numpy()
                for key, row in zip(views.keys, found, strict=True):
                    sums.setdefault(key[2], []).append(row)
            done += len(views)
            progress(done, loader.views_per_epoch)
    if not sums:
        raise DataError("No case of the dataset could be read.", "Is the dataset still in its place?")
    order = sorted(sums)
    return np.stack([np.mean(sums[index], axis=0) for index in order]), [loader.cases[index] for index in order]


def view_features(network: Any, batch: Batch) -> Tensor:
    """Mean [B, E] of all output tokens, of the class token and of padding too, as published."""
    if "texts" in batch.extra:
        ids, mask = network.words.rows(batch.extra["texts"], batch.volume.device)
        tokens: Tensor = network.encode_text(ids, mask)
    else:
        tokens = network.encode_image(batch.volume)
    return tokens.mean(dim=1)


def fixed_views(config: RunConfig, split: str) -> ViewLoader:
    """Views of a split, the training split too, once each in order and without changes."""
    batch = min(config.optim.batch_size, config.engine.micro_batch or config.optim.batch_size, 64)
    plain = {"data": {"augment": UNCHANGED, "train_cases": None, "only": None, "order": "exact"}}
    settings = config.updated({**plain, "optim": {"max_steps": None, "batch_size": batch}})
    loader = ViewLoader(Dataset.open(config.data.dataset), settings, split=split)
    loader.split = "val"  # one pass in order, whatever the cases
    return loader
