"""Sounds to samples at one rate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.hub.processors.base import Origin, Processor, listed
from anyformer.hub.processors.keys import CLASS
from anyformer.hub.tables.config import Lens, key, must, quiet
from anyformer.media.sound import sound

KIND = "Wav2Vec2FeatureExtractor"
EPS = 1e-7  # added to the variance of a sound, as published


@dataclass(frozen=True)
class WaveProcessor(Processor):
    """Sounds to `input_values` and `attention_mask`: one channel, resample, normalise each sound, pad on the right.

    Args:
        rate: in Hz, of the sound that the model reads; others are resampled.
        normalise: (x - mean) / sqrt(variance + 1e-7) over a sound's own samples.
        origin: the file that it was read from.

    Raises:
        ValueError: naming the argument at fault.
    """

    takes = ("input_values", "attention_mask")
    slot = "feature_extractor"

    rate: int = 16000
    normalise: bool = True
    origin: Origin = field(default=Origin(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.rate < 1:
            raise ValueError(f"rate is {self.rate}; expected at least 1")

    def __call__(self, media: Any) -> dict[str, Tensor]:
        """Sounds to {"input_values": (B, N) float32}, and where they differ in length "attention_mask" (B, N).

        Args:
            media: a sound or a list of them, each of a kind that `media.sound` reads.

        Raises:
            ValueError: for anything but sounds.
        """
        return padded([self.samples(one) for one in listed(media)])

    def samples(self, medium: Any) -> np.ndarray:
        """The samples of one sound, (N,) float32."""
        samples = sound(medium).at(self.rate).samples
        if not self.normalise:
            return samples
        return ((samples - samples.mean()) / np.sqrt(samples.var() + EPS)).astype(np.float32)

    @classmethod
    def entries(cls, kind: str | None) -> tuple[Lens, ...]:
        return (
            must("feature_extractor_type", KIND, absent=kind == KIND),
            must("feature_size", 1),
            key("sampling_rate", "rate", default=16000),
            key("do_normalize", "normalise", default=True),
            must("padding_value", 0.0),
            must("padding_side", "right"),
            quiet("return_attention_mask", why="padding is always marked, and a row is then as it is alone"),
            quiet("do_feature_extract", "feature_extractor_class", why="for other programs"),
            quiet("processor_class", why=CLASS),
        )

    def __str__(self) -> str:
        return f"one channel of {self.rate} Hz; {'each sound normalised' if self.normalise else 'as loud as it is'}"


def padded(rows: list[np.ndarray]) -> dict[str, Tensor]:
    """Rows of samples, (N,) or (N, C), as a batch: 0 on the right, and a mask where the lengths differ."""
    lengths = torch.tensor([len(row) for row in rows])
    values = torch.zeros(len(rows), int(lengths.max()), *rows[0].shape[1:])
    for place, row in zip(values, rows, strict=True):
        place[: len(row)] = torch.from_numpy(row)
    made = {"input_values": values}
    if int(lengths.min()) < values.shape[1]:
        made["attention_mask"] = (torch.arange(values.shape[1]) < lengths[:, None]).long()
    return made
