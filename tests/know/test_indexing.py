"""The index is that of the folder as it is now, whatever happened before."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from anyformer.know import Searcher, index
from anyformer.know.store import FILE, Store

from .subjects import small, write

pytestmark = pytest.mark.usefixtures("forked")

FILES = {
    "a.md": "# Bees\n\nBees make honey.\n\n# Cats\n\nCats sleep all day. They also purr.\n",
    "b.txt": "The server listens on port 8000.\n",
    "deep/c.py": "def answer():\n    return 42\n",
}


def content(folder):
    """Everything that an index says, by file."""
    store = Store(folder)
    rows = store.db.execute(
        "SELECT path, number, trail, text, marks, vector FROM passages ORDER BY path, number"
    ).fetchall()
    words = store.db.execute("SELECT rowid FROM words WHERE words MATCH 'cats OR server OR changed'").fetchall()
    ids = dict(store.db.execute("SELECT id, path FROM passages"))
    files, limits = store.files(), [float(store.meta(k) or "nan") for k in ("cosine", "share", "bm25")]
    store.db.execute("INSERT INTO words (words) VALUES ('integrity-check')")  # raises if FTS5 and the table differ
    store.close()
    plain = [row[:5] for row in rows]
    return plain, np.array([np.frombuffer(r[5], "<f4") for r in rows]), sorted(ids[i] for (i,) in words), files, limits


def same(one, other):
    a, b = content(one), content(other)
    assert a[0] == b[0] and a[2] == b[2] and a[3] == b[3]
    assert np.abs(a[1] - b[1]).max() < 1e-5 and a[4] == pytest.approx(b[4], abs=1e-5)


def fresh(folder, tmp_path, name):
    index(folder, tmp_path / name, small())
    return tmp_path / name


def test_edits_deletions_and_new_names_give_what_a_new_index_gives(tmp_path):
    folder, out = write(tmp_path / "docs", FILES), tmp_path / "idx"
    first = index(folder, out, small())
    assert sorted(first.read) == sorted(FILES) and first.lost == 0 and not first.skipped
    again = index(folder, out, small())
    assert not again.read and sorted(again.unchanged) == sorted(FILES)
    same(out, fresh(folder, tmp_path, "one"))
    (folder / "a.md").write_text("# Bees\n\nThis has changed.\n")
    (folder / "b.txt").rename(folder / "deep/renamed.txt")
    (folder / "deep/c.py").unlink()
    (folder / "new.rst").write_text("New\n===\n\nA new file about cats.\n")
    done = index(folder, out, small())
    assert sorted(done.read) == ["a.md", "new.rst"] and done.removed == ["deep/c.py"]
    assert done.renamed == [("b.txt", "deep/renamed.txt")]
    same(out, fresh(folder, tmp_path, "two"))
    searcher = Searcher(out, small())
    assert {hit.row.path for hit in searcher.search("answer 42 honey", 50).hits} == {
        "a.md",
        "deep/renamed.txt",
        "new.rst",
    }
    searcher.close()


def test_an_open_index_sees_what_another_process_writes(tmp_path):
    folder, out = write(tmp_path / "docs", FILES), tmp_path / "idx"
    index(folder, out, small())
    searcher = Searcher(out, small())
    assert any(h.row.path == "b.txt" for h in searcher.search("server", 50).hits)
    (folder / "b.txt").unlink()
    index(folder, out, small())
    assert all(h.row.path != "b.txt" for h in searcher.search("server", 50).hits)
    searcher.close()


KILLED = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
from tests.know.subjects import small
from anyformer.know import indexing
indexing.TOGETHER = 2
indexing.index(Path({folder!r}), Path({out!r}), small(), progress=lambda done, of: print(done, flush=True))
"""


@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_run_that_is_killed_leaves_an_index_that_the_next_run_completes(tmp_path, after):
    files = {
        f"{i:02d}.md": f"# Title {i}\n\nText number {i} about cats.\n\n# More\n\nThe server {i}.\n" for i in range(12)
    }
    folder, out = write(tmp_path / "docs", files), tmp_path / "idx"
    code = KILLED.format(root=str(Path(__file__).parents[2]), folder=str(folder), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    for _ in range(after):
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    store = Store(out)
    assert store.meta("running") == "1" and 0 < len(store.files()) <= 12
    store.close()
    done = index(folder, out, small())
    assert len(done.read) + len(done.unchanged) == 12 and len(done.unchanged) >= after
    same(out, fresh(folder, tmp_path, "whole"))


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    folder, out = write(tmp_path / "docs", FILES), tmp_path / "idx"
    index(folder, out, small())
    before = hashlib.sha256((out / FILE).read_bytes()).hexdigest()
    (folder / "b.txt").write_text("changed")
    store = Store(out)
    ids = [row[0] for row in store.db.execute("SELECT id FROM passages WHERE path = 'b.txt'")]
    file, rows = store.files()["b.txt"], store.rows(ids)
    with pytest.raises(ValueError):
        store.put([(file, rows, np.zeros((9, 3), np.float32))])  # fewer rows than vectors
    assert store.files()["b.txt"] == file and store.holding("server")
    store.close()
    assert hashlib.sha256((out / FILE).read_bytes()).hexdigest() == before


def test_what_is_skipped_is_named_with_its_reason(tmp_path):
    folder = write(tmp_path / "docs", {**FILES, ".hidden.md": "x", "big.txt": "x" * 3000, "x.csv": "1"})
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "link.txt").symlink_to(write(tmp_path, {"secret.txt": "s"}) / "secret.txt")
    os.mkfifo(folder / "pipe.txt")
    (folder / ".git").mkdir()
    done = index(folder, folder / "idx", small(), megabytes=0.002)
    why = dict(done.skipped)
    assert sorted(done.read) == sorted(FILES)
    assert set(why) == {".hidden.md", ".git/", "big.txt", "x.csv", "latin.txt", "link.txt", "pipe.txt"}
    assert "0.0 MB, over 0.002 MB" in why["big.txt"] and "not UTF-8 at byte 3" in why["latin.txt"]
    assert (
        "leads out" in why["link.txt"]
        and why["pipe.txt"] == "not a regular file"
        and why["x.csv"] == ".csv is not read"
    )


def test_nothing_to_read_is_an_error_and_leaves_the_index(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no file to read"):
        index(tmp_path / "empty", tmp_path / "no", small())
    with pytest.raises(FileNotFoundError, match="is no folder"):
        index(tmp_path / "nowhere", tmp_path / "no", small())
    folder, out = write(tmp_path / "docs", FILES), tmp_path / "idx"
    index(folder, out, small())
    for name in FILES:
        (folder / name).unlink()
    with pytest.raises(ValueError, match="is left as it is"):
        index(folder, out, small())
    assert len(content(out)[3]) == 3
    with pytest.raises(ValueError, match="no text in any file"):
        index(write(tmp_path / "blank", {"a.txt": "  "}), tmp_path / "blanks", small())


def test_another_encoder_folder_or_file_is_refused(tmp_path):
    folder, out = write(tmp_path / "docs", FILES), tmp_path / "idx"
    index(folder, out, small())
    for other in (small(seed=1), small(context=32)):
        with pytest.raises(ValueError, match="was made by tiny"):
            index(folder, out, other)
        with pytest.raises(ValueError, match="gives other vectors"):
            Searcher(out, other)
    with pytest.raises(ValueError, match="is the index of"):
        index(write(tmp_path / "others", FILES), out, small())
    write(tmp_path / "broken", {FILE: "no database" * 100})
    for bad, kind in ((tmp_path / "broken", ValueError), (tmp_path / "docs", FileNotFoundError)):
        with pytest.raises(kind, match="no index"):
            Searcher(bad, small())


def test_two_runs_do_not_write_at_once(tmp_path):
    from filelock import FileLock

    folder, out = write(tmp_path / "docs", FILES), tmp_path / "idx"
    index(folder, out, small())
    begin = time.monotonic()
    with FileLock(out / ".lock"), pytest.raises(OSError, match="another process writes"):
        index(folder, out, small())
    assert time.monotonic() - begin < 10
