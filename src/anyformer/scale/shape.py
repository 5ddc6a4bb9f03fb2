"""The facts of a model that a plan needs, read off its tree and counted by `edge.count`; no weights are made."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from anyformer.core import pages
from anyformer.core.recipe import Recipe
from anyformer.edge.count import count
from anyformer.parts import Attention
from anyformer.parts.moe import ExpertChoice, MoE
from anyformer.skeletons.stack import Blocks
from anyformer.train.distributed.tensor import plain, shared

MASTER = 4  # bytes of the float32 copy of a weight beside bf16
HEAD = 128
USUAL_CONTEXT, MOST = 4096, 1 << 20  # tokens of a row of the usual decoder, and the most


@dataclass(frozen=True)
class Shape:
    """A model.

    Attributes:
        parameters, active: all, and those that one token meets.
        split, experts, blocks, tables, outside: how these divide: in blocks, those that tensor parallelism splits, of
            experts, all others; outside of blocks, tables of tokens and all others.
        depth, width: blocks, and numbers of a token between them. context: tokens of a row.
        divisor: what the processes that share a matrix must divide. kinds: experts of a mixture, 0 if there are none.
        keys: numbers of a token's keys and values, all blocks. sent: numbers of a token that go to experts, all blocks.
        weights, gradients, optimizer: bytes of a parameter in bf16 training.
        flops: operations of a token's training step, without and with recomputation.
        kept: bytes of a row's activations behind forward, without and with recomputation.
    """

    parameters: int
    active: int
    split: int
    experts: int
    blocks: int
    tables: int
    outside: int
    depth: int
    width: int
    context: int
    divisor: int
    kinds: int
    keys: int
    sent: float
    weights: float
    gradients: float
    optimizer: float
    flops: tuple[float, float]
    kept: tuple[float, float]


def shape(recipe: Recipe[Any], context: int | None = None) -> Shape:
    """The shape of a recipe, with rows of `context` tokens, by default the longest of the model, or 1024.

    Raises:
        ValueError: for a model that reads no tokens, or has no blocks; and those of `count`.
    """
    model = pages.empty(recipe)
    stacks = [m for m in model.modules() if isinstance(m, Blocks)]
    if not stacks or not any(e.front.vocab for e in model.entrances()):
        raise ValueError("a plan counts tokens and blocks, and this model reads no tokens or has no stack of blocks")
    found = [count(recipe, context, 1, True, recomputed, torch.bfloat16) for recomputed in (False, True)]
    lengths = [size[0] for size in found[0].tokens.values() if len(size) == 1]
    inside = {id(p) for stack in stacks for p in stack.blocks.parameters()}
    mixtures = [m for m in model.modules() if isinstance(m, MoE)]
    theirs = {id(p) for m in mixtures for p in m.experts.parameters()}
    cut = [m for m in model.modules() if plain(m) and {id(p) for p in m.parameters()} <= inside - theirs]
    numbers = {id(p): p.numel() for p in model.parameters()}
    experts = sum(numbers[i] for i in theirs)
    split = sum(p.numel() for m in cut for p in m.parameters())
    blocks = sum(numbers[i] for i in inside) - experts - split
    tables = found[0].embeddings
    attention = [m for m in model.modules() if isinstance(m, Attention)]
    whole, width = found[0], max(stack.width for stack in stacks)
    return Shape(
        whole.parameters, whole.active, split, experts, blocks, tables,
        whole.parameters - experts - split - blocks - tables,
        depth=sum(len(stack.blocks) for stack in stacks), width=width, context=sum(lengths),
        divisor=functools.reduce(math.gcd, (n for m in cut for n in shared(m).values()), 0) or 1,
        kinds=functools.reduce(math.gcd, (m.router.experts for m in mixtures), 0),
        keys=sum(m.k.out_features + m.v.out_features for m in attention if hasattr(m, "k") and hasattr(m, "v")),
        sent=sum(_sent(m.router) for m in mixtures) * width,
        weights=whole.weights / whole.parameters, gradients=whole.gradients / whole.parameters,
        optimizer=whole.optimizer / whole.parameters + MASTER,
        flops=tuple((f.forward + f.backward) / sum(lengths) for f in found),  # type: ignore[arg-type]
        kept=tuple(f.activations for f in found),  # type: ignore[arg-type]
    )  # fmt: skip


def _sent(router: Any) -> float:
    """Experts that a token goes to."""
    return float(router.factor if isinstance(router, ExpertChoice) else router.pairs(1, 1))


def usual(parameters: float, context: int = USUAL_CONTEXT) -> tuple[str, Shape]:
    """The shape of a LLaMA with about so many parameters, and its hyperparameters in words: heads of 128, a vocabulary
    of 32,000, and of the widths the one nearest to 128 for each block. It is counted at two and three blocks; each
    further one adds the same.

    Raises:
        ValueError: for a number of parameters that no such shape has.
    """
    found: list[tuple[float, int, int]] = []
    for heads in (*range(1, 8), *range(8, 513, 8)):
        base, more = (_size(heads, depth) for depth in (2, 3))
        depth = max(1, round(2 + (parameters - base) / (more - base)))
        miss = abs(math.log((base + (depth - 2) * (more - base)) / parameters))
        found.append((miss + abs(math.log(depth / heads)) / 4, heads, depth))
    cost, heads, depth = min(found)
    if cost > 0.5:
        raise ValueError(
            f"params: {parameters:.3g} is no size of a usual decoder (16m to 20t); name a page or a recipe"
        )
    two, three = (shape(_llama(heads, n), context) for n in (2, 3))
    width = heads * HEAD
    words = f"a LLaMA of width {width:,}, {depth} blocks, {heads} heads, hidden {_hidden(width):,}, vocabulary 32,000"
    return words, _longer(two, three, depth)


def _size(heads: int, depth: int) -> int:
    return sum(p.numel() for p in pages.empty(_llama(heads, depth)).parameters())


def _hidden(width: int) -> int:
    """8/3 of the width in steps of 256, as LLaMA has it."""
    return -(-8 * width // 3 // 256) * 256


def _llama(heads: int, depth: int) -> Recipe[Any]:
    width = heads * HEAD
    hyper = {"dim": width, "depth": depth, "heads": heads, "kv_heads": heads, "hidden": _hidden(width)}
    return pages.recipe("llama", "7b", **hyper, context=MOST)


def _longer(two: Shape, three: Shape, depth: int) -> Shape:
    """The shape of `depth` blocks."""
    more: dict[str, Any] = {}
    for name in ("parameters", "active", "split", "blocks", "depth", "keys"):
        more[name] = getattr(two, name) + (depth - 2) * (getattr(three, name) - getattr(two, name))
    for name in ("flops", "kept"):
        pairs = zip(getattr(two, name), getattr(three, name), strict=True)
        more[name] = tuple(a + (depth - 2) * (b - a) for a, b in pairs)
    return replace(two, **more)
