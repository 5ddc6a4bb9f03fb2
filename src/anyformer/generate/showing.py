"""A picture as a model sees it: after the steps of its processor, un-normalised. C channels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anyformer.core.shown import Shown
from anyformer.hub.processors import ImageProcessor
from anyformer.media.picture import coloured, picture


@dataclass(frozen=True)
class Seen(Shown):
    """A picture as a model sees it.

    Attributes:
        pixels: (height, width, C) uint8: the model's numbers, brought back to bytes.
        given: height and width of the upright picture. seen: of what the model sees.
        kept: the share of the picture that no crop cuts off.
        least, most: of the model's numbers. mean: of each channel.
        steps: of the processor, in words.
    """

    pixels: np.ndarray = field(repr=False)
    given: tuple[int, int]
    seen: tuple[int, int]
    kept: float
    least: float
    most: float
    mean: tuple[float, ...]
    steps: tuple[str, ...]


def show(model: Any, source: Any) -> Seen:
    """A picture as the model sees it, un-normalised: the fastest way to find a wrong mean, a crop or lost colours.

    Args:
        model: one with a processor of pictures. source: of any kind that `media.picture` reads.

    Raises:
        ValueError: for a model without such a processor, or for anything but a picture.
    """
    processor = model.processor
    if not isinstance(processor, ImageProcessor):
        what = model.page or type(model).__name__
        why = "sees no pictures" if "pixel_values" not in model.processed else "has no preprocessor_config.json"
        raise ValueError(f"{what} {why}: there is nothing to show; `anyformer inspect` prints what it reads")
    image = picture(source)
    values = processor.values(source)  # (C, height, width)
    (pixels,) = processor.pictures(values[None])
    resized = image if processor.size is None else processor.resized(coloured(image, len(values)))
    area, within = resized.height * resized.width, (resized.height, resized.width)
    if processor.crop_size is not None:
        within = (min(within[0], processor.crop_size[0]), min(within[1], processor.crop_size[1]))
    return Seen(
        pixels, (image.height, image.width), (pixels.shape[0], pixels.shape[1]), within[0] * within[1] / area,
        float(values.min()), float(values.max()), tuple(float(v) for v in values.mean((1, 2))),
        tuple(str(processor).split("; ")),
    )  # fmt: skip
