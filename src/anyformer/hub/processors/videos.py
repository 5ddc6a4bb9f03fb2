"""Steps of videos that are not those of pictures: video_preprocessor_config.json, or `video_processor` in
processor_config.json (Qwen2-VL, Qwen2.5-Omni). They are a `CubeProcessor` of their own, `films` of that of pictures."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from anyformer.hub.formats.guard import inside, read_json, short
from anyformer.hub.processors import cubes, keys
from anyformer.hub.processors.base import TOGETHER, Origin
from anyformer.hub.processors.cubes import CubeProcessor
from anyformer.hub.tables.config import Lens, quiet, read, write

KIND = "Qwen2VLVideoProcessor"
FILE, SLOT = "video_preprocessor_config.json", "video_processor"
FRAMES = "about frames without their seconds; here a video has its seconds, and the frames of the rate are read"


def _kind(content: Mapping[str, Any]) -> dict[str, Any]:
    if content.get("video_processor_type") not in (None, KIND):
        raise ValueError(f"'video_processor_type' is {short(content['video_processor_type'])}; known is {KIND}")
    return {"kind": cubes.KIND}


ENTRIES = (
    Lens(("video_processor_type",), ("kind",), _kind, lambda p: {"video_processor_type": KIND}),
    cubes.sized(128 * 28 * 28, 768 * 28 * 28),
    *cubes.SHARED,
    keys._only("num_frames"),
    keys._only("cap_pixels_per_frame", False),
    keys._only("do_center_crop", False),
    keys._only("crop_size"),
    quiet("do_sample_frames", "min_frames", "max_frames", "video_metadata", "return_metadata", why=FRAMES),
    quiet("max_video_tokens", why="a limit of cap_pixels_per_frame, which is off"),
)


def with_films(pictures: CubeProcessor, folder: Path, ignore: Collection[str]) -> CubeProcessor:
    """The processor of pictures with the steps of videos that the files beside it say, if they say any.

    Raises:
        ValueError: naming file and key, as `read_processor`.
    """
    found = list[CubeProcessor]()
    for name in (FILE, TOGETHER):
        if not os.path.lexists(folder / name):
            continue
        whole = read_json(inside(folder, name))
        content = whole.get(SLOT) if name == TOGETHER else whole
        if content is None:
            continue
        try:
            found.append(_read(name, content, ignore))
            pictures = replace(pictures, films=found[0])
        except ValueError as error:
            raise ValueError(f"{folder / name}: {error}") from None
    if len(found) == 2 and found[0] != found[1]:
        raise ValueError(f"{folder}: {FILE} describes {found[0]}, and {TOGETHER} {found[1]}; remove one of them")
    return pictures


def _read(name: str, content: Any, ignore: Collection[str]) -> CubeProcessor:
    if not isinstance(content, dict):
        raise ValueError(f"the steps of videos must be a dictionary, got {type(content).__name__}")
    made, lines = read(ENTRIES, content, CubeProcessor, {"ears": None, "films": None}, ignore)
    if name == TOGETHER:
        lines = [replace(line, key=f"{SLOT}.{line.key}") for line in lines]
    return replace(made, origin=Origin(name, {}, content, tuple(lines)))


def written(pictures: CubeProcessor) -> tuple[str, dict[str, Any]] | None:
    """The file of the steps of videos, and these as keys; None where they are those of pictures."""
    films = pictures.films
    if films is None:
        return None
    made = films.origin.file if films.origin.words else pictures.origin.file
    return TOGETHER if made == TOGETHER else FILE, write(ENTRIES, films, films.apart(), films.origin.words)
