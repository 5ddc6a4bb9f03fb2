"""The number that an explanation is about: a score of one token or class, or the difference of two.

B batch, T positions, C classes or tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anyformer.core.value import nearest
from anyformer.explain.labels import label
from anyformer.generate.classifying import names_of
from anyformer.parts.heads import Logits
from anyformer.skeletons.base import Output
from anyformer.skeletons.forecaster import Forecaster


@dataclass(frozen=True)
class Contrast:
    """Why `a` and not `b`: score(a) - score(b). Tokens as texts or ids, or classes by name or number."""

    a: str | int
    b: str | int


Target = str | int | Contrast | Callable[[Output], Tensor] | None


@dataclass(frozen=True)
class Goal:
    """A target made precise: `goal(output)` is its score for each row, (B,).

    Args:
        name: what it is, for people: "␣Paris - ␣Rome".
        ids: the indices on the last axis of the logits, for each row; two of a contrast.
        at: the position in each row, or None without positions.
        score: the function.
    """

    name: str
    score: Callable[[Output], Tensor]
    ids: tuple[tuple[int, ...], ...] = ()
    at: tuple[int, ...] | None = None

    def __call__(self, out: Output) -> Tensor:
        value = self.score(out)
        if not isinstance(value, Tensor) or value.ndim != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"a target is one number for each row, (batch,); the function returned {got}")
        if not bool(value.isfinite().all()):
            raise ValueError(f"the score of {self.name} is not finite: {value.detach().flatten()[:4].tolist()}")
        return value


def goal(
    model: Any,
    out: Output,
    target: Target = None,
    at: int | list[int] | None = None,
    head: str | None = None,
    inputs: Mapping[str, Tensor] | None = None,
) -> Goal:
    """The precise target of an output.

    Args:
        target: a token (of a text that is one token, or an id), a class (name or number), `Contrast` of two, or a
            function from the `Output` to one number for each row, (B,). None: what the model says, the highest score.
        at: the position, of logits with one for each, or that of each row; by default the last real one of a decoder,
            and the only mask token of an encoder, else the position of the highest score.
        head: the name of the head, of a model with several; the first one by default.
        inputs: of the call, for the place of its mask token.

    Raises:
        ValueError: for a model without logits, a token that is none or several, an unknown class or head, a position
            outside.
    """
    if callable(target) and not isinstance(target, Contrast):
        return Goal(getattr(target, "__name__", "function"), target)
    logits = _logits(model, out, head)
    if isinstance(model, Forecaster):
        return _of_steps(model, logits, target, at if isinstance(at, int) else 0)

    def read(out: Output) -> Tensor:
        return _logits(model, out, head)

    if logits.ndim == 2 and at is not None:
        raise ValueError(f"at={at}: the scores here are of the whole input, not of positions; leave at out")
    if logits.ndim == 2:
        return _of_rows(model, logits, target, read)
    if logits.ndim != 3:
        raise ValueError(
            f"the logits have the shape {tuple(logits.shape)}, neither (batch, classes) nor (batch, positions, "
            "classes); pass a function of the output as target: lambda out: out.logits[:, 0, 3, 3]"
        )
    return _of_positions(model, out, logits, target, _masked(model, inputs) if at is None else at, read)


def narrow(explained: Any, target: Target, at: int | None, head: str | None) -> None:
    """Scores of the one place that a target of tokens needs, instead of all: a vocabulary is large."""
    model, last = explained.model, getattr(explained.model, "head", None)
    if callable(target) or head is not None or not isinstance(last, Logits):
        return
    masked = _masked(model, explained.inputs) if at is None else None

    def place(count: int, keep: Tensor | None, rows: int) -> list[int] | None:
        return masked or _places(model, keep, count, rows, at)

    explained.head, explained.place = last, place


def aimed(explained: Any, out: Output, target: Target, at: int | None, head: str | None) -> Goal:
    """`goal` of an explained call that can be narrow."""
    return goal(explained.model, out, target, explained.places or at, head, explained.inputs)


def _of_steps(model: Forecaster, logits: Tensor, target: Target, at: int) -> Goal:
    """The forecast of step `at` ahead, 0 = the next one, in the unit of the series; of the series' target by number."""
    if "loc" not in model.law.names:
        raise ValueError(
            f"a forecast by {type(model.law).__name__} has no location, but {', '.join(model.law.names)}; pass a "
            "function of the output as target: lambda out: out.logits[:, 0, 0]"
        )
    place, steps, column = model.law.names.index("loc"), logits.shape[1], 0 if target is None else target
    if not -steps <= at < steps:
        raise ValueError(f"at={at}: the forecast has the steps 0 to {steps - 1}")
    columns = logits.shape[2] if logits.ndim == 4 else 1
    if isinstance(column, str) and column.isdecimal():
        column = int(column)
    if not isinstance(column, int) or not 0 <= column < columns:
        raise ValueError(f"target {target!r}: of a forecast it is the number of a series, 0 to {columns - 1}")

    def score(out: Output) -> Tensor:
        assert out.logits is not None
        value = out.beside["shift"] + out.beside["scale"] * out.logits[..., place]  # (B, H) or (B, H, C)
        return value[:, at] if value.ndim == 2 else value[:, at, column]

    return Goal(f"step {at % steps + 1} ahead", score)


def _logits(model: Any, out: Output, head: str | None) -> Tensor:
    if head is not None and head not in out.heads:
        raise ValueError(f"no head {head!r}{nearest(head, list(out.heads))}; it has {', '.join(out.heads) or 'none'}")
    logits = out.logits if head is None else out.heads[head]
    if logits is None:
        raise ValueError(
            f"{type(model).__name__} has no head here, so no token or class has a score; pass a function of the "
            "output as target: lambda out: out.hidden[:, 0, 0], or load it with a task"
        )
    return logits


def _of_rows(model: Any, logits: Tensor, target: Target, read: Callable[[Output], Tensor]) -> Goal:
    ids = _ids(model, target, logits, class_id)
    names = names_of(model, logits.shape[-1])
    index = [torch.tensor(column, device=logits.device)[:, None] for column in zip(*ids, strict=True)]

    def score(out: Output) -> Tensor:
        logits = read(out)
        picked = [logits.gather(1, _for(logits, i))[:, 0] for i in index]
        return picked[0] if len(picked) == 1 else picked[0] - picked[1]

    return Goal(_name([[names[i] for i in row] for row in ids], " - "), score, ids)


def _of_positions(
    model: Any,
    out: Output,
    logits: Tensor,
    target: Target,
    at: int | list[int] | None,
    read: Callable[[Output], Tensor],
) -> Goal:
    places = at if isinstance(at, list) else _places(model, out.keep, logits.shape[1], len(logits), at)
    if places is None:  # the highest score of all, or of the wanted class
        if target is None:
            places = logits.detach().amax(-1).argmax(1).tolist()
        else:
            first = _ids(model, target, logits[:, 0], _either)[0][0]
            places = logits.detach()[:, :, first].argmax(1).tolist()
    rows = torch.arange(len(logits), device=logits.device)
    where = torch.tensor(places, device=logits.device)
    ids = _ids(model, target, logits[rows, where if logits.shape[1] > 1 else 0], _either)
    names = _names(model, ids, logits.shape[-1])
    index = [torch.tensor(column, device=logits.device) for column in zip(*ids, strict=True)]

    def score(out: Output) -> Tensor:
        logits = read(out)
        every = torch.arange(len(logits), device=logits.device)
        place = _for(logits, where) if logits.shape[1] > 1 else 0  # of a pass that scores these places alone
        picked = [logits[every, place, _for(logits, i)] for i in index]
        return picked[0] if len(picked) == 1 else picked[0] - picked[1]

    return Goal(_name(names, " - "), score, ids, tuple(places))


def _masked(model: Any, inputs: Mapping[str, Tensor] | None) -> list[int] | None:
    """The place of the only mask token of each row of an encoder's text, or None."""
    ids = None if inputs is None or model.generates or model.reads_source else inputs.get("input_ids")
    mask = None if model.tokenizer is None else model.tokenizer.role_id("mask_token")
    if ids is None or mask is None or not bool(((ids == mask).sum(1) == 1).all()):
        return None
    return (ids == mask).int().argmax(1).tolist()


def _for(logits: Tensor, index: Tensor) -> Tensor:
    """An index for each row; that of one row for many copies of it."""
    return index.expand(len(logits), *index.shape[1:]) if len(index) == 1 else index


def _places(model: Any, keep: Tensor | None, count: int, rows: int, at: int | None) -> list[int] | None:
    """The position of each row, or None if only the scores can say."""
    if at is not None:
        if not -count <= at < count:
            raise ValueError(f"at={at}: there are the positions 0 to {count - 1}")
        return [at % count] * rows
    if not (model.generates or model.reads_source):
        return None
    if keep is None or keep.shape[1] != count:
        return [count - 1] * rows
    return (count - 1 - keep.flip(1).int().argmax(1)).tolist()


def _ids(model: Any, target: Target, scores: Tensor, find: Callable[..., int]) -> tuple[tuple[int, ...], ...]:
    """The indices for each row of the scores (B, C)."""
    if target is None:
        return tuple((i,) for i in scores.detach().argmax(-1).tolist())
    both: tuple[Any, ...] = (target.a, target.b) if isinstance(target, Contrast) else (target,)
    ids = tuple(find(model, name, scores.shape[-1]) for name in both)
    return (ids,) * len(scores)


def _either(model: Any, name: str | int, count: int) -> int:
    """A token of a model with a tokenizer whose head scores tokens, else a class."""
    texts = model.vocab is not None and count >= model.vocab
    return token_id(model, name) if texts and isinstance(name, str) else class_id(model, name, count)


def _names(model: Any, ids: tuple[tuple[int, ...], ...], count: int) -> list[list[str]]:
    if model.vocab is not None and count >= model.vocab:
        return [[str(i) if model.tokenizer is None else label(model.tokenizer, i) for i in row] for row in ids]
    names = names_of(model, count)
    return [[names[i] for i in row] for row in ids]


def _name(names: list[list[str]], between: str) -> str:
    return ", ".join(dict.fromkeys(between.join(row) for row in names))


def token_id(model: Any, token: str | int) -> int:
    """The id of one token.

    Raises:
        ValueError: without a tokenizer, for a text of several tokens, or an id outside the vocabulary.
    """
    if isinstance(token, int):
        if not 0 <= token < (model.vocab or 0):
            raise ValueError(f"token id {token} is outside the vocabulary: ids go from 0 to {(model.vocab or 0) - 1}")
        return token
    if model.tokenizer is None:
        raise ValueError(f"this model has no tokenizer, so the token {token!r} has no id; pass its id")
    known = model.tokenizer.core.token_to_id(token)
    ids = model.tokenizer.encode(token, special=False)
    if len(ids) == 1:
        return ids[0]
    if known is not None:
        return known
    if not ids:
        raise ValueError(f"{token!r} is no token of this model")
    pieces = ", ".join(repr(model.tokenizer.decode([i], skip_special=False)) for i in ids[:8])
    raise ValueError(
        f"{token!r} is {len(ids)} tokens, {pieces}; a target is one of them; a word often begins with a space"
    )


def class_id(model: Any, name: str | int, count: int) -> int:
    """The number of a class.

    Raises:
        ValueError: for an unknown one, with the nearest names.
    """
    if isinstance(name, int):
        if not 0 <= name < count:
            raise ValueError(f"class {name} does not exist: classes go from 0 to {count - 1}")
        return name
    names = names_of(model, count)
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < count:
        return int(name)
    shown = ", ".join(names[:12]) + (" …" if len(names) > 12 else "")
    raise ValueError(f"no class {name!r}{nearest(name, names)}; the classes are {shown}")


def parsed(text: str | None) -> Target:
    """The target of a command line: "A - B" is a contrast, and with a space in front of A, B has one, too."""
    if text is None or " - " not in text:
        return text
    a, _, b = text.partition(" - ")
    return Contrast(a, f" {b}" if a.startswith(" ") and not b.startswith(" ") else b)
