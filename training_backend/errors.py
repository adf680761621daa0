"""Errors whose text is shown to users as it stands.

Every message is a sentence that says what was expected, what was found and what to do. The command line prints it on
standard error, a run stores it in ``error.json``, and the viewer shows it; tracebacks go to the log only.
"""

from __future__ import annotations


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
    """What an error says; of a system error the reason alone, since it quotes a path, which may name a person."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
