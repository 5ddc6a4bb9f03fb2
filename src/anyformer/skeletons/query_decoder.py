"""Decoders of a fixed set of queries. B batch, T cells, N queries, D width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.front import Entrance, FrontEnd
from anyformer.core.part import Part, call
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Head
from anyformer.core.state import Memory
from anyformer.parts.attention.attention import Attention
from anyformer.parts.attention.where import Where
from anyformer.parts.embeddings import Cells
from anyformer.parts.places import Queries
from anyformer.skeletons.base import Output, Skeleton, embed_inputs
from anyformer.skeletons.stack import Stack


class QueryDecoder(Skeleton, Part):
    """An encoder of a picture, and a decoder whose N queries each find one thing in it (DETR).

    ```
    pixel_values (B, C, height, width) -> embed -> encoder -> memory (B, T, D)
                                                                 |  cross
                                    0 (B, N, D), places: queries -> decoder -> hidden (B, N, D) -> heads
    ```
    In training the output's `deep` holds the heads of every earlier block of the decoder, read through its last norm:
    the stream itself stays as it is.

    Args:
        dim: width of both streams.
        embed: front-end that leaves the places of its positions, `Features.of(...)`.
        encoder, decoder: `Stack.of(...)`, their mixers `Attention.of(...)`, which reads the places.
        queries: `Queries.of(count)`, the places of the decoder's stream, whose content begins at 0.
        heads: name to recipe; the first one's output is `logits`.
    """

    lesson = (200, 2e-3)  # queries differ by their places alone, so the weights must part them first
    idle = frozenset({"decoder.blocks.0.mixer.v.weight"})  # what it reads is 0: queries begin without content

    def __init__(
        self,
        dim: int,
        embed: Recipe[FrontEnd],
        encoder: Recipe[Stack],
        decoder: Recipe[Stack],
        queries: Recipe[Queries],
        heads: Mapping[str, Recipe[Head]] | None = None,
    ):
        super().__init__()
        self.embed, self.queries = embed.build(dim), queries.build(dim)
        self.encoder, self.decoder = encoder.build(dim), decoder.build(dim)
        self.heads = nn.ModuleDict({name: head.build(dim) for name, head in (heads or {}).items()})
        for block in (*self.encoder.blocks, *self.decoder.blocks):
            mixer = getattr(block, "mixer", None)
            if mixer is not None and not isinstance(mixer, Attention):
                raise ValueError(
                    f"QueryDecoder: only Attention reads the places of cells and queries; {type(mixer).__name__} would "
                    "not see them"
                )

    def entrances(self) -> tuple[Entrance, ...]:
        return (Entrance(self.embed),)

    def forward(self, **inputs: Tensor | None) -> Output:
        """The front-end's inputs, by name (`model.inputs()`), to an Output."""
        tensors, flow = self.begin(Entrance(self.embed), self.check_inputs(inputs))
        x = embed_inputs(self.embed, tensors, flow)  # (B, T, D)
        cells, grid = flow.get(Where, "QueryDecoder").vectors, flow.find(Cells)
        memory, flow = self.encoder(x, flow)
        places = self.queries()[None]  # (1, N, D)
        inner = flow.inside(torch.arange(places.shape[1], device=x.device), None)
        inner.memory = Memory(memory, flow.keep)
        inner.put(Where(places, cells, grid))
        states: list[Tensor] = []
        y = places.new_zeros(()).expand(x.shape[0], *places.shape[1:]).to(x.dtype)
        for block in self.decoder.blocks:
            y = block(y, inner)
            states.append(y)
        *earlier, y = [call(self.decoder.norm, state) for state in (states if self.training else states[-1:])]
        deep = tuple({name: head(state, inner) for name, head in self.heads.items()} for state in earlier)
        heads: dict[str, Any] = {name: head(y, inner) for name, head in self.heads.items()}
        first = next(iter(heads.values()), None)
        return Output(y, first, heads, memory=memory, aux=inner.aux, figures=inner.figures, deep=deep)
