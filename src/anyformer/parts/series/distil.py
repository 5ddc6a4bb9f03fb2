"""Fewer steps from block to block (Informer). B rows, T steps, D width."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.part import Part
from anyformer.parts.norms import TimeBatchNorm
from anyformer.parts.sound.mels import TimeConvolution


class Distil(Part):
    """Half the steps (Zhou et al., 2020; arXiv:2012.07436): a convolution of 3 in a circle, a norm of the batch, ELU,
    the largest of 3 at every second step. Windows are whole: padding is refused.

    In training the norm takes its statistics of the whole batch, see `RunningNorm`.

    Shape: (B, T, D) -> (B, (T + 1) / 2, D).
    """

    def __init__(self, dim: int):
        super().__init__()
        self.conv = TimeConvolution(dim, dim, 3, padding=1, padding_mode="circular")
        self.norm = TimeBatchNorm(dim)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        if flow.keep is not None:
            raise ValueError("Distil reads whole windows, and this input has padding; mark missing values instead")
        y = self.norm(self.conv(x.mT).mT, None)  # (B, T, D)
        return F.max_pool1d(F.elu(y).mT, 3, 2, 1).mT.contiguous()

    def behind(self, flow: Flow) -> Flow:
        """The flow behind: every second position."""
        return flow.inside(flow.positions[..., ::2], None)
