"""Clusters of vectors: k-means. N vectors, C numbers of each, K clusters."""

from __future__ import annotations

import numpy as np

ROUNDS = 30  # the most
PIECE = 1 << 14  # vectors whose distances are in memory at once


def nearest(vectors: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cluster of each vector, and the squared distance to its centre. (N, C), (K, C) -> (N,), (N,)."""
    found, far = np.empty(len(vectors), np.int64), np.empty(len(vectors))
    own = (centres**2).sum(1)  # (K,)
    for first in range(0, len(vectors), PIECE):
        piece = vectors[first : first + PIECE].astype(np.float64)
        distances = own - 2 * piece @ centres.T  # (n, K), without the length of the vector itself
        best = distances.argmin(1)
        found[first : first + PIECE] = best
        here = distances[np.arange(len(piece)), best] + (piece**2).sum(1)
        far[first : first + PIECE] = np.maximum(here, 0)
    return found, far


def kmeans(vectors: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Centres of `count` clusters, (K, C): Lloyd's rounds from k-means++ (Arthur and Vassilvitskii, 2007).

    A cluster that loses all vectors begins again at the vector that is farthest from its centre. The same vectors and
    seed give the same centres.

    Raises:
        ValueError: for fewer different vectors than clusters.
    """
    draw = np.random.default_rng(seed)
    if count < 1 or len(np.unique(vectors[: 1 << 20], axis=0)) < count:
        raise ValueError(f"{count} clusters need as many different vectors; there are {len(vectors)}")
    centres = vectors[draw.integers(len(vectors))][None].astype(np.float64)
    far = ((vectors - centres[0]) ** 2).sum(1)
    while len(centres) < count:
        chosen = vectors[draw.choice(len(vectors), p=far / far.sum())].astype(np.float64)
        centres = np.concatenate((centres, chosen[None]))
        far = np.minimum(far, ((vectors - chosen) ** 2).sum(1))
    before = np.inf
    for _ in range(ROUNDS):
        found, far = nearest(vectors, centres)
        sums, sizes = np.zeros_like(centres), np.bincount(found, minlength=count)
        np.add.at(sums, found, vectors)
        centres = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centres)
        for empty, lost in zip(np.flatnonzero(sizes == 0), np.argsort(-far), strict=False):
            centres[empty] = vectors[lost]
        if far.sum() >= before * (1 - 1e-6):
            break
        before = far.sum()
    return centres
