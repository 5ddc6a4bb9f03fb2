"""Tasks on rows: tables are read once into examples on disk (`data.store`), and then by number. N of a store."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyformer.data import pictures, tables
from anyformer.data.batches import Batch
from anyformer.data.corpus import weights
from anyformer.data.mixing import picked, shares
from anyformer.data.order import permuted, shuffled
from anyformer.data.records import Row, Source, find, fingerprint, records
from anyformer.data.store import Example, Store, stored
from anyformer.hub.pooling import meaning
from anyformer.train import objectives
from anyformer.train.examples import Encoder
from anyformer.train.kinds import PICTURED
from anyformer.train.matching import Matching
from anyformer.train.tasks import WRONG, Task, collate

EVERY = 10  # one row of so many is held out
LOOKED = 10_000  # examples that are looked at to know which classes are held out
CHUNK = 1 << 16  # lengths that are looked at at once
Cut = Callable[[str, int], tuple["Places", "Places"]]


@dataclass(frozen=True)
class Table:
    """One source of rows, begun again whenever it is read; images of a folder are named and not opened."""

    source: Source
    fields: dict[str, str]
    weight: float = 1.0

    def columns(self) -> tuple[str, ...]:
        """Those of the first row.

        Raises:
            ValueError: if there is none. Others: see `records`.
        """
        first = next(self.rows(()), None)
        if first is None:
            raise ValueError(f"{self.source.name} holds no examples")
        return tuple(first)

    def rows(self, need: Sequence[str]) -> Iterator[Row]:
        """All rows, each with what it needs; of a Parquet file no more than that is read."""
        if self.source.kind != "images":
            fields = {ours: theirs for ours, theirs in self.fields.items() if ours in need} or self.fields
            if self.source.kind == "parquet" and not fields:
                fields = {name: name for name in need}
            yield from records(self.source, fields, need)
            return
        for path, name in zip(self.source.files, tables.classes(self.source.root, self.source.files), strict=True):
            yield {"image": path.relative_to(self.source.root), "label": name}

    def key(self, columns: tuple[str, ...]) -> str:
        """Equal for equal rows. Of a folder of images it knows names and sizes, not what is in them."""
        if self.source.kind == "images":
            said = [(str(f.relative_to(self.source.root)), f.stat().st_size) for f in self.source.files]
            return hashlib.sha256(json.dumps(said).encode()).hexdigest()
        if self.source.files:
            return fingerprint(self.source, self.fields)
        digest = hashlib.sha256()
        for row in self.rows(columns):  # a published data set
            for name in columns:
                value = pictures.content(row[name]) if name == "image" else repr(row[name]).encode("utf-8", "replace")
                digest.update(f"{name} {len(value)} ".encode() + value)
        return digest.hexdigest()

    def store(self, encoder: Encoder, key: str, cache: str | Path | None) -> Store:
        """Its examples, encoded now or before."""
        root = self.source.root.absolute()
        encoder = Encoder(encoder.task, encoder.columns, encoder.model, encoder.names, encoder.limit, root)

        def examples() -> Iterator[Example | None]:
            return encoder.all(self.rows(encoder.columns), self.source.name)

        images = encoder.task in PICTURED  # where they lie is a part of what is stored
        return stored(examples, f"{key} {root if images else ''} {encoder.told()}", cache)


def read(data: Any, fields: dict[str, str] | None) -> list[Table]:
    """The tables of `data`: a source, or several with weights, see `data.corpus.weights`."""
    wanted = weights(data)
    shares(tuple(wanted.values()))
    return [Table(find(name), dict(fields or {}), weight) for name, weight in wanted.items()]


def classes(tables: Sequence[Table], columns: tuple[str, ...]) -> tuple[str, ...]:
    """The names of all classes in the last of these columns, sorted, numbers as numbers. A class is its text: 1 and "1"
    are one, "7" and "007" two.

    Raises:
        ValueError: if there is one only.
    """
    found: set[str] = set()
    for table in tables:
        for row in table.rows(columns[-1:]):
            label = row[columns[-1]]
            found.update(map(str, label if isinstance(label, list) else [label]))
    if len(found) < 2:
        said = ", ".join(map(repr, found))
        raise ValueError(
            f"the rows have one class only: every one has the label {said}; there is nothing to tell apart"
        )
    return tuple(sorted(found, key=_place))


def _place(name: str) -> tuple[bool, float, str]:
    """Where a class stands: numbers first, by their size."""
    number = re.fullmatch(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", name, re.ASCII | re.IGNORECASE)
    return number is None, float(name) if number else 0.0, name


def listed(names: Sequence[str]) -> str:
    """How many classes there are, and which, for a reader; and a word about labels that are scores."""
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    scores = all(not _place(name)[0] for name in names) and any(float(name) % 1 for name in names)
    more = "; each number is a class of its own: there is no regression here" if scores else ""
    return f"{len(names)} classes: {shown}{more}"


def words(tables: Sequence[Table], columns: tuple[str, ...]) -> Iterator[str]:
    """All text of the rows that `tenth` does not hold out, for a tokenizer."""
    told = [name for name in columns if name not in ("label", "labels", "image")]
    for table in tables:
        every = iter(table.rows(columns))
        for number in itertools.count():
            block = list(itertools.islice(every, EVERY))
            if not block:
                break
            del block[int(_drawn(np.array(number), np.array(len(block))))]
            for value in (row[name] for row in block for name in told):
                yield " ".join(map(str, value)) if isinstance(value, list) else str(value)


@dataclass(frozen=True)
class Places:
    """Some of the examples of a table: `size` of them, and where the i-th is, (n,) -> (n,)."""

    size: int
    of: Callable[[np.ndarray], np.ndarray]


def tenth(name: str, count: int) -> tuple[Places, Places]:
    """All but one of each ten in a row to learn from, and those to hold out: of sorted classes, some of each; as the
    one is drawn, of classes that take turns, too."""
    _two(name, count)

    def out(block: np.ndarray) -> np.ndarray:
        return block * EVERY + _drawn(block, np.minimum(EVERY, count - block * EVERY))

    def learn(i: np.ndarray) -> np.ndarray:
        block = i // (EVERY - 1)
        place = i + block
        return place + (place >= out(block))

    held_out = -(-count // EVERY)
    return Places(count - held_out, learn), Places(held_out, out)


def _drawn(block: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Which one of a block of so many is held out: the same in every run (SplitMix64 of the block's number)."""
    with np.errstate(over="ignore"):
        x = (block.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) % size.astype(np.uint64)).astype(np.int64)


def share(part: float, seed: int) -> Cut:
    """Draws a part of the examples to hold out, for the seed; at least one, and not all."""

    def cut(name: str, count: int) -> tuple[Places, Places]:
        _two(name, count)
        out = min(max(1, round(part * count)), count - 1)
        return Places(count - out, lambda i: permuted(i + out, count, seed)), Places(
            out, lambda i: permuted(i, count, seed)
        )

    return cut


def _two(name: str, count: int) -> None:
    if count < 2:
        raise ValueError(
            f"{name}: there must be at least 2 rows with something to learn, one to learn from and one to hold out; "
            f"got {count}"
        )


@dataclass(frozen=True, eq=False)
class Part:
    """Some examples of a store, for a model. `pair`: two of the store are one."""

    store: Store
    places: Places
    model: Any
    pair: bool

    def examples(self, items: np.ndarray) -> list[Example]:
        """Those examples, ready for a batch: images are decoded here."""
        places = self.places.of(items)
        each = np.stack((2 * places, 2 * places + 1), 1).ravel() if self.pair else places
        return [self._ready(self.store[i]) for i in each.tolist()]

    def _ready(self, example: Example) -> Example:
        rest = {name: value for name, value in example.items() if name not in ("path", "bytes")}
        if len(rest) == len(example):
            return example
        named = example.get("path")
        data = example["bytes"].tobytes() if named is None else Path(os.fsdecode(named.tobytes()))
        return {"pixel_values": self.model.processor.values(data), **rest}

    def in_order(self, batch: int, pad: int) -> Iterator[Batch]:
        """Every example once, to measure: the longest first, so that little is padded; pairs and images as they are."""
        items = np.arange(self.places.size)
        if "input_ids" in self.store.fields and not self.pair and not self.model.across:
            items = np.argsort(-self.store.fields["input_ids"].lengths(self.places.of(items)), kind="stable")
        for first in range(0, len(items), batch):
            yield collate(self.examples(items[first : first + batch]), pad)


@dataclass(frozen=True, eq=False)
class Taught:
    """Rows of one or several parts by number: each example once in an epoch of its part, in an order of its own."""

    parts: tuple[Part, ...]
    weights: tuple[float, ...]
    seed: int
    pad: int

    def rows(self, first: int, count: int) -> Batch:
        """See `data.order.Rows`; two rows a pair."""
        each = 2 if self.parts[0].pair else 1
        found: dict[int, Example] = {}
        for part, (before, places) in zip(self.parts, picked(self.weights, self.seed, first, count), strict=True):
            examples = part.examples(shuffled(before, len(places), part.places.size, self.seed)[1])
            found |= dict(zip((places[:, None] * each + np.arange(each)).ravel().tolist(), examples, strict=True))
        return collate([found[i] for i in range(count * each)], self.pad)


def on_rows(
    encoder: Encoder,
    learn: Sequence[Table],
    held_out: Cut | Sequence[Table],
    seed: int,
    cache: str | Path | None = None,
) -> Task:
    """A task on rows.

    Args:
        encoder: the task, the model, its classes.
        held_out: how to hold some of the rows out (`tenth`, `share`), or other tables.

    Raises:
        ValueError: for rows that do not fit the task, the classes or the model, or with nothing to learn.
    """
    pair = encoder.task == "embed"
    parts: tuple[list[Part], list[Part]] = ([], [])
    notes: list[str] = []
    keys = []
    for table in [*learn, *([] if callable(held_out) else held_out)]:
        keys.append(table.key(encoder.columns))
        store = table.store(encoder, keys[-1], cache)
        notes += _notes(store, encoder)
        if not len(store):
            raise ValueError(
                f"{table.source.name}: within {encoder.limit} tokens no example has anything to learn; give a longer "
                "context"
            )
        count = len(store) // (2 if pair else 1)
        if callable(held_out):
            for part, places in zip(parts, held_out(table.source.name, count), strict=True):
                part.append(Part(store, places, encoder.model, pair))
        else:
            parts[len(parts[0]) >= len(learn)].append(Part(store, Places(count, lambda i: i), encoder.model, pair))
    pad = encoder.model.tokenizer.pad_id if encoder.task != "images" else 0
    mixed = tuple(table.weight for table in learn)
    rule = "drawn of ten" if held_out is tenth else ""  # older runs held out others
    digest = hashlib.sha256(repr(keys).encode() + encoder.told().encode() + rule.encode()).hexdigest()[:16]
    facts = {"task": encoder.task, "examples": digest, "shares": shares(mixed).tolist(), "classes": list(encoder.names)}
    facts["held_out"] = [part.places.size for part in parts[1]]

    def measured(batch: int) -> Iterator[Batch]:
        for part in parts[1]:
            yield from part.in_order(batch, pad)

    sizes = [sum(part.places.size for part in half) for half in parts]
    objective, loss, unit = _objective(encoder)
    told = f"{sizes[0]:,} examples, {sizes[1]:,} held out"
    if encoder.names:
        told += f"; {listed(encoder.names)}"
        notes += _missing(encoder.names, parts[1])
    rows = Taught(tuple(parts[0]), mixed, seed, pad)
    return Task(encoder.task, rows, measured, objective, loss, unit, told, facts, tuple(notes), size=sizes[0])


def _objective(encoder: Encoder) -> tuple[Any, Any, str]:
    """What is learned, what is measured (None: wrong labels), in which unit."""
    if encoder.task == "embed":
        said = (encoder.model.origin or {}).get("pooling", {})
        pairs = objectives.Contrastive(pooling=meaning(said).mode)
        return pairs, pairs, "nats a pair"
    if encoder.task == "match":
        return Matching(), Matching(), "nats a row"
    if encoder.task in ("write", "seq2seq"):
        tokens = objectives.causal_lm if encoder.task == "write" else objectives.seq2seq
        return tokens, tokens, "nats a token"
    return objectives.classification, None, WRONG


def _notes(store: Store, encoder: Encoder) -> list[str]:
    """What was cut or left out."""
    names = [name for name in ("input_ids", "decoder_input_ids") if name in store.fields]
    cut, dropped, limit, notes = 0, store.seen - len(store), encoder.limit, []
    for first in range(0, len(store) if names else 0, CHUNK):
        numbers = np.arange(first, min(first + CHUNK, len(store)))
        cut += int(np.any([store.fields[name].lengths(numbers) >= limit for name in names], axis=0).sum())
    if cut:
        notes.append(f"{cut} of {store.seen} examples fill {limit} tokens: what comes after is cut; see context")
    if dropped:
        notes.append(f"{dropped} examples are left out: within {limit} tokens there is nothing to learn in them")
    return notes


def _missing(names: Sequence[str], held_out: Sequence[Part]) -> list[str]:
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
    said = ", ".join(names[i] for i in sorted(left)[:8])
    return [f"no held-out example has the label {said}{', …' if len(left) > 8 else ''}: it is not measured"]


@torch.no_grad()
def check_head(model: Any, task: Task, names: tuple[str, ...]) -> None:
    """Raises ValueError for a model whose head does not fit the labels."""
    batch = next(iter(task.held_out(1)))
    device, labels = next(model.parameters()).device, batch.pop("labels")
    logits = model(**{name: value.to(device) for name, value in batch.items()}).logits
    if logits is None or logits.shape[:-1] != labels.shape:
        shape = "nothing" if logits is None else str(tuple(logits.shape))
        raise ValueError(f"the model has no head for the task {task.name}: it gives {shape} for {tuple(labels.shape)}")
    if names and logits.shape[-1] != len(names):
        raise ValueError(f"the data has {len(names)} classes, the model's head {logits.shape[-1]}")
