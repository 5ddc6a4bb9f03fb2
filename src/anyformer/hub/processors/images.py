"""Pictures to pixel values, step by step."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.core.value import nearest
from anyformer.hub.formats.guard import short
from anyformer.hub.processors.base import Origin, Processor
from anyformer.hub.processors.keys import KINDS, entries, kind_of, known
from anyformer.hub.tables.config import Line, read, write
from anyformer.media import steps
from anyformer.media.picture import coloured, picture

QUICK = "kind; resized by Pillow, whose numbers differ a little from torchvision's"


@dataclass(frozen=True)
class ImageProcessor(Processor):
    """Pictures to `pixel_values`: RGB, resize, crop, scale, normalise.

    Args:
        kind: the type of the file, see `KINDS`.
        convert_rgb: convert to three channels; else as many as `image_mean` has, or as the picture has.
        size: (height, width); an int: the shorter edge, in the picture's proportions; None: no resizing.
        resample: Pillow's number of the filter.
        crop_size: (height, width) of a centre crop, padded with black where the picture is smaller; None: all.
        rescale_factor: of the bytes 0 … 255; None: none.
        image_mean, image_std: of each channel: values become (x - mean) / std; None: unchanged.
        origin: the file that it was read from.

    Raises:
        ValueError: naming the argument at fault.
    """

    takes = ("pixel_values",)
    slot = "image_processor"

    kind: str = "ViTImageProcessor"
    convert_rgb: bool = False
    size: tuple[int, int] | int | None = None
    resample: int = 2
    crop_size: tuple[int, int] | None = None
    rescale_factor: float | None = 1 / 255
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None
    origin: Origin = field(default=Origin(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no image processor {self.kind!r}{nearest(self.kind, list(KINDS))}; {known()}")
        if isinstance(self.resample, bool) or self.resample not in range(len(steps.FILTERS)):
            raise ValueError(f"resample is {short(self.resample)}; expected a number of Pillow's filters, 0 to 5")
        if (self.image_mean is None) != (self.image_std is None):
            raise ValueError("image_mean and image_std belong together; one of them is missing")
        if self.image_mean is not None and self.image_std is not None:
            if len(self.image_mean) != len(self.image_std) or len(self.image_mean) not in (1, 3):
                count = f"{len(self.image_mean)} and {len(self.image_std)}"
                raise ValueError(f"image_mean and image_std have {count} numbers; expected one a channel: 1 or 3 each")
            if self.convert_rgb and len(self.image_mean) == 1:
                raise ValueError("image_mean has one number, and do_convert_rgb makes three channels")

    def __call__(self, media: Any) -> dict[str, Tensor]:
        """Pictures to {"pixel_values": (B, C, height, width)}, float32.

        Args:
            media: a picture or a list of them, each of a kind that `media.picture` reads; an array of four axes is
                several.

        Raises:
            ValueError: for anything but pictures, and for pictures of different final sizes.
        """
        several = isinstance(media, list | tuple) or getattr(media, "ndim", 0) == 4
        arrays = [self.values(one) for one in (media if several else [media])]
        if not arrays:
            raise ValueError("there are no pictures: the list is empty")
        if len({a.shape for a in arrays}) > 1:
            shapes = ", ".join(sorted({str(a.shape) for a in arrays})[:4])
            raise ValueError(
                f"the processed pictures have different shapes: {shapes}; pass them one by one, or use a processor "
                "with crop_size or with a size of height and width"
            )
        return {"pixel_values": torch.from_numpy(np.stack(arrays))}

    def pixels(self, source: Any) -> np.ndarray:
        """A picture after resize and crop, as the model sees it: (C, height, width) uint8."""
        image = picture(source)
        channels = self.channels or (1 if image.mode in ("1", "L", "LA", "La") else 3)
        image = coloured(image, channels)
        if self.size is not None:
            image = self.resized(image)
        pixels = np.asarray(image).reshape(image.height, image.width, channels)
        if self.crop_size is not None:
            pixels = steps.crop(pixels, self.crop_size)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def resized(self, image: Any) -> Any:
        """A picture in the size that the model wants."""
        assert self.size is not None
        return steps.resize(image, self.size, self.resample)

    def values(self, source: Any) -> np.ndarray:
        """A picture as (C, height, width) float32."""
        pixels = self.pixels(source)
        return np.stack([row[channel] for row, channel in zip(self._tables[len(pixels)], pixels, strict=True)])

    def pictures(self, values: np.ndarray) -> np.ndarray:
        """Pixel values as pictures again: (N, C, height, width) -> (N, height, width, C) uint8."""
        values = values.transpose(0, 2, 3, 1)
        if self.image_mean is not None and self.image_std is not None:
            values = values * np.array(self.image_std) + np.array(self.image_mean)
        values = values / (self.rescale_factor or 1.0)
        return values.round().clip(0, 255).astype(np.uint8)

    @property
    def channels(self) -> int | None:
        """The number of channels; None if it is the picture's."""
        return 3 if self.convert_rgb else None if self.image_mean is None else len(self.image_mean)

    @cached_property
    def _tables(self) -> dict[int, np.ndarray]:
        counts = (1, 3) if self.channels is None else (self.channels,)
        return {c: steps.table(self.rescale_factor, self.image_mean, self.image_std, c) for c in counts}

    @classmethod
    def read(
        cls, content: Mapping[str, Any], kind: str | None, ignore: Collection[str]
    ) -> tuple[ImageProcessor, list[Line]]:
        made, lines = read(entries(kind_of(content, kind)), content, cls, {}, ignore)
        return made, [replace(line, detail=QUICK) if str(line.value).endswith("Fast") else line for line in lines]

    def words(self) -> dict[str, Any]:
        return write(entries(self.kind), self, {"origin": self.origin}, self.origin.words)

    def __str__(self) -> str:
        steps_in_words = ["RGB"] if self.channels == 3 else ["grey"] if self.channels == 1 else []
        if self.size is not None:
            wanted = f"shorter edge to {self.size}" if isinstance(self.size, int) else _across(self.size)
            steps_in_words.append(f"resize {wanted} ({steps.FILTERS[self.resample]})")
        steps_in_words += [] if self.crop_size is None else [f"middle {_across(self.crop_size)}"]
        steps_in_words += [] if self.rescale_factor is None else [f"times {self.rescale_factor:.6g}"]
        if self.image_mean is not None and self.image_std is not None:
            mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (self.image_mean, self.image_std))
            steps_in_words.append(f"minus ({mean}), over ({std})")
        return "; ".join(steps_in_words)


def _across(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
