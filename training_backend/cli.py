"""The ``med3dssl`` command: every sub-command is one function of `training_backend.api`.

Exit code 0 only when the thing asked for was done; errors are one sentence on standard error.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

from training_backend.errors import Med3dError
from training_backend.flags import UsageError, call

COMMANDS = {
    "demo": "the whole way on generated patients, with the result in napari; a few minutes on a CPU",
    "doctor": "what of this machine would hinder training, and the command that mends it",
    "pretrain": "learn an encoder from unlabelled scans",
    "finetune": "put a task on an encoder",
    "predict": "apply a fine-tuned model to scans",
    "embed": "features of whole scans as a table",
    "reconstruct": "what a masked autoencoder makes of a scan",
    "view": "what else a model can show of a scan: predictions, roll-outs, attention",
    "evaluate": "score a fine-tuned model on a split of a dataset",
    "find": "find scans by words, or by another scan",
    "compare": "runs beside each other, with paired statistics",
    "agreement": "two masks of one scan against each other",
    "strokes": "fill a scan from a few painted voxels",
}
GROUPS = {
    "data": ("inspect", "ingest", "prepare", "candidates", "split", "assign", "export", "accept", "undo", "next"),
    "weights": ("inspect", "import", "export", "probe-orientation"),
    "zoo": ("list", "download"),
    "recipes": ("list", "show"),
    "runs": ("list", "show", "compare", "resume", "stop", "clone"),
    "plan": ("run", "add", "show", "buffer"),
}

POSITIONAL = ("recipe", "paths", "path", "file", "entry", "runs", "folder", "first", "second")
"""Parameters of the API that are given without a flag."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except UsageError as error:
        _fail(str(error), error)
        return 2
    except Med3dError as error:
        return _fail(str(error), error)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains of it at its end
        return 1
    except OSError as error:  # a folder that is a file, no right to write, a full disk
        return _fail(f"{error.filename or 'A file'} cannot be read or written: {error.strerror or error}.", error)
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")
        return 130


def _fail(sentence: str, error: Exception) -> int:
    from tqdm import tqdm

    tqdm.write(sentence, file=sys.stderr)  # on a line of its own also below a progress bar
    logging.getLogger(__name__).debug("details", exc_info=error)
    return 1


def _dispatch(arguments: list[str]) -> int:
    name = arguments[0] if arguments else ""
    if name == "run":
        from training_backend.jobs.plan import main as worker

        return worker(arguments[1:])
    if name == "end-stage":
        from training_backend.jobs.plan import end_stage_main

        return end_stage_main(arguments[1:])
    if name == "serve":
        from training_backend.jobs.serve import main as serve

        return serve(arguments[1:])
    if name == "bench":
        from training_backend.bench import main as bench

        return _show(bench(arguments[1:]))
    if name in ("pretrain", "finetune"):
        from training_backend.settings import parse_training

        return _show(parse_training(name, arguments[1:]))
    if name in COMMANDS:
        return _call(_function(name), f"med3dssl {name}", arguments[1:])
    if name in GROUPS:
        return _group(name, arguments[1:])
    return _usage(name)


def _group(group: str, arguments: list[str]) -> int:
    name = arguments[0] if arguments else ""
    if name in GROUPS[group]:
        return _call(_function(f"{group}_{name}"), f"med3dssl {group} {name}", arguments[1:])
    lines = [f"usage: med3dssl {group} {{{','.join(GROUPS[group])}}} ...", ""]
    lines += [f"  {name:18} {_summary(f'{group}_{name}')}" for name in GROUPS[group]]
    return _say(lines, asked=name in ("-h", "--help", ""), unknown=f"{group} {name}")


def _usage(name: str) -> int:
    from training_backend import __version__

    if name == "--version":
        return _say([__version__], asked=True)
    lines = ["usage: med3dssl COMMAND ...   (med3dssl COMMAND --help tells more)", ""]
    lines += [f"  {name:12} {text}" for name, text in COMMANDS.items()]
    lines += [f"  {group:12} {', '.join(names)}" for group, names in GROUPS.items()]
    lines += [f"  {'bench':12} the measurements that the documentation quotes"]
    return _say(lines, asked=name in ("-h", "--help", ""), unknown=name)


def _say(lines: list[str], *, asked: bool, unknown: str = "") -> int:
    stream = sys.stdout if asked else sys.stderr
    if not asked:
        stream.write(f"There is no command {unknown!r}.\n")
    stream.write("\n".join(lines) + "\n")
    return 0 if asked else 2


def _function(name: str) -> Callable[..., Any]:
    from training_backend import api

    function: Callable[..., Any] = getattr(api, name.replace("-", "_"))
    return function


def _summary(name: str) -> str:
    return (_function(name).__doc__ or "").strip().splitlines()[0]


def _call(function: Callable[..., Any], prog: str, arguments: list[str]) -> int:
    import tyro

    annotations = function.__annotations__
    annotations.pop("return", None)  # names a type that is only imported for type checkers
    for name, hint in get_type_hints(function).items():
        if name in POSITIONAL:
            annotations[name] = tyro.conf.Positional[hint]  # type: ignore[valid-type, misc]
    return _show(call(function, prog, arguments))


def _show(result: Any) -> int:
    """Write a command's result; one with a false ``ok`` is a failure, told on standard error unless it is a table."""
    from training_backend.report import Table

    ok = bool(getattr(result, "ok", True))
    if result is not None and str(result):
        stream = sys.stdout if ok or isinstance(result, Table) else sys.stderr
        stream.write(f"{result}\n")
    return 0 if ok else 1
