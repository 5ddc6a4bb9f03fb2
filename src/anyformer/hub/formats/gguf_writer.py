"""GGUF files, written: metadata, the table of tensors, and their data in the number formats of `dequant`."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from anyformer.hub.formats.dequant import STORED
from anyformer.hub.formats.gguf import ARRAY, BOOL, STRING
from anyformer.hub.formats.guard import atomic_write

ALIGNMENT = 32
CODES = {stored.name: code for code, stored in STORED.items()}
UINT32, INT32, FLOAT32, UINT64, INT64 = 4, 5, 6, 10, 11
ARRAYS = {np.dtype(np.int32): INT32, np.dtype(np.float32): FLOAT32}
Make = Callable[[], Tensor]
Blocks = Callable[[np.ndarray, np.ndarray | None], np.ndarray]


def write_gguf(
    path: str | Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, Make]],
    scales: Mapping[str, Make] = MappingProxyType({}),
) -> None:
    """Writes a file whole or not at all.

    Args:
        metadata: texts, lists of texts, whole numbers, floats, booleans, and arrays of int32 or float32.
        tensors: by name the number format (F32, F16, BF16, Q8_0, Q4_0, Q4_1), and a function that makes the values,
            called twice.
        scales: of tensors that are on a grid of Q8_0 or Q4_0 already, one for each value: the file holds these numbers.

    Raises:
        ValueError: naming the tensor, for rows that are no whole blocks, or values that the format cannot hold.
        OSError: as `atomic_write`.
    """

    def content(file: BinaryIO) -> None:
        rows, at = [], 0
        for name, (kind, make) in tensors.items():
            shape = tuple(make().shape)
            if shape[-1] % STORED[CODES[kind]].items:
                raise ValueError(
                    f"tensor {name!r}: rows of {shape[-1]} numbers are no whole blocks of "
                    f"{STORED[CODES[kind]].items}, which {kind} needs; choose float16"
                )
            size = int(np.prod(shape)) // STORED[CODES[kind]].items * STORED[CODES[kind]].bytes
            dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
            rows.append(_text(name) + dims + struct.pack("<IQ", CODES[kind], at))
            at = -(-(at + size) // ALIGNMENT) * ALIGNMENT
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(rows), len(metadata)))
        for name, value in metadata.items():
            file.write(_text(name) + _value(name, value))
        file.write(b"".join(rows))
        file.write(b"\0" * (-file.tell() % ALIGNMENT))
        for name, (kind, make) in tensors.items():
            file.write(packed(name, make(), kind, scales[name]() if name in scales else None))
            file.write(b"\0" * (-file.tell() % ALIGNMENT))

    atomic_write(path, content)


def packed(name: str, tensor: Tensor, kind: str, scales: Tensor | None = None) -> bytes:
    """The bytes of a tensor in a number format; equal to those of the reference, ggml.

    Args:
        scales: of each value, if they are known.

    Raises:
        ValueError: naming the tensor, if a value becomes infinite or is none.
    """
    values = tensor.detach().float().cpu()
    if kind == "BF16":
        stored = values.bfloat16()
    elif kind in ("F16", "F32"):
        stored = values.half() if kind == "F16" else values
    else:
        blocks = values.numpy().reshape(-1, STORED[CODES[kind]].items)  # (N, 32)
        known = None if scales is None else scales.float().numpy().reshape(blocks.shape)[:, :1]
        data = QUANTISED[kind](blocks, known)
        stored_scales = np.ascontiguousarray(data[:, : data.shape[1] - BODY[kind]]).view(np.float16)
        if not np.isfinite(stored_scales).all():
            raise ValueError(f"tensor {name!r} has values that {kind} cannot hold; choose float32")
        return data.tobytes()
    if not bool(stored.isfinite().all()):
        raise ValueError(f"tensor {name!r} has values that {kind} cannot hold; choose float32 or bfloat16")
    return (
        stored.view(torch.uint8).numpy().tobytes() if stored.ndim else stored[None].view(torch.uint8).numpy().tobytes()
    )


def _inverse(d: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(d == 0, np.float32(0), 1 / d)


def _halves(q: np.ndarray) -> np.ndarray:
    """Numbers of four bits (N, 32) as bytes (N, 16): the first half low, the second high."""
    return q[:, :16] | q[:, 16:] << np.uint8(4)


def _q8_0(x: np.ndarray, d: np.ndarray | None) -> np.ndarray:
    d = np.abs(x).max(1, keepdims=True) / np.float32(127) if d is None else d
    scaled = x * _inverse(d)
    size = np.floor(np.abs(scaled))
    q = np.sign(scaled) * (size + np.floor(2 * (np.abs(scaled) - size)))  # halves away from 0
    return np.concatenate((d.astype(np.float16).view(np.uint8), q.astype(np.int8).view(np.uint8)), 1)


def _q4_0(x: np.ndarray, d: np.ndarray | None) -> np.ndarray:
    d = np.take_along_axis(x, np.abs(x).argmax(1, keepdims=True), 1) / np.float32(-8) if d is None else d
    q = np.trunc(x * _inverse(d) + np.float32(8.5)).astype(np.uint8).clip(0, 15)
    return np.concatenate((d.astype(np.float16).view(np.uint8), _halves(q)), 1)


def _q4_1(x: np.ndarray, _: np.ndarray | None) -> np.ndarray:
    least = x.min(1, keepdims=True)
    d = (x.max(1, keepdims=True) - least) / np.float32(15)
    q = np.trunc((x - least) * _inverse(d) + np.float32(0.5)).astype(np.uint8).clip(0, 15)
    return np.concatenate((*(t.astype(np.float16).view(np.uint8) for t in (d, least)), _halves(q)), 1)


QUANTISED: dict[str, Blocks] = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1}
BODY = {"Q8_0": 32, "Q4_0": 16, "Q4_1": 16}  # bytes of a block behind its scales


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(name: str, value: Any) -> bytes:
    """A value of the metadata, with its type in front."""
    if isinstance(value, bool):
        return struct.pack("<IB", BOOL, value)
    if isinstance(value, int):
        wide = not -(2**31) <= value < 2**32
        if value < 0:
            return struct.pack("<Iq" if wide else "<Ii", INT64 if wide else INT32, value)
        return struct.pack("<IQ" if wide else "<II", UINT64 if wide else UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_text, value))
    if isinstance(value, np.ndarray) and value.dtype in ARRAYS:
        return struct.pack("<IIQ", ARRAY, ARRAYS[value.dtype], len(value)) + value.tobytes()
    raise ValueError(f"metadata {name!r}: a GGUF file cannot hold {type(value).__name__}")
