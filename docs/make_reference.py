"""Writes the reference pages from the code: configuration, methods and tasks. ``--check`` only compares."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from training_backend.config import (
    AugmentConfig,
    ConfigModel,
    DataConfig,
    EngineConfig,
    IngestConfig,
    IntensityConfig,
    LabelledConfig,
    OptimConfig,
    RunConfig,
)
from training_backend.config.plan import BufferConfig, PlanConfig, ProbeConfig, StageConfig
from training_backend.config.presets import PRESETS
from training_backend.config.registry import methods, tasks

FOLDER = Path(__file__).parent / "reference"


def pages() -> dict[str, str]:
    """Text of every generated page by file name."""
    return {"configuration.md": configuration(), "methods.md": method_pages(), "tasks.md": task_pages()}


def configuration() -> str:
    """All configuration models, field by field."""
    models = (
        RunConfig,
        DataConfig,
        IntensityConfig,
        AugmentConfig,
        LabelledConfig,
        OptimConfig,
        EngineConfig,
        IngestConfig,
        PlanConfig,
        StageConfig,
        BufferConfig,
        ProbeConfig,
    )
    parts = [
        "# Configuration",
        "A run is described by one YAML file, `config.yaml` in its directory. Every field is also a flag of "
        "`med3dssl pretrain` and `med3dssl finetune` (`optim.lr` is `--optim.lr`) and a control of the forms. "
        "Unknown keys are errors. A plan of several runs has a file of its own, `plan.yaml`.",
    ]
    parts += [section(model) for model in models]
    return "\n\n".join(parts) + "\n"


def section(model: type[ConfigModel]) -> str:
    """Heading, description and table of one model's fields."""
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        meaning = (field.description or "").replace("\n", " ").replace("|", "\\|")
        rows.append(f"| `{name}` | {type_name(field.annotation)} | {default_text(field)} | {meaning} |")
    summary = (model.__doc__ or "").strip().splitlines()[0]
    return f"## {model.__name__}\n\n{summary}\n\n" + "\n".join(rows)


def type_name(annotation: Any) -> str:
    """A type as a reader would write it."""
    text = getattr(annotation, "__name__", None) if isinstance(annotation, type) else str(annotation)
    text = str(text or annotation)
    for prefix in ("typing.", "training_backend.config.data.", "training_backend.config.run.", "pathlib."):
        text = text.replace(prefix, "")
    if isinstance(annotation, type) and hasattr(annotation, "__args__"):
        text = str(annotation)
    return "`" + text.replace("|", "\\|") + "`"


def default_text(field: Any) -> str:
    """A default as a reader would write it."""
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, ConfigModel):
        return "see below"
    return f"`{value!r}`" if not isinstance(value, Path) else f"`{value}`"


def method_pages() -> str:
    """Every method: card, settings, presets."""
    parts = ["# Methods"]
    for method in methods().values():
        card = method.card
        parts.append(
            f"## {method.name}: {card.title}\n\n{card.summary}\n\nPaper: [{card.paper}]({card.url}). "
            f"Licence of the authors' weights: {card.weights_licence}."
        )
        parts.append(section(method.config).replace("## ", "### ", 1))
        parts += presets(method.presets)
    return "\n\n".join(parts) + "\n"


def task_pages() -> str:
    """Every task: settings, presets."""
    parts = ["# Tasks"]
    for task in tasks().values():
        parts.append(f"## {task.name}: {task.title}")
        parts.append(section(task.config).replace("## ", "### ", 1))
        parts += presets(task.presets)
    return "\n\n".join(parts) + "\n"


def presets(values: Any) -> Iterable[str]:
    """Each preset as the YAML it stands for."""
    for name, preset in values.items():
        body = yaml.safe_dump(plain(preset), sort_keys=False, default_flow_style=None, width=100).strip()
        yield f"Preset `{name}` ({PRESETS.get(name, 'custom')}):\n\n```yaml\n{body}\n```"


def plain(value: Any) -> Any:
    """Tuples and mappings as YAML's own types."""
    if isinstance(value, dict) or hasattr(value, "items"):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def main() -> int:
    """Write the pages, or with ``--check`` report the ones that differ from the code."""
    outdated = []
    for name, text in pages().items():
        path = FOLDER / name
        if "--check" not in sys.argv:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            outdated.append(name)
    if outdated:
        sys.stderr.write(f"Outdated: {', '.join(outdated)}. Run: python docs/make_reference.py\n")
    return 1 if outdated else 0


if __name__ == "__main__":
    sys.exit(main())
