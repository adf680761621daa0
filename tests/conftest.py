"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from training_backend.data.phantoms import Phantom, thorax_ct

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("LIBGL_ALWAYS_SOFTWARE", "1")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path | None:
    """Folder of real scans, or None where there are none (then tests use phantoms)."""
    folder = Path(os.environ.get("MED3DSSL_DATA", REPOSITORY.parent / "shared" / "data"))
    return folder if folder.is_dir() else None


@pytest.fixture(autouse=True)
def _isolated_user_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own runs, cache or settings."""
    home = tmp_path_factory.getbasetemp() / "user"
    monkeypatch.setenv("MED3DSSL_RUNS", str(home / "runs"))
    monkeypatch.setenv("MED3DSSL_CACHE", str(home / "cache"))
    monkeypatch.setenv("NAPARI_CONFIG", str(home / "napari.yaml"))


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    """A small chest CT with organs."""
    return thorax_ct(3, (19, 34, 26))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of an untrained masked autoencoder."""
    from tests.model_kit import untrained

    return untrained(tmp_path_factory.mktemp("models") / "untrained")
