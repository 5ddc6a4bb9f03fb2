"""Processors: the conversion of media to model inputs, from files that are read and written strictly.

preprocessor_config.json     the steps of one processor
processor_config.json        a dictionary for each medium; for pictures {"image_processor": {the steps}, …}
video_preprocessor_config.json    the steps of videos, where a model reads both

Every key is used, known to change nothing (with the reason), or refused by name; an unknown type is refused, too. A
mean and a standard deviation have no defaults: a file without them is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from anyformer.hub.formats.guard import atomic_write, inside, read_json, short
from anyformer.hub.processors import cubes, depth, videos
from anyformer.hub.processors.base import ALONE, TOGETHER, Origin, Processor
from anyformer.hub.processors.codecs import KIND as CODEC
from anyformer.hub.processors.codecs import CodecProcessor
from anyformer.hub.processors.cubes import CubeProcessor
from anyformer.hub.processors.detection import KIND, DetectionProcessor, from_scratch
from anyformer.hub.processors.graphs import GraphProcessor
from anyformer.hub.processors.images import ImageProcessor
from anyformer.hub.processors.keys import CLASS, kind_of
from anyformer.hub.processors.series import SeriesProcessor
from anyformer.hub.processors.sounds import SoundProcessor
from anyformer.hub.processors.trajectories import Steps, TrajectoryProcessor
from anyformer.hub.processors.waves import WaveProcessor
from anyformer.hub.tables.config import Line
from anyformer.parts.sound.pieces import SoundEncoder

__all__ = [
    "CodecProcessor", "CubeProcessor", "DetectionProcessor", "GraphProcessor", "ImageProcessor", "Origin", "Processor",
    "SeriesProcessor", "SoundProcessor", "Steps", "TrajectoryProcessor", "WaveProcessor", "assumed", "from_scratch",
    "read_processor", "trained", "write_processor",
]  # fmt: skip
OWN: dict[str, type[ImageProcessor]] = {
    KIND: DetectionProcessor, cubes.KIND: CubeProcessor, depth.KIND: depth.DepthProcessor,  # others: ImageProcessor
}  # fmt: skip
AROUND = {"processor_class": CLASS}  # keys of processor_config.json beside the steps
MAKES: dict[str, type[Processor]] = {
    p.takes[0]: p
    for p in (GraphProcessor, ImageProcessor, SeriesProcessor, SoundProcessor, TrajectoryProcessor, WaveProcessor)
}  # by main input


def read_processor(
    folder: Path,
    kind: str | None = None,
    ignore: Collection[str] = (),
    takes: Collection[str] = ("pixel_values",),
    around: Mapping[str, Any] | None = None,
) -> Processor | None:
    """The processor that a folder's files describe; None without files, or for inputs without a processor.

    Args:
        takes: the model's inputs.
        kind: the type of old files that name none.
        ignore: keys that are passed over.
        around: the keys beside the steps that the model's files have, with the only values that fit it.

    Raises:
        ValueError: naming file and key, for unknown keys, an unknown type, impossible values, or two files that
            disagree.
    """
    processors: list[Processor] = []
    made = next((MAKES[name] for name in takes if name in MAKES), None)
    if made is None:
        return None
    beside: dict[str, Any] = {}
    for name in (ALONE, TOGETHER):
        if os.path.lexists(folder / name):
            whole = read_json(inside(folder, name))
            try:
                found, beside = _of(made, name, whole, kind, ignore, around or {})
            except ValueError as error:
                raise ValueError(f"{folder / name}: {error}") from None
            processors += found
    if len(processors) == 2 and processors[0] != processors[1]:
        raise ValueError(
            f"{folder}: {ALONE} describes {processors[0]}, and {TOGETHER} {processors[1]}; remove one of them"
        )
    if not processors:
        return None
    origin = replace(processors[0].origin, around=beside)
    origin = replace(origin, lines=(*origin.lines, *_lines(beside, around or {}, ignore)))
    whole = replace(processors[0], origin=origin)  # type: ignore[type-var]
    return videos.with_films(whole, folder, ignore) if isinstance(whole, CubeProcessor) else whole


def assumed(model: Any) -> CodecProcessor | SoundProcessor | WaveProcessor | None:
    """The processor of a model whose files have none: for sound, the published one of all models of that size; None for
    other inputs."""
    if isinstance(model.entrances()[0].front, SoundEncoder):
        return CodecProcessor(model.rate, model.embed.channels)
    if model.takes == "input_values":
        return WaveProcessor()
    if model.takes != "input_features":
        return None
    front, usual = model.entrances()[0].front, SoundProcessor()
    window, rest = divmod(2 * front.context * usual.hop, usual.rate)
    return None if rest else SoundProcessor(mels=front.mels, window=window)


def trained(kind: str, height: int, width: int, channels: int) -> ImageProcessor:
    """The processor of a model that is trained from scratch: its own size, bytes to -1 … 1."""
    half = (0.5,) * channels
    made = OWN.get(kind, ImageProcessor)
    return made(kind, size=(height, width), resample=3, image_mean=half, image_std=half)


def write_processor(folder: Path, processor: Processor | None, around: Mapping[str, Any] | None = None) -> None:
    """Writes the steps for `read_processor`, with the names and the other keys of the files that were read.

    Args:
        around: the keys beside the steps, for a processor that was not read; None: such keys have no meaning for these
            files, and those that were read are left out.
    """
    if processor is None:
        return
    origin, words = processor.origin, processor.words()
    beside = origin.around if origin.words else around or {}
    if around is None:
        beside = {key: value for key, value in beside.items() if key in AROUND}
    film = videos.written(processor) if isinstance(processor, CubeProcessor) else None
    if film is not None and film[0] == TOGETHER:
        beside = {**beside, videos.SLOT: film[1]}
    elif film is not None:
        _write(folder / film[0], film[1])
    if origin.file == TOGETHER:
        apart = {name: words.pop(name) for name in list(words) if name in cubes.SOUNDS} if _cubes(words) else {}
        heard = {cubes.HEARD: apart} if apart else {}
        _write(folder / TOGETHER, {**beside, processor.slot: words, **heard})
        return
    _write(folder / origin.file, words)
    if beside:
        _write(folder / TOGETHER, beside)


def _cubes(content: Any) -> bool:
    """True for steps of pictures that can have steps of sounds beside them."""
    name = content.get("image_processor_type") if isinstance(content, dict) else None
    return str(name).removesuffix("Fast").removesuffix("Pil") == cubes.KIND


def _write(path: Path, content: Mapping[str, Any]) -> None:
    atomic_write(path, (json.dumps(dict(sorted(content.items())), indent=2) + "\n").encode())


def _of(
    made: type[Processor],
    name: str,
    whole: Any,
    kind: str | None,
    ignore: Collection[str],
    fitting: Mapping[str, Any],
) -> tuple[list[Processor], dict[str, Any]]:
    """The processor in the content of a file, none in a processor_config.json without one; and what stands beside."""
    if not isinstance(whole, dict):
        raise ValueError(f"expected a dictionary, got {type(whole).__name__}")
    around: dict[str, Any] = {}
    content: Any = whole
    if name == TOGETHER:
        content = whole.get(made.slot)
        heard = whole.get(cubes.HEARD) if _cubes(content) else None
        own = {made.slot, *([] if heard is None else [cubes.HEARD]), *([videos.SLOT] if _cubes(content) else [])}
        around = {k: v for k, v in whole.items() if k not in own}
        content = {**content, **heard} if isinstance(heard, dict) else content
        _check_around(around, ignore, fitting)
        if content is None:
            return [], around
        if not isinstance(content, dict):
            raise ValueError(f"{made.slot} must be a dictionary, got {type(content).__name__}")
    if made is ImageProcessor:
        made = OWN.get(kind_of(content, kind), made)
    if made is WaveProcessor and CODEC in (content.get("feature_extractor_type"), kind):
        made = CodecProcessor
    processor, lines = made.read(content, kind, ignore)
    return [replace(processor, origin=Origin(name, around, content, tuple(lines)))], around


def _check_around(around: Mapping[str, Any], ignore: Collection[str], fitting: Mapping[str, Any]) -> None:
    """Raises ValueError for an unknown key beside the steps, or one that contradicts the model."""
    if unknown := [k for k in around if k not in AROUND and k not in fitting and k not in ignore]:
        raise ValueError(f"unknown keys: {', '.join(f'{k}={short(around[k])}' for k in unknown)}")
    for key, value in fitting.items():
        if key not in AROUND and key not in ignore and around.get(key) not in (None, value):
            raise ValueError(f"{key!r} is {short(around[key])}, and the model beside it needs {short(value)}")


def _lines(around: Mapping[str, Any], fitting: Mapping[str, Any], ignore: Collection[str]) -> list[Line]:
    """The lines of the ledger for the keys beside the steps."""
    known = {**dict.fromkeys(fitting, "repeats what the model says, and agrees"), **AROUND}
    return [Line(k, v, "ignored", "as asked" if k in ignore else known[k]) for k, v in around.items()]
