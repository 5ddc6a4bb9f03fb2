"""Processes that end badly: kill -9 in the middle of a save, SIGTERM, a disk that is full."""

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import anyformer as af
from anyformer.data.text import Windows
from anyformer.train import Settings, checkpoint, fit, objectives

torch.set_num_threads(1)

SOURCE = Path(af.__file__).parent.parent
IMPORTS = """
import numpy as np
import anyformer as af
from anyformer.data.text import Windows
from anyformer.train import Settings, fit, objectives
"""


def job(folder, steps, width=256):
    """A run that saves at every step, as slowly as its 10 MB take."""
    ids = np.random.default_rng(0).integers(0, 128, 5000).astype(np.uint16)
    model = af.build("gpt", "tiny", seed=0, dim=width, dropout=0.1)
    settings = Settings(steps=steps, warmup=2, save_every=1, keep_last=2)
    return fit(model, Windows(ids, 2, 16), objectives.causal_lm, settings, folder, resume="auto")


def start(folder, steps, width=256, before=""):
    """The same in a process of its own."""
    lines = f"{before}\nimport torch; torch.set_num_threads(1)\n{IMPORTS}\n{inspect.getsource(job)}"
    lines += f"done = job({str(folder)!r}, {steps}, {width})\nprint('stopped' if done.stopped else 'done', done.step)\n"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", lines]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for(seen, process):
    end = time.monotonic() + 60
    while not seen():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.0005)


def test_kill_during_a_save_leaves_the_last_good_checkpoint_and_loses_nothing(tmp_path):
    killed = tmp_path / "killed"
    for least in (2, 4):  # both times in the middle of a save
        process = start(killed, 8)
        wait_for(lambda least=least: any(int(f.name[6:12]) > least for f in killed.glob(".step-*")), process)
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL
        found = checkpoint.checkpoints(killed)
        assert found and int(found[-1].name[5:]) >= least
        for folder in found:  # each is complete
            said, tensors = checkpoint.read(folder)
            assert said["step"] == int(folder.name[5:]) and tensors
            assert all(p.isfinite().all() for p in af.load(folder).parameters())
    assert job(killed, 8).step == job(tmp_path / "straight", 8).step == 8
    for file in ("model.safetensors", "training.safetensors"):
        a, b = (load_file(tmp_path / run / "step-000008" / file) for run in ("killed", "straight"))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    steps = [json.loads(line)["step"] for line in (killed / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 9)) and not list(killed.glob(".step-*"))


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_nothing(tmp_path):
    draw, killed, kills = np.random.default_rng(0), tmp_path / "killed", 0
    for _ in range(20):
        process = start(killed, 10_000, width=64)
        before = checkpoint.latest(killed)
        wait_for(lambda before=before: checkpoint.latest(killed) != before, process)  # it is at work
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
        kills += finish(process)[0] == -signal.SIGKILL
        last = checkpoint.checkpoints(killed)[-1]
        said, tensors = checkpoint.read(last)
        assert said["step"] == int(last.name[5:]) and tensors
        assert all(p.isfinite().all() for p in af.load(last).parameters())
    assert kills == 20
    steps = int(last.name[5:])
    assert job(killed, steps + 1, width=64).step == job(tmp_path / "straight", steps + 1, width=64).step
    name = f"step-{steps + 1:06d}"
    for file in ("model.safetensors", "training.safetensors"):
        a, b = (load_file(tmp_path / run / name / file) for run in ("killed", "straight"))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_mean_and_moments(tmp_path, number):
    """Both signals, in this process, with everything that has a state."""
    ids = np.random.default_rng(0).integers(0, 128, 5000).astype(np.uint16)
    windows, settings = Windows(ids, 2, 16), Settings(steps=6, warmup=0, ema=0.9, optimizer="muon", precision="fp16")

    def give(n):
        if n == 2:
            os.kill(os.getpid(), number)
        return windows(n)

    model = af.build("gpt", "tiny", seed=0)
    done = fit(model, give, objectives.causal_lm, settings, tmp_path)
    assert done.stopped and done.step == 3 and (done.checkpoint / "ema" / "model.safetensors").exists()
    assert fit(model, windows, objectives.causal_lm, settings, tmp_path, resume=True).step == 6


def test_folder_inside_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="choose another out"):
        job(tmp_path / "file" / "run", 1, width=32)


def test_sigterm_saves_and_ends_well(tmp_path):
    process = start(tmp_path, 100_000, width=32)
    wait_for(lambda: checkpoint.latest(tmp_path) is not None, process)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    step = int(out.split()[1])
    assert (code, out.split()[0], err) == (0, "stopped", "")
    assert checkpoint.latest(tmp_path) == tmp_path / f"step-{step:06d}"


@pytest.mark.skipif(sys.platform == "win32", reason="the limit on the size of files is a POSIX one")
def test_full_disk_keeps_the_old_checkpoint_and_says_so(tmp_path):
    job(tmp_path, 2)
    before = {f.name: f.read_bytes() for f in (tmp_path / "step-000002").iterdir()}
    room = max(map(len, before.values())) // 2
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))\n"
    code, _, err = finish(start(tmp_path, 4, before=limit))
    assert code == 1 and "the checkpoint of step 3 was not written" in err and "step-000002 is still there" in err
    assert {f.name: f.read_bytes() for f in (tmp_path / "step-000002").iterdir()} == before
    assert (
        not list(tmp_path.glob(".step-*")) and [c.name for c in checkpoint.checkpoints(tmp_path)][-1] == "step-000002"
    )
    assert job(tmp_path, 4).step == 4  # and with room again it goes on
