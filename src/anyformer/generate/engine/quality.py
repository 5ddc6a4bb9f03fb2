"""The quality of a program against the model as loaded: the same tokens, compared pair by pair.

d_i = loss_i(program) - loss_i(model)        mean d +- its standard error        KLD_i = sum_v p_v log(p_v / q_v)

N tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LENGTH = 512  # tokens of a window
APART = 4  # the divergence of a form, as a multiple of the bound, which 8 bits stay below
STEPS = 64  # tokens of a window that is read one by one
BOUNDS = {"float32": 1e-4, "int8": 1e-3, "int4": 5e-3}  # the largest share of the log loss that a form may add


@dataclass(frozen=True)
class Quality:
    """The comparison of one program with the model.

    Attributes:
        loss: mean log loss of the model as loaded. more: what the program adds to it. error: standard error of that.
        kld: mean Kullback-Leibler divergence of the program's distribution. tokens: compared. bound: the most that
            `more` may be. text: True if the tokens are real text.
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
        """False if it is worse than the bound beyond doubt, by two standard errors, or if the divergence, which random
        tokens show as well, is above `APART` bounds."""
        return self.more - 2 * self.error <= self.bound and self.kld <= APART * self.bound  # NaN is false

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
def compare(model: Any, engines: Sequence[tuple[Any, str]], rows: tuple[Tensor, bool]) -> list[Quality]:
    """The quality of engines with one program each, in their order; the model reads the tokens once.

    Args:
        engines: with the kinds of their forms. rows: from `sample`.
    """
    ids, text = rows
    losses: list[Tensor] = []
    more: list[list[Tensor]] = [[] for _ in engines]
    apart: list[list[Tensor]] = [[] for _ in engines]
    each = _one_by_one if engines[0][0].plan.single else _at_once
    for theirs, found, targets in each(model, [engine for engine, _ in engines], ids):
        theirs = theirs.log_softmax(-1)
        losses.append(-_of(theirs, targets))
        for number, ours in enumerate(found):
            ours = ours.log_softmax(-1)
            more[number].append(-_of(ours, targets) - losses[-1])
            apart[number].append((theirs.exp() * (theirs - ours)).sum(-1).double())
    loss, made = float(torch.cat(losses).mean()), []
    for (_, kind), differences, divergences in zip(engines, more, apart, strict=True):
        d, kld = torch.cat(differences), torch.cat(divergences)
        error = float(d.std() / len(d) ** 0.5)
        made.append(Quality(loss, float(d.mean()), error, float(kld.mean()), len(d), BOUNDS[kind] * loss, text))
    return made


Scores = Iterator[tuple[Tensor, list[Tensor], Tensor]]  # of the model, of each engine, (N, V); the next tokens, (N,)


def _of(logs: Tensor, targets: Tensor) -> Tensor:
    return logs.gather(-1, targets[:, None])[:, 0].double()


def _at_once(model: Any, engines: Sequence[Any], ids: Tensor) -> Scores:
    """A window at a time."""
    for row in ids[:, None]:
        found = []
        for reader in (model, *engines):
            state = model.start(1, row.shape[1])
            opened(model, state, row)
            found.append(reader(**{_reads(model): row[:, :-1]}, state=state).logits[0])
        yield found[0], found[1:], row[0, 1:]


def _one_by_one(model: Any, engines: Sequence[Any], ids: Tensor) -> Scores:
    """A token of every window at a time."""
    ids = ids[:, : STEPS + 1]
    states = [model.start(len(ids), ids.shape[1]) for _ in (model, *engines)]
    for state in states:
        opened(model, state, ids)
    for place in range(ids.shape[1] - 1):
        now = {_reads(model): ids[:, place : place + 1]}
        found = [r(**now, state=s).logits[:, -1] for r, s in zip((model, *engines), states, strict=True)]
        yield found[0], found[1:], ids[:, place + 1]


def _reads(model: Any) -> str:
    """The name of the tokens that are continued."""
    return model.target + model.entrances()[-1].front.main if model.target else model.takes


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
    model(**given, **{_reads(model): begin}, state=state)
