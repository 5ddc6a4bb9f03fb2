"""Attention in training on a CPU: forward and backward by length, by window, and by the documents of a row.

8 heads of 64, scores of random vectors, causal; as many rows as make 4,096 tokens. Fused: PyTorch's kernel in both
directions. By blocks: a backward pass by blocks of keys (`parts/attention/half.py`), which the library takes in
bfloat16 and not in float32. Windows and documents: what the library does by its rule, forward and backward, as a share
of the time of the whole triangle; "kept" is the share of the triangle's pairs that are visible.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.contest import PROCESS, THREADS, Worker, ratio, spread
from benchmarks.report import Claim, Section, row, times

TOKENS, HEADS, WIDTH = 4096, 8, 64
LENGTHS = (256, 512, 1024, 2048, 4096)
WINDOWS = (4095, 1023, 511, 255, 127)
DOCUMENTS = (1, 4, 16, 64)


def build(name: str) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """Nothing to say beforehand, and the function that measures everybody once, one after the other."""
    import torch

    from anyformer.core.machine import kept_memory

    PROCESS.enter_context(kept_memory())  # as in training
    torch.set_num_threads(THREADS)
    ways = {"length": _by_length, "window": _by_window, "documents": _by_documents}

    def serve(request: dict[str, Any]) -> dict[str, Any]:
        kind = getattr(torch, request["kind"])
        return ways[request["what"]](request["size"], kind)

    return {}, serve


def _drawn(length: int, kind: Any) -> tuple[list[Any], Any]:
    """q, k, v as linear maps leave them, and a gradient."""
    import torch

    shape = TOKENS // length, length, HEADS, WIDTH
    q, k, v, grad = (torch.randn(shape).to(kind).transpose(1, 2) for _ in range(4))
    return [t.requires_grad_() for t in (q, k, v)], grad


def _timed(forward: Callable[[], Any], tensors: list[Any], grad: Any) -> tuple[float, float]:
    """Seconds of the forward and of the backward pass."""
    import torch

    began = time.perf_counter()
    y = forward()
    between = time.perf_counter()
    torch.autograd.grad(y, tensors, grad)
    return between - began, time.perf_counter() - between


def _by_length(length: int, kind: Any) -> dict[str, Any]:
    from torch.nn import functional as F

    from anyformer.parts.attention.half import HalfAttention

    tensors, grad = _drawn(length, kind)
    q, k, v = tensors
    fused = _timed(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True), tensors, grad)
    ours = _timed(lambda: HalfAttention.apply(q, k, v, None, True, None, WIDTH**-0.5), tensors, grad)
    return {"forward": fused[0], "fused": fused[1], "ours": ours[1]}


def _by_window(window: int, kind: Any) -> dict[str, Any]:
    import torch

    from anyformer.parts.attention.kernels import attend
    from anyformer.parts.attention.masks import CAUSAL, View, Window

    tensors, grad = _drawn(TOKENS, kind)
    mask = CAUSAL if window >= TOKENS - 1 else CAUSAL & Window(window)
    view = View(mask, 0, TOKENS, 0, TOKENS, device=torch.device("cpu"))
    taken = _timed(lambda: attend(tensors[0], tensors[1], tensors[2], view), tensors, grad)
    return {"seconds": sum(taken), "kept": mask.kept(TOKENS)}


def _by_documents(count: int, kind: Any) -> dict[str, Any]:
    import torch

    from anyformer.core.documents import positions_in_documents
    from anyformer.parts.attention.kernels import attend
    from anyformer.parts.attention.masks import CAUSAL, Packed, View

    tensors, grad = _drawn(TOKENS, kind)
    ids = torch.arange(count).repeat_interleave(TOKENS // count)[None]
    packed = Packed(ids, positions_in_documents(ids))
    view = View(CAUSAL, 0, TOKENS, 0, TOKENS, ids >= 0, torch.device("cpu"), packed, packed)
    if count == 1:
        view = View(CAUSAL, 0, TOKENS, 0, TOKENS, device=torch.device("cpu"))
    taken = _timed(lambda: attend(tensors[0], tensors[1], tensors[2], view), tensors, grad)
    return {"seconds": sum(taken), "kept": CAUSAL.kept(TOKENS // count) / count}


def run(rounds: int = 10) -> Section:
    """The section of the report."""
    worker = Worker("attention_training", "")
    table = [row("", "", "forward, ms", "backward, fused", "by blocks", "fused / by blocks", "pairs kept", "time")]
    claims = []
    for kind in ("bfloat16", "float32"):
        for length in LENGTHS:
            answers = _asked(worker, rounds, what="length", size=length, kind=kind)
            forward, fused, ours = ([a[k] for a in answers] for k in ("forward", "fused", "ours"))
            r = ratio(fused, ours)
            shown = [f"{1e3 * spread(s)[0]:.0f}" for s in (forward, fused, ours)]
            table.append(row(f"{length} tokens", kind, *shown, times(r), "", ""))
            if kind == "bfloat16":
                what = f"backward pass of attention, {length} tokens, {kind}"
                claims.append(Claim(what, "PyTorch's kernel", f"{shown[2]} ms", f"{shown[1]} ms", r, rounds))
        for what, sizes in (("window", WINDOWS), ("documents", DOCUMENTS)):
            every = {size: _asked(worker, rounds, what=what, size=size, kind=kind) for size in sizes}
            whole = every[sizes[0]]
            for size, answers in every.items():
                share = ratio([a["seconds"] for a in answers], [a["seconds"] for a in whole])
                kept = f"{answers[0]['kept'] / whole[0]['kept']:.3f}"
                titles = {"window": f"window of {size + 1}", "documents": f"documents of {TOKENS // size}"}
                table.append(row(titles[what], kind, "", "", "", "", kept, times(share)))
    worker.close()
    text = f"{(__doc__ or '').strip()}\n\nRounds: {rounds}; medians (quartiles). Time: share of the whole triangle's."
    return Section("Attention in training", text, table, claims)


def _asked(worker: Worker, rounds: int, **request: Any) -> list[dict[str, Any]]:
    worker.ask(**request)  # first use
    return [worker.ask(**request) for _ in range(rounds)]
