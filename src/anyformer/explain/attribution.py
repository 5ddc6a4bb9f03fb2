"""Attribution: how much each token, patch, frame or step of the input added to a score.

B batch, T units, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from anyformer.explain.features import Explained, Values
from anyformer.explain.integral import Incomplete, bare, gradients, grouped, integrated, summed
from anyformer.explain.relevance import Ledger, relevance
from anyformer.explain.target import Goal, Target, aimed, narrow
from anyformer.skeletons.base import Output

METHODS = ("ig", "grad", "occlusion", "relevance")
MOST = 512  # points of the integral
TOLERANCE = 1e-3  # of the change of the score
FEW = 128  # units of one input that occlusion hides one by one; longer inputs are cut into so many windows


@dataclass(frozen=True)
class Attribution:
    """The shares of a score.

    Args:
        values: by input the share of each unit, (B, T) of tokens, frames, steps, (B, rows, columns) of patches.
        each: by input the share of each number, in the shape of the input (of tokens (B, T, D)).
        target: the score that was explained, in words.
        method: ig, grad, occlusion or relevance.
        score, base: the score of the input and of the baseline, (B,); of relevance the base is what biases, positions
            and remainders gave; of grad, which has no baseline, 0.
        residual: score - base - the sum of all shares, (B,): 0 of a complete method.
        points: of the integral; 1 of others.
        goal: the target as a function.
        ledger: of relevance, everything that the score is the sum of; else None.
    """

    values: Values
    each: Values
    target: str
    method: str
    score: Tensor
    base: Tensor
    residual: Tensor
    points: int = 1
    goal: Goal | None = field(default=None, repr=False, compare=False)
    ledger: Ledger | None = field(default=None, repr=False, compare=False)

    @property
    def total(self) -> Tensor:
        """The sum of all shares, (B,)."""
        return self.score - self.base - self.residual


def attribute(
    model: Any,
    inputs: str | Sequence[int] | Tensor | Mapping[str, Tensor],
    target: Target = None,
    method: str = "ig",
    *,
    baseline: Any = "mean",
    at: int | None = None,
    head: str | None = None,
    only: Sequence[str] | None = None,
    tolerance: float = TOLERANCE,
    points: int = MOST,
    routers: str = "half",
) -> Attribution:
    """The share of each unit of the input in the score of a target. The model does not change.

    ```
    ig         integrated gradients: (x - b) * mean of dF/dx on the line from b to x. The shares sum to F(x) - F(b).
    grad       gradient x input: (x - b) * dF/dx, one pass. The sum is nothing in particular.
    occlusion  F(x) - F(x with the unit at its baseline), a pass for each unit. Needs no gradient.
    relevance  (x - b) * slope of F by locally linear rules, one pass. The shares and a ledger sum to F(x); see
               `explain.relevance`, and docs/understanding.md for its patent notice.
    ```
    F is a logit, not a probability: a probability near 1 hardly changes, so its gradients are near 0. The integral
    (Sundararajan et al., 2017; arXiv:1703.01365) is a Gauss-Legendre sum of 8 points, which are doubled where the line
    needs more, until the shares sum to F(x) - F(b) within the tolerance; see `explain.integral`.

    Args:
        model: any model, in evaluation mode.
        inputs: a text, token ids, or all tensors of a call by name (`model.inputs()`); rows can be padded.
        target: a token, a class, `Contrast(" Paris", " Rome")`, or a function of the output; None: the highest score.
        method: ig, grad, occlusion or relevance.
        baseline: b, what stands for no information: "mean", "zeros", "pad", "blur", a token, tensors; see
            `features.Explained.baseline`. Captum's gradient x input and LXT's relevance have zeros.
        at, head: the position and the head of the target; see `target.goal`.
        only: the inputs to explain; the others stay as they are.
        tolerance: |residual| of ig, as a share of |F(x) - F(b)|.
        points: the most points of ig.
        routers: of experts, for relevance: "half" or "fixed"; see `relevance.relevance`.

    Raises:
        ValueError: if the integral is not complete with that many points, for a training model, a wrong target,
            baseline, method or input; for gradients through weights that have none (quantised ones).
    """
    if method not in METHODS:
        raise ValueError(f"method: expected {', '.join(METHODS)}; got {method!r}")
    explained = Explained(model, named(model, inputs), only)
    if method == "occlusion" and isinstance(baseline, int):
        explained.by_ids()
    explained.check()
    if method == "relevance":
        return _relevant(explained, target, at, head, routers, baseline)
    narrow(explained, target, at, head)
    base = explained.baseline(baseline)
    if method == "grad":
        return _sloped(explained, target, at, head, base)
    with torch.no_grad():
        out = explained.run()
        aim = aimed(explained, out, target, at, head)
        score = aim(out).double()
    _check_rows(explained, len(score))
    at_base, counts = bare(explained, aim, out.logits, base, score), 1
    if method == "occlusion":
        each = _occluded(explained, aim, base, score)
    else:
        each, counts = integrated(explained, aim, base, (at_base, score), tolerance, points)
    values = {n: f.units(each[n]) for n, f in explained.features.items()}
    residual = score - at_base - summed(each, len(score))
    return Attribution(values, each, aim.name, method, score, at_base, residual, counts, aim)


def _sloped(explained: Explained, target: Target, at: int | None, head: str | None, base: Values) -> Attribution:
    """Gradient x input less baseline in one pass, which tells the target, too."""
    found: list[Goal] = []

    def score_of(out: Output) -> Tensor:
        found.append(aimed(explained, out, target, at, head))
        return found[0](out)

    slopes, score = gradients(explained, score_of, {n: f.value for n, f in explained.features.items()})
    _check_rows(explained, len(score))
    each = {n: slopes[n] * (f.value - base[n]) for n, f in explained.features.items()}
    values = {n: f.units(each[n]) for n, f in explained.features.items()}
    none = torch.zeros_like(score)
    return Attribution(
        values, each, found[0].name, "grad", score, none, score - summed(each, len(score)), goal=found[0]
    )


def _check_rows(explained: Explained, rows: int) -> None:
    own = [f for f in explained.features.values() if len(f.value) != rows]
    if own and rows > 1:
        raise ValueError(f"{own[0].name} has {len(own[0].value)} entries for {rows} rows, so shares belong to several "
                         "rows; explain one row at a time")  # fmt: skip


def named(model: Any, inputs: Any) -> dict[str, Tensor]:
    """The tensors of a call by name, of a text, of token ids, or as they are."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        if model.reads_text:
            raise ValueError(f"this model reads {model.takes}, token ids; got numbers of shape {tuple(inputs.shape)}")
        return {model.takes: inputs}
    if not model.reads_text:
        raise ValueError(f"this model reads {model.takes}, no text; pass its tensors by name: {{{model.takes!r}: …}}")
    if isinstance(inputs, str):
        if model.tokenizer is None:
            raise ValueError("this model has no tokenizer; pass token ids instead of a text")
        inputs = model.tokenizer.encode(inputs)
    ids = torch.as_tensor(inputs, dtype=torch.long, device=next(model.parameters()).device)
    ids = ids[None] if ids.ndim == 1 else ids
    if ids.ndim != 2 or not ids.shape[1]:
        raise ValueError(f"token ids: expected (tokens,) or (batch, tokens), at least one; got {tuple(ids.shape)}")
    made = {model.takes: ids}
    if model.reads_source:
        made["decoder_input_ids"] = ids.new_full((len(ids), 1), model.begin_id)
    return made


def _relevant(
    explained: Explained, target: Target, at: int | None, head: str | None, routers: str, baseline: Any
) -> Attribution:
    try:
        made = relevance(explained, target, at, head, routers=routers, baseline=explained.baseline(baseline))
    except Incomplete:  # sums that cancel: float32 has too few digits
        if next(explained.model.parameters()).dtype == torch.float64:
            raise
        inputs = {n: v.double() if v.is_floating_point() else v for n, v in explained.inputs.items()}
        wide = Explained(deepcopy(explained.model).double(), inputs, explained.only)
        made = relevance(wide, target, at, head, routers=routers, baseline=wide.baseline(baseline))
    ledger, like = made.ledger, next(iter(made.each.values()))
    score, base, residual = (
        torch.tensor([value], dtype=torch.float64, device=like.device)
        for value in (ledger.score, sum(ledger.added.values()), ledger.missing)
    )
    values = {n: f.units(made.each[n]) for n, f in explained.features.items()}
    return Attribution(
        values, made.each, made.goal.name, "relevance", score, base, residual, goal=made.goal, ledger=ledger
    )


@torch.no_grad()
def _occluded(explained: Explained, aim: Goal, base: Values, score: Tensor) -> Values:
    """The fall of the score when a unit, or a window of units, is at its baseline; spread over its numbers."""
    each = {}
    for name, feature in explained.features.items():
        total = torch.zeros_like(feature.value)
        shape = feature.shape()
        count = math.prod(shape) if shape else 1
        width = -(-count // FEW) if len(shape) <= 1 else 1
        hidden = []
        for first in range(0, count, width):
            flat = torch.zeros(count, device=score.device)
            flat[first : first + width] = 1.0
            there = feature.spread(flat.reshape(1, *shape) if shape else flat.reshape(1)).bool()
            hidden.append({name: there.expand_as(feature.value[:1])})
        for group in grouped(explained, hidden):
            masks = torch.cat([mask[name] for mask in group])
            rows = explained if len(group) == 1 else explained.copies(len(group))
            falls = score - aim(rows.run({name: torch.where(masks, base[name], feature.value)})).double()
            for i, mask in enumerate(group):
                fall = falls[i : i + 1] if len(group) > 1 else falls
                total += _share(fall, mask[name], feature.value, len(score))
        each[name] = total
    return each


def _share(fall: Tensor, there: Tensor, like: Tensor, rows: int) -> Tensor:
    """The fall of each row, equally over the numbers that were hidden."""
    fall = fall.reshape(-1, *[1] * (like.ndim - 1)) if len(like) == rows else fall.reshape(1, *[1] * (like.ndim - 1))
    return (fall / there.sum() * there).to(like.dtype)
