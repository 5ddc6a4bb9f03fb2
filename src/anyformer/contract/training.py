"""Items 11 and 12: a model trains, and its recipe survives being written and read."""

from __future__ import annotations

import json
import random
from typing import Any

import torch
from torch import Tensor

from anyformer.contract.check import LeftOut, check, varied
from anyformer.contract.oracle import fresh
from anyformer.contract.probe import Batch, Failed, close, draw, expect, goal, slopes_agree
from anyformer.contract.subjects import Subject, apart_from_tiny, first_of, redrawn
from anyformer.core import pages
from anyformer.core.init import initialise
from anyformer.core.part import Part
from anyformer.core.recipe import Recipe
from anyformer.core.recompute import recompute
from anyformer.core.value import Value
from anyformer.parts.norms import TimeBatchNorm
from anyformer.parts.series.distil import Distil
from anyformer.parts.sound.heads import Quantised
from anyformer.parts.sound.positions import NormedPositions
from anyformer.parts.text_and_codes import NEVER
from anyformer.skeletons.base import Output, Skeleton
from anyformer.train.objectives import IGNORE, classification, counted

BATCHES = 8  # the most, until every expert was chosen
LEARNED = 0.2  # the largest remaining share of the first loss: T5 keeps 0.13, all others less than 0.01
STEADY = 3  # losses in a row that are below it


def labels_for(model: Any, batch: Batch, seed: int = 0) -> dict[str, Tensor]:
    """Random labels for every head, -100 at padding; random targets for a model without heads."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        out = model(**batch.inputs)
    targets: dict[str, Tensor] = {}
    for name, value in scores(out).items():
        if between := getattr(dict(model.named_modules()).get(f"heads.{name}"), "between", None):
            targets[name] = torch.empty(value.shape).uniform_(*between, generator=noise)
            continue
        if value.shape[-1] == 1:  # a number, not a class
            targets[name] = torch.randn(value.shape, generator=noise)
            continue
        labels = torch.randint(0, value.shape[-1], value.shape[:-1], generator=noise)
        if bool((value <= NEVER).any()):  # some classes can never be: labels are among the others
            labels = torch.rand(value.shape, generator=noise).masked_fill(value <= NEVER, -1.0).argmax(-1)
        if f"heads.{name}" in model.pairs:
            labels = torch.minimum(labels, labels.mT)  # of distances, which a head says the same in both directions
        if labels.ndim == 3 and name in out.heads and model.pairs and batch.keep is not None:
            labels = labels.masked_fill(~batch.keep[..., None], IGNORE)
            labels = labels.masked_fill(~batch.keep[:, None], IGNORE) if f"heads.{name}" in model.pairs else labels
        if labels.ndim == 2 and (keep := batch.fitting(labels)) is not None:
            labels = labels.masked_fill(~keep, IGNORE)
        targets[name] = labels
    if not targets:
        targets = {"hidden": torch.randn(out.hidden.shape, generator=noise)}
        if out.pooled is not None:
            targets["pooled"] = torch.randn(out.pooled.shape, generator=noise).tanh()
    return targets


def scores(out: Output) -> dict[str, Tensor]:
    """The outputs that are scores of classes or tokens."""
    heads = {name: value for name, value in out.heads.items() if f"heads.{name}" not in out.across}
    return heads or ({} if out.logits is None else {"logits": out.logits})


def counts(labels: dict[str, Tensor], batch: Batch) -> dict[str, float]:
    """The number of counted labels in a batch, for each kind of label."""
    real = batch.keep.sum().item() if batch.keep is not None else 0
    return {
        n: float(counted(y)) if not y.is_floating_point() else float(real or y.shape[0] * y.shape[1])
        for n, y in labels.items()
    }


def loss_of(model: Any, batch: Batch, labels: dict[str, Tensor], count: dict[str, float]) -> Tensor:
    """The sum over all heads of the batch's summed loss divided by `count`."""
    out, total = model(**batch.inputs), torch.zeros(())
    for name, wanted in labels.items():
        if wanted.is_floating_point():
            error = ((scores(out)[name] if name in scores(out) else getattr(out, name)) - wanted).square()
            if error.ndim == 3 and (keep := batch.fitting(error)) is not None:
                error = error.masked_fill(~keep[..., None], 0.0)
            total = total + error.sum() / count[name]
        else:
            logits = scores(out).get(name, out.logits)
            total = total + classification(Output(out.hidden, logits), wanted, count[name])
    return total


def learn(model: Any, batch: Batch, labels: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of a batch, with the same draws in each call."""
    torch.manual_seed(0)
    loss = loss_of(model, batch, labels, counts(labels, batch))
    names, parameters = zip(*model.named_parameters(), strict=True)
    slopes = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return loss.detach(), dict(zip(names, slopes, strict=True))


def agree(one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]], what: str) -> float:
    """The largest difference of two losses and their gradients."""
    return max(close(one[0], other[0], f"{what}: loss"), slopes_agree(one[1], other[1], what))


@check(11, "model", checkpoint=True)
def every_parameter_gets_a_gradient(subject: Subject) -> float:
    """Every parameter gets a finite gradient that is not 0 everywhere; experts, from one of a few batches; one that a
    skeleton calls idle gets 0 always."""
    model = fresh(subject.model).train()
    rng, still = random.Random(30), dict(model.named_parameters())
    lengths = [count + model.room() for count in (9, 4, 7)]
    for _ in range(BATCHES):
        goal(model, draw(subject, rng, lengths, "right")).backward()
        for name, parameter in still.items():
            expect(parameter.grad is not None or name in model.idle, f"{name} gets no gradient")
            finite = parameter.grad is None or bool(parameter.grad.isfinite().all())
            expect(finite, f"the gradient of {name} is not finite")
        still = {n: p for n, p in still.items() if p.grad is None or not bool(p.grad.ne(0).any())}
        if still.keys() == model.idle:
            return 0.0
    expect(still.keys() >= model.idle, f"{', '.join(model.idle - still.keys())} is idle by design, and has a gradient")
    raise Failed(f"the gradient of {', '.join(still)} is 0")


@check(11, "model", later=apart_from_tiny)
def overfits_one_batch(subject: Subject) -> float:
    """From first weights, within the steps of AdamW that the skeleton names (40; twice as many where each step draws
    other targets) three losses in a row on one padded batch are at most a fifth of the first."""
    model = fresh(subject.model).train()
    initialise(model, seed=0)
    if any(getattr(part, "empty", False) for part in model.modules()):
        raise LeftOut("its frozen norms have no statistics in a new model, which learns with other norms only")
    batch = draw(subject, random.Random(31), [7, 4, 6], "left")
    matching = {"logits": torch.arange(len(batch))}  # of towers: row i belongs to row i of the other one
    labels = matching if "logits" in model.across else labels_for(model, batch)
    count = counts(labels, batch)
    drawn = any(isinstance(part, Quantised) for part in model.modules())
    steps, rate = (1 + drawn) * model.lesson[0], model.lesson[1]
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, foreach=True)
    losses: list[float] = []
    while len(losses) < steps and (len(losses) <= STEADY or max(losses[-STEADY:]) >= LEARNED * losses[0]):
        optimiser.zero_grad()
        loss = loss_of(model, batch, labels, count)
        loss.backward()
        optimiser.step()
        for bound in [part.bound for part in model.modules() if hasattr(part, "bound")]:  # as in `train.fit`
            bound()
        losses.append(loss.item())
    last = max(losses[-STEADY:])
    expect(last < LEARNED * losses[0], f"the loss went from {losses[0]:.3f} to {last:.3f} in {steps} steps")
    return 0.0


@check(11, "model", later=apart_from_tiny)
def activation_checkpointing_changes_nothing(subject: Subject) -> float:
    """Activation checkpointing gives the same loss and gradients."""
    batch = draw(subject, random.Random(32), [9, 5], "left")
    model = fresh(subject.model).train()
    labels = labels_for(model, batch)
    expected = learn(model, batch, labels)
    recompute(model, "**.blocks.*")
    return agree(learn(model, batch, labels), expected, "recompute")


def compiled(subject: Subject, backend: str) -> float:
    """The largest difference of loss and gradients under torch.compile, with one block of each kind."""
    batch = draw(subject, random.Random(33), [9, 5], "left")
    model = redrawn(shallow(subject.recipe).build()).train()
    labels = labels_for(model, batch)
    expected = learn(model, batch, labels)
    torch._dynamo.reset()
    try:
        model.compile(backend=backend)
        return agree(learn(model, batch, labels), expected, f"torch.compile, {backend}")
    finally:
        torch._dynamo.reset()


def shallow(recipe: Recipe) -> Recipe:
    """The recipe with one block of each kind: equal ones are traced alike."""
    stacks = {path.rpartition(".")[0] for path, _ in recipe.walk() if path.rpartition(".")[0].endswith("blocks")}
    for path in stacks:
        blocks = [value for at, value in recipe.walk() if at.rpartition(".")[0] == path]
        recipe = recipe.but({path: tuple(dict.fromkeys(blocks))})
    return recipe


def in_full(subject: Subject) -> str | None:
    """The reason why checks that cost seconds do not apply, or None for `tiny` of each page and compositions."""
    return None if subject.name.endswith("/tiny") or subject.page is None else "drawn for `tiny` only: it costs seconds"


@check(11, "model", needs=in_full, later=lambda s: s.name not in first_of(Skeleton))
def compiling_changes_nothing(subject: Subject) -> float:
    """Traced by torch.compile, forward and backward, and run by operation, loss and gradients are the same."""
    return compiled(subject, "aot_eager")


@check(11, "model", needs=in_full, slow=True)
def compiling_with_inductor_changes_nothing(subject: Subject) -> float:
    """With torch.compile and its own backend, loss and gradients are the same."""
    return compiled(subject, "inductor")


def same_in_parts(subject: Subject) -> str | None:
    """The reason why a batch differs from its rows in training, or None."""
    if subject.holds(TimeBatchNorm) or subject.holds(NormedPositions):
        return "in training a batch norm takes the statistics of its batch"
    return "in training a quantiser draws noise for a batch" if subject.holds(Quantised) else None


@check(11, "model", examples=3, needs=same_in_parts, later=apart_from_tiny)
def gradient_accumulation_equals_one_batch(subject: Subject, rng: random.Random) -> float:
    """Small batches with random padding add up to the loss and gradients of one big batch of the same rows."""
    if subject.holds(Distil):
        raise LeftOut("between its blocks a norm takes the statistics of each batch, as published")
    side = rng.choice(("left", "right"))
    batch = draw(subject, rng, [rng.randint(1, 9) for _ in range(4)], side)
    model = fresh(subject.model).train()
    labels = labels_for(model, batch)
    count = counts(labels, batch)
    whole = learn(model, batch, labels)
    losses, sums = torch.zeros(()), {n: torch.zeros_like(g) for n, g in whole[1].items()}
    cut = rng.randint(1, 3)
    for rows in (list(range(cut)), list(range(cut, 4))):
        part, some = batch.rows(rows), {n: y[rows] for n, y in labels.items()}
        loss = loss_of(model, part, some, count)
        names, parameters = zip(*model.named_parameters(), strict=True)
        slopes = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        losses = losses + loss.detach()
        sums = {n: sums[n] + g for n, g in zip(names, slopes, strict=True)}
    return agree((losses, sums), whole, "accumulated")


@check(12, "model", light=True, later=varied, checkpoint=True)
def recipe_survives_serialisation(subject: Subject) -> float:
    """A recipe to JSON and back, printed and evaluated, or pickled, is the same and builds the same modules."""
    import pickle

    recipe = subject.recipe
    again = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    expect(again == recipe and hash(again) == hash(recipe), "JSON changes the recipe")
    expect(again.to_json() == recipe.to_json(), "JSON of JSON differs")
    expect(pickle.loads(pickle.dumps(recipe)) == recipe, "pickling changes the recipe")
    modules = {page.name: page.module for page in pages.pages()}
    printed = eval(repr(recipe), {"__builtins__": {}}, {**Part.kinds, **Value.kinds, **modules})
    expect(printed == recipe, f"the printed recipe differs: {printed!r}")
    with torch.device("meta"):
        one, two = recipe.build(), again.build()
    shapes = [{n: (tuple(p.shape), p.dtype) for n, p in m.state_dict().items()} for m in (one, two)]
    expect(shapes[0] == shapes[1], "the same recipe builds other parameters")
    expect(str(one) == str(two), "the same recipe builds other modules")
    return 0.0


@check(12, "model", later=apart_from_tiny)
def initial_weights_depend_only_on_the_seed(subject: Subject) -> float:
    """The same seed gives the same first weights, another one others; all are finite."""
    made = []
    for seed in (3, 3, 4):
        model = subject.recipe.build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("nan"))  # like uninitialised memory
        initialise(model, seed=seed)
        made.append({n: p.detach().clone() for n, p in model.named_parameters()})
    expect(all(torch.equal(made[0][n], made[1][n]) for n in made[0]), "the same seed gives other weights")
    expect(any(not torch.equal(made[0][n], made[2][n]) for n in made[0]), "the seed is not used")
    expect(all(p.isfinite().all() for p in made[0].values()), "a first weight is not finite")
    return 0.0
