"""Checked reading of untrusted files; atomic writing of our own.

The checks that every reader of the hub shares: a path that stays in its folder, a file that is a regular
file of bounded size, JSON of bounded size, depth and number of items. A refusal names the file and the
field, what was expected and what was found.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

MAX_JSON = 100_000_000  # bytes of any JSON file
MAX_ITEMS = 1_000_000  # members and elements in one JSON document; an index of 100 k tensors has 0.1 M
MAX_DEPTH = 64  # nesting of one JSON document
STALE = 3600  # seconds after which an unfinished temporary file counts as abandoned


class FileRefused(ValueError):
    """The error for a malformed file. The message names the file, the field, expected and found."""


def refuse(where: object, field: str, expected: object, got: object) -> FileRefused:
    """The error, to be raised by the caller, for `field` of the file (or the file and tensor) `where`."""
    return FileRefused(f"{where}: {field}: expected {expected}, got {short(got)}")


def short(value: object) -> str:
    """`value` as text for an error message: printable, and of bounded length."""
    text = value if isinstance(value, str) else repr(value)
    text = text[:201].encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 200 else f"{text[:200]}…"


# ---------------------------------------------------------------------------------------------- paths


def inside(folder: str | os.PathLike[str], name: object, source: object = None) -> Path:
    """The path of the file `name` in `folder`, for an untrusted `name`.

    `name` must be a plain basename. It may be a symlink only to a file of the same folder or, in the cache of
    huggingface_hub (`<repo>/snapshots/<revision>/x -> <repo>/blobs/<hash>`), of the same repository. `source` is
    the file that mentions the name. Errors: FileRefused; FileNotFoundError when there is no such file.
    """
    where = source or folder
    if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\\0]", name):
        raise refuse(where, "file name", "a plain name of a file in the same folder", name)
    path, root = Path(folder) / name, Path(os.path.realpath(folder))
    real = Path(os.path.realpath(path))
    caches = [parent.parent / "blobs" for parent in (root, *root.parents) if parent.name == "snapshots"]
    if not any(real.is_relative_to(allowed) for allowed in (root, *caches[:1])):
        raise refuse(where, f"file {name}", f"a file inside {root}", f"a link to {real}")
    open_regular(path).close()
    return path


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; a folder, FIFO, socket or device is refused, without blocking."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise refuse(path, "kind", "a regular file", "a folder, FIFO, socket or device")
    return open(path, "rb")


def read_bytes(path: str | os.PathLike[str], limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise refuse(path, "size", f"at most {limit:,} bytes", f"{size:,}")
        return file.read(size)  # not `limit`: `read` allocates its whole argument


def map_file(path: str | os.PathLike[str], at_least: int) -> tuple[mmap.mmap, int]:
    """A copy-on-write memory map of a regular file of at least `at_least` bytes, and its size."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size < at_least:
            raise refuse(path, "size", f"at least {at_least} bytes", size)
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY), size


# ----------------------------------------------------------------------------------------------- JSON


def read_json(path: str | os.PathLike[str], limit: int = MAX_JSON) -> Any:
    """The content of a JSON file of at most `limit` bytes; see `parse_json`."""
    return parse_json(read_bytes(path, limit), path)


def parse_json(data: bytes, source: object, max_items: int = MAX_ITEMS) -> Any:
    """UTF-8 JSON to Python, bounded in items and depth; a repeated key of an object is refused.

    `source` is named in errors (FileRefused), with line and column where the text is not JSON.
    """
    items = sum(data.count(mark) for mark in b"[{,")  # an upper bound: marks inside strings count too
    if items > max_items:
        raise refuse(source, "JSON", f"at most {max_items:,} items", f"{items:,}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise refuse(source, "JSON", "every key once in an object", f"{short(key)} twice")
            result[key] = value
        return result

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except FileRefused:
        raise
    except json.JSONDecodeError as error:
        position = f"line {error.lineno}, column {error.colno}"
        raise FileRefused(f"{source}: not JSON at {position}: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise FileRefused(f"{source}: not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise refuse(source, "JSON", f"at most {MAX_DEPTH} levels of nesting", "more") from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise FileRefused(f"{source}: not JSON: {error}") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        boxes = [v for v in level if isinstance(v, dict | list)]
        level = [x for v in boxes for x in (v.values() if isinstance(v, dict) else v)]
    if any(isinstance(v, dict | list) for v in level):
        raise refuse(source, "JSON", f"at most {MAX_DEPTH} levels of nesting", "more")
    return value


# -------------------------------------------------------------------------------------------- writing


def atomic_write(path: str | os.PathLike[str], content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all: to a temporary sibling, flushed to the disk, then renamed to `path`.

    `content` is the bytes, or a function that writes them to an open file. Whatever fails (a full disk, a
    kill -9, an exception in `content`), an older file at `path` stays unchanged. Errors: OSError naming
    `path`, and whatever `content` raises.
    """
    path = Path(path)
    clear_stale(path.parent, path.name)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        reason = f"could not be written; the previous file is unchanged: {error.strerror or error}"
        raise OSError(error.errno, reason, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def claim(folder: Path, name: str, facts: dict[str, Any]) -> None:
    """Makes `folder` that of one run: its file `name` holds the facts of it, plain values of JSON.

    Raises:
        ValueError: for a folder of a run with other facts, or with other files; nothing is written then.
    """
    file, facts = folder / name, json.loads(json.dumps(facts))
    if file.exists():
        before = read_json(file)
        for fact in (fact for fact, value in facts.items() if before.get(fact) != value):
            raise ValueError(
                f"{folder} holds a run with {fact}={before.get(fact)!r:.80}, and this one has {facts[fact]!r:.80}: "
                "choose another --out, or the same options to go on"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds other files: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(file, (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())


def clear_stale(folder: Path, name: str) -> None:
    """Remove the leftovers of killed writers of `name` (a glob pattern); a live writer's file is younger."""
    for old in folder.glob(f".{name}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > STALE:
                old.unlink()


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system can (Windows cannot open a folder)."""
    with contextlib.suppress(PermissionError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
