"""The list of published weights, and downloads from a server on the loopback address."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from training_backend.errors import ResourceError, WeightsError
from training_backend.tasks.base import Cancelled
from training_backend.weights import zoo

CONTENT = bytes(range(256)) * 16_384  # 4 MiB


class Server(ThreadingHTTPServer):
    """Serves `CONTENT`, understands Range, and breaks the connection as often as told."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.breaks = 0
        self.ranges: list[str | None] = []
        self.ignore_range = False
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights.pth"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        start = int(re.findall(r"\d+", wanted)[0]) if wanted and not self.server.ignore_range else 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.end_headers()
            return
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.breaks:
            self.server.breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MED3DSSL_CACHE", str(tmp_path / "cache with späce"))
    return zoo.cache_folder()


def publish(monkeypatch: pytest.MonkeyPatch, url: str, checksum: str | None = None, size_mb: int = 4) -> Path:
    entry = zoo.ZooEntry(
        name="test",
        title="Test weights",
        family="mae3d",
        file="weights.pth",
        url=url,
        page="https://example.org",
        size_mb=size_mb,
        checksum=f"md5:{hashlib.md5(CONTENT).hexdigest()}" if checksum is None else checksum,
        licence="CC-BY-4.0",
        terms="Credit the authors.",
        citation="Somebody, 2026.",
    )
    monkeypatch.setattr(zoo, "entries", lambda: (entry,))
    return zoo.target("test")


def part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def test_every_entry_is_complete_and_names_a_system() -> None:
    listed = zoo.entries()
    assert {entry.family for entry in listed} == {"mae3d", "voco", "ar", "medcoss", "mg3d"}
    assert len({entry.name for entry in listed}) == len(listed)
    for entry in listed:
        assert entry.page.startswith("https://")
        assert entry.citation
        assert entry.terms.endswith(".")
        assert entry.checksum == "" or re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", entry.checksum)


def test_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(WeightsError, match="Did you mean 'tangerine'"):
        zoo.entry("zoo:tangerin")


def test_weights_without_a_link_say_where_to_put_the_file(cache: Path) -> None:
    with pytest.raises(WeightsError, match=r"drive\.google\.com.*ssl_checkpoint\.pth"):
        zoo.download("ar-ssl4m", accept_licence=True)
    zoo.target("ar-ssl4m").parent.mkdir(parents=True)
    zoo.target("ar-ssl4m").write_bytes(b"by hand")
    assert zoo.download("ar-ssl4m", accept_licence=True) == zoo.local_file("zoo:ar-ssl4m")


def test_the_licence_is_shown_and_must_be_accepted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, server.url)
    with pytest.raises(WeightsError, match=r"CC-BY-4\.0: Credit the authors\."):
        zoo.download("test")
    assert server.ranges == []


def test_download_reports_progress_and_is_not_repeated(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    path = publish(monkeypatch, server.url)
    with pytest.raises(WeightsError, match="zoo download test"):
        zoo.local_file("test")
    shares: list[float] = []
    assert zoo.download("test", lambda share: shares.append(share) is None, accept_licence=True) == path
    assert path.read_bytes() == CONTENT
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    zoo.download("test", accept_licence=True)
    assert len(server.ranges) == 1
    assert zoo.local_file("zoo:test") == path


def test_broken_connections_are_resumed_within_one_call(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    path = publish(monkeypatch, server.url)
    server.breaks = 3
    zoo.download("test", accept_licence=True)
    assert path.read_bytes() == CONTENT
    assert [wanted is not None for wanted in server.ranges] == [False, True, True, True]


def test_an_interrupted_download_goes_on_the_next_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    path = publish(monkeypatch, server.url)
    with pytest.raises(Cancelled):
        zoo.download("test", lambda share: share < 0.5, accept_licence=True)
    kept = part(path).stat().st_size
    assert 0 < kept < len(CONTENT)
    assert not path.exists()
    zoo.download("test", accept_licence=True)
    assert server.ranges[-1] == f"bytes={kept}-"
    assert path.read_bytes() == CONTENT
    assert not part(path).exists()


def test_a_server_without_ranges_starts_anew(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    path = publish(monkeypatch, server.url)
    server.ignore_range = True
    path.parent.mkdir(parents=True)
    part(path).write_bytes(b"something else")
    zoo.download("test", accept_licence=True)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("surplus", [b"", b"too long"])
def test_a_part_that_is_whole_or_too_long_ends_well(
    surplus: bytes, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = publish(monkeypatch, server.url)
    path.parent.mkdir(parents=True)
    part(path).write_bytes(CONTENT + surplus)
    zoo.download("test", accept_licence=True)
    assert path.read_bytes() == CONTENT


def test_without_a_checksum_halves_are_not_joined(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    path = publish(monkeypatch, server.url, checksum="")
    path.parent.mkdir(parents=True)
    part(path).write_bytes(b"half of an older file")
    zoo.download("test", accept_licence=True)
    assert server.ranges == [None]
    assert path.read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_leaves_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    path = publish(monkeypatch, server.url, checksum="md5:" + "0" * 32)
    with pytest.raises(WeightsError, match="checksum"):
        zoo.download("test", accept_licence=True)
    assert [found.name for found in path.parent.iterdir() if found.name != ".lock"] == []


def test_a_refusing_server_gets_a_sentence(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, server.url)
    server.status = 503
    with pytest.raises(ResourceError, match="answered 503"):
        zoo.download("test", accept_licence=True)


def test_without_a_network_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    publish(monkeypatch, f"http://127.0.0.1:{port}/weights.pth")
    with pytest.raises(ResourceError, match=r"failed.*copy the file"):
        zoo.download("test", accept_licence=True)


def test_a_full_disk_is_found_before_anything_is_fetched(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, server.url, size_mb=10**9)
    with pytest.raises(ResourceError, match="MB free"):
        zoo.download("test", accept_licence=True)
    assert server.ranges == []
