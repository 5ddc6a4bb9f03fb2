"""Where the time of a training step goes, at the larger size of the training benchmark.

A process for each of our models makes steps of `fit`, in float32 and in bf16; PyTorch's profiler says how long each
operation took. What ran in forward belongs to the innermost part that it ran in, what ran in backward to the part whose
forward it undoes. Matrix products are listed by shape, rows x inner x columns, apart from their part: those of forward,
those that make the gradient of what came in (as many rows as tokens), those that make the gradient of weights (an inner
size of as many); "backward" where shapes do not tell; those of attention are its part's. What no operation took is
Python and memory management. The peak is that of plain products in the same precision, in the same process.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from benchmarks import train_step
from benchmarks.contest import THREADS, Worker
from benchmarks.report import Section, percent, row
from benchmarks.train_step import BATCH, LARGE, TIME, TOKENS, VOCAB
from benchmarks.training import CONTESTANTS

ONEDNN = "mkldnn::_linear_pointwise"
PRODUCTS = {"aten::mm", "aten::addmm", ONEDNN}
RUNS = [(name, precision) for precision in ("fp32", "bf16") for name in ("ours_gpt", "ours_llama")]
BACKWARD = "autograd::engine::evaluate_function: "
SCOPE = "part: "
FIRST = 3  # steps under the profiler that are not counted: what it notes lies among the memory that a step reuses
WHOLE = {"world.clip_grad_norm": "clipping", "optimizer.step": "optimiser", "optimizer.zero_grad": "optimiser"}


def build(name: str) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """Nothing but imports; the function makes steps, and says how long each kind of work took in one of them."""
    import torch

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)

    def serve(request: dict[str, Any]) -> dict[str, Any]:
        from benchmarks.machine import matmul_rate

        loop = _loop(name, 2 * request["steps"] + 2 + FIRST, request["precision"])
        for _ in range(2):
            loop.advance()
        seconds, loop.inside = [], 0.0
        for _ in range(request["steps"]):
            began = time.perf_counter()
            loop.advance()
            seconds.append(time.perf_counter() - began)
        outside = 1 - loop.inside / sum(seconds)
        rate = matmul_rate({"fp32": torch.float32, "bf16": torch.bfloat16}[request["precision"]])
        _scoped(loop)
        events = list[Any]()
        for step in range(FIRST + request["steps"]):
            with torch.profiler.profile(record_shapes=True) as profiler:
                loop.advance()
            events += profiler.events() if step >= FIRST else ()
        kinds = _kinds(events, request["steps"])
        return {"seconds": seconds, "rate": rate, "kinds": kinds, "outside": outside}

    def kept(request: dict[str, Any]) -> dict[str, Any]:
        from anyformer.core.machine import kept_memory

        with kept_memory():  # as within `run` of the loop, whose steps are made one by one here
            return serve(request)

    return {}, kept


def _loop(name: str, steps: int, precision: str) -> Any:
    """The loop of `fit`, before its first step."""
    import torch

    from anyformer.train import Settings, objectives
    from anyformer.train.checkpoint import Run
    from anyformer.train.loggers import Observer
    from anyformer.train.loop import Loop

    def batches(number: int) -> dict[str, Any]:
        ids = torch.randint(0, VOCAB, (BATCH, TIME + 1), generator=torch.Generator().manual_seed(number))
        return {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}

    model, _ = getattr(train_step, name)(LARGE)
    model.train()
    run = Run(tempfile.mkdtemp())
    settings = Settings(steps=steps, precision=precision)
    return Loop(model, batches, objectives.causal_lm, settings, run, None, {}, Observer())


def _scoped(loop: Any) -> None:
    """Gives what each part does a name in the profile, and what the loop does after backward."""
    from torch.profiler import record_function

    def named(function: Callable[..., Any], label: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with record_function(SCOPE + label):
                return function(*args, **options)

        return call

    for module in loop.model.modules():
        module.forward = named(module.forward, type(module).__name__)
    for path, label in WHOLE.items():
        owner = getattr(loop, path.partition(".")[0])
        setattr(owner, path.partition(".")[2], named(getattr(owner, path.partition(".")[2]), label))
    loop.criterion.objective = named(loop.criterion.objective, "loss")


def _kinds(events: Any, steps: int) -> dict[str, list[float]]:
    """Of a step: seconds within each kind of work, its floating-point operations (0: not counted), and its calls."""
    scopes: dict[int, str] = {}
    for event in events:
        if event.sequence_nr >= 0 and not event.name.startswith(BACKWARD):
            scopes.setdefault(event.sequence_nr, _scope(event)[0])
    by_kind: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for event in events:
        if event.name.startswith((SCOPE, BACKWARD)) or not event.name.startswith(("aten::", "mkldnn::", "Root")):
            continue
        scope, number = _scope(event)
        backward = number is not None
        if number is not None:
            scope = scopes.get(number, "gradients added up")
        label, work = scope + (", backward" if backward else ""), 0.0
        if event.name in PRODUCTS:
            rows, inner, columns = _sizes(event)
            work = 2.0 * rows * inner * columns
            kinds = {(True, False): "for what came in", (False, True): "for weights"}
            which = kinds.get((rows == TOKENS, inner == TOKENS), "backward") if backward else "forward"
            label = f"product {which}: {rows} x {inner} x {columns}"
        for i, value in enumerate((event.self_cpu_time_total / 1e6, work, 1.0 if work else 0.0)):
            by_kind[label][i] += value / steps
    return by_kind


def _sizes(event: Any) -> tuple[int, int, int]:
    """Rows, inner size and columns of a product."""
    if event.name == ONEDNN:  # (..., D), (N, D)
        (*rows, inner), weight = event.input_shapes[:2]
        return math.prod(rows), inner, weight[0]
    left, right = [s for s in event.input_shapes if len(s) == 2][:2]
    return left[0], left[1], right[1]


def _scope(event: Any) -> tuple[str, int | None]:
    """The innermost part that an operation ran in, and, in backward, the number of the operation that it undoes."""
    while event is not None:
        if event.name.startswith(SCOPE):
            return event.name.removeprefix(SCOPE), None
        if event.name.startswith(BACKWARD):
            return "", event.sequence_nr
        event = event.cpu_parent
    return "loop", None


def run(rounds: int = 3) -> Section:
    """The section of the report; `rounds` steps are averaged."""
    table = [row("", "work", "ms a step", "of the step", "GFLOP/s", "of the peak")]
    notes = []
    for name, precision in RUNS:
        worker = Worker("profile", name)
        answer = worker.ask(steps=rounds, precision=precision)
        worker.close()
        step, kinds, peak = statistics.median(answer["seconds"]), answer["kinds"], answer["rate"]
        who = f"{CONTESTANTS[name].name}, {precision}"
        rows = sorted(kinds.items(), key=lambda kind: (not kind[1][1], -kind[1][0]))
        products = [sum(values[i] for values in kinds.values() if values[1]) for i in (0, 1)]
        rows = [("all products", [*products, 1.0]), *rows]
        rows.append(("no operation", [max(0.0, step - sum(v[0] for v in kinds.values())), 0.0, 0.0]))
        small = [values for _, values in rows if values[0] < 0.002 * step]
        rows = [r for r in rows if r[1][0] >= 0.002 * step]
        rows.append(("each below 0.2 %", [sum(v[0] for v in small), 0.0, 0.0]))
        for label, (seconds, work, _) in rows:
            rate = (f"{work / seconds / 1e9:,.0f}", percent(work / seconds / peak)) if work else ("", "")
            table.append(row(who, label, f"{1e3 * seconds:,.0f}", f"{100 * seconds / step:.1f} %", *rate))
        least = LARGE.flops / peak
        notes.append(
            f"{who}: {1e3 * step:,.0f} ms a step without the profiler; at the peak of this run, {peak / 1e9:,.0f} "
            f"GFLOP/s, its {LARGE.flops / 1e9:,.0f} GFLOP would take {1e3 * least:,.0f} ms: "
            f"{percent(least / step)} of the peak. Outside model and optimiser: {100 * answer['outside']:.1f} %."
        )
    return Section(
        "Where a training step's time goes", f"{(__doc__ or '').strip()}\n\nSteps: {rounds}.", table, [], notes
    )
