"""Approaches 1 and 2 of Hoffmann et al. (2022): the best size for an amount of computation, without a law of the loss.

    best N = G C^a,   C = 6 N D

Approach 2 is biased even without noise where alpha and beta differ: a parabola in log N is fitted to a curve that is
steeper on one side. With runs at the same distances around each best N the error is one factor for all C, so that the
exponent a is right and G is not; where the middle drifts with C, a is wrong too (arXiv:2603.22339).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anyformer.scale.laws import Law
from anyformer.scale.runs import Array, Runs

SAME = 0.15  # natural logarithm of C within which runs have the same amount of computation
FEWEST = 3  # of such amounts, and of runs in a parabola


@dataclass(frozen=True)
class Allocation:
    """The best size. `log_g`, `a`: of the formula; nan where the runs do not suffice, and `note` says why. `points`: C
    and N that the line was fitted to."""

    name: str
    log_g: float
    a: float
    points: tuple[tuple[float, float], ...] = ()
    note: str = ""

    def optimal(self, flops: float) -> tuple[float, float]:
        """N and D of the least loss for C operations."""
        params = float(np.exp(self.log_g + self.a * np.log(flops)))
        return params, flops / 6 / params


def envelope(runs: Runs) -> Allocation:
    """Approach 1: the line through the runs that no run of as many or fewer operations beats."""
    order = np.lexsort((runs.loss, runs.flops))
    loss = runs.loss[order]
    best = order[loss < np.concatenate(([np.inf], np.minimum.accumulate(loss)[:-1]))]
    return _line("1, envelope", runs.flops[best], runs.params[best], "runs on the envelope")


def parabolas(runs: Runs) -> Allocation:
    """Approach 2: for each amount of computation the vertex of a parabola of the loss in log N; the line through them.

    Runs within 15 % count as one amount. Parabolas without a least loss between their ends are left out.
    """
    order = np.argsort(runs.flops, kind="stable")
    logs = np.log(runs.flops[order])
    groups, begin = [], 0
    for i in range(1, len(order) + 1):
        if i == len(order) or logs[i] - logs[begin] > SAME:
            groups.append(order[begin:i])
            begin = i
    flops, best = [], []
    for group in groups:
        sizes = np.log(runs.params[group])
        if len(np.unique(sizes)) < FEWEST:
            continue
        middle = sizes.mean()
        curve, slope, _ = np.polyfit(sizes - middle, runs.loss[group], 2)
        vertex = middle - slope / (2 * curve) if curve > 0 else np.inf
        if sizes.min() <= vertex <= sizes.max():
            flops.append(np.exp(np.log(runs.flops[group]).mean()))
            best.append(np.exp(vertex))
    return _line("2, parabolas", np.array(flops), np.array(best), "amounts of computation with a parabola")


def surface(law: Law) -> Allocation:
    """Approach 3, of a law that was fitted."""
    return Allocation("3, surface", float(np.log(law.optimal(6.0)[0]) - law.a * np.log(6.0)), law.a)


def _line(name: str, flops: Array, params: Array, what: str) -> Allocation:
    points = tuple(zip(flops.tolist(), params.tolist(), strict=True))
    if len(points) < FEWEST:
        return Allocation(name, np.nan, np.nan, points, f"{len(points)} {what}, and a line needs {FEWEST}")
    a, log_g = np.polyfit(np.log(flops), np.log(params), 1)
    return Allocation(name, float(log_g), float(a), points)
