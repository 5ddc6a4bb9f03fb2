"""The number formats of GGUF, to float32.

A quantised tensor is a run of blocks, each with its own scale d (float16) and, in the `_1` types, offset m:

    Q8_0   32 values, 34 bytes   d, int8 q[32]                                   x = d q
    Q4_0   32 values, 18 bytes   d, nibbles[16]                                  x = d (q - 8)
    Q4_1   32 values, 20 bytes   d, m, nibbles[16]                               x = d q + m
    Q5_0   32 values, 22 bytes   d, fifth bits (32), nibbles[16]                 x = d (q - 16)
    Q5_1   32 values, 24 bytes   d, m, fifth bits (32), nibbles[16]              x = d q + m

Byte i of the nibbles holds value i (low half) and value i + 16 (high half). Products and sums are rounded
one after the other in float32, which gives the same bits as the reference. K-quants and the rarer types are
left to the `dequantize` of the `gguf` package.

NumPy and not torch does the work, slice by slice so that it stays in the cache: 135 M parameters of Q4_1 and Q8_0
take 0.45 s on one core (torch: 0.5 s, and 18 s when its threads share busy cores).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SLICE = 262_144  # values converted at a time: 1 MB of float32
ITEMS = 32  # values in a block of the types converted here


class Stored(NamedTuple):
    """A type of GGUF: `items` values take `bytes` bytes; `exact`: stored unchanged as `dtype`."""

    name: str
    items: int
    bytes: int
    dtype: torch.dtype = torch.float32
    exact: bool = False


STORED = {
    0: Stored("F32", 1, 4, exact=True),
    1: Stored("F16", 1, 2),
    2: Stored("Q4_0", 32, 18),
    3: Stored("Q4_1", 32, 20),
    6: Stored("Q5_0", 32, 22),
    7: Stored("Q5_1", 32, 24),
    8: Stored("Q8_0", 32, 34),
    9: Stored("Q8_1", 32, 40),
    10: Stored("Q2_K", 256, 84),
    11: Stored("Q3_K", 256, 110),
    12: Stored("Q4_K", 256, 144),
    13: Stored("Q5_K", 256, 176),
    14: Stored("Q6_K", 256, 210),
    15: Stored("Q8_K", 256, 292),
    16: Stored("IQ2_XXS", 256, 66),
    17: Stored("IQ2_XS", 256, 74),
    18: Stored("IQ3_XXS", 256, 98),
    19: Stored("IQ1_S", 256, 50),
    20: Stored("IQ4_NL", 32, 18),
    21: Stored("IQ3_S", 256, 110),
    22: Stored("IQ2_S", 256, 82),
    23: Stored("IQ4_XS", 256, 136),
    24: Stored("I8", 1, 1, torch.int8, exact=True),
    25: Stored("I16", 1, 2, torch.int16, exact=True),
    26: Stored("I32", 1, 4, torch.int32, exact=True),
    27: Stored("I64", 1, 8, torch.int64, exact=True),
    28: Stored("F64", 1, 8),
    29: Stored("IQ1_M", 256, 56),
    30: Stored("BF16", 1, 2),
    34: Stored("TQ1_0", 256, 54),
    35: Stored("TQ2_0", 256, 66),
    39: Stored("MXFP4", 32, 17),
    40: Stored("NVFP4", 64, 36),
    41: Stored("Q1_0", 128, 18),
}

FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def dequantize(raw: Tensor, stored: Stored) -> Tensor:
    """The bytes of one tensor (uint8, (N,)) of type `stored` as flat float32, (N / bytes * items,).

    Errors: ValueError for a type that needs the `gguf` package, if that is missing or lacks the type.
    """
    if stored.name in FLOATS:
        return raw.view(FLOATS[stored.name]).float()
    convert = BLOCKS.get(stored.name) or _by_package(stored)
    blocks = raw.numpy().reshape(-1, stored.bytes)  # (N, bytes)
    out = np.empty((len(blocks), stored.items), np.float32)  # (N, items)
    step = SLICE // stored.items
    with np.errstate(invalid="ignore", over="ignore"):  # a scale of inf or NaN is the file's own
        for begin in range(0, len(blocks), step):
            convert(blocks[begin : begin + step], out[begin : begin + step])
    return torch.from_numpy(out.reshape(-1))


def _by_package(stored: Stored) -> Callable[[np.ndarray, np.ndarray], None]:
    """A converter that uses the `gguf` package."""
    try:
        import gguf
    except ImportError:
        raise ValueError(f"GGUF type {stored.name} needs the package gguf: pip install gguf") from None
    kind = gguf.GGMLQuantizationType[stored.name]

    def convert(blocks: np.ndarray, out: np.ndarray) -> None:
        try:
            out[:] = gguf.dequantize(blocks.reshape(1, -1), kind).reshape(out.shape)
        except NotImplementedError:
            raise ValueError(f"GGUF type {stored.name}: the package gguf cannot convert it") from None

    return convert


def _scale(blocks: np.ndarray, index: int) -> np.ndarray:
    """The float16 number `index` of each block as float32, (N, 1)."""
    return blocks.view(np.float16)[:, index : index + 1].astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """(N, 16) bytes to (N, 32) numbers of four bits: the low halves, then the high ones."""
    q = np.empty((len(packed), ITEMS), np.uint8)
    np.bitwise_and(packed, 15, out=q[:, :16])
    np.right_shift(packed, 4, out=q[:, 16:])
    return q


def _fives(packed: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Numbers of five bits, (N, 32): nibbles (N, 16), and on top of each one bit of the bytes (N, 4)."""
    tops = np.unpackbits(bits, axis=1, bitorder="little")  # (N, 32)
    return _nibbles(packed) + (tops << 4)


def _q8_0(blocks: np.ndarray, out: np.ndarray) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), _scale(blocks, 0), out=out)


def _q4_0(blocks: np.ndarray, out: np.ndarray) -> None:
    np.multiply(_nibbles(blocks[:, 2:]).view(np.int8) - np.int8(8), _scale(blocks, 0), out=out)


def _q4_1(blocks: np.ndarray, out: np.ndarray) -> None:
    np.multiply(_nibbles(blocks[:, 4:]), _scale(blocks, 0), out=out)
    out += _scale(blocks, 1)


def _q5_0(blocks: np.ndarray, out: np.ndarray) -> None:
    q = _fives(blocks[:, 6:], blocks[:, 2:6]).view(np.int8) - np.int8(16)
    np.multiply(q, _scale(blocks, 0), out=out)


def _q5_1(blocks: np.ndarray, out: np.ndarray) -> None:
    np.multiply(_fives(blocks[:, 8:], blocks[:, 4:8]), _scale(blocks, 0), out=out)
    out += _scale(blocks, 1)


BLOCKS = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1}
