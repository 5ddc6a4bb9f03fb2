"""Pictures whose sides become multiples of a number, for maps of depth (DPT)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from anyformer.hub.processors import keys
from anyformer.hub.processors.images import ImageProcessor
from anyformer.hub.tables.config import Lens, Line, key, quiet, read, write

KIND = "DPTImageProcessor"


@dataclass(frozen=True)
class DepthProcessor(ImageProcessor):
    """Pictures to `pixel_values`: RGB, resize, scale, normalise, pad around with 0.

    Args, beside those of `ImageProcessor`:
        keep: the picture's proportions, nearly: of the two scales that `size` asks for, both sides take the one that
            changes less.
        multiple: of which both sides become multiples.
        divisor: to a multiple of which both sides are filled up, half on each side; None: no padding.

    Raises:
        ValueError: naming the argument at fault.
    """

    kind: str = KIND
    resample: int = 3
    keep: bool = False
    multiple: int = 1
    divisor: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("multiple", "divisor"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        if isinstance(self.size, int):
            raise ValueError(f"{KIND}: size is height and width, got {self.size}")

    def resized(self, image: Any) -> Any:
        """Raises ValueError for a picture so thin that nothing of it remains."""
        assert isinstance(self.size, tuple)
        scales = [wanted / there for wanted, there in zip(self.size, (image.height, image.width), strict=True)]
        if self.keep:
            scales = [scales[1] if abs(1 - scales[1]) < abs(1 - scales[0]) else scales[0]] * 2
        sides = zip(scales, (image.height, image.width), strict=True)
        height, width = (round(scale * side / self.multiple) * self.multiple for scale, side in sides)
        if not height or not width:
            raise ValueError(
                f"a picture of {image.width} x {image.height} pixels becomes one of {width} x {height}: nothing of it "
                "remains. Cut it"
            )
        return image.resize((width, height), self.resample)

    def values(self, source: Any) -> np.ndarray:
        values = super().values(source)
        if self.divisor is None:
            return values
        more = [math.ceil(side / self.divisor) * self.divisor - side for side in values.shape[1:]]
        return np.pad(values, ((0, 0), *((count // 2, count - count // 2) for count in more)))

    @classmethod
    def read(
        cls, content: Mapping[str, Any], kind: str | None, ignore: Collection[str]
    ) -> tuple[DepthProcessor, list[Line]]:
        return read(ENTRIES, content, cls, {}, ignore)

    def words(self) -> dict[str, Any]:
        return write(ENTRIES, self, {"origin": self.origin}, self.origin.words)

    def __str__(self) -> str:
        sides = f"; sides in multiples of {self.multiple}" if self.multiple > 1 else ""
        sides += ", in the picture's proportions" if self.keep else ""
        filled = "" if self.divisor is None else f"; filled up to multiples of {self.divisor}"
        return super().__str__() + sides + filled


def _pad(content: Mapping[str, Any]) -> dict[str, Any]:
    size = content.get("size_divisor")
    if not keys._flag(content, "do_pad", False) or size is None:
        return {"divisor": None}
    return {"divisor": keys._whole("size_divisor", size, 1, keys.WIDEST)}


def _put_pad(p: Any) -> dict[str, Any]:
    return {"do_pad": False} if p.divisor is None else {"do_pad": True, "size_divisor": p.divisor}


ENTRIES = (
    *(entry for entry in keys.entries(KIND) if "do_pad" not in entry.names),
    key("keep_aspect_ratio", "keep", default=False),
    key("ensure_multiple_of", "multiple", default=1),
    Lens(("do_pad", "size_divisor"), ("divisor",), _pad, _put_pad),
    quiet("do_reduce_labels", "reduce_labels", why="about maps of classes to learn from"),
)
