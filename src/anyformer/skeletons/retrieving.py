"""Retrieval-augmented generators. B batch, K passages of a row, S their time, T time of the target, E width of vectors,
D width, V vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from anyformer.core.checks import flags
from anyformer.core.flow import Flow
from anyformer.core.front import Entrance, Input, Inputs
from anyformer.core.part import Part
from anyformer.core.recipe import Recipe
from anyformer.core.state import Slot, State
from anyformer.generate.retrieving import CONTEXT
from anyformer.parts.unscored import in_pieces
from anyformer.skeletons.base import Output, Skeleton
from anyformer.skeletons.encoder import Encoder
from anyformer.skeletons.encoder_decoder import EncoderDecoder

VECTORS, DOCUMENT = "doc_vectors", "document_"


class Heard(Slot):
    """The state of all passages of a batch: that of the generator, a row for each passage, and what was said so far.

    Attributes:
        inner: of the generator, (B K) rows; None before the passages were read.
        prior: (B, K) log p(passage | question).
        said: (B, K, L) log p(token | passage, tokens before) of each token so far.
        hidden: (B, K, L, D) behind the decoder, where the next token is scored.
    """

    def __init__(self, length: int):
        self.room, self.narrow = length, False
        self.inner: State | None = None
        self.prior = self.said = self.hidden = torch.empty(0)

    def begin(self, inner: State | None, prior: Tensor) -> None:
        """Takes the passages; without a state of the generator, for a single pass."""
        self.inner, self.prior = inner, prior
        self.said, self.hidden = prior.new_zeros(*prior.shape, 0), prior.new_zeros(*prior.shape, 0, 0)
        if self.narrow and inner is not None:
            inner.in_8_bits()

    def add(self, said: Tensor, hidden: Tensor) -> None:
        """Adds tokens: their log-probabilities (B, K, T), and (B, K, T, D)."""
        before = self.hidden if self.hidden.shape[2] else hidden[:, :, :0]
        self.said, self.hidden = torch.cat((self.said, said), 2), torch.cat((before, hidden), 2)

    def reorder(self, index: Tensor) -> None:
        if self.inner is not None:
            count = self.prior.shape[1]
            self.inner.reorder((index[:, None] * count + torch.arange(count, device=index.device)).flatten())
            self.prior, self.said, self.hidden = self.prior[index], self.said[index], self.hidden[index]

    def returns_to(self, length: int) -> bool:
        return self.inner is None or all(slot.returns_to(length) for slot in self.inner.slots.values())

    def trim(self, length: int) -> None:
        if self.inner is not None:
            self.inner.trim(length)
            self.said, self.hidden = self.said[:, :, :length], self.hidden[:, :, :length]

    def mark(self) -> None:
        if self.inner is not None:
            self.inner.mark()

    def bytes(self) -> int:
        own = self.prior.nbytes + self.said.nbytes + self.hidden.nbytes
        return own if self.inner is None else own + self.inner.bytes()

    def in_8_bits(self) -> bool:
        self.narrow = True
        return True


class RagToken(Skeleton, Part):
    """A generator that reads K passages, each alone, and mixes its next words by their relevance (Lewis et al., 2020;
    arXiv:2005.11401). Each word can follow from another passage:

    ```
    p(z | x) = softmax over K of question(x) . vector(z)      p(y_t | x, y_<t) = sum_z p(z | x) p(y_t | x, z, y_<t)

    input_ids (B, Q) ─ question ─ (B, E) ─┐
    doc_vectors (B, K, E) ────────────────┴─ . ─ log softmax ─ prior (B, K) ─────────────────┐
    context_input_ids (B, K, S) ─ generator's encoder ─ memory ─┐                            │
    decoder_input_ids (B, T) ─ repeated K times ─ its decoder ──┴─ log softmax (B, T, K, V) ─ logsumexp ─ (B, T, V)
    ```
    `logits` are log-probabilities, so every objective and every sampler of an encoder-decoder is right for them.
    `hidden` is the mean of the passages' by their weights. `beside`: `scores` (B, K), `posterior` (B, T, K), the log of
    the weight of each passage at each word, and `passages` (B, T, K, V), the generator's logits.

    A passage whose mask has no token is none: its weight is 0.

    Args:
        question: an encoder with a pool, whose first head, or else whose pooled vector, is the question's.
        generator: an encoder-decoder that reads a passage and the question as one text.
        document: an encoder of passages that learns with it (same width of vectors); then they are given as
            `document_input_ids` (B, K, R) instead of `doc_vectors`. None = vectors from an index, which stay.
        passages: K that a retriever is asked for, if nobody says another number.
        longest: the most tokens of a passage with its question.
        prefix, titled, between: what the generator reads is `prefix title titled passage between question`.
    """

    generates = True
    target = "decoder_"
    one_passage: ClassVar[bool] = False  # all words of an answer follow from the same one

    def __init__(
        self,
        question: Recipe[Encoder],
        generator: Recipe[EncoderDecoder],
        document: Recipe[Encoder] | None = None,
        passages: int = 5,
        longest: int = 300,
        prefix: str = "",
        titled: str = " / ",
        between: str = " // ",
    ):
        super().__init__()
        self.question, self.generator = question.build(), generator.build()
        self.document = None if document is None else document.build()
        if passages < 1 or longest < 1:
            raise ValueError(
                f"{type(self).__name__}: passages and longest must be at least 1; got {passages}, {longest}"
            )
        self.passages, self.longest_passage = passages, longest
        self.prefix, self.titled, self.between = prefix, titled, between
        self.vector_width = width_of(self.question)
        self.width, self.context = self.generator.decoder.width, self.generator.context
        self.begin_id = self.generator.begin_id
        self.generates = False  # from a prompt alone: `generate.retrieving.respond`

    @property
    def decodes(self) -> bool:
        return True

    @property
    def embed(self) -> Any:
        """The front-end of the target."""
        return self.generator.embed

    def entrances(self) -> tuple[Entrance, ...]:
        return *self.question.entrances(), Entrance(self.generator.embed, self.target)

    def longest(self, entrance: Entrance) -> int | None:
        return self.context if entrance.front is self.generator.embed else self.question.context

    def inputs(self) -> dict[str, Input]:
        ids = Input(("passages", "words"), ids=True)
        mask = Input(("passages", "words"), required=False, ids=True)
        own = {f"{CONTEXT}input_ids": ids, f"{CONTEXT}attention_mask": mask}
        if self.document is None:
            own |= {VECTORS: Input(("passages", "vector"), fixed=("vector",))}
        else:
            words = Input(("passages", "document"), ids=True), Input(("passages", "document"), required=False, ids=True)
            own |= {f"{DOCUMENT}input_ids": words[0], f"{DOCUMENT}attention_mask": words[1]}
        return super().inputs() | own

    def complete(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Example inputs with K passages for each row."""
        rows, made = len(inputs[f"{self.target}input_ids"]), dict(inputs)
        shape, device = (rows, self.passages, 7), inputs[f"{self.target}input_ids"].device
        count = torch.arange(rows * self.passages * 7, device=device).reshape(shape)
        real = torch.arange(7, device=device) < 7 - torch.arange(self.passages, device=device)[:, None] % 4
        texts: dict[str, Any] = {CONTEXT: self.generator} | ({} if self.document is None else {DOCUMENT: self.document})
        for prefix, model in texts.items():
            made.setdefault(f"{prefix}input_ids", count * 31 % model.vocab)
            made.setdefault(f"{prefix}attention_mask", real.long().expand(shape).clone())
        if self.document is None and VECTORS not in made:
            size = (rows, self.passages, self.vector_width)
            made[VECTORS] = torch.sin(torch.arange(rows * self.passages * size[2], device=device) * 0.7).reshape(size)
        return made

    def start(self, batch: int, length: int = 0) -> State:
        return State(batch, {self: Heard(length)})

    def decoding(self) -> Iterable[nn.Module]:
        return self.generator.decoding()

    def opening(self, ids: Tensor, mask: Tensor | None) -> tuple[dict[str, Any], Tensor, Tensor | None]:
        return self.generator.opening(ids, mask)

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
        """Questions (B, Q), their passages by name (`model.inputs()`), and targets (B, T) to an Output.

        With `state`, questions and passages are read in the first call and can be omitted later. With `last`, there are
        logits of the last position of the target only, (B, 1, V).
        """
        named = self.check_inputs(
            {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": decoder_input_ids,
             "decoder_attention_mask": decoder_attention_mask, **inputs}
        )  # fmt: skip
        if decoder_input_ids is None:
            raise ValueError("this model needs decoder_input_ids: the answer so far, beginning with the id begin_id")
        target = self.entrances()[-1]
        read = None if state is not None and self._heard(state).inner is not None else self._read(named)
        given = next((n for n in named if not n.startswith(self.target)), None)
        if read is None and given is not None:
            raise ValueError(f"the state has read its passages already; leave {given} out, or start a new state")
        _, flow = self.begin(target, named, None, state, causal=True)
        slot = Heard(0) if state is None else self._heard(state)
        rows, count = decoder_input_ids.shape
        if read is None:
            sources, scores = dict[str, Tensor](), None
        else:
            sources, scores, prior = read
            inner = None if state is None else self.generator.start(rows * prior.shape[1], slot.room)
            slot.begin(inner, prior)
        passages = slot.prior.shape[1]
        keep = flow.keep_now(count)
        target_mask = None if keep is None else keep.repeat_interleave(passages, 0)
        with in_pieces(None):  # the mixture needs all scores
            out = self.generator(
                **sources,
                decoder_input_ids=decoder_input_ids.repeat_interleave(passages, 0),  # (B K, T)
                decoder_attention_mask=target_mask,
                state=slot.inner,
            )
        assert out.logits is not None and out.hidden is not None
        each, hidden = (t.unflatten(0, (rows, passages)) for t in (out.logits, out.hidden))  # (B, K, T, V), (… D)
        log = wide(each).log_softmax(-1)
        weights = self.weigh(log, decoder_input_ids, hidden, flow, slot)  # (B, K, T)
        mixed = (weights[..., None] + log).logsumexp(1).to(each.dtype)  # (B, T, V)
        mean = (weights.exp()[..., None].to(hidden.dtype) * hidden).sum(1)
        beside = {"posterior": weights.transpose(1, 2).to(each.dtype), "passages": each.transpose(1, 2)}
        beside |= {} if scores is None else {"scores": scores.to(each.dtype)}
        return Output(
            mean, mixed[:, -1:] if last else mixed, aux=out.aux, keep=keep, figures=out.figures, beside=beside
        )

    def weigh(self, log: Tensor, ids: Tensor, hidden: Tensor, flow: Flow, slot: Heard) -> Tensor:
        """The log of the weight of each passage at each word, (B, K, T): here the same at all of them."""
        return slot.prior[..., None].expand(log.shape[:3])

    def encode(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **inputs: Tensor | None
    ) -> Tensor:
        """Hidden states (B, Q, D) of the question's encoder."""
        return self.question.encode(input_ids, attention_mask, **inputs)

    def asked(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The vectors of questions, (B, E), of any length."""
        return vector_of(self.question(input_ids, attention_mask))

    def written(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The vectors of passages by the encoder that learns with the model, (N, E)."""
        assert self.document is not None
        return vector_of(self.document(input_ids, attention_mask))

    def _heard(self, state: State) -> Heard:
        return Flow(torch.empty(0), state=state).slot(self)

    def _read(self, named: Inputs) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The inputs of the generator's encoder, scores (B, K), and the log of p(passage | question)."""
        self.entrances()[0].given(named)
        ids, mask, vectors = self._passages(named, named["input_ids"].shape[0])
        asked = vector_of(self.question(**{n: v for n, v in named.items() if n in self.question.inputs()}))
        scores = torch.einsum("be,bke->bk", wide(asked), wide(vectors))
        there = mask.any(-1)
        prior = scores.masked_fill(~there, torch.finfo(scores.dtype).min / 4).log_softmax(-1)
        return {"input_ids": ids.flatten(0, 1), "attention_mask": mask.flatten(0, 1).long()}, scores, prior

    def _passages(self, named: Inputs, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Texts (B, K, S) with their masks, and vectors (B, K, E).

        Raises:
            ValueError: naming the tensor, if one is missing, or their shapes do not fit.
        """
        for name, read in self.inputs().items():
            if read.required and not name.startswith(self.target) and name not in named:
                raise ValueError(
                    f"this model reads {name} of shape {read}: the passages of each question; `know.reader` makes "
                    "them, and `anyformer ask INDEX QUESTION --model RAG` asks it"
                )
        ids = named[f"{CONTEXT}input_ids"]
        if ids.ndim != 3 or ids.shape[0] != rows:
            raise ValueError(f"{CONTEXT}input_ids must be ({rows}, passages, words), got {tuple(ids.shape)}")
        mask = self._mask(named, CONTEXT, ids)
        if self.document is None:
            vectors, wanted = named[VECTORS], (*ids.shape[:2], self.vector_width)
            if vectors.shape != wanted:
                raise ValueError(f"{VECTORS} must be {wanted}, one vector a passage, got {tuple(vectors.shape)}")
            return ids, mask, vectors
        words = named[f"{DOCUMENT}input_ids"]
        if words.ndim != 3 or words.shape[:2] != ids.shape[:2]:
            raise ValueError(f"{DOCUMENT}input_ids must be {(*ids.shape[:2], 'words')}, got {tuple(words.shape)}")
        real = self._mask(named, DOCUMENT, words)
        vectors = self.written(words.flatten(0, 1), real.flatten(0, 1).long())
        return ids, mask, vectors.unflatten(0, words.shape[:2])

    def _mask(self, named: Inputs, prefix: str, ids: Tensor) -> Tensor:
        mask = named.get(f"{prefix}attention_mask")
        if mask is None:
            return torch.ones_like(ids, dtype=torch.bool)
        if mask.shape != ids.shape:
            raise ValueError(f"{prefix}attention_mask must be {tuple(ids.shape)}, got {tuple(mask.shape)}")
        return flags(f"{prefix}attention_mask", mask)


class RagSequence(RagToken):
    """A generator of answers that follow from one passage each, which is not known (Lewis et al., 2020):

    ```
    p(y | x) = sum_z p(z | x) prod_t p(y_t | x, z, y_<t)
    ```
    Written word by word this is a `RagToken` whose weights of passages follow from what was said:

    ```
    p(y_t | x, y_<t) = sum_z p(z | x, y_<t) p(y_t | x, z, y_<t)
    p(z | x, y_<t) ~ p(z | x) prod_s<t p(y_s | x, z, y_<s)
    ```
    so the sum of the log-probabilities of an answer's words is exactly that of the answer.

    Args: those of `RagToken`.
    """

    one_passage = True

    def weigh(self, log: Tensor, ids: Tensor, hidden: Tensor, flow: Flow, slot: Heard) -> Tensor:
        count = ids.shape[1]
        before = log[:, :, :-1]  # (B, K, T - 1, V): where the words of this call were scored
        if slot.hidden.shape[2]:
            last = self.generator.head(slot.hidden[:, :, -1:].flatten(0, 1), flow).unflatten(0, log.shape[:2])
            before = torch.cat((wide(last).log_softmax(-1), before), 2)
        words = ids[:, None, count - before.shape[2] :, None].expand(*before.shape[:3], 1)
        said = before.gather(-1, words)[..., 0]
        said = torch.cat((said.new_zeros(*said.shape[:2], count - said.shape[2]), said), 2)  # the first one was given
        if (keep := flow.keep) is not None:
            pairs = keep & torch.cat((keep[:, :1], keep[:, :-1]), 1)  # (B, L): it and the one before are real
            said = said.masked_fill(~pairs[:, None, -count:], 0.0)
        slot.add(said, hidden)
        return (slot.prior[..., None] + slot.said.cumsum(2)).log_softmax(1)[:, :, -count:]


def wide(x: Tensor) -> Tensor:
    """In float32 at least: logarithms of half precision have three digits."""
    return x if x.dtype == torch.float64 else x.float()


def vector_of(out: Output) -> Tensor:
    """The vectors of a batch, (B, E): the first head's, or the pooled ones."""
    vector = out.pooled if out.logits is None else out.logits
    assert vector is not None, "an encoder of questions has a pool"
    return vector


def width_of(model: Any) -> int:
    """E of such an encoder."""
    head = next(iter(model.heads.values()), None)
    return model.width if head is None else head.proj.out_features
