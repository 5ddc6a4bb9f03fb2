"""Inputs for any model, its outputs, and the comparison of two results.

B batch, T time, D width, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from anyformer.contract.subjects import Subject
from anyformer.generate.decoding import rows_of
from anyformer.skeletons.base import Output, Skeleton

REAL = 1e-4  # of the largest value: real weights have a few huge activations, and rounding is relative to these
scaled: ContextVar[bool] = ContextVar("scaled", default=False)  # True for real weights
WIDE = 0.2  # the share of global tokens, for models that take them
RTOL, ATOL = 1.3e-6, 1e-5  # torch.testing.assert_close's own for float32


class Failed(AssertionError):
    """A breach of the contract; the message names the place and the difference."""


def expect(holds: bool, message: str) -> None:
    """Raises Failed with the message unless it holds."""
    if not holds:
        raise Failed(message)


def close(actual: Tensor, expected: Tensor, what: str, rtol: float = RTOL, atol: float = ATOL) -> float:
    """The largest difference; with real weights as a share of the largest value.

    Raises:
        Failed: if the two are not the same within the tolerance, or in shape, or if either is not finite.
    """
    expect(actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    if not actual.numel():
        return 0.0
    expect(bool(actual.isfinite().all()), f"{what}: not finite")
    difference = (actual - expected).detach().abs()
    largest = max(1.0, float(expected.detach().abs().max())) if scaled.get() else 1.0
    if scaled.get() and atol:
        atol = max(atol, REAL * largest)
    if not bool((difference <= atol + rtol * expected.abs()).all()):
        raise Failed(f"{what}: differs by {difference.max():.2e}, where values reach {expected.abs().max():.2e}")
    return float(difference.max()) / largest


@dataclass(frozen=True)
class Batch:
    """One input of a model, as the keyword arguments of its `forward`, and its padding masks.

    Args:
        inputs: the keyword arguments.
        keep: (B, T) True = real, over the tokens of `logits`; None = all.
        source: (B, S) the same for the source of an encoder-decoder.
        across: the outputs with entries of several rows.
        full: the paths of inner models without padding in their inputs.
        places: (B, P) the same over the positions of the stream, if a unit of the input has several.
        counted: the inputs whose axis 1 the padding mask counts.
        inserts: of inputs with an entry for each medium, the row, first position and end of every entry, (N, 3).
        padding: the padding masks among the inputs.
        positioned: the inputs over positions of the stream.
        square: the inputs whose axis 2 the padding mask counts, too: what lies between two nodes.
        pairs: the outputs whose axis 2 it counts, too.
    """

    inputs: dict[str, Tensor]
    keep: Tensor | None = None
    source: Tensor | None = None
    across: frozenset[str] = frozenset()
    full: tuple[str, ...] = ()
    places: Tensor | None = None
    counted: frozenset[str] = frozenset()
    inserts: Mapping[str, Tensor] = field(default_factory=dict)
    padding: frozenset[str] = frozenset()
    positioned: frozenset[str] = frozenset()
    square: frozenset[str] = frozenset()
    pairs: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def row(self, i: int) -> Batch:
        """Row `i` on its own, without padding."""
        alone = dict[str, Tensor]()
        for name, value in self.inputs.items():
            if name in self.padding:
                continue
            if name in self.inserts:
                own = self.inserts[name][:, 0] == i
                alone |= {name: value[own]} if bool(own.any()) else {}
                continue
            keep = self.mask(name, self.source is not None and name in ("input_ids", "token_type_ids"))
            padded = keep is not None and name in self.counted
            alone[name] = value[i][keep[i]][None] if keep is not None and padded else value[i][None]
            if keep is not None and name in self.square:
                alone[name] = alone[name][:, :, keep[i]]
        kept = {n: getattr(self, n) for n in ("across", "counted", "padding", "positioned", "square", "pairs")}
        return Batch(alone, **kept)

    def mask(self, name: str, source: bool = False) -> Tensor | None:
        """The padding mask over axis 1 of an input; `source`: it is one of the source."""
        return self.source if source else self.places if name in self.positioned else self.keep

    def fitting(self, value: Tensor) -> Tensor | None:
        """The padding mask over axis 1 of an output or its labels."""
        over_positions = self.places is not None and value.shape[1] == self.places.shape[1]
        return self.places if over_positions else self.keep

    def rows(self, index: list[int]) -> Batch:
        """Some rows, in this order."""
        owners = {name: spans[:, 0] for name, spans in self.inserts.items()}
        picked, _ = rows_of(self.inputs, owners, torch.tensor(index))
        spans, rows = rows_of(self.inserts, owners, torch.tensor(index))
        spans = {name: torch.cat((rows[name][:, None], value[:, 1:]), 1) for name, value in spans.items()}
        keep, source, places = (None if k is None else k[index] for k in (self.keep, self.source, self.places))
        return replace(self, inputs=picked, keep=keep, source=source, places=places, inserts=spans)

    def begun(self, name: str, start: int, end: int) -> dict[str, Tensor]:
        """The entries of an input of media that begin at the positions from `start` to `end`, by name."""
        first = self.inserts[name][:, 1]
        chosen = (first >= start) & (first < end)
        return {name: self.inputs[name][chosen]} if bool(chosen.any()) else {}

    def stop(self, end: int) -> int:
        """The first position from `end` on where no row is inside a medium."""
        spans = [span for each in self.inserts.values() for span in each.tolist()]
        while inside := [last for _, first, last in spans if first < end < last]:
            end = max(inside)
        return end

    def with_(self, **inputs: Tensor) -> Batch:
        """The batch with other inputs."""
        return replace(self, inputs={**self.inputs, **inputs})

    def to(self, dtype: torch.dtype) -> Batch:
        """The batch with pictures and other numbers in this type."""
        return self.with_(**{n: v.to(dtype) for n, v in self.inputs.items() if v.is_floating_point()})

    def plain(self) -> Batch:
        """The batch without global tokens."""
        return replace(self, inputs={n: v for n, v in self.inputs.items() if n != "global_attention_mask"})

    def has_rows(self, name: str) -> bool:
        """True if the output `name` is a tensor of rows, each from its own input alone."""
        return not name.startswith("aux.") and name not in self.across

    def real(self, name: str, value: Tensor, i: int) -> Tensor:
        """Row `i` of the output `name`, at real tokens only; an output without rows, whole."""
        if not self.has_rows(name):
            return value
        if name.startswith(self.full):
            return value[i]
        keep = self.source if name == "memory" else self.keep
        if name != "memory" and self.places is not None and value.shape[1:2] == self.places.shape[1:]:
            keep = self.places
        if keep is None or value.ndim < 3:
            return value[i]
        return value[i][keep[i]][:, keep[i]] if name in self.pairs else value[i][keep[i]]


def draw(
    subject: Subject,
    rng: random.Random,
    lengths: Iterable[int],
    side: str = "none",
    source: Iterable[int] = (),
    media: bool = True,
) -> Batch:
    """Random inputs, one row for each of `lengths`: of units, or of positions where a position takes several units.

    Args:
        side: of padding: left, right, mixed (each row its own), or none (all rows are as long as the first). Right for
            a front-end that takes no other.
        source: lengths of the sources of an encoder-decoder; as `lengths` by default, backwards.
        media: with media inside the text, where the model reads some.
    """
    lengths = list(lengths)
    noise = torch.Generator().manual_seed(rng.randrange(1 << 30))
    model, keeps = subject.model, dict[str, Tensor | None]()
    inputs: dict[str, Tensor] = {}
    places = None
    for entrance in model.entrances():
        if entrance.mask is None:
            example = model.example(len(lengths), {}, noise)
            inputs |= {name: value for name, value in example.items() if name in entrance.inputs()}
            continue
        own = (list(source) or lengths[::-1]) if subject.has_source and entrance.prefix != model.target else lengths
        if entrance.front.right and side != "none":
            own, side = [entrance.front.least(n) + rng.randint(0, 1) for n in own], "right"
        else:
            own = [entrance.front.least(n) for n in own]
        alike = next(iter(keeps.values()), None) if not subject.has_source else None  # padded like the first input
        keep = None if side == "none" else masks(rng, own, side) if alike is None else alike
        keeps[entrance.prefix] = keep
        example = entrance.front.example(len(own), (own[0] if keep is None else max(own),), noise)
        inputs |= {entrance.prefix + name: value for name, value in example.items()}
        if keep is not None:
            inputs[entrance.mask] = keep.long()
            places = entrance.front.keep(keep, example) if entrance.prefix == model.target else places
    keep = keeps.get(model.target)
    if "global_attention_mask" in model.inputs():
        wide = torch.rand(inputs["input_ids"].shape, generator=noise) < WIDE
        wide[0, -1 if keep is None else int(keep[0].nonzero().max())] = True  # at least one
        inputs["global_attention_mask"] = wide.long()
    full = tuple(f"{path}." for path, inner in model.named_modules() if path and reads_whole(inner))
    source_keep = keeps.get("") if subject.has_source else None
    counted = frozenset(name for name, read in model.inputs().items() if read.counted)
    required = {name for name, read in model.inputs().items() if read.required or read.counted}
    made = model.complete(inputs if media else {n: v for n, v in inputs.items() if n in required})
    padding = frozenset(entrance.mask for entrance in model.entrances() if entrance.mask is not None)
    positioned = frozenset(name for name, read in model.inputs().items() if read.positions)
    square = frozenset(name for name, read in model.inputs().items() if len(read.counted) > 1)
    inserts = model.inserts(made)
    axes = (padding, positioned, square, model.pairs)
    return Batch(made, keep, source_keep, model.across, full, places, counted, inserts, *axes)


def reads_whole(model: Any) -> bool:
    """True for a model without padding in its inputs."""
    return isinstance(model, Skeleton) and not any(entrance.mask for entrance in model.entrances())


def content(subject: Subject, batch: Batch, rng: random.Random, prefix: str | None = None) -> dict[str, Tensor]:
    """Other content, in the same sizes, for the inputs that a padding mask covers.

    Args:
        prefix: of a single entrance.
    """
    noise, inputs = torch.Generator().manual_seed(rng.randrange(1 << 30)), dict[str, Tensor]()
    for entrance in subject.model.entrances():
        if entrance.mask is not None and prefix in (None, entrance.prefix):
            count = batch.inputs[entrance.prefix + entrance.front.main].shape[1]
            made = {entrance.prefix + n: v for n, v in entrance.front.example(len(batch), (count,), noise).items()}
            inputs |= {name: value for name, value in made.items() if name in batch.inputs}
    whole = subject.model.complete({**batch.inputs, **inputs})  # the tokens that belong to media stay
    return {name: whole[name] for name in inputs}


def changed_from(batch: Batch, other: dict[str, Tensor], at: int) -> Batch:
    """The batch with this other content from unit `at` on."""
    return batch.with_(**{n: torch.cat((batch.inputs[n][:, :at], v[:, at:]), 1) for n, v in other.items()})


def several(model: Any) -> int:
    """Positions of the stream for each decoded unit: one for a token, three for a step."""
    front = next((e.front for e in model.entrances() if e.prefix == model.target and e.mask), None)
    if front is None:
        return 1
    one = front.example(1, (1,), torch.Generator())
    return front.length(one) // front.units(one)


def masks(rng: random.Random, lengths: list[int], side: str) -> Tensor:
    """A padding mask (B, T), True = real, with padding on that side of each row."""
    keep = torch.zeros(len(lengths), max(lengths), dtype=torch.bool)
    for row, length in zip(keep, lengths, strict=True):
        here = rng.choice(("left", "right")) if side == "mixed" else side
        row[: length if here == "right" else None][-length:] = True
    return keep


def outputs(out: Output) -> dict[str, Tensor]:
    """All tensors that a model returns, by name."""
    named = {"hidden": out.hidden, "logits": out.logits, "pooled": out.pooled, "memory": out.memory}
    named |= {f"heads.{name}": value for name, value in out.heads.items()} | {
        f"aux.{name}": v for name, v in out.aux.items()
    }
    named |= {f"beside.{name}": value for name, value in out.beside.items()}
    return {name: value for name, value in named.items() if value is not None}


def run(model: Any, batch: Batch) -> dict[str, Tensor]:
    """The model's outputs for a batch, without gradients."""
    with torch.no_grad():
        return outputs(model(**batch.inputs))


def goal(model: Any, batch: Batch, seed: int = 0) -> Tensor:
    """A scalar with a gradient that reaches everything: a random combination of all outputs at real tokens."""
    noise = torch.Generator().manual_seed(seed)
    total: Any = 0.0
    for name, value in outputs(model(**batch.inputs)).items():
        for i in range(len(batch)):
            here = batch.real(name, value, i)
            total = total + (here * torch.randn(here.shape, generator=noise)).sum()
    return total


def gradients(model: Any, batch: Batch) -> dict[str, Tensor]:
    """The gradient of `goal` by every parameter that has one."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    slopes = torch.autograd.grad(goal(model, batch), parameters, allow_unused=True)
    return {n: g for n, g in zip(names, slopes, strict=True) if g is not None}


def slopes_agree(actual: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> float:
    """The result of `same` for gradients: sums over a batch, so the absolute tolerance grows with the largest value of
    each, with real weights with the largest of all: the true gradient of a key bias is 0, the computed one is noise."""
    expect(
        actual.keys() == expected.keys(),
        f"{what}: gradients only on one side: {sorted(actual.keys() ^ expected.keys())}",
    )
    sizes = {n: float(g.abs().max()) if g.numel() else 0.0 for n, g in expected.items()}
    most = max(sizes.values(), default=0.0) if scaled.get() else 0.0
    atol = {n: ATOL * max(1.0, size, most) for n, size in sizes.items()}
    return max(
        (close(actual[n], g, f"{what}: gradient of {n}", atol=atol[n]) for n, g in expected.items()), default=0.0
    )


def same(
    actual: dict[str, Tensor], expected: dict[str, Tensor], what: str, rtol: float = RTOL, atol: float = ATOL
) -> float:
    """The largest difference of two sets of named tensors."""
    expect(actual.keys() == expected.keys(), f"{what}: {sorted(actual.keys() ^ expected.keys())} only on one side")
    return max((close(actual[n], expected[n], f"{what}: {n}", rtol, atol) for n in expected), default=0.0)
