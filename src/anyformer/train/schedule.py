"""How the learning rate moves. A schedule is a function of the step: there is no state to save."""

import math


def warmup_cosine(step: int, steps: int, peak: float, warmup: int, final: float) -> float:
    """The learning rate of step number `step` (from 0) of `steps`.

    ```
    peak          .-''-.
               .'       '.                 up:    peak * (step + 1) / warmup
             .'           '-._             down:  final + (peak - final) * (1 + cos(pi * x)) / 2,  x from 0 to 1
    final  .'                 '--
           0  warmup        steps
    ```
    (Loshchilov and Hutter, 2016; arXiv:1608.03983.) `final` is a learning rate too.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - 1 - warmup)
    return final + (peak - final) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def inverse_sqrt(step: int, peak: float, warmup: int) -> float:
    """The learning rate of step number `step` (from 0): up to `peak`, then peak sqrt(warmup / (step + 1)).

    With peak = D^-1/2 warmup^-1/2 it is that of Vaswani et al. (2017; arXiv:1706.03762).
    """
    return peak * min((step + 1) / max(1, warmup), math.sqrt(max(1, warmup) / (step + 1)))
