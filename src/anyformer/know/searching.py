"""Search: passages by their words (BM25) and by their vectors, one order out of both. N passages, D width.

```
question ── words ──> FTS5, BM25 ──> ranks ─┐
        └── vector ──> `know.vectors` ─> ranks ─┴─> weighted sum of 1 / (2 + rank) ──> the k best, or "nothing found"
```
score(p) = 1 / (2 + rank by cosine) + w / (2 + rank by BM25): reciprocal ranks (Cormack et al., 2009). They know nothing
of scores, so that a passage which shares one word with a question would count as much as one that has them all. Hence
w: how clearly the first of BM25 stands out, w = min(1, 2 s (b1 - b2) / b1), b1 and b2 the two best scores, and s the
largest share of the question's words, by rarity log(1 + N / n), that a passage has.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anyformer.know import words
from anyformer.know.encoder import Encoder
from anyformer.know.store import FILE, Row, Store
from anyformer.know.vectors import vectors_of

POOL = 50  # passages of each order
DAMPING = 2  # 60 in the paper, which fuses many orders; of two the first ranks must count more (docs/retrieval.md)
ALIKE = 1e-3  # the most by which the probe's vector may differ on another machine


@dataclass(frozen=True)
class Hit:
    """A passage that was found.

    Attributes:
        score: of both orders. cosine: with the question. bm25: 0 = no word of it.
        ranks: by BM25 and by cosine, from 1; None = not among the first 50.
        share: of the question's words, weighted by rarity, that are in the passage.
    """

    row: Row
    score: float
    cosine: float
    bm25: float
    ranks: tuple[int | None, int | None]
    share: float


@dataclass(frozen=True)
class Found:
    """Result of a search.

    Attributes:
        hits: the best passages first. sure: one of them is above a threshold, else nothing was found.
        limits: of cosine, share and BM25, see `know.calibrating`.
        unknown: words of the question that are in no passage.
    """

    hits: list[Hit]
    sure: bool
    limits: tuple[float, float, float]
    unknown: list[str]


class Searcher:
    """An index that is open. Its vectors are read again when the index has changed.

    Raises:
        FileNotFoundError: without an index. ValueError: for an index of another encoder, or one that holds nothing; and
            as `know.vectors`.
    """

    def __init__(self, folder: Path, encoder: Encoder):
        self.store, self.encoder, self.lock = Store(folder), encoder, threading.Lock()
        same(self.store, encoder)
        self.vectors, self.version, self.count = vectors_of(self.store), -1, 0
        with self.lock:
            self._fresh()

    def _fresh(self) -> None:
        version = self.store.version()
        if version != self.version:
            self.vectors.read(self.store)
            self.version, self.count = version, self.store.count()
        if not self.count:
            raise ValueError(f"{self.store.folder} holds no passage: `anyformer index` it again")

    def close(self) -> None:
        """Closes the index."""
        self.vectors.close()
        self.store.close()

    @property
    def interrupted(self) -> bool:
        """Did the last run of `index` not reach its end?"""
        return self.store.meta("running") == "1"

    def search(self, question: str, k: int = 6) -> Found:
        """The k best passages for a question.

        Raises:
            ValueError: for an empty question, or a k that is no number of passages.
        """
        if not question.strip():
            raise ValueError("the question is empty")
        if not 1 <= k <= POOL:
            raise ValueError(f"k must be 1 … {POOL}, got {k}")
        vector = self.encoder.asked([question])[0]  # (D,)
        with self.lock:
            self._fresh()
            by_words = self.store.match(words.query(question), POOL) if words.query(question) else []
            near = self.vectors.nearest(vector, POOL)
            telling = [w.strip('"') for w in words.query(question).split(" OR ") if w]
            held = {word: self.store.holding(word) for word in telling}
            hits = self._fused(by_words, near, vector, held)[:k]
            nearest, share, bm25 = (float(self.store.meta(name) or "inf") for name in ("cosine", "share", "bm25"))
        sure = any(h.cosine >= nearest or (h.share >= share and h.bm25 >= bm25) for h in hits)
        return Found(hits, sure, (nearest, share, bm25), [word for word in telling if not held[word]])

    def _fused(
        self, by_words: list[tuple[int, float]], near: list[int], vector: np.ndarray, held: dict[str, set[int]]
    ) -> list[Hit]:
        """The passages of both orders, the best first; ties in the order of the files."""
        lexical = {i: (rank, score) for rank, (i, score) in enumerate(by_words, 1)}
        found = self.store.some(list(dict.fromkeys([*near, *lexical])))
        cosines = {i: float((v.astype(np.float64) * vector).sum()) for i, v in found.items()}  # alike for alike vectors
        rows = dict(zip(found, self.store.rows(list(found)), strict=True))
        order = sorted((i for i in near if i in rows), key=lambda i: (-cosines[i], rows[i].path, rows[i].number))
        dense = {i: rank for rank, i in enumerate(order, 1)}
        weights = {word: math.log(1 + self.count / max(len(ids), 1)) for word, ids in held.items()}
        total = sum(weights.values()) or 1.0
        shares = {i: sum(weight for word, weight in weights.items() if i in held[word]) / total for i in rows}
        top, second = [*(score for _, score in by_words[:2]), 0.0, 0.0][:2]
        weight = min(1.0, 2 * max(shares.values()) * (top - second) / top) if top > 0 else 0.0
        hits = list[Hit]()
        for i, row in rows.items():
            rank, bm25 = lexical.get(i, (None, 0.0))
            score = (weight / (DAMPING + rank) if rank else 0.0) + (1 / (DAMPING + dense[i]) if i in dense else 0.0)
            hits.append(Hit(row, score, cosines[i], bm25, (rank, dense.get(i)), shares[i]))
        return sorted(hits, key=lambda h: (-h.score, h.row.path, h.row.number))


def same(store: Store, encoder: Encoder) -> None:
    """Raises ValueError unless the vectors of the index are this encoder's."""
    probe = np.frombuffer(bytes.fromhex(store.meta("probe") or ""), dtype="<f4")
    now, limit = encoder.probe(), store.meta("limit")
    if probe.shape != now.shape or np.abs(probe - now).max() > ALIKE or limit != str(encoder.limit):
        raise ValueError(
            f"{store.folder} was made by {store.meta('encoder')} ({len(probe)} wide, {limit} tokens); {encoder.name} "
            f"({len(now)} wide, {encoder.limit} tokens) gives other vectors: choose another --out, or delete {FILE}"
        )
