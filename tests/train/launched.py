"""What the tests of several processes share: starting them, and comparing what two runs left."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

import anyformer as af
from anyformer.train import checkpoint

WORKER = Path(__file__).with_name("distributed_worker.py")
SOURCE = Path(af.__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}


def launch(folder, count, jobs):
    """Runs the jobs, one after another, in `count` processes."""
    file = folder / f"jobs-{count}.json"
    file.write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", str(WORKER), str(file)]
    run = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, "\n".join(line for line in run.stderr.splitlines() if "^^^" not in line)[:6000]


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
