"""Tasks on text: causal, masked (BERT), span (T5) and denoise (BART). L tokens of a window."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from anyformer.data import corpus as corpora
from anyformer.data import corrupt, text
from anyformer.data.batches import Batch
from anyformer.data.corpus import Corpus, Order
from anyformer.data.order import Rows
from anyformer.data.store import Example
from anyformer.train import objectives
from anyformer.train.options import TrainOptions
from anyformer.train.tasks import registry
from anyformer.train.tasks.base import LABEL, Task, collate
from anyformer.train.tasks.encode import teacher_forced
from anyformer.train.tasks.registry import hiding, role

Draw = Callable[[np.ndarray, np.random.Generator], Example]  # windows (n, L) -> an example
HELD_OUT = 256  # examples of a source, at most, on which a task on text is measured
SEED = 1 << 40  # of held-out examples: the same in every run
LONGEST = 256  # tokens of a window, by default, if the model can read more


def on_text(kind: str, model: Any, corpus: Corpus, order: Order, context: int, seed: int, bigram: float | None) -> Task:
    """A task on text, from its token cache.

    Args:
        order: of windows, see `Corpus.rows`. bigram: bits that bigrams need for a held-out byte; None for a tokenizer
            that loses a part of the text, which is measured by its own tokens.

    Raises:
        ValueError: for a text that is too short, an order that the task does not have, or a tokenizer without the
            tokens that it needs.
    """
    facts = {"corpus": corpus.fingerprint(), "order": order}
    summary = (
        f"{corpus.tokens:,} tokens to train on (vocabulary {model.tokenizer.vocab_size:,}), "
        f"{corpus.held_out_bytes:,} bytes held out"
    )
    if kind != "causal":
        return _corrupted(kind, model, corpus, order, context, seed, {"task": kind, **facts}, summary)

    def held_out(batch: int) -> Iterator[Batch]:
        for ids in corpus.held_out():
            yield from text.sliding(ids, context, batch)

    loss, divisor = objectives.causal_lm, math.log(2) * corpus.held_out_bytes
    rows = corpus.rows(order, context, seed)
    if bigram is None:
        note = "the tokenizer loses a part of the text (case, spaces, unknown letters), so bits per byte would "
        note += "count less than the text: nats a token are measured, which compare models of one tokenizer only"
        return Task(kind, rows, held_out, loss, loss, "nats a token", summary, facts, (note,))
    return Task(kind, rows, held_out, loss, loss, "bits per byte", summary, facts, divisor=divisor, guess=bigram)


@dataclass(frozen=True, eq=False)
class Corrupted:
    """Examples by number that are made of windows by number, each with random numbers of its own.

    Args:
        windows: rows of L tokens. `take`: how many make an example. `pad`: fills rows. `seed`: of what is drawn.
    """

    windows: Rows
    take: int
    draw: Draw
    pad: int
    seed: int

    def rows(self, first: int, count: int) -> Batch:
        """See `data.order.Rows`."""
        ids = self.windows.rows(first * self.take, count * self.take)["input_ids"].numpy()
        ids = ids.reshape(count, self.take, -1)
        return collate([self.draw(ids[i], corrupt.generator(self.seed, first + i)) for i in range(count)], self.pad)


def _corrupted(
    kind: str, model: Any, corpus: Corpus, order: Order, context: int, seed: int, facts: dict[str, Any], summary: str
) -> Task:
    if context < 8:
        raise ValueError(f"context={context}: the task {kind} needs at least 8 tokens")
    if order == "packed":
        raise ValueError(f"order=packed is for the task causal; {kind} reads windows: order=random or order=epochs")
    draw, length, take, objective, loss = {"masked": _masked, "span": _span, "denoise": _denoise}[kind](model, context)
    for part in corpus.parts:
        for purpose, ids in (("train on", part.train.ids), ("measure on", part.held_out.ids)):
            if len(ids) <= length * take:
                raise ValueError(
                    f"{part.name}: the text to {purpose} has {len(ids)} tokens, and the task {kind} with "
                    f"context={context} needs {length * take + 1}; use more text or a shorter context"
                )
    pad = model.tokenizer.pad_id
    rows = Corrupted(corpus.rows(order, length, seed), take, draw, pad, seed)

    def held_out(batch: int) -> Iterator[Batch]:
        for part in corpus.parts:
            ids = part.held_out.ids
            measured = Corrupted(text.Windows(ids, 1, length, SEED), take, draw, pad, SEED)
            some = min(HELD_OUT, max(16, len(ids) // length))
            for first in range(0, some, batch):
                yield measured.rows(first, min(batch, some - first))

    return Task(kind, rows, held_out, objective, loss, LABEL, summary, facts)


def _masked(model: Any, context: int) -> tuple[Draw, int, int, Any, Any]:
    """[CLS] text [SEP], or with a head for it [CLS] text [SEP] text [SEP], some of it hidden."""
    t = model.tokenizer
    cls, sep, mask = hiding(t)
    added = {i for i, token in t.core.get_added_tokens_decoder().items() if token.special}
    masking = corrupt.Masking(mask, t.vocab_size, tuple(sorted(added | {cls, sep, t.pad_id})))

    def alone(windows: np.ndarray, rng: np.random.Generator) -> Example:
        read, labels = masking(np.concatenate(([cls], windows[0], [sep])), rng)
        return {"input_ids": read, "labels": labels}

    def paired(windows: np.ndarray, rng: np.random.Generator) -> Example:
        pair = corrupt.pair(windows[0], windows[1], rng)
        whole, types = pair.joined(cls, sep)
        read, labels = masking(whole, rng)
        return {"input_ids": read, "token_type_ids": types, "labels": np.concatenate(([pair.label], labels))}

    if "nsp" in model.heads:
        return paired, context - 3, 2, objectives.MaskedAndNextSentence(), objectives.masked_lm
    return alone, context - 2, 1, objectives.masked_lm, objectives.masked_lm


def _span(model: Any, context: int) -> tuple[Draw, int, int, Any, Any]:
    """T5: sources of `context` tokens, and the spans that are missing there."""
    end = role(model.tokenizer, "span", "eos_token")
    spans = corrupt.Spans(registry.sentinels(model.tokenizer), end)

    def draw(windows: np.ndarray, rng: np.random.Generator) -> Example:
        return teacher_forced(*spans(windows[0], rng), model.begin_id)

    return draw, spans.room(context), 1, objectives.seq2seq, objectives.seq2seq


def _denoise(model: Any, context: int) -> tuple[Draw, int, int, Any, Any]:
    """BART: sentences in another order, spans that are one mask each; the target is the text."""
    t = model.tokenizer
    mask, end = role(t, "denoise", "mask_token"), role(t, "denoise", "eos_token")
    letters = ((i, (t.core.id_to_token(i) or "").rstrip("ĠĊ▁")) for i in range(t.vocab_size))
    stops = [i for i, token in letters if token.endswith((".", "!", "?"))]

    def draw(windows: np.ndarray, rng: np.random.Generator) -> Example:
        noisy = corrupt.infill(corrupt.permute(windows[0], stops, rng), mask, rng)[: context - 1]  # many empty spans
        return teacher_forced(np.append(noisy, end), np.append(windows[0], end), model.begin_id)

    return draw, context - 2, 1, objectives.seq2seq, objectives.seq2seq


class TextData:
    """Data of texts, see `data.corpus`."""

    classes, longest = 0, LONGEST
    implied: ClassVar[dict[str, Any]] = {}  # hyperparameters that the data decide

    def __init__(self, kind: str, options: TrainOptions):
        self.kind, self.options = kind, options
        self.texts = corpora.read(options.data, options.fields, options.cache)

    def words(self) -> Iterator[str]:
        """To make a tokenizer from."""
        return corpora.learn(self.texts)

    def task(self, model: Any, context: int | None) -> Task:
        """The task for a model."""
        options = self.options
        # a tokenizer that loses letters has less to say than the bytes that it would be measured by
        bigram = corpora.bigram(self.texts) if corpora.comes_back(model.tokenizer, self.texts) else None
        corpus = corpora.Corpus.of(model.tokenizer, self.texts, options.cache)
        return on_text(self.kind, model, corpus, options.order, context or LONGEST, options.seed, bigram)
