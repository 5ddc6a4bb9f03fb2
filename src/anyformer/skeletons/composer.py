"""Decoders of sound by its codes, told by a text. B sounds, T steps, S tokens of a text, Q books, V codes, D width."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from anyformer.core.front import Entrance, FrontEnd, Inputs
from anyformer.core.part import Part, call
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Head
from anyformer.core.state import Memory, State
from anyformer.media.patterns import Pattern
from anyformer.skeletons.base import Output, Skeleton, embed_inputs
from anyformer.skeletons.codec import Codec
from anyformer.skeletons.encoder import Encoder
from anyformer.skeletons.stack import Stack


class Composer(Skeleton, Part):
    """A text, and the codes of a sound so far, to the codes of the next step (MusicGen).

    ```
    input_ids (B, S) -> encoder -> (project) -> memory (B, S, D)
                                                   |  cross
    decoder_input_ids (B, T, Q) -> embed -> decoder -> head -> logits (B, T, Q, V)        codec: codes <-> sound
    ```
    The text encoder and the codec are models of their own. A row whose text is all padding is about nothing: its
    memory is 0. Without a text encoder every row is, and the codes are `input_ids`. The network knows no delay between
    books: a `pattern` lays the codes out before they enter, and takes them apart behind.

    Args:
        dim: width of the decoder's stream.
        embed: `StackedCodes.of(...)`. head: `StackedLogits.of(...)`.
        decoder: `Stack.of(...)` of blocks that read a memory.
        pattern: how its codes were laid out in training.
        encoder: of the text, or None.
        codec: the codec of its codes, or None. stereo: the books of the left and the right channel alternate.
        context: the most steps, or None = any.
    """

    generates = True

    def __init__(
        self,
        dim: int,
        embed: Recipe[FrontEnd],
        decoder: Recipe[Stack],
        head: Recipe[Head],
        pattern: Pattern,
        encoder: Recipe[Encoder] | None = None,
        codec: Recipe[Codec] | None = None,
        stereo: bool = False,
        context: int | None = None,
    ):
        super().__init__()
        self.encoder = None if encoder is None else encoder.build()
        wide = dim if self.encoder is None else self.encoder.width
        self.project = None if wide == dim else nn.Linear(wide, dim)
        self.embed, self.decoder, self.head = embed.build(dim), decoder.build(dim), head.build(dim)
        self.codec = None if codec is None else codec.build()
        self.pattern, self.stereo, self.context = pattern, stereo, context
        self.target = "" if self.encoder is None else "decoder_"  # type: ignore[misc]
        self.generates = False

    @property
    def decodes(self) -> bool:
        return True

    @property
    def idle(self) -> frozenset[str]:  # type: ignore[override]
        """The codec's parameters, which no pass computes with, and without a text those that read it."""
        names = [name for name, _ in self.named_parameters()]
        unread = (".cross.", ".norm.cross.") if self.encoder is None else ("\n",)
        return frozenset(n for n in names if n.startswith("codec.") or any(part in n for part in unread))

    def entrances(self) -> tuple[Entrance, ...]:
        codes = Entrance(self.embed, self.target)
        return (codes,) if self.encoder is None else (Entrance(self.encoder.embed), codes)

    @property
    def processed(self) -> tuple[str, ...]:
        return (*self.inputs(), *(() if self.codec is None else self.codec.inputs()))

    def longest(self, entrance: Entrance) -> int | None:
        return self.context if entrance.front is self.embed else None

    def decoding(self) -> Iterable[nn.Module]:
        return [self.decoder]

    def forward(self, state: State | None = None, last: bool = False, **inputs: Tensor | None) -> Output:
        """The inputs by name to an Output with logits (B, T, Q, V), and the text encoder's memory.

        With `state`, the text is read in the first call and can be omitted later.
        With `last`, there are logits of the last step only, (B, 1, Q, V).
        """
        named = self.check_inputs(inputs)
        target = self.entrances()[-1]
        hidden, memory = self._memory(named, state)
        tensors, flow = self.begin(target, named, None, state, causal=True)
        x = embed_inputs(self.embed, tensors, flow)
        if memory is None:  # about nothing: one place that nobody sees
            nothing = torch.zeros(len(x), 1, dtype=torch.bool, device=x.device)
            memory = Memory(x.new_zeros(len(x), 1, x.shape[2]), nothing)
        flow.memory = memory
        x, flow = self.decoder(x, flow)  # (B, T, D)
        logits = self.head(x[:, -1:] if last else x, flow)
        keep = flow.keep_now(x.shape[1])
        return Output(x, logits, memory=hidden, aux=flow.aux, keep=keep, figures=flow.figures)

    def _memory(self, named: Inputs, state: State | None) -> tuple[Tensor | None, Memory | None]:
        """The text encoder's hidden states, (B, S, …), and what the decoder reads of them."""
        if self.encoder is None:
            return None, None
        if state is not None and state.memory is not None:
            if "input_ids" in named:
                raise ValueError("the state has read its text already; leave input_ids out, or start a new state")
            return None, state.memory
        read = {name: value for name, value in named.items() if name in self.encoder.inputs()}
        self.entrances()[0].given(read)
        out = self.encoder(**read)
        memory = Memory(call(self.project, out.hidden), out.keep)
        if state is not None:
            state.memory = memory
        return out.hidden, memory
