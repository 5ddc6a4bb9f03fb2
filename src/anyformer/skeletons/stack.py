"""Blocks in a row. B batch, T time, D width."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.part import Part, built, call, drop
from anyformer.core.recipe import Recipe


class Blocks(Part):
    """Blocks in a row, then a norm: what `Stack`, `CausalLM` and `Encoder` share.

    Args:
        blocks: one recipe a layer; they may differ.
        norm: after the last block, or None.
        bias: a relative position bias that all blocks share (T5), or None.
        dropout: after the norm.
        entry: what happens to the vectors of the tokens before the first block, e.g. `ConvPositions.of()`, or None.
    """

    def __init__(
        self,
        dim: int,
        blocks: Any,
        norm: Recipe | None = None,
        bias: Recipe | None = None,
        dropout: float = 0.0,
        entry: Recipe | None = None,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(b.build(dim) for b in blocks)
        self.norm, self.bias, self.dropout = built(norm, dim), built(bias, dim), dropout
        self.entry = built(entry, dim)

    def run(self, x: Tensor, flow: Flow) -> Tensor:
        """(B, T, D) through all blocks and the norm."""
        flow.bias = self.bias
        x = flow.clear(x)
        if self.entry is not None:
            x = flow.clear(self.entry(x, flow))  # positions and norms write at padding, too
        for block in self.blocks:
            x = block(x, flow)
        return drop(self, call(self.norm, x))


class Stack(Blocks):
    """Blocks in a row as a part of its own: one side of an encoder-decoder. Shape: (B, T, D) -> same."""

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        return self.run(x, flow)
