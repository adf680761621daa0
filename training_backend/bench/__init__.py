"""The measurements that the documentation quotes: ``med3dssl bench NAME ...`` runs one, each module's `main`."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Sequence
from typing import Any

from training_backend.errors import ConfigError


def names() -> list[str]:
    """All measurements."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def main(arguments: Sequence[str]) -> str:
    """Run the measurement named first with the remaining flags; its result as text."""
    import tyro

    name = arguments[0] if arguments else ""
    if name in ("", "-h", "--help"):
        return f"usage: med3dssl bench {{{','.join(names())}}} ..."
    if name not in names():
        raise ConfigError(f"There is no measurement {name!r}.", f"Choose one of {', '.join(names())}.")
    module = importlib.import_module(f"{__name__}.{name}")
    result: Any = tyro.cli(module.main, prog=f"med3dssl bench {name}", args=list(arguments[1:]))
    return result if isinstance(result, str) else json.dumps(result, indent=1, default=str)
