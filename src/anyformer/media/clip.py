"""Videos: pictures with the seconds at which they are shown. F frames.

| given                                | becomes                                                            |
|--------------------------------------|--------------------------------------------------------------------|
| (frames, frames a second)            | frame i at i / rate                                                |
| (frames, [seconds of each])          | as it is; seconds go up                                            |
| an animated picture (GIF, WebP, PNG) | its frames, each as long as its file says                          |
| another file                         | its frames at their timestamps, decoded by `av`                    |

Frames alone are refused: without their seconds a model would take any motion for another one.
"""

from __future__ import annotations

import importlib
import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anyformer.media.picture import picture, pillow

LONGEST = 4096  # frames of one video
MOST = 500_000_000  # pixels of all of them, 1.5 GB in colour


@dataclass(frozen=True, eq=False)
class Clip:
    """A video.

    Attributes:
        frames: pictures of any kind that `media.picture` reads, of one size.
        seconds: at which each is shown, (F,); it begins at the first.
        end: at which the last one ends.
        name: of the file, for errors.
    """

    frames: Sequence[Any]
    seconds: tuple[float, ...]
    end: float
    name: str = "the video"

    def at(self, rate: float) -> list[Any]:
        """The frames shown at 0, 1 / rate, 2 / rate … seconds after the beginning."""
        if not rate > 0:
            raise ValueError(f"rate is {rate}; expected frames a second, above 0")
        start, made, shown = self.seconds[0], list[Any](), 0
        for step in range(max(1, math.ceil((self.end - start) * rate - 1e-6))):
            while shown + 1 < len(self.seconds) and self.seconds[shown + 1] <= start + step / rate + 1e-6:
                shown += 1
            made.append(self.frames[shown])
        return made


def clip(source: Any) -> Clip:
    """A video from any of the forms above.

    Raises:
        ValueError: naming the file, for a value that is no video, has no seconds, or seconds that do not go up.
        ImportError: without av, for a file that Pillow does not read.
    """
    if isinstance(source, Clip):
        return source
    if isinstance(source, str | os.PathLike):
        return _file(os.fspath(source))
    if not isinstance(source, tuple) or len(source) != 2:
        raise ValueError(
            f"a video is the name of a file, or (frames, frames a second), or (frames, seconds of each); got "
            f"{type(source).__name__}. Without seconds it has no motion: give the rate"
        )
    frames, times = source
    return _checked("the video", list(frames), times)


def _checked(name: str, frames: list[Any], times: Any, last: float | None = None) -> Clip:
    if not 1 <= len(frames) <= LONGEST:
        raise ValueError(f"{name} has {len(frames)} frames; expected 1 to {LONGEST:,}. Cut it")
    number = isinstance(times, int | float) and not isinstance(times, bool)
    if number and not 0 < times < math.inf:
        raise ValueError(f"{name}: the rate is {times}; expected frames a second, above 0")
    seconds = tuple(i / times for i in range(len(frames))) if number else tuple(float(t) for t in times)
    if len(seconds) != len(frames) or not all(math.isfinite(t) for t in seconds):
        raise ValueError(f"{name} has {len(frames)} frames and {len(seconds)} seconds; expected one finite number each")
    if any(a >= b for a, b in itertools.pairwise(seconds)):
        raise ValueError(f"{name}: the seconds of its frames do not go up: {', '.join(f'{t:g}' for t in seconds[:8])}")
    usual = 1 / times if number else (seconds[-1] - seconds[0]) / max(1, len(seconds) - 1)
    return Clip(frames, seconds, seconds[-1] + (usual if last is None else last), name)


def _bounded(name: str, count: int, width: int, height: int) -> None:
    """Raises ValueError for more frames than memory should hold."""
    if count * width * height > MOST:
        raise ValueError(
            f"{name} has {count} frames or more of {width} x {height}, and {MOST:,} pixels in all are the most; cut it "
            "or make it smaller"
        )


def _file(name: str) -> Clip:
    if not os.path.isfile(name):
        raise ValueError(f"there is no file {name!r}")
    try:
        with pillow().open(name) as opened:
            return _animated(name, opened)
    except pillow().UnidentifiedImageError:
        pass
    try:
        av = importlib.import_module("av")
    except ImportError:
        raise ImportError(f"{name} is no animated picture; other videos need `pip install av`") from None
    frames, seconds = [], []
    try:
        with av.open(name) as held:
            for frame in held.decode(video=0):
                if frame.time is None:
                    raise ValueError(f"{name}: its frames have no timestamps; give (frames, frames a second)")
                frames.append(frame.to_image())
                seconds.append(float(frame.time))
                if len(frames) > LONGEST:
                    break
                _bounded(name, len(frames), frame.width, frame.height)
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{name} cannot be read as a video: {error}") from None
    return _checked(name, frames, seconds)


def _animated(name: str, opened: Any) -> Clip:
    """The frames of an animated picture; a single picture is none."""
    count = getattr(opened, "n_frames", 1)
    if count < 2:
        raise ValueError(f"{name} is a single picture, not a video; pass it as an image")
    if count > LONGEST:
        raise ValueError(f"{name} has {count} frames; expected at most {LONGEST:,}. Cut it")
    _bounded(name, count, opened.width, opened.height)
    frames, seconds, now = [], [], 0.0
    for number in range(count):
        opened.seek(number)
        lasts = opened.info.get("duration", 0) / 1000
        if lasts <= 0:
            raise ValueError(f"{name}: frame {number} has no duration; give (frames, frames a second)")
        frames.append(picture(opened.convert("RGBA")))
        seconds.append(now)
        now += lasts
    return _checked(name, frames, seconds, now - seconds[-1])
