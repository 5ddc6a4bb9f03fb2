"""Examples on disk: what went in comes out, by number; made once; damage is noticed; memory does not grow."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anyformer.data import store

ROWS = [
    {"input_ids": np.array([5, 6, 7]), "labels": np.array(3)},
    None,
    {"input_ids": np.array([8]), "labels": np.array(-100)},
]
BYTES = [{"path": np.frombuffer(b"a/b.png", np.uint8), "labels": np.array(0)}]


def kept(folder, rows=ROWS, told="x"):
    asked = []

    def examples():
        asked.append(1)
        return iter(rows)

    return store.stored(examples, told, folder), asked


def test_examples_come_back_by_number(tmp_path):
    made, asked = kept(tmp_path)
    assert len(made) == 2 and made.seen == 3 and asked
    assert made[0]["input_ids"].tolist() == [5, 6, 7] and made[1]["input_ids"].tolist() == [8]
    assert [int(made[i]["labels"]) for i in (0, 1)] == [3, -100] and made[0]["labels"].ndim == 0
    assert made.fields["input_ids"].lengths(np.array([1, 0])).tolist() == [1, 3]
    again, asked = kept(tmp_path)
    assert not asked and again.fingerprint == made.fingerprint and again[1]["input_ids"].tolist() == [8]
    other, asked = kept(tmp_path, ROWS[:1], "y")
    assert asked and other.fingerprint != made.fingerprint
    assert kept(tmp_path, BYTES, "z")[0][0]["path"].tobytes() == b"a/b.png"
    assert len(kept(tmp_path, [None], "nothing")[0]) == 0


@pytest.mark.parametrize("file", ["input_ids.bin", "input_ids.ends.bin", "labels.bin", "index.json"])
def test_a_damaged_store_is_made_again(tmp_path, file):
    kept(tmp_path)
    home = next(f for f in tmp_path.iterdir() if f.is_dir())
    data = bytearray((home / file).read_bytes())
    data[len(data) // 2] ^= 255
    (home / file).write_bytes(bytes(data))
    with pytest.warns(UserWarning, match="is damaged"):
        made, asked = kept(tmp_path)
    assert asked and made[0]["input_ids"].tolist() == [5, 6, 7]


def test_an_error_half_way_leaves_nothing(tmp_path):
    def rows():
        yield ROWS[0]
        raise ValueError("row 2 is broken")

    with pytest.raises(ValueError, match="row 2 is broken"):
        kept(tmp_path, rows())
    assert not [f for f in tmp_path.iterdir() if f.is_dir()]
    with pytest.raises(ValueError, match="an example has the fields input_ids; those before it have input_ids, labels"):
        kept(tmp_path, [ROWS[0], {"input_ids": np.array([1])}])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """80 MB of examples, written and read here and there, in 25 MB more than 20 MB of them: 64 kB a read stay."""
    code = (
        "import numpy as np; from anyformer.data import store\n"
        "peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) / 1024\n"
        "def rows(n): return ({'input_ids': np.arange(i, i + 1000), 'labels': np.array(i)} for i in range(n))\n"
        f"place = {str(tmp_path)!r}\n"
        "store.stored(lambda: rows(5_000), 'small', place); before = peak()\n"
        "made = store.stored(lambda: rows(20_000), 'large', place)\n"
        "assert all(int(made[i]['input_ids'][-1]) == i + 999 for i in range(0, 20_000, 97))\n"
        "print(peak() - before)"
    )
    env = os.environ | {"PYTHONPATH": str(Path(store.__file__).parents[2])}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 25, run.stdout
