from __future__ import annotations

import os
import signal

import pytest

from training_backend.config.presets import pretrain_config
from training_backend.engine import seeds
from training_backend.engine.control import Control
from training_backend.engine.rundir import RunDirectory
from training_backend.errors import RunError


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "run", pretrain_config("mae3d", "tiny", tmp_path))


def test_requests_stand_until_they_are_obeyed(run):
    control = Control(run)
    assert control.pending() == set()
    run.request("save")
    run.request("preview")
    assert control.pending() == {"save", "preview"}
    control.obeyed("save")
    assert control.pending() == {"preview"}


def test_unknown_request_is_refused(run):
    with pytest.raises(RunError, match="'explode' is none of these"):
        run.request("explode")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signal_becomes_a_request_and_handlers_are_given_back(run, number):
    before = signal.getsignal(number)
    with Control(run) as control:
        os.kill(os.getpid(), number)
        assert control.pending() == {"terminate"}
    assert signal.getsignal(number) == before


def test_second_interrupt_does_not_wait(run):
    with Control(run):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_seeds_depend_on_the_place_and_nothing_else():
    import torch

    first = torch.rand(3, generator=seeds.generator(1, seeds.STEP, 5, 0))
    torch.rand(100)
    again = torch.rand(3, generator=seeds.generator(1, seeds.STEP, 5, 0))
    assert torch.equal(first, again)
    places = [
        (1, seeds.STEP, 5, 0),
        (2, seeds.STEP, 5, 0),
        (1, seeds.STEP, 6, 0),
        (1, seeds.STEP, 5, 1),
        (1, seeds.INIT),
    ]
    assert len({seeds.seed_of(*place) for place in places}) == len(places)
    seeds.generator(1, 2)
    dropped = torch.rand(3)
    seeds.generator(1, 2)
    assert torch.equal(dropped, torch.rand(3))
