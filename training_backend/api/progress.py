"""The bar that long commands draw."""

from __future__ import annotations

from typing import Any


def progress_bar(label: str) -> Any:
    """Progress function that draws a bar on standard error."""
    from tqdm import tqdm

    bar = tqdm(total=1.0, desc=label, bar_format="{l_bar}{bar}| {elapsed}", mininterval=1.0, delay=0.5)

    def progress(share: float) -> bool:
        bar.update(share - bar.n)
        return True

    return progress
