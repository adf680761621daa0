"""The conversation between a viewer and its `serve` child: JSON lines, with arrays passed as ``.npy`` files.

Both sides share one private folder (mode 0700). An array in a message becomes a file there and is named in the line;
the receiver maps it into memory, so a volume is never squeezed through a pipe. To the child::

    {"id": 3, "op": "features", "params": {...}}
    {"op": "cancel", "id": 3}       {"op": "shutdown"}

and back, any number of ``progress`` and ``partial`` and then exactly one of the others. Partial values are a state of
the result to come, each in place of the one before; only operations that say so send them::

    {"id": 3, "type": "progress", "share": 0.4, "text": "window 8 of 20"}
    {"id": 3, "type": "partial", "values": {...}}
    {"id": 3, "type": "result", "values": {...}}
    {"id": 3, "type": "cancelled"}
    {"id": 3, "type": "error", "category": "data", "sentence": "...", "hint": "..."}
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from training_backend.data.volume import Geometry, Volume
from training_backend.errors import Med3dError, ResourceError, RunError, said
from training_backend.files import disk_error

Writer = Callable[[np.ndarray[Any, Any], Path], str]

ENDINGS = ("result", "cancelled", "error")
"""Message types that end a request."""


def encode(value: Any, folder: Path, write: Writer | None = None) -> Any:
    """`value` as JSON types; arrays, geometries and volumes inside it are tagged, arrays written into `folder`.

    `write` gives the name of the file of a volume's array there; `write_array` where it is missing.
    """
    if isinstance(value, np.ndarray):
        return {"$array": write_array(value, folder)}
    if isinstance(value, Geometry):
        return {"$geometry": value.to_dict()}
    if isinstance(value, Volume):
        facts = {"modality": value.modality, "name": value.name, "meta": dict(value.meta)}
        array = {"$array": (write or write_array)(value.array, folder)}
        return {"$volume": {"array": array, "geometry": value.geometry.to_dict(), **facts}}
    if isinstance(value, Mapping):
        return {str(key): encode(item, folder, write) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item, folder, write) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    return value


def decode(value: Any, folder: Path) -> Any:
    """Inverse of `encode`; tuples come back as lists, arrays as copy-on-write memory maps."""
    if isinstance(value, list):
        return [decode(item, folder) for item in value]
    if not isinstance(value, dict):
        return value
    if "$array" in value:
        return _read_array(folder / Path(value["$array"]).name)
    if "$geometry" in value:
        return Geometry.from_dict(value["$geometry"])
    if "$volume" in value:
        facts = value["$volume"]
        array, geometry = decode(facts["array"], folder), Geometry.from_dict(facts["geometry"])
        return Volume(array, geometry, facts["modality"], facts["name"], facts["meta"])
    return {key: decode(item, folder) for key, item in value.items()}


def array_files(value: Any, folder: Path) -> list[Path]:
    """Files of the arrays inside an encoded value."""
    if isinstance(value, list):
        return [path for item in value for path in array_files(item, folder)]
    if not isinstance(value, dict):
        return []
    if "$array" in value:
        return [folder / Path(value["$array"]).name]
    return [path for item in value.values() for path in array_files(item, folder)]


def to_line(message: Mapping[str, Any]) -> bytes:
    """One message as one line."""
    return json.dumps(message, ensure_ascii=False).encode("utf-8") + b"\n"


def from_line(line: bytes) -> dict[str, Any]:
    """The message of a line, or a `RunError` for anything else."""
    try:
        message = json.loads(line)
    except ValueError as error:
        raise RunError(f"A message between viewer and model process is damaged: {line[:80]!r}.") from error
    if not isinstance(message, dict):
        raise RunError(f"A message between viewer and model process must be an object, found {line[:80]!r}.")
    return message


def error_message(error: Exception, op: str) -> dict[str, Any]:
    """Category, sentence and hint with which an exception crosses the pipe."""
    if isinstance(error, Med3dError):
        return {"category": error.category, "sentence": error.sentence, "hint": error.hint}
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        sentence = f"The memory did not suffice for {op!r}."
        return {"category": "resource", "sentence": sentence, "hint": "Close other programs, or use a smaller model."}
    sentence = f"{op!r} failed unexpectedly ({type(error).__name__}: {said(error)})."
    return {"category": "error", "sentence": sentence, "hint": "The details are in the log of the model process."}


def error_from(message: Mapping[str, Any]) -> Med3dError:
    """The exception that `error_message` described, of the same class."""
    known = {found.category: found for found in reversed(_subclasses(Med3dError))}  # the most general of a category
    error = known.get(str(message.get("category")), Med3dError)
    return error(str(message.get("sentence", "The model process reported an error.")), str(message.get("hint", "")))


def _subclasses(root: type[Med3dError]) -> list[type[Med3dError]]:
    return [root, *(found for child in root.__subclasses__() for found in _subclasses(child))]


def write_array(array: np.ndarray[Any, Any], folder: Path) -> str:
    """Name of a new file in `folder` that holds `array`."""
    if array.dtype.hasobject:
        raise RunError(f"Only numbers can be sent to the model process, found an array of {array.dtype}.")
    path = folder / f"{uuid.uuid4().hex}.npy"
    try:
        with path.open("xb") as stream:
            np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise disk_error(error, path) from error
    return path.name


def _read_array(path: Path) -> np.ndarray[Any, Any]:
    try:
        if path.stat().st_size < 2**16:  # small or empty arrays are cheaper read than mapped
            loaded: np.ndarray[Any, Any] = np.load(path, allow_pickle=False)
            return loaded
        mapped: np.ndarray[Any, Any] = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ResourceError(f"An array passed between viewer and model process is gone or damaged: {error}.") from error
    return mapped
