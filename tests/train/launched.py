"""What the tests of several processes share: starting them, and comparing what two runs left."""

import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

import anyformer as af
from anyformer.train import checkpoint

WORKER = Path(__file__).with_name("distributed_worker.py")
SOURCE = Path(af.__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}


def launch(folder, count, jobs, worker=WORKER):
    """Runs the jobs, one after another, in `count` processes."""
    file = folder / f"jobs-{count}.json"
    file.write_text(json.dumps(jobs))
    together(count, str(worker), str(file))


def together(count, *command, timeout=600):
    """Runs a command of Python in `count` processes, which end with the first that fails."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(count)]
        every = [start(rank, stdout=file, stderr=file) for rank, file in zip(ranks(count, command), files, strict=True)]
        end = time.monotonic() + timeout
        while any(p.poll() is None for p in every):
            if any(p.poll() for p in every) or time.monotonic() > end:
                time.sleep(1)  # the others say what they miss
                for process in every:
                    process.kill()
            time.sleep(0.02)
        for process, file in zip(every, files, strict=True):
            file.seek(0)
            said = "\n".join(line for line in file.read().splitlines() if "^^^" not in line)
            assert process.returncode == 0, said[:6000]


def ranks(count, command):
    """The command and the environment of each of `count` processes that find each other: what a launcher gives them,
    which is one process more to start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**ENVIRONMENT, "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [([sys.executable, *command], {**common, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(count)]


def start(rank, **pipes):
    """One of `ranks`, started."""
    command, environment = rank
    return subprocess.Popen(command, env=environment, text=True, **pipes)


def rows(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def tensors(folder, file="model.safetensors"):
    return load_file(checkpoint.latest(folder) / file)


def files(folder):
    """The tensor files of the last checkpoint; with `ema` the mean of the weights is among them."""
    last = checkpoint.checkpoints(folder)[-1]
    return sorted(str(f.relative_to(last)) for f in last.rglob("*.safetensors"))


def close(ours, theirs, room=1e-5, weights=True):
    """Losses, gradient norms and measures of each step to `room`; moments, weights and their mean at the end."""
    a, b = rows(ours), rows(theirs)[-len(rows(ours)) :]
    for key in ("step", "tokens"):
        assert [r.get(key) for r in a] == [r.get(key) for r in b]
    for key in ("loss", "grad_norm", "held_out"):
        left, right = ([math.nan if r.get(key) is None else r[key] for r in some] for some in (a, b))
        np.testing.assert_allclose(left, right, rtol=room, atol=room, err_msg=key)
    assert files(ours) == files(theirs)
    # AdamW divides by the gradient's size: where a gradient is nothing but rounding, a weight moves by it all the same
    for file in files(ours) if weights else ["training.safetensors"]:
        left, right = tensors(ours, file), tensors(theirs, file)
        assert left.keys() == right.keys()
        most = room if file == "training.safetensors" else 10 * room
        for key in (k for k in left if not k.startswith("random.")):
            torch.testing.assert_close(left[key], right[key], rtol=100 * room, atol=most, msg=f"{file} {key}")
    return True


def same(ours, theirs):
    """Bit for bit."""
    assert files(ours) == files(theirs)
    for file in files(ours):
        left, right = tensors(ours, file), tensors(theirs, file)
        assert left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
    timeless = [[{k: v for k, v in r.items() if k != "tokens_per_second"} for r in rows(run)] for run in (ours, theirs)]
    return timeless[0] == timeless[1][-len(timeless[0]) :]
