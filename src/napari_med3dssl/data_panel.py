"""The Data panel: from a folder of scans, or from open layers, to a dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtGui import QDragEnterEvent, QDropEvent
from qtpy.QtWidgets import (
    QComboBox,
    QFormLayout,
    QInputDialog,
    QLineEdit,
    QProgressBar,
    QVBoxLayout,
    QWidget,
)

from napari_med3dssl import _layers, _prepare, _work
from napari_med3dssl._scans import visible_case
from napari_med3dssl._state import State, dataset_name
from napari_med3dssl._widgets import (
    Notice,
    Page,
    PathField,
    Section,
    button,
    button_row,
    combo,
    dropped_paths,
    wrapping,
)
from napari_med3dssl.case_table import CaseTable, Row
from napari_med3dssl.forms import Form
from napari_med3dssl.report_box import ReportBox
from napari_med3dssl.results import replace_layers
from training_backend.config import IngestConfig
from training_backend.errors import DataError, Med3dError

if TYPE_CHECKING:
    from training_backend.data.dataset import Dataset
    from training_backend.data.importers import Described
    from training_backend.data.manifest import CaseRecord

EMPTY = (
    "A dataset is made once from a folder of scans and then trained on. Drop a folder here: NIfTI, NRRD, MHA, DICOM, "
    "MSD, nnU-Net, BIDS, lists, pictures (PNG, JPEG, BMP, TIFF) and tables of reports are recognised. Nothing is "
    "changed in the folder."
)
LAYOUTS = {
    "folder": "a plain folder",
    "paired": "folders of images and labels",
    "msd": "MSD",
    "nnunet": "nnU-Net raw",
    "bids": "BIDS",
    "monai": "a MONAI datalist",
    "csv": "a table",
    "list": "a list of paths",
    "reports": "a table of reports",
    "abstracts": "sentences of abstracts",
    "ct-rate": "CT-RATE",
    "ctrg": "CTRG-Chest",
    "arrow": "MG-3D's arrow tables",
    "ua-mt": "UA-MT",
    "dicom": "a DICOM tree",
}
"""Names of the layouts as a sentence uses them."""
SPLITS = ("train", "val", "test", "unlabelled")


class DataPanel(QWidget):
    """Look at a folder, judge its cases, and save them as a dataset.

    Args:
        state: what the panels of the viewer share.
    """

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state
        self.described: Described | None = None
        self.dataset: Dataset | None = None
        self._job: _work.Job | None = None
        self._before: list[Described | dict[str, CaseRecord]] = []
        self._reported = ""
        self.setAcceptDrops(True)
        self._build()
        state.follow(self, state.dataset_changed, self._on_dataset_changed)
        self._on_dataset_changed(state.dataset)

    def open_folder(self, path: Path | str) -> None:
        """Show what a folder, list file or dataset holds; headers are read in a process of their own."""
        path = Path(path).expanduser()
        self.folder.show_path(path)
        if (path / "manifest.jsonl").is_file():
            self.state.dataset = path
            self._on_dataset_changed(path)
            return
        self._start(
            f"Looking at {path.name}…",
            lambda progress: _prepare.from_plain(_prepare.call("describe", progress, path=str(path))),
            self._show_described,
        )

    def use_phantom(self) -> None:
        """Make a dataset of generated patients."""
        from napari_med3dssl.tiny_demo import make_demo_dataset

        self._start("Making generated patients…", lambda progress: make_demo_dataset(progress), self._use_dataset)

    def save_dataset(self) -> None:
        """Ingest the described cases into the chosen folder."""
        if self.described is None:
            return
        try:
            config = self.form.config()
            output = self._output()
        except Med3dError as error:
            self.notice.say("error", str(error))
            return
        described = _prepare.to_plain(self.described)
        request = {"described": described, "output": str(output), "name": self.name.text().strip()}
        request["config"] = config.model_dump(mode="json")
        self._start(
            "Reading, checking and storing every scan…",
            lambda progress: _prepare.call("ingest", progress, "Reading, checking and storing", **request),
            lambda report: self._saved(output, report),
        )

    def add_open_layers(self) -> None:
        """Add the visible image layers, and the visible labels layer, to the dataset as a case."""
        if self.dataset is None:
            self.notice.say("info", "Save or open a dataset first; open layers are added to it as a case.")
            return
        try:
            images, label = visible_case(self.state.viewer)
        except Med3dError as error:
            self.notice.say("error", str(error))
            return
        suggested = _file_safe(images[0].name)
        name, agreed = QInputDialog.getText(self, "Add as a case", "Name of the case:", text=suggested)
        if not agreed or not name.strip():
            return
        dataset, known = self.dataset, _file_safe(name) in self.dataset.records
        self._start(
            f"Adding {name}…",
            lambda progress: dataset.add_case(images, label, id=_file_safe(name), replace=known),
            lambda case: self._added(case),
        )

    def _build(self) -> None:
        self.used = combo("Dataset in use")
        self.used.activated.connect(self._choose_used)
        self.folder = PathField("Folder of scans")
        self.folder.edit.setPlaceholderText("drop a folder here")
        self.folder.changed.connect(self.open_folder)
        form = QFormLayout()
        form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Dataset in use", self.used)
        form.addRow("New from", self.folder)
        self.notice = Notice()
        self.bar = QProgressBar()
        self.bar.setAccessibleName("Progress of reading")
        self.cancel = button("Cancel", self._cancel)
        self.busy = QWidget()
        busy = QVBoxLayout(self.busy)
        busy.setContentsMargins(0, 0, 0, 0)
        busy.addWidget(self.bar)
        busy.addWidget(button_row(self.cancel))
        self.empty = self._build_empty()
        self.table = CaseTable()
        self.table.cellDoubleClicked.connect(lambda *_: self.preview())
        self.table.itemSelectionChanged.connect(self._tell_row)
        self.row_text = wrapping("")
        self.row_text.setAccessibleName("What was found in the chosen case")
        self.report = ReportBox()
        self.report.hide()
        self.actions = self._build_actions()
        self.saving = self._build_saving()
        page = Page()
        page.column.addLayout(form)
        shown = (self.notice, self.busy, self.empty, self.table, self.row_text, self.report, self.actions, self.saving)
        for widget in shown:
            page.column.addWidget(widget, 100 if widget is self.table else 0)
        page.column.addStretch(1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(page)
        self.busy.hide()

    def _build_empty(self) -> QWidget:
        empty = QWidget()
        column = QVBoxLayout(empty)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(wrapping(EMPTY))
        column.addWidget(
            button_row(
                button("Open folder", self.folder.browse, "Choose a folder of scans."),
                button("Use sample phantom", self.use_phantom, "Make a small dataset of generated patients."),
                button("Use open layers", self._new_from_layers, "Begin a dataset with what the viewer shows."),
            )
        )
        return empty

    def _build_actions(self) -> QWidget:
        self.split: QComboBox = combo("Split of the chosen cases")
        self.split.addItems(["Move to…", *SPLITS])
        self.split.activated.connect(self._move)
        self.undo_button = button("Undo", self.undo, "Take back the last change of cases.")
        return button_row(
            button(
                "Preview", self.preview, "Open the chosen case as layers and show its report; so does a double click."
            ),
            button("Exclude / include", self._toggle_excluded, "Leave cases out of training, or take them back."),
            button("Without label", self._drop_labels, "Use cases whose label map is wrong as unlabelled ones."),
            self.split,
            self.undo_button,
            button("Add open layers", self.add_open_layers, "Add what the viewer shows to the dataset as a case."),
        )

    def _build_saving(self) -> QWidget:
        self.name = QLineEdit()
        self.name.setAccessibleName("Name of the dataset")
        self.output = PathField("Folder of the dataset")
        self.form = Form(IngestConfig())
        settings = Section("How scans are stored", tip="Spacing, body box, splits and processes.")
        settings.column.addWidget(self.form)
        self.size = wrapping("")
        saving = QWidget()
        whole = QVBoxLayout(saving)
        whole.setContentsMargins(0, 0, 0, 0)
        column = QFormLayout()
        column.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
        column.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        column.addRow("Name", self.name)
        column.addRow("Save in", self.output)
        whole.addLayout(column)
        for widget in (settings, self.size):
            whole.addWidget(widget)
        whole.addWidget(button_row(button("Save dataset", self.save_dataset, "Check every scan and store it.")))
        self.form.changed.connect(self._tell_size)
        return saving

    def preview(self) -> None:
        """Open the current case as layers, and show its report."""
        row = self.table.current()
        if row is None or row.case is None:
            return
        case, root = row.case, self._root()
        self._reported = case.id
        self.report.show_report(case.report)
        if not case.images:
            return
        self._start(
            f"Reading {case.id}…",
            lambda progress: layers_of_case(case, root, self._classes()),
            lambda layers: replace_layers(self.state.viewer, layers),
        )

    def dragEnterEvent(self, event: QDragEnterEvent | None) -> None:  # noqa: N802
        """Accept folders and files."""
        if event is not None and dropped_paths(event):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent | None) -> None:  # noqa: N802
        """Open what was dropped."""
        paths = dropped_paths(event) if event is not None else []
        if paths and event is not None:
            event.acceptProposedAction()
            self.open_folder(paths[0])

    def _start(self, doing: str, work: Callable[..., Any], then: Callable[[Any], object]) -> None:
        if self._job is not None and self._job.running:
            self.notice.say("info", "Wait for the present work to end, or cancel it.")
            return
        self.notice.say("busy", doing)
        self.busy.show()
        self.bar.setRange(0, 0)
        self._job = _work.start(
            self,
            work,
            done=lambda result: self._done(then, result),
            failed=lambda text: self.notice.say("error", text),
            cancelled=lambda: self.notice.say(
                "info", "Cancelled. What was stored so far is kept; saving again goes on."
            ),
            progressed=self._progress,
            ended=self._refresh,
        )
        self._refresh()

    def _done(self, then: Callable[[Any], object], result: Any) -> None:
        self.notice.clear()
        then(result)

    def _progress(self, share: float, text: str) -> None:
        if share > 0:
            self.bar.setRange(0, 100)
            self.bar.setValue(round(100 * share))

    def _cancel(self) -> None:
        if self._job is not None:
            self._job.stop()
            self.notice.say("busy", "Stopping…")

    def _show_described(self, described: Described) -> None:
        self.described, self.dataset = described, None
        self._before = []
        self.name.setText(described.info.name)
        self.output.show_path(_datasets_folder() / _file_safe(described.info.name))
        cases, problems = len(described.cases), len(described.problems)
        layout = LAYOUTS.get(described.info.layout, described.info.layout)
        text = f"Recognised as {layout}: {cases} cases"
        self.notice.say(
            "warning" if problems else "ok", f"{text}, {problems} left out; see the rows." if problems else f"{text}."
        )
        self._refresh()

    def _on_dataset_changed(self, folder: Path | None) -> None:
        from training_backend.data.dataset import Dataset

        self._list_used()
        believed = self.dataset.records if self.dataset is not None and self.dataset.folder == folder else {}
        self.dataset = None
        if folder is not None:
            try:
                self.dataset, self.described = Dataset.open(folder), None
                now = self.dataset.records
                others = {id for id in believed if now.get(id) != believed[id]}  # whose changes are not ours to undo
                kept = [one for one in self._before if isinstance(one, dict) and not others & one.keys()]
                self._before = list(kept) if believed else []
            except Med3dError as error:
                self.notice.say("error", str(error))
        self._refresh()

    def _is_on_disk(self) -> bool:
        """Whether the dataset is what this panel shows, so that writing it loses nothing."""
        from training_backend.data.dataset import Dataset

        return self.dataset is not None and Dataset.open(self.dataset.folder).records == self.dataset.records

    def _use_dataset(self, folder: Path) -> None:
        self.described = None
        self.state.dataset = folder
        self._on_dataset_changed(folder)
        self.notice.say("ok", f"The dataset in {folder} is in use; go on with Pre-train.")

    def _saved(self, output: Path, report: dict[str, Any]) -> None:
        self._use_dataset(output)
        stored, left_out = len(report["ok"]), len(report["quarantined"])
        text = f"{stored} cases are stored in {output.name}"
        excluded = stored - len(self.dataset.cases()) if self.dataset is not None else 0
        text += f", {excluded} of them excluded from training" if excluded else ""
        if left_out:
            self.notice.say("warning", f"{text}; {left_out} could not be used, their rows say why.")
        else:
            self.notice.say("ok", f"{text}; go on with Pre-train.")

    def _added(self, case: CaseRecord) -> None:
        self.notice.say("ok", f"{case.id} was added to the dataset ({case.split}).")
        self._tell_others()

    def _rows(self) -> list[Row]:
        if self.described is not None:
            given = self.described.given_splits
            rows = [Row(case, split_drawn=case.id not in given) for case in self.described.cases]
            return rows + [Row(None, each) for each in self.described.problems]
        if self.dataset is not None:
            return [Row(case) for case in self.dataset.records.values()] + [
                Row(None, each) for each in self.dataset.quarantined()
            ]
        return []

    def _refresh(self) -> None:
        rows = self._rows()
        self.table.show_rows(rows)
        for widget in (self.table, self.row_text, self.actions):
            widget.setVisible(bool(rows))
        self.empty.setVisible(not rows)
        self.saving.setVisible(self.described is not None)
        self.undo_button.setEnabled(bool(self._before))
        self.busy.setVisible(self._job is not None and self._job.running)
        self._tell_size()
        self._tell_row()

    def _tell_row(self) -> None:
        row = self.table.current()
        self.row_text.setText(f"{row.sign} {row.texts()[1]}: {row.sentence}" if row is not None else "")
        if row is None or row.case is None or row.case.id != self._reported:
            self.report.hide()

    def _tell_size(self) -> None:
        if self.described is None:
            return
        from training_backend.data.ingest import predicted_bytes

        try:
            config = self.form.config()
        except Med3dError:
            return
        cases = self.described.cases
        gigabytes = predicted_bytes(cases, config) / 1e9  # type: ignore[arg-type]
        excluded = sum(case.excluded for case in cases)
        which = f"{len(cases)} cases, {excluded} of them excluded for now," if excluded else f"{len(cases)} cases"
        self.size.setText(f"The store of {which} will take at most {gigabytes:.2f} GB.")

    def _change(self, change: Callable[[CaseRecord], dict[str, Any]]) -> None:
        """Replace the chosen cases by changed copies, in the description or in the dataset on disk."""
        chosen = {case.id: case.model_copy(update=change(case)) for case in self.table.chosen()}
        if self.described is not None:
            self._before.append(self.described)
            self.described = replace(self.described, cases=[chosen.get(case.id, case) for case in self.described.cases])
        elif self.dataset is not None and chosen:
            before = {id: self.dataset.records[id] for id in chosen}
            if self._write(chosen):
                self._before.append(before)
        self._refresh()

    def _write(self, cases: dict[str, CaseRecord]) -> bool:
        """Replace cases of the dataset on disk; a change that is refused leaves everything as it was."""
        if self.dataset is None:
            return False
        if not self._is_on_disk():
            self._on_dataset_changed(self.dataset.folder)
            self.notice.say("warning", "The dataset was changed meanwhile, and was read again. Repeat the change.")
            return False
        before = dict(self.dataset.records)
        self.dataset.records.update(cases)
        try:
            self.dataset.save()
        except Med3dError as error:
            self.dataset.records = before
            self.notice.say("error", str(error))
            return False
        self._tell_others()
        return True

    def undo(self) -> None:
        """Take back the last exclusion, move or dropped label of the cases shown."""
        if not self._before:
            return
        before = self._before.pop()
        if isinstance(before, dict):
            self._write(before)
        else:
            self.described = before
        self._refresh()

    def _tell_others(self) -> None:
        """Let the other panels count the cases of the dataset again."""
        self.state.dataset_changed.emit(self.state.dataset)

    def _toggle_excluded(self) -> None:
        """Exclude the chosen cases; when all of them are excluded already, take them back."""
        exclude = not all(case.excluded for case in self.table.chosen())
        self._change(lambda case: {"excluded": exclude})

    def _drop_labels(self) -> None:
        self._change(lambda case: {"label": None})

    def _move(self, index: int) -> None:
        if index > 0:
            self._change(lambda case: {"split": SPLITS[index - 1]})
            if self.described is not None:
                given = self.described.given_splits | {case.id for case in self.table.chosen()}
                self.described = replace(self.described, given_splits=given)
                self._refresh()
        self.split.setCurrentIndex(0)

    def _new_from_layers(self) -> None:
        from training_backend.data.dataset import Dataset
        from training_backend.data.manifest import DatasetInfo

        try:
            images, _ = visible_case(self.state.viewer)
        except Med3dError as error:
            self.notice.say("error", str(error))
            return
        folder = _free_folder(_datasets_folder(), "from-layers")
        contrasts = tuple(str(volume.meta.get("contrast") or f"image {n}") for n, volume in enumerate(images))
        Dataset(folder, DatasetInfo(name=folder.name, layout="layers", contrasts=contrasts)).save()
        self._use_dataset(folder)
        self.add_open_layers()

    def _list_used(self) -> None:
        known = [path for path in self.state.settings.get("datasets", []) if Path(path, "dataset.json").is_file()]
        self.used.clear()
        self.used.addItem("none", None)
        for path in known:
            self.used.addItem(dataset_name(Path(path)), path)
        self.used.setCurrentIndex(max(0, self.used.findData(str(self.state.dataset or ""))))
        self.used.setToolTip(str(self.state.dataset or ""))

    def _choose_used(self, index: int) -> None:
        path = self.used.itemData(index)
        self.described = None
        self.state.dataset = Path(path) if path else None
        self._refresh()

    def _output(self) -> Path:
        output = self.output.path
        if output is None:
            raise DataError("The dataset needs a folder to be saved in.", "Choose one.")
        return output

    def _root(self) -> Path:
        if self.described is not None:
            return self.described.root
        if self.dataset is None:
            raise DataError("No dataset is open.")
        return (self.dataset.folder / self.dataset.info.root).resolve()

    def _classes(self) -> Any:
        source = self.described or self.dataset
        return source.info.classes if source is not None else ()


def layers_of_case(case: CaseRecord, root: Path, classes: Any) -> list[_layers.LayerData]:
    """Layers of a case from its source files."""
    from training_backend.data.read import read_classes, read_volume, rescaled

    layers = []
    for image in case.images:
        name = f"{case.id} · {image.contrast}" if len(case.images) > 1 else case.id
        layers.append(
            _layers.volume_layer(rescaled(read_volume(root / image.path, key=image.key), image.rescale), name=name)
        )
    if case.label is not None:
        label = read_classes(root / case.label.path, key=case.label.key, values=case.label.values)
        layers.append(_layers.labels_layer(label.array, label.geometry, f"{case.id} · label", classes))
    return layers


def _datasets_folder() -> Path:
    from training_backend.jobs.registry import runs_root

    return runs_root().parent / "datasets"


def _free_folder(parent: Path, name: str) -> Path:
    folder, number = parent / name, 2
    while folder.exists():
        folder, number = parent / f"{name}-{number}", number + 1
    return folder


def _file_safe(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip("-.") or "case"
