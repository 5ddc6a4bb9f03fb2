"""Encoder-decoders. B batch, T time of the target, S time of the source, D width, V vocabulary."""

from __future__ import annotations

from torch import Tensor

from anyformer.core.flow import Flow
from anyformer.core.part import Part
from anyformer.core.recipe import Recipe
from anyformer.core.state import State
from anyformer.skeletons.base import Output, Skeleton, _embed


class EncoderDecoder(Skeleton, Part):
    """A source is read both ways, a target is written left to right while looking at it (T5).

    ```
    input_ids (B, S) -> embed -> encoder -> memory (B, S, D)
                                               |  cross
    decoder_input_ids (B, T) -> embed -> decoder -> head -> logits (B, T, V)
    ```

    Args:
        dim: width of both streams.
        embed: front-end of both.
        encoder, decoder: `Stack.of(...)`.
        head: `Logits.of(...)`.
        begin_id: the token that every target starts with; kept for `generate`.
        context: the longest source or target that is accepted, in tokens; None = any.
    """

    generates = True

    def __init__(
        self,
        dim: int,
        embed: Recipe,
        encoder: Recipe,
        decoder: Recipe,
        head: Recipe,
        begin_id: int = 0,
        context: int | None = None,
    ):
        super().__init__()
        self.embed, self.encoder, self.decoder = embed.build(dim), encoder.build(dim), decoder.build(dim)
        self.head, self.begin_id, self.context = head.build(dim), begin_id, context

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        state: State | None = None,
        last: bool = False,
    ) -> Output:
        """Source ids (B, S) and target ids (B, T) to an Output with logits (B, T, V) and the encoder's memory.

        With `state`, the source is read in the first call and may be left out later.
        With `last`, there are logits of the last place of the target only, (B, 1, V).
        """
        if decoder_input_ids is None:
            raise ValueError(
                "an encoder-decoder needs decoder_input_ids: the target so far, beginning with the id begin_id"
            )
        memory, keep, read = self._memory(input_ids, attention_mask, state)
        flow = self.begin(self.embed, decoder_input_ids, decoder_attention_mask, None, state)
        flow.causal, flow.memory, flow.memory_keep = True, memory, keep
        if read is not None:
            flow.take(read)
        x = self.decoder(_embed(self.embed, decoder_input_ids, flow), flow)  # (B, T, D)
        logits = self.head(x[:, -1:] if last else x, flow)
        return Output(x, logits, memory=memory, aux=flow.aux, keep=flow.keep, figures=flow.figures)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Source ids (B, S) to memory (B, S, D)."""
        return self._read(input_ids, attention_mask)[0]

    def _read(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Flow]:
        """The memory, and the flow of the pass that made it."""
        flow = self.begin(self.embed, input_ids, attention_mask, None, None)
        return self.encoder(_embed(self.embed, input_ids, flow), flow), flow

    def _memory(
        self, input_ids: Tensor | None, mask: Tensor | None, state: State | None
    ) -> tuple[Tensor, Tensor | None, Flow | None]:
        if state is not None and state.memory is not None:
            if input_ids is not None:
                raise ValueError("the state has read its source already; leave input_ids out, or start a new state")
            return state.memory, state.memory_keep, None
        if input_ids is None:
            raise ValueError("an encoder-decoder needs input_ids, the source")
        memory, flow = self._read(input_ids, mask)
        keep = None if mask is None else mask.bool()
        if state is not None:
            state.memory, state.memory_keep = memory, keep
        return memory, keep, flow
