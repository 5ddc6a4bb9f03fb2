"""Models of bytes without a network, in as many bytes of file: those that a found model of running text stands beside.

gzip, xz: what the held-out text adds to the compressed text that teaches. Theirs is no model of a size: all that they
have seen is at hand.
n-gram: interpolated with Witten and Bell's weights (1991), of the highest order and the least count kept that are best
on the bytes that choose, in a file (counts behind sorted contexts, compressed by xz) no larger than the model's.

    p(c | h) = (n(h c) + t(h) p(c | h')) / (n(h) + t(h))        t(h): different bytes behind h;  h': h without its first
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from anyformer.edge.task import Task

ORDERS, LEAST = (3, 4, 5), (1, 2, 3, 4, 6, 8, 12, 16)  # bytes of context; the smallest count that is kept
XZ: dict[str, Any] = {"format": lzma.FORMAT_XZ, "preset": 9 | lzma.PRESET_EXTREME}


class Ngram:
    """The counts of a text.

    Args:
        text: bytes, uint8. order: bytes of the longest context. least: counts below it are not kept, but for those
            without a context.
    """

    def __init__(self, text: np.ndarray, order: int, least: int):
        self.order = order
        self.grams = [np.unique(_words(text, k + 1), return_counts=True) for k in range(order + 1)]
        kept = [counts >= (least if k else 1) for k, (_, counts) in enumerate(self.grams)]
        self.grams = [(w[keep], c[keep]) for (w, c), keep in zip(self.grams, kept, strict=True)]
        self.contexts = [_contexts(words, counts) for words, counts in self.grams]

    def size(self) -> int:
        """The bytes of the file: words as differences, and counts, each order compressed."""
        return sum(len(lzma.compress(_numbers(np.diff(w, prepend=0)) + _numbers(c), **XZ)) for w, c in self.grams)

    def bits(self, before: np.ndarray, text: np.ndarray) -> np.ndarray:
        """-log2 p of each byte of a text, whose context begins with the bytes before it."""
        whole = np.concatenate((before[len(before) - self.order :], text))
        p = np.full(len(text), 1 / 256)
        for k, ((words, counts), (heads, sums, kinds)) in enumerate(zip(self.grams, self.contexts, strict=True)):
            asked = _words(whole[self.order - k :], k + 1)
            seen, total = _found(words, counts, asked), _found(heads, sums, asked >> 8)
            different = _found(heads, kinds, asked >> 8)
            p = np.where(total > 0, (seen + different * p) / np.maximum(1, total + different), p)
        return -np.log2(p)


def _words(text: np.ndarray, size: int) -> np.ndarray:
    """Each run of so many bytes as a number, the first byte highest."""
    made = np.zeros(len(text) - size + 1, np.int64)
    for i in range(size):
        made = made << 8 | text[i : len(text) - size + 1 + i]
    return made


def _contexts(words: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The contexts, how often each was seen, and with how many different bytes behind it."""
    heads, starts = np.unique(words >> 8, return_index=True)
    return heads, np.add.reduceat(counts, starts), np.diff(np.append(starts, len(words)))


def _found(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[at] == asked, values[at], 0)


def _numbers(values: np.ndarray) -> bytes:
    """Whole numbers in 7 bits a byte, the last of each below 128: a byte for most counts."""
    planes, left = list[np.ndarray](), values.astype(np.int64)
    while True:
        planes.append(left & 127)
        left = left >> 7
        if not left.any():
            break
    width = np.maximum(1, np.ceil(np.log2(values.astype(np.float64) + 1) / 7)).astype(np.int64)
    columns = [np.where(k < width, plane | np.where(k + 1 < width, 128, 0), -1) for k, plane in enumerate(planes)]
    flat = np.stack(columns, 1).ravel()
    return flat[flat >= 0].astype(np.uint8).tobytes()


def rows(task: Task, size: int) -> Iterator[tuple[str, int, float]]:
    """(name, bytes of its file, bits for each byte of the held-out text) of each."""
    learn, choose, test = (_text(task, name) for name in ("learn", "choose", "test"))
    known = np.concatenate((learn, choose))
    ways: dict[str, Callable[[bytes], int]] = {
        "gzip -9": lambda text: len(zlib.compress(text, 9)), "xz -9e": lambda text: len(lzma.compress(text, **XZ)),
    }  # fmt: skip
    for name, packed in ways.items():
        before = packed(known.tobytes())
        yield (
            f"{name}, behind the text that teaches",
            before,
            8 * (packed(known.tobytes() + test.tobytes()) - before) / len(test),
        )
        yield f"{name}, alone", 0, 8 * packed(test.tobytes()) / len(test)
    best: tuple[float, Ngram, int, int] | None = None
    for order in ORDERS:
        for least in LEAST:
            made = Ngram(learn, order, least)
            if made.size() <= size:
                found = float(made.bits(learn, choose).mean())
                if best is None or found < best[0]:
                    best = found, made, order, least
                break
    if best is not None:
        _, made, order, least = best
        name = f"{order + 1}-gram, counts from {least}"
        yield name, made.size(), float(made.bits(choose, test).mean())


def _text(task: Task, name: str) -> np.ndarray:
    """The bytes that are predicted in a part."""
    return np.ascontiguousarray(task.parts[name].items[:, 1:]).ravel()


def table(task: Task, size: int, bits: float) -> str:
    """The model and those without a network."""
    lines = ["| | bytes of its file | bits for each byte |", "|---|---|---|", f"| the model | {size:,} | {bits:.3f} |"]
    lines += [f"| {name} | {f'{held:,}' if held else ''} | {found:.3f} |" for name, held, found in rows(task, size)]
    return "\n".join(lines)
