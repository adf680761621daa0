"""Finding scans in two stages: latents choose a few, and the gates between words and tokens rank these.

Scoring every report with every volume through the gates, as MG-3D's authors do, takes N x N passes. Here it takes N
times the length of the shortlist; with a shortlist of all volumes scores and ranks are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from training_backend.errors import ConfigError, DataError
from training_backend.evaluate.retrieval import LatentStore, rank_report
from training_backend.files import atomic
from training_backend.tasks.base import Cancelled, Progress

if TYPE_CHECKING:
    from torch import Tensor

    from training_backend.data.dataset import Dataset
    from training_backend.data.manifest import CaseRecord
    from training_backend.nn.text_match import TextMatch
    from training_backend.weights.load import LoadedModel

LATENTS, TOKENS = "latents.npz", "tokens.npy"


@dataclass(frozen=True)
class ScanStore:
    """Latents of scans, and the tokens that gates look at where a network has any.

    Attributes:
        latents: to search in.
        tokens: [N, L, E] half precision, in the order of the latents; None for networks without gates.
    """

    latents: LatentStore
    tokens: npt.NDArray[np.float16] | None = None

    @classmethod
    def of(cls, match: TextMatch, scans: Iterable[tuple[str, Tensor]]) -> ScanStore:
        """Store of views [1, C, D, H, W] by the name of their scan, looked at one by one on the network's device."""
        names, latents, kept = [], [], []
        for name, volume in scans:
            tokens, latent = looked_at(match, volume)
            names.append(name)
            latents.append(latent)
            if gated(match):
                kept.append(tokens[0].float().cpu().numpy().astype(np.float16))
        return cls(LatentStore.of(names, np.stack(latents)), np.stack(kept) if kept else None)

    def save(self, folder: Path) -> Path:
        """Write ``latents.npz`` and ``tokens.npy``, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.tokens is not None:
            with atomic(folder / TOKENS) as stream:
                np.save(stream, self.tokens)
        self.latents.save(folder / LATENTS)
        return folder

    @classmethod
    def load(cls, folder: Path) -> ScanStore:
        """Store written by `save`; tokens stay on the disk until they are looked at."""
        latents = LatentStore.load(folder / LATENTS)
        if not (folder / TOKENS).is_file():
            return cls(latents)
        try:
            tokens = np.load(folder / TOKENS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / TOKENS} holds no tokens of scans.", "Make the store again.") from error
        if len(tokens) != len(latents.ids):
            raise DataError(
                f"{folder} has tokens of {len(tokens)} scans, but latents of {len(latents.ids)}.",
                "Make the store again.",
            )
        return cls(latents, tokens)


def looked_at(match: TextMatch, volume: Tensor) -> tuple[Tensor, npt.NDArray[np.float32]]:
    """Tokens [1, L, E], on the network's device, and latent [E] of a view [1, C, D, H, W] on any device."""
    with torch.inference_mode():
        tokens = match.image_tokens(volume.to(next(match.parameters()).device))
        latent: npt.NDArray[np.float32] = match.image_latents(tokens)[0].float().cpu().numpy()
    return tokens, latent


def gated(match: TextMatch) -> bool:
    """Whether texts and tokens gate each other before they are compared."""
    return len(match.local_img_cross_multihead_attention) > 0


def store_of(
    model: LoadedModel, dataset: Dataset, folder: Path | None = None, progress: Progress | None = None
) -> ScanStore:
    """Store of all scans of a dataset: that in `folder` if it has just these, else a new one, kept there.

    Raises:
        ConfigError: the model compares no texts with scans.
        DataError: the dataset has no scan.
    """
    if model.config.task is None or model.config.task.name != "retrieval":
        raise ConfigError("This model compares no texts with scans.", "Choose one of the task retrieval.")
    cases = [case for case in dataset.cases() if case.images]
    if not cases:
        raise DataError(f"The dataset {dataset.info.name} has no scan to be found.", "Choose another one.")
    if folder is not None and (folder / LATENTS).is_file():
        known = ScanStore.load(folder)
        same_width = known.latents.latents.shape[1] == getattr(model.config.task, "latent", 0)
        if known.latents.ids == tuple(case.id for case in cases) and same_width:
            return known
        raise DataError(
            f"The store in {folder} was made of other scans, or by another model.", "Choose another folder for it."
        )

    made = ScanStore.of(model.module, _views(model, dataset, cases, progress))  # type: ignore[arg-type]
    if folder is not None:
        made.save(folder)
    return made


def _views(
    model: LoadedModel, dataset: Dataset, cases: Sequence[CaseRecord], progress: Progress | None = None
) -> Iterator[tuple[str, Tensor]]:
    """View [1, C, D, H, W] of each case by its id."""
    from training_backend.data.prepare import stored_input

    for done, case in enumerate(cases):
        if progress is not None and not progress(done / len(cases)):
            raise Cancelled
        yield case.id, torch.from_numpy(stored_input(dataset, case, model.profile).array)[None]


def find_scans(
    match: TextMatch, store: ScanStore, text: str, *, top: int = 10, shortlist: int = 100
) -> list[tuple[str, float]]:
    """The `top` scans that a text fits best, with the cosine of the second stage, or of the first without gates.

    Args:
        match: in evaluation mode.
        store: made with the same network.
        text: a report, or any words.
        top: scans to return.
        shortlist: scans that the gates rank.

    Raises:
        DataError: a text without a word, or a store of a network without gates.
    """
    if not text.strip():
        raise DataError("There are no words to look for.", "Write a sentence, or paste a report.")
    with torch.inference_mode():
        row = match.text_rows([text])
        near = store.latents.search(match.text_latents(row)[0].float().cpu().numpy(), max(top, shortlist))
        if not gated(match):
            return near[:top]
        if store.tokens is None:
            raise DataError("The store holds no tokens, which this model's gates look at.", "Make the store again.")
        places = {name: index for index, name in enumerate(store.latents.ids)}
        scores = gated_scores(match, store.tokens[[places[name] for name, _ in near]], row)
    order = np.argsort(-scores, kind="stable")[:top]
    return [(near[index][0], float(scores[index])) for index in order]


def scans_like(store: ScanStore, name: str, *, top: int = 10) -> list[tuple[str, float]]:
    """The `top` other scans whose latents are nearest to those of the scan called `name`."""
    if name not in store.latents.ids:
        raise DataError(f"The store has no scan called {name!r}.", "Choose one of its scans.")
    latent = store.latents.latents[store.latents.ids.index(name)]
    return [found for found in store.latents.search(latent, top + 1) if found[0] != name][:top]


def scans_resembling(match: TextMatch, store: ScanStore, volume: Tensor, *, top: int = 10) -> list[tuple[str, float]]:
    """The `top` scans whose latents are nearest to that of a view [1, C, D, H, W], one of them or any other."""
    return store.latents.search(looked_at(match, volume)[1], top)


def gated_scores(match: TextMatch, tokens: npt.NDArray[np.floating], row: Tensor) -> npt.NDArray[np.float32]:
    """Cosines [B] of one text with volumes through the gates, of tokens [B, L, E] and the vector [1, W] of the text."""
    with torch.inference_mode():
        seen = torch.from_numpy(np.asarray(tokens, np.float32)).to(row.device)
        cosines = match.scores(seen, row)[:, 0] * (-match.temperature).exp()
        found: npt.NDArray[np.float32] = cosines.float().cpu().numpy()
    return found


def two_stage_scores(
    latents: npt.ArrayLike,
    queries: npt.ArrayLike,
    rescore: Callable[[int, npt.NDArray[np.int64]], npt.NDArray[np.float32]],
    shortlist: int,
) -> npt.NDArray[np.float64]:
    """Scores [N, M] of queries against volumes, to be ranked: all of a shortlist before all others.

    Volumes of the shortlist have what `rescore` says, others their cosine less 4, which no cosine within -1 and 1
    reaches.

    Args:
        latents: unit vectors [M, E] of volumes.
        queries: unit vectors [N, E] of texts.
        rescore: second-stage cosines of a query's number with the numbers of volumes.
        shortlist: volumes that are scored again for each query.
    """
    if shortlist < 1:
        raise ConfigError(f"A shortlist of {shortlist} volumes ranks nothing.", "Choose 1 or more.")
    first = np.asarray(queries, float) @ np.asarray(latents, float).T
    scores = first - 4.0
    number = min(shortlist, first.shape[1])
    for query, row in enumerate(first):
        chosen = np.argsort(-row, kind="stable")[:number]
        scores[query, chosen] = rescore(query, chosen)
    return scores


def gated_report(model: LoadedModel, dataset: Dataset, cases: Sequence[CaseRecord]) -> dict[str, float]:
    """Recall at K and more of finding the volume of each report in two stages, as ``gated_text_to_volume_...``.

    The shortlist is `task.shortlist` long. Empty for models without gates.
    """
    match: TextMatch = model.module  # type: ignore[assignment]
    if not gated(match):
        return {}
    store = ScanStore.of(match, _views(model, dataset, cases))
    with torch.inference_mode():
        rows = torch.cat([match.text_rows([case.report]) for case in cases])
        queries = match.text_latents(rows).float().cpu().numpy()

    def rescore(query: int, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        assert store.tokens is not None  # there are gates
        return gated_scores(match, store.tokens[chosen], rows[query : query + 1])

    shortlist = int(getattr(model.config.task, "shortlist", len(cases)))
    scores = two_stage_scores(store.latents.latents, queries, rescore, shortlist)
    same = {text: number for number, text in enumerate(dict.fromkeys(case.report for case in cases))}
    return rank_report(scores, "gated_text_to_volume_", groups=[same[case.report] for case in cases])
