"""Saving: whatever interrupts it, the model that was there is there, or the new one is, whole."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from anyformer.hub.formats import guard
from anyformer.hub.formats import safetensors as files
from anyformer.hub.formats.guard import atomic_write
from anyformer.hub.formats.safetensors import TensorFile, open_weights, write_safetensors

pytestmark = pytest.mark.usefixtures("forked")

torch.set_num_threads(1)


def read_all(file: TensorFile) -> dict[str, torch.Tensor]:
    return {name: file.get(name) for name in file.names()}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.bin"
    atomic_write(path, b"old")

    def fails(file):
        file.write(b"half of the new")
        raise KeyError("in the middle")

    with pytest.raises(KeyError):
        atomic_write(path, fails)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["x.bin"]
    atomic_write(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    with pytest.raises(OSError, match=r"could not be written.*nowhere"):
        atomic_write(tmp_path / "nowhere" / "x", b"")


def test_what_a_killed_writer_left_is_cleared_when_it_is_old(tmp_path):
    for name, age in ((".x.bin.0.tmp", 2 * guard.STALE), (".x.bin.1.tmp", 0), (".y.bin.0.tmp", 2 * guard.STALE)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    atomic_write(tmp_path / "x.bin", b"new")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".x.bin.1.tmp", ".y.bin.0.tmp", "x.bin"]


@pytest.mark.parametrize("limit", [10**9, 100_000])
def test_a_full_disk_leaves_the_old_weights(tmp_path, limit):
    """A limit on the size of files makes the write fail just as a full disk does."""
    old = {f"w{i}": torch.full((20_000,), 1.0) for i in range(5)}
    write_safetensors(tmp_path, old, limit)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    new = {**{f"w{i}": torch.full((20_000,), 2.0) for i in range(4)}, "w4": torch.full((60_000,), 2.0)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    try:
        with pytest.raises(OSError, match=r"could not be written; the previous file is unchanged"):
            write_safetensors(tmp_path, new, limit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name in before} == before
    assert not list(tmp_path.glob(".*"))
    assert all(t.eq(1).all() for t in read_all(open_weights(tmp_path)).values())
    write_safetensors(tmp_path, new, limit)
    assert all(t.eq(2).all() for t in read_all(open_weights(tmp_path)).values())
    assert len(list(tmp_path.iterdir())) == (1 if limit == 10**9 else 6)


KILLED = """
import os, random, signal, sys, time, torch
from anyformer.hub.formats.safetensors import write_safetensors, open_weights
torch.set_num_threads(1)
folder, limit, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
random.seed(rounds)
sizes = [50_000, 3, 200_000, 40_000, 100_000]
def save(value):
    write_safetensors(folder, {f"w{i}": torch.full((n,), float(value)) for i, n in enumerate(sizes)}, limit)
save(0)
begin = time.time(); save(0); took = time.time() - begin
main = folder + ("/model.safetensors" if limit == 10**9 else "/model.safetensors.index.json")
seen = set()
for k in range(rounds):
    child = os.fork()
    if child == 0:
        for value in range(2 * k + 1, 10**9):
            save(value)
    old = os.stat(main).st_ino
    while k % 4 == 0 and os.stat(main).st_ino == old:
        time.sleep(took / 10)
    time.sleep(random.uniform(0, 2 * took))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    file = open_weights(folder)
    values = {file.get(name).unique().item() for name in file.names()}
    assert len(file.names()) == len(sizes) and len(values) == 1, values
    seen |= values
print(len(seen))
"""


@pytest.mark.parametrize("limit", [10**9, 900_000])
def test_kill_9_at_any_moment_leaves_a_whole_model(tmp_path, limit):
    rounds = 10
    source = Path(files.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(limit), str(rounds)],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 2  # saves were finished as well as cut off


def test_shard_names_taken_by_the_old_model_are_not_reused(tmp_path):
    tensors = {"a": torch.ones(100), "b": torch.ones(100)}
    first = write_safetensors(tmp_path, tensors, max_shard_bytes=400)
    second = write_safetensors(tmp_path, tensors, max_shard_bytes=400)
    assert not {p.name for p in first[:-1]} & {p.name for p in second[:-1]}
    assert {p.name for p in second} == {p.name for p in tmp_path.iterdir()}
    assert open_weights(tmp_path).get("a").equal(torch.ones(100))
