"""Where the vectors of an index are searched. N passages, D width.

```
exact             all in memory, one product with each
faiss             an index of FAISS in `vectors.faiss`, which is exact; faiss:HNSW32 or another name of its factory
qdrant            Qdrant in the folder of the index, for one process (its local mode)
qdrant:http://…   a server of Qdrant, or several that share a collection; its key is in QDRANT_API_KEY
```
SQLite has every vector in each case: the others are made from it by `index`, and cosines are computed from it. So
orders differ only where an approximate search does not find a passage.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from anyformer.hub.formats.guard import atomic_write
from anyformer.know.store import Store

KINDS = "exact, faiss, faiss:FACTORY, qdrant, qdrant:URL"
FAISS, QDRANT = "vectors.faiss", "vectors.qdrant"
TOGETHER = 256  # points that are sent at once


class Vectors(Protocol):
    """The vectors of an index for the search by cosine."""

    def write(self, store: Store) -> None:
        """Makes them those of the index as it is now; called by `index` alone."""

    def read(self, store: Store) -> None:
        """Reads them again, after the index has changed."""

    def nearest(self, vector: np.ndarray, count: int) -> list[int]:
        """The ids of the passages with the largest products with a vector (D,), the largest first."""

    def close(self) -> None:
        """Lets go of files and connections."""


class Exact:
    """All vectors in memory."""

    def __init__(self) -> None:
        self.ids, self.matrix = np.zeros(0, np.int64), np.zeros((0, 0), np.float32)

    def write(self, store: Store) -> None:
        pass

    def read(self, store: Store) -> None:
        self.ids, self.matrix = store.vectors(int(store.meta("width") or 0))

    def nearest(self, vector: np.ndarray, count: int) -> list[int]:
        return self.ids[first(self.matrix @ vector, count)].tolist()

    def close(self) -> None:
        pass


class Faiss:
    """An index of FAISS. A graph forgets nothing, so it is made anew whenever passages have changed.

    Args:
        factory: FAISS's name of an index; empty = Flat, which is exact.

    Raises:
        ValueError: without FAISS; for a factory that it does not know, or that needs more passages.
    """

    def __init__(self, factory: str):
        try:
            import faiss
        except ImportError:
            raise ValueError("vectors: faiss needs `pip install faiss-cpu`; or choose exact") from None
        self.faiss, self.factory = faiss, factory or "Flat"
        self.index: Any = None

    def write(self, store: Store) -> None:
        ids, matrix = store.vectors(int(store.meta("width") or 0))
        try:
            made = self.faiss.index_factory(matrix.shape[1], self.factory, self.faiss.METRIC_INNER_PRODUCT)
            made = self.faiss.IndexIDMap(made)
            if not made.is_trained:
                made.train(matrix)
            made.add_with_ids(matrix, ids)
        except RuntimeError as error:
            why = " ".join(str(error).split()).rpartition("Error: ")[2]
            raise ValueError(f"vectors: faiss:{self.factory} for {len(ids)} passages: {why}") from None
        atomic_write(store.folder / FAISS, self.faiss.serialize_index(made).tobytes())

    def read(self, store: Store) -> None:
        if (file := store.folder / FAISS).is_file():  # it is written last; until then there is that of the last run
            self.index = self.faiss.read_index(str(file))

    def nearest(self, vector: np.ndarray, count: int) -> list[int]:
        if self.index is None:
            return []
        _, ids = self.index.search(vector[None], min(count, self.index.ntotal))
        return [int(i) for i in ids[0] if i >= 0]

    def close(self) -> None:
        self.index = None


class Qdrant:
    """A collection of Qdrant; each passage is a point that has its id.

    Args:
        store: of the index. address: of a server; empty = in the folder of the index.

    Raises:
        ValueError: without Qdrant's client. OSError: if the server does not answer, or another process has the folder.
    """

    def __init__(self, store: Store, address: str):
        try:
            import qdrant_client
        except ImportError:
            raise ValueError("vectors: qdrant needs `pip install qdrant-client`; or choose exact") from None
        self.models, self.where = qdrant_client.models, address or str(store.folder / QDRANT)
        self.width, self.collection = int(store.meta("width") or 0), store.meta("collection")
        if self.collection is None:
            self.collection = f"anyformer-{secrets.token_hex(8)}"
            store.describe(collection=self.collection)
        place: dict[str, Any] = {"path": self.where, "force_disable_check_same_thread": True}
        if address:
            place = {"url": address, "api_key": os.environ.get("QDRANT_API_KEY"), "check_compatibility": False}
        with self._answering():
            self.client = qdrant_client.QdrantClient(**place)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        from qdrant_client.http.exceptions import ApiException

        try:
            yield
        except (ApiException, RuntimeError, ValueError, OSError) as error:
            said = " ".join(str(error).split())[:200]
            raise OSError(f"Qdrant, {self.where}: {said or type(error).__name__}") from None

    def write(self, store: Store) -> None:
        ids, matrix = store.vectors(self.width)
        wanted = {int(i): hashlib.sha256(v.tobytes()).hexdigest()[:16] for i, v in zip(ids, matrix, strict=True)}
        with self._answering():
            if not self.client.collection_exists(self.collection):
                distance = self.models.VectorParams(size=self.width, distance=self.models.Distance.DOT)
                self.client.create_collection(self.collection, vectors_config=distance)
            there = dict(self._points())
            gone = [i for i, mark in there.items() if wanted.get(i) != mark]
            for at in range(0, len(gone), TOGETHER):
                self.client.delete(self.collection, points_selector=gone[at : at + TOGETHER])
            new = [n for n, i in enumerate(ids.tolist()) if there.get(i) != wanted[i]]
            for at in range(0, len(new), TOGETHER):
                some = new[at : at + TOGETHER]
                rows = [int(ids[n]) for n in some]
                batch = self.models.Batch(
                    ids=rows, vectors=matrix[some].tolist(), payloads=[{"mark": wanted[i]} for i in rows]
                )
                self.client.upsert(self.collection, points=batch)

    def _points(self) -> Iterator[tuple[int, str]]:
        """The id of each point, and the mark of its vector."""
        after = None
        while True:
            points, after = self.client.scroll(self.collection, limit=4096, offset=after, with_payload=True)
            yield from ((point.id, (point.payload or {}).get("mark", "")) for point in points)
            if after is None:
                return

    def read(self, store: Store) -> None:
        pass

    def nearest(self, vector: np.ndarray, count: int) -> list[int]:
        with self._answering():
            found = self.client.query_points(self.collection, query=vector.tolist(), limit=count, with_payload=False)
        return [int(point.id) for point in found.points]

    def close(self) -> None:
        self.client.close()


def vectors_of(store: Store, kind: str | None = None) -> Vectors:
    """The vectors of an index, of a kind or of its own.

    Raises:
        ValueError: for another kind, or one whose package is missing. OSError: see `Qdrant`.
    """
    kind = kind or store.meta("vectors") or "exact"
    name, _, rest = kind.partition(":")
    if kind == "exact":
        return Exact()
    if name == "faiss":
        return Faiss(rest)
    if name == "qdrant":
        return Qdrant(store, rest)
    raise ValueError(f"vectors: {kind!r} is none of {KINDS}")


def first(values: np.ndarray, count: int) -> np.ndarray:
    """The places of the largest values, the largest first, equal ones in their order. (N,) -> (count,)."""
    count = min(count, len(values))
    among = np.flatnonzero(values >= np.partition(values, -count)[-count])
    return among[np.argsort(-values[among], kind="stable")][:count]
