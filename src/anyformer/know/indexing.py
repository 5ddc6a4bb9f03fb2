"""`index`: the files of a folder as passages that can be searched; again, only what has changed.

```
folder ── hash ──> new or changed ── document ── passages ── vectors ──> index.sqlite, whole files at a time
              └──> gone: removed, renamed: its path alone
```
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from anyformer.hub.formats.guard import FileRefused, read_bytes
from anyformer.know.calibrating import calibrate
from anyformer.know.chunking import Passages, passages
from anyformer.know.document import Document, NotRead
from anyformer.know.encoder import Encoder
from anyformer.know.reading import READERS, document
from anyformer.know.searching import same
from anyformer.know.store import File, Row, Store
from anyformer.know.vectors import vectors_of

TOGETHER = 512  # passages that are sorted by length, embedded and written at once, at least: of fewer more is padded


@dataclass
class Indexed:
    """Result of `index`.

    Attributes:
        read, unchanged, renamed, removed: paths of files.
        skipped: (path, reason).
        notes: (path, what of a file could not be read).
        passages, tokens: of the whole index. lost: tokens that no vector has read. unknown: words that the encoder's
            tokenizer does not know; the search by words finds them.
        seconds: of the run.
    """

    folder: Path
    read: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    passages: int = 0
    tokens: int = 0
    lost: int = 0
    unknown: int = 0
    seconds: float = 0.0


def index(
    folder: Path,
    out: Path,
    encoder: Encoder,
    megabytes: float = 20.0,
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
    vectors: str | None = None,
) -> Indexed:
    """Makes or renews the index of a folder.

    Args:
        folder: it and all in it is read, but for hidden names, links that lead out of it, and the index.
        out: the folder of the index. megabytes: larger files are skipped.
        progress: called with files done, files to do.
        vectors: where they are searched, see `know.vectors`; by default as before, of a new index "exact".

    Raises:
        FileNotFoundError: without the folder. ValueError: without a file that can be read, for an index of another
            folder or of another encoder, and as `know.vectors`. OSError: if another process writes this index, a full
            disk, or a server of vectors that does not answer.
    """
    start, folder = time.perf_counter(), folder.expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder")
    done = Indexed(out)
    found = dict(_walk(folder, out, done))
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            store = Store(out, create=True)
            try:
                _check(store, folder, encoder)
                run = _Run(store, encoder, done, int(megabytes * 1e6), batch, progress)
                run.renew(folder, found, vectors)
            finally:
                store.close()
    except Timeout:
        raise OSError(f"another process writes the index {out}; wait for it") from None
    done.seconds = time.perf_counter() - start
    return done


def _walk(folder: Path, out: Path, done: Indexed) -> Iterator[tuple[str, Path]]:
    """(path in the folder, path) of every file, in order."""
    root, own = Path(os.path.realpath(folder)), Path(os.path.realpath(out))

    def unread(error: OSError) -> None:
        done.skipped.append((str(error.filename), f"cannot be listed: {error.strerror}"))

    for place, folders, files in os.walk(folder, onerror=unread):
        for name in [n for n in folders if n.startswith(".")]:
            done.skipped.append((Path(place, name).relative_to(folder).as_posix() + "/", "hidden"))
        folders[:] = sorted(n for n in folders if n[0] != "." and Path(os.path.realpath(Path(place, n))) != own)
        for name in sorted(files):
            path = Path(place, name)
            inside = path.relative_to(folder).as_posix()
            try:
                inside.encode()
            except UnicodeEncodeError:
                done.skipped.append((inside.encode("utf-8", "backslashreplace").decode(), "its name is not UTF-8"))
                continue
            if name.startswith("."):
                done.skipped.append((inside, "hidden"))
            elif path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                done.skipped.append((inside, "a link that leads out of the folder"))
            elif not path.is_file():
                done.skipped.append((inside, "not a regular file"))
            else:
                yield inside, path


def _check(store: Store, folder: Path, encoder: Encoder) -> None:
    """Raises ValueError for an index of another folder or encoder; notes both in a new one."""
    place, probe = str(folder.resolve()), encoder.probe()
    if store.meta("folder") is None:
        name = encoder.name if not Path(encoder.name).expanduser().exists() else str(Path(encoder.name).resolve())
        store.describe(
            folder=place, encoder=name, width=str(len(probe)), probe=probe.astype("<f4").tobytes().hex(),
            limit=str(encoder.limit),
        )  # fmt: skip
    elif store.meta("folder") != place:
        raise ValueError(f"{store.folder} is the index of {store.meta('folder')}, not of {place}; choose another --out")
    same(store, encoder)


@dataclass
class _Run:
    """One run over an index that is open. `limit`: bytes of a file."""

    store: Store
    encoder: Encoder
    done: Indexed
    limit: int
    batch: int
    progress: Callable[[int, int], None] | None

    def renew(self, folder: Path, found: dict[str, Path], vectors: str | None) -> None:
        """Brings the index to the state of the folder."""
        store, done = self.store, self.done
        before, hashes = store.files(), self._hashes(found)
        if not hashes:
            raise ValueError(
                f"{folder} has no file to read ({', '.join(READERS)}): {len(done.skipped)} skipped"
                + "".join(f"\n  {path}: {why}" for path, why in done.skipped[:10])
                + (f"\n{store.folder} is left as it is" if before else "")
            )
        vectors_of(store, vectors).close()  # what is not here is said before the work
        interrupted, moved = store.meta("running") == "1", vectors not in (None, store.meta("vectors"))
        store.describe(running="1", **({} if vectors is None else {"vectors": vectors}))
        self._leave(before, hashes)
        todo = [path for path, value in hashes.items() if path not in before or before[path].hash != value]
        done.unchanged = sorted(hashes.keys() - set(todo) - {new for _, new in done.renamed})
        self._write([(path, found[path]) for path in todo])
        if not store.count():
            raise ValueError(
                f"no text in any file of {folder}:" + "".join(f"\n  {path}: {why}" for path, why in done.skipped[:10])
            )
        files = store.files().values()
        done.notes = [(file.path, file.note) for file in files if file.note]
        done.passages, done.tokens, done.lost, done.unknown = (
            sum(getattr(file, name) for file in files) for name in ("passages", "tokens", "lost", "unknown")
        )
        if done.read or done.removed or interrupted or moved or store.meta("cosine") is None:
            with closing(vectors_of(store)) as searched:
                searched.write(store)
            store.describe(**calibrate(store, self.encoder))
        store.describe(running="0")

    def _hashes(self, found: dict[str, Path]) -> dict[str, str]:
        """The content of each file that can be read; others are skipped with their reason."""
        hashes = dict[str, str]()
        for path, place in found.items():
            if place.suffix.lower() not in READERS:
                self.done.skipped.append((path, f"{place.suffix or 'no suffix'} is not read"))
                continue
            try:
                if place.stat().st_size > self.limit:
                    size = f"{place.stat().st_size / 1e6:.1f} MB, over {self.limit / 1e6:g} MB (--megabytes)"
                    raise NotRead(size)
                with place.open("rb") as file:
                    hashes[path] = hashlib.file_digest(file, "sha256").hexdigest()
            except (OSError, NotRead) as error:
                self.done.skipped.append((path, getattr(error, "strerror", None) or str(error)))
        return hashes

    def _leave(self, before: dict[str, File], hashes: dict[str, str]) -> None:
        """Takes out what is gone, and gives files of the same content their new names, in `before` too."""
        gone = {path: file for path, file in before.items() if path not in hashes}
        moved = {(file.hash, Path(path).suffix): path for path, file in gone.items()}
        for path, value in hashes.items():
            old = moved.pop((value, Path(path).suffix), None) if path not in before else None
            if old is not None:
                self.store.rename(old, path)
                before[path] = gone.pop(old)
                self.done.renamed.append((old, path))
        self.store.remove(gone)
        self.done.removed = sorted(gone)

    def _write(self, todo: list[tuple[str, Path]]) -> None:
        """Reads, embeds and writes files; those that cannot be read leave the index."""
        waiting, count = list[tuple[File, list[Row], list[str]]](), 0
        for number, (path, place) in enumerate(todo, 1):
            try:
                content = read_bytes(place, self.limit)
                digest = hashlib.sha256(content).hexdigest()
                rows, texts, file = _made(path, document(path, content), digest, self.encoder)
            except (OSError, FileRefused, NotRead) as error:
                self.done.skipped.append((path, getattr(error, "strerror", None) or str(error)))
                self.store.remove([path])
                continue
            waiting.append((file, rows, texts))
            count += len(rows)
            self.done.read.append(path)
            if count >= TOGETHER or number == len(todo):
                self._flush(waiting)
                waiting, count = [], 0
                if self.progress is not None:
                    self.progress(number, len(todo))
        if waiting:
            self._flush(waiting)

    def _flush(self, waiting: list[tuple[File, list[Row], list[str]]]) -> None:
        """Embeds the passages of some files and writes the files."""
        texts = [text for _, _, each in waiting for text in each]
        parts = [self.encoder.vectors(texts[at : at + 1024], self.batch) for at in range(0, len(texts), 1024)]
        vectors, at, made = np.concatenate(parts).astype("<f4"), 0, []
        for file, rows, _ in waiting:
            made.append((file, rows, vectors[at : at + len(rows)]))
            at += len(rows)
        self.store.put(made)


def _made(path: str, read: Document, digest: str, encoder: Encoder) -> tuple[list[Row], list[str], File]:
    """The rows of a document, the texts that are embedded, and its own row."""
    found: Passages = passages(read, encoder)
    rows, texts, unknown = list[Row](), list[str](), 0
    for number, one in enumerate(found.rows):
        text, marks = read.text[one.begin : one.end], tuple(read.places(one.begin, one.end))
        rows.append(Row(path, number, " > ".join(one.trail), text, marks, read.unit))
        texts.append(one.read(read.text))
        unknown += encoder.unknown(texts[-1])
    tokens = sum(one.tokens for one in found.rows)
    return rows, texts, File(path, digest, len(rows), tokens, found.lost, unknown, read.unit, read.note)
