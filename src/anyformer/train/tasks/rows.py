"""Tasks on rows of tables, which are encoded once and then read by number."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyformer.data import corpus as corpora
from anyformer.data.batches import Batch
from anyformer.data.mixing import picked, shares
from anyformer.data.order import Rows, shuffled
from anyformer.data.pictures import below
from anyformer.data.records import Row
from anyformer.data.store import Example, Store
from anyformer.generate.answering import check_answers, widths
from anyformer.generate.seeing import prepared
from anyformer.hub.noising import words
from anyformer.hub.pooling import meaning
from anyformer.train import objectives
from anyformer.train.objectives import Matching
from anyformer.train.options import TrainOptions
from anyformer.train.sound_objectives import CTCLoss, MaskedContrast, SoundDistance
from anyformer.train.tasks import codes, composing, drawing, hiding, painting, registry, sounds, tables
from anyformer.train.tasks.base import SQUARED, WRONG, Task, collate
from anyformer.train.tasks.encode import RowEncoder
from anyformer.train.tasks.splits import Split, Subset, one_in_ten
from anyformer.train.tasks.tables import Table, listed

LOOKED = 10_000  # examples that are looked at to know which classes are held out
CHUNK = 1 << 16  # lengths that are looked at at once
LONGEST = 256


class TableData:
    """Rows of tables; one of each ten is held out."""

    def __init__(self, kind: str, options: TrainOptions):
        if options.order == "packed":
            raise ValueError(f"order=packed is for text, and {kind} reads each row once in an epoch; leave order out")
        self.kind, self.options, self.tables = kind, options, tables.read(options.data, options.fields)
        choices, has = registry.COLUMNS[kind], set(self.tables[0].columns())
        self.columns = next((c for c in choices if has.issuperset(c)), choices[0])
        self.names = tables.classes(self.tables, self.columns) if self.columns[-1] in ("label", "labels") else ()
        if kind in composing.TASKS:
            self.coder = composing.codec_at(options.codes)
            self.implied = composing.implied(kind, self.coder, self.columns, lambda: self._rows("codes"))
        else:
            self.coder = drawing.coder_of(options.codes) if kind == "draw" else None
            self.implied = {} if self.coder is None else drawing.implied(self.coder)
        if kind == "answer":
            self.implied = {"answers": len(self.names), "features": tables.width(self.tables[0], "features")}

    @property
    def longest(self) -> int:
        """Tokens of an example by default, if the model can read more; 0 for images."""
        short = (("image", "label"), ("image",), ("sound", "text"))
        return 0 if self.columns in short or self.kind in ("draw", *composing.TASKS) else LONGEST

    @property
    def classes(self) -> int:
        """Their number, or 0."""
        return self.options.clusters if self.kind == "units" else len(self.names)

    def words(self) -> Iterable[str] | None:
        """To make a tokenizer from; None if no column is text."""
        if not tables.has_text(self.columns):
            return None
        return corpora.beginning(tables.words(self.tables, self.columns), corpora.TOKENIZER_CHARACTERS)

    def task(self, model: Any, context: int | None) -> Task:
        """The task for a model."""
        options = self.options
        if self.kind == "ctc":
            sounds.check(model)
        if self.kind == "answer":
            check_answers(model)
        if self.kind == "reconstruct" and self.columns == ("sound",):
            codes.check_parallel(options.parallel, options.mesh)
        units = None
        if self.kind in ("contrast", "units"):
            hiding.check(model, self.kind)
        if self.kind == "units":
            units = hiding.learn(options.units, model, self._learned(), options.clusters, options.seed)
        if self.kind == "draw":
            model = drawing.with_coder(model, self.coder)
        if self.kind == "compose":
            model = composing.with_codec(model, self.coder, self.columns)
        limit = limit_of(self.kind, model, context)
        encoder = RowEncoder(self.kind, self.columns, model, self.names, limit, units=units, codec=self.coder)
        task = on_rows(encoder, self.tables, one_in_ten, options.seed, options.cache)
        if self.kind not in ("paint", "reconstruct", "ctc", "contrast"):
            check_head(model, task, self.names)
        if self.names:  # the names of the classes are kept with the model
            model.origin = {**(model.origin or {}), "classes": list(self.names)}
        return task

    def _rows(self, column: str) -> Iterator[Row]:
        for table in self.tables:
            yield from table.rows((column,))

    def _learned(self) -> list[Path]:
        """The sounds of the training part."""
        paths: list[Path] = []
        for table in self.tables:
            every = [below(table.source.root.absolute(), row["sound"], "sound") for row in table.rows(("sound",))]
            part = one_in_ten(table.source.name, len(every))[0]
            paths += [every[i] for i in part.of(np.arange(part.size)).tolist()]
        return paths


def limit_of(kind: str, model: Any, context: int | None) -> int:
    """The tokens of an example; of the task compose the steps of the decoder, 0 = any number."""
    if kind == "draw":
        return int(model.places)
    return (composing.steps_of(model, context) if kind == "compose" else context) or 0


@dataclass(frozen=True, eq=False)
class StoredExamples:
    """Some examples of a store, for a model. `pair`: two of the store are one."""

    store: Store
    places: Subset
    model: Any
    pair: bool

    def examples(self, items: np.ndarray) -> list[Example]:
        """Those examples, ready for a batch: images are decoded here."""
        places = self.places.of(items)
        each = np.stack((2 * places, 2 * places + 1), 1).ravel() if self.pair else places
        return [self._ready(self.store[i]) for i in each.tolist()]

    def _ready(self, example: Example) -> Example:
        rest = {name: value for name, value in example.items() if name not in ("path", "bytes")}
        if "visual_feats" in rest:  # stored as one list of numbers
            for name, width in widths(self.model).items():
                rest[name] = rest[name].reshape(-1, width)
            return rest | {"visual_attention_mask": np.ones(len(rest["visual_feats"]), np.int64)}
        if len(rest) == len(example):
            return example
        named = example.get("path")
        if "pixel_values" not in self.model.processed:
            return {**sounds.heard(self.model, Path(os.fsdecode(named.tobytes()))), **rest}  # type: ignore[union-attr]
        data = example["bytes"].tobytes() if named is None else Path(os.fsdecode(named.tobytes()))
        return {**prepared(self.model, data), **rest}

    def in_order(self, batch: int, pad: int) -> Iterator[Batch]:
        """Every example once, to measure: the longest first, so that little is padded; pairs and images as they are."""
        items = np.arange(self.places.size)
        if "input_ids" in self.store.fields and not self.pair and not self.model.across:
            items = np.argsort(-self.store.fields["input_ids"].lengths(self.places.of(items)), kind="stable")
        for first in range(0, len(items), batch):
            yield collate(self.examples(items[first : first + batch]), pad)


@dataclass(frozen=True, eq=False)
class TableRows:
    """Rows of one or several parts by number: each example once in an epoch of its part, in an order of its own."""

    parts: tuple[StoredExamples, ...]
    weights: tuple[float, ...]
    seed: int
    pad: int

    def rows(self, first: int, count: int) -> Batch:
        """See `data.order.Rows`; two rows a pair."""
        each = 2 if self.parts[0].pair else 1
        by_place: dict[int, Example] = {}
        for part, (before, places) in zip(self.parts, picked(self.weights, self.seed, first, count), strict=True):
            examples = part.examples(shuffled(before, len(places), part.places.size, self.seed)[1])
            by_place |= dict(zip((places[:, None] * each + np.arange(each)).ravel().tolist(), examples, strict=True))
        return collate([by_place[i] for i in range(count * each)], self.pad)


def on_rows(
    encoder: RowEncoder,
    learn: Sequence[Table],
    held_out: Split | Sequence[Table],
    seed: int,
    cache: str | Path | None = None,
) -> Task:
    """A task on rows.

    Args:
        encoder: the task, the model, its classes.
        held_out: how to hold some of the rows out (`one_in_ten`, `random_share`), or other tables.

    Raises:
        ValueError: for rows that do not fit the task, the classes or the model, or with nothing to learn.
    """
    pair = encoder.task == "embed"
    parts: tuple[list[StoredExamples], list[StoredExamples]] = ([], [])
    notes: list[str] = []
    keys = []
    for table in [*learn, *([] if callable(held_out) else held_out)]:
        keys.append(table.key(encoder.columns))
        store = table.store(encoder, keys[-1], cache)
        notes += _notes(store, encoder)
        if not len(store):
            raise ValueError(
                f"{table.source.name}: no example has a label within {encoder.limit} tokens; use a longer context"
            )
        count = len(store) // (2 if pair else 1)
        if callable(held_out):
            for part, places in zip(parts, held_out(table.source.name, count), strict=True):
                part.append(StoredExamples(store, places, encoder.model, pair))
        else:
            parts[len(parts[0]) >= len(learn)].append(
                StoredExamples(store, Subset(count, lambda i: i), encoder.model, pair)
            )
    pad = encoder.model.tokenizer.pad_id if encoder.tokenized else 0
    mixed = tuple(table.weight for table in learn)
    rule = "drawn of ten" if held_out is one_in_ten else ""  # older runs held out others
    digest = hashlib.sha256(repr(keys).encode() + encoder.fingerprint().encode() + rule.encode()).hexdigest()[:16]
    facts = {"task": encoder.task, "examples": digest, "shares": shares(mixed).tolist(), "classes": list(encoder.names)}
    facts["held_out"] = [part.places.size for part in parts[1]]

    def measured(batch: int) -> Iterator[Batch]:
        for part in parts[1]:
            yield from part.in_order(batch, pad)

    sizes = [sum(part.places.size for part in half) for half in parts]
    objective, loss, unit = _objective(encoder)
    summary = f"{sizes[0]:,} examples, {sizes[1]:,} held out"
    if encoder.names:
        summary += f"; {listed(encoder.names)}"
        notes += _missing(encoder.names, parts[1])
    rows: Rows = TableRows(tuple(parts[0]), mixed, seed, pad)
    batches: Callable[[int], Iterator[Batch]] = measured
    if encoder.task == "paint":
        painting.check(encoder.model, encoder.names)
        facts["noising"] = words(encoder.model.noising)
        rows, batches = painting.prepared(rows, measured, encoder.model, seed)
    if encoder.task == "draw":
        rows, batches = drawing.prepared(rows, measured, encoder.model, seed)
    if encoder.task == "compose":
        rows, batches = composing.prepared(rows, measured, encoder.model, encoder.limit or None, seed)
    if encoder.task == "reconstruct":
        prepare = codes.sounds if encoder.columns == ("sound",) else codes.prepared
        rows, batches = prepare(rows, measured, encoder.model, seed)
    if encoder.task in ("contrast", "units"):
        among = hiding.DISTRACTORS if encoder.task == "contrast" else 0
        rows, batches = hiding.prepared(rows, measured, encoder.model, seed, among)
    about = (encoder.task, rows, batches, objective, loss, unit, summary, facts, tuple(notes))
    if encoder.task == "ctc":
        learned, out = (tuple(sounds.texts(half)) for half in parts)
        spelling, blank = encoder.model.tokenizer.decode, objective.blank
        return sounds.SpeechTask(*about, size=sizes[0], spelling=spelling, blank=blank, texts=(learned, out))
    return Task(*about, size=sizes[0])


def _objective(encoder: RowEncoder) -> tuple[Any, Any, str]:
    """Objective, measure (None: error rate) and its unit."""
    if encoder.task == "embed":
        pooling_of = (encoder.model.origin or {}).get("pooling", {})
        pairs = objectives.Contrastive(pooling=meaning(pooling_of).mode)
        return pairs, pairs, "nats a pair"
    if encoder.task == "match":
        return Matching(), Matching(), "nats a row"
    if encoder.task == "reconstruct" and encoder.columns == ("sound",):
        distance = SoundDistance(encoder.model.rate)
        return distance, distance, "of distance in samples and log-mels"
    if encoder.task == "reconstruct":
        return objectives.reconstruction, objectives.reconstruction, SQUARED
    if encoder.task == "ctc":
        return CTCLoss(sounds.check(encoder.model)), None, sounds.UNIT
    if encoder.task == "contrast":
        return MaskedContrast(), MaskedContrast(), "nats a hidden frame"
    if encoder.task == "units":
        return objectives.masked_lm, None, "of the hidden frames get a wrong unit"
    if encoder.task == "paint":
        return objectives.regression, objectives.regression, SQUARED
    if encoder.task in ("write", "seq2seq", "caption", "draw", *composing.TASKS):
        tokens = objectives.causal_lm if encoder.task != "seq2seq" else objectives.seq2seq
        return tokens, tokens, f"nats a {'code' if encoder.task in ('draw', *composing.TASKS) else 'token'}"
    return objectives.classification, None, WRONG


def _notes(store: Store, encoder: RowEncoder) -> list[str]:
    """Notes on examples that were cut or left out."""
    names = [name for name in ("input_ids", "decoder_input_ids") if name in store.fields]
    cut, dropped, limit, notes = 0, store.seen - len(store), encoder.limit, []
    for first in range(0, len(store) if names else 0, CHUNK):
        numbers = np.arange(first, min(first + CHUNK, len(store)))
        cut += int(np.any([store.fields[name].lengths(numbers) >= limit for name in names], axis=0).sum())
    if cut:
        notes.append(f"{cut} of {store.seen} examples are cut to {limit} tokens; see context")
    if dropped:
        notes.append(f"{dropped} examples are left out: they have no label within {limit} tokens")
    return notes


def _missing(names: Sequence[str], held_out: Sequence[StoredExamples]) -> list[str]:
    """A note about classes that nothing held out has."""
    left, looked = set(range(len(names))), 0
    for part in held_out:
        for place in part.places.of(np.arange(min(part.places.size, LOOKED - looked))).tolist():
            left.difference_update(np.atleast_1d(part.store[place]["labels"]).tolist())
            looked += 1
            if not left:
                return []
    if looked == LOOKED:
        return []
    listed_labels = ", ".join(names[i] for i in sorted(left)[:8])
    return [
        f"no held-out example has the label {listed_labels}{', …' if len(left) > 8 else ''}: they are not evaluated"
    ]


@torch.no_grad()
def check_head(model: Any, task: Task, names: tuple[str, ...]) -> None:
    """Raises ValueError for a model whose head does not fit the labels."""
    batch = next(iter(task.held_out(1)))
    device, labels = next(model.parameters()).device, batch.pop("labels")
    logits = model(**{name: value.to(device) for name, value in batch.items()}).logits
    if logits is None or logits.shape[:-1] != labels.shape:
        shape = "nothing" if logits is None else str(tuple(logits.shape))
        raise ValueError(
            f"the model has no head for the task {task.name}: it returns {shape} for {tuple(labels.shape)}"
        )
    if names and logits.shape[-1] != len(names):
        raise ValueError(f"the data has {len(names)} classes, the model's head {logits.shape[-1]}")
