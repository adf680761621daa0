"""Which process a run is: pid *and* creation time, so a number given to another program is never mistaken for it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

import psutil

WORKER_VARIABLE = "MED3DSSL_WORKER"
"""Set in the environment of detached workers: they log to standard error only and may import no viewer."""
PARENT_VARIABLE = "MED3DSSL_WITH_PARENT"
"""Set for workers that have nothing to do once the process that started them is gone."""
TOLERANCE_S = 1.0
"""Creation times are read back from the kernel's clock ticks; two processes with one pid are seconds apart."""


def identity(pid: int | None = None) -> dict[str, Any]:
    """`pid`, `pid_created` and `host` of a process (this one by default), as written into ``run.json``."""
    process = psutil.Process(pid or os.getpid())
    return {"pid": process.pid, "pid_created": process.create_time(), "host": socket.gethostname()}


def is_here(record: Mapping[str, Any]) -> bool:
    """Whether the recorded process ran on this machine."""
    return record.get("host") == socket.gethostname()


def process(record: Mapping[str, Any]) -> psutil.Process | None:
    """The recorded process, or None when it is gone, a zombie, on another machine, or its pid was given away."""
    pid, created = record.get("pid"), record.get("pid_created")
    if not pid or created is None or not is_here(record):
        return None
    try:
        found = psutil.Process(int(pid))
        same = abs(found.create_time() - float(created)) < TOLERANCE_S
        return found if same and found.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def end_tree(root: psutil.Process, patience_s: float) -> None:
    """Ask a process to terminate, wait, then kill it and everything it started."""
    try:
        tree = [root, *root.children(recursive=True)]
        root.terminate()
    except psutil.NoSuchProcess:
        return
    psutil.wait_procs([root], timeout=patience_s)
    for member in tree:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(tree, timeout=5)
