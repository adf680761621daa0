"""How long it takes to find scans among stored ones: by latents, and by latents with the gates behind them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np


def main(
    scans: int = 10_000, latent: int = 768, shortlist: int = 100, tokens: int = 27, rounds: int = 20, threads: int = 1
) -> dict[str, Any]:
    """Median and largest milliseconds of a search among random latents.

    Args:
        scans: stored.
        latent: numbers of a latent.
        shortlist: scans that two layers of gates, 768 channels wide, rank in the second stage.
        tokens: of a scan.
        rounds: searches of each kind.
        threads: of PyTorch.
    """
    import torch
    from transformers import BertConfig, BertModel

    from training_backend.evaluate.retrieval import LatentStore
    from training_backend.evaluate.two_stage import gated_scores
    from training_backend.nn.text_match import TextMatch

    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    store = LatentStore.of([str(n) for n in range(scans)], rng.standard_normal((scans, latent), np.float32))
    text = BertModel(BertConfig(vocab_size=64, hidden_size=768, num_hidden_layers=1, num_attention_heads=12))
    match = TextMatch(None, None, text, None, latent, (tokens, 768), gates=2).eval()
    kept = rng.standard_normal((shortlist, tokens, 768), np.float32).astype(np.float16)
    row = torch.randn(1, 768, generator=torch.Generator().manual_seed(0))

    def first() -> None:
        store.search(rng.standard_normal(latent, np.float32), shortlist)

    def second() -> None:
        gated_scores(match, kept, row)

    return {"scans": scans, "latent": latent, "shortlist": shortlist, "threads": threads} | {
        f"{name}_ms": _milliseconds(stage, rounds) for name, stage in (("latents", first), ("gates", second))
    }


def _milliseconds(search: Callable[[], None], rounds: int) -> dict[str, float]:
    search()
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        search()
        taken.append(1000 * (time.perf_counter() - began))
    return {"median": round(float(np.median(taken)), 2), "largest": round(max(taken), 2)}
