"""Images: as a row gives them, as bytes that are kept, as pixels that a model reads. C channels."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from anyformer.data.tables import module


def below(root: Path, name: str | os.PathLike) -> Path:
    """The file that a row names, which may be relative to where the rows lie.

    Raises:
        ValueError: if there is none.
    """
    path = (root / name).absolute()
    if not path.is_file():
        raise ValueError(f"there is no image {str(path)!r}; a name is read relative to {root}")
    return path


def content(image: Any) -> bytes:
    """An image of a row as the bytes of a file: {"bytes": …} as Parquet files of `datasets` hold it, bytes, a PIL
    image, or an array (height, width) or (height, width, C) of 0 … 255.

    Raises:
        ValueError: for anything else.
    """
    image = image.get("bytes") if isinstance(image, dict) else image
    if isinstance(image, bytes):
        return image
    if isinstance(image, list | np.ndarray):
        image = module("PIL.Image", "images", "pillow").fromarray(np.asarray(image, np.uint8))
    if not hasattr(image, "save"):
        raise ValueError(
            f"'image' is a {type(image).__name__}; expected a file name, the bytes of a file, {{'bytes': …}}, a PIL "
            "image, or an array of 0 to 255"
        )
    out = io.BytesIO()
    image.save(out, "png")  # no pixel changes
    return out.getvalue()


def pixels(data: bytes | Path, side: int, channels: int) -> np.ndarray:
    """An image in a model's size and colours, (C, side, side) uint8; resized (bicubic) where it has another size.

    Raises:
        ValueError: if it cannot be read.
    """
    pil = module("PIL.Image", "images", "pillow")
    try:
        with pil.open(io.BytesIO(data) if isinstance(data, bytes) else data) as opened:
            image = opened.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, pil.DecompressionBombError) as error:
        name = "an image of a row" if isinstance(data, bytes) else str(data)
        raise ValueError(f"{name} cannot be read as an image: {error}. Leave it out or make it again") from None
    found = np.asarray(image if image.size == (side, side) else image.resize((side, side)))
    return np.ascontiguousarray(found[None] if found.ndim == 2 else found.transpose(2, 0, 1))
