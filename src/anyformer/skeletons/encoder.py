"""Encoders. B batch, T time, D width, C channels."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.part import built
from anyformer.core.recipe import Recipe
from anyformer.skeletons.base import Output, Skeleton, _embed
from anyformer.skeletons.stack import Blocks


class Encoder(Skeleton, Blocks):
    """Everything sees everything: text (BERT) or images (ViT).

    ```
    input_ids (B, T) | pixel_values (B, C, height, width) -> embed -> block x N -> norm -> hidden (B, T, D)
                                                               hidden -> pool -> pooled (B, D);  heads read either
    ```

    Args:
        dim: width of the stream.
        embed: front-end, `Tokens.of(...)` or `Patches.of(...)`.
        blocks: one recipe a layer.
        norm: after the last block, or None.
        pool: makes one vector of the sequence, or None.
        heads: name to recipe; the first one's output is `logits`.
        context: the longest input that is accepted, in tokens; None = any.
        bias: relative position bias that all blocks share, or None.
        entry: between the front-end and the blocks, or None.
    """

    def __init__(
        self,
        dim: int,
        embed: Recipe,
        blocks: Any,
        norm: Recipe | None = None,
        pool: Recipe | None = None,
        heads: dict[str, Recipe] | None = None,
        context: int | None = None,
        bias: Recipe | None = None,
        entry: Recipe | None = None,
    ):
        super().__init__(dim, blocks, norm, bias, entry=entry)
        self.embed, self.pool = embed.build(dim), built(pool, dim)
        self.heads = nn.ModuleDict({name: head.build(dim) for name, head in (heads or {}).items()})
        self.context, self.takes = context, self.embed.takes

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> Output:
        """Token ids (B, T) or pixels (B, C, height, width) to an Output.

        Args:
            attention_mask: (B, T), 1 or True = a real token; padding may stand on either side.
            token_type_ids: (B, T) segments; all 0 by default.
            position_ids: (T,) or (B, T); by default tokens are counted without the padding.
            document_ids: (B, T) as of `CausalLM`; for models that do not make one vector of a row.
        """
        inputs = pixel_values if self.takes == "pixel_values" else input_ids
        if inputs is None:
            raise ValueError(f"this model reads {self.takes}; call model({self.takes}=...)")
        return self.read(inputs, self.about(inputs, attention_mask, token_type_ids, position_ids, document_ids))

    def about(
        self, inputs: Tensor, mask: Tensor | None, types: Tensor | None, places: Tensor | None, documents: Tensor | None
    ) -> Flow:
        """What the parts are told beside the inputs, checked; the arguments are those of `forward`."""
        if documents is not None and self.pool is not None:
            raise ValueError(
                f"{type(self.pool).__name__} makes one vector of a row, and with document_ids a row holds several "
                "texts; build the model without pool, or give one text a row"
            )
        flow = self.begin(self.embed, inputs, mask, places, None, documents)
        flow.types = types
        return flow

    def read(self, inputs: Tensor, flow: Flow) -> Output:
        """From the front-end to the heads."""
        x = self.run(_embed(self.embed, inputs, flow), flow)  # (B, T, D)
        flow.pooled = None if self.pool is None else self.pool(x, flow)  # (B, D)
        heads = {name: head(x, flow) for name, head in self.heads.items()}
        return Output(
            x, next(iter(heads.values()), None), heads, flow.pooled, aux=flow.aux, keep=flow.keep, figures=flow.figures
        )


class GlobalEncoder(Encoder):
    """An `Encoder` with global tokens. With `first`, a text's first token is one where the caller names none."""

    def __init__(
        self, dim: int, embed: Recipe, blocks: Any, pool: Recipe | None = None,
        heads: dict[str, Recipe] | None = None, context: int | None = None, first: bool = False,
    ):  # fmt: skip
        super().__init__(dim, embed, blocks, None, pool, heads, context)
        self.first = first

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None, document_ids: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
    ) -> Output:  # fmt: skip
        """As of `Encoder`; `global_attention_mask` (B, T): 1 or True = a global token."""
        flow = self.about(input_ids, attention_mask, token_type_ids, position_ids, document_ids)
        flow.wide = self._wide(input_ids, global_attention_mask, flow)
        return self.read(input_ids, flow)

    def _wide(self, ids: Tensor, mask: Tensor | None, flow: Flow) -> Tensor | None:
        if mask is None:
            wide = (flow.positions == 0).expand(ids.shape) if self.first else None
        elif mask.shape == ids.shape:
            wide = mask.bool()
        else:
            raise ValueError(f"global_attention_mask must be {tuple(ids.shape)}, got {tuple(mask.shape)}")
        return wide if wide is None or flow.keep is None else wide & flow.keep
