"""The page for authors of methods: its example draws, and the views that it lists are those there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from training_backend.config import ConfigModel, ui
from training_backend.config.presets import pretrain_config
from training_backend.config.registry import method, methods
from training_backend.methods.base import Frame, ModelView, PreviewArray

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "views.md"


def test_the_example_draws() -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {
        "ConfigModel": ConfigModel,
        "Field": Field,
        "Frame": Frame,
        "ModelView": ModelView,
        "PreviewArray": PreviewArray,
        "ui": ui,
    }
    exec(code, names)
    chosen = method("mae3d")
    changes = {"data": {"size": (8, 8, 16)}, "method": {"patch_size": (4, 4, 4)}}
    encoder: Any = chosen.encoder(chosen.build(pretrain_config("mae3d", "tiny", Path(), changes)).eval())
    view = names["SHINE"]
    volume = torch.rand(1, 1, 8, 8, 16)
    with torch.inference_mode():
        [frame] = view.draw(encoder, volume, view.options(power=2.0), torch.Generator())
        tokens = encoder.encode(volume).tokens[0]
    [picture] = frame.pictures
    np.testing.assert_allclose(picture.array.ravel(), tokens.norm(dim=-1) ** 2, rtol=1e-5)
    assert picture.array.shape == (2, 2, 4)


def test_every_method_is_told_of() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in methods():
        assert f"| `{name}` |" in text
