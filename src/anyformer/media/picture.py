"""Pictures from files, arrays and tensors: upright Pillow images of 8 bits.

| given                                  | becomes                                                                  |
|----------------------------------------|--------------------------------------------------------------------------|
| a file, its bytes, a Pillow image      | its first frame, turned by its EXIF orientation                          |
| 16 bits of grey (PNG, TIFF)            | 8 bits: 0 … 65535 becomes 0 … 255                                        |
| an array of uint8, bool                | as it is; True is white                                                  |
| an array of uint16                     | 0 … 65535 becomes 0 … 255                                                |
| an array of other whole numbers        | 0 … 255; others are refused                                              |
| an array of floats, a float TIFF       | 0 … 1 becomes 0 … 255; whole numbers of 0 … 255 stay; others are refused |

A file of more than 89 million pixels is refused before it is decoded. Nothing is clipped. Arrays are (height, width),
(height, width, C) or (C, height, width), C one of 1 (grey), 3 (RGB) and 4 (RGB and alpha); where both readings are
possible the array is refused.
"""

from __future__ import annotations

import importlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

WIDE = ("I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes of 16 bits
CHANNELS = (1, 3, 4)
MOST = 89_478_485  # pixels of a file, 268 MB in colour: where Pillow begins to warn


def pillow(name: str = "PIL.Image") -> Any:
    """A module of Pillow; ImportError in one line if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError("images needs `pip install pillow`") from None


def picture(source: Any) -> Any:
    """A Pillow image of 8 bits from any kind of picture: upright, with its colours and its alpha.

    Args:
        source: a path, the bytes of a file, a Pillow image, an array, nested lists, a tensor of torch, or {"bytes": …}
            as in `datasets`.

    Raises:
        ValueError: for a value that is no picture, is damaged, or has numbers of unknown meaning.
    """
    source = source.get("bytes") if isinstance(source, dict) else source
    pil = pillow()
    if isinstance(source, pil.Image):
        return _plain(source)
    if isinstance(source, bytes | str | os.PathLike):
        name = "a picture" if isinstance(source, bytes) else os.fspath(source)
        try:
            with pil.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
                if opened.width * opened.height > MOST:  # before a pixel is decoded
                    raise ValueError(
                        f"it has {opened.width} x {opened.height} pixels, and {MOST:,} are the most; make it smaller"
                    )
                return _plain(opened)
        except FileNotFoundError:
            raise ValueError(f"there is no picture {name!r}") from None
        except (OSError, SyntaxError, pil.DecompressionBombError) as error:
            raise ValueError(f"{name} cannot be read as an image: {error}. Leave it out or create it again") from None
        except ValueError as error:  # of Pillow, or ours: name the file
            raise ValueError(f"{name}: {error}") from None
    if hasattr(source, "detach"):
        source = source.detach().cpu().numpy()
    if isinstance(source, list | np.ndarray):
        return pil.fromarray(_last(_bytes(np.asarray(source))))
    raise ValueError(
        f"'image' is a {type(source).__name__}; expected a file name, the bytes of a file, {{'bytes': …}}, a PIL "
        "image, or an array of 0 to 255"
    )


def coloured(image: Any, channels: int) -> Any:
    """A picture in grey (1 channel) or RGB (3), with white behind transparent pixels."""
    if image.mode == "La":  # Pillow converts it to LA only
        image = image.convert("LA")
    if {"A", "a"} & {*image.getbands()} or image.info.get("transparency") is not None:
        pil = pillow()
        image = image.convert("RGBA")
        image = pil.alpha_composite(pil.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def write(pixels: np.ndarray, path: str | os.PathLike[str]) -> Path:
    """Writes (height, width, C) uint8, in grey or RGB, as the file that its name says.

    Raises:
        ValueError: for a name that says no kind of picture.
    """
    path = Path(path)
    image = pillow().fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if path.suffix.lower() not in pillow().registered_extensions():
        raise ValueError(f"{path}: the name must end in .png or another kind of picture")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def _plain(image: Any) -> Any:
    """A Pillow image of 8 bits, upright."""
    upright = pillow("PIL.ImageOps").exif_transpose(image)
    if upright.mode in WIDE or (upright.mode == "I" and image.format == "PNG"):  # older Pillow reports I for 16 bits
        return pillow().fromarray(_bytes(np.asarray(upright).astype(np.uint16)))
    if upright.mode in ("I", "F"):
        return pillow().fromarray(_bytes(np.asarray(upright)))
    upright.load()
    return upright


def _bytes(array: np.ndarray) -> np.ndarray:
    """The numbers of an array as 0 … 255, uint8.

    Raises:
        ValueError: if their white is unknown.
    """
    if array.dtype.kind not in "biuf" or not array.size:
        raise ValueError(f"an image is an array of numbers; got {array.dtype} of shape {array.shape}")
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return np.rint(array / 257).astype(np.uint8)
    low, high = float(array.min()), float(array.max())
    whole = array.dtype.kind in "iu" or bool((array == np.rint(array)).all())  # NaN is no whole number
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        return np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    if whole and low >= 0 and high <= 255:
        return array.astype(np.uint8)
    raise ValueError(
        f"an image of {array.dtype} goes from {low:g} to {high:g}, so its white is unknown; pass uint8 of 0 to "
        "255 (height x width x C), uint16 of 0 to 65535, or floats of 0 to 1"
    )


def _last(array: np.ndarray) -> np.ndarray:
    """(height, width) or (height, width, C) of an array whose channels can come first."""
    if array.ndim == 3:
        first, last = array.shape[0] in CHANNELS, array.shape[2] in CHANNELS
        if first and last:
            raise ValueError(
                f"an image of shape {array.shape} may be (height, width, C) or (C, height, width); give a PIL image"
            )
        array = array.transpose(1, 2, 0) if first else array
        if first or last:
            return np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array)
    if array.ndim == 2:
        return np.ascontiguousarray(array)
    raise ValueError(
        f"an image of shape {array.shape}; expected (height, width), (height, width, C) or (C, height, width) of 0 to "
        "255, C one of 1, 3, 4"
    )
