"""Examples on disk: encoded once from rows, mapped into memory, read by number. N examples.

```
~/.cache/anyformer/tokens/KEY/        KEY: SHA-256 of the rows, of their encoding, and of the format
    input_ids.bin       int32         of all examples, one after another (or uint8: bytes; float32: numbers)
    input_ids.ends.bin  int64 (N,)    the end of each example
    labels.bin …                      the same for each name
    index.json                        sizes and checksums
```
Kept beside the token caches, under the same rules: whole or not at all, checked when opened, safe to delete
(`data.cache`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from anyformer.data import cache

Example = dict[str, np.ndarray]  # by name: (T,), or () where each example has one number
FORMAT = 2


@dataclass(frozen=True, eq=False)
class Field:
    """One field of all examples: `values` and, if their lengths differ, the `ends` (N,) of each."""

    values: np.ndarray
    ends: np.ndarray | None

    def __getitem__(self, number: int) -> np.ndarray:
        if self.ends is None:
            return np.asarray(self.values[number])
        return np.array(self.values[self.ends[number - 1] if number else 0 : self.ends[number]])

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """The lengths of this field in these examples. (n,) -> (n,)."""
        if self.ends is None:
            return np.ones_like(numbers)
        return self.ends[numbers] - np.where(numbers > 0, self.ends[numbers - 1], 0)


@dataclass(frozen=True, eq=False)
class Store:
    """Examples by number: `store[i]`.

    Attributes:
        fields: by name. `seen`: number of rows, those without an example included. `fingerprint`: equal for equal
            examples.
    """

    fields: dict[str, Field]
    size: int
    seen: int
    fingerprint: str

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> Example:
        return {name: field[number] for name, field in self.fields.items()}


def stored(
    examples: Callable[[], Iterable[Example | None]], description: str, folder: str | Path | None = None
) -> Store:
    """The examples, from the cache, or written into it first, one at a time.

    Args:
        examples: yields them; only called when they are not cached. None stands for a row without an example.
        description: a text that determines them. `folder`: see `cache.place`.

    Raises:
        ValueError: if some examples lack a field, or there are none. OSError: see `cache.cached`.
    """
    return cache.cached(f"examples {FORMAT} {description}", lambda work: _write(examples(), work), opened, folder)


def _write(examples: Iterable[Example | None], folder: Path) -> None:
    index: dict[str, Any] = {}
    files: dict[str, tuple[cache.Summed, cache.Summed]] = {}
    size = seen = 0
    with contextlib.ExitStack() as stack:
        for example in examples:
            seen += 1
            if example is None:
                continue
            if not size:
                index = {
                    name: {"dtype": _dtype(v), "single": np.ndim(v) == 0, "values": 0} for name, v in example.items()
                }
                new = partial(_new, stack, folder)
                files = {name: (new(f"{name}.bin"), new(f"{name}.ends.bin")) for name in example}
            if example.keys() != index.keys():
                raise ValueError(
                    f"an example has the fields {', '.join(example)}; those before it have {', '.join(index)}"
                )
            for name, value in example.items():
                if _dtype(value) != index[name]["dtype"]:
                    raise ValueError(f"{name} are {_dtype(value)}, and those before it {index[name]['dtype']}")
                index[name]["values"] += np.size(value)
                files[name][0].write(np.asarray(value, index[name]["dtype"]))
                if not index[name]["single"]:
                    files[name][1].write(np.array(index[name]["values"], np.int64))
            size += 1
        for both in files.values():
            for file in both:
                cache.sync(file.out)
    for name, (values, ends) in files.items():
        index[name] |= {"crc32": values.crc, "ends_crc32": ends.crc, "sha256": values.sha.hexdigest()}
        index[name]["sha256"] += ends.sha.hexdigest()
    with open(folder / "index.json", "xb") as out:
        out.write(json.dumps({"format": FORMAT, "size": size, "seen": seen, "fields": index}, indent=2).encode())
        cache.sync(out)


def _new(stack: contextlib.ExitStack, folder: Path, name: str) -> cache.Summed:
    return cache.Summed(stack.enter_context(open(folder / name, "xb")))


def _dtype(value: Any) -> str:
    kind = np.asarray(value).dtype
    return "uint8" if kind == np.uint8 else "float32" if kind.kind == "f" else "int32"


def opened(folder: Path) -> Store:
    """The store in a folder, after checks of sizes, then checksums.

    Raises:
        ValueError, OSError, KeyError: if it is damaged.
    """
    index = json.loads((folder / "index.json").read_bytes())
    if index["format"] != FORMAT:
        raise ValueError(f"format {index['format']}, expected {FORMAT}")
    fields, digest = {}, hashlib.sha256()
    for name, about in index["fields"].items():
        values = cache.mapped(folder / f"{name}.bin", np.dtype(about["dtype"]), about["values"], about["crc32"])
        count = 0 if about["single"] else index["size"]
        ends = cache.mapped(folder / f"{name}.ends.bin", np.dtype(np.int64), count, about["ends_crc32"])
        fields[name] = Field(values, None if about["single"] else ends)
        digest.update(f"{name} {about['sha256']} ".encode())
    return Store(fields, index["size"], index["seen"], digest.hexdigest()[:16])
