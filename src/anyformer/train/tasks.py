"""Tasks: batches by number, what is learned, what is measured, and what must be beaten. Here: those on text.

B rows of a batch, T places, L tokens of a window, N examples, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from anyformer.data import corrupt, text
from anyformer.data.batches import Batch
from anyformer.data.corpus import Corpus, Order
from anyformer.data.order import Rows
from anyformer.data.store import Example
from anyformer.train import kinds, objectives
from anyformer.train.examples import taught
from anyformer.train.kinds import role
from anyformer.train.objectives import IGNORE, counted

Draw = Callable[[np.ndarray, np.random.Generator], Example]  # windows (n, L) -> an example
HELD_OUT = 256  # examples of a source, at most, on which a task on text is measured
SEED = 1 << 40  # of what is held out: the same in every run, and no run's own
LEARNED = 64  # batches from which a guess learns
WRONG, LABEL = "of labels wrong", "nats a label"


@dataclass(frozen=True, eq=False)
class Task:
    """What is trained on, and how well.

    Attributes:
        rows: what is trained on, by number.
        held_out: batch size -> what is never trained on, in batches.
        objective: what is learned. `loss`: what is measured; None: the share of wrong labels is. `unit`: in words.
        told: how much there is of it, in words. `notes`: what else a user should know.
        facts: what decides the numbers, for comparison when a run resumes.
        divisor: of the measured loss; by default the number of labels.
        guess: what is measured of a guess that looks at little, where it is known.
        size: examples of an epoch, where they are counted.
    """

    name: str
    rows: Rows
    held_out: Callable[[int], Iterator[Batch]]
    objective: Any
    loss: Any
    unit: str
    told: str
    facts: dict[str, Any]
    notes: tuple[str, ...] = field(default=())
    divisor: float | None = None
    guess: float | None = None
    size: int = 0

    @torch.no_grad()
    def measure(self, model: Any, batch: int) -> float:
        """On what is held out, lower is better: the mean loss of a label, or the share of wrong ones."""
        device, total, count = next(model.parameters()).device, 0.0, 0
        for given in self.held_out(batch):
            inputs = {name: value.to(device) for name, value in given.items()}
            labels = inputs.pop("labels")
            output = model(**inputs)
            if self.loss is None:
                total += int(((output.logits.argmax(-1) != labels) & (labels != IGNORE)).sum())
            else:
                labels = self._said(labels)
                total += float(self.loss(output, labels, 1.0))
            count += int(getattr(self.loss, "counted", counted)(labels))
        return total / (self.divisor or max(1, count))

    def baseline(self, batch: int) -> float:
        """The same of a guess; where it is not known, of one that looks at nothing: how often each label is, counted in
        what is trained on."""
        if self.guess is not None:
            return self.guess
        if guess := getattr(self.objective, "guess", None):
            every = [b["labels"] for b in self.held_out(batch)]
            return sum(map(guess, every)) / max(1, sum(int(counted(labels)) for labels in every))
        learned = torch.cat([self._said(self.rows.rows(i * batch, batch)["labels"]).flatten() for i in range(LEARNED)])
        wanted = torch.cat([self._said(b["labels"]).flatten() for b in self.held_out(batch)])
        learned, wanted = learned[learned != IGNORE], wanted[wanted != IGNORE]
        if wanted.is_floating_point():
            return float((wanted - learned.mean()).square().mean())
        counts = torch.bincount(learned, minlength=int(max(learned.max(), wanted.max())) + 1).double()
        if self.loss is None:
            return float((wanted != counts.argmax()).double().mean())
        return float(-((counts + 1) / (counts + 1).sum()).log()[wanted].mean())

    def _said(self, labels: torch.Tensor) -> torch.Tensor:
        """The labels of tokens alone, where those of pairs stand before them."""
        return labels[:, 1:] if isinstance(self.objective, objectives.MaskedAndNextSentence) else labels


def collate(examples: Sequence[Example], pad: int = 0) -> Batch:
    """Examples as a batch, padded on the right to the longest, with masks where anything is padded."""
    fill = {"labels": IGNORE, "token_type_ids": 0}
    batch: Batch = {}
    for name in examples[0]:
        values = [np.asarray(example[name]) for example in examples]
        if values[0].ndim == 3:  # an image
            batch[name] = torch.from_numpy(np.stack(values))  # (B, C, height, width)
            continue
        kind = torch.float32 if values[0].dtype.kind == "f" else torch.long
        if values[0].ndim == 0:
            batch[name] = torch.tensor([v.item() for v in values], dtype=kind)  # (B,)
            continue
        lengths, width = [len(v) for v in values], max(map(len, values))
        inner = values[0].shape[1:]
        batch[name] = torch.full((len(values), width, *inner), fill.get(name, pad), dtype=kind)  # (B, T, …)
        for row, value in zip(batch[name], values, strict=True):
            row[: len(value)] = torch.as_tensor(value.astype(np.float32 if kind.is_floating_point else np.int64))
        if name.endswith("input_ids") and min(lengths) < width:
            mask = name.replace("input_ids", "attention_mask")
            batch[mask] = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return batch


# ------------------------------------------------------------------------------------------------ text


def on_text(kind: str, model: Any, corpus: Corpus, order: Order, context: int, seed: int, bigram: float | None) -> Task:
    """A task on text, from its token cache.

    Args:
        order: of windows, see `Corpus.rows`. bigram: bits that bigrams need for a held-out byte; None for a tokenizer
            that loses a part of the text, which is measured by its own tokens.

    Raises:
        ValueError: for a text that is too short, an order that the task does not have, or a tokenizer without the
            tokens that it needs.
    """
    facts = {"corpus": corpus.fingerprint(), "rows": order}
    told = (
        f"{corpus.tokens:,} tokens to train on (vocabulary {model.tokenizer.vocab_size:,}), "
        f"{corpus.held_out_bytes:,} bytes held out"
    )
    if kind != "causal":
        return _corrupted(kind, model, corpus, order, context, seed, {"task": kind, **facts}, told)

    def held_out(batch: int) -> Iterator[Batch]:
        for ids in corpus.held_out():
            yield from text.sliding(ids, context, batch)

    loss, divisor = objectives.causal_lm, math.log(2) * corpus.held_out_bytes
    rows = corpus.rows(order, context, seed)
    if bigram is None:
        note = "the tokenizer loses a part of the text (case, spaces, letters that it has not), so bits per byte would "
        note += "count less than the text: nats a token are measured, which compare models of one tokenizer only"
        return Task(kind, rows, held_out, loss, loss, "nats a token", told, facts, (note,))
    return Task(kind, rows, held_out, loss, loss, "bits per byte", told, facts, divisor=divisor, guess=bigram)


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
    kind: str, model: Any, corpus: Corpus, order: Order, context: int, seed: int, facts: dict[str, Any], told: str
) -> Task:
    if context < 8:
        raise ValueError(f"context={context}: the task {kind} needs at least 8 tokens")
    if order == "packed":
        raise ValueError(f"rows=packed is for the task causal; {kind} reads windows: rows=drawn or rows=epochs")
    draw, length, take, objective, loss = {"masked": _masked, "span": _span, "denoise": _denoise}[kind](model, context)
    for part in corpus.parts:
        for what, ids in (("train on", part.train.ids), ("measure on", part.held_out.ids)):
            if len(ids) <= length * take:
                raise ValueError(
                    f"{part.name}: the text to {what} has {len(ids)} tokens, and the task {kind} with "
                    f"context={context} needs {length * take + 1}; give more text or a shorter context"
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

    return Task(kind, rows, held_out, objective, loss, LABEL, told, facts)


def _masked(model: Any, context: int) -> tuple[Draw, int, int, Any, Any]:
    """[CLS] text [SEP], or with a head for it [CLS] text [SEP] text [SEP], some of it hidden."""
    t = model.tokenizer
    cls, sep, mask = (role(t, "masked", f"{n}_token") for n in ("cls", "sep", "mask"))
    added = {i for i, token in t.core.get_added_tokens_decoder().items() if token.special}
    masking = corrupt.Masking(mask, t.vocab_size, tuple(sorted(added | {cls, sep, t.pad_id})))

    def alone(windows: np.ndarray, rng: np.random.Generator) -> Example:
        read, labels = masking(np.concatenate(([cls], windows[0], [sep])), rng)
        return {"input_ids": read, "labels": labels}

    def paired(windows: np.ndarray, rng: np.random.Generator) -> Example:
        found = corrupt.pair(windows[0], windows[1], rng)
        whole, types = found.joined(cls, sep)
        read, labels = masking(whole, rng)
        return {"input_ids": read, "token_type_ids": types, "labels": np.concatenate(([found.label], labels))}

    if "nsp" in model.heads:
        return paired, context - 3, 2, objectives.MaskedAndNextSentence(), objectives.masked_lm
    return alone, context - 2, 1, objectives.masked_lm, objectives.masked_lm


def _span(model: Any, context: int) -> tuple[Draw, int, int, Any, Any]:
    """T5: sources of `context` tokens, and the spans that are missing there."""
    end = role(model.tokenizer, "span", "eos_token")
    spans = corrupt.Spans(kinds.sentinels(model.tokenizer), end)

    def draw(windows: np.ndarray, rng: np.random.Generator) -> Example:
        return taught(*spans(windows[0], rng), model.begin_id)

    return draw, spans.room(context), 1, objectives.seq2seq, objectives.seq2seq


def _denoise(model: Any, context: int) -> tuple[Draw, int, int, Any, Any]:
    """BART: sentences in another order, spans that are one mask each; the target is the text."""
    t = model.tokenizer
    mask, end = role(t, "denoise", "mask_token"), role(t, "denoise", "eos_token")
    letters = ((i, (t.core.id_to_token(i) or "").rstrip("ĠĊ▁")) for i in range(t.vocab_size))
    stops = [i for i, token in letters if token.endswith((".", "!", "?"))]

    def draw(windows: np.ndarray, rng: np.random.Generator) -> Example:
        noisy = corrupt.infill(corrupt.permute(windows[0], stops, rng), mask, rng)[: context - 1]  # many empty spans
        return taught(np.append(noisy, end), np.append(windows[0], end), model.begin_id)

    return draw, context - 2, 1, objectives.seq2seq, objectives.seq2seq
