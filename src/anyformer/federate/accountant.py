"""Epsilon of rounds of the Gaussian mechanism on Poisson samples of clients, by privacy loss distributions.

A round adds N(0, (z clip)^2) to the sum of updates of length at most `clip`, each client being in it with probability
q, independently. Two neighbours differ by one client (added or removed):

```
remove    P = (1 - q) N(0, z^2) + q N(1, z^2),  Q = N(0, z^2)      add    the same, P and Q exchanged
delta(e) = P(loss > e) - exp(e) Q(loss > e),  loss = log P/Q       epsilon(d) = min e >= 0 with delta(e) <= d, in both
```
The loss is put on a grid that dominates it (connecting the dots: Doroshenko et al., 2022; arXiv:2207.04380) and
composed by FFT, in a window whose tails are bounded by moments and counted (Gopi et al., 2021; arXiv:2106.02848). Every
approximation errs to a larger epsilon.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch

STEP, POINTS = 1e-2, 1 << 18  # of the grid of losses: its distance times the rounds, at least 10; the most points
TAIL = 1e-14  # probability outside of a window
MOST = 500.0  # a larger epsilon counts as infinite
REACH = 9.0  # standard deviations that are looked at
LEAST_DELTA = 1e-10  # below it rounding counts
LEAST_NOISE = 0.05  # with less, epsilon counts as infinite, too: exp(loss) would leave float64
MOST_NOISE = 1e6  # the search ends here
ORDERS = np.geomspace(1e-2, 1e3, 51)  # of the moments


@functools.cache
def epsilon(noise: float, rate: float, rounds: int, delta: float) -> float:
    """Epsilon after so many rounds.

    Args:
        noise: z, the standard deviation as a multiple of the clip. rate: q, above 0, at most 1.
        delta: at least 1e-10.

    Raises:
        ValueError: for a number out of range.
    """
    if not 0 < rate <= 1 or not LEAST_DELTA <= delta < 1 or noise < 0 or rounds < 0:
        raise ValueError(
            f"expected 0 < rate <= 1, {LEAST_DELTA:g} <= delta < 1, noise and rounds of at least 0; got rate={rate}, "
            f"delta={delta}, noise={noise}, rounds={rounds}"
        )
    if not rounds:
        return 0.0
    if noise < LEAST_NOISE:
        return math.inf
    return max(_epsilon(noise, rate, rounds, delta, remove) for remove in (True, False))


def noise_for(target: float, rate: float, rounds: int, delta: float) -> float:
    """The least noise, to a thousandth, whose epsilon is at most `target`.

    Raises:
        ValueError: for a target that is not above 0, or is not reached by any noise.
    """
    if not target > 0:
        raise ValueError(f"epsilon must be above 0, got {target}")
    low, high = 0.0, 1.0
    while epsilon(high, rate, rounds, delta) > target:
        low, high = high, 2 * high
        if high > MOST_NOISE:
            raise ValueError(f"no noise gives epsilon={target:g}; use a larger epsilon")
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon(middle, rate, rounds, delta) > target else (low, middle)
    return high


def _places(e: np.ndarray, noise: float, rate: float) -> np.ndarray:
    """The places x where log P/Q of the removal is e: e = log(1 - q + q exp((2 x - 1) / 2 z^2)), (N,) -> (N,)."""
    above = np.expm1(e) + rate
    with np.errstate(divide="ignore"):
        return noise**2 * np.log(np.maximum(above, 0) / rate) + 0.5


def _cells(x: np.ndarray, mean: float, noise: float) -> np.ndarray:
    """The probabilities of N(mean, noise^2) between neighbours of x, each from its nearer tail, (N,) -> (N - 1,)."""
    y = (x - mean) / noise
    below, above = (torch.special.ndtr(torch.from_numpy(v)).numpy() for v in (y, -y))
    return np.where(y[1:] > 0, above[:-1] - above[1:], below[1:] - below[:-1])


def _losses(noise: float, rate: float, remove: bool, step: float) -> tuple[np.ndarray, int, float]:
    """A distribution of the loss on multiples of `step` that dominates it: its values, the number of the first
    multiple, and the probability of an infinite loss.

    What lies in a cell goes to its two ends, so that the probabilities of P and of Q stay.
    """
    ends = np.array([-REACH * noise, 1 + REACH * noise])
    losses = np.logaddexp(np.log1p(-rate) if rate < 1 else -np.inf, math.log(rate) + (2 * ends - 1) / (2 * noise**2))
    first, last = math.floor(losses[0] / step), math.ceil(losses[1] / step)
    e = np.arange(first, last + 1) * step
    x = np.concatenate(([-np.inf], _places(e, noise, rate), [np.inf]))
    zero, one = _cells(x, 0.0, noise), _cells(x, 1.0, noise)
    p, q = (1 - rate) * zero + rate * one, zero
    if not remove:
        p, q, e, first = q[::-1], p[::-1], -e[::-1], -last
    inside, beside = p[1:-1], q[1:-1]
    lower = np.clip((beside * np.exp(e[1:]) - inside) / math.expm1(step), 0.0, inside)
    made = np.append(lower, 0.0) + np.insert(inside - lower, 0, p[0])
    return made, first, float(p[-1])


def _epsilon(noise: float, rate: float, rounds: int, delta: float, remove: bool) -> float:
    step = max(STEP / max(10, rounds, 2 * noise), (1 + 2 * REACH * noise) / noise**2 / POINTS)
    while True:
        p, first, infinite = _losses(noise, rate, remove, step)
        low, high = _window(p, (first + np.arange(len(p))) * step, rounds)
        size = math.ceil(high / step) - math.floor(low / step) + 1
        if size <= POINTS:
            break
        step *= 2
    start = math.floor(low / step)
    composed, total = _composed(p, first, rounds, start, size), (start + np.arange(size)) * step
    beyond = -math.expm1(rounds * math.log1p(-infinite)) + 2 * TAIL + float(composed[total > MOST].sum())
    return _least(total[total <= MOST], composed[total <= MOST], beyond, delta)


def _window(p: np.ndarray, values: np.ndarray, rounds: int) -> tuple[float, float]:
    """Ends of an interval that the sum of so many losses leaves with a probability of at most TAIL on either side."""
    with np.errstate(divide="ignore"):
        log_p = np.log(p)
    ends = []
    for sign in (-1.0, 1.0):
        best = math.inf
        for order in ORDERS:
            terms = log_p + order * sign * values
            top = terms.max()
            moment = top + math.log(np.exp(terms - top).sum())
            best = min(best, (rounds * moment - math.log(TAIL)) / order)
        ends.append(sign * best)
    return ends[0], ends[1]


def _composed(p: np.ndarray, first: int, rounds: int, start: int, size: int) -> np.ndarray:
    """The distribution of the sum on `size` multiples from number `start` on."""
    fast = 1 << (size - 1).bit_length()
    folded = np.bincount(np.arange(len(p)) % fast, weights=p, minlength=fast)
    total = np.fft.irfft(np.fft.rfft(folded) ** rounds, fast)
    return np.maximum(np.roll(total, rounds * first - start), 0.0)[:size]


def _least(values: np.ndarray, p: np.ndarray, beyond: float, delta: float) -> float:
    """The least e >= 0 with delta(e) = sum over losses l > e of (1 - exp(e - l)) p(l), + `beyond`, at most `delta`."""
    if beyond > delta:
        return math.inf
    keep = values > 0
    values, p = values[keep], p[keep]
    above = np.cumsum(p[::-1])[::-1]  # P(loss >= l_i)
    below = np.cumsum((p * np.exp(-values))[::-1])[::-1]
    reached = above - np.exp(values) * below + beyond <= delta  # at e = l_i
    i = int(np.argmax(reached)) if reached.any() else len(values)
    if i == len(values):
        return float(values[-1]) if len(values) else 0.0
    # between l_{i-1} and l_i delta(e) = above_i - exp(e) below_i + beyond
    if above[i] + beyond <= delta:
        return float(values[i - 1]) if i else 0.0
    return max(0.0, math.log((above[i] + beyond - delta) / below[i]))
