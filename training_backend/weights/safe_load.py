"""Reads checkpoint files without ever running what is in them.

PyTorch files are pickles: opening one can execute any program hidden in it. Here they are read with
``weights_only=True`` and a short list of additional harmless names, after a check of the container; what does not pass
is refused with a sentence. There is no second, less strict attempt.
"""

from __future__ import annotations

import argparse
import io
import pickletools
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from training_backend.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
WRAPPERS = ("model", "model_state", "state_dict", "model_state_dict", "net", "network_weights")
PREFIXES = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "model.", "encoder.")
"""Stripped, repeatedly, when every key begins with it."""
_INSIDE = re.compile(
    r"(?<=\.)(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.|^_checkpoint_wrapped_module\."
)
"""What PyTorch puts into names where it shards, recomputes or compiles a part of a network."""

_ZIP_ERRORS = (
    zipfile.BadZipFile,
    ValueError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    EOFError,
    OSError,
    struct.error,
)
"""What Python's reader raises for damaged archives."""
MAX_MEMBERS = 200_000
MAX_PICKLE = 64 * 2**20
_MEMBER = re.compile(r"[^/]+/(data\.pkl|version|byteorder|data/\d+|\.\w+(/\w+)?)")
_TRUSTED_ONLY = (
    "Nothing in it was run. Ask its author for a .safetensors file; if you trust the author, load it in Python "
    "yourself and save only its tensors with safetensors.torch.save_file."
)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a file, on the CPU.

    Attributes:
        tensors: by name, with wrapper and common prefixes removed.
        wrapper: key that held them, or "" for a bare dictionary.
        prefix: what every name began with, or "".
        extras: settings stored beside them, as plain Python values (the authors' command-line arguments, say).
    """

    tensors: dict[str, Tensor]
    wrapper: str = ""
    prefix: str = ""
    extras: Mapping[str, Any] = field(default_factory=dict)


def load_tensors(path: Path | str) -> Checkpoint:
    """Tensors of a .safetensors, .pt, .pth, .ckpt or .bin file.

    Raises:
        WeightsError: when the file is missing, damaged, of another kind, or would run code if it were opened.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"There is no weights file {path}.", "Check the path.")
    if path.suffix.lower() == ".safetensors":
        return _unwrapped(*_read_safetensors(path), path)
    if path.suffix.lower() in TORCH_SUFFIXES:
        return _unwrapped(_read_torch(path), {}, path)
    raise WeightsError(
        f"{path.name} is not a kind of weights file that can be opened safely.",
        f"Expected one of .safetensors, {', '.join(TORCH_SUFFIXES)}.",
    )


def strip_prefixes(
    tensors: Mapping[str, Tensor], prefixes: tuple[str, ...] = PREFIXES
) -> tuple[dict[str, Tensor], str]:
    """`tensors` without the `prefixes` that all names share, and what was removed."""
    stripped, removed = dict(tensors), ""
    while stripped:
        common = next((p for p in prefixes if all(key.startswith(p) and key != p for key in stripped)), None)
        if common is None:
            break
        stripped = {key[len(common) :]: value for key, value in stripped.items()}
        removed += common
    return stripped, removed


class _Inert:
    """Stands for a stored value that is not needed (a NumPy scalar, a path): takes anything, does nothing."""

    def __init__(self, *values: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _allowed() -> list[Any]:
    """Names that training scripts leave in checkpoints; NumPy's and pathlib's code is replaced, not called."""
    numpy_names = [
        f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")
    ]
    path_names = [
        f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    ]
    moved_names = [name.replace("pathlib.", "pathlib._local.") for name in path_names]  # Python 3.13 writes these
    names = [*numpy_names, *path_names, *moved_names, "numpy.dtype", "numpy.ndarray"]
    return [argparse.Namespace, *((_Inert, name) for name in names)]


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as stored:
            return {key: stored.get_tensor(key) for key in stored.keys()}, stored.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path.name} is not a whole safetensors file: {error}.", "Copy or download it again."
        ) from error


def _read_torch(path: Path) -> Any:
    import torch

    with path.open("rb") as stream:
        start = stream.read(512)
    zipped = start.startswith(b"PK\x03\x04")  # what PyTorch goes by
    if zipped:
        _check_zip(path)
    else:
        _check_legacy(path, start)
    with torch.serialization.safe_globals(_allowed()):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except Exception as error:  # a hostile file can raise anything; each becomes a sentence
            names = _refused_names(path, zipped)
            if names:
                raise WeightsError(f"{path.name} asks to run {', '.join(names)}.", _TRUSTED_ONLY) from error
            raise WeightsError(
                f"{path.name} is damaged, or no checkpoint: {_first_line(error)}", _TRUSTED_ONLY
            ) from error


def _check_zip(path: Path) -> None:
    """Refuse archives that are not what ``torch.save`` writes: one folder of stored, disjoint members."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except _ZIP_ERRORS as error:
        raise WeightsError(f"{path.name} is damaged or truncated: {error}.", "Copy or download it again.") from error
    names = [member.filename for member in members]
    reason = ""
    if len(members) > MAX_MEMBERS:
        reason = f"it holds {len(members)} members"
    elif any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
        reason = "its members are compressed or encrypted"
    elif sum(member.file_size for member in members) > path.stat().st_size:
        reason = "its members claim more bytes than the file has"
    elif any(name.endswith(("/constants.pkl", ".py")) for name in names):
        reason = "it is a TorchScript program"
    elif strange := next((name for name in names if not _MEMBER.fullmatch(name)), ""):
        reason = f"it holds {strange!r}"
    elif len({name.split("/")[0] for name in names}) != 1 or len(set(names)) != len(names):
        reason = "it holds several archives in one"
    elif any(m.filename.endswith("/data.pkl") and m.file_size > MAX_PICKLE for m in members):
        reason = "its list of tensors is larger than 64 MiB"
    if reason:
        raise WeightsError(f"{path.name} is not a plain PyTorch checkpoint: {reason}.", _TRUSTED_ONLY)


def _check_legacy(path: Path, start: bytes) -> None:
    """Refuse what is neither an archive nor a pickle: text, tar files of PyTorch 0.1, empty files."""
    if start[257:262] == b"ustar":
        raise WeightsError(f"{path.name} is a tar file of a PyTorch older than 0.2.", _TRUSTED_ONLY)
    if len(start) < 2 or start[0] != 0x80 or not 2 <= start[1] <= 5:
        raise WeightsError(
            f"{path.name} is not a PyTorch checkpoint, or it is truncated.",
            "Copy or download it again, and check its type.",
        )


def _refused_names(path: Path, zipped: bool) -> list[str]:
    """Functions and classes the file asks for beyond the allowed ones; read from the opcodes, never imported."""
    from torch._weights_only_unpickler import _get_allowed_globals, _get_user_allowed_globals

    if zipped:
        try:
            with zipfile.ZipFile(path) as archive:
                (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
                names = _named_in(io.BytesIO(archive.read(pickled)))
        except _ZIP_ERRORS:
            return []  # damaged: there is nothing to name
    else:
        with path.open("rb") as stream:
            names = _named_in(stream)
    return sorted(names - set(_get_allowed_globals()) - set(_get_user_allowed_globals()))


def _named_in(stream: IO[bytes]) -> set[str]:
    names: set[str] = set()
    for _ in range(5):  # old files: magic number, protocol, system, object, storage keys
        strings: list[str] = []
        try:
            for code, argument, _position in pickletools.genops(stream):
                if code.name in ("GLOBAL", "INST"):
                    names.add(str(argument).replace(" ", "."))
                elif code.name == "STACK_GLOBAL":
                    names.add(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
        except (ValueError, IndexError, OverflowError, MemoryError):  # the end, or damage
            break
    return names


def _unwrapped(value: Any, metadata: Mapping[str, str], path: Path) -> Checkpoint:
    """Checkpoint of the dictionary of tensors in `value`, which may lie below one of `WRAPPERS`."""
    if not isinstance(value, Mapping):
        raise WeightsError(
            f"{path.name} holds one {type(value).__name__}, not named tensors.", "Choose a checkpoint file."
        )
    wrapper = next((key for key in WRAPPERS if isinstance(value.get(key), Mapping) and _tensors(value[key], path)), "")
    outer, prefix = strip_prefixes(_tensors(value[wrapper] if wrapper else value, path))
    tensors, inner = strip_prefixes({_INSIDE.sub("", key): tensor for key, tensor in outer.items()})
    prefix += inner
    if len(tensors) != len(outer):
        raise WeightsError(f"{path.name} holds parts of its network twice, wrapped and unwrapped.")
    if not tensors:
        raise WeightsError(f"{path.name} holds no tensors.", f"Its keys are {', '.join(map(str, list(value)[:8]))}.")
    beside = {str(key): entry for key, entry in value.items() if wrapper and key != wrapper}
    return Checkpoint(tensors, wrapper, prefix, {**metadata, **_plain(beside)})


def _tensors(value: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    import torch

    found = {}
    for key, tensor in value.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            continue
        whole = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not whole or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise WeightsError(f"{path.name}: tensor {key!r} is not a dense array backed by the file.", _TRUSTED_ONLY)
        found[key] = tensor.detach()
    return found


def _plain(value: Any, depth: int = 3) -> Any:
    """Numbers, strings and short lists of them out of `value`; tensors and everything else are left out."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, Mapping) and depth:
        pairs = ((str(key), _plain(entry, depth - 1)) for key, entry in list(value.items())[:200])
        return {key: entry for key, entry in pairs if entry is not None}
    if isinstance(value, list | tuple) and depth and len(value) <= 32:
        return [_plain(entry, 0) for entry in value]
    return value if isinstance(value, str | int | float | bool) else None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200] + "."
