"""The file of an index, `index.sqlite`: files, passages with their vectors, and FTS5's words of them.

```
meta (key, value)      files (path, hash …)  ──1:n──  passages (path, number, text, lines, vector)  ──  words (FTS5)
```
All that belongs to a file is written in one transaction: whatever ends a run, each file is in the index whole or not at
all. The words follow the passages by triggers, so that nothing that was deleted can be found.
"""

from __future__ import annotations

import bisect
import re
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FILE = "index.sqlite"
FORM = 1  # of the tables below
MAGIC = 0x616E7966  # application_id
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE files (path TEXT PRIMARY KEY, hash TEXT NOT NULL, passages INTEGER NOT NULL, tokens INTEGER NOT NULL,
    lost INTEGER NOT NULL, unknown INTEGER NOT NULL, unit TEXT NOT NULL, note TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE passages (id INTEGER PRIMARY KEY, path TEXT NOT NULL, number INTEGER NOT NULL, trail TEXT NOT NULL,
    text TEXT NOT NULL, marks TEXT NOT NULL, vector BLOB NOT NULL, UNIQUE (path, number));
CREATE VIRTUAL TABLE words USING fts5 (trail, text, content='passages', content_rowid='id',
    tokenize='porter unicode61 remove_diacritics 2');
CREATE TRIGGER added AFTER INSERT ON passages BEGIN
    INSERT INTO words (rowid, trail, text) VALUES (new.id, new.trail, new.text); END;
CREATE TRIGGER removed AFTER DELETE ON passages BEGIN
    INSERT INTO words (words, rowid, trail, text) VALUES ('delete', old.id, old.trail, old.text); END;
"""


@dataclass(frozen=True)
class Row:
    """A passage as it is stored.

    Attributes:
        trail: its headings, joined by " > ".
        marks: (offset in the text, line or page of the file that begins there).
        unit: "line" or "page".
    """

    path: str
    number: int
    trail: str
    text: str
    marks: tuple[tuple[int, int], ...]
    unit: str = "line"

    def place(self, begin: int = 0, end: int | None = None) -> str:
        """The place of text[begin:end] in its file, such as `notes.md:12-14` or `paper.pdf, page 3`."""
        end = len(self.text) if end is None else end
        at = [max(0, bisect.bisect_right(self.marks, (i, 1 << 62)) - 1) for i in (begin, max(begin, end - 1))]
        first, last = (self.marks[i][1] for i in at)
        span = f"{first}" if first == last else f"{first}-{last}"
        if self.unit == "page":
            return f"{self.path}, page{'s' if first < last else ''} {span}"
        return f"{self.path}:{span}"


@dataclass(frozen=True)
class File:
    """A file as it is stored: passages, tokens of them, tokens lost, unknown words, and what could not be read."""

    path: str
    hash: str
    passages: int
    tokens: int
    lost: int
    unknown: int
    unit: str
    note: str


class Store:
    """The tables of an index.

    Args:
        folder: of the index. create: makes it where there is none.

    Raises:
        FileNotFoundError: without an index there. ValueError: for a file that is none, or of another form.
    """

    def __init__(self, folder: Path, create: bool = False):
        self.folder, self.file = folder, folder / FILE
        if not create and not self.file.is_file():
            raise FileNotFoundError(f"no index in {folder}: `anyformer index FOLDER --out {folder}` makes one")
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        self.db = sqlite3.connect(self.file, timeout=30, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(create)
        except sqlite3.DatabaseError as error:
            self.db.close()
            raise ValueError(f"{self.file} is no index: {error}; delete it, or choose another folder") from None
        except ValueError:
            self.db.close()
            raise

    def _prepare(self, create: bool) -> None:
        magic, form = (self.db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
        empty = not self.db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        if empty and create:
            self.db.execute("BEGIN IMMEDIATE")
            for statement in TABLES.replace("END;", "END\0").replace(";\nCREATE", "\0CREATE").split("\0"):
                if statement.strip(" ;\n"):
                    self.db.execute(statement)
            self.db.execute(f"PRAGMA application_id = {MAGIC}")
            self.db.execute(f"PRAGMA user_version = {FORM}")
            self.db.execute("COMMIT")
        elif magic != MAGIC or form != FORM:
            raise ValueError(f"{self.file} is no index of this form ({FORM}), but of {form}; make it again")

    def close(self) -> None:
        """Closes the file."""
        self.db.close()

    def meta(self, key: str) -> str | None:
        """A value that describes the index, or None."""
        row = self.db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row and row[0]

    def describe(self, **values: str) -> None:
        """Sets such values."""
        self.db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def version(self) -> int:
        """A number that changes when another process has changed the index."""
        return self.db.execute("PRAGMA data_version").fetchone()[0]

    def files(self) -> dict[str, File]:
        """The files of the index, by path."""
        with closing(self.db.execute("SELECT * FROM files ORDER BY path")) as rows:
            return {row[0]: File(*row) for row in rows}

    def put(self, made: Iterable[tuple[File, Sequence[Row], np.ndarray]]) -> None:
        """Writes files with their passages and vectors, instead of what they had before, in one transaction."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            for file, rows, vectors in made:
                self._remove(file.path)
                self.db.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?)", tuple(file.__dict__.values()))
                self.db.executemany(
                    "INSERT INTO passages (path, number, trail, text, marks, vector) VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        (row.path, row.number, row.trail, row.text, _packed(row), vector.tobytes())
                        for row, vector in zip(rows, vectors, strict=True)
                    ),
                )
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    def remove(self, paths: Iterable[str]) -> None:
        """Removes files and all that was of them."""
        self.db.execute("BEGIN IMMEDIATE")
        for path in paths:
            self._remove(path)
        self.db.execute("COMMIT")

    def rename(self, old: str, new: str) -> None:
        """Gives a file of the same content its new path; its vectors stay."""
        self.db.execute("BEGIN IMMEDIATE")
        self.db.execute("UPDATE files SET path = ? WHERE path = ?", (new, old))
        self.db.execute("UPDATE passages SET path = ? WHERE path = ?", (new, old))
        self.db.execute("COMMIT")

    def _remove(self, path: str) -> None:
        self.db.execute("DELETE FROM passages WHERE path = ?", (path,))
        self.db.execute("DELETE FROM files WHERE path = ?", (path,))

    def vectors(self, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all passages in the order of path and number, (N,), and their vectors, (N, D)."""
        rows = self.db.execute("SELECT id, vector FROM passages ORDER BY path, number").fetchall()
        ids = np.array([row[0] for row in rows], dtype=np.int64)
        return ids, np.frombuffer(b"".join(row[1] for row in rows), dtype="<f4").reshape(len(rows), width)

    def some(self, ids: Sequence[int]) -> dict[int, np.ndarray]:
        """The vectors of some ids, (D,) each; those that are not in the index are left out."""
        marks = ",".join("?" * len(ids))
        rows = self.db.execute(f"SELECT id, vector FROM passages WHERE id IN ({marks})", [int(i) for i in ids])
        return {row[0]: np.frombuffer(row[1], dtype="<f4") for row in rows}

    def match(self, query: str, count: int) -> list[tuple[int, float]]:
        """(id, BM25) of the passages that FTS5's query finds, the best first; higher is better."""
        order = (
            "SELECT p.id, f.score FROM (SELECT rowid, bm25(words) AS score FROM words WHERE words MATCH ? "
            "ORDER BY score LIMIT ?) f JOIN passages p ON p.id = f.rowid ORDER BY f.score, p.path, p.number"
        )
        return [(row[0], -row[1]) for row in self.db.execute(order, (query, count))]

    def holding(self, word: str) -> set[int]:
        """The ids of the passages that hold a word, in any of its forms."""
        return {row[0] for row in self.db.execute("SELECT rowid FROM words WHERE words MATCH ?", (f'"{word}"',))}

    def rows(self, ids: Sequence[int]) -> list[Row]:
        """The passages of some ids, in their order."""
        marks = ",".join("?" * len(ids))
        found = self.db.execute(
            "SELECT p.id, p.path, p.number, p.trail, p.text, p.marks, f.unit FROM passages p "
            f"JOIN files f ON f.path = p.path WHERE p.id IN ({marks})",
            [int(i) for i in ids],
        ).fetchall()
        made = {r[0]: Row(r[1], r[2], r[3], r[4], _unpacked(r[4], r[5]), r[6]) for r in found}
        return [made[int(i)] for i in ids]

    def count(self) -> int:
        """The number of passages."""
        return self.db.execute("SELECT COUNT(*) FROM passages").fetchone()[0]


def _lines(text: str, first: int) -> tuple[tuple[int, int], ...]:
    """The marks of a text whose lines are those of its file, from the line `first` on."""
    ends = (found.end() for found in re.finditer("\n", text))
    return tuple((at, first + i) for i, at in enumerate((0, *ends)))


def _packed(row: Row) -> str:
    """Marks as text: `12` if the lines are those of the file, else `0+12 40+13`."""
    if row.marks == _lines(row.text, row.marks[0][1]):
        return str(row.marks[0][1])
    return " ".join(f"{at}+{line}" for at, line in row.marks)


def _unpacked(text: str, marks: str) -> tuple[tuple[int, int], ...]:
    if "+" not in marks:
        return _lines(text, int(marks))
    return tuple((int(at), int(line)) for at, line in (one.split("+") for one in marks.split()))
