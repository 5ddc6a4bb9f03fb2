"""Blocks in a row. B batch, T time, D width."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer
from anyformer.core.part import Part, built, call, drop
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Norm
from anyformer.parts.attention.scores import StackBias
from anyformer.parts.embeddings import Entry
from anyformer.parts.positions import RelativeBias


class Blocks(Part):
    """Blocks in a row, then a norm: the base of `Stack`, `CausalLM` and `Encoder`.

    Args:
        blocks: one recipe a layer; they may differ.
        norm: after the last block, or None.
        bias: a relative position bias that all blocks share (T5), or None.
        dropout: after the norm.
        entry: a part between the tokens and the first block, e.g. `ConvPositions.of()`, or None.
    """

    def __init__(
        self,
        dim: int,
        blocks: Any,
        norm: Recipe[Norm] | None = None,
        bias: Recipe[RelativeBias] | None = None,
        dropout: float = 0.0,
        entry: Recipe[Entry] | Recipe[Mixer] | None = None,
    ):
        super().__init__()
        self.width = dim
        self.blocks = nn.ModuleList(b.build(dim) for b in blocks)
        self.norm, self.bias, self.dropout = built(norm, dim), built(bias, dim), dropout
        self.entry = built(entry, dim)

    def layers(self) -> Iterable[nn.Module]:
        """The blocks in their order, and those that a skeleton puts between them."""
        return self.blocks

    def run(self, x: Tensor, flow: Flow) -> tuple[Tensor, Flow]:
        """(B, T, D) after all blocks and the norm, and the flow after them."""
        if self.bias is not None:
            flow.put(StackBias(self.bias))
        x = flow.clear(x)
        if self.entry is not None:
            x = flow.clear(self.entry(x, flow))  # positions and norms write at padding, too
        for block in self.layers():
            x, flow = block(x, flow), behind(block, flow)
        return drop(self, call(self.norm, x)), flow


class Stack(Blocks):
    """Blocks in a row as a part of its own: one side of an encoder-decoder.

    Shape: (B, T, D) -> same, with the flow after the last block.
    """

    def forward(self, x: Tensor, flow: Flow) -> tuple[Tensor, Flow]:
        return self.run(x, flow)


def behind(block: nn.Module, flow: Flow) -> Flow:
    """The flow of the sequence that a block returns: its own `behind(flow)` if it changes the length, else `flow`.

    Such a method is pure, and outside the block's forward pass: a recomputed block would see a flow that was
    already shortened in place.
    """
    method = getattr(block, "behind", None)
    if method is None:
        return flow
    if flow.state is not None or flow.documents is not None:
        raise ValueError(
            f"{type(block).__name__} changes the number of positions: it decodes no text step by step and keeps no "
            "packed documents apart; use it in an encoder, one text a row"
        )
    return method(flow)
