"""Ours beside one peer, row by row: inference and step of several models, each pair of processes in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.contest import PROCESS, Contestant, compete, ratio, spread, started
from benchmarks.report import Claim, row, times

FREED = 31 << 20  # bytes
KINDS = {"inference": False, "step": True}


def duels(
    module: str,
    names: Mapping[str, str],
    peers: Mapping[str, str],
    rounds: int,
    notes: list[str],
    kinds: Callable[[str], Mapping[str, bool]] = lambda name: KINDS,
    cell: Callable[[float], str] = lambda seconds: f"{seconds:.2f} s",
    warm: int = 1,
) -> tuple[list[str], list[Claim]]:
    """The rows of a table, two a model, and what follows from them.

    Args:
        module: whose `build` takes "ours_NAME" and "theirs_NAME", and makes what answers {"step": …} with "seconds".
        names: the titles of the rows.
        peers: the peer of each.
        kinds: what is measured of a row: a name, and True for a step.
        cell: seconds as they are shown.
        warm: turns before the first one that counts.
    """
    table, claims = list[str](), list[Claim]()
    for name, title in names.items():
        sides = {
            f"ours_{name}": Contestant(f"anyformer {title}"),
            f"theirs_{name}": Contestant(peers[name], against=f"ours_{name}"),
        }
        workers = started(module, sides, notes)
        cells: dict[str, list[str]] = {key: [] for key in workers}
        for kind, step in kinds(name).items():
            compete(workers, sides, warm, {"step": step}, notes)  # first use
            answers = compete(workers, sides, rounds, {"step": step}, notes)
            seconds = {key: [a["seconds"] for a in made] for key, made in answers.items()}
            mine = seconds[f"ours_{name}"]
            for key, values in seconds.items():
                against = times(ratio(values, mine)) if key != f"ours_{name}" else ""
                cells[key] += [cell(spread(values)[0]), against]
                if against:
                    own, peer = (cell(spread(v)[0]) for v in (mine, values))
                    claims.append(Claim(f"{title}, {kind}", sides[key].name, own, peer, ratio(values, mine), rounds))
        for key, worker in workers.items():
            table.append(row(title, sides[key].name, *cells[key], *[""] * (4 - len(cells[key]))))
            worker.close()
    return table, claims


def stepping(model: Any, loss: Callable[[], Any], kept: bool) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The function that makes one pass, or with {"step": True} forward and backward in training mode; no optimiser.

    glibc returns the end of its heap to the system where more is free than twice the largest block that the process has
    ever freed (of at most 32 MiB). Whether a side frees a large block before its first pass is an accident of imports,
    and the one that does not takes the same pages anew in each pass. Both sides free one here.

    Args:
        kept: steps run as in `fit`, which keeps freed memory for the next one (`core.machine.kept_memory`).
    """
    import torch

    torch.empty(FREED, dtype=torch.uint8)

    def serve(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal kept
        if kept and request["step"]:
            from anyformer.core.machine import kept_memory

            PROCESS.enter_context(kept_memory())
            kept = False
        model.train(request["step"])
        began = time.perf_counter()
        with torch.set_grad_enabled(request["step"]):
            value = loss()
            if request["step"]:
                value.backward()
        seconds = time.perf_counter() - began
        model.zero_grad(set_to_none=True)
        return {"seconds": seconds, "loss": float(value.detach())}

    return serve
