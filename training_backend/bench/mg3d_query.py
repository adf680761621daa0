"""From words to a heat map over a whole CT, through the model process as the window asks it.

The scan crosses to the process and is looked at by the image encoder with the first words; after that only words cross,
and what the encoder made of the scan is at hand. Drawing on a canvas comes on top.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from training_backend.bench._explore import Clocks, generated_scan, load, model_process

WORDS = (
    "There is a nodule in the left upper lobe.",
    "No pleural effusion.",
    "The heart is enlarged.",
    "Consolidation in the right lower lobe with air bronchograms.",
    "Calcification of the coronary arteries.",
)


def main(
    shape: tuple[int, int, int] = (300, 512, 512),
    queries: int = 20,
    size: str = "B",
    layers: int = 12,
    output: Path | None = None,
) -> dict[str, Any]:
    """Seconds of the first query, of those after it, and of one after a voxel of the scan was changed.

    Args:
        shape: voxels of the scan along (z, y, x).
        queries: after the first, the sentences of `WORDS` in turn.
        size: of the image encoder, Swin with published settings, which sees 128 x 96 x 128 voxels; weights are random.
        layers: of the text model, 768 channels wide.
        output: folder for the model; a temporary one where it is missing.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(output or temporary).resolve()
        source = _untrained(folder / "models" / f"mg3d-{size}-{layers}", size, layers)
        scan, _ = generated_scan(shape)
        with model_process(folder) as client:
            client.request("load", source=source)

            def ask(text: str) -> Any:
                return client.request("view", source=source, volumes=[scan], name="query", options={"text": text})

            first, again, changed = (Clocks(client.pid or 0) for _ in range(3))
            first.time(partial(ask, WORDS[0]))
            maps = [again.time(partial(ask, WORDS[number % len(WORDS)])) for number in range(1, queries + 1)]
            scan.array[tuple(n // 2 for n in shape)] += 1
            changed.time(partial(ask, WORDS[0]))
        picture = maps[-1]["pictures"][0]
        return {
            "load": load(),
            "map": list(picture["array"].shape),
            "first": first.told(),
            "known": again.told(),
            "changed_scan": changed.told(),
        }


def _untrained(path: Path, size: str, layers: int) -> str:
    """Where a model with random weights lies, made there where it is missing."""
    import torch

    from training_backend.config.presets import pretrain_config
    from training_backend.config.text import TextConfig
    from training_backend.data.prepare import InputProfile
    from training_backend.methods.mg3d import METHOD
    from training_backend.nn.text_encoder import architecture, text_model
    from training_backend.weights.save import save_model

    if not (path / "model.safetensors").exists():
        torch.manual_seed(0)
        language, tokeniser = text_model(TextConfig(width=768, layers=layers, heads=12), WORDS)
        text = {"architecture": architecture(language), "tokeniser": tokeniser.to_json(), "source": ""}
        config = pretrain_config("mg3d", "published", Path(), {"method": {"size": size, "text": text}})
        profile = InputProfile(
            size=config.data.size, view=config.data.view, crop_body=False, intensity=config.data.intensity
        )
        told = {"config": config.model_dump(mode="json"), "profile": profile.model_dump(mode="json")}
        save_model(path, METHOD.build(config), {"kind": "pretrain", **told})
    return str(path)
