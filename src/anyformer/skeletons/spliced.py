"""Decoders with media inside a text. B rows, T tokens, N media, P positions that they take, D width, S a tower's width.

```
pixel_values (N, C, height, width) -> tower -> project -> (P, D) ──┐ in place of placeholders
input_ids (B, T) ────────────────────────────────────────> embed ──┴─> block x depth -> norm -> head -> logits
```
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anyformer.core import pages
from anyformer.core.checks import readable, traced
from anyformer.core.flow import Flow
from anyformer.core.front import Entrance, FrontEnd, Input, Inputs
from anyformer.core.mixer import Mixer
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Head, Norm
from anyformer.core.state import State
from anyformer.parts.embeddings import Entry, Inserted
from anyformer.parts.grid import Axes
from anyformer.parts.positions import RelativeBias
from anyformer.skeletons.base import Output
from anyformer.skeletons.decoder import CausalLM
from anyformer.skeletons.media import Medium, Read, Row, evenly, joined, laid, on_axes, placed


class Taken(NamedTuple):
    """One kind of medium in one call.

    Attributes:
        here: (B, T) its placeholders. out: of its tower, if media came.
        rows: what each row has so far; None where no content can be looked at.
        vectors, marks: of the placeholders of this call, one after another, (P, …).
    """

    medium: Medium
    here: Tensor
    out: Output | None
    rows: list[Row] | None
    vectors: Tensor | None
    marks: Tensor | None


class Spliced(CausalLM):
    """A decoder that reads media, in place of placeholders in its text (LLaVA).

    A row's placeholders are filled by its media in their order. Each medium needs as many as it makes positions, one
    after another; the media of all rows stand one after another in their input. Paths of the text side are those of
    `CausalLM`, so that its weights load.

    With a state, media are passed in the call in which their placeholders begin, and can go on in the next one.

    Args:
        dim, embed, blocks, norm, head, bias, context, entry: as of `CausalLM`.
        media: name to `Medium.of(...)`.
    """

    def __init__(
        self,
        dim: int,
        embed: Recipe[FrontEnd],
        blocks: Any,
        norm: Recipe[Norm] | None,
        head: Recipe[Head] | None,
        media: Mapping[str, Recipe[Medium]],
        bias: Recipe[RelativeBias] | None = None,
        context: int | None = None,
        entry: Recipe[Entry] | Recipe[Mixer] | None = None,
    ):
        super().__init__(dim, embed, blocks, norm, head, bias, context, entry)
        self.media = nn.ModuleDict()
        for name, recipe in media.items():
            made: Any = recipe.build(dim)
            made.share(self.media)
            self.media[name] = made
        tokens = [medium.token for medium in self.mediums()]
        if not tokens or len(set(tokens)) < len(tokens):
            raise ValueError(f"Spliced needs media with a placeholder each; got the tokens {tokens}")
        for medium in self.mediums():
            if any(not 0 <= token < (self.embed.vocab or 0) for token in medium.around):
                raise ValueError(
                    f"Spliced: the ids around token {medium.token} are {medium.around}, and a text has ids from 0 to "
                    f"{(self.embed.vocab or 0) - 1}"
                )
        self.placeholders = frozenset(tokens)
        known = set(Entrance(self.embed).inputs())
        for name, medium in zip(self.media, self.mediums(), strict=True):
            medium.prefix = f"{name}_" if known & set(medium.reads()) else ""
            known |= set(medium.inputs())

    def mediums(self) -> list[Medium]:
        """The media, in their order."""
        return list(self.media.values())  # type: ignore[arg-type]

    def medium(self, reads: str) -> Medium:
        """The medium that reads an input."""
        return next(medium for medium in self.mediums() if reads in medium.inputs())

    @property
    def vocab(self) -> int | None:
        return self.embed.vocab

    def entrances(self) -> tuple[Entrance, ...]:
        return (Entrance(self.embed), *(e for medium in self.mediums() for e in medium.entrances()))

    def inputs(self) -> dict[str, Input]:
        media = {name: replace(read, required=False) for m in self.mediums() for name, read in m.inputs().items()}
        return Entrance(self.embed).inputs() | media

    def longest(self, entrance: Entrance) -> int | None:
        return self.context if entrance.front is self.embed else None

    def decoding(self) -> list[nn.Module]:
        return [module for module in super().decoding() if module is not self.media]

    def start(self, batch: int, length: int = 0) -> State:
        state = super().start(batch, length)
        state.slots.update({medium: Read(batch) for medium in self.mediums()})
        return state

    def inserts(self, inputs: Inputs) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for medium in self.mediums():
            if not (given := medium.own(inputs)):
                continue
            places = (inputs["input_ids"] == medium.token).nonzero()  # (P, 2)
            ends = torch.tensor(medium.lengths(given), device=places.device).cumsum(0)  # (N,)
            first, last = places[torch.cat((ends.new_zeros(1), ends[:-1]))], places[ends - 1]  # (N, 2)
            spans = torch.stack((first[:, 0], first[:, 1], last[:, 1] + 1), 1)
            several = {n: torch.tensor(c, device=ends.device) for n, c in medium.entries(given).items()}
            made |= {
                medium.prefix + name: spans.repeat_interleave(several[name], 0) if name in several else spans
                for name in given
            }
        return made

    def room(self) -> int:
        examples = [(medium, medium.example(1, torch.Generator())) for medium in self.mediums()]
        return sum(medium.lengths(example)[0] + len(medium.around) for medium, example in examples)

    def example(self, rows: int, sizes: Mapping[str, tuple[int, ...]], noise: torch.Generator) -> dict[str, Tensor]:
        """Random valid inputs; `sizes` are of the text, media have their usual ones."""
        size = sizes.get("") or self.embed.sizes()[0]
        made = self.embed.example(rows, size, noise)
        for medium in self.mediums():
            made |= {medium.prefix + n: v for n, v in medium.example(rows, noise).items()}
        return self.complete(made)

    def complete(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Example inputs with the placeholders of one medium of each kind in every row that has room; the others are
        left out. No other token is a placeholder."""
        ids, made = inputs["input_ids"].clone(), dict(inputs)
        marks = self.placeholders.union(*(medium.around for medium in self.mediums()))
        known = torch.tensor(sorted(marks), device=ids.device)
        ids[torch.isin(ids, known)] = min({*range(len(known) + 1)} - marks)
        mask = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        spots = [row.nonzero()[:, 0].tolist() for row in mask]  # real tokens of each row that are free
        for medium in self.mediums():
            if not (given := medium.own(inputs)):
                continue
            row, used = 0, list[int]()
            for number, size in enumerate(medium.lengths(given)):
                run = [*medium.around[:1], *[medium.token] * size, *medium.around[1:]]
                row = next((r for r in range(row, len(spots)) if len(spots[r]) >= len(run)), len(spots))
                if row < len(spots):
                    first = int(len(spots[row]) > len(run))  # text in front of it, where there is room
                    ids[row, spots[row][first : first + len(run)]] = torch.tensor(run, device=ids.device)
                    spots[row], row = spots[row][first + len(run) :], row + 1
                    used.append(number)
            for name in given:
                made.pop(medium.prefix + name)
            if used:
                made |= {medium.prefix + name: value for name, value in medium.picked(given, used).items()}
        return made | {"input_ids": ids}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        state: State | None = None,
        last: bool = False,
        document_ids: Tensor | None = None,
        **inputs: Tensor | None,
    ) -> Output:
        """Token ids (B, T) and media to an Output with logits (B, T, V); arguments as of `CausalLM`.

        Args:
            inputs: media of all rows, one after another, by name (`model.inputs()`): `pixel_values` (N, C, height,
                width).

        Raises:
            ValueError: for placeholders that the media do not fill exactly, with the row.
        """
        named = self.check_inputs({"input_ids": input_ids, "attention_mask": attention_mask, **inputs})
        fits = input_ids is not None and input_ids.ndim == 2 and (state is None or state.batch == len(input_ids))
        read = [self._read(name, named, state) for name in self.media] if fits else []  # else `begin` names the fault
        tensors, flow = self.begin(Entrance(self.embed), named, position_ids, state, document_ids, causal=True)
        self._splice(tensors, flow, read)
        if any(medium.grid for medium in self.mediums()):
            flow.put(Axes(self._places(flow, read)))
        return self.written(tensors, flow, last)

    def _read(self, name: str, named: Inputs, state: State | None) -> Taken:
        """One kind of medium in this call."""
        medium: Any = self.media[name]
        here, given = named["input_ids"] == medium.token, medium.own(named)
        out, vectors = medium(given) if given else (None, None)  # (N, P, D)
        marks = medium.marks(given) if given else None
        if not readable(here):
            flat = None if out is None else medium.flat(out, vectors, given)
            rows = None if flat is None or state is None or traced() else evenly(flat, marks, len(here))
            return Taken(medium, here, out, rows, flat, marks)
        rows = Read(len(here)).rows if state is None else state.slots[medium].rows  # type: ignore[attr-defined]
        each, first = [] if out is None else medium.each(out, vectors, given), 0 if state is None else state.length
        rows = placed(name, medium, here, each, marks, rows, first, state)
        return Taken(medium, here, out, rows, joined(rows, here), joined(rows, here, "marks"))

    def _places(self, flow: Flow, read: list[Taken]) -> Tensor:
        """The places of the tokens of this call on three axes, (3, B, T)."""
        positions = flow.positions.expand(read[0].here.shape)  # (B, T)
        marks, short = positions.new_zeros(*positions.shape, 5), positions.new_zeros(positions.shape[0])
        for one in read:
            if one.marks is not None:
                marks = torch.where(one.here[..., None], laid(one.marks, one.here), marks)
            if one.rows is not None and flow.state is not None and readable(one.here):
                counts = one.here.sum(1).tolist()
                before = [row.short(count) for row, count in zip(one.rows, counts, strict=True)]
                short = short + torch.tensor(before, device=short.device)
        return on_axes(positions, marks, short)

    def _splice(self, tensors: dict[str, Tensor], flow: Flow, read: list[Taken]) -> None:
        """Puts the vectors of all media into the flow, and what they are into the state."""
        whole = None
        for one in read:
            if one.out is not None:
                for loss, value in one.out.aux.items():
                    flow.add_aux(loss, value)
                for figure, values in one.out.figures.items():
                    flow.figures.setdefault(figure, []).extend(values)
            if one.rows is not None and flow.state is not None:
                flow.state.slots[one.medium].rows = one.rows  # type: ignore[attr-defined]
            if one.vectors is None:
                continue
            vectors, here = laid(one.vectors, one.here), one.here  # (B, T, D)
            if whole is not None:
                vectors, here = torch.where(here[..., None], vectors, whole.vectors), here | whole.here
            whole = Inserted(here, vectors)
        if whole is not None:
            tensors["input_ids"] = tensors["input_ids"].masked_fill(whole.here, 0)  # a placeholder is in no table
            flow.put(whole)


def with_media(recipe: Recipe[Any], **media: Recipe[Medium]) -> Recipe[Spliced]:
    """Any decoder with media inside its text: `with_media(recipe("mamba"), image=Medium.of(...))`.

    Raises:
        ValueError: for another skeleton than `CausalLM`.
    """
    if recipe.part is not CausalLM:
        raise ValueError(f"with_media takes a decoder of one stream, a CausalLM; got a {recipe.part.__name__}")
    return Recipe(Spliced, {**recipe.options, "media": media}, recipe.draws)


def add_media(model: Any, seed: int = 0, **media: Recipe[Medium]) -> Spliced:
    """A decoder with its own weights, and new media with first weights.

    The text's tensors are shared with `model`, not copied. The tokenizer stays as it is: it must have a token for each
    placeholder, which `Tokenizer.with_special` adds.

    Raises:
        ValueError: as `with_media`.
    """
    made: Any = pages.build(with_media(model.recipe, **media), seed=seed)
    like = next(model.parameters())
    made.to(like.device, like.dtype)
    left = made.load_state_dict(model.state_dict(keep_vars=True), strict=False, assign=True)
    assert not left.unexpected_keys
    made.tokenizer, made.origin = model.tokenizer, {**(model.origin or {}), "hub": None}
    return made.train(model.training)
