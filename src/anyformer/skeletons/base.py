"""How streams connect: `Encoder`, `CausalLM`, `EncoderDecoder`, each a front-end, blocks and heads.

B batch, T time, S source time, D width, V vocabulary, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from anyformer.core.documents import check_packed, places
from anyformer.core.flow import Flow, State, Taps
from anyformer.core.part import Part, built, call, drop
from anyformer.core.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Output:
    """What a skeleton returns. `logits` is the first head's output; `heads` holds all of them by name."""

    hidden: Tensor  # (B, T, D) after the last norm
    logits: Tensor | None = None
    heads: dict[str, Tensor] = field(default_factory=dict)
    pooled: Tensor | None = None  # (B, D)
    memory: Tensor | None = None  # (B, S, D) what the encoder made
    aux: dict[str, Tensor] = field(default_factory=dict)  # auxiliary losses
    keep: Tensor | None = None  # (B, T) which places of `hidden` are real; None = all
    figures: dict[str, list[Tensor]] = field(default_factory=dict)  # what parts report in training, one tensor a layer


class Blocks(Part):
    """Blocks in a row, then a norm: what `Stack`, `CausalLM` and `Encoder` share.

    Args:
        blocks: one recipe a layer; they may differ.
        norm: after the last block, or None.
        bias: a relative position bias that all blocks share (T5), or None.
        dropout: after the norm.
        entry: what happens to the vectors of the tokens before the first block, e.g. `ConvPositions.of()`, or None.
    """

    def __init__(
        self,
        dim: int,
        blocks: Any,
        norm: Recipe | None = None,
        bias: Recipe | None = None,
        dropout: float = 0.0,
        entry: Recipe | None = None,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(b.build(dim) for b in blocks)
        self.norm, self.bias, self.dropout = built(norm, dim), built(bias, dim), dropout
        self.entry = built(entry, dim)

    def run(self, x: Tensor, flow: Flow) -> Tensor:
        """(B, T, D) through all blocks and the norm."""
        flow.bias = self.bias
        x = flow.clear(x)
        if self.entry is not None:
            x = flow.clear(self.entry(x, flow))  # positions and norms write at padding, too
        for block in self.blocks:
            x = block(x, flow)
        return drop(self, call(self.norm, x))


class Stack(Blocks):
    """Blocks in a row as a part of its own: one side of an encoder-decoder. Shape: (B, T, D) -> same."""

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        return self.run(x, flow)


class Skeleton:
    """What every complete model has beside its modules: its own width, and where it came from.

    Attributes:
        recipe: the expression that this model is.
        page, config: the page and its hyperparameters, where the model came from one.
        origin: what a file said beside the weights (config keys that change nothing here, generation defaults), kept
            for `save`.
        tokenizer: an `anyformer.hub.text.tokenizer.Tokenizer`, or None.
        ledger: how each tensor and config key of the file was used, where the model was loaded.
    """

    closed: ClassVar[bool] = True
    generates: ClassVar[bool] = False  # can continue a text: has `start` and a vocabulary head
    takes: str = "input_ids"  # its main input: input_ids or pixel_values
    page: str | None = None
    config: Any = None
    origin: dict[str, Any] | None = None
    tokenizer: Any = None
    ledger: Any = None
    taps: Taps | None = None
    context: int | None = None

    def begin(
        self,
        embed: Any,
        inputs: Tensor,
        mask: Tensor | None,
        positions: Tensor | None,
        state: State | None,
        documents: Tensor | None = None,
    ) -> Flow:
        """The flow of one pass over `inputs`: checks the length, joins the padding, places the tokens."""
        batch, count = inputs.shape[0], embed.length(inputs)
        first = 0 if state is None else state.length
        if self.context is not None and first + count > self.context:
            raise ValueError(
                f"{first + count} tokens do not fit the context of {self.context}; give fewer tokens, "
                f"or build with a longer one: recipe.but(context={first + count})"
            )
        if documents is not None:
            assert isinstance(self, nn.Module)
            check_packed(self, documents, inputs, mask, positions, state)
            apart, real = places(documents), documents >= 0
            return Flow(apart, keep=real, documents=documents, taps=self.taps, unembed=embed.unembed)
        keep = None if mask is None else mask.bool()
        if keep is not None and keep.shape not in ((batch, count), (batch, first + count)):
            raise ValueError(
                f"the attention mask must be (batch, tokens) = ({batch}, {count}), got {tuple(keep.shape)}"
            )
        if state is not None:
            keep = state.advance(keep, batch, count)
        if positions is None:
            if keep is None:
                positions = torch.arange(first, first + count, device=inputs.device)  # (T,)
            else:
                positions = (keep.long().cumsum(1) - 1).clamp(min=0)[:, first:]  # (B, T)
        return Flow(positions, first=first, keep=keep, state=state, taps=self.taps, unembed=embed.unembed)

    def start(self, batch: int, length: int = 0) -> State:
        """Empty decoding state for `batch` rows; `length` is a hint of how long they will become."""
        if not self.generates:
            raise ValueError(f"{type(self).__name__} sees both directions and does not decode step by step")
        assert isinstance(self, nn.Module)
        return State(self, batch, length)

    def generate(self, *args: Any, **options: Any) -> Any:
        """Continues text or token ids: `anyformer.generate.generate(self, ...)`."""
        from anyformer.generate import generate

        return generate(self, *args, **options)

    def save(self, folder: str | Path, overwrite: bool = False) -> str:
        """Writes a Hugging Face directory: `anyformer.hub.save(self, folder)`."""
        from anyformer.hub import save

        return save(self, folder, overwrite=overwrite)


def _embed(embed: Any, inputs: Tensor, flow: Flow) -> Tensor:
    """The front-end, with an error that names the id when one is outside the vocabulary."""
    try:
        return embed(inputs, flow)
    except IndexError:
        bad = inputs[(inputs < 0) | (inputs >= getattr(embed, "vocab", 0))]
        if not hasattr(embed, "vocab") or not len(bad):
            raise
        raise ValueError(
            f"token id {int(bad[0])} is outside the vocabulary: ids go from 0 to {embed.vocab - 1}"
        ) from None


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
        head: `Logits.of(...)`.
        bias: relative position bias that all blocks share, or None.
        context: the longest input that is accepted, in tokens; None = any.
        entry: between the front-end and the blocks, or None.
    """

    generates = True

    def __init__(
        self,
        dim: int,
        embed: Recipe,
        blocks: Any,
        norm: Recipe | None,
        head: Recipe,
        bias: Recipe | None = None,
        context: int | None = None,
        entry: Recipe | None = None,
    ):
        super().__init__(dim, blocks, norm, bias, entry=entry)
        self.embed, self.head = embed.build(dim), head.build(dim)
        self.context = context

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        state: State | None = None,
        last: bool = False,
        document_ids: Tensor | None = None,
    ) -> Output:
        """Token ids (B, T) to an Output with logits (B, T, V).

        Args:
            attention_mask: (B, T), 1 or True = a real token; padding may stand on either side.
            position_ids: (T,) or (B, T); by default tokens are counted without the padding.
            state: from `start`; this call continues where the last one ended.
            last: logits of the last place only, (B, 1, V): what decoding needs of a long prompt.
            document_ids: (B, T) where a row holds several texts: 0, 1, 2 … for each one's tokens, -1 at padding. No
                text sees another one, and each begins at place 0. Instead of attention_mask.
        """
        flow = self.begin(self.embed, input_ids, attention_mask, position_ids, state, document_ids)
        flow.causal = True
        x = self.run(_embed(self.embed, input_ids, flow), flow)  # (B, T, D)
        return Output(x, self.head(x[:, -1:] if last else x, flow), aux=flow.aux, keep=flow.keep, figures=flow.figures)


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
