"""Pictures out of noise. B rows, C channels.

    denoise(predict, noising, x, steps=50, sampler="ddim")       any function of noise and time
    sample(model, (3, 32, 32), {"class_labels": labels}, …)      a Denoiser, with guidance

| sampler | x at the next time                                          | for          |
|---------|-------------------------------------------------------------|--------------|
| euler   | x + (s' - s) v, one step of the line                        | FlowMatching |
| ddim    | a' clean + sqrt(b'^2 - eta^2 w) noise + eta sqrt(w) z       | all          |
| ddpm    | a draw from the posterior of x' by x and clean              | all          |

with w = b'^2 (b^2 - (a / a')^2 b'^2) / b^2, the variance of the posterior. With eta = 0 ddim is deterministic (Song et
al., 2020; arXiv:2010.02502), and on a line it is Euler's step; with eta = 1 it has the mean and variance of ddpm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from anyformer.core.part import check_option
from anyformer.hub.noising import DDPM, FlowMatching, Noising

Predict = Callable[[Tensor, float], Tensor]  # (x at a time, the time) -> what the model says


def denoise(
    predict: Predict,
    noising: Noising,
    x: Tensor,
    steps: int,
    sampler: str | None = None,
    eta: float = 0.0,
    noise: torch.Generator | None = None,
) -> Tensor:
    """The picture at the end of `steps` steps, from the noise x.

    Args:
        sampler: see above; by default that of the noising.
        eta: of ddim: the share of new noise.
        noise: of new noise.

    Raises:
        ValueError: for a sampler that this noising does not have, or an eta outside 0 … 1.
    """
    sampler = sampler or (noising.sampler if isinstance(noising, DDPM) else noising.samplers[0])
    check_option(type(noising).__name__, "sampler", sampler, noising.samplers)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be from 0 to 1, got {eta}")
    if eta and sampler != "ddim":
        raise ValueError(f"eta={eta} is for the sampler ddim, and this is {sampler}")
    times = noising.times(steps)
    for time, after in zip(times, [*times[1:], None], strict=True):  # the next time of the list, not by a fixed stride
        said = predict(x, time)
        if sampler == "euler":
            assert isinstance(noising, FlowMatching)
            x = euler(noising, x, said, time, after)
        elif sampler == "ddim":
            x = ddim(noising, x, said, time, after, eta, noise)
        else:
            x = ddpm(noising, x, said, time, after, noise)
    return x


def euler(noising: FlowMatching, x: Tensor, said: Tensor, time: float, after: float | None) -> Tensor:
    """Euler's step along the velocity."""
    return x + (noising.scales(after)[1] - noising.scales(time)[1]) * said


def ddim(
    noising: Noising,
    x: Tensor,
    said: Tensor,
    time: float,
    after: float | None,
    eta: float = 0.0,
    noise: torch.Generator | None = None,
) -> Tensor:
    """DDIM's step."""
    clean, held = noising.parts(x, said, time)
    (a, b), (a_after, b_after) = noising.scales(time), noising.scales(after)
    fresh = eta**2 * _posterior(a, b, a_after, b_after)
    x = a_after * clean + math.sqrt(max(0.0, b_after**2 - fresh)) * held
    return x + math.sqrt(fresh) * _like(x, noise) if fresh else x


def ddpm(
    noising: Noising,
    x: Tensor,
    said: Tensor,
    time: float,
    after: float | None,
    noise: torch.Generator | None = None,
) -> Tensor:
    """A draw from the posterior N((a' (b^2 - r^2 b'^2) clean + r b'^2 x) / b^2, w), r = a / a'; behind the last time
    without noise."""
    (a, b), (a_after, b_after) = noising.scales(time), (1.0, 0.0) if after is None else noising.scales(after)
    clean, ratio = noising.parts(x, said, time)[0], a / a_after
    added = b**2 - (ratio * b_after) ** 2  # the variance of the step from the next time to this one
    x = (a_after * added * clean + ratio * b_after**2 * x) / b**2
    if after is None:
        return x
    large = isinstance(noising, DDPM) and noising.variance == "large"
    return x + math.sqrt(added if large else _posterior(a, b, a_after, b_after)) * _like(x, noise)


def _posterior(a: float, b: float, a_after: float, b_after: float) -> float:
    """w, the variance of x' by x and the picture."""
    return max(0.0, b_after**2 * (b**2 - (a / a_after * b_after) ** 2) / b**2)


def _like(x: Tensor, noise: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=noise, dtype=torch.float32).to(x)


@torch.inference_mode()
def sample(
    model: Any,
    shape: tuple[int, int, int],
    told: Mapping[str, Tensor],
    nothing: Mapping[str, Tensor],
    steps: int = 50,
    guidance: float = 1.0,
    sampler: str | None = None,
    eta: float = 0.0,
    noise: torch.Generator | None = None,
) -> Tensor:
    """Pictures, or latents, that a model makes of noise.

    Args:
        model: a Denoiser with a `noising`.
        shape: C, height and width of a picture, in whole patches.
        told: what each row is about, by the names of the model's inputs.
        nothing: the same for a row that is about nothing.
        guidance: w of what the model says: nothing + w (told - nothing); 1: told alone; 0: nothing alone (Ho and
            Salimans, 2022; arXiv:2207.12598, whose w is this one less 1).
        steps, sampler, eta, noise: see `denoise`.

    Returns:
        (B, C, height, width)

    Raises:
        ValueError: for a model without a noising, or a sampler that it does not have.
    """
    if model.noising is None:
        raise ValueError(
            "the model does not know how its pictures become noise: it has no scheduler_config.json; set model.noising "
            "to a hub.noising.FlowMatching or DDPM, the one of its training"
        )
    rows, like = next(iter(told.values())).shape[0], next(model.parameters())
    x = torch.randn(rows, *shape, generator=noise).to(like)

    def said(x: Tensor, time: float, about: Mapping[str, Tensor]) -> Tensor:
        times = torch.full((rows,), time, device=like.device)
        return model(pixel_values=x, timestep=times, **about).logits[:, : shape[0]]  # without a predicted variance

    def predict(x: Tensor, time: float) -> Tensor:
        if guidance == 1.0:
            return said(x, time, told)
        without = said(x, time, nothing)
        return without if guidance == 0.0 else without + guidance * (said(x, time, told) - without)

    return denoise(predict, model.noising, x, steps, sampler, eta, noise)
