"""Direct logit attribution: the share of each branch, and of each head, in a score.

B batch, T positions, D width, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.explain.attribution import named
from anyformer.explain.features import Explained
from anyformer.explain.lens import replaced, stack_of
from anyformer.explain.patching import head_count
from anyformer.explain.target import Goal, Target, goal
from anyformer.parts.block import Block
from anyformer.parts.heads import Classifier, First, Logits, Mean
from anyformer.parts.norms import LayerNorm, OneRMSNorm, PlainNorm, RMSNorm


@dataclass(frozen=True)
class Direct:
    """The share of each branch in a score: score = the sum of `shares` + `bias`.

    Args:
        shares: by path, "embed" first, then each branch in order: (B, T), of what it added at each position that the
            head reads; 0 at all others.
        heads: by path of an attention the share of each head, (B, T, H); its output bias is in `shares` alone.
        bias: (B,) of the last norm and the head.
        score: (B,). `target`: its name.
    """

    shares: dict[str, Tensor]
    heads: dict[str, Tensor]
    bias: Tensor
    score: Tensor
    target: str


def direct(model: Any, inputs: Any, target: Target = None, *, at: int | None = None, head: str | None = None) -> Direct:
    """Direct logit attribution: the last stream is the embedding plus the outputs of all branches, and with the scale
    of the last norm fixed at its value, norm and head are linear (Elhage et al., 2021, A mathematical framework for
    transformer circuits).

    Args:
        model, inputs, target, at, head: as of `attribute`.

    Raises:
        ValueError: for blocks with a norm behind the sum, whose stream is no sum; for a norm, a pool or a head that is
            not linear behind its scale. It names the part.
    """
    explained = Explained(model, named(model, inputs))
    stack = stack_of(model)[1]
    paths = {module: name for name, module in model.named_modules()}
    norms = _linear(model, stack, head, paths)
    with torch.no_grad(), _branches(stack, paths) as (added, mixed):
        aim = goal(model, explained.run(), target, at, head, explained.inputs)
    last = added.pop("stream")
    slope, score = _slope(explained, stack, norms, aim, last)
    shares, heads, factor = {}, {}, 1.0
    for name, (value, stream) in reversed(added.items()):
        shares[name] = (factor * value.double() * slope).sum(-1)
        if name in mixed:
            heads[name] = factor * _of_heads(model.get_submodule(name), mixed[name], slope)
        factor *= stream
    shares, heads = dict(reversed(shares.items())), dict(reversed(heads.items()))
    total = torch.stack([s.sum(1) for s in shares.values()]).sum(0)
    return Direct(shares, heads, score - total, score, aim.name)


def _linear(model: Any, stack: Any, head: str | None, paths: dict[Any, str]) -> list[nn.Module]:
    """The norms behind the last block, after a check of every part there."""
    for layer in stack.layers():
        if not isinstance(layer, Block) or layer.wiring == "post":
            what = f"wiring {layer.wiring!r}" if isinstance(layer, Block) else type(layer).__name__
            raise ValueError(
                f"{paths[layer]} ({what}): the stream behind it is not the sum of its branches, so they have no direct "
                "shares; use lens, attribute or patch"
            )
    heads = getattr(model, "heads", None)
    end = model.head if heads is None else heads[head or next(iter(heads), "")] if len(heads) else None
    pool = getattr(model, "pool", None)
    norms = [m for m in (stack.norm, getattr(pool, "norm", None)) if m is not None]
    for part, kinds in [(end, (Logits, Classifier)), *([] if pool is None else [(pool, (First, Mean))])]:
        if type(part) not in kinds:
            raise ValueError(f"{_place(part, paths)} is not linear in the stream, so branches have no direct shares")
    for norm in norms:
        if type(norm) not in (LayerNorm, RMSNorm, OneRMSNorm, PlainNorm):
            raise ValueError(f"{_place(norm, paths)}: no rule for this norm; there are rules for LayerNorm and RMSNorm")
    return norms


def _place(part: Any, paths: dict[Any, str]) -> str:
    return "the head" if part is None else f"{paths[part]} ({type(part).__name__})"


@contextmanager
def _branches(stack: Any, paths: dict[Any, str]) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Additions of each branch to the stream, with the factor of the stream in that sum, in order; the last stream; and
    the mixed values of heads, (B, T, H K)."""
    added: dict[str, Any] = {}
    mixed: dict[str, Tensor] = {}
    layers = list(stack.layers())

    def noting(block: Any) -> Callable[..., Tensor]:
        plain, path = block._sum, paths[block]

        def summed(name: str, x: Tensor, y: Tensor) -> Tensor:
            added[f"{path}.{name}"] = (y if block.scale is None else block.scale[name](y), block.stream)
            return plain(name, x, y)

        return summed

    with ExitStack() as hooks:
        first = layers[0].register_forward_pre_hook(lambda module, args: added.update(embed=(args[0], 1.0)))
        last = layers[-1].register_forward_hook(lambda module, args, out: added.update(stream=out))
        hooks.callback(first.remove)
        hooks.callback(last.remove)
        for block in layers:
            block._sum = noting(block)
            hooks.callback(delattr, block, "_sum")
            mixer = block.mixer
            if block.scale is None and block.wiring != "sandwich" and head_count(mixer) and type(mixer.o) is nn.Linear:
                hooks.callback(mixer.o.register_forward_pre_hook(_note(mixed, paths[mixer])).remove)
        yield added, mixed


def _note(mixed: dict[str, Tensor], path: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        mixed[path] = args[0]

    return hook


def _of_heads(mixer: Any, mixed: Tensor, slope: Tensor) -> Tensor:
    """The share of each head, (B, T, H)."""
    each = (slope @ mixer.o.weight.detach().double()) * mixed.double()  # (B, T, H K)
    return each.unflatten(-1, (mixer.heads, -1)).sum(-1)


def _slope(explained: Explained, stack: Any, norms: list[nn.Module], aim: Goal, last: Tensor) -> tuple[Tensor, Tensor]:
    """The slope of the score in the last stream (B, T, D) with the scales of norms fixed, and the score (B,)."""
    leaf = last.detach().clone().requires_grad_()
    with ExitStack() as hooks, torch.enable_grad():
        hooks.enter_context(replaced(list(stack.layers())[-1], leaf))
        for norm in norms:
            hooks.callback(norm.register_forward_hook(fixed).remove)
        score = aim(explained.run())
        (slope,) = torch.autograd.grad(score.sum(), leaf)
    return slope.double(), score.detach().double()


def fixed(norm: Any, args: tuple[Any, ...], out: Tensor) -> Tensor:
    """The output of a norm as a linear function of its input: its scale is a constant. A forward hook."""
    x = args[0]
    kind = torch.promote_types(x.dtype, torch.float32)
    wide = x.to(kind)
    if isinstance(norm, LayerNorm | PlainNorm):
        wide = wide - wide.mean(-1, keepdim=True)
    scale = (wide.detach().square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    weight = getattr(norm, "weight", None)
    y = wide * scale
    if weight is not None:
        y = y * ((1 + weight.to(kind)) if isinstance(norm, OneRMSNorm) else weight.to(kind))
    bias = getattr(norm, "bias", None)
    return (y if bias is None else y + bias.to(kind)).to(x.dtype)
