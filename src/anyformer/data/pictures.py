"""Images of rows: as values of a row, as stored bytes, as pixels of one size. C channels."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from anyformer.media.picture import coloured, picture


def below(root: Path, name: str | os.PathLike, what: str = "image") -> Path:
    """The file that a row names, absolute or relative to the folder of the rows.

    Raises:
        ValueError: if there is none.
    """
    path = (root / name).absolute()
    if not path.is_file():
        raise ValueError(f"there is no {what} {str(path)!r}; a name is read relative to {root}")
    return path


def content(image: Any) -> bytes:
    """An image of a row as the bytes of a file, without loss: bytes are unchanged; any other image that
    `media.picture` reads becomes a PNG.

    Raises:
        ValueError: for anything else.
    """
    image = image.get("bytes") if isinstance(image, dict) else image
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):  # a row's names are for `below`
        raise ValueError(f"'image' is the name {os.fspath(image)!r}; expected its content")
    upright = picture(image)
    out = io.BytesIO()
    if upright.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):  # no pixel of these changes in a PNG
        upright = coloured(upright, 3)
    upright.save(out, "png")
    return out.getvalue()


def pixels(data: bytes | Path, side: int, channels: int) -> np.ndarray:
    """An image in grey or RGB, (C, side, side) uint8; resized (bicubic) if it has another size.

    Raises:
        ValueError: if it cannot be read.
    """
    image = coloured(picture(data), channels)
    pixels = np.asarray(image if image.size == (side, side) else image.resize((side, side)))
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
