"""What the model process can be asked for. Every operation takes its parameters and a progress function.

==================  =================================================  =============================================
operation           parameters                                         values
==================  =================================================  =============================================
``ping``                                                               `pid`
``info``                                                               `device`, `memory_mb`, `total_mb`, `model`
``load``            `source`                                           facts of the model, see below
``predict``         `source`, `volumes`, `overlap`, `probabilities`    `labels`, `classes`, `volumes_ml`,
                                                                       `probabilities`, `values`, `notes`
``register``        `source`, `volumes` (moving, fixed), `labels`      `warped`, `labels`, `grid`, `jacobian`, `text`,
                    of the moving scan                                 `notes`
``features``        `source`, `volumes`, `normalised`, `overlap`,      `tokens` [d, h, w, E], `geometry`, `body`,
                    `level`                                            `cached`, `features` (a name of what they are)
``features_need``   `source`, `geometry`, `contrasts`, `overlap`,      `bytes` that ``features`` takes, `free` ones,
                    `level`                                            `windows`, `sentence`
``reconstruct``     `source`, `volumes`, `mask_ratio`, `seed`,         `pictures`, `error`, `unit`
                    `full`, `centre`
``preview_masking`` `config`, `volumes`, `mask_ratio`, `seed`,         as ``reconstruct``; only what needs no training,
                    `centre`                                           where the configuration names no weights. Where
                                                                       its views are sequences: one of each kind, and
                                                                       `text`
``attention``       `source`, `volumes`, `block`, `head`, `overlap`    `attention` [d, h, w], `geometry`, `depth`,
                                                                       `heads`
``view``            `source`, `volumes`, `name`, `options`, `centre`,  `pictures`, `text`, `unit`, `share`; the same
                    `point`, `other` (contrasts of a second scan),     as partial values, frame after frame;
                    `other_centre`, `against` (another source),        `passages`
                    `dataset` and `cases` (ids)
``next_cases``      `source`, `folder`, `by`, `count`                  `choices`, see `evaluate.next_case.Choice`
``compare_runs``    `runs` (folders), `metric`, `structure`            see `jobs.run_ops.compare_runs`
``report_runs``     as ``compare_runs``, and `path`, `smoothing`       `path`
``cohort_map``      `source`, `folders`, `regions`                     see `jobs.cohort_ops.cohort_map`
``cohort_umap``     `vectors`                                          `places` [N, 2]
``estimate``        `config`, `steps`                                  fields of `engine.estimate.Estimate`,
                                                                       `sentence`
``import_report``   `config`                                           fields of `weights.report.ImportReport`,
                                                                       `text`; `method` and `data` settings that
                                                                       the weights were trained with
==================  =================================================  =============================================

`source` is a run directory, a model folder, a weights file or ``zoo:NAME``. `volumes` are the contrasts of one case.
Answers about a model hold its facts too: `summary` (a sentence), `method`, `kind`, `task`, `depth`, `patch_size`,
`contrasts`, `reconstructs`, and `views`, a list of `name`, `title`, `tip`, `point`, `other`, `teacher`, `against`,
`text`, `cases` and `options` (a JSON schema). Those about a scan have a `warning` too, a sentence where the scan is of
another modality than the model learnt from, else empty. Views that compare cases need no `volumes`. `centre` and
`point` are voxels (z, y, x) of the scan's own grid. A picture is `name`, `array`, `geometry` (of the array's own grid),
`role`, `limits`, `classes`, `sides`, `names`, `other`; one of role "matrix" has no place in the scan, the numbers of
role "vectors" are counted in elements of its geometry. A passage is `title`, `value` and `pieces`, each of these
`text`, `kind` and `told`; texts are answered, and never logged.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training_backend.config import RunConfig
from training_backend.config.registry import method as find_method
from training_backend.data.classes import class_table
from training_backend.data.manifest import ClassEntry, DatasetInfo
from training_backend.data.volume import Volume
from training_backend.errors import RunError
from training_backend.jobs.cohort_ops import cohort_map, cohort_umap
from training_backend.jobs.compare_ops import compare_masks
from training_backend.jobs.find_ops import FindOps
from training_backend.jobs.kept_arrays import Digests
from training_backend.jobs.learn_ops import next_cases
from training_backend.jobs.run_ops import compare_runs, report_runs
from training_backend.jobs.stroke_ops import StrokeOps

if TYPE_CHECKING:
    from torch import nn

    from training_backend.data.prepare import InputProfile, Prepared
    from training_backend.evaluate.view import Picture, PreparedCase
    from training_backend.jobs.serve import Progress
    from training_backend.methods.base import Method, ModelView
    from training_backend.weights.load import LoadedModel

log = logging.getLogger(__name__)

Params = dict[str, Any]
Values = dict[str, Any]

TRAINED_ONLY = ("reconstruction", "error")
"""Pictures that mean nothing before training."""

_KINDS = {"pretrain": "pre-trained", "encoder": "the encoder alone", "finetune": "fine-tuned"}


@dataclass(frozen=True)
class Ready:
    """A model on its device."""

    loaded: LoadedModel
    stamp: tuple[Any, ...]

    @cached_property
    def hash(self) -> str:
        """Of all weights."""
        from training_backend.evaluate.feature_cache import model_hash

        return model_hash(self.loaded.module)

    @property
    def facts(self) -> Values:
        """What a panel needs to know of the model."""
        from training_backend.evaluate.view import views_of

        config, profile = self.loaded.config, self.loaded.profile
        size = " × ".join(str(n) for n in profile.size)
        seen = f"whole scans at {size} voxels" if profile.view != "crop" else f"crops of {size} voxels"
        limits = getattr(self.loaded.module, "limits", "")
        what = f"fine-tuned for {config.task.name}" if config.task else _KINDS[self.loaded.kind]
        return {
            "summary": f"{self.loaded.method.card.title}, {what}; sees {seen}. {limits}".strip(),
            "method": config.method.name,
            "kind": self.loaded.kind,
            "task": config.task.name if config.task else None,
            "depth": self.loaded.encoder.depth,
            "patch_size": list(self.loaded.encoder.patch_size),
            "contrasts": list(profile.contrasts),
            "reconstructs": self.loaded.kind == "pretrain",
            "views": [_described(view) for view in views_of(self.loaded)],
        }


class Session:
    """The model process's memory: a device and the model used last.

    Args:
        device: auto, cpu, cuda or cuda:N.
    """

    def __init__(self, device: str = "auto") -> None:
        self._wanted = device
        self._ready: Ready | None = None
        self._scans: dict[str, Prepared] = {}
        self._second: Ready | None = None
        self._digests = Digests()
        self._strokes, self._finds = StrokeOps(self), FindOps(self)

    def operations(self) -> Mapping[str, Callable[[Params, Progress], Values]]:
        """All operations by name."""
        return {
            "ping": lambda _params, _progress: {"pid": os.getpid()},
            "info": self.info,
            "load": self.load,
            "predict": self._warned(self.predict),
            "register": self.register,
            "features": self._warned(self.features),
            "features_need": self.features_need,
            "reconstruct": self._warned(self.reconstruct),
            "preview_masking": self.preview_masking,
            "attention": self._warned(self.attention),
            "view": self._warned(self.view),
            "estimate": self.estimate,
            "import_report": self.import_report,
            "compare_masks": compare_masks,
            "compare_runs": compare_runs,
            "report_runs": report_runs,
            "next_cases": partial(next_cases, self),
            "cohort_map": partial(cohort_map, self),
            "cohort_umap": cohort_umap,
            **self._strokes.operations(),
            **self._finds.operations(),
        }

    def info(self, _params: Params, progress: Progress) -> Values:
        """Device, its memory in use and in all, and the summary of the model in memory."""
        import psutil
        import torch

        model = self._ready.facts["summary"] if self._ready else ""
        device = self.device
        if device.startswith("cuda"):
            free, total = torch.cuda.mem_get_info(device)
            name, used = torch.cuda.get_device_name(device), total - free
        else:
            name, used, total = "CPU", psutil.Process().memory_info().rss, psutil.virtual_memory().total
        return {"device": name, "memory_mb": used / 2**20, "total_mb": total / 2**20, "model": model}

    def load(self, params: Params, progress: Progress) -> Values:
        """Load a model and keep it."""
        return self.model(params, progress).facts

    def predict(self, params: Params, progress: Progress) -> Values:
        """Labels on the scan's own grid with volumes per class, or values of the whole case."""
        from training_backend.evaluate.predict import predict_volumes

        ready = self.model(params, progress)
        found = predict_volumes(
            ready.loaded,
            _volumes(params),
            probabilities=bool(params.get("probabilities", False)),
            overlap=params.get("overlap"),
            device=self.device,
            progress=_saying(progress, "Predicting"),
        )
        return {
            **ready.facts,
            "labels": found.labels,
            "classes": _class_table(ready.loaded, found.labels),
            "volumes_ml": dict(found.volumes_ml),
            "probabilities": list(found.probabilities),
            "values": dict(found.values),
            "text": found.text,
            "notes": list(found.notes),
        }

    def register(self, params: Params, progress: Progress) -> Values:
        """The first scan on the grid of the second, with its label map, and how space was bent."""
        from training_backend.evaluate.register import register_volumes

        ready, volumes, labels = self.model(params, progress), _volumes(params), params.get("labels")
        if len(volumes) != 2:
            raise RunError(f"Registration takes two scans, but {len(volumes)} were given.", "Choose a moving scan.")
        progress(0.0, "Registering")
        said = _saying(progress, "Registering")
        moving, fixed = volumes
        found = register_volumes(ready.loaded, moving, fixed, labels, device=self.device, progress=said)
        return {
            **ready.facts,
            "warped": found.warped,
            "labels": found.labels,
            "grid": found.grid,
            "jacobian": found.jacobian,
            "text": found.summary(),
            "notes": list(found.notes),
        }

    def features(self, params: Params, progress: Progress) -> Values:
        """Tokens of the whole scan, from the cache where they were computed before."""
        from training_backend.data.prepare import prepare
        from training_backend.evaluate import feature_cache
        from training_backend.evaluate.features import body_tokens, map_tiles, token_features

        ready = self.model(params, progress)
        volumes, profile, encoder = _volumes(params), ready.loaded.profile, ready.loaded.encoder
        normalised, overlap = bool(params.get("normalised", True)), float(params.get("overlap", 0.5))
        places = json.dumps([volume.geometry.to_dict() for volume in volumes])
        names = json.dumps([[volume.name, volume.modality, volume.meta.get("contrast")] for volume in volumes])
        level = int(params.get("level") or 0)
        settings = f"{profile.model_dump_json()} {normalised} {overlap} {level}"
        arrays = [self._digests.of(volume.array) for volume in volumes]
        key = feature_cache.content_hash(ready.hash, places, names, settings, *arrays)
        kept = feature_cache.find(key)
        if kept is not None:
            found, body = kept
        else:
            progress(0.0, "Preparing the scan")
            prepared = prepare(volumes, profile)
            said = _saying(progress, "Computing features")
            how: dict[str, Any] = {"normalised": normalised, "overlap": overlap, "level": level}
            found = token_features(encoder, prepared, profile, **how, progress=said)
            body = body_tokens(prepared, map_tiles(encoder, prepared.geometry.shape, profile, level, overlap)[0])
            feature_cache.keep(key, found, body)
        answer = {"tokens": found.values, "geometry": found.geometry, "body": body, "cached": kept is not None}
        return {**ready.facts, **answer, "features": feature_cache.content_hash(ready.hash, settings)}

    def features_need(self, params: Params, progress: Progress) -> Values:
        """What the features of a scan would take; only its grid is needed."""
        import psutil

        from training_backend.evaluate.feature_estimate import estimate_features, in_gib

        ready = self.model(params, progress)
        encoder, profile = ready.loaded.encoder, ready.loaded.profile
        how: dict[str, Any] = {"level": int(params.get("level") or 0), "overlap": float(params.get("overlap", 0.5))}
        found = estimate_features(encoder, profile, params["geometry"], int(params.get("contrasts") or 1), **how)
        free = psutil.virtual_memory().available
        sentence = f"{found} {in_gib(free)} are free."
        return {**ready.facts, "bytes": found.bytes, "free": free, "windows": found.windows, "sentence": sentence}

    def reconstruct(self, params: Params, progress: Progress) -> Values:
        """Masked view, reconstruction and error of a scan by a pre-trained model."""
        from training_backend.evaluate.reconstruct import check_reconstructs

        ready = self.model(params, progress)
        check_reconstructs(ready.loaded)
        progress(0.0, "Reconstructing")
        return {**ready.facts, **_pictures(ready.loaded.method, ready.loaded.module, ready.loaded.profile, params)}

    def preview_masking(self, params: Params, progress: Progress) -> Values:
        """What a method would see of a scan under a configuration, or example sequences, before any training."""
        import torch

        config = _small_if_untrained(RunConfig.parse(params["config"]))
        if config.data.view == "sequence":
            return _sequences(config, params, progress)
        progress(0.0, "Building the network")
        torch.manual_seed(config.seed)
        method = find_method(config.method.name)
        network = method.build(config)
        if config.weights:
            from training_backend.weights.transfer import init_from

            init_from(network, config.weights, config)
        progress(0.3, "Masking the scan")
        answer = _pictures(method, network.to(self.device).eval(), _profile(config), params)
        if not config.weights:
            answer["pictures"] = [one for one in answer["pictures"] if one["name"] not in TRAINED_ONLY]
            answer["error"] = None
        return answer

    def attention(self, params: Params, progress: Progress) -> Values:
        """Attention of the class token to each patch of a scan."""
        from training_backend.data.prepare import prepare
        from training_backend.evaluate.features import class_attention

        ready = self.model(params, progress)
        prepared = prepare(_volumes(params), ready.loaded.profile)
        found, heads = class_attention(
            ready.loaded.encoder,
            prepared,
            ready.loaded.profile,
            block=int(params.get("block", -1)),
            head=params.get("head"),
            overlap=float(params.get("overlap", 0.5)),
            progress=_saying(progress, "Computing attention"),
        )
        return {**ready.facts, "attention": found.values, "geometry": found.geometry, "heads": heads}

    def view(self, params: Params, progress: Progress) -> Values:
        """Draw a view of a model, sending its frames on the way."""
        from training_backend.evaluate.view import draw
        from training_backend.methods.base import Frame

        ready = self.model(params, progress)
        cases = self._cases(params, ready.loaded.profile, progress)
        scans = [] if cases and not params.get("volumes") else [_volumes(params)]
        if params.get("other"):
            scans.append(_volumes({"volumes": params["other"]}))
        prepared, *others = self._prepared(scans, ready.loaded.profile, progress) or [cases[0].prepared]
        name, options = str(params.get("name") or ""), params.get("options")
        where: dict[str, Any] = {key: params.get(key) for key in ("centre", "point", "other_centre")}
        against = self._compared(str(params.get("against") or ""), progress)
        beside: dict[str, Any] = {"other": next(iter(others), None), "against": against, "cases": cases}
        drawing = draw(ready.loaded, prepared, name, options, **beside, **where)
        unit = "HU" if prepared.statistics[0].ct else ""

        def values(frame: Frame) -> Values:
            pictures = [_picture(one) for one in drawing.placed(frame)]
            passages = [asdict(passage) for passage in frame.passages]
            return {"pictures": pictures, "text": frame.text, "share": frame.share, "unit": unit, "passages": passages}

        frame = Frame(())
        for frame in drawing.frames:
            progress(frame.share, "Drawing")
            if frame.share < 1:
                progress.partial(partial(values, frame))
        return {**ready.facts, **values(frame)}

    def estimate(self, params: Params, progress: Progress) -> Values:
        """Time and memory that a run of a configuration would take, from a few real steps."""
        from training_backend.engine.estimate import estimate

        config = RunConfig.parse(params["config"])
        self._ready = self._second = None  # the memory is needed, and would be counted
        progress(0.0, "Trying a few steps")
        found = estimate(config, int(params.get("steps", 3)))
        return {**asdict(found), "sentence": str(found)}

    def import_report(self, params: Params, progress: Progress) -> Values:
        """What would become of every tensor if a run of `config` started, in a network built as its weights want it."""
        from training_backend.weights.source import open_source
        from training_backend.weights.transfer import transfer

        config = RunConfig.parse(params["config"])
        progress(0.0, "Reading the weights")
        found = open_source(config.weights)
        method = find_method(found.config.method.name)
        config = RunConfig.parse({**config.model_dump(), "method": found.config.method.model_dump()})
        network: Any = method.build_encoder(config) if config.task is not None else method.build(config)
        progress(0.6, "Comparing the weights with the network")
        report = transfer(network, found, config, encoder_only=config.task is not None)
        data = found.config.data.model_dump(include={"intensity", "size", "view", "keep_aspect", "contrasts"})
        return {**report.to_dict(), "text": str(report), "method": found.config.method.model_dump(), "data": data}

    def _warned(self, operation: Callable[[Params, Progress], Values]) -> Callable[[Params, Progress], Values]:
        """An operation that also tells when a scan is of another modality than those that the model learnt from."""

        def warned(params: Params, progress: Progress) -> Values:
            from training_backend.evaluate.modality import modality_warning

            values = operation(params, progress)
            assert self._ready is not None  # the operation has loaded it
            return {**values, "warning": modality_warning(self._ready.loaded.profile, params.get("volumes") or [])}

        return warned

    @property
    def device(self) -> str:
        """Where the process computes."""
        import torch

        if self._wanted != "auto":
            return self._wanted
        return "cuda" if torch.cuda.is_available() else "cpu"

    def _prepared(self, scans: list[list[Volume]], profile: InputProfile, progress: Progress) -> list[Prepared]:
        """Scans as the model sees them, kept so that turning a knob of a view does not prepare them again."""
        from training_backend.data.prepare import prepare
        from training_backend.evaluate.feature_cache import content_hash

        keys = []
        for volumes in scans:
            facts = [(one.geometry.to_dict(), one.name, one.modality, one.meta.get("contrast")) for one in volumes]
            keys.append(
                content_hash(
                    json.dumps(facts), profile.model_dump_json(), *(self._digests.of(one.array) for one in volumes)
                )
            )
        self._scans = {key: kept for key, kept in self._scans.items() if key in keys}  # frees old ones first
        for key, volumes in zip(keys, scans, strict=True):
            if key not in self._scans:
                progress(0.0, "Preparing the scan")
                self._scans[key] = prepare(volumes, profile)
        return [self._scans[key] for key in keys]

    def _cases(self, params: Params, profile: InputProfile, progress: Progress) -> list[PreparedCase]:
        """The cases of a dataset that a view compares; their reports are read here and stay here."""
        from training_backend.data.dataset import Dataset
        from training_backend.evaluate.view import PreparedCase

        ids = list(params.get("cases") or [])
        if not ids:
            return []
        dataset = Dataset.open(Path(str(params.get("dataset") or "")))
        found = []
        for done, id in enumerate(ids):
            progress(done / len(ids), f"Reading {id}")
            found.append(PreparedCase.of(dataset, str(id), profile))
        return found

    def model(self, params: Params, progress: Progress) -> Ready:
        """The model of `params["source"]`, loaded again only when it changed on disk."""
        source = str(params.get("source") or "")
        if not source:
            raise RunError("No model was named.", "Choose a run, a model folder or a weights file.")
        self._ready = _unchanged(self._ready, source)  # frees the old model first
        self._ready = self._ready or _loaded(source, progress)
        self._ready.loaded.module.to(self.device).eval()
        return self._ready

    def _compared(self, source: str, progress: Progress) -> LoadedModel | None:
        """The model that the first is compared with; of these, too, one is kept."""
        self._second = _unchanged(self._second, source)
        if not source:
            return None
        self._second = self._second or _loaded(source, progress)
        self._second.loaded.module.to(self.device).eval()
        return self._second.loaded


def _unchanged(kept: Ready | None, source: str) -> Ready | None:
    """`kept` where it is `source` as it is on disk now."""
    return kept if kept is not None and kept.stamp == (source, *_stamps(source)) else None


def _loaded(source: str, progress: Progress) -> Ready:
    from training_backend.weights.load import load_model

    progress(0.0, "Loading the model")
    stamp = (source, *_stamps(source))
    return Ready(load_model(source), stamp)


def _pictures(method: Method, network: nn.Module, profile: InputProfile, params: Params) -> Values:
    from training_backend.data.prepare import prepare
    from training_backend.evaluate.reconstruct import mean_hidden_error, reconstruct

    options = {key: params[key] for key in ("mask_ratio", "seed", "full") if params.get(key) is not None}
    prepared = prepare(_volumes(params), profile)
    found = reconstruct(method, network, prepared, profile, options=options, centre=params.get("centre"))
    unit = "HU" if prepared.statistics[0].ct else ""
    return {"pictures": [_picture(one) for one in found], "error": mean_hidden_error(found), "unit": unit}


def _sequences(config: RunConfig, params: Params, progress: Progress) -> Values:
    from training_backend.evaluate.sequences import example_sequences

    progress(0.0, "Making sequences")
    found, text = example_sequences(config, params.get("volumes") or [], int(params.get("seed") or 0))
    return {"pictures": [_picture(one) for one in found], "error": None, "unit": "", "text": text}


def _picture(one: Picture) -> Values:
    picture = one.picture
    classes = [entry.model_dump() for entry in class_table(picture.classes, picture.classes)]
    return {
        "name": picture.name,
        "array": picture.array,
        "geometry": one.geometry,
        "role": picture.role,
        "limits": picture.limits,
        "classes": classes,
        "sides": list(picture.sides),
        "other": picture.other,
        "names": [list(names) for names in picture.names],
    }


def _described(view: ModelView) -> Values:
    schema = view.options.model_json_schema()
    wants = {"point": view.point, "other": view.other, "teacher": view.teacher, "against": view.against}
    told = {"name": view.name, "title": view.title, "tip": view.tip, "text": view.text, "cases": view.cases}
    return {**told, **wants, "options": schema}


def _volumes(params: Params) -> list[Volume]:
    volumes = params.get("volumes") or []
    if not volumes or not all(isinstance(volume, Volume) for volume in volumes):
        raise RunError("No scan was given.", "Open a scan first.")
    return list(volumes)


def _saying(progress: Progress, text: str) -> Callable[[float], bool]:
    return lambda share: progress(share, text)


def _class_table(loaded: LoadedModel, labels: Volume | None) -> list[Values]:
    """Class table of a prediction: the card's, or one with the names of the prediction."""
    if loaded.card.get("classes"):
        return [ClassEntry(**entry).model_dump() for entry in loaded.card["classes"]]
    if labels is None:
        return []
    names = {int(index): str(name) for index, name in labels.meta.get("class_names", {}).items()}
    return [entry.model_dump() for entry in class_table(list(names), names)]


def _profile(config: RunConfig) -> InputProfile:
    """Input profile of a configuration whose dataset may not exist yet."""
    from training_backend.data.prepare import InputProfile

    folder = Path(config.data.dataset)
    if (folder / "dataset.json").is_file():
        from training_backend.data.dataset import Dataset

        return InputProfile.of(config, Dataset.open(folder).info)
    return InputProfile.of(config, DatasetInfo(name="preview"))


def _small_if_untrained(config: RunConfig) -> RunConfig:
    """`config` with a single block where it has no weights: the masking does not depend on the depth."""
    if config.weights:
        return config
    shallow = {name: 1 for name in ("depth", "decoder_depth") if name in type(config.method).model_fields}
    return config.updated({"method": shallow})


def _stamps(source: str) -> tuple[Any, ...]:
    """Size and time of what a source is made of, so that a model that goes on training is loaded again."""
    path = Path(source)
    parts = ("model.safetensors", "teacher.safetensors", "card.json")
    beside = [path.parents[1] / parts[0]] if len(path.parts) > 2 else []  # of a run that keeps `path` as a decoder
    files = [path / name for name in parts] if path.is_dir() else [path, *beside]
    return tuple((file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file())
