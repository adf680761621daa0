"""Command-line flags of a training run, made from the configuration models of the chosen method and task."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from training_backend.config import ConfigModel, RunConfig, merged
from training_backend.config.presets import DEFAULT_METHOD, PRESETS, backbone_config, pretrain_config
from training_backend.config.recipes import PRESET as RECIPE_PRESET
from training_backend.config.recipes import recipe as find_recipe
from training_backend.config.recipes import recipe_config
from training_backend.config.registry import methods, tasks
from training_backend.errors import ConfigError, WeightsError
from training_backend.flags import call

if TYPE_CHECKING:
    from training_backend.watch import RunReport


def parse_training(kind: str, arguments: Sequence[str]) -> RunReport:
    """Parse the flags of ``med3dssl pretrain`` or ``finetune`` and run it.

    The choice of method, task, preset or recipe, weights, dataset and ``--config`` file decides the defaults of all
    other flags, so it is read first. A fine-tuning run takes method and encoder over from its weights.
    """
    import tyro

    from training_backend.watch import train

    base = _defaults(kind, arguments)
    settings = _settings_model(base)

    def command(
        data: Path,
        output: Path,
        settings: Annotated[Any, tyro.conf.arg(name="")] = settings,
        method: str = base.method.name,
        task: str = base.task.name if base.task else "",
        preset: str = base.preset,
        recipe: str = base.recipe,
        config: Path | None = None,
        detach: bool = False,
    ) -> RunReport:
        changes = {**settings.model_dump(), "kind": kind, "preset": preset, "recipe": recipe}
        changes["data"]["dataset"] = data
        run = RunConfig.parse(changes)
        if recipe:
            from training_backend.data.fits import check_fit

            check_fit(find_recipe(recipe), data)
        return train(run, output, detach=detach)

    command.__doc__ = _HELP.format(
        what="Learn an encoder from unlabelled scans." if kind == "pretrain" else "Put a task on an encoder.",
        methods=", ".join(methods()),
        tasks=", ".join(tasks()),
        presets="; ".join(f"{name} ({text})" for name, text in PRESETS.items()),
    )
    del command.__annotations__["return"]  # names a type that is only imported for type checkers
    command.__annotations__["settings"] = Annotated[type(settings), tyro.conf.arg(name="")]
    result: RunReport = call(
        command, f"med3dssl {kind}", arguments, config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
    )
    return result


_HELP = """{what}

Args:
    data: Folder of a dataset made by ``med3dssl data ingest``.
    output: Run directory to create; one that exists is resumed when its settings are the same.
    method: Self-supervised method: {methods}; that of the weights when fine-tuning.
    task: Downstream task (fine-tuning only): {tasks}.
    preset: Starting point of all settings: {presets}.
    recipe: Published settings for one public dataset, in place of a preset (fine-tuning only): med3dssl recipes list.
    config: YAML file with settings laid over the preset; flags win over it.
    detach: Start in the background and return at once.
"""


def _defaults(kind: str, arguments: Sequence[str]) -> RunConfig:
    """The configuration before flags: preset, then the ``--config`` file."""
    chosen = {name: _peek(arguments, name) for name in ("method", "task", "preset", "config", "recipe")}
    from_file = _from_file(chosen["config"]) if chosen["config"] else {}
    wished = chosen["method"] or (from_file.get("method") or {}).get("name", "")
    task = chosen["task"] or (from_file.get("task") or {}).get("name", "segmentation")
    if chosen["preset"] and chosen["preset"] not in PRESETS:
        raise ConfigError(f"There is no preset {chosen['preset']!r}.", f"Choose one of {', '.join(PRESETS)}.")
    preset = chosen["preset"] or from_file.get("preset", "small")
    changes = {key: value for key, value in from_file.items() if key not in ("kind", "preset")}
    if chosen["recipe"]:
        return _by_recipe(kind, chosen, arguments, changes)
    if kind == "pretrain":
        return _implied(wished or DEFAULT_METHOD, preset if preset in PRESETS else "small", changes, arguments)
    backbone = _backbone(arguments, changes)
    if not backbone or wished not in ("", backbone["method"]["name"]):
        backbone = {"method": {"name": wished or DEFAULT_METHOD}}
    base = backbone_config(task, preset if preset in PRESETS else "small", Path(), backbone)
    return RunConfig.parse(merged(base.model_dump(), changes))


def _backbone(arguments: Sequence[str], changes: dict[str, Any]) -> dict[str, Any]:
    """Settings "method" and "data" of the weights that a fine-tuning run starts from; empty without any.

    Of a run whose weights are gone and that goes on in `--output`, its own.
    """
    import yaml

    source, output = _peek(arguments, "weights") or str(changes.get("weights", "")), Path(_peek(arguments, "output"))
    if not source or {"-h", "--help"} & set(arguments):
        return {}
    from training_backend.weights.source import locate

    plan = (Path(source) / "stages").is_dir()
    own = (locate(source).parent if plan else Path(source)) / "config.yaml"
    if own.is_file():
        config = RunConfig.load(own)
    else:
        from training_backend.weights.source import open_source

        told = {name: yaml.safe_load(value) for name, value in _method_flags(arguments).items()}
        try:
            config = open_source(source, {"method": told} if told else None).config
        except WeightsError:
            if not (output / "config.yaml").is_file():
                raise
            config = RunConfig.load(output / "config.yaml")
    return {"method": config.method.model_dump(), "data": config.data.model_dump()}


def _implied(method: str, preset: str, changes: dict[str, Any], arguments: Sequence[str]) -> RunConfig:
    """A preset with `changes`, and with all that follows from the flags that have a single value of the method."""
    try:
        return pretrain_config(method, preset, Path(), merged(changes, {"method": _method_flags(arguments)}))
    except (ConfigError, ValueError):  # the flags themselves are parsed later, with better sentences
        return pretrain_config(method, preset, Path(), changes)


def _method_flags(arguments: Sequence[str]) -> dict[str, str]:
    """Values of the flags that have a single one, by field of the method."""
    start, flags = "--method.", {}
    for flag, value in pairwise([*arguments, "--"]):
        name, equals, told = flag.removeprefix(start).partition("=")
        if flag.startswith(start) and (equals or not value.startswith("--")):
            flags[name.replace("-", "_")] = told if equals else value
    return flags


def _by_recipe(kind: str, chosen: dict[str, str], arguments: Sequence[str], changes: dict[str, Any]) -> RunConfig:
    """A recipe's configuration; it decides task and preset, and the method where none is given."""
    from training_backend.data.fits import contrasts_of

    found = find_recipe(chosen["recipe"])
    if kind == "pretrain":
        raise ConfigError("Recipes are for fine-tuning.", f"Give --recipe {found.name} to med3dssl finetune.")
    clash = {"task": found.task, "preset": RECIPE_PRESET, "method": found.system}
    for name, decided in clash.items():
        if chosen[name] not in ("", decided):
            raise ConfigError(
                f"The recipe {found.name} is for {name} {decided}, but {chosen[name]} was given.",
                f"Leave out --{name}, or the recipe.",
            )
    data, weights = _peek(arguments, "data"), _peek(arguments, "weights") or str(changes.get("weights", ""))
    contrasts = contrasts_of(Path(data)) if data else ()
    backbone = _backbone(arguments, changes).get("method", {})
    if backbone.get("name") != found.system:
        backbone = {}  # what does not fit is told when the weights are read
    return recipe_config(found.name, Path(), weights=weights, contrasts=contrasts, backbone=backbone, changes=changes)


def _from_file(file: str) -> dict[str, Any]:
    """Settings in a YAML file, as far as they are a mapping of sections."""
    import yaml

    try:
        found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The configuration {file} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The configuration {file} is no YAML text.", "Check its brackets and indents.") from error
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise ConfigError(f"The configuration {file} holds no settings.", "Write them as SECTION: {KEY: VALUE}.")
    for section in ("method", "task"):
        if not isinstance(found.get(section) or {}, dict):
            raise ConfigError(f"{section} in {file} is no section.", f"Write {section}: {{name: NAME}}.")
    return found


def _peek(arguments: Sequence[str], name: str) -> str:
    flag = f"--{name}"
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
        if argument == flag and position + 1 < len(arguments):
            return arguments[position + 1]
    return ""


def _settings_model(base: RunConfig) -> ConfigModel:
    """A model of `base` whose method and task fields have their own types, without the fields given by other flags."""
    from pydantic import Field, create_model

    names = ["seed", "weights", "method", "task", "data", "optim", "engine"]
    if base.task is None:
        names.remove("task")
    fields: dict[str, Any] = {
        name: (type(getattr(base, name)), Field(..., description=RunConfig.model_fields[name].description))
        for name in names
    }
    model = create_model("Settings", __base__=ConfigModel, __doc__="Settings of the run.", **fields)
    return model(**{name: getattr(base, name) for name in names})
