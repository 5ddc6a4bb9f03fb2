"""What the processor can do: its flags decide the form of the matrices."""

from __future__ import annotations

import platform
from collections.abc import Collection

from anyformer.core.machine import about

EXACT = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8")  # 8-bit products are summed in 32 bits
ARM = ("aarch64", "arm64")


def flags() -> frozenset[str]:
    """The flags of the processor as Linux names them; empty where they are unknown."""
    known = about()
    return frozenset(known.get("flags", known.get("Features", "")).split())


def exact_products(known: Collection[str], machine: str = "") -> bool:
    """True if products of 8-bit numbers are summed without overflow.

    x86 without VNNI adds two of them in 16 bits, where 127 x 255 x 2 does not fit: the sum saturates, and the result is
    wrong. ARM sums in 32 bits.
    """
    return (machine or platform.machine()).lower() in ARM or bool(set(EXACT) & set(known))
