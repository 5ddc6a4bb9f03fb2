"""Several processes of one run, started by a launcher from the unchanged run file.

```sh
torchrun --nproc-per-node 2 -m anyformer train --data book.txt --parallel fsdp
```
`world` chooses how the processes work together. See docs/distributed.md.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from anyformer.core.value import nearest
from anyformer.train.distributed.base import World

COMMUNICATION: dict[str, dict[str, float]] = {  # every kind of `parallel`, with the numbers that it has
    "ddp": {},
    "fsdp": {},
    "tp": {},
    "ep": {},
    "pipeline": {"pieces": 4},
    "zero": {"stage": 2},
    "powersgd": {"rank": 4, "start": 10},
    "local": {"every": 10},
    "diloco": {"every": 50, "lr": 0.7, "momentum": 0.9},
}
AXES = ("data", "tensor", "context", "pipeline")


def world(
    parallel: str = "ddp",
    mesh: Mapping[str, int] | None = None,
    communication: Mapping[str, float] | None = None,
    device: str | None = None,
) -> World:
    """The processes that a launcher started (`torchrun`, `accelerate launch`), or this one alone.

    Args:
        parallel: ddp: each process has all weights and a part of each batch, gradients are added up. fsdp: weights,
            gradients and moments in parts too. tp: the matrices of each layer are split. ep: the same, but experts of a
            mixture are whole, each in one process. pipeline: each process has some of the blocks. zero: DeepSpeed's,
            moments and gradients in parts. powersgd, local, diloco: ddp that exchanges less, see
            `distributed.low_communication`.
        mesh: how many processes share a batch (data), a matrix (tensor), the tokens of a row (context) and the blocks
            (pipeline), e.g. {"data": 2, "tensor": 2}; the rest follows from the number of processes.
        communication: numbers of pipeline (pieces of a batch), zero (stage), powersgd (rank, start), local (every),
            diloco (every, lr, momentum).
        device: cpu or cuda; by default a GPU if there is one.

    Raises:
        ValueError: for a kind, axis or number that there is not, or a mesh of another size than the processes.
    """
    if parallel not in COMMUNICATION:
        raise ValueError(
            f"parallel must be one of {', '.join(COMMUNICATION)}; got {parallel!r}{nearest(parallel, [*COMMUNICATION])}"
        )
    mesh, communication = dict(mesh or {}), {**COMMUNICATION[parallel], **_known(parallel, communication or {})}
    for axis, count in mesh.items():
        if axis not in AXES or count < 1:
            raise ValueError(
                f"mesh has {', '.join(AXES)}, each a number of processes of at least 1; got {axis}={count}"
            )
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    size = int(os.environ["WORLD_SIZE"]) if launched else 1
    context, axis = mesh.get("context", 1), "pipeline" if parallel == "pipeline" else "tensor"
    split = mesh.get(axis, size // (mesh.get("data", 1) * context) if parallel in ("tp", "ep", "pipeline") else 1)
    if other := [name for name in ("tensor", "pipeline") if name != axis and mesh.get(name, 1) > 1]:
        raise ValueError(f"parallel={parallel} does not split by mesh.{other[0]}; leave it out, or choose another")
    if mesh.get("data", max(1, size // (split * context))) * split * context != size:
        wanted = math.prod(mesh.values())
        raise ValueError(
            f"mesh {mesh} does not fit: the launcher started {size} process{'es' * (size > 1)}; "
            f"e.g. torchrun --nproc-per-node {wanted} …"
        )
    if split > 1 and parallel in ("zero", "local", "diloco"):
        raise ValueError(f"parallel={parallel}: each process has all weights; leave mesh.tensor out")
    if context > 1 and parallel in ("pipeline", "zero", "powersgd", "local", "diloco"):
        raise ValueError(f"parallel={parallel} does not split the tokens of a row; leave mesh.context out")
    if not launched:
        return World()
    return _joined(parallel, split, context, communication, device)


def _joined(parallel: str, split: int, context: int, communication: dict[str, float], device: str | None) -> World:
    import torch

    from anyformer.train.distributed.ddp import DDP
    from anyformer.train.distributed.fsdp import FSDP
    from anyformer.train.distributed.low_communication import LocalSGD, PowerSGD

    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type
    if parallel == "zero":
        from anyformer.train.distributed.zero import Zero

        return Zero(kind, **communication)
    if parallel == "pipeline":
        from anyformer.train.distributed.pipeline import Pipeline

        return Pipeline(split, kind, **communication)
    if parallel == "powersgd":
        return PowerSGD(split, kind, **communication)
    if parallel in ("local", "diloco"):
        return LocalSGD(split, kind, **communication)
    if parallel == "fsdp":
        return FSDP(split, kind, context=context)
    return DDP(split, kind, experts=parallel == "ep", context=context)


def _known(parallel: str, communication: Mapping[str, float]) -> dict[str, float]:
    known = COMMUNICATION[parallel]
    for name, value in communication.items():
        if name not in known:
            has = f"has {', '.join(known)}" if known else "has no such numbers"
            raise ValueError(f"communication: {parallel} {has}; got {name!r}")
        if not value >= (0 if name == "momentum" else 2 if name == "start" else 1 if name != "lr" else 1e-9):
            raise ValueError(f"communication: {name}={value} of {parallel} is too small")
    return dict(communication)
