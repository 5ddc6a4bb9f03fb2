"""Learning-rate schedules: functions of the step, without a state to save."""

import math
from collections.abc import Callable

Shape = Callable[[float, float, int, int], float]
DECAY = 0.2  # the share of all steps in which `wsd` goes down


def cosine(done: float, final: float, step: int, warmup: int) -> float:
    """final + (1 - final) (1 + cos(pi done)) / 2 (Loshchilov and Hutter, 2016; arXiv:1608.03983)."""
    return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2


def linear(done: float, final: float, step: int, warmup: int) -> float:
    """1 - (1 - final) done."""
    return 1 - (1 - final) * done


def wsd(done: float, final: float, step: int, warmup: int) -> float:
    """Warm-up, stable, decay: 1, then straight to `final` in the last fifth (Hu et al., 2024; arXiv:2404.06395)."""
    return 1 - (1 - final) * max(0.0, (done - (1 - DECAY)) / DECAY)


def inverse_sqrt(done: float, final: float, step: int, warmup: int) -> float:
    """sqrt(warmup / (step + 1)), where it is above `final` (Vaswani et al., 2017; arXiv:1706.03762). The end of the run
    does not matter."""
    return max(final, math.sqrt(max(1, warmup) / (step + 1)))


def constant(done: float, final: float, step: int, warmup: int) -> float:
    """1."""
    return 1.0


ENDING = ("cosine", "linear", "wsd")  # those that depend on the number of steps
SCHEDULES: dict[str, Shape] = {f.__name__: f for f in (cosine, linear, wsd, inverse_sqrt, constant)}


def rate(name: str, step: int, steps: int, warmup: int, final: float) -> float:
    """The learning rate of step number `step` (from 0) of `steps`, as a share of the highest one.

    ```
    1      .-''-.      cosine    1     .------.      wsd      up:    (step + 1) / warmup
          /      '.                   /        \\              down:  one of the shapes above; done = 0 after warm-up,
    final/         '--        final  /          '                    1 in the last step
         0 warmup  steps             0 warmup  steps
    ```
    """
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    return SCHEDULES[name](done, final, step, warmup)
