"""The Perceiver resampler: any number of positions become a few. B rows, S positions, L latents, D width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.part import Part, call
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Norm
from anyformer.core.state import Memory
from anyformer.parts.attention.attention import Attention
from anyformer.parts.block import Block


class ContextAttention(Attention):
    """Attention of latents to a context and to themselves: keys and values come from [norm(context), latents].

    The context is the memory in the flow.

    Args:
        heads, head_dim: as in `Attention`. qk_norm: of each head's q and k, `norm` there.
        norm: of the context; the latents are normed by the block.

    Shape: (B, L, D) -> same.
    """

    packs = False

    def __init__(
        self,
        dim: int,
        norm: Recipe[Norm],
        heads: int = 8,
        head_dim: int | None = None,
        qk_norm: Recipe[Norm] | None = None,
    ):
        super().__init__(dim, heads=heads, head_dim=head_dim, bias=False, norm=qk_norm, cross=True)
        self.context = norm.build(dim)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        if flow.memory is None:
            raise ValueError("ContextAttention reads a context, which Resampler puts in the flow; use it there")
        both = torch.cat((self.context(flow.memory.stream), x), 1)  # (B, S + L, D)
        return super().forward(x, replace(flow, memory=Memory(both), shared={}))


class Resampler(Part):
    """A few vectors for a sequence of any length: learned latents that read it in each block (Alayrac et al., 2022;
    arXiv:2204.14198).

    ```
    latents (L, D) ──┬─ norm ─ attention to [norm(context), latents] ─(+)─┬─ norm ─ MLP ─(+)── … ── norm ── (B, L, D)
                     └───────────────────────────────────────────────────┘ └──────────────┘
    ```

    Args:
        blocks: one recipe a layer, with `ContextAttention` as mixer.
        latents: L.
        norm: after the last block, or None.

    Shape: (B, S, D) -> (B, L, D).
    """

    def __init__(self, dim: int, blocks: Sequence[Recipe[Block]], latents: int = 64, norm: Recipe[Norm] | None = None):
        super().__init__()
        if latents < 1:
            raise ValueError(f"Resampler: latents must be at least 1; got {latents}")
        self.latents = nn.Parameter(torch.empty(latents, dim))
        self.blocks = nn.ModuleList(block.build(dim) for block in blocks)
        self.norm = None if norm is None else norm.build(dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.latents)  # as large as what the first norm makes of them

    def forward(self, context: Tensor, flow: Flow) -> Tensor:
        x = self.latents.expand(context.shape[0], -1, -1)  # (B, L, D)
        inner = Flow(torch.arange(x.shape[1], device=x.device), memory=Memory(context), taps=flow.taps)
        for block in self.blocks:
            x = block(x, inner)
        return call(self.norm, x)
