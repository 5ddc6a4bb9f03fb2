"""The quality of a program against the model as loaded: the same tokens, compared pair by pair.

d_i = loss_i(program) - loss_i(model)        mean d +- its standard error        KLD_i = sum_v p_v log(p_v / q_v)

N tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LENGTH = 512  # tokens of a window
STEPS = 64  # tokens of a window that is read one by one
BOUNDS = {"float32": 1e-4, "int8": 1e-3, "int4": 5e-3}  # the largest share of the log loss that a form may add


@dataclass(frozen=True)
class Quality:
    """The comparison of one program with the model.

    Attributes:
        loss: mean log loss of the model as loaded. more: what the program adds to it. error: standard error of that.
        kld: mean Kullback-Leibler divergence of the program's distribution. tokens: compared. bound: the most that
            `more` and `kld` may be. text: True if the tokens are real text.
    """

    loss: float
    more: float
    error: float
    kld: float
    tokens: int
    bound: float
    text: bool

    @property
    def good(self) -> bool:
        """False if it is worse than the bound beyond doubt, by two standard errors, or on the model's own
        distribution: the divergence is what a text drawn from the model would lose."""
        return self.more - 2 * self.error <= self.bound and self.kld <= self.bound  # NaN is false

    def __str__(self) -> str:
        perplexity = f"perplexity {math.exp(min(self.loss + self.more, 700)):.4g}, {math.exp(min(self.loss, 700)):.4g}"
        return (
            f"{perplexity} as loaded; log loss {self.more:+.5f} ± {self.error:.5f} (bound {self.bound:.5f}), "
            f"KLD {self.kld:.1e}, {self.tokens:,} {'tokens of text' if self.text else 'random tokens'}"
        )


def sample(model: Any, windows: int, length: int = LENGTH) -> tuple[Tensor, bool]:
    """Rows of tokens (windows, length): of Python's own documentation, or, without a tokenizer, random ones."""
    length = min(length, model.context or length)
    if model.tokenizer is not None:
        from pydoc_data.topics import topics

        ids = model.tokenizer.encode("\n\n".join(topics[name] for name in sorted(topics))[: 16 * windows * length])
        if len(ids) >= 2 * length:
            count = min(windows, len(ids) // length)
            apart = len(ids) // count
            return torch.tensor([ids[n * apart : n * apart + length] for n in range(count)]), True
    noise = torch.Generator().manual_seed(0)
    known = torch.tensor([n for n in range(model.vocab) if n not in model.placeholders])
    return known[torch.randint(0, len(known), (windows, length), generator=noise)], False


@torch.inference_mode()
def compare(model: Any, engine: Any, form: str, rows: tuple[Tensor, bool]) -> Quality:
    """The quality of an engine with one program.

    Args:
        rows: from `sample`.
    """
    ids, text = rows
    losses, differences, divergences = [], [], []
    for ours, theirs, targets in _scores(model, engine, ids):
        ours, theirs = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
        mine, its = (-t.gather(-1, targets[:, None])[:, 0] for t in (theirs, ours))
        losses.append(mine)
        differences.append(its - mine)
        divergences.append((theirs.exp() * (theirs - ours)).sum(-1))
    d, loss, kld = (torch.cat(t) for t in (differences, losses, divergences))
    bound = BOUNDS[form] * float(loss.mean())
    return Quality(
        float(loss.mean()), float(d.mean()), float(d.std() / len(d) ** 0.5), float(kld.mean()), len(d), bound, text
    )


def _scores(model: Any, engine: Any, ids: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The scores of the program and of the model, (N, V) each, and the next tokens, (N,)."""
    if engine.plan.single:
        yield from _one_by_one(model, engine, ids[:, : STEPS + 1])
        return
    name = engine.target + engine.entrances()[-1].front.main if engine.target else engine.takes
    for row in ids[:, None]:
        states = [model.start(1, row.shape[1]) for _ in range(2)]
        for state in states:
            opened(model, state, row)
        ours = engine(**{name: row[:, :-1]}, state=states[0]).logits[0]
        theirs = model(**{name: row[:, :-1]}, state=states[1]).logits[0]
        yield ours, theirs, row[0, 1:]


def _one_by_one(model: Any, engine: Any, ids: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    name = engine.target + engine.entrances()[-1].front.main if engine.target else engine.takes
    states = [model.start(len(ids), ids.shape[1]) for _ in range(2)]
    for state in states:
        opened(model, state, ids)
    for place in range(ids.shape[1] - 1):
        now = {name: ids[:, place : place + 1]}
        ours, theirs = engine(**now, state=states[0]).logits[:, -1], model(**now, state=states[1]).logits[:, -1]
        yield ours, theirs, ids[:, place + 1]


def opened(model: Any, state: Any, ids: Tensor) -> None:
    """Reads a source, if the model has one, and the token that begins a target."""
    if not model.target:
        return
    source = model.entrances()[0]
    noise = torch.Generator().manual_seed(0)
    given = model.example(len(ids), {}, noise)
    given = {name: value for name, value in given.items() if name in source.inputs()}
    if source.front.vocab is not None:
        given[source.front.main] = ids
    begin = ids.new_full((len(ids), 1), getattr(model, "begin_id", 0))
    target = model.target + model.entrances()[-1].front.main
    model(**given, **{target: begin}, state=state)
