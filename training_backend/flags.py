"""Arguments of a command line into the arguments of a function; what is wrong with them is told in one sentence."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from training_backend.errors import ConfigError

_FLAG = re.compile(r" {3,6}(--[\w.-]+|[A-Z{\[][^ ]*)(?: |$)")
"""Line of tyro's list of missing arguments that names one; its description is indented further."""
_OPTION = re.compile(r"--?[A-Za-z]")
"""What is no value, not even a negative number."""


class UsageError(ConfigError):
    """A command line that cannot be read."""


def call(function: Callable[..., Any], prog: str, arguments: Sequence[str], **options: Any) -> Any:
    """Result of `function`, called with `arguments` as its signature reads them.

    Args:
        function: what tyro makes flags of.
        prog: the command as the user typed it.
        arguments: of the command line.
        options: for `tyro.cli`.

    Raises:
        UsageError: arguments that are missing, unknown or of the wrong kind.
        SystemExit: the help was asked for and written.
    """
    import tyro

    @functools.wraps(function)
    def bound(*values: Any, **named: Any) -> Callable[[], Any]:
        return functools.partial(function, *values, **named)

    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            ready = tyro.cli(bound, prog=prog, args=gathered(arguments, _lists(function)), **options)
    except SystemExit as error:
        if not error.code:
            raise
        raise UsageError(sentence(told.getvalue(), prog, _positional(function)), f"See {prog} --help.") from None
    return ready()


def gathered(arguments: Sequence[str], flags: Collection[str]) -> list[str]:
    """Arguments in which each of `flags` occurs once, with the values of all its occurrences; tyro keeps the last.

    Args:
        arguments: of the command line.
        flags: those that take any number of values, such as ``--set``.
    """
    found: list[str] = []
    values: dict[str, list[str]] = {}
    current = found
    for argument in arguments:
        name, _, value = argument.partition("=")
        name = name.replace("_", "-")
        if name in flags:
            if name not in values:
                found.append(name)
                values[name] = []
            current = values[name]
            current += [value] if "=" in argument else []
        else:
            current = found if _OPTION.match(argument) else current
            current.append(argument)
    return [word for argument in found for word in (argument, *values.get(argument, ()))]


def sentence(told: str, prog: str, positional: Sequence[str] = ()) -> str:
    """What tyro's box says, without the box.

    Args:
        told: text of the box.
        prog: the command.
        positional: names of the arguments that are given without a flag, which the box only knows by their type.
    """
    found = []
    for section in _sections(told):
        first = section[0].strip()
        if first.startswith("Missing from"):
            names, unnamed = [], list(positional)
            for match in filter(None, map(_FLAG.match, section[1:])):
                flag = match[1]
                names.append(flag if flag.startswith("--") or not unnamed else unnamed.pop(0).upper())
            found.append(f"{prog} needs {_listed(names)}.")
        elif first.startswith("Unrecognized options"):
            unknown = " ".join(line.strip() for line in section).partition(":")[2].replace(",", " ").split()
            found.append(f"{prog} does not know {_listed(unknown)}.")
        elif first.startswith("Perhaps you meant"):
            near = [match[1] for match in map(_FLAG.match, section[1:]) if match]
            found.append(f"Perhaps {_listed(near, 'or')} was meant." if near else "")
        elif not found and first:
            text = " ".join(line.strip() for line in section)
            found.append(text[:1].upper() + text[1:].rstrip(".") + ".")
    return " ".join(filter(None, found)) or f"{prog} cannot read its arguments."


def _sections(told: str) -> list[list[str]]:
    """Lines between the rules of a box, drawn in Unicode or ASCII, without its frame."""
    sections: list[list[str]] = [[]]
    for line in told.splitlines():
        text = line.strip("│|").rstrip()
        if set(text.strip()) <= set("─╰╯- ") or text.startswith("╭"):
            sections.append([])
        else:
            sections[-1].append(text)
    return [section for section in sections[1:] if section]  # the first one is above the box, or its title


def _positional(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.default is each.empty and "Positional" in repr(each.annotation)]


def _lists(function: Callable[..., Any]) -> set[str]:
    """Flags of `function` that take any number of values."""
    parameters = inspect.signature(function).parameters.values()
    many = (each.name for each in parameters if str(each.annotation).endswith(", ...]"))
    return {f"--{name.replace('_', '-')}" for name in many} - {f"--{name}" for name in _positional(function)}


def _listed(names: Sequence[str], joint: str = "and") -> str:
    return f" {joint} ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else "other arguments"
