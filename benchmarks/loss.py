"""Scoring tokens over a large vocabulary: the loss of a linear head and its gradient, forward and backward.

2,048 tokens of width 576 and the vocabularies of SmolLM2 (49,152) and Llama 3 (128,256), float32. Whole: logits, then
PyTorch's cross-entropy. In pieces: `parts.unscored`, as `chunked_loss` of `anyformer train`. PyTorch:
`torch.nn.functional.linear_cross_entropy` with its own choice of pieces. Cut cross-entropy: `cut-cross-entropy`; its
kernel is written in Triton for GPUs, as is Liger's, and what it does elsewhere is compiled by `torch.compile`. "15 %
count": the other labels are -100, as in the training of a masked language model. Memory is what the process grew by at
most in its second call, gradients included (VmHWM); then it keeps what it frees, as training does
(`core.machine.kept_memory`), and the rounds are timed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.contest import THREADS, Contestant, Missing, compete, ratio, spread, started
from benchmarks.machine import resident
from benchmarks.report import Claim, Section, row, times

TOKENS, WIDTH = 2048, 576
CASES = {(49_152, 1.0): "49,152", (49_152, 0.15): "49,152, 15 % count", (128_256, 1.0): "128,256"}
CONTESTANTS = {
    "pieces": Contestant("in pieces"),
    "whole": Contestant("whole logits", against="pieces"),
    "torch": Contestant("PyTorch's linear_cross_entropy", against="pieces"),
    "cut": Contestant("cut-cross-entropy, compiled", against="pieces"),
}


def build(name: str) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """Nothing to say beforehand, and the function that scores and differentiates once."""
    import torch
    from torch.nn import functional as F

    from anyformer.core.machine import kept_memory
    from anyformer.parts.unscored import Unscored

    torch.set_num_threads(THREADS)
    if name == "torch" and not hasattr(F, "linear_cross_entropy"):
        raise Missing("this PyTorch has no linear_cross_entropy (2.13 has)")

    if name == "cut":
        with mock.patch("platform.system", return_value="Darwin"):  # where the package does without Triton
            from cut_cross_entropy import linear_cross_entropy

    def loss(x: Any, w: Any, labels: Any) -> Any:
        if name == "pieces":
            return Unscored(x, w, None).cross_entropy(labels, -100)
        if name == "cut":
            return linear_cross_entropy(x, w, labels, reduction="sum", impl="torch_compile")
        if name == "whole":
            return F.cross_entropy(F.linear(x, w), labels, reduction="sum")
        options = torch.nn.LinearCrossEntropyOptions()
        return F.linear_cross_entropy(x, w, labels, reduction="sum", options=options)

    kept = contextlib.ExitStack()

    def serve(request: dict[str, Any]) -> dict[str, Any]:
        if not request["kept"]:
            kept.close()
        elif request["round"] == 0:
            kept.enter_context(kept_memory())
        noise = torch.Generator().manual_seed(request["round"])
        vocab, share = request["vocab"], request["share"]
        x = torch.randn(TOKENS, WIDTH, generator=noise).requires_grad_()
        w = (0.02 * torch.randn(vocab, WIDTH, generator=noise)).requires_grad_()
        labels = torch.randint(0, vocab, (TOKENS,), generator=noise)
        labels[torch.rand(TOKENS, generator=noise) >= share] = -100
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        before, began = resident(), time.perf_counter()
        value = loss(x, w, labels)
        value.backward()
        assert w.grad is not None
        seconds = time.perf_counter() - began
        peak = resident()["VmHWM"] - before["VmRSS"] if before else 0
        return {"seconds": seconds, "peak": peak, "loss": value.item(), "slope": float(w.grad.norm())}

    return {}, serve


def run(rounds: int = 10) -> Section:
    """The section of the report."""
    notes: list[str] = []
    workers = started("loss", CONTESTANTS, notes)
    table, claims = [row("vocabulary", "", "s", "time / ours", "peak, MB")], list[Claim]()
    for (vocab, share), case in CASES.items():
        request = {"vocab": vocab, "share": share}
        first = compete(workers, CONTESTANTS, 2, {**request, "kept": False}, notes)  # the first one compiles
        answers = compete(workers, CONTESTANTS, rounds, {**request, "kept": True}, notes)
        seconds = {name: [a["seconds"] for a in rows] for name, rows in answers.items()}
        peak = {name: float(rows[-1]["peak"]) for name, rows in first.items()}
        for name, rows in answers.items():
            for a, b in zip(answers["pieces"], rows, strict=True):
                for figure in ("loss", "slope"):
                    assert abs(a[figure] - b[figure]) <= 1e-5 * abs(b[figure]), (case, name, figure)
            against = times(ratio(seconds[name], seconds["pieces"])) if name != "pieces" else ""
            cells = f"{spread(seconds[name])[0]:.2f}", against, f"{peak[name] / 1e6:,.0f}"
            table.append(row(case, CONTESTANTS[name].name, *cells))
            if name != "pieces":
                ours, theirs = (f"{spread(seconds[n])[0]:.2f} s" for n in ("pieces", name))
                compared, what = ratio(seconds[name], seconds["pieces"]), f"loss over {case} words"
                claims.append(Claim(what, CONTESTANTS[name].name, ours, theirs, compared, rounds))
    for worker in workers.values():
        worker.close()
    return Section("Loss over a large vocabulary", (__doc__ or "").strip(), table, claims, notes)


if __name__ == "__main__":
    print(run().markdown("this machine"))
