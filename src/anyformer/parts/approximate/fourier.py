"""Mixing by a Fourier transform. B batch, T time, D width."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer


class Fourier(Mixer):
    """y = Re(F_time F_width x), a Fourier transform along both axes without parameters (FNet: Lee-Thorp et al.,
    2021; arXiv:2105.03824).

    Without padding by FFT, in T log T; for half of the widths, since those of a real input mirror each other:
    F[t, d] = conj F[-t, -d]. A padded row is transformed at its own length, so padding does not change its result;
    that takes a matrix of T x T for each row. (Others transform the padding too.) In half precision it computes in
    float32.

    Shape: (B, T, D) -> same. It mixes the future in: no use in a decoder, and no state.
    """

    def __init__(self, dim: int):
        super().__init__()

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        self.needs_both_ways(flow)
        wide, keep = x.to(torch.promote_types(x.dtype, torch.float32)), flow.keep_now(x.shape[1])
        if keep is None and isinstance(x.shape[1], torch.SymInt):  # torch.export: the mirrored part can be empty
            return torch.fft.fft2(wide, dim=(1, 2)).real.to(x.dtype)
        if keep is None:
            return _Transform.apply(wide).to(x.dtype)
        z = torch.fft.fft(wide, dim=2)  # (B, T, D) complex
        length = keep.sum(1)[:, None, None].clamp(min=1)  # (B, 1, 1)
        positions = flow.positions.expand(x.shape[:2])  # (B, T)
        turn = (
            positions[:, :, None] * positions[:, None] % length * (2 * math.pi / length.to(wide.dtype))
        )  # (B, T, T), exact below 2 pi
        real = keep[:, :, None] & keep[:, None]
        cos, sin = (t.to(wide.dtype) * real for t in (turn.cos(), turn.sin()))
        return (cos @ z.real + sin @ z.imag).to(x.dtype)


class _Transform(torch.autograd.Function):
    """Re(F_time F_width x). Its matrix is symmetric: it is its own backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        half = torch.fft.rfft2(x, dim=(1, 2)).real.contiguous()  # (B, T, D / 2 + 1)
        y, count, rest = torch.empty_like(x), half.shape[2], half[..., 1 : (x.shape[2] + 1) // 2]
        y[..., :count] = half
        y[:, :1, count:] = rest[:, :1].flip(2)  # time 0 mirrors itself
        y[:, 1:, count:] = rest[:, 1:].flip(1, 2)
        return y

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return _Transform.apply(slope)
