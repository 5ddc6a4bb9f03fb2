"""The integral of integrated gradients, in pieces. B batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anyformer.explain.features import Explained, Values
from anyformer.explain.target import Goal
from anyformer.skeletons.base import Output

POINTS = 8  # of a piece
LEAST = 0.05  # of the score: a smaller change is held to the tolerance of this one, since scores are rounded
CANCEL = 8  # pieces may miss this many times the tolerance where they cancel: bends of ReLU miss by chance
SAME = 1e-5  # of the score: rounding
NARROW = 1e-5  # a piece of the line that is not halved any more: there the score jumps


def summed(each: Mapping[str, Tensor], rows: int) -> Tensor:
    """The sum of all shares, (B,)."""
    parts = [e.double().flatten(1).sum(1) if len(e) == rows else e.double().sum()[None] for e in each.values()]
    return torch.stack(parts).sum(0)


class Incomplete(ValueError):
    """Shares of integrated gradients that do not sum to the change of the score."""


def gradients(explained: Explained, aim: Callable[[Output], Tensor], values: Values) -> tuple[Values, Tensor]:
    """The slope of the score at these values, of each row's own score; and the scores, (B,)."""
    leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
    with torch.enable_grad():
        score = aim(explained.run(leaves))
        if not score.requires_grad:
            raise Incomplete(_no_slope(explained))
        found = torch.autograd.grad(score.sum(), list(leaves.values()), allow_unused=True)
    if all(g is None for g in found):
        raise Incomplete(_no_slope(explained))
    slopes = {n: torch.zeros_like(leaves[n]) if g is None else g for n, g in zip(leaves, found, strict=True)}
    return slopes, score.detach().double()


def _no_slope(explained: Explained) -> str:
    names = ", ".join(explained.features)
    return (
        f"the score does not depend on {names} through anything that has a gradient (quantised weights, whole numbers "
        "in between); use method='occlusion', which needs none"
    )


def slopes_at(explained: Explained, aim: Goal, points: list[Values]) -> list[Values]:
    """The slopes at several points; of one row as copies in one pass, where that gives the same score."""
    found: list[Values] = []
    for group in grouped(explained, points):
        rows = explained if len(group) == 1 else explained.copies(len(group))
        together, _ = gradients(rows, aim, {n: torch.cat([p[n] for p in group]) for n in group[0]})
        found += (
            [{n: v[i : i + 1] for n, v in together.items()} for i in range(len(group))]
            if len(group) > 1
            else [together]
        )
    return found


def grouped(explained: Explained, points: list[Values]) -> list[list[Values]]:
    """The points of each pass."""
    count = explained.together
    return [points[at : at + count] for at in range(0, len(points), count)]


@torch.no_grad()
def bare(explained: Explained, aim: Goal, logits: Tensor | None, base: Values, score: Tensor) -> Tensor:
    """The score of the baseline, (B,).

    Of one row in one pass with the input itself: if that has its own score there, too, rows do not act on each other
    (experts with few places and random parts do), and `explained.together` copies of the row are one pass from now on.
    """
    count = explained.room(logits) if len(score) == 1 else 1
    if count > 1:
        pair = {n: torch.cat([v, explained.features[n].value]) for n, v in base.items()}
        both = aim(explained.copies(2).run(pair)).double()
        if abs(float(both[1] - score[0])) <= SAME * max(abs(float(both[0])), abs(float(score[0]))):
            explained.together = count
            return both[:1]
    return aim(explained.run(base)).double()


@dataclass
class Piece:
    """The line from `start` to `end`, as shares of the way from the baseline: its shares and what they miss, (B,)."""

    start: float
    end: float
    each: Values
    missed: Tensor


def integrated(
    explained: Explained, aim: Goal, base: Values, ends: tuple[Tensor, Tensor], tolerance: float, most: int
) -> tuple[Values, int]:
    """The shares of integrated gradients, and the number of points.

    Between two points of the line the shares of a piece must sum to the change of the score, which two passes tell.
    The piece that misses most is halved until all of them together miss no more than the tolerance: where a norm or a
    kink bends the score there are many points, elsewhere few.

    Args:
        ends: the scores of the baseline and of the input, (B,).
        tolerance: a share of the change, or of a twentieth of the score if that is more.
        most: points.

    Raises:
        Incomplete: with more points than `most`, or at a jump, with its place and size.
    """
    scores = {0.0: ends[0], 1.0: ends[1]}
    change, size = ends[1] - ends[0], torch.maximum(ends[0].abs(), ends[1].abs())
    allowed = tolerance * torch.maximum(change.abs(), LEAST * size).clamp(min=1e-30)
    pieces, count = [_piece(explained, aim, base, scores, 0.0, 1.0)], POINTS
    while True:
        signed = torch.stack([p.missed for p in pieces])  # (pieces, B)
        missed = signed.abs()
        share = torch.maximum(signed.sum(0).abs(), missed.sum(0) / CANCEL) / allowed
        if bool((share <= 1).all()):
            break
        over = share.argmax()
        number = int(missed[:, over].argmax())
        piece = pieces.pop(number)
        middle = (piece.start + piece.end) / 2
        if count + 2 * POINTS > most or piece.end - piece.start < NARROW:
            raise Incomplete(_incomplete(aim, piece, float(missed.sum(0)[over]), float(change[over]), count, int(over)))
        with torch.no_grad():
            scores[middle] = aim(explained.run(_point(explained, base, middle))).double()
        pieces += [_piece(explained, aim, base, scores, *part) for part in ((piece.start, middle), (middle, piece.end))]
        count += 2 * POINTS
    return {n: torch.stack([p.each[n] for p in pieces]).sum(0) for n in base}, POINTS * len(pieces)


def _incomplete(aim: Goal, piece: Piece, missed: float, change: float, count: int, row: int) -> str:
    start = f"integrated gradients of {aim.name}: with {count} points the shares of row {row} miss {missed:.2g} of a "
    start += f"change of {change:.2g}"
    if piece.end - piece.start < NARROW:
        return (
            f"{start}: at {piece.start:.3f} of the way from the baseline the score jumps by {missed:.2g} (routers of "
            "experts, hashed, sampled or nearest memories; or a norm of a vector near 0, as from baseline='zeros'), "
            "and a jump has no gradient; use method='occlusion', another baseline, or a larger tolerance"
        )
    return f"{start}; pass more points, a closer baseline or a larger tolerance, or use method='occlusion'"


def _piece(
    explained: Explained, aim: Goal, base: Values, scores: dict[float, Tensor], start: float, end: float
) -> Piece:
    """The shares of one piece by Gauss and Legendre's points."""
    nodes, weights = np.polynomial.legendre.leggauss(POINTS)
    points = [_point(explained, base, start + float(node) * (end - start)) for node in (nodes + 1) / 2]
    each = {n: torch.zeros_like(f.value) for n, f in explained.features.items()}
    for weight, slopes in zip(weights / 2, slopes_at(explained, aim, points), strict=True):
        for name, slope in slopes.items():
            each[name] += float(weight) * (end - start) * slope * (explained.features[name].value - base[name])
    rows = len(scores[start])
    return Piece(start, end, each, scores[end] - scores[start] - summed(each, rows))


def _point(explained: Explained, base: Values, share: float) -> Values:
    """The features at this share of the way from the baseline."""
    return {n: base[n] + share * (f.value - base[n]) for n, f in explained.features.items()}
