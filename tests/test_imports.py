"""The import rule of the architecture, read from the source, and what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

LEVELS = {
    name: level
    for level, names in enumerate(
        (
            ("errors",),
            ("files",),
            ("report", "flags"),
            ("config",),
            ("data", "nn"),
            ("methods", "tasks"),
            ("weights", "evaluate"),
            ("engine",),
            ("jobs",),
            ("watch",),
            ("bench", "demo"),
            ("api", "settings"),
            ("cli",),
            ("__main__",),
        )
    )
    for name in names
}
LEAVES = {
    "evaluate.clean",
    "evaluate.sliding",
    "evaluate.segmentation_metrics",
    "evaluate.classification_metrics",
    "evaluate.text_metrics",
    "evaluate.retrieval",
}
"""Numeric functions of `evaluate` that know nothing of models; tasks may call them."""
WORDS = "data.text"
"""Functions of words alone; networks that read texts may call them."""
SAME_LEVEL = {("tasks", "methods"), ("weights", "evaluate"), ("evaluate", "weights")}
PLUGIN_MAY_IMPORT = {"config", "errors", "files", "jobs", "data"}
HEAVY = {"torch", "monai", "lightning", "lightning_fabric", "torchmetrics", "sklearn", "transformers"}
BARRED = {"timm", "torchvision"}


def imported(path: Path) -> Iterator[tuple[str, bool, int]]:
    """(module, whether at import time, line) of every import statement, type-checking blocks left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in lazy, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, id(node) not in lazy, node.lineno


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def test_backend_packages_import_only_downwards(repository: Path) -> None:
    root = repository / "training_backend"
    wrong = []
    for path in sources(root):
        here = path.relative_to(root).with_suffix("").parts[0]
        if here == "__init__":
            continue
        for module, _, line in imported(path):
            parts = module.split(".")
            if parts[0] != "training_backend" or len(parts) < 2:
                continue
            there = parts[1]
            part = ".".join(parts[1:3])
            leaf = (part in LEAVES and here == "tasks") or (part == WORDS and here == "nn")
            if not (there == here or LEVELS[there] < LEVELS[here] or (here, there) in SAME_LEVEL or leaf):
                wrong.append(f"{path.relative_to(repository)}:{line} imports {module}")
    assert wrong == []


def test_the_leaves_of_evaluate_import_nothing_above_data(repository: Path) -> None:
    for leaf in LEAVES:
        path = repository / "training_backend" / (leaf.replace(".", "/") + ".py")
        for module, _, line in imported(path):
            parts = module.split(".")
            if parts[0] == "training_backend":
                leaf = ".".join(parts[1:3]) in {*LEAVES, "tasks.base"}
                assert leaf or LEVELS[parts[1]] <= LEVELS["data"], f"{path}:{line}"


def test_plugin_imports_only_the_torch_free_part_of_the_backend(repository: Path) -> None:
    root = repository / "src" / "napari_med3dssl"
    wrong = []
    for path in sources(root):
        for module, _, line in imported(path):
            parts = module.split(".")
            if parts[0] == "training_backend" and (len(parts) < 2 or parts[1] not in PLUGIN_MAY_IMPORT):
                wrong.append(f"{path.name}:{line} imports {module}")
            if parts[0] in HEAVY:
                wrong.append(f"{path.name}:{line} imports {module}")
    assert wrong == []


def test_barred_and_gui_libraries_are_never_imported_by_the_backend(repository: Path) -> None:
    wrong = []
    for path in sources(repository / "training_backend"):
        for module, _, line in imported(path):
            top = module.split(".")[0]
            gui = top in {"napari", "qtpy", "magicgui", "superqt", "pyqtgraph"} and path.name not in {"demo.py"}
            if top in BARRED or gui:
                wrong.append(f"{path.relative_to(repository)}:{line} imports {module}")
    assert wrong == []


def test_only_the_runtime_imports_fabric(repository: Path) -> None:
    users = {
        path.relative_to(repository).as_posix()
        for path in sources(repository / "training_backend")
        for module, _, _ in imported(path)
        if module.startswith("lightning")
    }
    assert users <= {"training_backend/engine/runtime.py"}


@pytest.mark.parametrize(
    "statement",
    [
        "import napari_med3dssl",
        "import training_backend, training_backend.errors",
        "import training_backend.config, training_backend.jobs",
        "from training_backend.config.registry import methods, tasks; methods(); tasks()",
    ],
)
def test_light_imports_load_no_torch(statement: str, repository: Path) -> None:
    code = f"{statement}\nimport sys\nprint(sorted(set(sys.modules) & {HEAVY | BARRED!r}))"
    path = f"{repository}:{repository / 'src'}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path})
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_importing_the_packages_takes_less_than_three_tenths_of_a_second(repository: Path) -> None:
    code = (
        "import time; t = time.perf_counter(); import napari_med3dssl, training_backend; print(time.perf_counter() - t)"
    )
    path = f"{repository}:{repository / 'src'}"
    seconds = [
        float(
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path}
            ).stdout
        )
        for _ in range(3)
    ]
    assert min(seconds) < 0.3
