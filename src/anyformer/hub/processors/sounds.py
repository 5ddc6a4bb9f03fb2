"""Sounds to log-mel features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.hub.formats.guard import short
from anyformer.hub.processors.base import Origin, Processor, listed
from anyformer.hub.processors.keys import CLASS
from anyformer.hub.tables.config import Lens, key, must, quiet, read
from anyformer.media.mels import filters, log_mels
from anyformer.media.sound import sound

KIND = "WhisperFeatureExtractor"
CLOSE = 1e-6  # a filter matrix in a file and ours


@dataclass(frozen=True)
class SoundProcessor(Processor):
    """Sounds to `input_features`: one channel, resample, pad with silence to the window, log-mel features.

    Args:
        mels: features of a frame.
        rate: in Hz, of the sound that the model reads; others are resampled.
        hop, size: samples between two frames, and of a frame.
        window: seconds that the model reads at once.
        origin: the file that it was read from.

    Raises:
        ValueError: naming the argument at fault.
    """

    takes = ("input_features",)
    slot = "feature_extractor"

    mels: int = 80
    rate: int = 16000
    hop: int = 160
    size: int = 400
    window: int = 30
    origin: Origin = field(default=Origin(), compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("mels", "rate", "hop", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.size < 2 or self.size // 2 >= self.samples or self.hop > self.samples or self.mels > self.size:
            raise ValueError(
                f"mels={self.mels}, size={self.size}, hop={self.hop}: there are at most as many mels as samples in a "
                f"frame, and a frame and a hop fit the window of {self.samples} samples"
            )

    @property
    def samples(self) -> int:
        """Samples of a window."""
        return self.window * self.rate

    @property
    def frames(self) -> int:
        """Frames of a window."""
        return self.samples // self.hop

    def __call__(self, media: Any) -> dict[str, Tensor]:
        """Sounds to {"input_features": (B, M, frames)}, float32.

        Args:
            media: a sound or a list of them, each of a kind that `media.sound` reads.

        Raises:
            ValueError: for anything but sounds, and for a sound longer than the window, which would be cut.
        """
        made = []
        for one in (sound(item) for item in listed(media)):
            samples = one.at(self.rate).samples
            if len(samples) > self.samples:
                raise ValueError(
                    f"{one.name} has {one.seconds:.1f} seconds, and the model reads {self.window} at once: "
                    "anyformer.generate.transcribe reads any length; or cut the sound"
                )
            made.append(self.features(np.pad(samples, (0, self.samples - len(samples)))))
        return {"input_features": torch.stack(made)}

    def features(self, samples: np.ndarray) -> Tensor:
        """The log-mel features of samples at the model's rate, of any length: (M, N // hop)."""
        return log_mels(samples, self.mels, self.rate, self.size, self.hop)

    @classmethod
    def entries(cls, kind: str | None) -> tuple[Lens, ...]:
        return (
            must("feature_extractor_type", KIND, absent=kind == KIND),
            key("feature_size", "mels", default=80),
            key("sampling_rate", "rate", default=16000),
            key("hop_length", "hop", default=160),
            key("n_fft", "size", default=400),
            key("chunk_length", "window", default=30),
            _derived("n_samples", lambda p: p.samples),
            _derived("nb_max_frames", lambda p: p.frames),
            must("padding_value", 0.0),
            must("padding_side", "right"),
            must("dither", 0.0),
            Lens(("mel_filters",), (), _filters, lambda p: {}, "equal to the filters of these numbers"),
            quiet("return_attention_mask", why="no mask: silence is a part of the window"),
            quiet("processor_class", why=CLASS),
        )

    def __str__(self) -> str:
        return (
            f"one channel of {self.rate} Hz; windows of {self.window} s; {self.mels} mels of {self.size} samples, "
            f"every {self.hop}"
        )


def _plain(content: Mapping[str, Any]) -> SoundProcessor:
    """The processor of the numbers from which the other keys follow."""
    numbers = {name: value for name, value in content.items() if name in _NUMBERS}
    made: SoundProcessor = read(SoundProcessor.entries(KIND)[1:6], numbers, SoundProcessor, {})[0]
    return made


def _derived(name: str, value: Any) -> Lens:
    """A key that follows from others, and must agree with them."""

    def get(content: Mapping[str, Any]) -> dict[str, Any]:
        if name in content:
            made = _plain(content)
            if content[name] != value(made):
                raise ValueError(f"{name!r} is {short(content[name])}, and the other keys make it {value(made)}")
        return {}

    return Lens((name,), (), get, lambda p: {name: value(p)}, "follows from other keys, and agrees")


_NUMBERS = ("feature_size", "sampling_rate", "hop_length", "n_fft", "chunk_length")


def _filters(content: Mapping[str, Any]) -> dict[str, Any]:
    """Compares a stored filter matrix, (M, K), with ours: old files hold it."""
    if "mel_filters" in content:
        made = _plain(content)
        ours = filters(made.mels, made.size // 2 + 1, made.rate).numpy()
        try:
            stored = np.array(content["mel_filters"], np.float64)
        except (TypeError, ValueError):
            stored = np.empty(0)
        if stored.shape != ours.shape or not np.allclose(stored, ours, rtol=0, atol=CLOSE):
            raise ValueError(
                f"'mel_filters' of shape {stored.shape} is another matrix than the {ours.shape} filters of its mels, "
                "n_fft and rate; a model with other filters cannot be read"
            )
    return {}
