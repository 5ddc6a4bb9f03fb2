"""One stage of a cascade of decoders."""

from __future__ import annotations

from typing import Any

from anyformer.core.front import FrontEnd
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Head, Norm
from anyformer.media.stages import Layout
from anyformer.parts.positions import RelativeBias
from anyformer.skeletons.decoder import CausalLM


class StagedLM(CausalLM):
    """A decoder of one stage: `CausalLM` over ids of several segments, which `layout` lays out.

    Args:
        layout: the segments and their ids. embed, blocks, norm, head, bias, context: of `CausalLM`.
    """

    def __init__(
        self,
        dim: int,
        embed: Recipe[FrontEnd],
        blocks: Any,
        norm: Recipe[Norm] | None,
        head: Recipe[Head] | None,
        layout: Layout,
        bias: Recipe[RelativeBias] | None = None,
        context: int | None = None,
    ):
        super().__init__(dim, embed, blocks, norm, head, bias, context)
        if self.embed.vocab != layout.vocab:
            raise ValueError(f"StagedLM: embed has {self.embed.vocab} ids, and the layout {layout.vocab}")
        self.layout = layout

    @property
    def spelled(self) -> int:
        return self.layout.text
