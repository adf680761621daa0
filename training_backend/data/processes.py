"""Helper processes that never outlive their parent, and work done ahead of time."""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import shutil
import threading
from collections.abc import Iterator
from multiprocessing import connection
from pathlib import Path
from typing import TypeVar

import numpy as np

from training_backend.config.run import RunConfig

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SHARED_MEMORY = Path("/dev/shm")


def processors() -> int:
    """Processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def end_with_parent() -> None:
    """In a helper process: end at once when the parent does, even when it was killed."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch(sentinel: int = parent.sentinel) -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


def choose_workers(config: RunConfig, cases: int, world: int) -> int:
    """Loader processes: as configured, or one beside CPU training and up to eight beside a GPU."""
    data = config.data
    if data.workers is not None:
        return data.workers
    import torch

    share = processors() // world
    gpu = config.engine.device != "cpu" and torch.cuda.is_available()
    workers = min(8, max(share - 1, 0)) if gpu else min(1, share - 1)
    view_bytes = int(np.prod(data.size)) * 4 * max(1, len(data.contrasts)) * data.crops_per_volume
    if _SHARED_MEMORY.is_dir():
        room = shutil.disk_usage(_SHARED_MEMORY).free // 2
        workers = min(workers, int(room // (4 * view_bytes)))
    return max(0, min(workers, cases))


def ahead(source: Iterator[T], depth: int = 2) -> Iterator[T]:
    """The elements of `source`, made up to `depth` ahead by a thread."""
    ready: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(entry: tuple[bool, T | BaseException | None]) -> bool:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for element in source:
                if not put((True, element)):
                    break
            else:
                put((False, None))
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, who raises it
            put((False, error))
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=work, daemon=True, name="views-ahead")
    thread.start()
    try:
        while True:
            more, element = ready.get()
            if isinstance(element, BaseException):
                raise element
            if not more:
                return
            yield element  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join(timeout=5)
