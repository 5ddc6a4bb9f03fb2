"""Rounding that is learned, unit by unit, from what each unit answers.

SignRound: Cheng et al., 2023; arXiv:2309.05516.

    W_ij ≈ s_ig (clip(round(W_ij / s_ig + z_ig + V_ij), 0, 2^b - 1) - z_ig)        |V_ij| <= 1/2
    the grid of a group goes from l min(W) to h max(W)                             0 <= l, h <= 1

V, l and h follow the signs of the gradients of |unit(x; W) - unit(x'; Wq)|^2: x is what the unit meets in the model as
it was, x' what it meets behind the units that are rounded already. A unit is the outermost element of a list of parts
that holds the matrix, a block as a rule, else the matrix alone. Rounding to nearest is where it begins, and stays if
nothing better was found.

O outputs, G groups, g inputs of a group.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree

from anyformer.compress import rounding
from anyformer.compress.held import Inputs

STEPS = 200  # of each unit; a batch of the calibration each
LOOKS = 10  # at the error on all batches; the best is kept


@dataclass
class Call:
    """A call of a unit: its arguments, and what it answers in the model as it was."""

    args: tuple[Any, ...]
    options: dict[str, Any]
    wanted: list[Tensor] = field(default_factory=list)


class Rounding(nn.Module):
    """The numbers that are learned of one matrix."""

    def __init__(self, weight: Tensor, bits: int, group: int, whole: bool):
        super().__init__()
        self.bits, self.group, self.whole = bits, group, whole
        self.shape, self.kind = weight.shape, weight.dtype
        known = weight.detach().float()
        self.groups, self.ends = rounding.grouped(known, group), rounding.ends(known, bits, group)
        self.offset = nn.Parameter(torch.zeros_like(self.groups))
        self.low, self.high = (nn.Parameter(torch.ones_like(self.groups[..., 0])) for _ in range(2))  # (O, G)

    def grid(self) -> tuple[Tensor, Tensor]:
        """Scales and zeros (O, G), as they are stored; their gradients are those of numbers that are not rounded."""
        low, high = self.low * self.ends[0], self.high * self.ends[1]
        scale = ((high - low) / (2**self.bits - 1)).clamp(min=rounding.LEAST)
        exact = rounding.stored(low.detach(), high.detach(), self.bits, self.whole)
        return _as(scale, exact[0]), _as(-low / scale, exact[1])

    def codes(self, scale: Tensor, zero: Tensor) -> Tensor:
        """Whole numbers, (O, G, g)."""
        wide = self.groups / scale[..., None] + zero[..., None] + self.offset
        return _as(wide, wide.detach().round()).clamp(0, 2**self.bits - 1)

    def forward(self) -> Tensor:
        """The rounded matrix, (O, I), in the type of the weights."""
        scale, zero = self.grid()
        whole = (self.codes(scale, zero) - zero[..., None]) * scale[..., None]
        return whole.flatten(1)[:, : self.shape[1]].to(self.kind)

    @torch.no_grad()
    def bound(self) -> None:
        """The numbers back in their ranges."""
        self.offset.clamp_(-0.5, 0.5)
        self.low.clamp_(0, 1)
        self.high.clamp_(0, 1)

    @torch.no_grad()
    def rounded(self) -> rounding.Rounded:
        """The matrix on its grid."""
        scale, zero = self.grid()
        q = self.codes(scale, zero).flatten(1)[:, : self.shape[1]]
        return rounding.Rounded(q.to(torch.uint8), scale, zero, self.group)


def _as(soft: Tensor, hard: Tensor) -> Tensor:
    """The value of one, with the gradient of the other."""
    return soft + (hard - soft).detach()


def units(paths: Sequence[str]) -> dict[str, list[str]]:
    """The matrices of each unit, in their order: `blocks.3.mixer.q` is of `blocks.3`, `pool.proj` of itself."""
    found: dict[str, list[str]] = {}
    for path in paths:
        names = path.split(".")
        end = next((i + 1 for i, name in enumerate(names) if name.isdigit()), len(names))
        found.setdefault(".".join(names[:end]), []).append(path)
    return found


def learn(
    model: Any, bits: Mapping[str, int], group: int, whole: bool, batches: Sequence[Inputs]
) -> dict[str, rounding.Rounded]:
    """The matrices of a model on grids that were learned; the model holds them, in full, behind it.

    Args:
        bits: of each matrix, by the path of its linear layer.
        whole: zeros are whole numbers from 1.
        batches: real inputs.
    """
    found: dict[str, rounding.Rounded] = {}
    before = copy.deepcopy(model)
    for unit, paths in units(list(bits)).items():
        calls = _calls(before, model, unit, batches)
        part = model.get_submodule(unit)
        names = {path: f"{path.removeprefix(unit)}.weight".removeprefix(".") for path in paths}
        made = {names[path]: Rounding(model.get_submodule(path).weight, bits[path], group, whole) for path in paths}
        if calls:
            _fit(part, made, calls)
        for path in paths:
            found[path] = made[names[path]].rounded()
            with torch.no_grad():
                model.get_submodule(path).weight.copy_(found[path].matrix())
    return found


def _calls(before: Any, model: Any, unit: str, batches: Sequence[Inputs]) -> list[Call]:
    """The calls of a unit in the model as it is now, with the answers of the model before."""
    met, answers = list[Call](), list[list[Tensor]]()
    hooks = [
        before.get_submodule(unit).register_forward_hook(lambda _, args, y: answers.append(_tensors(y))),
        model.get_submodule(unit).register_forward_hook(
            lambda _, args, options, y: met.append(Call(args, options)), with_kwargs=True
        ),
    ]
    try:
        with torch.no_grad():
            for inputs in batches:
                before(**inputs)
                model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    for call, answer in zip(met, answers, strict=True):
        call.wanted = answer
    return met


def _tensors(answer: Any) -> list[Tensor]:
    """The numbers in the answer of a unit."""
    return [t for t in _pytree.tree_leaves(answer) if isinstance(t, Tensor) and t.is_floating_point()]


def _error(part: nn.Module, made: Mapping[str, Rounding], call: Call) -> Tensor:
    """The mean squared difference of the answers."""
    found = _tensors(functional_call(part, {name: one() for name, one in made.items()}, call.args, call.options))
    return torch.stack([(a - b).float().square().mean() for a, b in zip(found, call.wanted, strict=True)]).sum()


def _fit(part: nn.Module, made: Mapping[str, Rounding], calls: Sequence[Call]) -> None:
    """Learns the roundings of one unit, and leaves the best on all calls."""
    values = [p for one in made.values() for p in one.parameters()]

    @torch.no_grad()
    def error() -> float:
        return sum(float(_error(part, made, call)) for call in calls)

    best, kept = error(), [p.detach().clone() for p in values]
    for step in range(STEPS):
        with torch.enable_grad():
            off = _error(part, made, calls[step % len(calls)])
            slopes = torch.autograd.grad(off, values, allow_unused=True)  # an expert that no token reached has none
        with torch.no_grad():
            for value, slope in zip(values, slopes, strict=True):
                if slope is not None:
                    value.sub_(slope.sign(), alpha=(1 - step / STEPS) / STEPS)
            for one in made.values():
                one.bound()
        if (step + 1) % (STEPS // LOOKS) == 0 and (now := error()) < best:
            best, kept = now, [p.detach().clone() for p in values]
    with torch.no_grad():
        for value, good in zip(values, kept, strict=True):
            value.copy_(good)
