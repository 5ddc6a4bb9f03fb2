"""Packing of documents into rows of T positions: little is wasted, nothing is lost, and no document sees another.

```
pairs       aaaaa  bb  cccc  d                          of four documents; T = 6
fit         aaaaad  ccccbb                              whole documents, in the fullest row with enough room
split       aaaaab  bccccd                              one after another, cut where a row is full
            000001  011112   document_ids               0, 1, … within the row; -1 = padding
```
A document of n tokens has n - 1 pairs (token, next token), and a position of a row is one pair. So every pair of every
document is in exactly one row, and no label is a token of another document. Documents longer than T are cut first;
their pieces lose no pair, but do not see each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from anyformer.data.batches import Batch
from anyformer.data.order import shuffled

Style = Literal["fit", "split"]
EMPTY = {"input_ids": 0, "labels": -100, "document_ids": -1}  # values of padding


@dataclass(frozen=True, eq=False)
class Plan:
    """The assignment of pieces of the text to rows.

    Attributes:
        starts, lengths: of the pieces, in pairs, counted from the beginning of the text. (P,) int64.
        firsts: the index of each row's first piece, and P. (R + 1,) int64.
        context: T.
    """

    starts: np.ndarray
    lengths: np.ndarray
    firsts: np.ndarray
    context: int

    @property
    def size(self) -> int:
        """R, the number of rows."""
        return len(self.firsts) - 1

    @property
    def filled(self) -> float:
        """The share of positions that are not padding."""
        return float(self.lengths.sum() / max(1, self.size * self.context))


def plan(starts: np.ndarray, tokens: int, context: int, style: Style = "fit") -> Plan:
    """Packs the documents that begin at `starts`, (M,), of a text of `tokens` tokens.

    Memory: about 100 bytes a document.

    Raises:
        ValueError: for a context below 1, or when no document has two tokens.
    """
    if context < 1:
        raise ValueError(f"context must be at least 1, got {context}")
    starts = np.asarray(starts, np.int64)
    pairs = np.maximum(np.diff(starts, append=tokens) - 1, 0)  # (M,)
    if not pairs.any():
        raise ValueError("no document has two tokens, so there is no token to predict; use longer texts")
    offset = np.cumsum(pairs) - pairs  # pairs before each document
    # The position in the row at which a document begins: after the one before it, or at the beginning.
    lead = offset % context if style == "split" else np.zeros_like(offset)
    count = -(-(lead + pairs) // context) * (pairs > 0)  # pieces of each document
    owner = np.repeat(np.arange(len(pairs)), count)  # (P,)
    part = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)  # index of a piece in its document
    begin = np.maximum(part * context - lead[owner], 0)
    end = np.minimum((part + 1) * context - lead[owner], pairs[owner])
    begins, lengths = starts[owner] + begin, end - begin
    if style == "split":
        row = (offset[owner] + begin) // context
        firsts = np.searchsorted(row, np.arange(row[-1] + 2))
        return Plan(begins, lengths, firsts, context)
    order, firsts = _fit(lengths, context)
    return Plan(begins[order], lengths[order], firsts, context)


def _fit(lengths: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Best fit, the longest first: pieces in the order of their rows, and the first piece of each row and P.

    At most 11/9 of the fewest rows and one more (Johnson et al., 1974).
    """
    rows: list[list[int]] = []
    having: list[list[int]] = [[] for _ in range(context + 1)]  # rows by their free positions
    some = 0  # bit i: there are rows with i free positions
    order = np.argsort(-lengths, kind="stable")
    for piece, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        enough = some >> length << length
        room = (enough & -enough).bit_length() - 1 if enough else context  # the least room that is enough
        if enough:
            row = having[room].pop()
            some ^= (not having[room]) << room
            rows[row].append(piece)
        else:
            row = len(rows)
            rows.append([piece])
        if left := room - length:
            having[left].append(row)
            some |= 1 << left
    counts = np.array([len(row) for row in rows])
    return np.array([piece for row in rows for piece in row]), np.concatenate(([0], np.cumsum(counts)))


@dataclass(frozen=True, eq=False)
class Packed:
    """Rows of packed documents, each once in an epoch.

    Args:
        ids: the documents one after another, (N,).
        plan: of them.
        seed: of the order.
    """

    ids: np.ndarray
    plan: Plan
    seed: int = 0

    @property
    def size(self) -> int:
        """The number of rows in an epoch."""
        return self.plan.size

    def rows(self, first: int, count: int) -> Batch:
        """input_ids, labels (-100 at padding) and document_ids (-1 at padding), (count, T) each."""
        p = self.plan
        _, items = shuffled(first, count, p.size, self.seed)
        shape = (count, p.context)
        batch = {name: np.full(shape, empty) for name, empty in EMPTY.items()}
        for b, item in enumerate(items.tolist()):
            place = 0
            for number, piece in enumerate(range(p.firsts[item], p.firsts[item + 1])):
                start, length = int(p.starts[piece]), int(p.lengths[piece])
                here = (b, slice(place, place + length))
                batch["input_ids"][here] = self.ids[start : start + length]
                batch["labels"][here] = self.ids[start + 1 : start + length + 1]
                batch["document_ids"][here] = number
                place += length
        return {name: torch.from_numpy(value) for name, value in batch.items()}  # (B, T)
