"""Approach 3: the law of all runs at once.

    min over E, A, B, alpha, beta of  sum over runs of Huber(log L(N, D) - log loss),  delta = 1e-3

as Hoffmann et al. (2022, section 3.3). The minimum is found by BFGS with the exact gradient and a tight tolerance, from
ten starts that must agree: the optimisers' own tolerances stop early here, and report success. A start is a pair of
random exponents with the E, A, B of least squares for them (variable projection, Golub and Pereyra, 1973).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from anyformer.scale.laws import FIELDS, Law
from anyformer.scale.runs import Array, Runs

DELTA = 1e-3
STARTS, FEWEST = 10, 3  # starts, and those that must reach the least objective
AGREE = 1e-3  # relative difference of the exponents of starts that found one minimum
FLOOR = 1e-9  # share of the least loss that E has at least
LEAST = 0.1  # of a start: the share of the least loss that each term has at least
EXACT = 1e-18  # objective in units of delta^2 of runs that follow a law without noise


@dataclass(frozen=True)
class Surface:
    """A fit. `objective`: the sum at the minimum. `agreeing`: starts that reached it, of `STARTS`."""

    law: Law
    objective: float
    agreeing: int


def fit(runs: Runs, seed: int = 0, delta: float = DELTA) -> Surface:
    """The law of the runs.

    Raises:
        ValueError: if fewer than three starts reach the least objective, or these disagree on the exponents: the runs
            do not decide them. ImportError: without scipy.
    """
    _scipy()
    problem, rng = _Problem(runs, delta), np.random.default_rng(seed)
    found = [problem.minimise(problem.start(*rng.uniform(0.1, 1.0, 2))) for _ in range(STARTS)]
    least = min(value for value, _ in found)
    best = [theta for value, theta in found if value <= least * (1 + 1e-6) + 1e-12]  # others are in worse minima
    exponents = np.array([theta[3:] for theta in best])
    spread = np.ptp(exponents, axis=0) / exponents.mean(axis=0)
    law = problem.law(min(found, key=lambda pair: pair[0])[1])
    if len(best) < FEWEST or spread.max() > AGREE or law is None:
        ranges = ", ".join(
            f"{name} {low:.3g} to {high:.3g}"
            for name, low, high in zip(FIELDS[3:], exponents.min(axis=0), exponents.max(axis=0), strict=True)
        )
        raise ValueError(
            f"{len(best)} of {STARTS} starts reach the least objective {least:.6g}, with {ranges}: these runs do not "
            "decide the law. Add runs of other sizes and lengths, each varied while the other stays"
        )
    sizes, lengths = ((float(of.min()), float(of.max())) for of in (runs.params, runs.tokens))
    return Surface(replace(law, params=sizes, tokens=lengths), least, len(best))


def bootstrap(runs: Runs, law: Law, count: int, seed: int = 0, delta: float = DELTA) -> Law:
    """The law with refits to `count` resamples of the runs (with replacement), which give its intervals. A resample
    with fewer than three different sizes or lengths, or whose exponents grow without end, is drawn again.

    Raises:
        ValueError: if most resamples are of that kind.
    """
    rng, draws = np.random.default_rng(seed), list[tuple[float, ...]]()
    for _ in range(4 * count):
        if len(draws) == count:
            break
        chosen = rng.integers(0, len(runs.loss), len(runs.loss))
        if min(len(np.unique(of[chosen])) for of in (runs.params, runs.tokens)) < 3:
            continue
        problem = _Problem(runs.take(chosen), delta)
        drawn = problem.law(problem.minimise(problem.at(law), 1e-5)[1])
        if drawn is not None:
            draws.append(tuple(getattr(drawn, name) for name in FIELDS))
    if len(draws) < count:
        raise ValueError(
            f"{len(draws)} of {4 * count} resamples decide a law: {len(runs.loss)} runs are too few or too alike"
        )
    return replace(law, draws=tuple(draws))


def objective(runs: Runs, law: Law, delta: float = DELTA) -> float:
    """The sum that `fit` makes small, of any law."""
    return float(_huber(np.log(law.loss(runs.params, runs.tokens)) - np.log(runs.loss), delta)[0].sum())


class _Problem:
    """The objective of theta = (log E, log A', log B', alpha, beta), A' and B' being the terms at the mean of log N and
    of log D: so moved, an exponent hardly changes what the best A' is."""

    def __init__(self, runs: Runs, delta: float):
        logs = np.log(runs.params), np.log(runs.tokens)
        self.means = [float(of.mean()) for of in logs]
        self.n, self.d = (of - mean for of, mean in zip(logs, self.means, strict=True))
        self.loss, self.log, self.delta = runs.loss, np.log(runs.loss), delta

    def start(self, alpha: float, beta: float) -> Array:
        """E, A', B' of least squares of relative errors, none below 0."""
        columns = np.stack([np.ones_like(self.n), np.exp(-alpha * self.n), np.exp(-beta * self.d)], 1)
        terms, _ = _scipy().nnls(columns / self.loss[:, None], np.ones_like(self.loss))
        return np.array([*np.log(np.maximum(terms, LEAST * self.loss.min())), alpha, beta])

    def at(self, law: Law) -> Array:
        """The theta of a law."""
        moved = np.log(law.A) - law.alpha * self.means[0], np.log(law.B) - law.beta * self.means[1]
        return np.array([np.log(max(law.E, FLOOR * self.loss.min())), *moved, law.alpha, law.beta])

    def minimise(self, theta: Array, tolerance: float = 1e-9) -> tuple[float, Array]:
        """The least objective from a start. BFGS is begun again where it stopped, until that changes nothing: its line
        search can end early at the kinks of Huber's loss."""
        minimise, value = _scipy().minimize, np.inf
        for _ in range(20):
            done = minimise(self.value, theta, jac=True, method="BFGS", options={"gtol": tolerance, "maxiter": 2000})
            theta, before, value = done.x, value, float(done.fun)
            if value >= before * (1 - 1e-12) or value < EXACT:
                break
        return value * self.delta**2, theta

    def value(self, theta: Array) -> tuple[float, Array]:
        """The objective in units of delta^2, and its gradient."""
        with np.errstate(over="ignore", invalid="ignore"):
            logs = np.stack([theta[0] + 0 * self.n, theta[1] - theta[3] * self.n, theta[2] - theta[4] * self.d])
            total = np.logaddexp.reduce(logs, axis=0)
            shares = np.exp(logs - total)  # (3, R): of E, A and B in the loss
            value, slope = _huber((total - self.log) / self.delta, 1.0)
            each = slope * shares / self.delta
            gradient = np.array([*each.sum(axis=1), -(each[1] * self.n).sum(), -(each[2] * self.d).sum()])
        return (float(value.sum()), gradient) if np.isfinite(value).all() else (np.inf, np.zeros(5))

    def law(self, theta: Array) -> Law | None:
        """The numbers of the formula; an E that has no share in any loss is 0. None for exponents without a limit."""
        with np.errstate(over="ignore", under="ignore"):
            e, a, b = np.exp([theta[0], theta[1] + theta[3] * self.means[0], theta[2] + theta[4] * self.means[1]])
        if not (np.isfinite([a, b]).all() and min(a, b, theta[3], theta[4]) > 0):
            return None
        return Law(
            float(e) if e > FLOOR * self.loss.min() else 0.0, float(a), float(b), float(theta[3]), float(theta[4])
        )


def _huber(x: Array, delta: float) -> tuple[Array, Array]:
    """Huber's loss, x^2 / 2 to delta and then delta (|x| - delta / 2), and its slope."""
    size = np.abs(x)
    value: Array = np.where(size <= delta, x * x / 2, delta * (size - delta / 2))
    return value, np.clip(x, -delta, delta)


def _scipy() -> Any:
    try:
        from scipy import optimize
    except ImportError:
        raise ImportError("a fit needs scipy: pip install 'anyformer[scale]'") from None
    return optimize
