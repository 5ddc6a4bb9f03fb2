"""Processes that end badly: kill -9 in the middle of a save, SIGTERM, a disk that is full."""

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import anyformer as af
from anyformer.data.text import Windows
from anyformer.train import Settings, checkpoint, fit, objectives
from anyformer.train.log import Log
from tests.train.launched import ENVIRONMENT, rows

pytestmark = pytest.mark.usefixtures("forked")

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
    settings = Settings(steps=steps, warmup=2, schedule="constant", save_every=1, keep_last=2)
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


# ------------------------------------------------------------------------------------------ through the command

TRAIN = ["--size=tiny", "--tokenizer=bytes", "--context=16", "--batch=2", "--eval_every=0"]
FULL = """
mkdir "$1" && mount -t tmpfs -o size=2500k tmpfs "$1" || { echo no mount; exit 0; }
shift
"$@"; echo "ended with $?"; ls -A "$(dirname "$0")"/disk/run
mount -o remount,size=50m "$(dirname "$0")"/disk && "$@" --resume=true; echo "and then with $?"
"""


def training(folder, out, *options):
    """`anyformer train` on a short text."""
    (folder / "book.txt").write_text("All that glitters is not gold. Often have you heard that told.\n" * 60)
    data = ["--data", str(folder / "book.txt"), "--cache", str(folder / "tokens"), "--out", str(out)]
    return [sys.executable, "-m", "anyformer", "train", *TRAIN, *data, *options]


@pytest.mark.slow
def test_the_command_ends_well_on_sigterm_and_goes_on(tmp_path):
    command = training(tmp_path, tmp_path / "run", "--save_every=0")
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*command, "--steps=100000"], env=ENVIRONMENT, **pipes)
    log = tmp_path / "run/log.jsonl"
    wait_for(lambda: log.exists() and log.stat().st_size, process)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    last = checkpoint.latest(tmp_path / "run")
    assert code == 0 and err == "" and last is not None
    step = int(last.name[5:])
    assert f"stopped after step {step}, {last} is complete; --resume true continues from it" in out
    assert rows(tmp_path / "run")[-1]["step"] == step
    again = [*command, f"--steps={step + 2}", "--resume=true", "--quiet"]
    subprocess.run(again, env=ENVIRONMENT, check=True)
    assert [row["step"] for row in rows(tmp_path / "run") if "loss" in row] == list(range(1, step + 3))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a small disk is made of Linux's memory")
def test_the_command_on_a_disk_that_fills_up_keeps_what_it_has_and_goes_on_when_there_is_room(tmp_path):
    """A real disk, of 2.5 MB, in a name space of its own."""
    disk, script = tmp_path / "disk", tmp_path / "full.sh"
    script.write_text(FULL)
    command = training(tmp_path, disk / "run", "--save_every=1", "--keep_last=99", "--steps=30", "--quiet")
    own = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", str(script), str(disk)]
    done = subprocess.run([*own, *command], env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    if "no mount" in done.stdout or "unshare" in done.stderr:
        pytest.skip("mounting a disk is not allowed here")
    assert "ended with 2" in done.stdout and "and then with 0" in done.stdout, done
    kept = sorted(name for name in done.stdout.split() if name.startswith("step-"))
    assert kept == [f"step-{i:06d}" for i in range(1, len(kept) + 1)] and 2 < len(kept) < 30
    assert f"the checkpoint of step {len(kept) + 1} was not written" in done.stderr
    assert "No space left on device" in done.stderr and f"{kept[-1]} is still there" in done.stderr
    assert ".step-" not in done.stdout and "Traceback" not in done.stderr


def test_a_log_on_a_full_disk_is_named(tmp_path):
    said = r"the log cannot be written: No space left on device.*log\.jsonl"
    with open("/dev/full", "w") as full, Log(tmp_path, 0) as log, pytest.raises(OSError, match=said):
        log._lines = full
        log.add([{"step": 1, "loss": 2.0}])
