"""Encoders. B batch, T time, D width, C channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from anyformer.core import checks
from anyformer.core.flow import Flow
from anyformer.core.front import MASK, Entrance, FrontEnd, Input
from anyformer.core.mixer import Mixer
from anyformer.core.part import built
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Head, Norm, Pool
from anyformer.parts.attention.global_tokens import GlobalTokens
from anyformer.parts.embeddings import Entry
from anyformer.parts.heads import Pooled
from anyformer.parts.positions import RelativeBias
from anyformer.skeletons.base import Output, Skeleton, embed_inputs
from anyformer.skeletons.stack import Blocks


class Encoder(Skeleton, Blocks):
    """An encoder of text (BERT) or images (ViT): every token sees every other.

    ```
    input_ids (B, T) | pixel_values (B, C, height, width) -> embed -> block x N -> norm -> hidden (B, T, D)
                                                               hidden -> pool -> pooled (B, D);  heads read either
    ```

    Args:
        dim: width of the stream.
        embed: front-end, `Tokens.of(...)` or `Patches.of(...)`.
        blocks: one recipe a layer.
        norm: after the last block, or None.
        pool: reduces the sequence to one vector, or None.
        heads: name to recipe; the first one's output is `logits`.
        context: the longest accepted input, in tokens; None = any.
        bias: relative position bias that all blocks share, or None.
        entry: a part between the front-end and the blocks, or None.
        dropout: after the norm (T5).
    """

    def __init__(
        self,
        dim: int,
        embed: Recipe[FrontEnd],
        blocks: Any,
        norm: Recipe[Norm] | None = None,
        pool: Recipe[Pool] | None = None,
        heads: Mapping[str, Recipe[Head]] | None = None,
        context: int | None = None,
        bias: Recipe[RelativeBias] | None = None,
        entry: Recipe[Entry] | Recipe[Mixer] | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(dim, blocks, norm, bias, dropout, entry)
        self.embed, self.pool = embed.build(dim), built(pool, dim)
        self.heads = nn.ModuleDict({name: head.build(dim) for name, head in (heads or {}).items()})
        self.context = context

    def entrances(self) -> tuple[Entrance, ...]:
        return (Entrance(self.embed),)

    def complete(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return inputs if self.pool is None else self.pool.complete(inputs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        **inputs: Tensor | None,
    ) -> Output:
        """Token ids (B, T), pixels (B, C, height, width), or other inputs of the front-end, to an Output.

        Args:
            attention_mask: (B, T), 1 or True = a real token; padding can be on either side.
            token_type_ids: (B, T) segments; all 0 by default.
            position_ids: (T,) or (B, T); by default positions do not count padding.
            document_ids: (B, T) as in `CausalLM`; for models without a pool.
            inputs: the front-end's other inputs, by name (`model.inputs()`): `pixel_values` of a picture.
        """
        texts = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return self.read(*self.enter({**texts, **inputs}, position_ids, document_ids))

    def enter(
        self, inputs: Mapping[str, Tensor | None], positions: Tensor | None, documents: Tensor | None
    ) -> tuple[dict[str, Tensor], Flow]:
        """The checked inputs of the front-end, and the flow of the pass."""
        if documents is not None and self.pool is not None:
            raise ValueError(
                f"{type(self.pool).__name__} makes one vector of a row, and with document_ids a row holds several "
                "texts; build the model without pool, or give one text a row"
            )
        return self.begin(Entrance(self.embed), self.check_inputs(inputs), positions, documents=documents)

    def read(self, tensors: dict[str, Tensor], flow: Flow) -> Output:
        """The output of the heads, from the inputs of the front-end."""
        x, flow = self.run(embed_inputs(self.embed, tensors, flow), flow)  # (B, T, D)
        pooled = None if self.pool is None else self.pool(x, flow)  # (B, D)
        if pooled is not None:
            flow.put(Pooled(pooled))
        heads = {name: head(x, flow) for name, head in self.heads.items()}
        first = next(iter(heads.values()), None)
        return Output(x, first, heads, pooled, aux=flow.aux, keep=flow.keep, figures=flow.figures)


class GlobalEncoder(Encoder):
    """An `Encoder` with global tokens. With `first`, a text's first token is one unless the caller passes a mask."""

    def __init__(
        self, dim: int, embed: Recipe[FrontEnd], blocks: Any, pool: Recipe[Pool] | None = None,
        heads: Mapping[str, Recipe[Head]] | None = None, context: int | None = None, first: bool = False,
    ):  # fmt: skip
        super().__init__(dim, embed, blocks, None, pool, heads, context)
        self.first = first

    def inputs(self) -> dict[str, Input]:
        return {**super().inputs(), "global_attention_mask": MASK}

    def forward(  # type: ignore[override]
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, document_ids: Tensor | None = None,
        global_attention_mask: Tensor | None = None, **inputs: Tensor | None,
    ) -> Output:  # fmt: skip
        """The output as in `Encoder`; `global_attention_mask` (B, T): 1 or True = a global token."""
        texts = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        tensors, flow = self.enter({**texts, **inputs}, position_ids, document_ids)
        mask = self._mask(next(iter(tensors.values())), global_attention_mask, flow)
        if mask is not None:
            flow.put(GlobalTokens(mask))
        return self.read(tensors, flow)

    def _mask(self, ids: Tensor, mask: Tensor | None, flow: Flow) -> Tensor | None:
        if mask is None:
            mask = (flow.positions == 0).expand(ids.shape) if self.first else None
        elif mask.shape == ids.shape:
            mask = checks.flags("global_attention_mask", mask)
        else:
            raise ValueError(f"global_attention_mask must be {tuple(ids.shape)}, got {tuple(mask.shape)}")
        return mask if mask is None or flow.keep is None else mask & flow.keep
