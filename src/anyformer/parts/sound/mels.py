"""The front-end of log-mel features. B batch, M mels, F frames, T positions of the stream, D width."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.front import FrontEnd, Input, Inputs
from anyformer.core.part import drop


class TimeConvolution(nn.Conv1d):
    """A convolution over time whose first weights are drawn as those of a linear layer."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Mels(FrontEnd):
    """Log-mel features to the stream (Radford et al., 2022, "Robust Speech Recognition via Large-Scale Weak
    Supervision"; arXiv:2212.04356).

    ```
    features (B, M, 2 T) ── conv of 3 ── GELU ── conv of 3, every second frame ── GELU ── + places ──> (B, T, D)
    ```
    The convolutions see one frame on each side, and 0 beyond the ends. Places are sines that files store: a buffer,
    which is never trained. The number of frames is fixed, since silence is a part of the trained window: shorter
    sound is padded with silence by its processor, never here.

    Args:
        mels: M, the features of a frame.
        context: T, the positions; the features have twice as many frames.
        dropout: at the end.

    Shape: (B, M, 2 T) -> (B, T, D), D even.
    """

    main = "input_features"

    def __init__(self, dim: int, mels: int = 80, context: int = 1500, dropout: float = 0.0):
        super().__init__()
        if mels < 1 or context < 1 or dim % 2 or dim < 4:
            raise ValueError(
                f"Mels: mels={mels} and context={context} are at least 1, and the width of the stream, {dim}, is even "
                "and at least 4"
            )
        self.mels, self.context, self.dropout = mels, context, dropout
        self.first = TimeConvolution(mels, dim, 3, padding=1)
        self.second = TimeConvolution(dim, dim, 3, stride=2, padding=1)
        self.places: Tensor
        self.register_buffer("places", torch.empty(context, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.places.copy_(sines(*self.places.shape))

    def inputs(self) -> dict[str, Input]:
        return {"input_features": Input(("mels", "frames"), fixed=("mels", "frames"))}

    def length(self, inputs: Inputs) -> int:
        features = inputs["input_features"]
        if features.ndim != 3 or tuple(features.shape[1:]) != (self.mels, 2 * self.context):
            raise ValueError(
                f"input_features must be (batch, {self.mels}, {2 * self.context}), got {tuple(features.shape)}; the "
                "processor of the model makes them, and pads a shorter sound with silence"
            )
        return self.context

    def example(self, rows: int, size: tuple[int, ...], noise: torch.Generator) -> dict[str, Tensor]:
        return {"input_features": torch.randn(rows, self.mels, 2 * self.context, generator=noise)}

    def sizes(self) -> list[tuple[int, ...]]:
        return [(2 * self.context,)]

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        x = F.gelu(self.first(inputs["input_features"]))  # (B, D, 2 T)
        x = F.gelu(self.second(x)).mT  # (B, T, D)
        return drop(self, x + self.places)


def sines(context: int, dim: int, theta: float = 10000.0) -> Tensor:
    """Whisper's places (T, D): sin(p w_i), then cos(p w_i), with w_i = theta^(-i / (D/2 - 1)).

    The 2017 Transformer has D/2 in place of D/2 - 1.
    """
    with torch.device("cpu"):  # on "meta", arithmetic imports PyTorch's compiler
        steps = torch.arange(dim // 2, dtype=torch.float32)
        angles = torch.arange(context)[:, None] * torch.exp(-math.log(theta) / (dim // 2 - 1) * steps)  # (T, D/2)
        return torch.cat((angles.sin(), angles.cos()), 1)
