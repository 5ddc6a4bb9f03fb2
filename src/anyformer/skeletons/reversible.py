"""Reversible skeletons: two streams from which the input of every layer can be recomputed, so that none is saved.

B batch, T time, D width of one stream (models count 2 D: both side by side).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.front import FrontEnd
from anyformer.core.part import call, drop
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Head, Norm, Pool
from anyformer.skeletons.decoder import CausalLM
from anyformer.skeletons.encoder import Encoder
from anyformer.skeletons.stack import Blocks


class Reversible(Blocks):
    """`Blocks` of two streams, all of them `ReversibleBlock`s, that train without saved activations.

    A forward pass saves only its output. Backward computes each layer's input from its output, and runs the layer once
    more for its gradients: memory is that of one layer, at any depth, for one more forward pass. (Random states in
    training and the buckets of LSH attention are saved so that recomputation matches.) The gradients are the plain ones
    up to the rounding of the sums.

    The plain pass runs without gradients, with a decoding state, under torch.compile, and with taps, hooks or FSDP on
    a block.
    """

    def run(self, x: Tensor, flow: Flow) -> tuple[Tensor, Flow]:
        x = flow.clear(x)
        if self._plainly(flow):
            for block in self.blocks:
                x = block(x, flow)
        else:
            inner, names = replace(flow, aux={}, figures={}), list[str]()
            weights = list(dict.fromkeys(p for p in self.blocks.parameters() if p.requires_grad))
            x, *aux = _Reversing.apply(list(self.blocks), inner, names, x, *weights)
            inner.aux = dict(zip(names, aux, strict=True))
            flow.take(inner)
        return drop(self, call(self.norm, x)), flow

    def _plainly(self, flow: Flow) -> bool:
        if not torch.is_grad_enabled() or flow.state is not None or flow.taps is not None:
            return True
        listens = any(block._forward_hooks or block._forward_pre_hooks for block in self.blocks)
        return torch.compiler.is_compiling() or listens


class _Reversing(torch.autograd.Function):
    """All blocks as one operation, whose backward goes through them from the last to the first."""

    @staticmethod
    def forward(ctx: Any, blocks: Any, flow: Flow, names: list[str], x: Tensor, *weights: Tensor) -> Any:
        ctx.blocks, ctx.flow, ctx.names, ctx.weights, ctx.again = blocks, flow, names, weights, []
        a, b = x.chunk(2, -1)  # (B, T, D) each
        for block in blocks:
            ctx.again.append(_as_now(block, x))
            a = a + block.branch("mixer", b, flow)
            ctx.again.append(_as_now(block, x))
            b = b + block.branch("ffn", a, flow)
        names += flow.aux
        x = torch.cat((a, b), -1)
        ctx.save_for_backward(x, *weights)  # the weights, so that PyTorch notices changes in between
        return x, *flow.aux.values()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor, *aux: Tensor) -> Any:
        x, gradients = ctx.saved_tensors[0], dict[Tensor, Tensor]()
        (a, b), (da, db) = x.chunk(2, -1), slope.chunk(2, -1)
        losses = dict(zip(ctx.names, aux, strict=True))

        def back(number: int, name: str, x: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
            """The recomputed output of a branch, and the gradient of x through it."""
            block = ctx.blocks[number]
            with ctx.again[2 * number + (name == "ffn")](), torch.enable_grad():
                x, flow, inside = (
                    x.detach().requires_grad_(),
                    replace(ctx.flow, aux={}, figures={}),
                    block.weights(name),
                )
                if not set(inside) <= set(ctx.weights):
                    raise ValueError(
                        "reversible blocks run again in backward, and their parameters were replaced after the "
                        "forward pass (torch.func.functional_call?); run backward before you replace them"
                    )
                y = block.branch(name, x, flow)
                goals = [y, *flow.aux.values()]
                slopes = [slope, *(losses[n] for n in flow.aux)]
                first, *rest = torch.autograd.grad(goals, [x, *inside], slopes, allow_unused=True)
            for weight, more in zip(inside, rest, strict=True):
                if more is not None:
                    gradients[weight] = gradients[weight] + more if weight in gradients else more
            return y.detach(), first

        for number in reversed(range(len(ctx.blocks))):
            y, more = back(number, "ffn", a, db)
            b, da = b - y, da + more
            y, more = back(number, "mixer", b, da)
            a, db = a - y, db + more
        return None, None, None, torch.cat((da, db), -1), *(gradients.get(w) for w in ctx.weights)


def _as_now(block: nn.Module, x: Tensor) -> Callable[[], Any]:
    """A function that restores the present random state, if the block trains, and the present autocast."""
    kind = x.device.type
    cast = torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
    if not block.training:
        return lambda: cast
    states = torch.get_rng_state(), torch.cuda.get_rng_state(x.device) if x.is_cuda else None

    @contextmanager
    def again() -> Iterator[None]:
        with torch.random.fork_rng([x.device] if x.is_cuda else [], device_type="cuda"), cast:
            torch.set_rng_state(states[0])
            if states[1] is not None:
                torch.cuda.set_rng_state(states[1], x.device)
            yield

    return again


class ReversibleLM(Reversible, CausalLM):
    """A decoder of two streams: `CausalLM` with `ReversibleBlock`s, whose front-end is `TwoStreams`.

    Takes the options of `CausalLM` and these:

    Args:
        dim: width of both streams together, 2 D, as the last norm and the head see it.
        dropout: after the last norm.
    """

    def __init__(
        self,
        dim: int,
        embed: Recipe[FrontEnd],
        blocks: Any,
        norm: Recipe[Norm] | None,
        head: Recipe[Head],
        dropout: float = 0.0,
        context: int | None = None,
    ):
        super().__init__(dim, embed, blocks, norm, head, context=context)
        self.dropout = dropout


class ReversibleEncoder(Reversible, Encoder):
    """An encoder of two streams: `Encoder` with `ReversibleBlock`s, whose front-end is `TwoStreams`.

    Takes the options of `Encoder` and these:

    Args:
        dim: width of both streams together, 2 D, as the last norm, the pool and the heads see it.
        dropout: after the last norm.
    """

    def __init__(
        self,
        dim: int,
        embed: Recipe[FrontEnd],
        blocks: Any,
        norm: Recipe[Norm] | None = None,
        pool: Recipe[Pool] | None = None,
        heads: Mapping[str, Recipe[Head]] | None = None,
        dropout: float = 0.0,
        context: int | None = None,
    ):
        super().__init__(dim, embed, blocks, norm, pool, heads, context)
        self.dropout = dropout
