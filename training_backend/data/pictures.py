"""Plain pictures (PNG, JPEG, BMP, TIFF) as volumes of one slice: rows are y, columns are x, colours are contrasts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from training_backend.data.facts import ImageFacts, scan_name, suffix_of
from training_backend.data.integrity import check_file, check_memory
from training_backend.data.volume import Array, Geometry, Shape, Triple, Volume
from training_backend.errors import DataError, ResourceError
from training_backend.files import atomic

COLOURS = ("red", "green", "blue")
"""Contrasts of a colour picture, and the keys that read one of them."""
ASSUMED_SPACING = "A picture does not tell the size of a pixel; 1 mm was assumed."
ALPHA_DROPPED = "The picture has an alpha channel (transparency), which was left out."

_GREY = ("1", "L", "LA", "I", "F")
_PALETTES = ("P", "PA")
_COLOUR = ("RGB", "RGBA", "RGBX", "YCbCr")
_ORIENTATION = 274  # tag of EXIF and TIFF: how the camera was held
_TURNED = (5, 6, 7, 8)  # its values that swap rows and columns
_RESOLUTION_UNIT, _X_RESOLUTION, _Y_RESOLUTION, _CENTIMETRE = 296, 282, 283, 3
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError)


def probe(path: Path, key: str = "") -> ImageFacts:
    """Facts from the header; ``contrasts`` are the colours of a colour picture."""
    with _opened(path) as image:
        _check(path, image)
        geometry = _geometry(image)
        colours = () if _is_grey(image) else COLOURS
        _check_key(path, key, colours)
        dtype = str(_dtype(image))
        notes = tuple(_warnings(path, image))
    contrasts = colours if not key else ()
    return ImageFacts(geometry.shape, geometry.spacing_mm, geometry, dtype, "unknown", contrasts, notes)


def read(path: Path, key: str = "") -> list[Volume]:
    """One volume (1, H, W) of a grey picture; of a colour picture one per colour, or the one that `key` names.

    Whole numbers stay what they are: uint8, or uint16 of 16-bit grey. ``meta["largest"]`` is the largest number that
    the format can hold, which intensities are divided by; `notes` say what was assumed.
    """
    check_file(path)
    state = path.stat()
    found = _decoded(path, state.st_mtime_ns, state.st_size)
    pixels, geometry = found.pixels, found.geometry
    grey = pixels.ndim == 2
    _check_key(path, key, () if grey else COLOURS)
    meta: dict[str, Any] = {"format": "picture", "file": path.name, "kind": "image"}
    meta |= {"warnings": list(found.warnings), "notes": list(found.notes)}
    if pixels.dtype.kind == "u":
        meta["largest"] = int(np.iinfo(pixels.dtype).max)
    if pixels.dtype == np.uint8:
        meta["window"] = [0, 255]  # deeper pictures seldom use all their numbers
    if grey:
        return [Volume(pixels[None].copy(), geometry, name=scan_name(path), meta=meta)]
    chosen = COLOURS if not key else (key,)
    return [
        Volume(
            pixels[None, ..., COLOURS.index(colour)].copy(),
            geometry,
            name=scan_name(path) if key else f"{scan_name(path)} {colour}",
            meta={**meta, "contrast": colour},
        )
        for colour in chosen
    ]


def read_mask(path: Path) -> list[Volume]:
    """A picture as a label map: the numbers of its palette, or its grey values; colours that differ are refused."""
    with _opened(path) as image:
        _check(path, image)
        if image.mode == "P":
            numbers = _upright(image, np.asarray(image))
        elif image.mode == "1":
            numbers = _upright(image, np.asarray(image).astype(np.uint8))
        else:
            numbers = _pixels(image, grey=_is_grey(image))
        geometry = _geometry(image)
    if numbers.ndim == 3:
        if not bool((numbers == numbers[..., :1]).all()):
            raise DataError(
                f"{path.name} is a colour picture, which is no label map: a number for each class is expected.",
                "Save the classes as grey values or palette numbers 0, 1, 2, ....",
            )
        numbers = numbers[..., 0]
    meta = {"format": "picture", "file": path.name, "kind": "labels", "warnings": []}
    return [Volume(np.ascontiguousarray(numbers)[None], geometry, name=scan_name(path), meta=meta)]


def save_picture(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """Write [H, W] grey or [H, W, 3] red, green and blue as PNG, whole or not at all."""
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    with atomic(path) as file:
        file.write(stream.getvalue())


@dataclass(frozen=True)
class _Decoded:
    """Upright pixels [H, W] or [H, W, 3] of a picture, and what there is to say of it."""

    pixels: Array
    geometry: Geometry
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


@lru_cache(maxsize=1)
def _decoded(path: Path, _modified: int, _size: int) -> _Decoded:
    """The picture as it is now; its colours are read one after the other, and decoded once."""
    with _opened(path) as image:
        _check(path, image)
        geometry, grey, said = _geometry(image), _is_grey(image), tuple(_warnings(path, image))
        notes = [ASSUMED_SPACING] if _told_spacing(image) is None else []
        notes += ["The picture was turned upright, as its file asks."] if _turn(image) > 1 else []
        pixels = _pixels(image, grey=grey)
    return _Decoded(pixels, geometry, said, tuple(notes))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The open picture; damage, found on opening or on decoding, becomes a sentence."""
    check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # memory is checked here
            # by its stream: Pillow maps files that it knows by name, and scrambles turned TIFFs then
            with path.open("rb") as stream, Image.open(stream) as image:
                yield image
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path.name} is no picture that can be read, whatever its name says.", "Save it as PNG or TIFF."
        ) from error
    except Image.DecompressionBombError as error:
        raise ResourceError(
            f"{path.name} has more pixels than one picture can have here.", "Cut it into tiles, as slides usually are."
        ) from error
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        detail = " ".join(str(error).split())[:120].rstrip(".")
        raise DataError(f"{path.name} is damaged or cut off: {detail}.", "Copy or download the file again.") from error


def _check(path: Path, image: Image.Image) -> None:
    mode = image.mode
    if mode == "CMYK":
        raise DataError(
            f"{path.name} is a picture for printing (CMYK), whose colours are not those of the slide or screen.",
            "Save it as RGB.",
        )
    if mode not in (*_GREY, *_PALETTES, *_COLOUR) and not mode.startswith("I;16"):
        raise DataError(f"{path.name} stores colours as {mode}; grey, RGB or a palette is expected.", "Save it as RGB.")
    pages = int(getattr(image, "n_frames", 1))
    if pages > 1:
        raise DataError(
            f"{path.name} holds {pages} pictures; one is expected.",
            "Save them one by one, or as NIfTI if it is a scan.",
        )
    check_memory(path, 8 * image.width * image.height)


def _check_key(path: Path, key: str, colours: tuple[str, ...]) -> None:
    if key and key not in colours:
        there = ", ".join(colours) or "grey values only"
        raise DataError(f"{path.name} has no colour {key!r}; it has {there}.", "Name one of them, or none.")


def _is_grey(image: Image.Image) -> bool:
    if image.mode in _PALETTES:
        palette = np.asarray(image.getpalette("RGB") or [0], np.uint8)
        return bool(len(palette) % 3 == 0 and (palette[::3] == palette.reshape(-1, 3).T).all())
    return image.mode in _GREY or image.mode.startswith("I;16")


def _dtype(image: Image.Image) -> np.dtype[Any]:
    if image.mode.startswith("I;16"):
        return np.dtype(np.uint16)
    return np.dtype({"I": np.int32, "F": np.float32}.get(image.mode, np.uint8))


def _pixels(image: Image.Image, *, grey: bool) -> Array:
    """[H, W] of a grey picture, [H, W, 3] of a colour one, upright."""
    if image.mode.startswith("I;16"):
        pixels = np.asarray(image).astype(np.uint16)
    elif image.mode in ("I", "F"):
        pixels = np.array(image)
    else:
        pixels = np.array(image.convert("L" if grey else "RGB"))
    return _upright(image, pixels)


def _upright(image: Image.Image, pixels: Array) -> Array:
    """Pixels as the picture is to be seen; cameras and scanners may store it lying or mirrored and say so."""
    turn = _turn(image)
    if turn in _TURNED:
        pixels = pixels.swapaxes(0, 1)
    rows, columns = turn in (3, 4, 7, 8), turn in (2, 3, 6, 7)
    return pixels[:: -1 if rows else 1, :: -1 if columns else 1]


def _turn(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # turned by the decoder already
    value = image.getexif().get(_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _geometry(image: Image.Image) -> Geometry:
    shape: Shape = (1, image.height, image.width)
    spacing = _told_spacing(image) or (1.0, 1.0, 1.0)
    if _turn(image) in _TURNED:
        shape, spacing = (1, image.width, image.height), (1.0, spacing[2], spacing[1])
    return Geometry.from_spacing(shape, spacing)


def _told_spacing(image: Image.Image) -> Triple | None:
    """Pixel size of a TIFF measured in centimetres; dots per inch are a printer's, and say nothing of the patient."""
    tags: Any = getattr(image, "tag_v2", None)
    if tags is None or tags.get(_RESOLUTION_UNIT) != _CENTIMETRE:
        return None
    try:
        x, y = float(tags[_X_RESOLUTION]), float(tags[_Y_RESOLUTION])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (1.0, 10 / y, 10 / x) if np.isfinite([x, y]).all() and min(x, y) > 0 else None


def _warnings(path: Path, image: Image.Image) -> list[str]:
    found = []
    if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        found.append(ALPHA_DROPPED)
    if suffix_of(path) == ".png" and image.format == "PNG" and image.mode in ("LA", "RGB", "RGBA"):
        with path.open("rb") as stream:
            depth = stream.read(25)[24:]
        if depth == b"\x10":
            found.append("Its 16 bits per colour were read as 8; save it as grey if it is a radiograph.")
    return found
