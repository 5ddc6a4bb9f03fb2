"""Two models on the same inputs: how far their answers are apart, and how long each takes.

KLD = mean over places of sum_v p_v log(p_v / q_v), p of the model before and q of the model after. A model without
scores makes vectors, and p are the softmax of the similarities of a text to all others, at temperature 0.05.

N places, V classes.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer.compress.held import Held
from anyformer.core.machine import conditions

SHARP = 0.05  # the temperature of similarities
ROUNDS = 7  # of a time, each model in turn


@dataclass(frozen=True)
class Distance:
    """The distance of two models.

    Attributes:
        kld: mean divergence in nats. top: the share of places where the likeliest is the same. places: compared.
        loss: log loss of the model before and after; None where nothing says what is right.
        cosine: of the vectors before and after, on average; None for a model with scores. what: the places.
    """

    kld: float
    top: float
    places: int
    loss: tuple[float, float] | None
    cosine: float | None
    what: str

    def __str__(self) -> str:
        text = f"KLD {self.kld:.2e}, the same first choice {self.top:.1%}"
        if self.loss is not None:
            one, two = (math.exp(min(loss, 700)) for loss in self.loss)
            text += f", perplexity {one:.4g} -> {two:.4g}"
        if self.cosine is not None:
            text += f", cosine of vectors {self.cosine:.4f}"
        return f"{text} ({self.places:,} {self.what})"


@dataclass(frozen=True)
class Times:
    """Median milliseconds of a pass before and after, and of a decoded token (None: it does not decode)."""

    forward: tuple[float, float]
    step: tuple[float, float] | None
    shape: str
    where: str

    def __str__(self) -> str:
        text = f"{self.forward[0]:.2f} ms -> {self.forward[1]:.2f} ms for {self.shape}"
        if self.step is not None:
            text += f", {self.step[0]:.2f} ms -> {self.step[1]:.2f} ms a decoded token"
        return f"{text} (measured here: {self.where})"


@torch.inference_mode()
def distance(before: Any, after: Any, held: Held) -> Distance:
    """The distance of a model from another on the half that nothing was calibrated with."""
    if held.texts and before(**held.compare[0]).logits is None:
        return _vectors(before, after, held)
    apart, same = list[Tensor](), list[Tensor]()
    losses: list[list[Tensor]] = [[], []]
    for number, inputs in enumerate(held.compare):
        outs = [model(**inputs) for model in (before, after)]
        if outs[0].logits is None:
            return _hidden(before, after, held)
        p, q = (out.logits.float().flatten(0, -2).log_softmax(-1) for out in outs)  # (N, V)
        apart.append((p.exp() * (p - q)).sum(-1).double())
        same.append(p.argmax(-1) == q.argmax(-1))
        if held.targets and held.targets[number].numel() == len(p):
            wanted = held.targets[number].flatten()
            for found, scores in zip(losses, (p, q), strict=True):
                found.append(F.nll_loss(scores[wanted != -100], wanted[wanted != -100], reduction="none").double())
    count = sum(map(len, apart))
    right = torch.cat(losses[0]).numel() if losses[0] else 0
    loss = (float(torch.cat(losses[0]).mean()), float(torch.cat(losses[1]).mean())) if right else None
    what = f"tokens of {held.source}" if held.real else "places of random inputs, which say little"
    return Distance(float(torch.cat(apart).mean()), float(torch.cat(same).float().mean()), count, loss, None, what)


def _vectors(before: Any, after: Any, held: Held) -> Distance:
    from anyformer.generate.embedding import embed

    one, two = (F.normalize(embed(model, held.texts).float(), dim=-1) for model in (before, after))  # (N, D)
    return _similar(one, two, f"texts of {held.source}")


def _hidden(before: Any, after: Any, held: Held) -> Distance:
    """The same of the hidden states at each place, of a model without scores and texts."""
    rows = [torch.cat([model(**x).hidden.float().mean(1) for x in held.compare]) for model in (before, after)]
    one, two = (F.normalize(r, dim=-1) for r in rows)
    return _similar(one, two, "random inputs, which say little" if not held.real else f"windows of {held.source}")


def _similar(one: Tensor, two: Tensor, what: str) -> Distance:
    itself = torch.eye(len(one), dtype=torch.bool)
    p, q = ((x @ x.T / SHARP).masked_fill(itself, -1e4).log_softmax(-1) for x in (one, two))
    kld = float((p.exp() * (p - q)).sum(-1).double().mean())
    top = float((p.argmax(-1) == q.argmax(-1)).float().mean())
    return Distance(kld, top, len(one), None, float((one * two).sum(-1).mean()), what)


@torch.inference_mode()
def times(before: Any, after: Any, held: Held) -> Times:
    """The time of one row in each model, in turn."""
    row = _first(before, held.compare[0])
    main = before.target + before.entrances()[-1 if before.target else 0].front.main
    forward = _median([lambda m=m: m(**row) for m in (before, after)])
    step = None
    if before.generates and held.real:
        steps = [_step(m, row, main) for m in (before, after)]
        step = _median(steps)
    shape = " x ".join(map(str, row[main].shape))
    return Times(forward, step, f"{main} {shape}", conditions())


def _first(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first row of a batch of text; a batch of media as it is, whose entries are not rows."""
    rows = {v.shape[0] for v in inputs.values()}
    return {n: v[:1] for n, v in inputs.items()} if len(rows) == 1 and model.reads_text else inputs


def _step(model: Any, row: dict[str, Tensor], main: str) -> Any:
    """A call that decodes one token behind the row, again and again."""
    length = row[main].shape[1]
    state = model.start(1, length)
    model(**{n: v[:, :-1] if n == main else v for n, v in row.items()}, state=state)

    def step() -> None:
        state.mark()
        model(**{main: row[main][:, -1:]}, state=state)
        state.trim(length - 1)

    return step


def _median(calls: list[Any]) -> tuple[float, float]:
    """Median milliseconds of two calls, in turn."""
    taken: list[list[float]] = [[], []]
    for call in calls:
        call()
    for _ in range(ROUNDS):
        for found, call in zip(taken, calls, strict=True):
            began = time.perf_counter()
            call()
            found.append(1e3 * (time.perf_counter() - began))
    return statistics.median(taken[0]), statistics.median(taken[1])
