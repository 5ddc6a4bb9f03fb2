"""A scaling law: the loss of a model of N parameters after D tokens, and the best N and D of an amount of computation.

    L(N, D) = E + A / N^alpha + B / D^beta,   C = 6 N D

Hoffmann et al., 2022 (arXiv:2203.15556); refitted by Besiroglu et al., 2024 (arXiv:2404.10102).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anyformer.hub.formats.guard import atomic_write, read_json, refuse

FIELDS = ("E", "A", "B", "alpha", "beta")
INTERVAL = (5.0, 95.0)  # percentiles of draws: 90 % intervals


@dataclass(frozen=True)
class Law:
    """The five numbers, and where they come from.

    Attributes:
        E, A, B, alpha, beta: of the formula.
        params, tokens: the least and the largest that were measured.
        draws: refits to resampled runs, each (E, A, B, alpha, beta); intervals come from them.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    params: tuple[float, float] = field(default=(0.0, math.inf), kw_only=True)
    tokens: tuple[float, float] = field(default=(0.0, math.inf), kw_only=True)
    draws: tuple[tuple[float, ...], ...] = field(default=(), repr=False, kw_only=True)

    def __post_init__(self) -> None:
        for name in FIELDS:
            value, zero = getattr(self, name), name == "E"
            if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
                raise ValueError(f"{name} must be a finite number {'of at least' if zero else 'above'} 0, got {value}")

    def loss(self, params: Any, tokens: Any) -> Any:
        """L of N and D."""
        return self.E + self.A / params**self.alpha + self.B / tokens**self.beta

    @property
    def a(self) -> float:
        """The exponent of the best N: it grows as C^a, the best D as C^(1 - a)."""
        return self.beta / (self.alpha + self.beta)

    def optimal(self, flops: float) -> tuple[float, float]:
        """N and D of the least loss for C operations: N = (alpha A / (beta B))^(1 / (alpha + beta)) (C / 6)^a."""
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        params = scale * (flops / 6) ** self.a
        return params, flops / 6 / params

    def tokens_for(self, params: float) -> float:
        """D for which N is the best size: the slopes alpha A / N^alpha and beta B / D^beta are equal."""
        slope = self.alpha * self.A / params**self.alpha
        return float((self.beta * self.B / slope) ** (1 / self.beta))

    def flops_for(self, loss: float) -> float:
        """The least C that reaches a loss.

        Raises:
            ValueError: for a loss of E or below, which no size reaches.
        """
        if not loss > self.E:
            raise ValueError(f"loss {loss:g} is not above E = {self.E:.4g}, which no size and no data go below")
        low, high = 0.0, 200.0  # log C
        while high - low > 1e-12 * high:
            middle = (low + high) / 2
            below = self.loss(*self.optimal(math.exp(middle))) < loss
            low, high = (low, middle) if below else (middle, high)
        return math.exp(high)

    def interval(self, of: Any) -> tuple[float, float] | None:
        """The 90 % interval of what `of(law)` says, over the draws; None where there are none."""
        if not self.draws:
            return None
        low, high = np.percentile([of(Law(*draw)) for draw in self.draws], INTERVAL)
        return float(low), float(high)

    def outside(self, params: float, tokens: float) -> str:
        """A warning for a size or a length outside the measured range, or ""."""
        said = []
        for name, value, (low, high) in (("parameters", params, self.params), ("tokens", tokens, self.tokens)):
            if value > high * (1 + 1e-9):
                said.append(f"{value / high:.3g} times the most {name} that were measured ({high:.3g})")
            elif value < low * (1 - 1e-9):
                said.append(f"{low / value:.3g} times fewer {name} than were measured ({low:.3g})")
        return "outside the measured range: " + " and ".join(said) if said else ""

    def save(self, path: Path) -> None:
        """Writes the law as JSON."""
        atomic_write(path, (json.dumps(asdict(self)) + "\n").encode())


_SIZES, _LENGTHS = (5.7e7, 1.62e10), (2.4e8, 3.2e11)  # of the 245 runs that were read off Hoffmann's figure 4
PUBLISHED = {
    "hoffmann": Law(1.69, 406.4, 410.7, 0.34, 0.28, params=_SIZES, tokens=_LENGTHS),
    "besiroglu": Law(1.8172, 482.01, 2085.43, 0.3478, 0.3658, params=_SIZES, tokens=_LENGTHS),
}


def load(name: str) -> Law:
    """A published law by name, or one that `Law.save` wrote.

    Raises:
        ValueError: for a file of another form. OSError: if there is no such file.
    """
    if name in PUBLISHED:
        return PUBLISHED[name]
    path = Path(name).expanduser()
    if not path.is_file():
        raise OSError(f"law: no {name!r}; there is {', '.join(PUBLISHED)}, or the JSON file of `anyformer scale fit`")
    content = read_json(path)
    missing = [n for n in FIELDS if not isinstance(content, dict) or not isinstance(content.get(n), int | float)]
    if missing:
        raise refuse(path, missing[0], f"the numbers {', '.join(FIELDS)}", "none")
    sizes, lengths = (_pair(path, n, content.get(n, [0, math.inf])) for n in ("params", "tokens"))
    draws = content.get("draws", [])
    if not isinstance(draws, list) or not all(_numbers(draw, len(FIELDS)) for draw in draws):
        raise refuse(path, "draws", "lists of five numbers", "something else")
    numbers = [float(content[n]) for n in FIELDS]
    return Law(*numbers, params=sizes, tokens=lengths, draws=tuple(map(tuple, draws)))


def _pair(path: Path, name: str, value: Any) -> tuple[float, float]:
    if not _numbers(value, 2):
        raise refuse(path, name, "two numbers", value)
    return float(value[0]), float(value[1])


def _numbers(value: Any, count: int) -> bool:
    return isinstance(value, Sequence) and len(value) == count and all(isinstance(v, int | float) for v in value)
