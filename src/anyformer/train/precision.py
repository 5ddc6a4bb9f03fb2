"""Half precision, the loss scale of fp16, and torch.compile.

The scale follows the rule of `torch.amp.GradScaler`, and gives the same factors (tested). It is a class of its own
because the gradient norm over all processes, which clipping computes anyway, decides here. GradScaler looks for
infinity in a second pass over the gradients, and in each process alone where these are plain tensors, as in
`distributed.tensor`: one process would skip a step that the others take.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

PRECISIONS = ("fp32", "bf16", "fp16")


def cast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Around a forward pass: products in the precision's type, sums and norms where float32 is needed in float32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


@contextlib.contextmanager
def casts_kept(precision: str) -> Iterator[None]:
    """Around the passes of a step: the weights in half precision, converted once for all of them.

    A weight is converted where a pass first needs it, and autocast forgets it at its own end, the outermost one.
    """
    if precision == "fp32":
        yield
        return
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if not torch.autocast_decrement_nesting():
            torch.clear_autocast_cache()


def cost(device: torch.device, precision: str) -> str:
    """The cost of half precision on a processor without its instructions, measured on a product; "" where it gains.

    Shape of the product: (256, 512) times (512, 512), the median of five.
    """
    if precision == "fp32" or device.type != "cpu":
        return ""
    kind = torch.bfloat16 if precision == "bf16" else torch.float16
    slower = _seconds(kind) / _seconds(torch.float32)
    if slower <= 1:
        return ""
    return (
        f"precision {precision}: a product takes {slower:.1f} times as long as in float32 on this processor; "
        "precision fp32 is faster here"
    )


def _seconds(kind: torch.dtype) -> float:
    """The median time of a product in this type."""
    a, b = torch.ones(256, 512, dtype=kind), torch.ones(512, 512, dtype=kind)
    a @ b  # first use
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        a @ b
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


class Scale:
    """The factor on the loss in fp16: gradients below 6e-8 would be 0 (Micikevicius et al., 2017; arXiv:1710.03740).

    ```
    gradients all finite   value stays; after `patience` such steps in a row it doubles
    any of them is not     the step changes no weight; value halves
    ```
    Attributes:
        value: the factor, a power of two. `good`: steps since it changed.
    """

    def __init__(self, value: float = 2.0**16, patience: int = 2000):
        self.value, self.patience, self.good = value, patience, 0

    def undo(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divides the gradients by the factor."""
        gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, 1.0 / self.value)

    def learn(self, finite: bool) -> None:
        """Moves the factor.

        Raises:
            FloatingPointError: if the gradient overflows whatever the factor: it is too large for fp16 itself.
        """
        self.good = self.good + 1 if finite else 0
        if self.good == self.patience:
            self.value, self.good = self.value * 2, 0
        if not finite:
            self.value /= 2
        if self.value < 2.0**-14:
            raise FloatingPointError("overflow in fp16 at every loss scale; use precision bf16 or fp32")

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"value": self.value, "good": self.good}

    def restore(self, state: dict[str, float]) -> None:
        """The inverse of `state`."""
        self.value, self.good = state["value"], int(state["good"])


def compiled(forward: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`forward` through torch.compile.

    Raises:
        ValueError: if torch cannot compile here; it is tried on one sum, so that this is known before the first step.
    """
    try:
        torch.compile(_sum)(torch.ones(8, device=device))
    except Exception as error:  # whatever the compiler's toolchain throws; all of it means the same here
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"compile: no working compiler here ({why}); install one for C++, or leave it out") from error
    return torch.compile(forward)


def _sum(x: Tensor) -> Tensor:
    return x + x.sin()
