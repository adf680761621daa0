"""The viewer's side of the model process: values, progress, cancel, crash, idleness, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from training_backend.data.volume import Geometry, Volume
from training_backend.errors import DataError, Med3dError, RunError
from training_backend.jobs import client as client_module
from training_backend.jobs.client import Cancelled, Result, ServeClient

PLAIN = (sys.executable, str(Path(__file__).with_name("plain_server.py")))


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(repository))


@pytest.fixture
def client() -> Iterator[ServeClient]:
    client = ServeClient(command=PLAIN)
    yield client
    client.close()


def at_work(function: Callable[[], None]) -> Callable[[float, str], None]:
    """A progress function that calls `function` in another thread once the child is at work."""
    called: list[threading.Thread] = []

    def progress(share: float, text: str) -> None:
        if not called:
            called.append(threading.Thread(target=function))
            called[0].start()

    return progress


def until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether `condition` came true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def exchange_folder(client: ServeClient) -> Path:
    assert client._child is not None
    return client._child.folder


def test_values_arrays_and_volumes_come_back_as_sent(client: ServeClient) -> None:
    big = np.arange(60_000, dtype=np.int16).reshape(30, 40, 50)
    volume = Volume(
        big[::2], Geometry.from_spacing((15, 40, 50), (2, 1, 1), (1, 2, 3)), "CT", "scan", {"warnings": ["odd"]}
    )
    answer = client.request(
        "echo", number=3, text="Lungenflügel", nested={"a": [big, None]}, volume=volume, empty=big[:0]
    )
    assert answer["number"] == 3
    assert answer["text"] == "Lungenflügel"
    np.testing.assert_array_equal(answer["nested"]["a"][0], big)
    assert answer["nested"]["a"][1] is None
    assert answer["empty"].shape == (0, 40, 50)
    back = answer["volume"]
    np.testing.assert_array_equal(back.array, volume.array)
    assert back.geometry.same_grid(volume.geometry)
    assert (back.modality, back.name, back.warnings) == ("CT", "scan", ("odd",))
    answer["nested"]["a"][0][:] = 7  # a copy: what is sent stays as it is
    assert big[0, 0, 1] == 1


def test_the_folder_is_private_emptied_after_each_answer_and_removed_at_the_end(client: ServeClient) -> None:
    answer = client.request("echo", array=np.zeros((64, 64, 64)))
    folder = exchange_folder(client)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.glob("*.npy")) == []
    client.close()
    assert not folder.exists()
    assert answer["array"].sum() == 0  # still readable


def test_progress_is_reported_in_order(client: ServeClient) -> None:
    seen: list[tuple[float, str]] = []
    client.request("wait", seconds=0.5, progress=lambda share, text: seen.append((share, text)))
    shares = [share for share, _ in seen]
    assert len(shares) >= 3
    assert shares == sorted(shares)
    assert seen[-1][1] == "waiting"


def test_a_growing_result_is_watched_but_not_flooded(client: ServeClient) -> None:
    seen: list[int] = []
    arrays: list[np.ndarray] = []

    def watch(values: Result) -> None:
        seen.append(int(values["array"].sum()))
        arrays.append(values["array"])

    answer = client.request("grow", steps=120, step_s=0.005, partial=watch)
    assert answer["array"].sum() == 120
    assert len(seen) == answer["sent"] >= 3
    assert seen == sorted(set(seen))
    assert answer["sent"] < 30  # not each of the 120 steps
    assert [int(array.sum()) for array in arrays] == seen  # earlier states stay as they were
    assert list(exchange_folder(client).glob("*.npy")) == []
    assert client.request("grow", steps=3, step_s=0.0)["array"].sum() == 3  # nobody needs to watch


def test_a_growing_result_is_stopped_at_once(client: ServeClient) -> None:
    stopped: list[float] = []

    def watch(values: Result) -> None:
        if values["array"].sum() > 10 and not stopped:
            stopped.append(time.monotonic())
            client.cancel()

    with pytest.raises(Cancelled):
        client.request("grow", steps=10_000, step_s=0.01, partial=watch)
    assert time.monotonic() - stopped[0] < 1
    assert client.request("echo", a=1) == {"a": 1}
    assert list(exchange_folder(client).glob("*.npy")) == []


def test_a_watcher_that_raises_cancels_the_request(client: ServeClient) -> None:
    def watch(values: Result) -> None:
        raise DataError("No place to draw.")

    with pytest.raises(DataError, match="No place to draw"):
        client.request("grow", steps=10_000, step_s=0.01, partial=watch)
    assert client.request("echo", a=1) == {"a": 1}


def test_cancel_from_another_thread_ends_the_request_but_not_the_child(client: ServeClient) -> None:
    client.request("echo")
    pid = client.pid
    with pytest.raises(Cancelled):
        client.request("wait", seconds=600, progress=at_work(client.cancel))
    assert client.request("echo", still="there") == {"still": "there"}
    assert client.pid == pid
    assert not client.busy


def test_a_progress_function_that_raises_cancels_the_request(client: ServeClient) -> None:
    def progress(share: float, text: str) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        client.request("wait", seconds=600, progress=progress)
    assert client.request("echo", a=1) == {"a": 1}


def test_a_child_deaf_to_cancel_is_killed(client: ServeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CANCEL_GRACE_S", 0.3)
    with pytest.raises(Cancelled):
        client.request("hang", progress=at_work(client.cancel))
    assert client.request("echo", ok=True) == {"ok": True}


def test_close_in_mid_request_cancels_it(client: ServeClient) -> None:
    with pytest.raises(Cancelled):
        client.request("wait", seconds=600, progress=at_work(client.close))
    assert client.pid is None


def test_cancel_without_a_request_does_nothing(client: ServeClient) -> None:
    client.cancel()
    assert client.request("echo", a=1) == {"a": 1}


def test_requests_of_two_threads_take_turns(client: ServeClient) -> None:
    answers: dict[int, int] = {}

    def ask(number: int) -> None:
        answers[number] = client.request("echo", number=number)["number"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: number for number in range(6)}


def test_errors_arrive_as_sentences_of_their_own_class(client: ServeClient) -> None:
    with pytest.raises(DataError) as caught:
        client.request("refuse")
    assert caught.value.sentence == "The scan was expected to be 3D, found 2D."
    assert caught.value.hint == "Open a volume."
    with pytest.raises(Med3dError, match="'fail' failed unexpectedly \\(KeyError: 'colour'\\)"):
        client.request("fail")
    with pytest.raises(
        Med3dError, match=r"'stray' failed unexpectedly \(RuntimeError: cannot map a file into memory\)"
    ):
        client.request("stray")
    log = (exchange_folder(client) / "log.txt").read_text()
    assert "stray failed" in log
    assert "plain_server.py" in log
    assert "Jane" not in log
    with pytest.raises(RunError, match="does not know 'paint'"):
        client.request("paint")


def test_a_crash_is_survived_once(client: ServeClient, tmp_path: Path) -> None:
    assert client.request("crash", once=str(tmp_path / "crashed")) == {"survived": True}


def test_a_second_crash_is_a_sentence_and_the_next_request_works(client: ServeClient) -> None:
    with pytest.raises(
        RunError, match=r"ended twice while it did 'crash' .*exit status 9, last words: out of luck with a file"
    ):
        client.request("crash")
    assert client.request("echo", a=1) == {"a": 1}


def test_a_killed_child_is_replaced(client: ServeClient) -> None:
    client.request("echo")
    pid = client.pid
    assert pid is not None
    psutil.Process(pid).kill()
    assert until(lambda: client.pid is None)
    assert client.request("echo", a=1) == {"a": 1}
    assert client.pid not in (None, pid)


def test_an_idle_child_ends_and_the_next_request_starts_another() -> None:
    client = ServeClient(command=PLAIN, idle_s=0.3)
    client.request("echo")
    assert until(lambda: client.pid is None)
    assert client.request("echo", a=1) == {"a": 1}
    client.close()


def test_a_program_that_cannot_start_is_a_sentence() -> None:
    client = ServeClient(command=("/no/such/python",))
    with pytest.raises(RunError, match="cannot be started"):
        client.request("echo")


def test_the_child_ends_and_tidies_up_when_its_parent_is_killed(repository: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; from training_backend.jobs.client import ServeClient\n"
        f"client = ServeClient(command={PLAIN!r}); client.request('echo')\n"
        "print(client.pid, client._child.folder, flush=True)\n"
        "client.request('wait', seconds=60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, folder = parent.stdout.readline().split(maxsplit=1)
    parent.kill()
    parent.wait()
    assert until(lambda: not psutil.pid_exists(int(pid)))
    assert until(lambda: not Path(folder.strip()).exists())
    assert Path(tempfile.gettempdir()) in Path(folder.strip()).parents
