"""Tensor parallelism: the matrices of one layer are split among processes (Shoeybi et al., 2019; arXiv:1909.08053).

```
           ┌─ q k v (rows of W: some heads) ─ attention of those heads ─ o (columns of W) ─┐
x ─ enter ─┤  …                                                                             ├─ leave (sum) ─ + bias
           └─ gate up (rows of W: some places) ─ act, product ──────────── down (columns) ─┘
enter: itself; backward adds up the gradients.     leave: adds up; backward is itself.
```
Which layers: read off the tree of modules. Attention and MLPs made of plain linear layers are split; everything else
(norms, embeddings, heads, Mamba, layers with adapters) is whole in each process, which then computes the same.
Parameters stay ordinary tensors at their own paths, so DDP and FSDP2 work over them as over any others.

PyTorch's `parallelize_module` would replace about 50 of these lines (`CopyTo`, `ReduceFrom`, `RowParallelLinear`,
`_cut`). The rest stays: heads and key-value heads per process, a relative bias that a stack shares, cross-attention
with two inputs, a dropout mask for each process's heads, and experts (`distributed.expert`).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.rewrite import replace, select
from anyformer.parts import MLP, Attention, GatedMLP
from anyformer.parts.positions import RelativeBias
from anyformer.skeletons.stack import Blocks

PLANS: dict[type[nn.Module], tuple[tuple[str, ...], str]] = {  # cut by outputs, and by inputs
    Attention: (("q", "k", "v"), "o"),
    MLP: (("up",), "down"),
    GatedMLP: (("gate", "up"), "down"),
}


class CopyTo(torch.autograd.Function):
    """x -> x; the gradient is the sum of the processes' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        if len(gradient):  # an expert may have no tokens, in all processes alike
            dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


class ReduceFrom(torch.autograd.Function):
    """x -> the sum of the processes' x; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        if len(x):
            dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


class RowParallelLinear(nn.Linear):
    """A linear layer of a part of its inputs: y = sum over processes of W_i x_i, + b. Shape: (..., I / n) ->
    (..., O)."""

    group: Any

    def forward(self, x: Tensor) -> Tensor:
        y = ReduceFrom.apply(F.linear(x, self.weight), self.group)
        return y if self.bias is None else y + self.bias


def split(model: nn.Module, group: Any, skip: frozenset[nn.Module] = frozenset()) -> tuple[dict[str, int], str]:
    """Splits a model in place.

    Args:
        skip: modules that are left alone.

    Returns:
        The axis along which each parameter that was cut is cut, by path; and a description of the modules left whole.

    Raises:
        ValueError: if heads or a hidden width do not divide among the processes, or there is nothing to split.
    """
    parts = dist.get_world_size(group)
    chosen = {path: m for path, m in model.named_modules() if plain(m) and m not in skip}
    stacks = [m for m in model.modules() if isinstance(m, Blocks) and m.bias is not None]
    for stack in stacks:  # the heads of a stack share a bias: all of them are split, or none
        own = [m for m in stack.modules() if isinstance(m, Attention) and not m.cross]
        if type(stack.bias) is not RelativeBias or any(m not in chosen.values() for m in own):
            chosen = {path: m for path, m in chosen.items() if m not in own}
    for path, m in chosen.items():
        _divides(path, m, parts)
    if not chosen:
        raise ValueError(f"tensor={parts}: this model has no attention or MLP that could be split; use data or fsdp")
    whole = _whole(model, set(chosen.values()) | skip)
    cut: dict[int, int] = {}
    for stack in stacks:
        if any(m in chosen.values() for m in stack.modules() if isinstance(m, Attention) and not m.cross):
            _cut(stack.bias.table, "weight", 1, cut, group)
    for m in chosen.values():
        _split(model, m, cut, group)
    named = model.named_parameters(remove_duplicate=False)
    return {name: cut[id(p)] for name, p in named if id(p) in cut}, whole


def plain(m: nn.Module) -> bool:
    """True for a known part of plain linear layers, without other parameters or state by head."""
    if (
        type(m) not in PLANS or getattr(m, "scores", None) is not None
    ):  # parts that change scores are made for all heads
        return False
    columns, row = PLANS[type(m)]
    linears = [getattr(m, name) for name in (*columns, row)]
    known = {id(p) for linear in linears for p in linear.parameters()}
    return all(type(linear) is nn.Linear for linear in linears) and all(id(p) in known for p in m.parameters())


def shared(m: Any) -> dict[str, int]:
    """The numbers of a part that is split, by name, which must be divisible by the number of processes."""
    return {"heads": m.heads, "kv_heads": m.kv_heads} if isinstance(m, Attention) else {"hidden": m.down.in_features}


def _divides(path: str, m: Any, parts: int) -> None:
    for name, number in shared(m).items():
        if number % parts:
            raise ValueError(
                f"tensor={parts}: {path} has {name}={number}, which {parts} processes cannot share equally"
            )


def _split(model: nn.Module, m: Any, cut: dict[int, int], group: Any) -> None:
    columns, row = PLANS[type(m)]
    for name in columns:
        linear = getattr(m, name)
        for parameter in ("weight", "bias"):
            _cut(linear, parameter, 0, cut, group)
        linear.out_features = len(linear.weight)
    last = getattr(m, row)
    _cut(last, "weight", 1, cut, group)
    rows = RowParallelLinear(last.weight.shape[1], last.out_features, last.bias is not None, device="meta")
    rows.weight, rows.bias, rows.group = last.weight, last.bias, group
    replace(m, row, rows)
    if isinstance(m, Attention):
        m.heads, m.kv_heads = m.heads // dist.get_world_size(group), m.kv_heads // dist.get_world_size(group)
    if isinstance(m, Attention) and m.cross:  # keys and values come by another way than the queries
        doors: list[nn.Module] = [m.q, m.k, m.v]
    else:
        doors = [m]
    for door in doors:
        door.register_forward_pre_hook(lambda _, args: (CopyTo.apply(args[0], group), *args[1:]))
    if m.dropout:
        own_dropout(m, dist.get_rank(group))


def _cut(owner: Any, name: str, axis: int, cut: dict[int, int], group: Any) -> None:
    """Leaves this process's piece of a parameter in its place."""
    p = getattr(owner, name)
    if p is not None:
        piece = p.detach().chunk(dist.get_world_size(group), axis)[dist.get_rank(group)].clone()
        setattr(owner, name, nn.Parameter(piece, requires_grad=p.requires_grad))
        cut[id(getattr(owner, name))] = axis


def own_dropout(m: Any, rank: int) -> None:
    """Other heads, other masks: inside `m` the random generator is one of its own, drawn from the one outside, which
    goes on alike in all processes, as their common computations need."""
    outside: list[Tensor] = []

    def enter(_: Any, args: Any) -> None:
        if m.training:
            seed = int(torch.randint(1 << 62, ()))
            outside[:] = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if args[0].is_cuda else [])]
            torch.manual_seed(seed + rank)

    def leave(*_: Any) -> None:
        if outside:
            torch.set_rng_state(outside[0])
            if len(outside) > 1:
                torch.cuda.set_rng_state(outside[1])
            outside.clear()

    m.register_forward_pre_hook(enter)
    m.register_forward_hook(leave)


def _whole(model: nn.Module, split: set[nn.Module]) -> str:
    """The branches of blocks that have weights and are not split: '2 Mamba (blocks.0.mixer, …)'."""
    branches = select(model, "**.blocks.*.*", kind=nn.Module)
    left = {
        path: m
        for path, m in branches.items()
        if not path.endswith(".norm") and any(p.ndim > 1 for p in m.parameters()) and split.isdisjoint(m.modules())
    }
    counts = Counter(type(m).__name__ for m in left.values())
    first = {type(m).__name__: path for path, m in reversed(left.items())}
    return ", ".join(f"{count} {name} ({first[name]}{', …' if count > 1 else ''})" for name, count in counts.items())
