"""Matrices in few bits, for any model: which, how, and the checks that it was done.

    plan(model, 4)      the matrices of a model, each to be changed or left, and why
    quantise(…)         the same model with them in few bits, in place

Everything is by path (`core.rewrite`): no page is known here. A check does not trust the step before it: that each
matrix of the plan is in few bits, that it holds the numbers that the method chose, that each saw every batch of the
calibration, and that no router is in few bits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anyformer.compress import awq, rounding
from anyformer.compress.calibrate import Seen, calibrate, check
from anyformer.compress.held import Inputs
from anyformer.compress.learned import learn
from anyformer.core.rewrite import replace, select
from anyformer.core.slots import Head
from anyformer.parts.embeddings import Table
from anyformer.parts.moe import MoE, Router
from anyformer.parts.quantised import Grid, grid_of

Method = Literal["rtn", "hqq", "gptq", "awq", "signround"]
FINE = 8  # bits of tables of tokens and of heads with a row for each: close scores are decided there
FEW = 64  # tokens that an expert must meet to be calibrated


@dataclass(frozen=True)
class Entry:
    """A matrix of the model. `bits`: wanted, or None to leave it; `why`: the reason then. `centred`: its zeros are the
    middle of the numbers, as the blocks of GGUF files have them; for rtn and gptq."""

    path: str
    numbers: int
    bits: int | None
    why: str = ""
    centred: bool = False


@dataclass
class Work:
    """The result. `whole`: zeros are whole numbers. `sums` of each matrix: those of the groups of |W|, by which it is
    recognised later."""

    method: str
    group: int
    entries: list[Entry]
    whole: bool = False
    sums: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)  # path -> what differs from the method
    folded: dict[str, str] = field(default_factory=dict)
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)  # of the outputs: this method, rtn

    @property
    def changed(self) -> list[Entry]:
        """The matrices of the plan that are to be in few bits."""
        return [e for e in self.entries if e.bits is not None]

    @property
    def coverage(self) -> float:
        """The share of the numbers of all matrices that are in few bits."""
        return sum(e.numbers for e in self.changed) / max(1, sum(e.numbers for e in self.entries))


def plan(model: nn.Module, bits: int, group: int, keep: Sequence[str] = ()) -> list[Entry]:
    """Every matrix of a model, in its order: to be changed, or left for a reason.

    Args:
        keep: path patterns of parts that stay as they are.

    Raises:
        ValueError: for a pattern that matches nothing, or no matrix that can be changed.
    """
    kept = {id(m) for m in select(model, *keep, kind=nn.Module).values()} if keep else set()
    inside: set[int] = set()
    for module in model.modules():
        if id(module) in kept:
            inside |= {id(m) for m in module.modules()}
    routers = {id(m) for router in model.modules() if isinstance(router, Router) for m in router.modules()}
    heads = {id(m) for head in model.modules() if isinstance(head, Head) for m in head.modules()}
    entries = []
    for path, module in model.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim < 2:
                continue
            scores = id(module) in heads and weight.shape[0] == getattr(model, "vocab", None)
            wanted, why = _form(module, name, max(bits, FINE) if scores else bits)
            if wanted is not None:
                size = (-(-weight.shape[1] // group)) * (group * wanted // 8 + 4) * weight.shape[0]
                wanted, why = (None, f"no smaller in {wanted} bits") if size >= weight.nbytes else (wanted, why)
            if id(module) in inside:
                wanted, why = None, "kept, as asked"
            if id(module) in routers:
                wanted, why = None, "a router: close scores choose the expert"
            entries.append(Entry(path if name == "weight" else f"{path}.{name}", weight.numel(), wanted, why))
    if not any(e.bits for e in entries):
        reasons = "; ".join(dict.fromkeys(f"{e.path}: {e.why}" for e in entries[:3])) or "it has no matrix"
        raise ValueError(f"nothing can be changed ({reasons})")
    return entries


@torch.no_grad()
def finer(model: Any, entries: Sequence[Entry], group: int, room: float, harm: Callable[[Any], float]) -> list[Entry]:
    """The plan with 8 bits for those matrices whose rounding alone harms the model most, while there is room.

    Args:
        room: bytes that the model may be larger than by the plan.
        harm: of a model of which one matrix is rounded; more is worse.
    """
    made, found = list(entries), dict[int, float]()
    for at, entry in enumerate(entries):
        if entry.bits is not None and entry.bits < FINE:
            one = copy.deepcopy(model)
            quantise(one, Work("rtn", group, [entry]))
            found[at] = harm(one)
    for at in sorted(found, key=lambda at: -found[at]):
        bits, numbers = made[at].bits, made[at].numbers
        assert bits is not None
        cost = numbers * (FINE - bits) // 8 + 64
        if cost <= room:
            made[at], room = replaced(made[at], bits=FINE), room - cost
    return made


def _form(module: nn.Module, name: str, bits: int) -> tuple[int | None, str]:
    """The bits of a parameter, or None and why."""
    if name == "weight" and isinstance(module, Table):
        return max(bits, FINE), ""
    if name == "weight" and type(module) is nn.Linear:
        return bits, ""
    if isinstance(module, Grid):
        return None, "in few bits already"
    if isinstance(module, nn.Embedding):
        return None, "a small table"
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return None, "a convolution"
    return None, f"a parameter of {type(module).__name__}, no linear layer"


@torch.no_grad()
def quantise(model: Any, work: Work, batches: Sequence[Inputs] = ()) -> None:
    """Rounds the matrices of a plan, in place, and notes what it did.

    Args:
        batches: real inputs, for gptq, awq and signround.

    Raises:
        ValueError: naming the path, for a matrix that cannot be rounded, or that missed a batch.
    """
    modules: dict[str, Any] = {e.path: model.get_submodule(e.path) for e in work.changed}
    seen: dict[str, Seen] = {}
    before: dict[str, Tensor] = {}
    known: dict[str, rounding.Rounded] = {}
    if work.method in ("gptq", "awq", "signround"):
        linears = {path: m for path, m in modules.items() if isinstance(m, nn.Linear)}
        seen = calibrate(model, linears, batches)
        routed = {p for p in linears if any(p.startswith(f"{at}.experts.") for at in _mixtures(model))}
        check(seen, routed, len(batches))
        work.notes |= _unmet(seen, routed)
        if work.method == "awq":
            lowest = min(e.bits for e in work.changed if e.bits is not None)
            same = {e.path for e in work.changed if e.bits == lowest} - work.notes.keys()
            met = {path: m for path, m in linears.items() if path in same}
            work.folded = awq.fold(model, met, seen, batches[0], lowest, work.group)
        if work.method == "signround":
            wanted = {e.path: e.bits for e in work.changed if e.path in linears and e.path not in work.notes and e.bits}
            before = {path: linears[path].weight.detach().clone() for path in wanted}
            known = learn(model, wanted, work.group, work.whole, batches)
    made: dict[str, Grid] = {}
    for entry in work.changed:
        assert entry.bits is not None
        base = modules[entry.path]
        try:
            weight = before.get(entry.path, base.weight)
            rounded = _rounded(weight, entry, work, seen.get(entry.path), known.get(entry.path))
        except ValueError as error:
            raise ValueError(f"{entry.path}: {error}") from None
        made[entry.path] = grid_of(base, entry.bits, work.group)
        made[entry.path].put(rounded.q, rounded.scale, rounded.zero)
        work.sums[entry.path] = sums(rounded.matrix(), work.group)
    for path, new in made.items():
        replace(model, path, new)


def _mixtures(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, MoE)]


def _unmet(seen: dict[str, Seen], routed: set[str]) -> dict[str, str]:
    """The remark on matrices that the calibration did not reach, or hardly."""
    notes = {}
    for path, one in seen.items():
        if one.rows < FEW and (path in routed or not one.rows):
            notes[path] = f"met {one.rows} tokens of the calibration, fewer than {FEW}: rounded to nearest"
    return notes


def _rounded(
    weight: Tensor, entry: Entry, work: Work, seen: Seen | None, known: rounding.Rounded | None
) -> rounding.Rounded:
    bits, group = entry.bits, work.group
    assert bits is not None
    if work.method == "hqq":
        return rounding.hqq(weight, bits, group)
    plain = rounding.rtn(weight, bits, group, work.whole, entry.centred)
    if work.method == "rtn" or seen is None or entry.path in work.notes:
        return plain
    least = rounding.output_error(weight.float(), plain.matrix(), seen.mean)
    if work.method == "awq":
        return plain
    made = known or rounding.gptq(weight, bits, group, seen.mean, work.whole, entry.centred)
    error = rounding.output_error(weight.float(), made.matrix(), seen.mean)
    if error > least and not known:
        work.notes[entry.path] = "gptq had the larger error: rounded to nearest"
        made, error = plain, least
    work.errors[entry.path] = error, least
    return made


def sums(matrix: Tensor, group: int) -> Tensor:
    """The sums of |W| of each group, (O, G) float32."""
    wide = nn.functional.pad(matrix.abs(), (0, -matrix.shape[1] % group))
    return wide.unflatten(1, (-1, group)).sum(-1)


def verify(model: nn.Module, work: Work) -> None:
    """Checks that a model holds what was planned, whoever wrote or read it.

    Raises:
        ValueError: naming the path, for a matrix that is not in few bits or holds other numbers, or a router that is.
    """
    for path, module in model.named_modules():
        if isinstance(module, Router) and any(isinstance(m, Grid) for m in module.modules()):
            raise ValueError(f"{path} is a router in few bits: it would send tokens to other experts")
    if not work.changed:
        raise ValueError("nothing changed")
    there = {path: m for path, m in model.named_modules(remove_duplicate=False) if isinstance(m, Grid)}
    for entry in work.changed:
        grid = there.get(entry.path)
        if grid is None or grid.bits != entry.bits:
            is_ = "full" if grid is None else f"in {grid.bits} bits"
            raise ValueError(f"{entry.path} is {is_}, and {entry.bits} bits were planned: it was passed over")
        found = sums(grid.dequantised(), work.group)
        if not torch.allclose(found, work.sums[entry.path], rtol=1e-3, atol=1e-6):
            raise ValueError(
                f"{entry.path} holds other numbers than the method chose: its scales or codes are misplaced"
            )
