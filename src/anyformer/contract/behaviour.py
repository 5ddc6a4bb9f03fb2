"""Items 6 to 8: no row sees another one or the padding, no token the future; decoding with a cache changes nothing."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from anyformer.contract.check import LeftOut, check, decodes, pads
from anyformer.contract.probe import (
    Batch,
    changed_from,
    close,
    content,
    draw,
    expect,
    gradients,
    run,
    several,
    slopes_agree,
)
from anyformer.contract.subjects import Subject, apart_from_tiny
from anyformer.core.state import State
from anyformer.parts.attention.cache import Sliding
from anyformer.parts.attention.masks import FAR, Mask
from anyformer.parts.attention.windows import Windows
from anyformer.parts.codes import ConvGrid
from anyformer.parts.positions import Scaling
from anyformer.parts.recurrent.chunked import Recurrent
from anyformer.parts.sound.pieces import SoundEncoder

LONGEST = 24  # tokens of a random text


def lengths(subject: Subject, rng: random.Random, rows: int) -> list[int]:
    """Random lengths that the model accepts."""
    return [rng.randint(1, min(LONGEST, subject.limit or LONGEST)) for _ in range(rows)]


@check(6, "model", examples=8, checkpoint=True)
def batching_changes_nothing(subject: Subject, rng: random.Random) -> float:
    """A row of a padded batch, at any index and with padding on any side, gives the same result as alone."""
    batch = draw(subject, rng, lengths(subject, rng, 3), rng.choice(("left", "right", "mixed")))
    order = rng.sample(range(3), 3)
    together = run(subject.model, batch.rows(order))
    worst = 0.0
    for place, i in enumerate(order):
        alone = run(subject.model, batch.row(i))
        for name in filter(batch.has_rows, alone):
            actual = batch.rows(order).real(name, together[name], place)
            worst = max(worst, close(actual, alone[name][0], f"{name}, row {i}"))
    return worst


@check(6, "model", examples=4, needs=pads, checkpoint=True)
def content_of_padding_changes_nothing(subject: Subject, rng: random.Random) -> float:
    """Other tokens at padded positions, or NaN for numbers, change nothing, gradients included."""
    sizes = lengths(subject, rng, 2)
    batch = draw(subject, rng, sizes, rng.choice(("left", "right")))
    inputs = dict(batch.inputs)
    for name, new in content(subject, batch, rng).items():
        source = batch.source is not None and not name.startswith(subject.model.target)
        keep = batch.mask(name, source)
        assert keep is not None
        new = torch.full_like(new, float("nan")) if new.is_floating_point() else new
        inputs[name] = torch.where(keep.view(*keep.shape, *[1] * (new.ndim - 2)), inputs[name], new)
    other = batch.with_(**inputs)
    a, b = run(subject.model, batch), run(subject.model, other)
    worst = max(
        close(batch.real(name, b[name], i), batch.real(name, a[name], i), f"other padding: {name}", 0.0, 0.0)
        for name in a
        for i in range(len(batch))
    )
    return max(worst, slopes_agree(gradients(subject.model, other), gradients(subject.model, batch), "other padding"))


@check(6, "model", examples=3, needs=pads, checkpoint=True, later=apart_from_tiny)
def rows_of_padding_are_harmless(subject: Subject, rng: random.Random) -> float:
    """A row without any real token does not change its neighbours, and everything is finite."""
    batch = draw(subject, rng, lengths(subject, rng, 2), "left")
    alone = run(subject.model, batch)
    empty = batch.rows([*range(len(batch)), 0])
    for name in empty.inputs:
        if name.endswith("attention_mask") and name not in empty.inserts:
            empty.inputs[name][-1] = 0
    together = run(subject.model, empty)
    expect(all(v.isfinite().all() for v in together.values()), "an empty row gives values that are not finite")
    names = filter(batch.has_rows, alone)
    return max(close(together[n][:2], alone[n], f"beside an empty row: {n}") for n in names)


@check(7, "model", examples=6, needs=decodes, checkpoint=True)
def future_tokens_change_nothing(subject: Subject, rng: random.Random) -> float:
    """Other tokens from some position on change no logit before that position."""
    count = rng.randint(2, min(LONGEST, subject.limit or LONGEST))
    batch, cut = draw(subject, rng, [count, count], source=[5, 5]), rng.randint(1, count - 1)
    other = changed_from(batch, content(subject, batch, rng, subject.model.target), cut)
    before, after = run(subject.model, batch), run(subject.model, other)
    each = {name: before[name].shape[1] // count for name in ("hidden", "logits")}
    return max(close(after[n][:, : cut * k], before[n][:, : cut * k], f"{n} before {cut}") for n, k in each.items())


def sees_all(subject: Subject) -> str | None:
    """The reason why not every position sees every other one, or None."""
    hides = (
        subject.causal
        or subject.values(Mask)
        or subject.holds(Windows)
        or subject.holds(ConvGrid)
        or subject.holds(SoundEncoder)
    )
    return "it is not bidirectional" if hides else None


@check(7, "model", needs=sees_all)
def encoder_is_bidirectional(subject: Subject) -> float:
    """Without a mask, the output at every position depends on the input at every other position."""
    batch = draw(subject, random.Random(7), [6])
    entered: list[Tensor] = []

    def enter(module: Any, inputs: Any, output: Tensor) -> None:
        entered.append(output if output.requires_grad else output.requires_grad_())  # a front-end without weights

    hook = subject.model.embed.register_forward_hook(enter)
    try:
        hidden = subject.model(**batch.inputs).hidden  # (1, T, D)
    finally:
        hook.remove()
    for at in (0, hidden.shape[1] - 1):
        (gradient,) = torch.autograd.grad(hidden[:, at].square().sum(), entered[0], retain_graph=True)
        blind = [i for i in range(gradient.shape[1]) if not bool(gradient[:, i].ne(0).any())]
        expect(not blind, f"position {at} does not see the positions {blind}")
    return 0.0


@check(7, "model", examples=4, needs=decodes, checkpoint=True, later=apart_from_tiny)
def no_gradient_from_the_future(subject: Subject, rng: random.Random) -> float:
    """The gradient of the logits at a position by inputs at later positions is exactly 0; by earlier ones it is not."""
    count = rng.randint(3, min(LONGEST, subject.limit or LONGEST))
    batch, at = draw(subject, rng, [count], source=[5]), rng.randint(1, count - 2)
    entered: list[Tensor] = []
    hook = subject.model.embed.register_forward_hook(lambda module, inputs, output: entered.append(output))
    try:
        logits = subject.model(**batch.inputs).logits
    finally:
        hook.remove()
    (gradient,) = torch.autograd.grad(logits[:, at].square().sum(), entered[-1])  # (1, T, D)
    end = (at + 1) * several(subject.model)
    late = float(gradient[:, end:].abs().max())
    expect(late == 0.0, f"the logits of token {at} depend on later ones: gradient {late:.2e}")
    expect(bool((gradient[:, :end].abs().amax(-1) > 0).any()), f"the logits of token {at} depend on nothing")
    return 0.0


class Decoding:
    """A batch fed to a model piece by piece; each is compared with the whole text up to its end, without a cache."""

    def __init__(self, subject: Subject, batch: Batch):
        self.subject, self.model, self.batch = subject, subject.model, batch
        self.state: State = self.model.start(len(batch))
        self.at, self.worst, self.each = 0, 0.0, several(self.model)
        entrance = next(e for e in self.model.entrances() if e.prefix == self.model.target)
        self.mask = entrance.mask
        self.names = [name for name in entrance.inputs() if name != self.mask and name in batch.inputs]

    @property
    def total(self) -> int:
        return self.batch.inputs[self.names[0]].shape[1]

    def piece(self, start: int, end: int, whole_mask: bool = False) -> dict[str, Tensor]:
        """The inputs of one call; a source, or pictures beside the text, are with the first piece only."""
        others = {n: v for n, v in self.batch.inputs.items() if n not in self.names and n != self.mask}
        inputs = {} if start else {n: others[n] for n in others.keys() - self.batch.inserts}
        for name in self.batch.inserts:
            inputs |= self.batch.begun(name, start, end)
        inputs |= {name: self.batch.inputs[name][:, start:end] for name in self.names}
        if self.mask in self.batch.inputs:
            inputs[self.mask] = self.batch.inputs[self.mask][:, 0 if whole_mask else start : end]
        return inputs

    def feed(self, count: int, whole_mask: bool = False) -> None:
        """Feeds the next `count` tokens, with the mask of these alone or of all so far, as other libraries pass it."""
        end = self.at + count
        with torch.no_grad():
            actual = self.model(**self.piece(self.at, end, whole_mask), state=self.state).logits
            expected = self.model(**self.piece(0, self.batch.stop(end))).logits[:, self.at : end]
        for i in range(len(self.batch)):
            keep = slice(None) if self.batch.keep is None else self.batch.keep[i, self.at : end]
            what = f"tokens {self.at} to {end} of row {i}"
            self.worst = max(self.worst, close(actual[i][keep], expected[i][keep], what))
        self.at = end
        seen = end * self.each
        expect(self.state.length == seen, f"the state holds {self.state.length} positions, expected {seen}")

    def reorder(self, index: list[int]) -> None:
        """Reorders the rows, as in a beam search."""
        self.state.reorder(torch.tensor(index))
        self.batch = self.batch.rows(index)

    def back(self, to: int) -> None:
        """Rolls the cache back to position `to`."""
        self.state.trim(to * self.each)
        self.at = to


def decoding(subject: Subject, rng: random.Random, rows: int = 2, count: int = 0) -> Decoding:
    """A random batch, half of the time with padding on the left."""
    sizes = [count] * rows if count else [rng.randint(2, longest(subject)) for _ in range(rows)]
    return Decoding(subject, draw(subject, rng, sizes if rng.random() < 0.5 else [max(sizes)] * rows, "left"))


def longest(subject: Subject) -> int:
    """The most tokens of a random text. A rotary scaling that depends on the length is steady up to its trained
    length only: beyond, a cache holds old tokens at the angles of a shorter text, and cannot be rolled back."""
    trained = [s.trained for s in subject.values(Scaling) if s.by_length]
    return min(LONGEST, subject.limit or LONGEST, *trained)


@check(8, "model", examples=6, needs=decodes, checkpoint=True)
def caching_changes_nothing(subject: Subject, rng: random.Random) -> float:
    """A text in random pieces through a cache gives the same logits as the whole text."""
    steps = decoding(subject, rng)
    while steps.at < steps.total:
        steps.feed(rng.randint(1, min(5, steps.total - steps.at)), whole_mask=rng.random() < 0.5)
    return steps.worst


@check(8, "model", examples=4, needs=decodes, checkpoint=True, later=apart_from_tiny)
def cached_after_reorder(subject: Subject, rng: random.Random) -> float:
    """A cache with reordered, doubled or dropped rows goes on as the new rows would."""
    steps = decoding(subject, rng, rows=3)
    while steps.at < steps.total:
        steps.feed(rng.randint(1, min(6, steps.total - steps.at)))
        steps.reorder([rng.randrange(len(steps.batch)) for _ in range(rng.randint(1, 4))])
    return steps.worst


@check(8, "model", examples=4, needs=decodes, checkpoint=True, later=apart_from_tiny)
def cached_after_rollback(subject: Subject, rng: random.Random) -> float:
    """A cache that is marked, fed, rolled back to the mark and fed with other tokens has no trace of the first ones."""
    steps = decoding(subject, rng, count=rng.randint(4, longest(subject)))
    steps.feed(rng.randint(1, steps.total - 2))
    for _ in range(2):
        mark = steps.at
        steps.state.mark()
        while steps.at < steps.total and rng.random() < 0.8:
            steps.feed(rng.randint(1, steps.total - steps.at))
        steps.back(mark)
        steps.batch = changed_from(steps.batch, content(subject, steps.batch, rng, subject.model.target), mark)
    steps.feed(steps.total - steps.at)
    return steps.worst


@check(8, "model", needs=lambda s: decodes(s) or (None if windows(s) else "it has no window"), checkpoint=True)
def cached_at_window_boundaries(subject: Subject) -> float:
    """Texts of w - 1, w, w + 1, … tokens, then token by token, give the whole text's logits; memory stays bounded."""
    worst, rng = 0.0, random.Random(8)
    for w in windows(subject):
        for first in (w - 1, w, w + 1, 2 * w, 3 * w + 1):
            steps = Decoding(subject, draw(subject, rng, [3 * w + 6] * 2))
            if first:
                steps.feed(first)
            while steps.at < steps.total:
                steps.feed(1)
            worst = max(worst, steps.worst)
        bytes_at = {}
        state, ids = subject.model.start(1), draw(subject, rng, [1]).inputs
        for count in range(1, 8 * w + 1):
            with torch.no_grad():
                subject.model(**ids, state=state)
            bytes_at[count] = state.bytes()
        if all(isinstance(slot, Sliding | Recurrent) for slot in state.slots.values()):
            expect(
                bytes_at[8 * w] <= bytes_at[4 * w], f"the state grows: {bytes_at[4 * w]} bytes, then {bytes_at[8 * w]}"
            )
    return worst


def windows(subject: Subject) -> list[int]:
    """The widths, in tokens, of windows in the recipe that fit eight times into the longest text."""
    sizes = {mask.reach()[0] + 1 for mask in subject.values(Mask) if mask.reach()[0] < FAR}
    return sorted(w for w in sizes if 8 * w < min(subject.limit or 200, 200))


@check(8, "model", examples=3, needs=decodes, checkpoint=True, later=apart_from_tiny)
def cache_refuses_unsupported_operations(subject: Subject, rng: random.Random) -> float:
    """Another batch size, or a rollback beyond its length or memory, is an error and leaves the cache unchanged."""
    steps = decoding(subject, rng, count=6)
    steps.feed(4)
    for wrong in (-1, 4 * steps.each + 1):
        refuses(lambda n=wrong: steps.state.trim(n), "cannot trim")
    other = {n: v[:1] for n, v in steps.piece(4, 5).items()}
    refuses(lambda: subject.model(**other, state=steps.state), "batch")
    if any(isinstance(slot, Recurrent) for slot in steps.state.slots.values()):
        refuses(lambda: steps.state.trim(3 * steps.each), "mark()")
    steps.feed(2)
    return steps.worst


def refuses(call: Any, word: str) -> None:
    """Raises unless the call is a ValueError that contains the word."""
    try:
        call()
    except ValueError as error:
        expect(word in str(error), f"the error does not contain {word!r}: {error}")
        return
    expect(False, f"it was accepted; expected an error with {word!r}")


@check(
    8,
    "model",
    needs=lambda s: (
        decodes(s)
        or (None if any(v.by_length for v in s.values(Scaling)) else "its positions do not depend on the length")
    ),
)
def long_text_continues_with_its_rope_scaling(subject: Subject) -> float:
    """With a rotary scaling by length, caching changes nothing beyond the trained length, where it is constant."""
    worst, checked = 0.0, False
    for scaling in subject.values(Scaling):
        first = scaling.trained + 3
        turns = [scaling.scale(torch.ones(4), 1e4, torch.tensor([n]))[0] for n in (first, first + 6)]
        if scaling.by_length and torch.equal(*turns):
            steps = Decoding(subject, draw(subject, random.Random(13), [first + 6] * 2))
            steps.feed(first)
            while steps.at < steps.total:
                steps.feed(2)
            worst, checked = max(worst, steps.worst), True
    if not checked:
        raise LeftOut("its scaling changes with every length: there is no steady regime")
    return worst


@check(8, "model", needs=lambda s: decodes(s) or pads(s))
def padding_inside_a_cache_is_correct_or_refused(subject: Subject) -> float:
    """Right padding before more tokens gives either the result of the row alone or an error."""
    batch = draw(subject, random.Random(9), [6, 3], "right", source=[4, 4])
    steps = Decoding(subject, batch)
    drawn = draw(subject, random.Random(10), [2, 2], "none", source=[4, 4]).inputs
    more = {name: drawn[name] for name in steps.names}
    try:
        with torch.no_grad():
            subject.model(**steps.piece(0, 6), state=steps.state)
            actual = subject.model(**more, state=steps.state).logits
    except ValueError as error:
        expect("padding" in str(error), f"the refusal does not mention padding: {error}")
        return 0.0
    worst = 0.0
    for i in range(2):
        row = batch.row(i)
        whole = row.with_(**{n: torch.cat((row.inputs[n], v[i : i + 1]), 1) for n, v in more.items()})
        worst = max(worst, close(actual[i], run(subject.model, whole)["logits"][0, -2:], f"row {i} after its padding"))
    return worst
