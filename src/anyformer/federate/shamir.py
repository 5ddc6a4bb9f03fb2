"""Secrets shared among clients: any `threshold` of them restore one, fewer know nothing (Shamir, 1979).

A secret s is the constant of a random polynomial over the numbers modulo p = 2^521 - 1; a share is its value at x > 0.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping

PRIME = 2**521 - 1  # the smallest Mersenne prime above every secret of 256 bits
SECRET, SHARE = 32, 66  # bytes


def split(secret: bytes, threshold: int, places: Iterable[int]) -> dict[int, int]:
    """The shares of a secret of 32 bytes, by place (from 1)."""
    assert len(secret) == SECRET
    factors = [int.from_bytes(secret), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return {x: _value(factors, x) for x in places}


def _value(factors: list[int], x: int) -> int:
    value = 0
    for factor in reversed(factors):
        value = (value * x + factor) % PRIME
    return value


def join(shares: Mapping[int, int]) -> bytes:
    """The secret, by Lagrange's formula at 0.

    Raises:
        ValueError: if the shares do not belong together; some wrong ones give a wrong secret.
    """
    total = 0
    for x, value in shares.items():
        above = below = 1
        for other in shares:
            if other != x:
                above, below = above * other % PRIME, below * (other - x) % PRIME
        total = (total + value * above * pow(below, -1, PRIME)) % PRIME
    if total >= 1 << 8 * SECRET:
        raise ValueError("the shares of a secret do not belong together: too few, or one of them is wrong")
    return total.to_bytes(SECRET)
