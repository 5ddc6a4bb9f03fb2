"""The front-end of waveforms. B batch, N samples, C channels, T frames (positions of the stream), D width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core import checks
from anyformer.core.flow import Companion, Flow
from anyformer.core.front import FrontEnd, Input, Inputs
from anyformer.core.part import Part, call, check_option, drop
from anyformer.parts.ffn import activation
from anyformer.parts.norms import LayerNorm


@dataclass(frozen=True)
class Frames(Companion):
    """The frames of a waveform before they enter the stream, (B, T, C), and the hidden ones, (B, T) or None."""

    left_by: ClassVar[str] = "Waves"
    per_position: ClassVar[bool] = True
    values: Tensor
    hidden: Tensor | None


class RowNorm(Part):
    """y = (x - mean) / sqrt(var + eps) * weight + bias for each channel of each row, over the row's own frames: a group
    norm with one channel a group (Wu and He, 2018; arXiv:1803.08494) that padding does not enter.

    Shape: x (B, C, T), counts (B,) of real frames, which come first, or None -> (B, C, T).
    """

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim)), eps

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, counts: Tensor | None) -> Tensor:
        if counts is None:
            return F.group_norm(x, x.shape[1], self.weight, self.bias, self.eps)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        real = (torch.arange(x.shape[2], device=x.device) < counts[:, None])[:, None]  # (B, 1, T)
        share = (real / counts.clamp(min=1)[:, None, None]).to(wide)  # each real frame's, in a mean
        mean = (wide * share).sum(2, keepdim=True)  # (B, C, 1)
        centred = wide - mean
        scale = ((centred.square() * share).sum(2, keepdim=True) + self.eps).rsqrt()
        return (centred * scale).to(x.dtype) * self.weight[:, None] + self.bias[:, None]


class WaveConvolution(nn.Conv1d):
    """A convolution over time whose first weights keep the size of what goes through (He et al., 2015;
    arXiv:1502.01852)."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.kaiming_normal_(self.weight)


class WaveLayer(Part):
    """One convolution over time, without padding, then its norm and activation.

    Args:
        width: of the output. kernel, stride: in frames of the input.
        norm: group (`RowNorm`), layer (each frame alone), or None. bias: of the convolution.

    Shape: (B, C, T) -> (B, width, (T - kernel) // stride + 1).
    """

    def __init__(
        self, dim: int, width: int, kernel: int, stride: int, norm: str | None = None, bias: bool = False,
        act: str = "gelu",
    ):  # fmt: skip
        super().__init__()
        check_option("WaveLayer", "norm", norm, ("group", "layer", None))
        self.kernel, self.stride = kernel, stride
        self.conv = WaveConvolution(dim, width, kernel, stride, bias=bias)
        self.norm = None if norm is None else (RowNorm if norm == "group" else LayerNorm)(width)
        self.act = activation("WaveLayer", act)

    def left(self, count: Tensor | int) -> Tensor | int:
        """The frames that so many frames of the input make, from -infinity: 0 or less is none."""
        return (count - self.kernel) // self.stride + 1

    def forward(self, x: Tensor, counts: Tensor | None) -> Tensor:
        x = self.conv(x)
        if isinstance(self.norm, RowNorm):
            x = self.norm(x, counts)
        elif self.norm is not None:
            x = self.norm(x.mT).mT.contiguous()  # strides other than those of its gradient make the activation's slow
        return self.act(x)


class Waves(FrontEnd):
    """Samples of sound to the stream (Baevski et al., 2020, "wav2vec 2.0"; arXiv:2006.11477).

    ```
    samples (B, N) ── conv, norm, act ── conv, act ── … ── (B, T, C) ── LayerNorm ──┬── linear ── (B, T, D)
                                                                                    └── frames, for a quantiser
    ```
    No convolution has padding: a frame is real if it sees real samples only, and the norm over time takes each row's
    own frames. A row of a padded batch is therefore the row alone. Padding is on the right: a gap would share a frame
    with the sound beside it.

    Args:
        widths, kernels, strides: of each convolution.
        norm: group: over time, after the first convolution; layer: over channels, after each.
        bias, act: of the convolutions.
        eps: of the norm before the projection; the others have 1e-5. project_norm: with that norm.
        hides: frames can be hidden, by `hidden_frames`: a learned vector takes their place.
        dropout: after the projection.

    Shape: (B, N) -> (B, T, D); `hidden_frames` (B, T).
    """

    main, mask, right = "input_values", "attention_mask", True

    def __init__(
        self,
        dim: int,
        widths: tuple[int, ...] = (512,) * 7,
        kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2),
        strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2),
        norm: str = "group",
        bias: bool = False,
        act: str = "gelu",
        eps: float = 1e-5,
        project_norm: bool = True,
        hides: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        check_option("Waves", "norm", norm, ("group", "layer"))
        if not widths or not len(widths) == len(kernels) == len(strides) or min(*widths, *kernels, *strides) < 1:
            raise ValueError(
                f"Waves: widths, kernels and strides have a number, at least 1, for each convolution; got {widths}, "
                f"{kernels}, {strides}"
            )
        norms = [norm if norm == "layer" or i == 0 else None for i in range(len(widths))]
        sizes = zip((1, *widths), widths, kernels, strides, norms, strict=False)
        self.layers: Any = nn.ModuleList(WaveLayer(c, w, k, s, n, bias, act) for c, w, k, s, n in sizes)
        self.norm = LayerNorm(widths[-1], eps) if project_norm else None
        self.project, self.dropout = nn.Linear(widths[-1], dim), dropout
        self.hidden = nn.Parameter(torch.empty(dim)) if hides else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = self.project.in_features**-0.5
        nn.init.uniform_(self.project.weight, -bound, bound)
        nn.init.uniform_(self.project.bias, -bound, bound)
        if self.hidden is not None:
            nn.init.uniform_(self.hidden)

    def frames(self, samples: Tensor | int) -> Tensor | int:
        """The frames that so many samples make; 0 or less is none."""
        for layer in self.layers:
            samples = layer.left(samples)
        return samples

    def least(self, count: int) -> int:
        for layer in reversed(self.layers):
            count = (count - 1) * layer.stride + layer.kernel
        return count

    def inputs(self) -> dict[str, Input]:
        read = {"input_values": Input(("time",), ("time",))}
        if self.hidden is not None:
            read["hidden_frames"] = Input(("frames",), ("frames",), required=False, ids=True, positions=True)
        return read

    def units(self, inputs: Inputs) -> int:
        return inputs["input_values"].shape[1]

    def length(self, inputs: Inputs) -> int:
        samples = inputs["input_values"]
        if samples.ndim != 2 or not samples.is_floating_point():
            raise ValueError(
                f"input_values must be floats of the shape (batch, samples), got {samples.dtype} of "
                f"{tuple(samples.shape)}"
            )
        count = self.frames(samples.shape[1])
        if isinstance(count, int) and count < 1:
            raise ValueError(
                f"input_values have {samples.shape[1]} samples, and one frame needs {self.least(1)}; pad the sound "
                "with silence, or leave it out"
            )
        hidden = inputs.get("hidden_frames")
        if hidden is not None and hidden.shape != (samples.shape[0], count):
            raise ValueError(f"hidden_frames must be {(samples.shape[0], count)}, got {tuple(hidden.shape)}")
        return count  # type: ignore[return-value]

    def keep(self, mask: Tensor, inputs: Inputs) -> Tensor:
        right_only(mask)
        return self._real(mask.sum(1), self.length(inputs))

    def _real(self, counts: Tensor, frames: int) -> Tensor:
        """(B, T), True = a frame of real samples only, from the number of samples of each row, (B,)."""
        return torch.arange(frames, device=counts.device) < self.frames(counts)[:, None]  # type: ignore[index]

    def example(self, rows: int, size: tuple[int, ...], noise: torch.Generator) -> dict[str, Tensor]:
        made = {"input_values": torch.randn(rows, size[0], generator=noise)}
        if self.hidden is not None:
            made["hidden_frames"] = torch.rand(rows, self.length(made), generator=noise) < 0.3
        return made

    def sizes(self) -> list[tuple[int, ...]]:
        return [(self.least(16),), (self.least(1),), (self.least(2) - 1,), (self.least(3) + 1,)]

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        x, mask = inputs["input_values"].to(self.layers[0].conv.weight.dtype), inputs.get("attention_mask")
        counts: Tensor | None = None
        if mask is not None:  # no value at padding passes: NaN times a gradient of 0 would be NaN
            x, counts = x.masked_fill(~mask.bool(), 0), mask.bool().sum(1)
        x = x[:, None]  # (B, 1, N)
        for layer in self.layers:
            counts = None if counts is None else layer.left(counts)
            x = layer(x, counts)
        x = call(self.norm, x.mT)  # (B, T, C)
        hidden = inputs.get("hidden_frames")
        flow.put(Frames(x, None if hidden is None else hidden.bool()))
        x = drop(self, self.project(x))
        if hidden is None or self.hidden is None:
            return x
        return torch.where(hidden.bool()[..., None], self.hidden, x)


def right_only(mask: Tensor) -> None:
    """Raises ValueError for a mask (B, N) of samples with padding elsewhere than at the end of a sound."""
    if checks.readable(mask) and bool((~mask.bool()[:, :-1] & mask.bool()[:, 1:]).any()):
        raise ValueError(
            "attention_mask has padding on the left or inside a sound, and frames would mix it with samples; put all "
            "padding on the right"
        )
