"""Decoders. B batch, T time, D width, V vocabulary."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from anyformer.core.flow import Flow
from anyformer.core.front import Entrance, FrontEnd, Inputs
from anyformer.core.mixer import Mixer
from anyformer.core.part import built
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Head, Norm
from anyformer.core.state import State
from anyformer.parts.embeddings import Entry
from anyformer.parts.positions import RelativeBias
from anyformer.skeletons.base import Output, Skeleton, embed_inputs
from anyformer.skeletons.stack import Blocks


class CausalLM(Skeleton, Blocks):
    """A decoder: tokens, blocks that see only the past, a head.

    ```
    input_ids (B, T) -> embed -> block x N -> norm -> head -> logits (B, T, V)
    ```

    Args:
        dim: width of the stream.
        embed: front-end, e.g. `Tokens.of(vocab=...)`.
        blocks: one recipe a layer.
        norm: after the last block, or None.
        head: `Logits.of(...)`; None = hidden states only, without generation.
        bias: relative position bias that all blocks share, or None.
        context: the longest accepted input, in tokens; None = any.
        entry: a part between the front-end and the blocks, or None.
    """

    generates = True

    def __init__(
        self,
        dim: int,
        embed: Recipe[FrontEnd],
        blocks: Any,
        norm: Recipe[Norm] | None,
        head: Recipe[Head] | None,
        bias: Recipe[RelativeBias] | None = None,
        context: int | None = None,
        entry: Recipe[Entry] | Recipe[Mixer] | None = None,
    ):
        super().__init__(dim, blocks, norm, bias, entry=entry)
        self.embed, self.head = embed.build(dim), built(head, dim)
        self.context, self.generates = context, head is not None

    def entrances(self) -> tuple[Entrance, ...]:
        return (Entrance(self.embed),)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        state: State | None = None,
        last: bool = False,
        document_ids: Tensor | None = None,
        **inputs: Tensor | None,
    ) -> Output:
        """Token ids (B, T) to an Output with logits (B, T, V).

        Args:
            attention_mask: (B, T), 1 or True = a real token; padding can be on either side.
            position_ids: (T,) or (B, T); by default positions do not count padding.
            state: from `start`; this call continues after the last one.
            last: logits of the last position only, (B, 1, V): enough for decoding after a long prompt.
            document_ids: (B, T) for rows of several texts: 0, 1, 2 … for each one's tokens, -1 at padding. No
                text sees another one, and each begins at position 0. Instead of attention_mask.
            inputs: the front-end's other inputs, by name (`model.inputs()`).
        """
        named = self.check_inputs({"input_ids": input_ids, "attention_mask": attention_mask, **inputs})
        tensors, flow = self.begin(Entrance(self.embed), named, position_ids, state, document_ids, causal=True)
        return self.written(tensors, flow, last)

    def written(self, tensors: Inputs, flow: Flow, last: bool) -> Output:
        """The output of the pass over the front-end's inputs."""
        x, flow = self.run(embed_inputs(self.embed, tensors, flow), flow)  # (B, T, D)
        logits = None if self.head is None else self.head(x[:, -1:] if last else x, flow)
        return Output(x, logits, aux=flow.aux, keep=flow.keep_now(x.shape[1]), figures=flow.figures)
