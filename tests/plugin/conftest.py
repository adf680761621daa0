"""Fixtures of the viewer's tests: isolated folders, a viewer model without OpenGL, a small dataset."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from napari.components import ViewerModel
from qtpy.QtWidgets import QWidget

from napari_med3dssl import _work
from napari_med3dssl._state import State, state_of
from napari_med3dssl.explore import ExplorePanel
from tests.plugin.explore_kit import finish, work_done
from training_backend.config import IngestConfig
from training_backend.data.ingest import ingest
from training_backend.data.phantoms import write_cohort
from training_backend.jobs.client import ServeClient


@pytest.fixture
def state(qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    """State of a viewer without OpenGL, with runs and settings of its own; all background work ends with the test."""
    monkeypatch.setenv("MED3DSSL_RUNS", str(tmp_path / "runs"))
    viewer = ViewerModel()
    yield state_of(viewer)
    _work.wait_all()


@pytest.fixture(scope="module")
def client(source_path: None) -> Iterator[ServeClient]:
    """One model process for all tests of a file, which saves starting torch each time."""
    client = ServeClient("cpu")
    yield client
    client.close()


@pytest.fixture
def window_state(
    make_napari_viewer: Callable[..., Any], client: ServeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[State]:
    """State of a real window, with a model process."""
    monkeypatch.setenv("MED3DSSL_RUNS", str(tmp_path / "runs"))
    state = state_of(make_napari_viewer(show=True))
    state._client = client
    yield state
    _work.wait_all()


@pytest.fixture
def panel(window_state: State, qtbot: Any) -> Iterator[ExplorePanel]:
    """The Explore panel, docked."""
    panel = ExplorePanel(window_state)
    dock = window_state.viewer.window.add_dock_widget(panel, name="Explore", area="right")
    work_done(qtbot)
    yield panel
    panel.leave_picking()
    window_state.viewer.window.remove_dock_widget(dock)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of four small phantom patients."""
    return write_cohort(tmp_path_factory.mktemp("cohort"), 4, seed=3, shape=(20, 32, 32))


@pytest.fixture(scope="session")
def dataset(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset of the cohort: three to train on, one to validate on."""
    folder = tmp_path_factory.mktemp("dataset") / "phantoms"
    ingest(cohort, folder, IngestConfig(splits=(0.75, 0.25, 0.0), workers=0), name="phantoms")
    return folder


@pytest.fixture(scope="session")
def source_path() -> Iterator[None]:
    """Child processes find the packages of this source tree."""
    root = Path(__file__).resolve().parents[2]
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), str(root / "src"), before]))
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture
def shown(qtbot: Any) -> Iterator[Callable[[QWidget], QWidget]]:
    """Shows a widget at 400 x 700 and deletes it the way a closing dock does, not by garbage collection."""
    kept: list[QWidget] = []

    def show(widget: QWidget) -> QWidget:
        kept.append(widget)
        widget.resize(400, 700)
        widget.show()
        qtbot.waitExposed(widget)
        return widget

    yield show
    for widget in kept:
        widget.close()
        with qtbot.waitSignal(widget.destroyed):
            widget.deleteLater()


@pytest.fixture
def wait(qtbot: Any) -> Callable[..., None]:
    """Process events until a condition holds; the time is for a machine that does much else."""

    def until(condition: Callable[[], bool], seconds: float = 60.0, what: object = "") -> None:
        end = time.monotonic() + seconds
        while not condition():
            qtbot.wait(10)
            assert time.monotonic() < end, f"waited {seconds:g} s in vain {what() if callable(what) else what}"

    return until


@pytest.fixture
def computed(ready: ExplorePanel, qtbot: Any) -> ExplorePanel:
    """The panel that a file makes ready, with features."""
    ready.compute_button.click()
    finish(ready, qtbot)
    assert ready.features is not None, ready.notice.text
    return ready
