"""Differential privacy of whole clients: clipping, noise on the sum, and what a number of rounds costs.

```
u_i = min(1, clip / |u_i|) u_i      one norm over all numbers of an update
mean = (sum_i u_i + N(0, (z clip)^2)) / (q N)        a public denominator: neither who was drawn nor who answered
```
The neighbour of a federation has one client more or less, with all its examples. Sampling is Poisson's: each client is
in a round with probability q, independently; that is what `accountant` counts.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

import numpy as np

from anyformer.federate import accountant

DROWNED = 100.0  # noise of the whole run, in multiples of the longest path that updates can take
ROUNDING = 1e-4  # by which float32 may lengthen a clipped update


@dataclass(frozen=True)
class Privacy:
    """The mechanism of a run.

    Attributes:
        clip: the largest length of an update. noise: z. rate: q. clients: N. delta: of the guarantee.
    """

    clip: float
    noise: float
    rate: float
    clients: int
    delta: float

    @property
    def denominator(self) -> float:
        """q N."""
        return self.rate * self.clients

    def spent(self, rounds: int) -> float:
        """Epsilon after so many rounds; infinite without noise."""
        return accountant.epsilon(self.noise, self.rate, rounds, self.delta)

    def mean(self, total: np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        """The noised mean of clipped updates with this sum, float64. Noise is drawn from the system's entropy."""
        generator = generator or np.random.default_rng(secrets.randbits(256))
        return (total + self.noise * self.clip * generator.standard_normal(len(total))) / self.denominator

    def assumptions(self, blind: bool) -> list[str]:
        """The assumptions of epsilon, in lines. `blind`: clients send no losses, measures and marks of what was cut."""
        told = "held-out measures, losses, and whether an update was clipped"
        told = f"; {told} are not sent" if blind else f", {told} (--blind true: the last three are not sent)"
        return [
            f"(epsilon, delta={self.delta:g}) for a whole client, added or removed, by privacy loss distributions",
            f"each of {self.clients} clients is in a round with probability {self.rate:g}, independently (Poisson)",
            f"noise {self.noise:.4g} x clip {self.clip:g} on the sum, divided by {self.denominator:g}, without weights",
            "against those who see the models; the server adds the noise, and sees the sum before and who was drawn",
            f"not counted: names of labels, numbers of examples{told}",
        ]


def clipped(update: np.ndarray, clip: float) -> tuple[np.ndarray, bool]:
    """An update of a length of at most `clip`, and whether it was longer."""
    length = float(np.linalg.norm(update.astype(np.float64)))
    return (update, False) if length <= clip else ((update * (clip / length)).astype(update.dtype), True)


def drowned(noise: float, rate: float, clients: int, rounds: int, numbers: int) -> float:
    """The expected length of all noise over the longest path of updates: z sqrt(T P) / (q N T)."""
    return noise * math.sqrt(numbers / rounds) / (rate * clients)


def planned(target: float, delta: float, clip: float, rate: float, clients: int, rounds: int, numbers: int) -> Privacy:
    """The mechanism with the least noise whose epsilon is at most `target`.

    Args:
        numbers: P, how many are trained.

    Raises:
        ValueError: for a delta that lets whole clients leak, and for a target that these clients cannot give: its noise
            would be a hundred times as long as the path of all updates, if they had full length and one direction. The
            nearest possible epsilon, and number of rounds, are named.
    """
    if not delta < 1 / clients:
        raise ValueError(
            f"delta={delta:g} is no privacy among {clients} clients: publishing one of them whole has delta "
            f"{1 / clients:g}; use at most {0.1 / clients:.1g}"
        )
    noise = accountant.noise_for(target, rate, rounds, delta)
    if (ratio := drowned(noise, rate, clients, rounds, numbers)) <= DROWNED:
        return Privacy(clip, noise, rate, clients, delta)
    most = DROWNED * noise / ratio
    nearest = accountant.epsilon(most, rate, rounds, delta)
    fewer = next((r for r in _halves(rounds) if _possible(target, delta, rate, clients, r, numbers)), None)
    more = f", or {fewer} rounds" if fewer else ", and fewer rounds do not help"
    raise ValueError(
        f"epsilon={target:g} needs noise {noise:.3g} x clip, and {clients} clients with {numbers:,} numbers for "
        f"{rounds} rounds can carry {most:.3g}: beyond it noise is {DROWNED:g} times as long as all updates together. "
        f"The nearest possible is epsilon={_up(nearest)}{more}; more clients or fewer trained numbers (--rank 1) make "
        "it smaller"
    )


def _halves(rounds: int) -> list[int]:
    return [rounds >> i for i in range(1, rounds.bit_length())]


def _possible(target: float, delta: float, rate: float, clients: int, rounds: int, numbers: int) -> bool:
    noise = accountant.noise_for(target, rate, rounds, delta)
    return drowned(noise, rate, clients, rounds, numbers) <= DROWNED


def _up(value: float) -> str:
    """Three digits, rounded up, so that what is printed is possible."""
    scale = 10.0 ** (2 - math.floor(math.log10(value))) if 0 < value < math.inf else 1.0
    return f"{math.ceil(value * scale) / scale:g}" if value < math.inf else "infinite"
