"""From a click to the heat map over the scan: features through the model process once, then one product per click.

The model process computes the tokens and hands them over as a file that is mapped into memory, as it does for the
window. Every click is then worked out as the window does it: mean of the picked tokens less mean of the excluded ones,
product with all tokens, air darkened, limits of the colours. Drawing on a canvas comes on top and is not measured here.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from training_backend.bench._explore import Clocks, generated_scan, load, model_process, untrained


def main(size: int = 256, clicks: int = 100, overlap: float = 0.0, output: Path | None = None) -> dict[str, Any]:
    """Seconds of the features, of handing them over again, and of the clicks.

    Args:
        size: voxels of the scan along each axis; patches have 8, so 256 gives 32 768 tokens, of 768 numbers.
        clicks: of each kind.
        overlap: of the windows in which the features are computed, which is no part of a click.
        output: folder for model and features; a temporary one where it is missing.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(output or temporary).resolve()
        source = untrained(folder, "wide")
        scan, _ = generated_scan((size, size, size))
        with model_process(folder) as client:
            client.request("load", source=source)
            params: dict[str, Any] = {"source": source, "volumes": [scan], "overlap": overlap}
            first, again = Clocks(client.pid or 0), Clocks(client.pid or 0)
            first.time(lambda: client.request("features", **params))
            for _ in range(3):
                found = again.time(lambda: client.request("features", **params))
            return {
                "load": load(),
                "tokens": list(found["tokens"].shape),
                "features": first.told(),
                "features_again": again.told(),
                **_clicks(found["tokens"], np.asarray(found["body"]), clicks),
            }


def _clicks(tokens: np.ndarray[Any, Any], body: np.ndarray[Any, Any], clicks: int) -> dict[str, Any]:
    from napari_med3dssl.explore_maths import TokenIndex, contrast_limits

    prepared = Clocks()
    index = prepared.time(lambda: TokenIndex(tokens))
    rng = np.random.default_rng(0)

    def heat(likes: int, unlikes: int) -> tuple[np.ndarray[Any, Any], tuple[float, float]]:
        seeds = [tuple(int(rng.integers(n)) for n in tokens.shape[:3]) for _ in range(likes + unlikes)]
        values = index.similarity(seeds[:likes], seeds[likes:])  # type: ignore[arg-type]
        return np.where(body, values, values[body].min()), contrast_limits(values[body])

    answer: dict[str, Any] = {"prepared": prepared.told()}
    for name, likes, unlikes in (("click_one", 1, 0), ("click_like_and_unlike", 3, 2)):
        clocks = Clocks()
        for _ in range(clicks):
            clocks.time(partial(heat, likes, unlikes))
        answer[name] = clocks.told()
    return answer
