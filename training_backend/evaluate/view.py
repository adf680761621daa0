"""What a model sees of a scan, as pictures on the scan: the network's view is cut out, and drawings put back.

A method's `ModelView` (or its `preview`) draws on the grid of the network input; here the input is cut from the scan,
and the pictures get the place and the units (HU for CT) of the scan.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training_backend.data.volume import Geometry, Shape, Volume
from training_backend.errors import ConfigError, DataError
from training_backend.methods.base import Frame, PreviewArray, ReportedCase
from training_backend.methods.shared_views import all_views

if TYPE_CHECKING:
    from training_backend.data.dataset import Dataset
    from training_backend.data.prepare import InputProfile, Prepared
    from training_backend.methods.base import Encoder, ModelView
    from training_backend.weights.load import LoadedModel


ARROW = "from L,from P,from S,to L,to P,to S"
"""Columns of a table of arrows."""
_FORBIDDEN = re.compile(r'[<>:"/\\|?*]')
"""What names of files may not hold on some system."""


@dataclass(frozen=True)
class Picture:
    """One picture and the grid that its array lies on (a token grid where an element is a token).

    A matrix lies nowhere; its grid is that of the view. Arrows are counted in elements of theirs.
    """

    picture: PreviewArray
    geometry: Geometry


@dataclass(frozen=True)
class Cut:
    """The network's view of a prepared scan.

    Attributes:
        array: [C, D, H, W] float32, with the darkest value outside the scan.
        geometry: of that grid.
        prepared: the scan it was cut from.
    """

    array: np.ndarray[Any, Any]
    geometry: Geometry
    prepared: Prepared

    def placed(self, picture: PreviewArray) -> Picture:
        """A picture of the view, on the scan and in its units."""
        return Picture(_in_units(picture, self.prepared), _own_grid(self.geometry, picture))


@dataclass(frozen=True)
class PreparedCase:
    """A case of a dataset as the model sees it, with its report."""

    id: str
    prepared: Prepared
    report: str

    @classmethod
    def of(cls, dataset: Dataset, id: str, profile: InputProfile) -> PreparedCase:
        """Case of a dataset from its store; a `DataError` where it has no report or no scan."""
        from training_backend.data.prepare import stored_input

        case = dataset.case(id)
        if not case.has("text") or not case.images:
            raise DataError(f"The case {id} has no {'scan' if case.has('text') else 'report'}.", "Choose another one.")
        return cls(id, stored_input(dataset, case, profile), case.report)


@dataclass(frozen=True)
class _Reported:
    """A case whose view is not yet on the device."""

    id: str
    cut: Cut
    report: str


@dataclass(frozen=True)
class Drawing:
    """A view of a model at work; each frame replaces the one before.

    Attributes:
        frames: what the method draws, not yet placed; stop asking for more to stop the work.
        cut: places the pictures of a frame.
        other: places those of the other scan, for views that compare two.
    """

    frames: Iterator[Frame]
    cut: Cut
    other: Cut | None = None

    def placed(self, frame: Frame) -> list[Picture]:
        """The pictures of a frame on the scan they belong to, safe to keep."""
        cuts = (self.cut, self.other or self.cut)
        return [cuts[one.other].placed(replace(one, array=np.array(one.array))) for one in frame.pictures]


def views_of(loaded: LoadedModel) -> tuple[ModelView, ...]:
    """What can be shown of a model besides features, similarity and attention."""
    task = loaded.config.task.name if loaded.config.task else None
    return tuple(view for view in all_views(loaded.method, task) if view.suits(loaded.kind, task))


def find_view(loaded: LoadedModel, name: str) -> ModelView:
    """The view called `name`, or a `ConfigError` that says what this model can show."""
    known = {view.name: view for view in views_of(loaded)}
    if name in known:
        return known[name]
    for view in all_views(loaded.method, loaded.config.task.name if loaded.config.task else None):
        if view.name == name:
            needed = f"fine-tuned for {view.task}" if view.needs == "finetune" else "with its pre-training heads"
            raise ConfigError(f"{view.title} needs a model {needed}; this one is of kind {loaded.kind}.")
    near = difflib.get_close_matches(name, known, n=1)
    told = f"It has {', '.join(known)}." if known else f"Models of {loaded.method.card.title} have none."
    advice = f"Did you mean {near[0]!r}?" if near else told
    raise ConfigError(f"This model has no view called {name!r}.", advice)


def draw(
    loaded: LoadedModel,
    prepared: Prepared,
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    centre: Sequence[float] | None = None,
    point: Sequence[float] | None = None,
    other: Prepared | None = None,
    other_centre: Sequence[float] | None = None,
    against: LoadedModel | None = None,
    cases: Sequence[PreparedCase] = (),
) -> Drawing:
    """Begin to draw one view of a model; nothing is computed before the first frame is asked for.

    Args:
        loaded: on the device where it shall compute.
        prepared: the scan as the model was trained to see it.
        name: of the view.
        options: settings of the view; its defaults where missing.
        centre: (z, y, x) voxel on the scan's own grid around which a model of crops looks; its middle when None.
        point: (z, y, x) voxel on the scan's own grid that was clicked, for views that start from one. A box around
            `centre` that does not hold it is moved to it.
        other: a second scan, prepared alike, for views that compare two.
        other_centre: voxel on the second scan's own grid around which the model looks there.
        against: another model, for views that compare two; the teacher beside the model when None.
        cases: of a dataset, for views that compare such.

    Raises:
        ConfigError: no such view, wrong options, or no second scan for a view that compares two.
        DataError: another number of contrasts than the model looks at, or a point beside the scan.
        WeightsError: no teacher beside the model, for views that compare the model with it.
    """
    view = find_view(loaded, name)
    if view.point and point is None:
        raise ConfigError(f"{view.title} starts from a voxel of the scan.", "Click one, or give --point Z Y X.")
    if view.other and other is None:
        raise ConfigError(f"{view.title} compares two scans.", "Open a second one and choose it, or give --other FILE.")
    if view.cases and not cases:
        advice = "Choose them from a dataset, or give --dataset DIR --cases ID ID."
        raise ConfigError(f"{view.title} compares cases of a dataset.", advice)
    settings = view.options.parse(dict(options or {}), where=name)
    patch = _patch(loaded.encoder)
    cut = cut_view(loaded.encoder, prepared, loaded.profile, centre)
    if view.point and point is not None:
        voxel = _voxel_in(cut, point)
        if voxel is None:
            cut = cut_view(loaded.encoder, prepared, loaded.profile, point)
            voxel = _voxel_in(cut, point)
        if voxel is None:
            raise DataError("The model does not see this place of the scan.", "Click inside the body.")
        settings = settings.updated({"point": voxel})
    second = None if other is None else cut_view(loaded.encoder, other, loaded.profile, other_centre)
    for one in (cut, second) if view.other and second is not None else (cut,):
        _check_patches(one.array.shape[1:], patch)
    beside: dict[str, Any] = {}
    if view.other and second is not None:
        beside["other"] = second
    if view.teacher:
        beside["teacher"] = loaded.teacher
    if view.against:
        beside["against"] = _taken_from(loaded) if against is None else _same_channels(against, loaded)
    if view.cases:
        cuts = [(one, cut_view(loaded.encoder, one.prepared, loaded.profile)) for one in cases]
        beside["cases"] = [_Reported(one.id, part, one.report) for one, part in cuts]
    return Drawing(_frames(loaded, view, cut, settings, beside), cut, second)


def cut_view(encoder: Encoder, prepared: Prepared, profile: InputProfile, centre: Sequence[float] | None = None) -> Cut:
    """The whole scan, or for models of crops the crop around `centre`.

    Raises:
        DataError: when the network has another number of channels than the scan.
    """
    if len(prepared.array) != encoder.in_channels:
        raise DataError(
            f"This model looks at {encoder.in_channels} contrast(s) at once, but the scan has {len(prepared.array)}.",
            "Open the missing contrasts too.",
        )
    start, size = view_box(prepared, profile, _patch(encoder), centre)
    return Cut(_box(prepared.array, start, size), prepared.geometry.cropped(start, size), prepared)


def _patch(encoder: Encoder) -> Shape:
    """What sides of views are multiples of: single voxels where the encoder takes any size, in training too."""
    return (1, 1, 1) if getattr(encoder, "any_size", False) else encoder.patch_size


def view_box(
    prepared: Prepared, profile: InputProfile, patch: Shape, centre: Sequence[float] | None
) -> tuple[Shape, Shape]:
    """First voxel and size of the network's view on the prepared grid; may reach beyond it, into padding."""
    shape = np.array(prepared.array.shape[1:])
    if profile.view == "volume":
        size = -(-shape // patch) * np.array(patch)
        start = np.zeros(3, int)
    else:
        size = np.array(profile.size)
        middle = (shape - 1) / 2 if centre is None else _onto(prepared.native, prepared.geometry, centre)
        start = np.round(middle - (size - 1) / 2).astype(int)
        start = np.where(shape > size, np.clip(start, 0, np.maximum(shape - size, 0)), (shape - size) // 2)
    return _triple(start), _triple(size)


def draw_file(
    source: str,
    input: Path,
    output: Path,
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    point: Sequence[float] | None = None,
    centre: Sequence[float] | None = None,
    other: Path | None = None,
    other_centre: Sequence[float] | None = None,
    against: str = "",
    report: Path | None = None,
    dataset: Path | None = None,
    cases: Sequence[str] = (),
    device: str = "auto",
) -> tuple[list[Path], str]:
    """Write the pictures of the last frame of a view as volumes into a folder; answers the files and the sentence.

    Args:
        source: run, model folder, weights file or ``zoo:NAME``.
        input: scan, in any format that is read.
        output: folder, made if need be.
        name: of the view.
        options: settings of the view.
        point: voxel (z, y, x) on the scan's own grid, for views that start from one.
        centre: voxel around which a model of crops looks.
        other: second scan, for views that compare two.
        other_centre: voxel around which a model of crops looks there.
        against: model that the first is compared with, named as `source` is.
        report: text file with the report of the scan, for views that read one.
        dataset: folder of a dataset, for views that compare cases.
        cases: their ids.
        device: auto, cpu, cuda or cuda:N.
    """
    from training_backend.data.dataset import Dataset
    from training_backend.data.prepare import prepare
    from training_backend.data.read import read_volumes
    from training_backend.evaluate.predict import chosen_device
    from training_backend.weights.load import load_model

    loaded = load_model(source, str(chosen_device(device)))
    view = find_view(loaded, name)
    if report is not None:
        if view.text != "report":
            raise ConfigError(f"{view.title} reads no report.", "Leave --report out.")
        options = {**(options or {}), "text": _read_text(report)}
    if cases and not view.cases:
        raise ConfigError(f"{view.title} looks at one scan.", "Leave --cases out.")
    if cases and dataset is None:
        raise ConfigError("Cases belong to a dataset.", "Give its folder as --dataset DIR.")
    opened = Dataset.open(dataset) if dataset is not None and cases else None
    chosen = [PreparedCase.of(opened, id, loaded.profile) for id in cases] if opened is not None else []
    if other is not None and not view.other:
        raise ConfigError(f"{view.title} looks at one scan.", "Leave --other out.")
    if against and not view.against:
        raise ConfigError(f"{view.title} looks at one model.", "Leave --against out.")
    compared = load_model(against, str(chosen_device(device))) if against else None
    first = prepare(read_volumes(input), loaded.profile)
    second = None if other is None else prepare(read_volumes(other), loaded.profile)
    places: dict[str, Any] = {"centre": centre, "point": point, "other_centre": other_centre}
    drawing = draw(loaded, first, name, options, other=second, against=compared, cases=chosen, **places)
    frame = Frame(())
    for frame in drawing.frames:  # noqa: B007  the last one is kept
        pass
    return write_pictures(drawing.placed(frame), output), frame.text


def _read_text(path: Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"The report {Path(path).name} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"The report {Path(path).name} is no UTF-8 text.", "Save it as UTF-8.") from error


def write_pictures(pictures: Sequence[Picture], output: Path) -> list[Path]:
    """Write each picture as ``NAME.nii.gz`` on its own grid; colours become one volume each, matrices ``NAME.csv``.

    Arrows become ``NAME.csv`` with their beginnings and ends in millimetres to the Left, Posterior and Superior.
    """
    from training_backend.data.write import write_volume

    if pictures:
        Path(output).mkdir(parents=True, exist_ok=True)
    written = []
    for one in pictures:
        name, array = _FORBIDDEN.sub("-", one.picture.name), one.picture.array
        if one.picture.role == "matrix":
            written.append(Path(output) / f"{name}.csv")
            np.savetxt(written[-1], array, fmt="%.6g", delimiter=",")
            continue
        if one.picture.role == "vectors":
            written.append(Path(output) / f"{name}.csv")
            ends = np.stack([array[:, 0], array.sum(axis=1)], axis=1)
            mm = ends @ one.geometry.to_lps[:3, :3].T + one.geometry.to_lps[:3, 3]
            np.savetxt(written[-1], mm.reshape(-1, 6), fmt="%.2f", delimiter=",", header=ARROW, comments="")
            continue
        parts = {name: array}
        if one.picture.role == "rgb":
            parts = {f"{name}-{colour}": array[..., index] for index, colour in enumerate(("red", "green", "blue"))}
        for part, values in parts.items():
            path = Path(output) / f"{part}.nii.gz"
            written.append(write_volume(Volume(values, one.geometry, name=part), path, overwrite=True))
    return written


def _frames(
    loaded: LoadedModel, view: ModelView, cut: Cut, settings: Any, beside: Mapping[str, Any]
) -> Iterator[Frame]:
    import torch

    network: Any = loaded.encoder if view.needs == "encoder" else loaded.module
    generator = torch.Generator().manual_seed(int(getattr(settings, "seed", 0) or 0))
    network.eval()
    device = next(network.parameters()).device

    def on_device(one: Cut) -> Any:
        return torch.from_numpy(one.array)[None].to(device)

    def given(value: Any) -> Any:
        if isinstance(value, list):
            return [ReportedCase(one.id, on_device(one.cut), one.report) for one in value]
        return on_device(value) if isinstance(value, Cut) else value.to(device)

    drawn = view.draw(
        network, on_device(cut), settings, generator, **{name: given(value) for name, value in beside.items()}
    )
    while True:
        with torch.inference_mode():  # only while the method is at work, not in between
            frame = next(drawn, None)
        if frame is None:
            return
        yield replace(frame, text=f"{frame.text} {_older(loaded)}".strip()) if view.teacher and frame.text else frame


def _older(loaded: LoadedModel) -> str:
    """A sentence where the model is of a step at which its teacher was not there yet."""
    step, taken = loaded.card.get("step"), loaded.card.get("teacher", {}).get("step")
    if step is None or taken is None or step > taken:
        return ""
    return f"The model was best at step {step}, before it had this teacher, which is the network of step {taken}."


def _taken_from(loaded: LoadedModel) -> Any:
    """The teacher beside a model."""
    if not loaded.card.get("teacher"):
        raise ConfigError(
            "No teacher is kept beside this model to compare it with.",
            "Choose a second model: the stage before, or for an earlier modality the stage that taught it.",
        )
    return loaded.teacher


def _same_channels(against: LoadedModel, loaded: LoadedModel) -> Any:
    """Encoder of the other model, if it can look at the views of this one."""
    theirs, mine = against.encoder.in_channels, loaded.encoder.in_channels
    if theirs != mine:
        raise ConfigError(
            f"The models look at {mine} and {theirs} contrasts, so they cannot see the same view.",
            "Choose models of one kind of scan.",
        )
    return against.encoder


def _voxel_in(cut: Cut, point: Sequence[float]) -> Shape | None:
    """A voxel of the scan's own grid as a voxel of the view, or None beside it."""
    voxel = np.floor(_onto(cut.prepared.native, cut.geometry, point) + 0.5 + 1e-6).astype(int)
    inside = (voxel >= 0).all() and (voxel < cut.geometry.shape).all()
    return _triple(voxel) if inside else None


def _check_patches(size: Sequence[int], patch: Shape) -> None:
    if any(n % p for n, p in zip(size, patch, strict=True)):
        raise ConfigError(f"A view of {tuple(size)} voxels is no multiple of the patch {patch}.")


def _box(array: np.ndarray[Any, Any], start: Shape, size: Shape) -> np.ndarray[Any, Any]:
    """Box of [C, D, H, W], with the darkest value of each channel outside the scan."""
    result = np.empty((len(array), *size), np.float32)
    result[:] = array.min(axis=(1, 2, 3), keepdims=True)
    source, target = [slice(None)], [slice(None)]
    for first, n, length in zip(start, size, array.shape[1:], strict=True):
        low, high = max(first, 0), min(first + n, length)
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    result[tuple(target)] = array[tuple(source)]
    return result


def _onto(source: Geometry, target: Geometry, voxel: Sequence[float]) -> np.ndarray[Any, Any]:
    """A voxel of `source` as a place on the grid `target`."""
    point = np.linalg.solve(target.to_lps, source.to_lps @ np.array([*voxel, 1.0]))
    result: np.ndarray[Any, Any] = point[:3]
    return result


def _in_units(picture: PreviewArray, prepared: Prepared) -> PreviewArray:
    """Intensities back in the units of the scan; masks and token maps as they are."""
    if picture.role not in ("image", "error"):
        return picture
    differences = picture.role == "error"
    array = prepared.in_units(picture.array, differences=differences)
    limits = picture.limits
    if limits is not None:
        low, high = prepared.in_units(np.array(limits, np.float32), differences=differences)
        limits = (float(low), float(high))
    return replace(picture, array=array, limits=limits)


def _own_grid(view: Geometry, picture: PreviewArray) -> Geometry:
    if picture.role == "matrix" or (picture.voxels == (1, 1, 1) and not any(picture.start)):
        return view
    shape = picture.array.shape[:3]
    if picture.role == "vectors":  # as many elements as the view has
        shape = tuple(-(-n // size) for n, size in zip(view.shape, picture.voxels, strict=True))
    dz, dy, dx = (mm * n for mm, n in zip(view.spacing_mm, picture.voxels, strict=True))
    if any(picture.start):
        view = view.cropped(picture.start, _triple(np.array(shape) * picture.voxels))
    return view.resampled((dz, dy, dx), _triple(np.array(shape)))


def _triple(values: np.ndarray[Any, Any]) -> Shape:
    z, y, x = (int(value) for value in values)
    return (z, y, x)
