"""The cache of token ids: made once, whole or not at all, checked when it is opened, and never held in memory."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from anyformer.data import cache, files, sources, text
from anyformer.data.cache import tokens
from anyformer.hub.text.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("forked")

BYTES = Tokenizer.bytes_level()
TEXTS = [(0, "one é\n"), (0, "goes on"), (1, "two"), (2, "日本")]


def never():
    raise AssertionError("the text was read again")


def home(folder) -> Path:
    (found,) = (p for p in Path(folder).iterdir() if p.is_dir())
    return found


def test_ids_are_those_of_the_tokenizer_with_an_end_between_documents(tmp_path):
    made = tokens(lambda: TEXTS, "key", BYTES, tmp_path)
    end = BYTES.eos_ids.copy().pop()
    wanted = [*"one é\ngoes on".encode(), end, *b"two", end, *"日本".encode()]
    assert made.ids.tolist() == wanted and made.ids.dtype == np.uint16 and isinstance(made.ids, np.memmap)
    assert made.starts.tolist() == [0, 15, 19] and made.starts.dtype == np.int64
    assert BYTES.decode(made.ids) == "one é\ngoes ontwo日本"
    assert not made.ids.flags.writeable
    assert sorted(p.name for p in home(tmp_path).iterdir()) == ["documents.bin", "ids.bin", "index.json"]


def test_tokenised_once_and_found_by_text_and_tokenizer(tmp_path):
    first = tokens(lambda: TEXTS, "key", BYTES, tmp_path)
    again = tokens(never, "key", Tokenizer.bytes_level(), tmp_path)
    assert np.array_equal(first.ids, again.ids) and first.fingerprint == again.fingerprint
    other = Tokenizer.train_bpe(["one two one two"], 259)
    shorter = tokens(lambda: TEXTS, "key", other, tmp_path)
    assert len(shorter.ids) < len(first.ids) and shorter.fingerprint != first.fingerprint
    assert len(tokens(lambda: TEXTS[:2], "another", BYTES, tmp_path).ids) == 14


def test_without_an_end_token_nothing_is_put_between(tmp_path):
    plain = Tokenizer(BYTES.core)
    made = tokens(lambda: [(0, "ab"), (1, "c")], "key", plain, tmp_path)
    assert made.ids.tolist() == [97, 98, 99] and made.starts.tolist() == [0, 2]


def test_many_pieces_are_one_text(tmp_path, monkeypatch):
    source = text.read()[:40_000]
    whole = tokens(lambda: [(0, source)], "a", BYTES, tmp_path).ids
    monkeypatch.setattr(files, "PIECE", 97)
    monkeypatch.setattr(cache, "TOGETHER", 1000)
    monkeypatch.setattr(cache, "MANY", 3)
    pieces = tokens(lambda: ((0, p) for p in files.pieces([source])), "b", BYTES, tmp_path).ids
    assert np.array_equal(whole, pieces)


def test_no_text_is_no_ids(tmp_path):
    made = tokens(lambda: [], "key", BYTES, tmp_path)
    assert len(made.ids) == len(made.starts) == 0
    assert len(tokens(never, "key", BYTES, tmp_path).ids) == 0


def test_ids_take_four_bytes_only_when_they_must(tmp_path):
    from tokenizers import Tokenizer as Core
    from tokenizers import models, pre_tokenizers

    core = Core(models.WordLevel({f"w{i}": i for i in range(70_000)}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = tokens(lambda: [(0, "w69999 w3")], "key", Tokenizer(core), tmp_path)
    assert made.ids.tolist() == [69_999, 3] and made.ids.dtype == np.uint32


# ------------------------------------------------------------------------------------------------- damage


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "cut": (
        lambda f: (f / "ids.bin").write_bytes((f / "ids.bin").read_bytes()[:-2]),
        "ids.bin has 48 bytes",
    ),
    "longer": (lambda f: (f / "ids.bin").write_bytes((f / "ids.bin").read_bytes() + b"xx"), "ids.bin has 52 bytes"),
    "empty": (lambda f: (f / "ids.bin").write_bytes(b""), "ids.bin has 0 bytes"),
    "one bit": (lambda f: flip(f / "ids.bin"), "checksum of ids.bin differs"),
    "boundaries": (lambda f: flip(f / "documents.bin"), "checksum of documents.bin differs"),
    "no ids": (lambda f: (f / "ids.bin").unlink(), "No such file"),
    "no index": (lambda f: (f / "index.json").unlink(), "No such file"),
    "no JSON": (lambda f: (f / "index.json").write_text("{"), "is damaged"),
    "other JSON": (lambda f: (f / "index.json").write_text("[]"), "is damaged"),
    "other format": (lambda f: (f / "index.json").write_text('{"format": 0}'), "format 0, expected 1"),
}


@pytest.mark.parametrize("damage, said", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_is_made_again_and_says_so(damage, said, tmp_path):
    wanted = tokens(lambda: TEXTS, "key", BYTES, tmp_path).ids.tolist()
    damage(home(tmp_path))
    with pytest.warns(UserWarning, match=f"is damaged.*{said}.*rebuilt" if said != "is damaged" else said):
        assert tokens(lambda: TEXTS, "key", BYTES, tmp_path).ids.tolist() == wanted
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tokens(never, "key", BYTES, tmp_path).ids.tolist() == wanted


def test_a_text_that_ends_in_an_error_leaves_nothing(tmp_path):
    def broken():
        yield 0, "fine"
        raise ValueError("line 7 is not JSON")

    with pytest.raises(ValueError, match="line 7"):
        tokens(broken, "key", BYTES, tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]
    assert len(tokens(lambda: TEXTS, "key", BYTES, tmp_path).ids) == 25


def test_what_a_killed_process_left_is_swept(tmp_path):
    code = (
        "import os, signal\nfrom anyformer.data.cache import tokens\n"
        "from anyformer.hub.text.tokenizer import Tokenizer\n"
        "def dies():\n    yield 0, 'x' * 3_000_000\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"tokens(dies, 'key', Tokenizer.bytes_level(), {str(tmp_path)!r})"
    )
    assert subprocess.run([sys.executable, "-c", code], env=path()).returncode == -9
    assert home(tmp_path).name.startswith(".making-")
    made = tokens(lambda: TEXTS, "key", BYTES, tmp_path)
    assert len(made.ids) == 25 and not home(tmp_path).name.startswith(".")


def path():
    return os.environ | {"PYTHONPATH": str(Path(cache.__file__).parents[2])}


def test_two_processes_at_once_tokenise_once(tmp_path):
    code = (
        "import time; from anyformer.data.cache import tokens; from anyformer.hub.text.tokenizer import Tokenizer\n"
        "def texts():\n    print('tokenises'); time.sleep(0.5); yield 0, 'a text'\n"
        f"print(tokens(texts, 'key', Tokenizer.bytes_level(), {str(tmp_path)!r}).ids.tolist())"
    )
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    both = [subprocess.Popen(command, env=path(), stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sum(out.count("tokenises") for out, _ in outputs) == 1
    assert all(str([*b"a text"]) in out for out, _ in outputs)


def test_half_a_surrogate_pair_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="document 2 has half a surrogate pair"):
        tokens(lambda: [(0, "ok"), (1, json.loads('"\\ud83d"'))], "key", BYTES, tmp_path)


# ----------------------------------------------------------------------------------------- where it is


def test_where_the_cache_is(tmp_path, monkeypatch):
    for name in ("ANYFORMER_TOKENS", "ANYFORMER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache.place() == Path.home() / ".cache/anyformer/tokens"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.place() == tmp_path / "xdg/anyformer/tokens" and sources.cache() == tmp_path / "xdg/anyformer"
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "own"))
    assert cache.place() == tmp_path / "own/tokens"
    monkeypatch.setenv("ANYFORMER_TOKENS", str(tmp_path / "tokens"))
    assert cache.place() == tmp_path / "tokens" and cache.place(tmp_path) == tmp_path


def test_a_place_that_cannot_be_written_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"token cache cannot be written.*ANYFORMER_TOKENS"):
        tokens(lambda: TEXTS, "key", BYTES, tmp_path / "file" / "below")


@pytest.mark.skipif(sys.platform == "win32", reason="the limit on the size of files is a POSIX one")
def test_a_full_disk_leaves_nothing_and_says_what_to_do(tmp_path):
    code = (
        "import resource, signal\nfrom anyformer.data.cache import tokens\n"
        "from anyformer.hub.text.tokenizer import Tokenizer\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"tokens(lambda: [(0, 'x' * 5000)], 'key', Tokenizer.bytes_level(), {str(tmp_path)!r})"
    )
    run = subprocess.run([sys.executable, "-c", code], env=path(), capture_output=True, text=True)
    assert run.returncode == 1 and "the token cache cannot be written: File too large" in run.stderr
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_a_file_larger_than_what_may_be_held_is_tokenised_and_read(tmp_path):
    """100 MB of text (198 MB of ids), two pieces at a time, in no more than 190 MB beyond what the imports take."""
    line = ("The quick brown fox jumps over the lazy dog, " * 20).encode() + b"\n"
    with (tmp_path / "big.txt").open("wb") as out:
        for _ in range(100_000_000 // len(line) // 1000 + 1):
            out.write(line * 1000)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    code = (
        "from anyformer.data import corpus, order; from anyformer.hub.text.tokenizer import Tokenizer\n"
        "import torch\nfrom anyformer.data import cache; cache.TOGETHER = 2 << 18\n"
        "peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) // 1024\n"
        "tokenizer = Tokenizer.bytes_level(); before = peak()\n"
        f"data = corpus.read({str(tmp_path / 'big.txt')!r}, folder={str(tmp_path / 'cache')!r})\n"
        f"made = corpus.Corpus.of(tokenizer, data, {str(tmp_path / 'cache')!r})\n"
        "batch = order.Global(made.rows('epochs', 256, 0), 8)(1000)\n"
        "print(made.tokens, tuple(batch['labels'].shape), peak() - before)"
    )
    run = subprocess.run([sys.executable, "-c", code], env=path(), capture_output=True, text=True, check=True)
    assert int(run.stdout.split()[0]) > 98_000_000 and "(8, 256)" in run.stdout
    assert int(run.stdout.split()[-1]) < 190, run.stdout
