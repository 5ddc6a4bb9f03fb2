"""Item 19: dropout is in the oracle's positions, is off in evaluation, and drops elements at its rate."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer.contract.check import LeftOut, check
from anyformer.contract.hyper import key_of
from anyformer.contract.kernels import changed
from anyformer.contract.oracle import in_training, meet
from anyformer.contract.probe import close, draw, expect, run, same
from anyformer.contract.subjects import Subject, apart_from_tiny, hubs, redrawn
from anyformer.contract.tracing import trace
from anyformer.core import hyper, pages
from anyformer.core.part import Part
from anyformer.core.recipe import Recipe
from anyformer.hub.tables.weights import Hub
from anyformer.parts.attention.kernels import attend
from anyformer.parts.attention.masks import Full, View

RATE = 0.3
SIGMAS = 6.0  # the bound of sampling errors


@contextlib.contextmanager
def standing_in(name: str, function: Callable[..., Tensor]) -> Iterator[None]:
    """A context in which this function replaces one of `torch.nn.functional`, on both sides."""
    before = getattr(F, name)
    setattr(F, name, function)
    try:
        yield
    finally:
        setattr(F, name, before)


def shrunk(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """A deterministic factor instead of dropout, which shows its position and rate."""
    return x * (1 - p / 2) if training else x


def dropping(subject: Subject) -> Subject:
    """The case with another rate for each hyperparameter of dropout.

    Raises:
        LeftOut: if it has none.
    """
    names = [n for n in hyper.leaves(subject.config) if "dropout" in n.rpartition(".")[2]]
    if not names:
        raise LeftOut("it has no hyperparameter of dropout")
    config = hyper.changed(subject.config, {name: 0.1 + 0.07 * i for i, name in enumerate(names)})
    return Subject(f"{subject.name}, dropout", pages.page(subject.page or "").recipe(config), subject.page, config)


@check(19, "files", later=apart_from_tiny)
def dropout_is_where_the_oracle_has_it(subject: Subject, hub: Hub) -> float:
    """With a factor instead of chance, outputs and hidden states in training are the oracle's."""
    other = dropping(subject)
    expect(hub in hubs(other), "its map cannot express dropout")
    side = meet(other, hub)
    ours = pages.empty(changed(other.recipe, Part, kernel="reference"))  # fused attention drops inside
    ours.load_state_dict(side.ours.state_dict(keep_vars=True), assign=True)
    batch = draw(other, random.Random(52), [9, 9])
    quiet = run(ours.eval(), batch)
    with in_training(side.theirs), standing_in("dropout", shrunk), torch.no_grad():
        expected, actual = side.named(side.call(batch)), trace(ours.train(), batch)
    names = [n for n in expected if not n[-1].isdigit()]
    expect(any(not torch.equal(actual[n], quiet[n]) for n in quiet), "no dropout acts in training")
    return max(close(actual[n], expected[n], f"with dropout: {n}") for n in names)


def rates(recipe: Recipe) -> dict[tuple[str, str], list[str]]:
    """The paths of every option of dropout, by the part or value that has it."""
    by_option: dict[tuple[str, str], list[str]] = {}
    for path, value in recipe.walk():
        above, _, option = path.rpartition(".")
        if "dropout" in option and (value is None or type(value) is float):
            owner = dict(recipe.walk()).get(above, recipe)
            by_option.setdefault(key_of(owner, option), []).append(path)
    return by_option


def with_rates(subject: Subject, paths: list[str], rate: float) -> Any:
    """The subject's weights in a model with this rate at these paths, and no other dropout."""
    every = [path for group in rates(subject.recipe).values() for path in group]
    model = redrawn(subject.recipe.but(dict.fromkeys(every, 0.0)).but(dict.fromkeys(paths, rate)).build())
    model.load_state_dict(subject.model.state_dict())
    return model


@check(19, "model", later=apart_from_tiny)
def dropout_is_off_in_evaluation(subject: Subject) -> float:
    """With the largest rates, evaluation is the same as without dropout, bit for bit; training is not."""
    every = [path for paths in rates(subject.recipe).values() for path in paths]
    if not every:
        raise LeftOut("no part of it has dropout")
    batch = draw(subject, random.Random(53), [7, 4], "left")
    with_, without = with_rates(subject, every, 0.5), with_rates(subject, [], 0.0)
    worst = same(run(with_.eval(), batch), run(without.eval(), batch), "dropout in evaluation", 0.0, 0.0)
    torch.manual_seed(0)
    one, two = run(with_.train(), batch), run(with_, batch)
    expect(any(not torch.equal(one[n], two[n]) for n in one), "no dropout acts in training")
    return worst


@check(19, "model", later=apart_from_tiny)
def dropout_drops_elements_at_its_rate(subject: Subject) -> float:
    """Each option of dropout alone drops elements at its rate, and with a separate mask for every row of a batch."""
    by_option = {key: paths for key, paths in rates(subject.recipe).items() if key[1] != "classifier_dropout"}
    if not by_option:
        raise LeftOut("no part of it has dropout")
    rows, plain, fused, worst = 3, F.dropout, F.scaled_dot_product_attention, 0.0
    batches = [
        draw(subject, random.Random(54), [n] * rows) for n in (11 + subject.model.room(), 2)
    ]  # sparse attention is full in short texts
    packed = {len(b.inputs[name]) for b in batches for name in b.inserts}  # media of all rows in one sequence
    for (part, option), paths in by_option.items():
        calls: list[tuple[float, int, int, int]] = []  # rate, rows, elements before and after

        def noted(
            x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, calls: Any = calls
        ) -> Tensor:
            y = plain(x, p, training)
            if training and p:
                every = x.ndim < 3 or (len(x) == 1 and x.shape[1] in packed)  # tokens of all rows, at an expert
                size = rows if every else len(x)
                calls.append((p, size, int(x.count_nonzero()), int(y.count_nonzero())))
            return y

        def inside(q: Tensor, k: Tensor, v: Tensor, mask: Any = None, p: float = 0.0, *rest: Any, calls: Any = calls,
                   **more: Any) -> Tensor:  # fmt: skip
            calls.extend([(p, q.shape[0], 0, 0)] * bool(p))  # its rate: `fused attention drops weights at its rate`
            return fused(q, k, v, mask, p, *rest, **more)

        torch.manual_seed(0)
        with standing_in("dropout", noted), standing_in("scaled_dot_product_attention", inside):
            model = with_rates(subject, paths, RATE).train()
            for batch in batches:
                run(model, batch)
        what = f"{part}.{option}={RATE}"
        expect(bool(calls), f"{what}: nothing is dropped")
        wrong = [p for p, *_ in calls if abs(p - RATE) > 1e-9]
        expect(not wrong, f"{what}: dropped at the rate {wrong[:1]}")
        expect(all(size >= rows for _, size, *_ in calls), f"{what}: rows share one mask")
        there, left = (sum(call[i] for call in calls) for i in (2, 3))
        if there:
            off = abs(left / there - (1 - RATE)) / (RATE * (1 - RATE) / there) ** 0.5
            expect(off < SIGMAS, f"{what}: {1 - left / there:.3f} of the elements are dropped")
            worst = max(worst, off)
    return worst


@check(19, "parts")
def fused_attention_drops_weights_at_its_rate() -> float:
    """In kernels with dropout inside, the sum of the remaining weights has the mean 1 and the spread of its rate."""
    B, H, T, S = 2, 4, 64, 64
    q, v = torch.zeros(B, H, T, 4), torch.ones(B, H, S, 4)
    view, worst = View(Full(), S - T, T, 0, S, None), 0.0
    for kernel in ("sdpa", "chunked", "reference"):
        torch.manual_seed(0)
        y = attend(q, q.expand(B, H, S, 4), v, view, None, None, dropout=RATE, kernel=kernel)[..., 0]  # (B, H, T)
        spread = (RATE / (1 - RATE) / S) ** 0.5  # of a sum of S equal weights
        off = abs(float(y.mean()) - 1) / (spread / y.numel() ** 0.5)
        expect(off < SIGMAS, f"{kernel}: the mean is {y.mean():.4f} with dropout, 1 without")
        share = float(y.std()) / spread
        expect(0.8 < share < 1.25, f"{kernel}: weights are dropped at another rate: spread {share:.2f} of the expected")
        expect(not torch.equal(y[0], y[1]) and not torch.equal(y[:, 0], y[:, 1]), f"{kernel}: rows share one mask")
        worst = max(worst, off)
    return worst
