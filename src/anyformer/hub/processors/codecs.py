"""Sounds to the samples of a codec."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from anyformer.hub.processors.base import Origin, Processor, listed
from anyformer.hub.processors.keys import CLASS
from anyformer.hub.processors.waves import padded
from anyformer.hub.tables.config import Lens, key, must, quiet
from anyformer.media.sound import sound

KIND = "EncodecFeatureExtractor"


@dataclass(frozen=True)
class CodecProcessor(Processor):
    """Sounds to `input_values` (B, N, C) and `attention_mask` (B, N): channels, resample, pad on the right.

    Args:
        rate: in Hz, of the sound that the codec reads; others are resampled.
        channels: C. Of several channels, 1 is the mean; one channel is put in each of C.
        origin: the file that it was read from.

    Raises:
        ValueError: naming the argument at fault.
    """

    takes = ("input_values", "attention_mask")
    slot = "feature_extractor"

    rate: int = 24000
    channels: int = 1
    origin: Origin = field(default=Origin(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.rate < 1 or self.channels < 1:
            raise ValueError(f"rate and channels are at least 1; got {self.rate} and {self.channels}")

    def __call__(self, media: Any) -> dict[str, Tensor]:
        """Sounds to {"input_values": (B, N, C) float32}, and where they differ in length "attention_mask" (B, N).

        Args:
            media: a sound or a list of them, each of a kind that `media.sound` reads.

        Raises:
            ValueError: for anything but sounds.
        """
        return padded([self.samples(one) for one in listed(media)])

    def samples(self, medium: Any) -> np.ndarray:
        """The samples of one sound, (N, C) float32."""
        samples = sound(medium, self.channels).at(self.rate).samples
        return samples.reshape(len(samples), self.channels)

    @classmethod
    def entries(cls, kind: str | None) -> tuple[Lens, ...]:
        return (
            must("feature_extractor_type", KIND, absent=kind == KIND),
            key("feature_size", "channels", default=1),
            key("sampling_rate", "rate", default=24000),
            must("padding_value", 0.0),
            must("padding_side", "right"),
            quiet("chunk_length_s", "overlap", why="the model cuts the sound into its pieces, as its own config says"),
            quiet("return_attention_mask", why="padding is always marked, and a row is then as it is alone"),
            quiet("processor_class", why=CLASS),
        )

    def __str__(self) -> str:
        return f"{self.channels} channel{'s' * (self.channels > 1)} of {self.rate} Hz"
