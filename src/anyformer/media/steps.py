"""Steps from a picture to numbers, as in published image processors: Pillow resizes, bytes become floats once.

H, W height and width in pixels, C channels. Equal to the bit to `transformers` with its Pillow backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers


def resize(image: Any, size: int | tuple[int, int], resample: int) -> Any:
    """A picture in another size: (H, W), or an int, the length of its shorter edge, with the same proportions.

    Raises:
        ValueError: if a thin picture would exceed Pillow's safe size.
    """
    from anyformer.media.picture import pillow

    if isinstance(size, int):
        width, height = image.size
        long = int(size * max(width, height) / min(width, height))
        size = (long, size) if width <= height else (size, long)
        most = pillow().MAX_IMAGE_PIXELS
        if most is not None and size[0] * size[1] > most:
            raise ValueError(
                f"a picture of {width} x {height} pixels becomes one of {size[1]} x {size[0]} if its shorter edge is "
                f"{min(size)}; at most {most:,} pixels are made. Cut it"
            )
    return image.resize((size[1], size[0]), resample)


def crop(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of (H, W, C) pixels in another size; with black around them if they are too small."""
    out = np.zeros((*size, pixels.shape[2]), pixels.dtype)
    (from_y, to_y, rows), (from_x, to_x, columns) = map(_middle, pixels.shape, size)
    out[to_y : to_y + rows, to_x : to_x + columns] = pixels[from_y : from_y + rows, from_x : from_x + columns]
    return out


def _middle(there: int, wanted: int) -> tuple[int, int, int]:
    """The start of the read, the start of the write, and the length."""
    if there >= wanted:
        return (there - wanted) // 2, 0, wanted
    return 0, (wanted - there + 1) // 2, there


def table(scale: float | None, mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> np.ndarray:
    """The new value of each byte of each channel, (C, 256) float32: (byte * scale - mean) / std."""
    values = np.arange(256).astype(np.float64)
    scaled = (values if scale is None else values * scale).astype(np.float32)
    out = np.repeat(scaled[None], channels, 0)
    if mean is not None and std is not None:
        out = (out - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]
    return out
