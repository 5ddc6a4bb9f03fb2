"""Files as bytes and as text, in pieces: plain, .gz or .zst; UTF-8 or an error with the position."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from anyformer.hub.formats.guard import open_regular

READ = 1 << 20  # bytes that are read at once
PIECE = (
    1 << 18
)  # characters of a piece of text: enough that a cut costs nothing, few enough to tokenise several at once
PACKED = (".gz", ".zst")
WIDE = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


def suffix(path: Path) -> str:
    """The extension of a file's format, in lower case: `.jsonl` of `a.JSONL.gz`."""
    return (path.with_suffix("") if path.suffix.lower() in PACKED else path).suffix.lower()


def chunks(path: Path) -> Iterator[bytes]:
    """The content of a file, unpacked, about a megabyte at a time.

    Raises:
        ValueError: for a damaged .gz or .zst file, or no regular file. ImportError: for .zst without zstandard.
    """
    with open_regular(path) as raw:
        file: Any = raw
        errors: tuple[type[BaseException], ...] = (EOFError, gzip.BadGzipFile, zlib.error)
        if path.suffix.lower() == ".gz":
            file = gzip.GzipFile(fileobj=raw)
        elif path.suffix.lower() == ".zst":
            file, error = _zst(raw, path)
            errors = (error,)
        try:
            while chunk := file.read(READ):
                yield chunk
        except errors as error:
            raise ValueError(f"{path} is damaged: {error}. Create or fetch it again") from None


def _zst(raw: IO[bytes], path: Path) -> tuple[Any, type[BaseException]]:
    try:
        import zstandard
    except ImportError:
        raise ImportError(f"{path}: .zst needs `pip install zstandard`; or unpack it: zstd -d {path.name}") from None
    return zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True), zstandard.ZstdError


def decoded(path: Path) -> Iterator[str]:
    """The text of a UTF-8 file in pieces of any length; line ends unchanged, without a byte order mark.

    Raises:
        ValueError: naming file and byte, with advice, if it is not UTF-8.
    """
    decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
    for chunk in chunks(path):
        if done == 0:
            for mark, name in WIDE.items():
                if chunk.startswith(mark):
                    raise ValueError(
                        f"{path} is not UTF-8 but {name}, by its first two bytes. "
                        f"Convert it, e.g. iconv -f {name.lower()} -t utf-8 {path.name}"
                    )
        yield _decode(decoder, chunk, done, path).removeprefix("\ufeff" if done == 0 else "")
        done += len(chunk)
    _decode(decoder, b"", done, path)


def _decode(decoder: Any, chunk: bytes, done: int, path: Path) -> str:
    """The text of the next chunk; an empty one is the end. `done`: bytes that came before."""
    waiting = len(decoder.getstate()[0])  # bytes of an incomplete character of the chunk before
    try:
        return decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte {done - waiting + error.start} is 0x{error.object[error.start]:02x} "
            f"({error.reason}). Leave the file out, or convert it, e.g. iconv -f latin1 -t utf-8 {path.name}"
        ) from None


def pieces(parts: Iterable[str]) -> Iterator[str]:
    """The same text in pieces of at most `PIECE` characters, cut after a line end where there is one."""
    held = ""
    for part in parts:
        held += part
        start = 0
        while len(held) - start > PIECE:
            end = held.rfind("\n", start, start + PIECE) + 1 or start + PIECE
            yield held[start:end]
            start = end
        held = held[start:]
    if held:
        yield held


def lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends; only a line feed ends one."""
    held: list[str] = []
    for part in decoded(path):
        first, *rest = part.split("\n")
        held.append(first)
        for line in rest:
            yield "".join(held) + "\n"
            held = [line]
    if last := "".join(held):
        yield last
