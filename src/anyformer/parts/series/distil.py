"""Fewer steps from block to block (Informer). B rows, T steps, D width."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.part import Part
from anyformer.parts.convnet import BatchNorm, Extent
from anyformer.parts.sound.mels import TimeConvolution


class StepNorm(BatchNorm):
    """`BatchNorm` over the steps of all rows, with the number of its batches, which files hold and nothing reads.

    Shape: (B, D, T) -> same.
    """

    num_batches_tracked: Tensor

    def __init__(self, dim: int):
        super().__init__(dim)
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.num_batches_tracked.zero_()

    def forward(self, x: Tensor, extent: Extent | None = None) -> Tensor:
        if self.training:
            self.num_batches_tracked += 1
        return super().forward(x[..., None], extent)[..., 0]


class Distil(Part):
    """Half the steps (Zhou et al., 2020; arXiv:2012.07436): a convolution of 3 in a circle, a norm of the batch, ELU,
    the largest of 3 at every second step. Windows are whole: padding is refused.

    In training the norm takes its statistics of the whole batch, see `BatchNorm`.

    Shape: (B, T, D) -> (B, (T + 1) / 2, D).
    """

    def __init__(self, dim: int):
        super().__init__()
        self.conv = TimeConvolution(dim, dim, 3, padding=1, padding_mode="circular")
        self.norm = StepNorm(dim)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        if flow.keep is not None:
            raise ValueError("Distil reads whole windows, and this input has padding; mark missing values instead")
        y = self.norm(self.conv(x.mT))  # (B, D, T)
        return F.max_pool1d(F.elu(y), 3, 2, 1).mT.contiguous()

    def behind(self, flow: Flow) -> Flow:
        """The flow behind: every second position."""
        return flow.inside(flow.positions[..., ::2], None)
