"""A serving process with operations that need no model; tests start it to try the conversation itself."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np

from training_backend.errors import DataError
from training_backend.jobs.serve import Progress, main


def echo(params: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The parameters, back again."""
    print("a library prints to standard output")  # noqa: T201
    return params


def wait(params: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Report for `seconds`, checking for a cancel at each step."""
    steps = int(params["seconds"] * 50)
    for step in range(steps):
        progress(step / steps, "waiting")
        time.sleep(0.02)
    return {}


def grow(params: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Show an array that fills up, in `steps` steps of `step_s` seconds; count how often it was sent."""
    array, sent = np.zeros(100_000, np.float32), 0

    def values() -> dict[str, Any]:
        nonlocal sent
        sent += 1
        return {"array": array, "sent": sent}

    for step in range(params["steps"]):
        array[: step + 1] = 1
        progress(step / params["steps"], "growing")
        progress.partial(values)
        time.sleep(params["step_s"])
    return {"array": array, "sent": sent}


def hang(params: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Never look for a cancel."""
    progress(0.5, "hanging")
    time.sleep(300)
    return {}


def refuse(params: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """A user's error."""
    raise DataError("The scan was expected to be 3D, found 2D.", "Open a volume.")


def fail(params: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """A programmer's error."""
    raise KeyError("colour")


def stray(params: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """A library's error that quotes a path."""
    owner = "Jane Doe"
    raise RuntimeError(f"cannot map '/home/{owner}/scan.nii' into memory")


def crash(params: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """End the process at once; with `once`, a file, only the first time."""
    marker = params.get("once")
    if marker and os.path.exists(marker):  # noqa: PTH110
        return {"survived": True}
    if marker:
        open(marker, "w").close()  # noqa: PTH123
    sys.stderr.write("out of luck with /home/Jane Doe/scan.nii\n")
    sys.stderr.flush()
    os._exit(9)


if __name__ == "__main__":
    known = {
        "echo": echo,
        "wait": wait,
        "grow": grow,
        "hang": hang,
        "refuse": refuse,
        "fail": fail,
        "stray": stray,
        "crash": crash,
    }
    sys.exit(main(operations=known))
