"""GGUF: the single-file format of llama.cpp (weights, hyperparameters and tokenizer), versions 2 and 3.

    | "GGUF", u32 version, u64 tensors, u64 keys | keys | tensor table | padding | data, each tensor padded |

    key     string name, u32 type, value          string  u64 length, UTF-8 bytes
    table   string name, u32 dims, u64 dims[],    array   u32 type, u64 count, values
            u32 type, u64 offset                  (all little endian; dims fastest first, so reversed here)

Every count and length is checked against the bytes that are left before memory is spent on it, so a file
that promises 2^60 strings is refused at the first count. Numeric arrays of the metadata become numpy arrays
(as large as in the file), strings and string arrays become `str` and `list[str]`.

Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import os
import re
import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.hub.formats.dequant import STORED, Stored, dequantize
from anyformer.hub.formats.guard import inside, map_file, refuse, short
from anyformer.hub.formats.safetensors import Entry, TensorFile

MAX_STRINGS = 2_000_000  # in one file; a vocabulary of 262 k with its merges has 0.8 M
MAX_ROWS = 200_000  # tensors and keys
MAX_KEY = 65_535  # bytes of a key, from the specification
MAX_NAME = 255  # bytes of a tensor name; 63 in the specification, not in all files
MAX_DIMS = 4
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")

NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"), 1: np.dtype("<i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"), 4: np.dtype("<u4"),
    5: np.dtype("<i4"), 6: np.dtype("<f4"), 7: np.dtype("?"), 10: np.dtype("<u8"), 11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}  # fmt: skip
BOOL, STRING, ARRAY = 7, 8, 9


class Cursor:
    """A read position in the mapped file, never past its end."""

    def __init__(self, path: Path, data: mmap.mmap, size: int):
        self.path, self.data, self.size = path, data, size
        self.at = 0
        self.strings = 0

    def need(self, count: int, what: str) -> int:
        """Step over `count` bytes; returns where they begin. FileRefused when the file does not have them."""
        start = self.at
        if count > self.size - start:
            raise refuse(self.path, what, f"at most the {self.size - start:,} bytes left", f"{count:,} bytes")
        self.at += count
        return start

    def integer(self, width: int, what: str) -> int:
        """An unsigned integer of `width` bytes."""
        start = self.need(width, what)
        return int.from_bytes(self.data[start : start + width], "little")

    def string(self, what: str, limit: int) -> str:
        """A string of at most `limit` bytes."""
        length = self.integer(8, what)
        if length > limit:
            raise refuse(self.path, f"length of {what}", f"at most {limit:,} bytes", f"{length:,}")
        start = self.need(length, what)
        return self.decode(self.data[start : self.at], what)

    def decode(self, text: bytes, what: str) -> str:
        """UTF-8 or FileRefused."""
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError:
            raise refuse(self.path, what, "UTF-8", repr(text)) from None

    def value(self, kind: int, what: str) -> Any:
        """A metadata value of type `kind`."""
        if kind == STRING:
            return self.string(what, self.size)
        if kind == ARRAY:
            kind, count = self.integer(4, what), self.integer(8, what)
            return self.list_of_strings(count, what) if kind == STRING else self.numbers(kind, count, what)
        return self.numbers(kind, 1, what)[0].item()

    def numbers(self, kind: int, count: int, what: str) -> np.ndarray:
        """`count` numbers; an array of arrays, which the format allows and no writer makes, is refused."""
        if kind not in NUMBERS:
            raise refuse(self.path, f"type of {what}", f"a number or string ({[*NUMBERS, STRING]})", kind)
        dtype: np.dtype[Any] = NUMBERS[kind]
        start = self.need(count * dtype.itemsize, what)
        if kind == BOOL and self.data[start : self.at].strip(b"\0\1"):
            raise refuse(self.path, what, "booleans (bytes 0 and 1)", "another byte")
        return np.frombuffer(self.data, dtype, count, start).copy()

    def list_of_strings(self, count: int, what: str) -> list[str]:
        """`count` strings, the hot loop of a load: a vocabulary has 10^5."""
        self.strings += count
        if count * 8 > self.size - self.at or self.strings > MAX_STRINGS:
            limit = min((self.size - self.at) // 8, MAX_STRINGS)
            raise refuse(self.path, f"count of {what}", f"at most {limit:,} strings", f"{count:,}")
        data, size, at, read = self.data, self.size, self.at, struct.Struct("<Q").unpack_from
        texts = []
        for i in range(count):
            end = at + 8
            if end <= size:
                at, end = end, end + read(data, at)[0]
            if end > size:
                raise refuse(self.path, f"{what}[{i}]", f"an end within {size:,} bytes", f"one at {end:,}")
            texts.append(data[at:end])
            at = end
        self.at = at
        return [self.decode(text, what) for text in texts]


class GGUF(TensorFile):
    """One GGUF file; header, metadata and tensor table are validated in full at construction.

    `get` returns float32 for every stored float type, quantised or not (F32 as a view of the map), and
    integers as they are, with the shape in PyTorch order. Quantised pages leave memory again once they have
    been converted.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._data, self._size = map_file(path, at_least=24)
        cursor = Cursor(self.path, self._data, self._size)
        magic = self._data[cursor.need(4, "magic") : 4]
        if magic != b"GGUF":
            raise refuse(path, "magic", b"GGUF", magic)
        version = cursor.integer(4, "version")
        if version not in (2, 3):
            raise refuse(path, "version", "2 or 3, little endian", version)
        tensors, keys = cursor.integer(8, "tensor count"), cursor.integer(8, "key count")
        left = self._size - cursor.at
        if tensors * 24 + keys * 13 > left or tensors + keys > MAX_ROWS:  # the smallest row and key
            most = f"what {left:,} bytes can hold, and at most {MAX_ROWS:,}"
            raise refuse(path, "counts", most, f"{tensors:,} tensors, {keys:,} keys")
        self.metadata = {}
        for _ in range(keys):
            key = cursor.string("key", MAX_KEY)
            if not key:
                raise refuse(path, "key", "a name", key)
            if key in self.metadata:
                raise refuse(path, "metadata", "every key once", f"{key} twice")
            self.metadata[key] = cursor.value(cursor.integer(4, f"type of {short(key)}"), short(key))
        self.entries = {}
        self._types: dict[str, Stored] = {}
        spans = [self._row(cursor) for _ in range(tensors)]
        self._place(cursor.at, spans)

    def _row(self, cursor: Cursor) -> tuple[int, int, str, tuple[int, ...]]:
        """One row of the tensor table: offset, size in bytes, name, shape in PyTorch order."""
        name = cursor.string("tensor name", MAX_NAME)
        where = f"{self.path}, tensor {short(name)}"
        if name in self._types:
            raise refuse(where, "tensor table", "every name once", "it twice")
        rank = cursor.integer(4, f"dims of {name}")
        if rank > MAX_DIMS:
            raise refuse(where, "dims", f"at most {MAX_DIMS}", f"{rank:,}")
        shape = tuple(cursor.integer(8, f"dims of {name}") for _ in range(rank))[::-1]
        code, offset = cursor.integer(4, f"type of {name}"), cursor.integer(8, f"offset of {name}")
        if code not in STORED:
            raise refuse(where, "type", "a known one", code)
        stored = self._types[name] = STORED[code]
        if (shape[-1] if shape else 1) % stored.items:
            raise refuse(where, "shape", f"rows of a multiple of {stored.items} for {stored.name}", shape)
        return offset, math.prod(shape) // stored.items * stored.bytes, name, shape

    def _place(self, end: int, spans: list[tuple[int, int, str, tuple[int, ...]]]) -> None:
        """Check that the tensors follow one another, padded to the alignment, and end with the file."""
        align = self.metadata.get("general.alignment", 32)
        if type(align) is not int or not 8 <= align <= 65_536 or align & (align - 1):
            raise refuse(self.path, "general.alignment", "a power of two from 8 to 65536", align)
        start = -(-end // align) * align
        position = 0
        for offset, size, name, shape in sorted(spans):
            where = f"{self.path}, tensor {short(name)}"
            if offset != position:
                what = "overlaps another tensor" if offset < position else "leaves a hole before it"
                raise refuse(where, f"offset ({what})", f"{position:,}", f"{offset:,}")
            if offset + size > self._size - start:
                raise refuse(where, "end (truncated file?)", f"at most {self._size - start:,}", f"{offset + size:,}")
            position = -(-(offset + size) // align) * align
            stored = self._types[name]
            self.entries[name] = Entry(
                stored.dtype, shape, partial(_read, self._data, start + offset, size, stored, shape)
            )
        if spans and not self._size - start <= position:
            raise refuse(self.path, "size", f"at most {start + position:,} bytes", f"{self._size:,}")
        self.entries = {name: self.entries[name] for *_, name, _ in spans}  # in the order of the file's table


class Parts(TensorFile):
    """The files of a model that was split (`name-00001-of-00003.gguf` …), as one.

    The first one holds the metadata. Errors: FileRefused; FileNotFoundError naming the missing part.
    """

    def __init__(self, first: GGUF, count: int):
        self.path, self.metadata, self.entries = first.path, {}, {}
        part_name = PART.fullmatch(first.path.name)
        if part_name is None or int(part_name[3]) != count:
            expected = f"name-00001-of-{count:05d}.gguf, as `split.count` says"
            raise refuse(first.path, "name of a part", expected, first.path.name)
        for i in range(1, count + 1):
            name = f"{part_name[1]}-{i:05d}-of-{part_name[3]}.gguf"
            if not (first.path.parent / name).exists():
                raise FileNotFoundError(
                    f"{first.path}: it is part {int(part_name[2])} of {count}, and {name} is missing"
                )
            part = GGUF(inside(first.path.parent, name))
            if (part.metadata.get("split.no"), part.metadata.get("split.count")) != (i - 1, count):
                numbered = f"{part.metadata.get('split.no')} of {part.metadata.get('split.count')}"
                raise refuse(part.path, "split.no of split.count", f"{i - 1} of {count}", numbered)
            if twice := sorted(self.entries.keys() & part.entries.keys()):
                raise refuse(part.path, f"tensor {short(twice[0])}", "in one part", "in two")
            self.metadata = {**part.metadata, **self.metadata}
            self.entries |= part.entries
        wanted = self.metadata.get("split.tensors.count", len(self.entries))
        if wanted != len(self.entries):
            raise refuse(first.path, "split.tensors.count", len(self.entries), wanted)


def open_gguf(path: Path) -> TensorFile:
    """A GGUF file, or all parts of a split model, given any of them."""
    file = GGUF(path)
    count = file.metadata.get("split.count", 1)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= 100_000:
        raise refuse(path, "split.count", "a whole number", count)
    return file if count <= 1 else Parts(file, count)


def _read(data: mmap.mmap, start: int, size: int, stored: Stored, shape: tuple[int, ...]) -> Tensor:
    """One tensor from its bytes in the map."""
    if size == 0:
        return torch.empty(shape, dtype=stored.dtype)
    raw = torch.frombuffer(data, dtype=torch.uint8, count=size, offset=start)
    if stored.exact:
        return raw.view(stored.dtype).view(shape)
    values = dequantize(raw, stored).view(shape)
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages of this tensor alone: no view shares them
    length = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0 and hasattr(data, "madvise"):
        data.madvise(mmap.MADV_DONTNEED, first, length)
    return values
