"""Encoders of a text and the objects of a picture. B batch, T tokens, N objects, D width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from anyformer.core.front import Entrance, FrontEnd
from anyformer.core.part import Part, built
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Head, Pool
from anyformer.parts.heads import Pooled
from anyformer.parts.objects import Crossing, ObjectHeads
from anyformer.skeletons.base import Output, Skeleton, embed_inputs
from anyformer.skeletons.stack import Stack


class CrossEncoder(Skeleton, Part):
    """A text and the objects of a picture, each encoded alone, then together (LXMERT).

    ```
    input_ids (B, T) ────── embed ─── language ──┬── crossing x N ──┬── hidden (B, T, D) ── pool, heads
    visual_feats (B, N, F) ─ objects ─ vision ───┘                  └── (B, N, D) ── seen
    ```
    Args:
        dim: width of both streams.
        embed: front-end of the text. objects: of the objects, `Objects.of(...)`.
        language, vision: the blocks of one stream alone. cross: the layers of both.
        pool: of the text. heads: name to recipe, of the text; the first one's output is `logits`.
        seen: heads of each object, or None.
        context: the longest text, in tokens; None = any.
    """

    def __init__(
        self,
        dim: int,
        embed: Recipe[FrontEnd],
        objects: Recipe[FrontEnd],
        language: Recipe[Stack],
        vision: Recipe[Stack],
        cross: Any,
        pool: Recipe[Pool] | None = None,
        heads: Mapping[str, Recipe[Head]] | None = None,
        seen: Recipe[ObjectHeads] | None = None,
        context: int | None = None,
    ):
        super().__init__()
        self.embed, self.objects = embed.build(dim), objects.build(dim)
        self.language, self.vision = language.build(dim), vision.build(dim)
        layers: list[Crossing] = [layer.build(dim) for layer in cross]
        self.cross: Any = nn.ModuleList(layers)
        self.pool, self.seen = built(pool, dim), built(seen, dim)
        self.heads = nn.ModuleDict({name: head.build(dim) for name, head in (heads or {}).items()})
        self.context = context

    def entrances(self) -> tuple[Entrance, ...]:
        return Entrance(self.embed), Entrance(self.objects, "visual_")

    def longest(self, entrance: Entrance) -> int | None:
        return None if entrance.prefix else self.context

    def complete(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return inputs if self.pool is None else self.pool.complete(inputs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **inputs: Tensor | None,
    ) -> Output:
        """A text and objects to an Output; `heads["objects"]` is the stream of the objects, (B, N, D).

        Args:
            attention_mask: (B, T), 1 or True = a real token. token_type_ids: (B, T) segments; all 0 by default.
            inputs: `visual_feats` (B, N, F), `visual_pos` (B, N, 4), `visual_attention_mask` (B, N).
        """
        texts = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        present = self.check_inputs({**texts, **inputs})
        one, two = self.entrances()
        tensors, flow = self.begin(one, present)
        objects, beside = self.begin(two, present)
        x, flow = self.language(embed_inputs(self.embed, tensors, flow), flow)  # (B, T, D)
        y, beside = self.vision(self.objects(objects, beside), beside)  # (B, N, D)
        for layer in self.cross:
            x, y = layer((x, flow), (y, beside))
        flow.take(beside)
        pooled = None if self.pool is None else self.pool(x, flow)  # (B, D)
        if pooled is not None:
            flow.put(Pooled(pooled))
        heads = {name: head(x, flow) for name, head in self.heads.items()}
        first = next(iter(heads.values()), None)
        heads["objects"] = y
        if self.seen is not None:
            heads |= self.seen(y)
        return Output(x, first, heads, pooled, aux=flow.aux, keep=flow.keep, figures=flow.figures)
