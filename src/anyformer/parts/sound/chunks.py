"""The front-end of log-mel features in chunks. N sounds, M mels, F frames, K chunks of a sound, T positions of a chunk,
D width."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer.core.checks import readable
from anyformer.core.flow import Flow
from anyformer.core.front import FrontEnd, Input, Inputs
from anyformer.parts.sound.mels import TimeConvolution, sines

MASK = "feature_attention_mask"


class Chunks(FrontEnd):
    """Log-mel features of sounds of any length, each chunk on its own (Xu et al., 2025, "Qwen2.5-Omni";
    arXiv:2503.20215).

    ```
    features (N, M, F) ── chunks of `window` frames (N K, M, window) ── conv of 3 ── GELU ── conv of 3, every second
                          frame ── GELU ── + places, from 0 in each chunk ──> (N K, T, D)
    ```
    Differs from `Mels` by: a sound is as long as it is, not 30 seconds with silence; the convolutions and what follows
    see 0 beyond the ends of a chunk; places are computed, not stored.

    Args:
        mels: M, the features of a frame.
        window: frames of a chunk, an even number; the last chunk of a sound is shorter.

    Shape: (N, M, F), with the mask `feature_attention_mask` (N, F), 1 = a frame -> (N K, T, D), T = window / 2.
    """

    main, mask = "input_features", MASK

    def __init__(self, dim: int, mels: int = 128, window: int = 200):
        super().__init__()
        if mels < 1 or window < 2 or window % 2 or dim % 2 or dim < 4:
            raise ValueError(
                f"Chunks: mels={mels} is at least 1, window={window} an even number from 2 on, and the width of the "
                f"stream, {dim}, even and at least 4"
            )
        self.mels, self.window = mels, window
        self.first = TimeConvolution(mels, dim, 3, padding=1)
        self.second = TimeConvolution(dim, dim, 3, stride=2, padding=1)

    def inputs(self) -> dict[str, Input]:
        return {"input_features": Input(("mels", "frames"), fixed=("mels",))}

    def units(self, inputs: Inputs) -> int:
        return inputs["input_features"].shape[2]

    def length(self, inputs: Inputs) -> int:
        features = inputs["input_features"]
        if features.ndim != 3 or features.shape[1] != self.mels:
            raise ValueError(f"input_features must be (sounds, {self.mels}, frames), got {tuple(features.shape)}")
        frames = features.shape[2]
        if self.mask not in inputs and frames > self.window and frames % self.window:
            raise ValueError(
                f"{MASK} is missing: sounds of {frames} frames are no whole number of chunks of {self.window}; pass 1 "
                "for each frame, 0 for padding behind a shorter sound"
            )
        return -(-min(frames, self.window) // 2)

    def keep(self, mask: Tensor, inputs: Inputs) -> Tensor:
        gaps = mask[:, 1:] & ~mask[:, :-1]
        if readable(mask) and bool(gaps.any()):
            raise ValueError(
                f"{MASK}: sound {int(gaps.any(1).nonzero()[0])} has frames behind padding; a sound begins at frame 0, "
                "and padding stands behind it"
            )
        return self._cut(mask[:, None])[:, 0, ::2]  # (N K, T)

    def _cut(self, x: Tensor) -> Tensor:
        """(N, C, F) -> (N K, C, window), the last chunk filled up with 0."""
        if x.shape[2] > self.window:
            x = F.pad(x, (0, -x.shape[2] % self.window))
            return x.unflatten(2, (-1, self.window)).transpose(1, 2).flatten(0, 1)
        return x

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        x, mask = self._cut(inputs["input_features"]), inputs.get(MASK)
        real = None if mask is None else self._cut(mask[:, None].to(x.dtype))  # (N K, 1, window)
        x = F.gelu(self.first(x if real is None else x.masked_fill(real == 0, 0.0)))
        x = F.gelu(self.second(x if real is None else x * real)).mT  # (N K, T, D)
        return x + sines(x.shape[1], x.shape[2]).to(x)

    def example(self, rows: int, size: tuple[int, ...], noise: torch.Generator) -> dict[str, Tensor]:
        """Sounds of `size` frames; every second one is two frames shorter."""
        frames = max(6, size[0])
        lengths = torch.tensor([frames - 2 * (i % 2) for i in range(rows)])
        mask = (torch.arange(frames) < lengths[:, None]).long()
        return {"input_features": torch.randn(rows, self.mels, frames, generator=noise), MASK: mask}

    def sizes(self) -> list[tuple[int, ...]]:
        return [(self.window + 2,), (6,), (2 * self.window + 3,)]
