"""RMS of activations and gradients per module, to locate the origin of NaNs and spikes."""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from anyformer.data.batches import Batch

GREW = 3.0  # times as large as in the step before: the output of a part where a spike begins


def rms(x: Tensor) -> float:
    """sqrt(mean(x^2)), in float32 or better."""
    return float(x.detach().float().square().mean().sqrt()) if x.numel() else 0.0


@contextlib.contextmanager
def activations(model: nn.Module | None) -> Iterator[dict[str, float]]:
    """Context in which each forward pass records the RMS of every module's output by path, in the order in which they
    finish: a module before the one that contains it. Of several passes, the largest. Nothing without a model."""
    sizes: dict[str, float] = {}

    def listen(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                now = rms(output)
                sizes[path] = max(sizes.get(path, 0.0), now) if math.isfinite(now) else now

        return hook

    modules = [] if model is None else [*model.named_modules()]
    hooks = [m.register_forward_hook(listen(path)) for path, m in modules if path]
    try:
        yield sizes
    finally:
        for hook in hooks:
            hook.remove()


def gradients(model: nn.Module) -> dict[str, float]:
    """RMS of the gradient of every parameter that has one."""
    return {name: rms(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def weights(model: nn.Module) -> dict[str, float]:
    """RMS of every trained parameter."""
    return {name: rms(p) for name, p in model.named_parameters() if p.requires_grad}


def rounded(sizes: dict[str, float]) -> dict[str, float | None]:
    """Sizes with four digits for JSON; a value that is not finite is None."""
    return {path: float(f"{value:.4g}") if math.isfinite(value) else None for path, value in sizes.items()}


class Spikes:
    """Detector of unusual losses and gradient norms.

    A spike is above the mean of the last 50 steps by more than six standard deviations, and by more than half of it.
    The history is not in checkpoints: it decides messages, never the training.
    """

    def __init__(self, length: int = 50, least: int = 20):
        self.least = least
        self.usual: dict[str, deque[float]] = {name: deque(maxlen=length) for name in ("loss", "grad_norm")}

    def notice(self, **now: float) -> str:
        """Adds the metrics of a step; a description if it is a spike, else ""."""
        unusual = ""
        for name, value in now.items():
            seen = self.usual[name]
            if len(seen) >= self.least:
                mean, spread = statistics.fmean(seen), statistics.pstdev(seen)
                if value > mean + 6 * spread and value > 1.5 * mean:
                    unusual = unusual or f"{name} {value:.3g}, usually {mean:.3g}"
            seen.append(value)
        return unusual


def spike_origin(before: dict[str, float], now: dict[str, float], slopes: dict[str, float]) -> str:
    """Origin of a spike: the first module whose output grew much since the step before, else the largest gradient."""
    for path, value in now.items():
        if value > GREW * before.get(path, math.inf):
            return f"the first part that grew is {path}, from {before[path]:.3g} to {value:.3g}"
    largest = max(slopes, key=slopes.__getitem__)
    return f"no part's output grew {GREW:g} times; the largest gradient is that of {largest}, {slopes[largest]:.3g}"


def nonfinite_origin(model: nn.Module, batches: Iterable[Batch], run: Callable[[Batch], Tensor]) -> str:
    """Origin of a loss or gradient that is not finite: the step is run again with hooks on every module.

    Args:
        run: from a batch to its part of the loss.
    """
    for name, p in model.named_parameters():
        if not bool(p.isfinite().all()):
            return f"the weights {name} hold NaN or infinity"
    for batch in batches:
        for name, value in batch.items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                return f"the batch's {name} hold NaN or infinity"
        if origin := _in_step(model, batch, run):
            return origin
    return "when run again, the step is finite: it depends on random draws (dropout)"


def _in_step(model: nn.Module, batch: Batch, run: Callable[[Batch], Tensor]) -> str:
    """The first part of forward, else of backward, where a value is not finite."""
    back: list[tuple[str, bool]] = []

    def listen(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(lambda g: back.append((path, bool(g.isfinite().all()))))

        return hook

    hooks = [m.register_forward_hook(listen(path)) for path, m in model.named_modules() if path]
    try:
        with activations(model) as activated:
            loss = run(batch)
        for path, value in activated.items():
            if not math.isfinite(value):
                return f"the first part whose output is not finite is {path}"
        if not bool(loss.isfinite()):
            return "the outputs of all parts are finite, but the loss is not: check the labels and the objective"
        model.zero_grad(set_to_none=True)
        loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    for (path, good), (_, still) in itertools.pairwise(back):
        if good and not still:
            return f"forward is finite, and backward down to {path}, which returns a gradient that is not"
    bad = [name for name, value in gradients(model).items() if not math.isfinite(value)]
    return f"forward is finite; the gradient of {bad[-1]} is not" if bad else ""
