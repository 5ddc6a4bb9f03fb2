"""Sounds from files and arrays: one channel of float32 samples, at a known rate.

| given                              | becomes                                                                        |
|------------------------------------|--------------------------------------------------------------------------------|
| a file (wav, flac, ogg, mp3 …)     | its samples at its rate: 8, 16, 24 and 32 bits are -1 … 1                      |
| (an array, a rate in Hz)           | floats as they are; int16 and int32 over 2^15 and 2^31; uint8 (x - 128) / 128  |
| several channels                   | their mean, or as they are where so many are asked for; (samples, channels)    |
| one channel, several asked for     | that channel in each of them                                                   |

An array without a rate is refused: at another rate the same samples are another sound. So are NaN and sounds without
samples. N samples.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

LOUDEST = 8.0  # a float sample: decoders of mp3 go a little beyond 1, whole numbers in floats far beyond
CHANNELS = 32  # the most
RATES = (100, 1_000_000)  # Hz
SCALES = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}


@dataclass(frozen=True, eq=False)
class Sound:
    """One channel of sound, or several.

    Attributes:
        samples: (N,) float32; (N, C) of several channels.
        rate: samples a second, in Hz.
        name: of the file, for errors.
    """

    samples: np.ndarray
    rate: int
    name: str = "the sound"

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.samples) / self.rate

    def at(self, rate: int) -> Sound:
        """The sound at another rate, low-pass filtered by soxr."""
        if rate == self.rate:
            return self
        return Sound(_module("soxr").resample(self.samples, self.rate, rate).astype(np.float32), rate, self.name)


def sound(source: Any, channels: int = 1) -> Sound:
    """A sound from any of the forms above.

    Args:
        source: a path, an array with its rate, a tensor with its rate, or a `Sound`.
        channels: the wanted ones; 1 is their mean.

    Raises:
        ValueError: naming the file, for a value that is no sound, is damaged, empty or holds NaN.
        ImportError: without soundfile, for a file.
    """
    if not 1 <= channels <= CHANNELS:
        raise ValueError(
            f"a sound has 1 to {CHANNELS} channels, and {channels} are wanted; `at(rate)` changes the rate"
        )
    if isinstance(source, Sound):
        samples = _as_many(source.name, source.samples, channels)
        return source if samples is source.samples else Sound(samples, source.rate, source.name)
    if isinstance(source, str | os.PathLike):
        return _file(os.fspath(source), channels)
    if not isinstance(source, tuple) or len(source) != 2:
        raise ValueError(
            f"a sound is the name of a file, or (samples, rate in Hz); got {type(source).__name__}. The rate must be "
            "known: samples alone could be any sound"
        )
    samples, rate = source
    samples = samples.detach().cpu().numpy() if hasattr(samples, "detach") else np.asarray(samples)
    return _checked("the sound", _floats(samples), rate, channels)


def length(path: Any) -> tuple[int, int]:
    """The samples of a file and its rate in Hz, without reading them.

    Raises:
        ValueError: naming the file, if it is none or cannot be read. ImportError: without soundfile.
    """
    files, name = _module("soundfile"), os.fspath(path)
    if not os.path.isfile(name):
        raise ValueError(f"there is no file {name!r}")
    try:
        about = files.info(name)
    except files.SoundFileError as error:
        raise ValueError(f"{name} cannot be read as a sound: {error}") from None
    return about.frames, about.samplerate


def _file(name: str, channels: int) -> Sound:
    files = _module("soundfile")
    if not os.path.isfile(name):
        raise ValueError(f"there is no file {name!r}")
    try:
        samples, rate = files.read(name, dtype="float32", always_2d=True)
    except (files.SoundFileError, TypeError) as error:  # TypeError: a raw file has no rate
        raise ValueError(
            f"{name} cannot be read as a sound: {error}. Known are wav, flac, ogg, mp3 and other kinds of libsndfile; "
            "convert others first"
        ) from None
    return _checked(name, samples, rate, channels)


def _floats(samples: np.ndarray) -> np.ndarray:
    """Samples of any type as float32, -1 … 1."""
    if samples.dtype == np.uint8:
        return ((samples.astype(np.float32) - 128) / 128).astype(np.float32)
    if scale := SCALES.get(samples.dtype):
        return (samples / scale).astype(np.float32)
    if not np.issubdtype(samples.dtype, np.floating):
        known = ", ".join(["uint8", *(str(kind) for kind in SCALES), "floats"])
        raise ValueError(f"samples are {samples.dtype}, whose largest value is not known; give {known}")
    return samples.astype(np.float32)


def _checked(name: str, samples: np.ndarray, rate: Any, channels: int) -> Sound:
    """The channels, with nothing in them that is no sound."""
    if isinstance(rate, bool) or not isinstance(rate, int | np.integer) or not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"{name}: the rate is {rate!r}; expected {RATES[0]:,} to {RATES[1]:,} samples a second")
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and not 1 <= samples.shape[1] <= CHANNELS):
        raise ValueError(
            f"{name}: samples have the shape {samples.shape}; expected (samples,) or (samples, channels) with at most "
            f"{CHANNELS} channels"
        )
    if not len(samples):
        raise ValueError(f"{name} is empty: it has no samples")
    if not np.isfinite(samples).all():
        raise ValueError(f"{name}: a sample is NaN or infinite; is the file whole?")
    loudest = float(np.abs(samples).max())
    if loudest > LOUDEST:
        raise ValueError(f"{name}: samples are -1 … 1, and one is {loudest:g}; give whole numbers as int16 or int32")
    return Sound(np.ascontiguousarray(_as_many(name, samples, channels)), int(rate), name)


def _as_many(name: str, samples: np.ndarray, channels: int) -> np.ndarray:
    """The samples with so many channels: (N,), or (N, C)."""
    if channels == 1:
        return samples if samples.ndim == 1 else samples.mean(1, dtype=np.float64).astype(np.float32)
    there = 1 if samples.ndim == 1 else samples.shape[1]
    if there == channels:
        return samples
    if there not in (1, channels):
        raise ValueError(f"{name} has {there} channels, and {channels} are needed; one is put in each of them")
    return np.broadcast_to(samples.reshape(len(samples), there), (len(samples), channels)).copy()


def _module(name: str) -> Any:
    """A module of the extra `sound`; ImportError in one line if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError("sound needs `pip install soundfile soxr`") from None
