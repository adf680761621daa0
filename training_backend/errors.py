"""Errors whose text is shown to users as it stands.

Every message is a sentence that says what was expected, what was found and what to do. The command line prints it on
standard error, a run stores it in ``error.json``, and the viewer shows it; tracebacks go to the log only.
"""

from __future__ import annotations

import re
import traceback

_ROOT = r"(?:/(?!/)|~/|[A-Za-z]:[\\/]|\\\\)"
_QUOTED = re.compile(rf"(['\"`])(?:file:/*)?{_ROOT}.*?\1")
_LOOSE = re.compile(rf"(?<![\w./]){_ROOT}(?:[^\n:;,'\"]*[\\/])?[^\s:;,'\"()]+")


class Med3dError(Exception):
    """Base of all errors that a user can act upon.

    Args:
        sentence: what was expected and what was found, as one sentence a radiologist can read.
        hint: what to do about it; may be empty when the sentence already says so.
    """

    category = "error"

    def __init__(self, sentence: str, hint: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.hint = hint

    def __str__(self) -> str:
        """Sentence and hint, separated by a space."""
        return f"{self.sentence} {self.hint}".strip()


class DataError(Med3dError):
    """A file, a dataset or a volume cannot be used as it is."""

    category = "data"


class GeometryError(DataError):
    """Spacing, orientation, shape or affine of a volume is unusable or does not match."""

    category = "geometry"


class ConfigError(Med3dError):
    """A setting is unknown, out of range or contradicts another one."""

    category = "config"


class WeightsError(Med3dError):
    """A checkpoint is unsafe, damaged, or does not belong to the model."""

    category = "weights"


class RunError(Med3dError):
    """A run cannot be started, found, resumed or controlled."""

    category = "run"


class ResourceError(Med3dError):
    """Memory, disk space or a device is missing."""

    category = "resource"


class TrainingDiverged(Med3dError):
    """The loss stayed non-finite although steps were skipped and a checkpoint was restored."""

    category = "diverged"


def said(error: BaseException) -> str:
    """What an error says, without paths of files, which may name a person; our own sentences are made without."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error) or type(error).__name__
    return text if isinstance(error, Med3dError) else without_paths(text)


def without_paths(text: str) -> str:
    """`text` with "a file" in place of every absolute path, up to the end of its last part."""
    return _LOOSE.sub("a file", _QUOTED.sub("a file", text))


def trace(error: BaseException) -> str:
    """Traceback of an error and of its causes, for a log; what they say is without paths."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    text = f"Traceback (most recent call last):\n{frames}{type(error).__name__}: {said(error)}\n"
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return text if cause is None else f"{trace(cause)}\nwhich led to\n\n{text}"
