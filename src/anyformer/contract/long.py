"""Item 20: texts and caches far beyond `tiny`'s context, past every window, chunk and block."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch

from anyformer.contract.behaviour import Decoding
from anyformer.contract.check import LeftOut, check, decodes, pads
from anyformer.contract.numbers import compare
from anyformer.contract.oracle import meet
from anyformer.contract.probe import ATOL, close, draw
from anyformer.contract.subjects import Subject, apart_from_tiny
from anyformer.core import hyper, pages
from anyformer.hub.tables.weights import Hub
from anyformer.parts.positions import Scaling

ROOM = 1152  # tokens: the longer context of `tiny`
LENGTHS = (257, 1100)
RESIDUES = 70  # more than two chunks of lines
PIECES = (257, 1, 1, 1, 700, 130)  # pieces of the longest text through a cache; the rest token by token


def stretched(subject: Subject) -> Subject:
    """The same subject with a context for long texts.

    Raises:
        LeftOut: if no hyperparameter lengthens its context.
    """
    if subject.limit is None or subject.limit >= max(LENGTHS):
        return subject
    for change in changes(subject):
        try:
            other = change()
            if other.limit is None or other.limit >= max(LENGTHS):
                return other
        except ValueError:  # its parts do not fit each other: axes of positions that are too short
            continue
    raise LeftOut("no single hyperparameter gives it a longer context")


def changes(subject: Subject) -> Iterator[Any]:
    """Changes that lengthen the context: of the hyperparameter of that name, or of one with a value near the limit;
    without a page, of every option `context` of the recipe."""
    name = f"{subject.name}, {ROOM} tokens"
    if subject.page is None:
        paths = {path: ROOM for path, value in subject.recipe.walk() if path.endswith("context") and value is not None}
        yield lambda: Subject(name, subject.recipe.but(paths))
        return
    page, limit = pages.page(subject.page), subject.limit or 0
    held = hyper.leaves(subject.config)
    near = [n for n, v in held.items() if type(v) is int and limit <= v <= limit + 4]
    for field in sorted(near, key=lambda n: not n.endswith("context")):
        config = hyper.changed(subject.config, {field: held[field] - limit + ROOM})
        yield lambda config=config: Subject(name, page.recipe(config), subject.page, config)


@check(20, "files", later=apart_from_tiny, needs=pads)
def parity_of_long_texts(subject: Subject, hub: Hub) -> float:
    """Texts of 257 and 1,100 tokens: outputs and hidden states are the oracle's. Proteins have `RESIDUES`: pairs cost
    the cube of the length."""
    longer = stretched(subject)
    sizes = (RESIDUES,) if subject.outline.pairs else LENGTHS
    side, rng, each = meet(longer, hub), random.Random(50), positions_each(longer)
    return max(compare(side, draw(longer, rng, [n // each], source=[300]), f"{n} tokens") for n in sizes)


def positions_each(subject: Subject) -> int:
    """The positions of one unit of its input: 1 for a token, 3 for a step of a trajectory; 1 if it takes several."""
    front = next(e.front for e in subject.model.entrances() if e.mask and e.prefix == subject.model.target)
    example = front.example(1, (front.least(4),), torch.Generator().manual_seed(0))
    return max(1, front.length(example) // front.units(example))


def steady(subject: Subject) -> str | None:
    """The reason why checks of long caches do not apply, or None."""
    if any(s.by_length for s in subject.values(Scaling)):
        return "its turns depend on the length: what a state holds of a shorter text is another thing"
    return decodes(subject)


@check(20, "model", later=apart_from_tiny, needs=steady)
def caching_changes_nothing_in_long_texts(subject: Subject) -> float:
    """1,100 tokens through a cache, in pieces and token by token, padded on the left, give the whole text's logits."""
    longer = stretched(subject)
    count = max(LENGTHS)
    batch = draw(longer, random.Random(51), [count, count - 69], "left", source=[300, 257])
    steps, at, worst = Decoding(longer, batch), 0, 0.0
    with torch.no_grad():
        expected = longer.model(**batch.inputs).logits
        atol = ATOL * max(1.0, float(expected.abs().max()))
        while at < count:
            number = sum(at >= sum(PIECES[: i + 1]) for i in range(len(PIECES)))
            end = at + (PIECES[number] if number < len(PIECES) else 1)
            actual = longer.model(**steps.piece(at, end), state=steps.state).logits
            for i in range(2):
                keep = batch.keep[i, at:end]  # type: ignore[index]
                what = f"tokens {at} to {end} of {count}, row {i}"
                worst = max(worst, close(actual[i][keep], expected[i, at:end][keep], what, atol=atol))
            at = end
    return worst
