"""Token ids on disk: made once from a text and a tokenizer, then mapped into memory and never held there whole.

```
~/.cache/anyformer/tokens/KEY/          KEY: SHA-256 of text, tokenizer and format
    ids.bin          uint16 or uint32   all documents, an end token between two if the tokenizer has one
    documents.bin    int64              the first token of each document
        index.json       sizes and checksums of both; the key
```
The folder is `$ANYFORMER_TOKENS`, else `tokens` in the cache of `sources` (`$ANYFORMER_CACHE`, `$XDG_CACHE_HOME`).
Deleting it is always safe. A cache appears whole or not at all; of two processes one makes it and the other waits.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from filelock import FileLock

from anyformer.data import sources

FORMAT = 1  # version of the files and of tokenisation; part of the key
TOGETHER = min(os.cpu_count() or 1, 16) << 18  # characters, a piece a core (0.2 kB of memory each, at worst), and
MANY = 1024  # texts, that are tokenised at once: on all cores, in bounded memory
READ = 1 << 24  # bytes of a checksum that are read at once

DISK = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOTDIR)

V = TypeVar("V")
Texts = Iterable[tuple[int, str]]  # (number of the document, piece of it)


@dataclass(frozen=True, eq=False)
class Tokens:
    """The token ids of a text.

    Attributes:
        ids: (N,), uint16 or uint32, mapped from a file.
        starts: the first token of each document, (M,) int64.
        fingerprint: equal for equal ids.
    """

    ids: np.ndarray
    starts: np.ndarray
    fingerprint: str


def place(folder: str | Path | None = None) -> Path:
    """The folder of all token caches."""
    return Path(folder or os.environ.get("ANYFORMER_TOKENS") or sources.cache() / "tokens").expanduser()


def tokens(texts: Callable[[], Texts], key: str, tokenizer: Any, folder: str | Path | None = None) -> Tokens:
    """The ids of a text, from the cache, or tokenised into it first.

    Args:
        texts: yields the text; only called when it must be tokenised.
        key: of the text: equal keys, equal texts. See `records.fingerprint`.
        tokenizer: a `hub.tokenizer.Tokenizer`.
        folder: of the caches; see `place`.

    Raises:
        OSError: when the cache cannot be written, with the way to move it. Whatever `texts` raises.
    """
    description = json.dumps([FORMAT, key, tokenizer.core.to_str(), tokenizer.role_id("eos_token")])
    return cached(description, lambda work: write(texts(), tokenizer, work), opened, folder)


def cached(
    description: str, make: Callable[[Path], None], open_: Callable[[Path], V], folder: str | Path | None = None
) -> V:
    """The cached result for `description`; made once, under a lock, if missing.

    Args:
        description: a text that determines the content: equal texts, equal content.
        make: writes it into an empty folder. `open_`: reads it from its folder, and raises for damaged files.

    Raises:
        OSError: when the cache cannot be written, with the way to move it. Whatever `make` raises.
    """
    key, cache = hashlib.sha256(description.encode()).hexdigest()[:40], place(folder)
    home, work = cache / key, cache / f".making-{key}"
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / f".{key}.lock")
        lock.acquire()
    try:
        if home.exists():
            try:
                return open_(home)
            except (OSError, ValueError, KeyError, TypeError) as error:
                warnings.warn(f"the token cache {home} is damaged ({error}); it is rebuilt", stacklevel=3)
        with writing(cache):
            shutil.rmtree(work, ignore_errors=True)  # left by a process that was killed: the lock is ours
            work.mkdir()
            make(work)
            shutil.rmtree(home, ignore_errors=True)
            os.rename(work, home)
        return open_(home)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        lock.release()


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Adds to an error in writing to the cache the way to move it."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK:
            raise
        raise OSError(
            error.errno,
            f"the token cache cannot be written: {error.strerror}. Set ANYFORMER_TOKENS, or the option cache, to a "
            "folder that can, with room for 2 to 4 bytes a token",
            str(folder),
        ) from error


def write(texts: Texts, tokenizer: Any, folder: Path) -> None:
    """Tokenises a text into the three files of a cache."""
    end, kind = tokenizer.role_id("eos_token"), dtype(tokenizer)
    starts: list[int] = []
    last, count = None, 0
    with open(folder / "ids.bin", "xb") as out:
        summed = Summed(out)
        for document, ids in encoded(texts, tokenizer):
            if document != last:
                if last is not None and end is not None:
                    summed.write(np.array([end], kind))
                    count += 1
                starts.append(count)
                last = document
            summed.write(ids.astype(kind))
            count += len(ids)
        sync(out)
    with open(folder / "documents.bin", "xb") as out:
        boundaries = Summed(out)
        boundaries.write(np.array(starts, np.int64))
        sync(out)
    index = {
        "format": FORMAT, "dtype": np.dtype(kind).name, "tokens": count, "documents": len(starts), "end": end,
        "vocabulary": tokenizer.vocab_size, "ids_crc32": summed.crc, "documents_crc32": boundaries.crc,
        "sha256": summed.sha.hexdigest(),
    }  # fmt: skip
    with open(folder / "index.json", "xb") as out:
        out.write((json.dumps(index, indent=2) + "\n").encode())
        sync(out)


def opened(folder: Path) -> Tokens:
    """The ids in a cache, after checks of sizes, then checksums.

    Raises:
        ValueError, OSError, KeyError: if it is damaged.
    """
    index = json.loads((folder / "index.json").read_bytes())
    if index["format"] != FORMAT:
        raise ValueError(f"format {index['format']}, expected {FORMAT}")
    ids = mapped(folder / "ids.bin", np.dtype(index["dtype"]), index["tokens"], index["ids_crc32"])
    starts = mapped(folder / "documents.bin", np.dtype(np.int64), index["documents"], index["documents_crc32"])
    return Tokens(ids, starts, index["sha256"][:16])


def dtype(tokenizer: Any) -> type:
    """The smallest type that holds every id."""
    return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32


def encoded(texts: Texts, tokenizer: Any) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the document, ids) for each piece of text, in order; many pieces are tokenised at once."""
    for group in _groups(texts):
        try:
            rows = tokenizer.core.encode_batch_fast([text for _, text in group], add_special_tokens=False)
        except TypeError:
            bad = next(d for d, text in group if re.search("[\ud800-\udfff]", text))
            raise ValueError(
                f"document {bad + 1} has half a surrogate pair, which UTF-8 cannot write; repair it"
            ) from None
        for (document, _), row in zip(group, rows, strict=True):
            yield document, np.array(row.ids, np.uint32)
        del group, rows, row  # they would be held beside the next ones


def _groups(texts: Texts) -> Iterator[list[tuple[int, str]]]:
    group: list[tuple[int, str]] = []
    size = 0
    for document, text in texts:
        group.append((document, text))
        size += len(text)
        if size >= TOGETHER or len(group) >= MANY:
            yield group
            group, size = [], 0
    if group:
        yield group


class Summed:
    """An open file with the CRC-32 of its content (quick to check again: gigabytes a second) and SHA-256 (its name)."""

    def __init__(self, out: BinaryIO):
        self.out, self.crc, self.sha = out, 0, hashlib.sha256()

    def write(self, array: np.ndarray) -> None:
        """Appends an array."""
        data = array.tobytes()
        self.out.write(data)
        self.crc = zlib.crc32(data, self.crc)
        self.sha.update(data)


def mapped(path: Path, kind: np.dtype, count: int, crc: int) -> np.ndarray:
    """A file as a mapped array, checked for this size and checksum."""
    size = path.stat().st_size
    if size != count * kind.itemsize:
        raise ValueError(f"{path.name} has {size} bytes, expected {count * kind.itemsize}")
    actual = 0
    with path.open("rb") as file:
        while data := file.read(READ):
            actual = zlib.crc32(data, actual)
    if actual != crc:
        raise ValueError(f"the checksum of {path.name} differs")
    return np.memmap(path, kind, mode="r") if count else np.zeros(0, kind)


def sync(out: BinaryIO) -> None:
    """Flushes a file to the disk."""
    out.flush()
    os.fsync(out.fileno())
