"""Encoder-decoders. B batch, T time of the target, S time of the source, D width, V vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.front import Entrance, FrontEnd, Inputs
from anyformer.core.part import Part, built
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Head
from anyformer.core.state import Memory, State
from anyformer.skeletons.base import Output, Skeleton, embed_inputs
from anyformer.skeletons.stack import Stack


class EncoderDecoder(Skeleton, Part):
    """An encoder of a source, and a decoder of a target with cross-attention to it (T5, Whisper).

    ```
    input_ids (B, S) -> source or embed -> encoder -> memory (B, S, D)
                                                         |  cross
    decoder_input_ids (B, T) -> embed -> decoder -> head -> logits (B, T, V)
    ```

    Args:
        dim: width of both streams.
        embed: front-end of the target, and of the source without `source`.
        encoder, decoder: `Stack.of(...)`.
        head: `Logits.of(...)`.
        begin_id: the token that every target starts with; used by `generate`.
        context: the longest accepted target, in tokens, and source without `source`; None = any.
        source: front-end of a source of another kind, which limits its length itself: `Mels.of(...)`; or None.
    """

    generates = True
    target = "decoder_"

    def __init__(
        self,
        dim: int,
        embed: Recipe[FrontEnd],
        encoder: Recipe[Stack],
        decoder: Recipe[Stack],
        head: Recipe[Head],
        begin_id: int = 0,
        context: int | None = None,
        source: Recipe[FrontEnd] | None = None,
    ):
        super().__init__()
        self.source: FrontEnd | None = built(source, dim)
        self.embed, self.encoder, self.decoder = embed.build(dim), encoder.build(dim), decoder.build(dim)
        self.head, self.begin_id, self.context = head.build(dim), begin_id, context
        self.generates = self.reads_text

    @property
    def decodes(self) -> bool:
        return True

    def entrances(self) -> tuple[Entrance, ...]:
        return Entrance(self.embed if self.source is None else self.source), Entrance(self.embed, self.target)

    def longest(self, entrance: Entrance) -> int | None:
        return None if entrance.front is self.source else self.context

    def decoding(self) -> Iterable[nn.Module]:
        return [self.decoder]

    def opening(self, ids: Tensor, mask: Tensor | None) -> tuple[dict[str, Any], Tensor, Tensor | None]:
        return {"input_ids": ids, "attention_mask": mask}, ids.new_full((len(ids), 1), self.begin_id), None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        state: State | None = None,
        last: bool = False,
        **inputs: Tensor | None,
    ) -> Output:
        """Source ids (B, S), or the inputs of the front-end `source` by name, and target ids (B, T) to an Output with
        logits (B, T, V) and the encoder's memory.

        With `state`, the source is read in the first call and can be omitted later.
        With `last`, there are logits of the last position of the target only, (B, 1, V).
        """
        source, target = self.entrances()
        named = self.check_inputs(
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "decoder_input_ids": decoder_input_ids,
                "decoder_attention_mask": decoder_attention_mask,
                **inputs,
            }
        )
        if decoder_input_ids is None:
            raise ValueError(
                "an encoder-decoder needs decoder_input_ids: the target so far, beginning with the id begin_id"
            )
        memory, read = self._memory(source, named, state)
        tensors, flow = self.begin(target, named, None, state, causal=True)
        flow.memory = memory
        if read is not None:
            flow.take(read)
        x, flow = self.decoder(embed_inputs(target.front, tensors, flow), flow)  # (B, T, D)
        logits = self.head(x[:, -1:] if last else x, flow)
        keep = flow.keep_now(x.shape[1])
        return Output(x, logits, memory=memory.stream, aux=flow.aux, keep=keep, figures=flow.figures)

    def encode(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **inputs: Tensor | None
    ) -> Tensor:
        """The encoder's memory (B, S, D) of the source inputs."""
        named = self.check_inputs({"input_ids": input_ids, "attention_mask": attention_mask, **inputs})
        return self._read(self.entrances()[0], named)[0].stream

    def _read(self, source: Entrance, named: Inputs) -> tuple[Memory, Flow]:
        """The memory of a source, and the flow after the encoder."""
        tensors, flow = self.begin(source, named)
        x, flow = self.encoder(embed_inputs(source.front, tensors, flow), flow)
        return Memory(x, flow.keep), flow

    def _memory(self, source: Entrance, named: Inputs, state: State | None) -> tuple[Memory, Flow | None]:
        if state is not None and state.memory is not None:
            if main := next((name for name in source.inputs() if name in named), None):
                raise ValueError(f"the state has read its source already; leave {main} out, or start a new state")
            return state.memory, None
        memory, flow = self._read(source, named)
        if state is not None:
            state.memory = memory
        return memory, flow
