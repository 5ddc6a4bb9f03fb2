"""Pictures of several sizes to one batch, with a mask of their real pixels (DETR)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.hub.formats.guard import short
from anyformer.hub.processors import keys
from anyformer.hub.processors.images import QUICK, ImageProcessor
from anyformer.hub.tables.config import Lens, Line, must, quiet, read, write

KIND = "DetrImageProcessor"
LONGEST = 1333  # of old files that say the shorter edge alone


@dataclass(frozen=True)
class DetectionProcessor(ImageProcessor):
    """Pictures to `pixel_values` and `pixel_mask`: RGB, resize, scale, normalise, pad at the right and below.

    Args, beside those of `ImageProcessor`:
        longest: the length of the longer edge is at most this; then the shorter one is below `size`. With a `size` of
            height and width it is None.
        padded: fill pictures of a batch up to the largest with 0; else all must have one size.
        pad_size: (height, width) to which every picture is filled up, or None.

    Raises:
        ValueError: naming the argument at fault.
    """

    takes = ("pixel_values", "pixel_mask")  # type: ignore[assignment]

    kind: str = KIND
    longest: int | None = None
    padded: bool = True
    pad_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.longest is not None and (not isinstance(self.size, int) or self.longest < 1):
            raise ValueError(f"longest={self.longest} limits a picture whose shorter edge is given; size={self.size}")
        if self.pad_size is not None and not self.padded:
            raise ValueError(f"pad_size={self.pad_size} needs padded=True")

    def __call__(self, media: Any) -> dict[str, Tensor]:
        """Pictures to {"pixel_values": (B, C, height, width) float32, "pixel_mask": (B, height, width)}."""
        several = isinstance(media, list | tuple) or getattr(media, "ndim", 0) == 4
        if not self.padded:
            return super().__call__(media)
        arrays = [self.values(one) for one in (media if several else [media])]
        if not arrays:
            raise ValueError("there are no pictures: the list is empty")
        sizes = np.array([a.shape[1:] for a in arrays])  # (B, 2)
        height, width = (int(n) for n in (sizes.max(0) if self.pad_size is None else self.pad_size))
        if (sizes > (height, width)).any():
            largest = sizes[sizes.sum(1).argmax()]
            raise ValueError(
                f"a picture of {largest[1]} x {largest[0]} pixels does not fit pad_size, {width} x {height}"
            )
        if len({len(a) for a in arrays}) > 1:
            raise ValueError("some pictures are grey, others coloured; a processor with image_mean decides for one")
        values = torch.zeros(len(arrays), len(arrays[0]), height, width)
        mask = torch.zeros(len(arrays), height, width, dtype=torch.long)
        for i, array in enumerate(arrays):
            values[i, :, : array.shape[1], : array.shape[2]] = torch.from_numpy(array)
            mask[i, : array.shape[1], : array.shape[2]] = 1
        return {"pixel_values": values, "pixel_mask": mask}

    def resized(self, image: Any) -> Any:
        if self.longest is None or not isinstance(self.size, int):
            return super().resized(image)
        height, width = fitted(image.height, image.width, self.size, self.longest)
        return image.resize((width, height), self.resample)

    @classmethod
    def read(
        cls, content: Mapping[str, Any], kind: str | None, ignore: Collection[str]
    ) -> tuple[DetectionProcessor, list[Line]]:
        made, lines = read(ENTRIES, content, cls, {}, ignore)
        return made, [replace(line, detail=QUICK) if str(line.value).endswith("Fast") else line for line in lines]

    def words(self) -> dict[str, Any]:
        return write(ENTRIES, self, {"origin": self.origin, "crop_size": None}, self.origin.words)

    def __str__(self) -> str:
        limit = f" (at most {self.longest} long)" if self.longest is not None else ""
        filled = "to the largest of a batch" if self.pad_size is None else f"{self.pad_size[0]} x {self.pad_size[1]}"
        return super().__str__() + limit + (f"; filled up {filled}" if self.padded else "")


def fitted(height: int, width: int, shorter: int, longest: int) -> tuple[int, int]:
    """The size of a picture whose shorter edge becomes `shorter`, or less where the longer one would exceed `longest`.

    Raises:
        ValueError: for a picture so thin that nothing of it remains.
    """
    least, most = min(height, width), max(height, width)
    exact: float = shorter
    if most / least * shorter > longest:
        exact = longest * least / most
        shorter = round(exact)
    sides = (shorter, int(exact * width / height)) if height < width else (int(exact * height / width), shorter)
    if least == shorter:
        sides = (height, width)
    elif height == width:
        sides = (shorter, int(exact))
    if min(sides) < 1:
        raise ValueError(
            f"a picture of {width} x {height} pixels is too thin: {longest} pixels long, nothing of it remains. Cut it"
        )
    return sides


def from_scratch(channels: int) -> DetectionProcessor:
    """The processor of a model that is trained from scratch: pictures in their own size, bytes to -1 … 1."""
    half = (0.5,) * channels
    return DetectionProcessor(image_mean=half, image_std=half)


def _size(content: Mapping[str, Any]) -> dict[str, Any]:
    resample = content.get("resample")
    resample = keys._whole("resample", 2 if resample is None else resample, 0, 5)
    if not keys._flag(content, "do_resize", True):
        return {"size": None, "resample": resample, "longest": None}
    size, most = content.get("size"), content.get("max_size")
    if isinstance(size, int) and not isinstance(size, bool):
        size = {"shortest_edge": size, "longest_edge": LONGEST if most is None else most}
    elif most is not None and not (isinstance(size, Mapping) and size.get("longest_edge") == most):
        raise ValueError(f"'max_size' is {short(most)}, and 'size' {short(size)}; they contradict each other")
    if isinstance(size, Mapping) and set(size) == {"shortest_edge", "longest_edge"}:
        edges = {name: keys._whole(f"size.{name}", value, 1, keys.WIDEST) for name, value in size.items()}
        return {"size": edges["shortest_edge"], "resample": resample, "longest": edges["longest_edge"]}
    if isinstance(size, Mapping) and set(size) == {"height", "width"}:
        return {"size": keys._size("size", dict(size), True), "resample": resample, "longest": None}
    raise ValueError(f"'size' is {short(size)}; expected a number, height and width, or shortest_edge and longest_edge")


def _put_size(p: Any) -> dict[str, Any]:
    if p.size is None:
        return {"do_resize": False}
    if not isinstance(p.size, int):
        return {"do_resize": True, "size": keys._pair(p.size), "resample": p.resample}
    if p.longest is None:
        raise ValueError(f"size={p.size} alone cannot be written in this format, which wants longest, too")
    return {
        "do_resize": True,
        "size": {"shortest_edge": p.size, "longest_edge": p.longest},
        "resample": p.resample,
    }


def _pad(content: Mapping[str, Any]) -> dict[str, Any]:
    old, new = (content.get(name) for name in ("pad_and_return_pixel_mask", "do_pad"))
    if None not in (old, new) and old != new:
        raise ValueError(f"'do_pad' is {new} and 'pad_and_return_pixel_mask', its older name, {old}")
    padded = keys._flag(content, "do_pad" if old is None else "pad_and_return_pixel_mask", True)
    size = content.get("pad_size") if padded else None
    return {"padded": padded, "pad_size": None if size is None else keys._size("pad_size", size, True)}


def _put_pad(p: Any) -> dict[str, Any]:
    return {"do_pad": p.padded} | ({} if p.pad_size is None else {"pad_size": keys._pair(p.pad_size)})


ENTRIES = (
    Lens(("image_processor_type", "feature_extractor_type"), ("kind",), lambda content: {"kind": KIND},
         lambda p: {"image_processor_type": p.kind}),
    Lens(("do_convert_rgb",), ("convert_rgb",),
         lambda content: {"convert_rgb": keys._flag(content, "do_convert_rgb", False)},
         lambda p: {"do_convert_rgb": True} if p.convert_rgb else {}),
    Lens(("do_resize", "size", "resample", "max_size"), ("size", "resample", "longest"), _size, _put_size),
    Lens(("do_pad", "pad_and_return_pixel_mask", "pad_size"), ("padded", "pad_size"), _pad, _put_pad),
    must("format", "coco_detection"),
    quiet("do_convert_annotations", "return_segmentation_masks", "masks_path", why="about boxes and masks of training"),
    *keys._NUMBERS,
    *(entry for entry in keys._NOTHING if not {"do_pad", "pad_size"} & {*entry.names}),
)  # fmt: skip
