"""The base of every configuration model: frozen, strict, and helpful about typing errors."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from training_backend.errors import ConfigError


class ConfigModel(BaseModel):
    """Frozen pydantic model whose unknown keys are errors that name the nearest known key.

    A field's description is the string below it; it becomes the help of the command line, the tooltip of the form and
    the text of the reference page. ``Field(json_schema_extra=ui(...))`` adds hints for the form only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)

    @classmethod
    def parse(cls, values: Any, where: str = "") -> Self:
        """Validated model, or a `ConfigError` that says which key is wrong and what is nearest to it."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(_sentence(cls, error, where)) from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Model read from a YAML file."""
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"The configuration {path} cannot be read: {error.strerror}.") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is not valid YAML: {error}") from error
        return cls.parse(values or {}, where=str(path))

    def to_yaml(self) -> str:
        """YAML text that `load` reads back to an equal model."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def updated(self, changes: dict[str, Any]) -> Self:
        """Copy with nested `changes` merged in, validated as a whole."""
        return self.parse(merged(self.model_dump(), changes))


def ui(
    *, advanced: bool = False, label: str = "", widget: str = "", unit: str = "", hidden: bool = False
) -> dict[str, Any]:
    """Hints for the form of a field: fold it under *Advanced*, its label, a special control, its unit, none at all."""
    return {"ui": {"advanced": advanced, "label": label, "widget": widget, "unit": unit, "hidden": hidden}}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with the nested dictionary `changes` laid over it; neither is modified."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _sentence(model: type[BaseModel], error: ValidationError, where: str) -> str:
    parts = []
    for problem in error.errors():
        location = ".".join(str(piece) for piece in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _known_keys(model, problem["loc"])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}."
            parts.append(f"unknown setting {location!r}; {advice}")
        else:
            text = str(problem.get("ctx", {}).get("error") or problem["msg"])
            parts.append(f"{location or 'configuration'}: {text} (found {problem.get('input')!r})")
    prefix = f"{where}: " if where else ""
    return prefix + "; ".join(parts)


def _known_keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    current: Any = model
    for key in location[:-1]:
        field = getattr(current, "model_fields", {}).get(key)
        if field is None:
            break
        current = field.annotation
    return list(getattr(current, "model_fields", model.model_fields))
