"""Work done ahead of time keeps its order, passes errors on, and stops when nobody listens."""

from __future__ import annotations

import threading
import time

import pytest

from training_backend.data.processes import ahead, choose_workers, processors


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "views-ahead"]


def test_order_is_kept():
    assert list(ahead(iter(range(50)))) == list(range(50))
    assert list(ahead(iter([]))) == []


def test_it_works_ahead_but_not_without_bound():
    made = []

    def source():
        for number in range(100):
            made.append(number)
            yield number

    stream = ahead(source(), depth=2)
    assert next(stream) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == 4  # one taken, two waiting, one in hand
    stream.close()
    assert threads() == []


def test_errors_arrive_where_the_views_are_used():
    def source():
        yield 1
        raise ValueError("broken")

    stream = ahead(source())
    assert next(stream) == 1
    with pytest.raises(ValueError, match="broken"):
        next(stream)


def test_the_source_is_closed_with_the_stream():
    closed = []

    def source():
        try:
            yield from range(100)
        finally:
            closed.append(True)

    stream = ahead(source())
    next(stream)
    stream.close()
    assert closed == [True]


def test_workers_are_what_was_asked_for_or_what_fits(run_config):
    assert choose_workers(run_config(data={"workers": 3}), cases=10, world=1) == 3
    chosen = choose_workers(run_config(data={"workers": None}), cases=10, world=1)
    assert 0 <= chosen <= max(1, processors())
    huge = run_config(data={"workers": None, "size": (4000, 4000, 4000)})
    assert choose_workers(huge, cases=10, world=1) == 0
