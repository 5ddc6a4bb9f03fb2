"""Pictures and videos of any size to patches in one sequence, and sounds of any length (Qwen2-VL, Qwen2.5-Omni).

N pictures or videos, P patches of all of them, F frames, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.hub.formats.guard import short
from anyformer.hub.processors import keys
from anyformer.hub.processors.images import ImageProcessor
from anyformer.hub.processors.sounds import SoundProcessor
from anyformer.hub.tables.config import Lens, Line, key, must, quiet, read, write
from anyformer.media.clip import clip
from anyformer.media.picture import coloured, picture
from anyformer.media.sound import sound

KIND = "Qwen2VLImageProcessor"
THINNEST = 200  # the longer side over the shorter one
HEARD = "feature_extractor"


@dataclass(frozen=True)
class CubeProcessor(ImageProcessor):
    """Pictures to `pixel_values` and `grid_thw`; videos to the same and `seconds`; sounds to `input_features` and
    `feature_attention_mask`.

    A picture keeps its proportions, nearly: its sides become multiples of patch · merge, its pixels at least `least`
    and at most `most`.

    Args, beside those of `ImageProcessor`:
        patch: height and width of a patch. frames: pictures in a patch; a single picture is repeated.
        merge: patches of a cell in each direction.
        least, most: pixels of a picture, or of a frame of a video.
        rate: frames of a video that are read each second.
        films: of videos, where their steps are not those of pictures; of the same patches.
        ears: of sounds; None: the model hears nothing.

    Raises:
        ValueError: naming the argument at fault.
    """

    takes = ("pixel_values", "grid_thw")  # type: ignore[assignment]

    kind: str = KIND
    convert_rgb: bool = True
    resample: int = 3
    patch: int = 14
    frames: int = 2
    merge: int = 2
    least: int = 56 * 56
    most: int = 28 * 28 * 1280
    rate: float = 2.0
    films: CubeProcessor | None = None
    ears: SoundProcessor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("patch", "frames", "merge", "least"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.most < max(self.least, self.cell**2):
            raise ValueError(
                f"most={self.most} pixels are fewer than least={self.least}, or than a cell of {self.cell}²"
            )
        if self.size is not None or self.crop_size is not None or not self.convert_rgb:
            raise ValueError(f"{KIND}: pictures are RGB, and their sizes follow from least and most")
        for name in ("patch", "frames", "merge"):
            if self.films is not None and (said := getattr(self.films, name)) != getattr(self, name):
                raise ValueError(
                    f"{name} is {said} for videos and {getattr(self, name)} for pictures; one tower reads both"
                )

    @property
    def cell(self) -> int:
        """Pixels of a cell in each direction."""
        return self.patch * self.merge

    def __call__(self, media: Any) -> dict[str, Tensor]:
        """Pictures to {"pixel_values": (P, C · frames · patch²) float32, "grid_thw": (N, 3)}."""
        several = isinstance(media, list | tuple) or getattr(media, "ndim", 0) == 4
        return self._packed([self.values(one)[None] for one in (media if several else [media])])

    def videos(self, media: Sequence[Any]) -> dict[str, Tensor]:
        """Videos, each of a kind that `media.clip` reads, to the same and {"seconds": (N,)}, from one frame of patches
        to the next."""
        eyes = self.films or self
        each = [np.stack([eyes.values(frame) for frame in clip(one).at(eyes.rate)]) for one in media]
        return {**self._packed(each), "seconds": torch.full((len(each),), self.frames / eyes.rate)}

    def sounds(self, media: Sequence[Any]) -> dict[str, Tensor]:
        """Sounds, each of a kind that `media.sound` reads, to {"input_features": (N, mels, frames),
        "feature_attention_mask": (N, frames)}: as long as the longest, 1 = a frame."""
        if self.ears is None:
            raise ValueError("the model's processor has no part for sounds: the model hears nothing")
        made = []
        for one in map(sound, media):
            samples = one.at(self.ears.rate).samples
            if len(samples) > self.ears.samples:
                raise ValueError(
                    f"{one.name} has {one.seconds:.1f} seconds; at most {self.ears.window} are read. Cut it"
                )
            heard = self.ears.features(np.pad(samples, (0, self.ears.size)))
            made.append(heard[:, : -(-len(samples) // self.ears.hop)])
        if not made:
            raise ValueError("there are no sounds: the list is empty")
        lengths = torch.tensor([one.shape[1] for one in made])
        values = torch.zeros(len(made), self.ears.mels, int(lengths.max()))
        for row, features in zip(values, made, strict=True):
            row[:, : features.shape[1]] = features
        return {
            "input_features": values,
            "feature_attention_mask": (torch.arange(values.shape[2]) < lengths[:, None]).long(),
        }

    def pixels(self, source: Any) -> np.ndarray:
        image = coloured(picture(source), 3)
        height, width = self.fitted(image.height, image.width)
        image = image.resize((width, height), self.resample)
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    def fitted(self, height: int, width: int) -> tuple[int, int]:
        """The size of a picture as the model sees it.

        Raises:
            ValueError: for a picture too thin.
        """
        if max(height, width) > THINNEST * min(height, width):
            raise ValueError(
                f"a picture of {width} x {height} pixels is too thin: one side is more than {THINNEST} times the other"
            )
        near = [max(1, round(side / self.cell)) * self.cell for side in (height, width)]
        if round(height / self.cell) * round(width / self.cell) * self.cell**2 > self.most:
            shrunk = math.sqrt(height * width / self.most)
            near = [max(self.cell, math.floor(side / shrunk / self.cell) * self.cell) for side in (height, width)]
        elif round(height / self.cell) * round(width / self.cell) * self.cell**2 < self.least:
            grown = math.sqrt(self.least / (height * width))
            near = [math.ceil(side * grown / self.cell) * self.cell for side in (height, width)]
        return near[0], near[1]

    def _packed(self, each: list[np.ndarray]) -> dict[str, Tensor]:
        """Values of each picture or video, (F, C, height, width), to patches."""
        if not each:
            raise ValueError("there are no pictures: the list is empty")
        patches, grids = zip(*(self._cut(values) for values in each), strict=True)
        return {"pixel_values": torch.from_numpy(np.concatenate(patches)), "grid_thw": torch.tensor(grids)}

    def _cut(self, values: np.ndarray) -> tuple[np.ndarray, list[int]]:
        if behind := -len(values) % self.frames:
            values = np.concatenate((values, values[-1:].repeat(behind, 0)))
        (count, channels, height, width), p, m = values.shape, self.patch, self.merge
        grid = [count // self.frames, height // p, width // p]
        cells = values.reshape(grid[0], self.frames, channels, grid[1] // m, m, p, grid[2] // m, m, p)
        patches = cells.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)  # frame, cell, patch of the cell, C, picture, pixels
        return np.ascontiguousarray(patches).reshape(math.prod(grid), -1), grid

    def ledger(self) -> dict[str, list[Line]]:
        made = super().ledger()
        for file, lines in ({} if self.films is None else self.films.ledger()).items():
            made[file] = made.get(file, []) + lines
        return made

    @classmethod
    def read(
        cls, content: Mapping[str, Any], kind: str | None, ignore: Collection[str]
    ) -> tuple[CubeProcessor, list[Line]]:
        heard = {name: value for name, value in content.items() if name in SOUNDS}
        seen = {name: value for name, value in content.items() if name not in SOUNDS}
        made, lines = read(ENTRIES, seen, cls, {"ears": None, "films": None}, ignore)
        if "feature_extractor_type" not in heard:
            return made, lines
        ears, more = SoundProcessor.read(heard, None, ignore)
        return replace(made, ears=ears), [*lines, *more]

    def apart(self) -> dict[str, Any]:
        """The attributes that no key of a file's steps says."""
        return {name: getattr(self, name) for name in ("origin", "crop_size", "ears", "films", "size", "convert_rgb")}

    def words(self) -> dict[str, Any]:
        origin = {name: value for name, value in self.origin.words.items() if name not in SOUNDS}
        seen = write(ENTRIES, self, self.apart(), origin)
        if self.ears is None:
            return seen
        before = {name: value for name, value in self.origin.words.items() if name in SOUNDS}
        return seen | write(self.ears.entries(None), self.ears, {"origin": self.ears.origin}, before)

    def __str__(self) -> str:
        mean, std = (", ".join(f"{v:.4g}" for v in values or ()) for values in (self.image_mean, self.image_std))
        seen = (
            f"RGB; sides in multiples of {self.cell}, {self.least:,} to {self.most:,} pixels; minus ({mean}), over "
            f"({std}); patches of {self.patch} x {self.patch} in {self.frames} frames; {self.rate:g} frames a second"
        )
        seen = seen if self.films is None else f"{seen}. Videos: {self.films}"
        return seen if self.ears is None else f"{seen}. Sounds: {self.ears}"


def sized(least: int, most: int) -> Lens:
    """The keys of the pixels of a picture, with their defaults."""
    names = ("do_resize", "size", "min_pixels", "max_pixels", "resample")
    return Lens(names, ("least", "most", "resample"), lambda content: _size(content, least, most), _put_size)


def _size(content: Mapping[str, Any], least: int, most: int) -> dict[str, Any]:
    """The pixels of a picture: older keys take precedence, as published."""
    if not keys._flag(content, "do_resize", True):
        raise ValueError("'do_resize' is false; a picture must become a whole number of cells")
    size = content.get("size")
    size = {"shortest_edge": least, "longest_edge": most} if size is None else size
    if not isinstance(size, Mapping) or not {"shortest_edge", "longest_edge"} >= set(size):
        raise ValueError(f"'size' is {short(size)}; expected the pixels of a picture, shortest_edge and longest_edge")
    said = [
        size.get(name) if content.get(older) is None else content[older]
        for name, older in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels"))
    ]
    resample = content.get("resample")
    return {
        "least": keys._whole("shortest_edge", said[0], 1, 1 << 28),
        "most": keys._whole("longest_edge", said[1], 1, 1 << 28),
        "resample": keys._whole("resample", 3 if resample is None else resample, 0, 5),
    }


def _put_size(p: Any) -> dict[str, Any]:
    return {"size": {"shortest_edge": p.least, "longest_edge": p.most}, "resample": p.resample, "do_resize": True}


SHARED = (  # keys of pictures and of videos
    must("do_convert_rgb", True),
    key("patch_size", "patch", default=14),
    key("temporal_patch_size", "frames", default=2),
    key("merge_size", "merge", default=2),
    key("fps", "rate", default=2.0),
    *keys._NUMBERS,
    *keys._NOTHING,
    quiet("default_to_square", why="sizes are pixels here"),
)
ENTRIES = (
    Lens(("image_processor_type",), ("kind",), lambda c: {"kind": keys.kind_of(c, None)},
         lambda p: {"image_processor_type": p.kind}),
    sized(56 * 56, 28 * 28 * 1280),
    *SHARED,
)  # fmt: skip
SOUNDS = frozenset(
    {name for entry in SoundProcessor.entries(None) for name in entry.names} - {"processor_class"}
)  # the keys of a sound processor in the same file
