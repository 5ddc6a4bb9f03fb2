"""Pyramids: encoders of pictures in stages. B batch, T cells of a grid, D width, C channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from anyformer.core.front import Entrance, FrontEnd
from anyformer.core.part import Part, built, call
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Head, Norm, Pool
from anyformer.parts.heads import Pooled
from anyformer.parts.pyramid import Narrowing, grid_of
from anyformer.skeletons.base import Output, Skeleton, embed_inputs
from anyformer.skeletons.stack import Stack


class Pyramid(Skeleton, Part):
    """An encoder of pictures in stages, each with fewer and wider cells than the one before (Swin).

    ```
    pixel_values (B, C, height, width) -> embed -> stage ─┬─> merge -> stage ─┬─> merge -> stage ─┬─> norm -> hidden
                                                          └─ maps[0]          └─ maps[1]          └─ maps[2]
                                                        hidden -> pool -> pooled (B, D);  heads read either
    ```
    The output's `maps` are the grids at the end of each stage, (B, D, rows, columns), fine to coarse: features for
    detection and segmentation.

    Args:
        dim: width of the first stage; each other stage is as wide as the merge in front of it makes it.
        embed: front-end that leaves a grid, `PatchGrid.of(...)`.
        stages: one recipe a stage, `Stack.of(blocks)`.
        merge: between two stages, e.g. `Merge.of(norm)`.
        norm: after the last stage, or None.
        pool: reduces the last grid to one vector, or None.
        heads: name to recipe; the first one's output is `logits`.
    """

    static = frozenset({"height", "width"})  # each stage rounds the size, which torch.export cannot follow

    def __init__(
        self,
        dim: int,
        embed: Recipe[FrontEnd],
        stages: Sequence[Recipe[Stack]],
        merge: Recipe[Narrowing],
        norm: Recipe[Norm] | None = None,
        pool: Recipe[Pool] | None = None,
        heads: Mapping[str, Recipe[Head]] | None = None,
    ):
        super().__init__()
        if not stages:
            raise ValueError("Pyramid: stages is empty; it has at least one")
        self.embed = embed.build(dim)
        built_stages, merges = list[Stack](), list[Narrowing]()
        for stage in stages:
            if built_stages:
                merges.append(merge.build(dim))
                dim = merges[-1].width
            built_stages.append(stage.build(dim))
        self.stages, self.merges = nn.ModuleList(built_stages), nn.ModuleList(merges)
        self.width = dim
        self.norm, self.pool = built(norm, dim), built(pool, dim)
        self.heads = nn.ModuleDict({name: head.build(dim) for name, head in (heads or {}).items()})

    def entrances(self) -> tuple[Entrance, ...]:
        return (Entrance(self.embed),)

    def forward(self, **inputs: Tensor | None) -> Output:
        """The front-end's inputs, by name (`model.inputs()`), to an Output."""
        tensors, flow = self.begin(Entrance(self.embed), self.check_inputs(inputs))
        x, maps = embed_inputs(self.embed, tensors, flow), list[Tensor]()  # (B, T, D)
        for i, stage in enumerate(self.stages):
            if i:
                merge: Any = self.merges[i - 1]
                x, flow = merge(x, flow), merge.behind(flow)
            x, flow = stage(x, flow)
            maps.append(x.mT.unflatten(2, grid_of(flow, "Pyramid")))  # (B, D, rows, columns)
        x = call(self.norm, x)
        pooled = None if self.pool is None else self.pool(x, flow)  # (B, D)
        if pooled is not None:
            flow.put(Pooled(pooled))
        heads = {name: head(x, flow) for name, head in self.heads.items()}
        first = next(iter(heads.values()), None)
        return Output(x, first, heads, pooled, aux=flow.aux, figures=flow.figures, maps=tuple(maps))
