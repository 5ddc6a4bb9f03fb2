"""Hierarchical attention: its definition, its exact limits, its state."""

from typing import Any

import pytest
import torch
from torch import Tensor

from anyformer.core.flow import Flow
from anyformer.core.mixer import start_state
from anyformer.parts import Attention, Hierarchical, Rotary
from anyformer.parts.approximate.hierarchical import Far, sums

DIM = 12


def made(**options: Any) -> Hierarchical:
    torch.manual_seed(0)
    mixer: Any = Hierarchical.of(heads=2, **{"size": 4, "cells": 2, "levels": 2, **options}).build(DIM)
    return mixer.double()


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(mixer: Any, x: Tensor, causal: bool, keep: Tensor | None = None) -> Tensor:
    return mixer(x, Flow(torch.arange(x.shape[1]), keep=keep, causal=causal))


def cell(mixer: Hierarchical, query: int, key: int) -> tuple[Any, ...]:
    """What stands for the key: itself, a cell of a level, or all that lies beyond the last level on a side."""
    mine, theirs = query // mixer.size, key // mixer.size
    if abs(mine - theirs) < 2:
        return ("token", key)
    for level in range(mixer.levels):
        if abs((mine >> level + 1) - (theirs >> level + 1)) < 2:
            return (level, key // ((mixer.size // mixer.cells) << level))
    return ("beyond", key < query)


def defined(mixer: Hierarchical, x: Tensor, causal: bool) -> Tensor:
    """One text by the definition, a query and a key at a time, (T, D) -> (T, D)."""
    q, k, v = (p(x).unflatten(-1, (mixer.heads, -1)).transpose(0, 1) for p in (mixer.q, mixer.k, mixer.v))
    out = torch.zeros_like(q)
    for t in range(len(x)):
        groups: dict[tuple[Any, ...], list[int]] = {}
        for s in range(t + 1 if causal else len(x)):
            groups.setdefault(cell(mixer, t, s), []).append(s)
        keys = torch.stack([k[:, some].mean(1) for some in groups.values()], 1)  # (H, S, K)
        values = torch.stack([v[:, some].mean(1) for some in groups.values()], 1)
        counts = torch.tensor([len(some) for some in groups.values()], dtype=x.dtype)
        scores = (keys @ q[:, t, :, None])[..., 0] * mixer.head_dim**-0.5 + counts.log()
        out[:, t] = (scores.softmax(-1)[:, None] @ values)[:, 0]
    return mixer.o(out.transpose(0, 1).flatten(1))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("time", "options"), [(45, {}), (61, {"size": 3, "cells": 3}), (37, {"cells": 4, "levels": 1})]
)
def test_it_is_its_definition(causal: bool, time: int, options: dict[str, Any]) -> None:
    mixer, x = made(**options), noise(1, time, DIM)
    torch.testing.assert_close(run(mixer, x, causal)[0], defined(mixer, x[0], causal))


@pytest.mark.parametrize("causal", [True, False])
def test_rows_of_a_batch_are_those_alone(causal: bool) -> None:
    mixer, x, lengths = made(), noise(3, 40, DIM), (40, 23, 5)
    keep = torch.zeros(3, 40, dtype=torch.bool)
    for row, length in enumerate(lengths):
        keep[row, 40 - length :] = True
    spoilt = x.masked_fill(~keep[..., None], float("nan"))
    together = run(mixer, spoilt, causal, keep)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(together[row, 40 - length :], run(mixer, x[row : row + 1, -length:], causal)[0])


@pytest.mark.parametrize("causal", [True, False])
def test_a_short_text_and_equal_keys_give_full_attention(causal: bool) -> None:
    mixer = made(positions=Rotary.of())
    full: Any = Attention.of(heads=2, bias=False, positions=Rotary.of()).build(DIM).double()
    full.load_state_dict(mixer.state_dict())
    x = noise(2, 8, DIM)
    torch.testing.assert_close(run(mixer, x, causal), run(full, x, causal))
    far, same = noise(2, 60, DIM), made()
    with torch.no_grad():
        same.k.weight.zero_()  # all keys are equal: the mean of all values, each with its own weight
    plain: Any = Attention.of(heads=2, bias=False).build(DIM).double()
    plain.load_state_dict(same.state_dict())
    torch.testing.assert_close(run(same, far, causal), run(plain, far, causal))
    assert not torch.allclose(run(mixer, far, causal), run(full, far, causal))


def test_no_token_sees_a_later_one_and_every_earlier_one_counts() -> None:
    mixer, x = made(), noise(1, 50, DIM).requires_grad_()
    (slope,) = torch.autograd.grad(run(mixer, x, True)[0, 41].sum(), x)
    reached = slope[0].abs().amax(-1) > 0
    assert bool(reached[:42].all()) and not bool(reached[42:].any())


def test_a_query_reads_as_many_keys_in_a_text_of_any_length() -> None:
    mixer = made()
    for blocks in (16, 64, 256):
        pair, block = torch.zeros(2, 1, 2, blocks * 4, DIM // 2), torch.arange(blocks)[None]
        tables = sums(mixer, pair, blocks)
        for causal, most in ((True, 2 * 2 * 2 + 1), (False, 2 * (2 * 2 * 2 + 1))):
            assert Far.of(mixer, block, tables, blocks * 4, causal).weight.shape == (1, blocks, most)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_state_gives_the_same_in_steps_of_any_size(size: int) -> None:
    mixer, x = made(positions=Rotary.of()), noise(2, 70, DIM)
    keep = torch.ones(2, 70, dtype=torch.bool)
    keep[1, :11] = False
    whole = run(mixer, x, True, keep)
    with torch.no_grad():
        state, at, outs = start_state([mixer], 2), 0, list[Tensor]()
        for end in (20, *range(20 + size, 70, size), 70):
            flow = Flow(torch.arange(at, end), keep=keep[:, :end], causal=True, first=at, state=state)
            outs.append(mixer(x[:, at:end], flow))
            at = end
    real = keep[..., None]
    torch.testing.assert_close(torch.cat(outs, 1).where(real, 0), whole.where(real, 0))


def test_a_state_goes_back_and_on() -> None:
    mixer, x, other = made(), noise(1, 60, DIM), noise(1, 60, DIM, seed=2)
    state = start_state([mixer], 1)
    (slot,) = state.slots.values()

    def feed(values: Tensor, first: int, end: int) -> Tensor:
        with torch.no_grad():
            return mixer(values[:, first:end], Flow(torch.arange(first, end), causal=True, first=first, state=state))

    feed(x, 0, 31)
    feed(other, 31, 60)  # guesses that are dropped
    slot.trim(31)
    torch.testing.assert_close(feed(x, 31, 60), run(mixer, x, True)[:, 31:])


@pytest.mark.parametrize("options", [{"size": 0}, {"cells": 3}, {"levels": 0}, {"heads": 0}])
def test_impossible_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cells a divisor of size"):
        Hierarchical.of(**{"heads": 2, "size": 4, **options}).build(DIM)
