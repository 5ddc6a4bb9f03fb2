"""A mixer alone: with padding, token by token, and its gradient in float64. B batch, T time, D width."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.init import initialise
from anyformer.core.mixer import start_state
from anyformer.core.recipe import Recipe


def made(recipe: Recipe, dim: int = 12, dtype: torch.dtype = torch.float64) -> Any:
    """The mixer, its parameters from N(0, 0.4)."""
    mixer = recipe.build(dim)
    initialise(mixer, seed=0)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(0.0, 0.4)
    return mixer.to(dtype).eval()


def flow(time: int, causal: bool = True, keep: Tensor | None = None, first: int = 0, state: Any = None) -> Flow:
    positions = torch.arange(first, first + time)
    if keep is not None:
        positions = (keep.long().cumsum(1) - 1).clamp(min=0)[:, first:]
    return Flow(positions, first=first, causal=causal, keep=keep, state=state)


def run(mixer: nn.Module, x: Tensor, causal: bool = True, keep: Tensor | None = None) -> Tensor:
    return mixer(x, flow(x.shape[1], causal, keep))


def step_by_step(mixer: nn.Module, x: Tensor, pieces: list[int]) -> Tensor:
    """(B, T, D) through a state, in pieces of these lengths."""
    holder = nn.ModuleList([mixer])
    state, at, rows = start_state([holder], len(x)), 0, []
    for piece in pieces:
        rows.append(mixer(x[:, at : at + piece], flow(piece, first=at, state=state)))
        at += piece
    assert at == x.shape[1]
    return torch.cat(rows, 1)


def slopes_are_right(mixer: nn.Module, x: Tensor, causal: bool, keep: Tensor | None = None) -> None:
    """The gradient by the input and every parameter is the difference quotient, in float64."""
    names, values = zip(*mixer.named_parameters(), strict=True)

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(mixer, given, (x, flow(x.shape[1], causal, keep)))

    inputs = (x.clone().requires_grad_(), *(v.detach().clone().requires_grad_() for v in values))
    assert torch.autograd.gradcheck(call, inputs, atol=1e-6, fast_mode=True)


def padded_is_alone(mixer: nn.Module, x: Tensor, causal: bool) -> None:
    """Two rows of 11 tokens: padding of one, 0 as in a model, changes neither; a text of padding alone is finite."""
    for side in (slice(0, 4), slice(6, 11)):
        keep = torch.ones(2, 11, dtype=torch.bool)
        keep[1, side] = False
        both = run(mixer, x * keep[..., None], causal, keep)
        torch.testing.assert_close(both[0], run(mixer, x[:1], causal)[0])
        torch.testing.assert_close(both[1][keep[1]], run(mixer, x[1:, keep[1]], causal)[0])
        assert run(mixer, 0 * x, causal, torch.zeros_like(keep)).isfinite().all()


def padding_is_not_read(mixer: nn.Module, x: Tensor, causal: bool, sides: list[slice]) -> None:
    """Three rows: padding of the middle one changes none of them, whatever numbers stand there."""
    for side in sides:
        keep = torch.ones(x.shape[:2], dtype=torch.bool)
        keep[1, side] = False
        found = run(mixer, x, causal, keep)
        torch.testing.assert_close(found[::2], run(mixer, x[::2], causal))
        torch.testing.assert_close(found[1][keep[1]], run(mixer, x[1:2, keep[1]], causal)[0])
        other = run(mixer, torch.where(keep[..., None], x, 7.0), causal, keep)
        assert torch.equal(other[keep], found[keep])
        assert run(mixer, x, causal, torch.zeros_like(keep)).isfinite().all()
