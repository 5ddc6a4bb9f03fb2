"""Positions of frames by a convolution behind a batch norm. B batch, T frames, D width."""

from __future__ import annotations

from torch import Tensor

from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer
from anyformer.core.part import built, call, drop
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Norm
from anyformer.parts.ffn import activation
from anyformer.parts.norms import TimeBatchNorm
from anyformer.parts.sound.waves import WaveConvolution


class NormedPositions(Mixer):
    """`ConvPositions` with plain weights behind a batch norm: y = norm(x + act(conv(batch norm of x, 0 at padding))).

    Shape: (B, T, D) -> same.
    """

    def __init__(
        self, dim: int, width: int, groups: int, act: str, norm: Recipe[Norm] | None = None, dropout: float = 0.0
    ):
        super().__init__()
        self.batch, self.conv = TimeBatchNorm(dim), WaveConvolution(dim, dim, width, padding=width // 2, groups=groups)
        self.act, self.norm, self.dropout = activation("NormedPositions", act), built(norm, dim), dropout

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        self.needs_both_ways(flow)
        inputs = flow.clear(self.batch(x, flow.keep_now(x.shape[1])))
        places = self.act(self.conv(inputs.mT)[..., : x.shape[1]]).mT  # an even width gives one frame more
        return drop(self, call(self.norm, x + places))
