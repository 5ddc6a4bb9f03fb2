"""Models that take noise out of pictures. B batch, T cells of a grid, S positions of a text, D width, C channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.front import Entrance, Inputs
from anyformer.core.recipe import Recipe
from anyformer.parts.adaptive import Told
from anyformer.parts.conditions import Condition
from anyformer.parts.embeddings import Pictures
from anyformer.parts.heads import Unpatch
from anyformer.skeletons.base import Output, Skeleton, embed_inputs
from anyformer.skeletons.stack import Blocks


class Denoiser(Skeleton, Blocks):
    """A model that says which noise is in a picture, or how the picture moves on its way to noise (DiT).

    ```
    timestep (B,), class_labels (B,) … ─ conditions, summed ──────────┐ told (B, D)
    pixel_values (B, C, height, width) ── embed ── block x N ── norm ── head ── noise (B, C', height, width)
    ```
    Args:
        dim: width of the stream.
        embed: front-end of whole patches, `PatchGrid.of(...)`.
        conditions: name to recipe: `Time.of()`, `Label.of(classes=10)`.
        blocks: one recipe a layer, which read what they are told.
        head: from patches to pixels, `Unpatch.of(...)`, with the last norm.
    """

    def __init__(
        self,
        dim: int,
        embed: Recipe[Pictures],
        conditions: Mapping[str, Recipe[Condition]],
        blocks: Any,
        head: Recipe[Unpatch],
    ):
        super().__init__(dim, blocks)
        self.embed = embed.build(dim)
        self.conditions: Any = nn.ModuleDict({name: condition.build(dim) for name, condition in conditions.items()})
        self.heads = nn.ModuleDict({"noise": head.build(dim)})

    def entrances(self) -> tuple[Entrance, ...]:
        return (Entrance(self.embed), *map(Entrance, self.conditions.values()))

    def forward(self, **inputs: Tensor | None) -> Output:
        """The inputs by name (`model.inputs()`) to an Output, whose `logits` are the noise, as large as the picture.

        Raises:
            ValueError: for an input that no part reads, a missing one, rows that differ in number, or a picture that is
                no whole number of patches.
        """
        present = self.check_inputs(inputs)
        tensors, flow = self.begin(Entrance(self.embed), present)
        height, width = tensors["pixel_values"].shape[2:]
        if height % self.embed.patch or width % self.embed.patch:
            raise ValueError(
                f"pixel_values of {height} x {width} pixels are no whole number of patches of {self.embed.patch}"
            )
        flow.put(Told(self._told(present, flow, tensors["pixel_values"].shape[0])))
        x, flow = self.run(embed_inputs(self.embed, tensors, flow), flow)  # (B, T, D)
        noise = self.heads["noise"](x, flow)
        return Output(x, noise, {"noise": noise}, aux=flow.aux, figures=flow.figures)

    def _told(self, present: Inputs, flow: Flow, rows: int) -> Tensor:
        vectors = []
        for condition in self.conditions.values():
            given = Entrance(condition).given(present)
            count = given[condition.main].shape[0]
            if isinstance(count, int) and isinstance(rows, int) and count != rows:  # torch.export has symbols, alike
                raise ValueError(f"{condition.main} has {count} rows, the picture {rows}")
            vectors.append(embed_inputs(condition, given, flow)[:, 0])
        return torch.stack(vectors).sum(0)
