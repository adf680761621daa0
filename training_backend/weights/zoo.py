"""Published weights: what there is, under which licence, and how it gets onto this machine.

The list is ``zoo.yaml``. Files land in the user's cache folder (or ``MED3DSSL_CACHE``); an interrupted download goes on
where it stopped, and nothing is used before its checksum is verified. Loads no torch.
"""

from __future__ import annotations

import difflib
import os
import shutil
from functools import cache
from pathlib import Path

import yaml
from pydantic import Field

from training_backend.config import ConfigModel
from training_backend.errors import ResourceError, WeightsError
from training_backend.files import disk_error
from training_backend.tasks.base import Cancelled, Progress

PREFIX = "zoo:"


class ZooEntry(ConfigModel):
    """One published file."""

    name: str
    """Short name; ``zoo:NAME`` stands for the file wherever weights are asked for."""
    title: str
    family: str
    """Importer that understands the file."""
    file: str = ""
    """File name, empty where the authors give none."""
    url: str = ""
    """Direct link; empty where the file must be fetched in a browser."""
    page: str
    """Where the authors publish or describe it."""
    size_mb: int | None = Field(None, ge=1)
    checksum: str = ""
    """ALGORITHM:HEX; empty where none is published."""
    licence: str = ""
    """Short name of the licence of the weights; empty where none is known."""
    terms: str = "No licence is known for these weights; ask the authors before any use."
    """What the licence asks, in one sentence."""
    citation: str
    notes: str = ""


@cache
def entries() -> tuple[ZooEntry, ...]:
    """All published weights, in the order of ``zoo.yaml``."""
    values = yaml.safe_load(Path(__file__).with_name("zoo.yaml").read_text(encoding="utf-8"))
    return tuple(ZooEntry.parse(value, where=f"zoo.yaml, entry {number}") for number, value in enumerate(values, 1))


def entry(name: str) -> ZooEntry:
    """The entry called `name` (with or without ``zoo:``), or a `WeightsError` naming the nearest one."""
    name = name.removeprefix(PREFIX)
    known = {each.name: each for each in entries()}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    advice = f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join(known)}."
    raise WeightsError(f"The zoo has no weights called {name!r}.", advice)


def cache_folder() -> Path:
    """Folder of downloaded weights: below ``MED3DSSL_CACHE``, else the system's cache folder for this user."""
    import platformdirs

    root = os.environ.get("MED3DSSL_CACHE")
    return (Path(root) if root else platformdirs.user_cache_path("med3dssl")) / "weights"


def target(name: str) -> Path:
    """Where the file of `name` lies once it is downloaded, or put there by hand."""
    chosen = entry(name)
    return cache_folder() / chosen.name / (chosen.file or f"{chosen.name}.pth")


def local_file(name: str) -> Path:
    """The downloaded file of `name`, or a `WeightsError` that says how to get it."""
    path, chosen = target(name), entry(name)
    if path.is_file():
        return path
    if chosen.url:
        advice = f"Download it: med3dssl zoo download {chosen.name}."
    else:
        advice = f"Fetch it in a browser from {chosen.page} and save it as {path}."
    raise WeightsError(f"The weights {chosen.title} are not on this machine.", advice)


def download(name: str, progress: Progress | None = None, *, accept_licence: bool = False) -> Path:
    """Verified local file of `name`; goes on with an interrupted download.

    Args:
        name: entry of the zoo, with or without ``zoo:``.
        progress: told the share done; answers False to cancel, which keeps what was received for the next time.
        accept_licence: that the user has read and accepted `ZooEntry.licence` and its `terms`.

    Raises:
        WeightsError: unknown name, no direct link, licence not accepted, or a wrong checksum.
        ResourceError: no network, a refusing server, or no room on the disk.
        Cancelled: when `progress` answered False.
    """
    import pooch
    import requests
    from filelock import FileLock

    chosen, path = entry(name), target(name)
    if not chosen.url:
        return local_file(name)
    if not accept_licence:
        raise WeightsError(
            f"{chosen.title} is published under {chosen.licence or 'no stated licence'}: {chosen.terms}",
            "Read and accept the licence to download it (--accept-licence).",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    fetch = _Resumable(path.with_name(f"{path.name}.part"), progress, resume=bool(chosen.checksum))
    _check_space(chosen, fetch.part)
    try:
        with FileLock(path.with_name(".lock")):
            return Path(pooch.retrieve(chosen.url, chosen.checksum or None, path.name, path.parent, downloader=fetch))
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        raise ResourceError(
            f"The server answered {status} for {chosen.url}.", f"Try later, or fetch the file from {chosen.page}."
        ) from error
    except requests.RequestException as error:
        raise ResourceError(
            f"The connection to {chosen.url.split('/')[2]} failed; {fetch.received() // 10**6} MB are kept.",
            f"Check the network and start the download again, or copy the file from elsewhere to {path}.",
        ) from error
    except ValueError as error:
        raise WeightsError(
            f"The file received for {chosen.name} has not the published checksum ({chosen.checksum}) and was deleted.",
            f"Download it again; if it fails twice, see {chosen.page}.",
        ) from error
    except OSError as error:
        raise disk_error(error, path) from error


class _Resumable:
    """Downloader for pooch that appends to a file kept between attempts (HTTP Range).

    Args:
        part: the file that grows.
        progress: see `download`.
        resume: go on with what is there; safe only where a checksum tells whether the halves belong together.
    """

    attempts = 5

    def __init__(self, part: Path, progress: Progress | None, *, resume: bool) -> None:
        self.part, self._progress, self._resume = part, progress, resume

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        """Fetch `url` whole, then hand it over as `output_file`."""
        import requests

        if not self._resume:
            self.part.unlink(missing_ok=True)
        for attempt in range(1, self.attempts + 1):
            before = self.received()
            try:
                self._fetch(url)
                break
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError, requests.Timeout):
                if attempt == self.attempts or not self._resume or self.received() == before:
                    raise
        shutil.move(self.part, output_file)

    def received(self) -> int:
        """Bytes that are on the disk."""
        return self.part.stat().st_size if self.part.exists() else 0

    def _fetch(self, url: str) -> None:
        import requests

        have = self.received()
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=30) as answer:
            if answer.status_code == requests.codes.requested_range_not_satisfiable:
                if answer.headers.get("Content-Range", "").endswith(f"/{have}"):
                    return  # it was whole already
                self.part.unlink()
                raise requests.ConnectionError("the file on the server is shorter than what was received")
            answer.raise_for_status()
            resumed = answer.status_code == requests.codes.partial_content
            total = (have if resumed else 0) + int(answer.headers.get("Content-Length", 0))
            with self.part.open("ab" if resumed else "wb") as stream:
                for chunk in answer.iter_content(2**16):
                    stream.write(chunk)
                    if self._progress and not self._progress(stream.tell() / total if total else 0.0):
                        raise Cancelled
        if total and self.received() != total:
            raise requests.ConnectionError("the connection ended early")


def _check_space(chosen: ZooEntry, part: Path) -> None:
    needed = (chosen.size_mb or 0) * 10**6 - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(part.parent).free
    if free < needed:
        raise ResourceError(
            f"{chosen.title} needs {needed // 10**6} MB, but {part.parent} has {free // 10**6} MB free.",
            "Free space, or set MED3DSSL_CACHE to a folder on a larger disk.",
        )
