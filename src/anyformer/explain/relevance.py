"""Relevance: a score as the sum of what its inputs, biases, positions and remainders gave to it.

B batch, T units.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.part import check_option
from anyformer.explain.features import Explained, Values
from anyformer.explain.integral import Incomplete
from anyformer.explain.linearised import KINDS, Linearised, tables
from anyformer.explain.rules import FUNCTIONS, RULES
from anyformer.explain.target import Goal, Target, aimed, narrow

TOLERANCE = {torch.float64: 1e-9}  # of the score, or of the largest entry of the ledger; else LOOSE
LOOSE = 1e-4


@dataclass(frozen=True)
class Row:
    """The entries of a score at one place.

    Args:
        name: of the layer, or of the part beside all layers.
        stream: the relevance of the stream before the layer; None beside layers.
        added: by kind what entered there: biases, positions, softmax, others.
        beside: what the layer read beside its stream: an encoder's memory, a grid.
        behind: the relevance of the stream behind it: stream + all that was added + beside.
    """

    name: str
    stream: float | None
    added: dict[str, float]
    beside: float
    behind: float | None


@dataclass(frozen=True)
class Ledger:
    """The score as a sum: inputs + biases + positions + softmax + others + missing = score.

    Args:
        score: what was explained. inputs: by name the relevance of each input.
        added: by kind what entered beside the inputs. `rows`: the same by layer, in the order of the pass.
        missing: score less everything: rounding.
        routers, softmax: the rules that were chosen.
    """

    score: float
    inputs: dict[str, float]
    added: dict[str, float]
    rows: tuple[Row, ...]
    missing: float
    routers: str
    softmax: str

    @property
    def size(self) -> float:
        """The largest entry, which says how much cancels."""
        return max(abs(v) for v in (self.score, *self.inputs.values(), *self.added.values()))

    def check(self, tolerance: float, name: str) -> None:
        """Raises Incomplete if the entries do not sum to the score."""
        if not abs(self.missing) <= tolerance * max(abs(self.score), self.size):
            raise Incomplete(
                f"relevance of {name}: the ledger misses {self.missing:.3g} of {self.score:.4g}, more than "
                f"{tolerance:g} of it; run the model in float64 (model.double()), or report the part"
            )


@dataclass(frozen=True)
class Relevance:
    """The relevance of each number of each input, in its shape; the ledger; the target."""

    each: Values
    ledger: Ledger
    goal: Goal


def relevance(
    explained: Explained,
    target: Target = None,
    at: int | None = None,
    head: str | None = None,
    *,
    routers: str = "half",
    softmax: str = "linear",
    baseline: Values | None = None,
) -> Relevance:
    """Layer-wise relevance by locally linear rules (`explain.rules`), in one pass forwards and one back.

    Every operation is homogeneous of degree 1 in its inputs and in the constants that it adds, so Euler's theorem
    gives score = sum of x dF/dx over the inputs + sum of b dF/db over all that was added. The ledger holds both sums.

    Args:
        explained: a call with one row. `target`, `at`, `head`: as of `attribute`.
        routers: of experts: "half" or "fixed". `softmax`: "linear" or "fixed"; see `linearised.Linearised`.
        baseline: b by input: it has the relevance (x - b) dF/dx, and b dF/dx is an entry of its own, "others". None: 0,
            which a series of 50 to 150 or the loudness of a sound never is.

    Raises:
        ValueError: for several rows, an operation without a rule (with its part), a ledger that does not add up.
    """
    check_option("relevance", "routers", routers, ("half", "fixed"))
    check_option("relevance", "softmax", softmax, ("linear", "fixed"))
    narrow(explained, target, at, head)
    with torch.no_grad():
        plain = explained.run()
        aim = aimed(explained, plain, target, at, head)
        wanted = aim(plain).double()
    if len(wanted) != 1:
        raise ValueError(f"relevance: its ledger is of one score; got {len(wanted)} rows, explain one at a time")
    leaves = {n: f.value.detach().clone().requires_grad_() for n, f in explained.features.items()}
    made = Linearised(explained.model, RULES, FUNCTIONS, routers, softmax)
    with torch.enable_grad(), made, _looked_up(explained, leaves):
        score = aim(explained.run({n: v for n, v in leaves.items() if n in explained.features}))
    if not score.requires_grad:
        raise Incomplete("the score does not depend on the inputs through anything that has a gradient")
    ends = [t for layer in made.layers for t in (layer.before, layer.behind) if t is not None]
    every = [*leaves.values(), *(s.leaf for s in made.sources), *ends]
    slopes = torch.autograd.grad(score.sum(), every, allow_unused=True)
    shares = {id(t): _times(t, g) for t, g in zip(every, slopes, strict=True)}
    each, of_base = dict[str, Tensor](), dict[str, float]()
    for (name, leaf), slope in zip(leaves.items(), slopes, strict=False):
        base = None if baseline is None else baseline.get(name)
        value = leaf.detach() if base is None else leaf.detach() - base
        each[name] = torch.zeros_like(value) if slope is None else value * slope
        if base is not None:
            of_base[name] = _times(base, slope)
            shares[id(leaf)] -= of_base[name]
    ledger = _ledger(made, float(score.detach().double()), leaves, shares, of_base)
    ledger.check(TOLERANCE.get(score.dtype, LOOSE), aim.name)
    if abs(ledger.score - float(wanted)) > 1e-3 * max(abs(float(wanted)), ledger.size):
        raise Incomplete(
            f"relevance of {aim.name}: the pass by rules gives {ledger.score:.6g}, the model {float(wanted):.6g}; a "
            "part computes something else where gradients are wanted; use method='ig' or 'occlusion'"
        )
    return Relevance(each, ledger, aim)


def _times(value: Tensor, slope: Tensor | None) -> float:
    """The sum of value times slope, of hidden values 0."""
    if slope is None:
        return 0.0
    if value.is_complex():
        return float((value.detach().conj() * slope).real.double().sum())
    value = value.detach()
    return float((value.where(value.isfinite() & (value.abs() < 1e30), 0.0) * slope).double().sum())


def _ledger(
    made: Linearised, score: float, leaves: Values, shares: dict[int, float], of_base: dict[str, float]
) -> Ledger:
    inputs: dict[str, float] = {}
    for name, leaf in leaves.items():
        inputs[name.partition(" ")[0]] = inputs.get(name.partition(" ")[0], 0.0) + shares[id(leaf)]
    places: dict[str, dict[str, float]] = {}
    for source in made.sources:
        here = places.setdefault(source.layer, dict.fromkeys(KINDS, 0.0))
        here[source.kind] += shares[id(source.leaf)]
    rows = [Row(f"baseline of {n}", None, dict.fromkeys(KINDS, 0.0) | {"others": v}, 0.0, None)
            for n, v in of_base.items() if v]  # fmt: skip
    layers = {layer.name: layer for layer in made.layers}
    order = list(dict.fromkeys([*(n for n in places if n not in layers), *layers]))
    for name in order:
        added, layer = places.get(name, dict.fromkeys(KINDS, 0.0)), layers.get(name)
        if layer is None and not any(added.values()):
            continue
        if layer is None or layer.before is None or layer.behind is None:
            rows.append(Row(name, None, added, 0.0, None))
            continue
        stream, behind = shares[id(layer.before)], shares[id(layer.behind)]
        rows.append(Row(name, stream, added, behind - stream - sum(added.values()), behind))
    total = {kind: sum(row.added[kind] for row in rows) for kind in KINDS}
    missing = score - sum(inputs.values()) - sum(total.values())
    return Ledger(score, inputs, total, tuple(rows), missing, made.routers, made.softmax)


@contextmanager
def _looked_up(explained: Explained, leaves: Values) -> Iterator[None]:
    """The vectors of ids that are looked up in several tables become inputs, one for each look-up."""
    with ExitStack() as hooks:
        for name in explained.missing:
            entrance = next(e for e in explained.model.entrances() if name in e.inputs())
            for table in tables(entrance.front):

                def hook(module: nn.Module, args: Any, out: Tensor, name: str = name) -> Tensor:
                    leaf = out.detach().clone().requires_grad_()
                    leaves[f"{name} {len(leaves)}"] = leaf
                    return leaf

                hooks.callback(table.register_forward_hook(hook).remove)
        yield
