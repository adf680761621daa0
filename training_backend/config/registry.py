"""Finds methods and tasks by name, without importing torch.

Each file of ``training_backend/methods`` (and ``tasks``) that defines ``METHOD`` (``TASK``) registers itself by being
there; other distributions add theirs through the entry-point groups ``training_backend.methods`` and ``.tasks``.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from training_backend.errors import ConfigError

if TYPE_CHECKING:
    from training_backend.methods.base import Method
    from training_backend.tasks.base import Task


def methods() -> dict[str, Method]:
    """All methods by name."""
    return _discover("methods", "METHOD")


def tasks() -> dict[str, Task]:
    """All tasks by name."""
    return _discover("tasks", "TASK")


def method(name: str) -> Method:
    """The method called `name`, or a `ConfigError` naming the nearest one."""
    return _find(methods(), name, "method")


def task(name: str) -> Task:
    """The task called `name`, or a `ConfigError` naming the nearest one."""
    return _find(tasks(), name, "task")


def _find(known: dict[str, Any], name: str, what: str) -> Any:
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    advice = f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join(sorted(known))}."
    raise ConfigError(f"There is no {what} called {name!r}.", advice)


@cache
def _discover(package: str, attribute: str) -> dict[str, Any]:
    root = importlib.import_module(f"training_backend.{package}")
    found = {}
    for entry in pkgutil.iter_modules(root.__path__):
        candidate = getattr(importlib.import_module(f"{root.__name__}.{entry.name}"), attribute, None)
        if candidate is not None:
            found[candidate.name] = candidate
    for point in entry_points(group=f"training_backend.{package}"):
        candidate = point.load()
        found[candidate.name] = candidate
    return found
