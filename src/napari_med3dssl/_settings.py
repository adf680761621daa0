"""Choices that are remembered between sessions: a small JSON file in the user's configuration folder."""

from __future__ import annotations

import json
import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

from platformdirs import user_config_path

from training_backend.files import write_json

log = logging.getLogger(__name__)


def settings_path() -> Path:
    """File of the choices: beside ``MED3DSSL_RUNS`` when that is set, else in the user's configuration folder."""
    runs = os.environ.get("MED3DSSL_RUNS")
    folder = Path(runs).parent if runs else user_config_path("med3dssl", appauthor=False)
    return folder / "workbench.json"


class Settings:
    """Remembered choices by name; written at once, and never the reason for an error."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or settings_path()
        self._values = self._read()

    def get(self, name: str, default: Any = None) -> Any:
        """Remembered choice, or `default`."""
        return self._values.get(name, default)

    def set(self, name: str, value: Any) -> None:
        """Remember a choice (plain JSON types)."""
        if self._values.get(name) == value:
            return
        self._values[name] = value
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self._values)
        except OSError as error:
            log.warning("The choice %s cannot be remembered in %s: %s", name, self.path, error)

    def recent(self, name: str, value: str, limit: int = 8) -> list[str]:
        """Put `value` first in the remembered list `name` and return that list."""
        known = [item for item in self.get(name, []) if item != value]
        self.set(name, [value, *known][:limit])
        return list(self._values[name])

    def _read(self) -> dict[str, Any]:
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("The remembered choices in %s cannot be read: %s", self.path, error)
            return {}
        return dict(values) if isinstance(values, dict) else {}


def preference(name: str, default: Any) -> Any:
    """Value of ``group.key`` on napari's Preferences page of this plugin, or `default` where there is no such page."""
    group, _, key = name.partition(".")
    return getattr(getattr(_page(), group, None), key, default)


@cache
def _page() -> Any | None:
    """This plugin's page of napari's Preferences; None before napari 0.9 and where the plugin is not installed."""
    try:
        from napari.settings import get_plugin_settings

        return get_plugin_settings("napari-med3dssl")
    except (ImportError, AttributeError, KeyError, ValueError):
        return None
