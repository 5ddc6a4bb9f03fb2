"""Text to token ids, split into a training and a held-out part. T tokens of a window, B rows of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anyformer.data import cache, files, order, records
from anyformer.data.batches import Batch
from anyformer.hub.text.tokenizer import Tokenizer

HELD_OUT = 0.1  # the share of a text, its end, that is never trained on
HELD_OUT_BYTES = 1_000_000  # the most held-out bytes: evaluation should take seconds


def read(source: str | Path = "pydoc", fields: Mapping[str, str] | None = None) -> str:
    """The text of a file, of all files in a folder, or of "pydoc", which every machine has; as one string.

    Tables give the column `text`, or the one that `fields` maps to it. Files of a folder are sorted by path; hidden and
    blank ones are left out; an empty line separates two.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if a file is not UTF-8 (naming it and the byte), or there is no text at all.
    """
    documents: list[list[str]] = []
    for number, piece in records.texts(source, fields):
        documents.extend([] for _ in range(number + 1 - len(documents)))
        documents[number].append(piece)
    return "\n\n".join(map("".join, documents))


def split(text: str) -> tuple[str, str]:
    """The training part and the held-out part: the last tenth of the characters, at most about `HELD_OUT_BYTES`."""
    at = cut(len(text))
    return text[:at], text[at:]


def cut(characters: int) -> int:
    """The number of characters in the training part of a text."""
    return max(int(characters * (1 - HELD_OUT)), characters - HELD_OUT_BYTES)


def tokenise(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The ids of a text as one array, uint16 where they fit, else uint32. Long texts are cut at ends of lines."""
    pieces = [ids for _, ids in cache.encoded(((0, piece) for piece in files.pieces([text])), tokenizer)]
    return np.concatenate([*pieces, np.zeros(0, np.uint32)]).astype(cache.dtype(tokenizer))


@dataclass(frozen=True, eq=False)
class Windows:
    """Random windows of a text: `windows(i)` is batch number i, always the same one.

    The start of row r, counted over the run, is number (seed, r) of a counter-based generator (Philox). So there is no
    state to save, and two batches of 8 are one batch of 16.

    Args:
        ids: (N,).
        batch: B. `context`: T.
        seed: of the draw.
    """

    ids: np.ndarray
    batch: int
    context: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        order.enough(self.ids, self.context)

    def __call__(self, number: int) -> Batch:
        """input_ids and labels, (B, T) each: the label of a position is the token after it."""
        return self.rows(number * self.batch, self.batch)

    def rows(self, first: int, count: int) -> Batch:
        """Rows `first`, … of all rows of the run, (count, T) each."""
        random = np.random.Philox(key=self.seed, counter=first).random_raw(4 * count)[::4]
        starts = (random % np.uint64(len(self.ids) - self.context)).astype(np.int64)  # (B,)
        return order.windows(self.ids, starts, self.context)


def sliding(ids: np.ndarray, context: int, batch: int, stride: int | None = None) -> Iterator[dict[str, Tensor]]:
    """Batches in which every token but the first is counted once, and sees at least `context` - `stride` tokens before
    it, by default half of `context`.

    ```
    counted   ########                       # = T / 2 tokens
              ....####                       . = seen, not counted (label -100)
                  ....####
    ```
    """
    inputs, wanted = ids[:-1].astype(np.int64), ids[1:].astype(np.int64)
    stride = max(1, context // 2) if stride is None else stride
    starts = [0, *range(stride, len(inputs) - context + stride, stride)]
    for i in range(0, len(starts), batch):
        rows = starts[i : i + batch]
        x = torch.zeros(len(rows), context, dtype=torch.long)  # (B, T)
        y = torch.full_like(x, -100)
        for row, start in enumerate(rows):
            count = min(context, len(inputs) - start)
            fresh = context - stride if start else 0
            x[row, :count] = torch.from_numpy(inputs[start : start + count])
            y[row, fresh:count] = torch.from_numpy(wanted[start + fresh : start + count])
        yield {"input_ids": x, "labels": y}
