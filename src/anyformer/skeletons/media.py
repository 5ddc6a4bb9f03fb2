"""Media inside a text: a tower, the map to the stream's width, and the placeholders that they fill.

B rows, T tokens, N media, P positions that they take, D width, S a tower's width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from anyformer.core import pages
from anyformer.core.front import Entrance, Input, Inputs
from anyformer.core.part import Part
from anyformer.core.recipe import Recipe
from anyformer.core.state import Slot, State
from anyformer.parts.heads import Kept
from anyformer.parts.projector import Bridge, Projector
from anyformer.skeletons.base import Output, Skeleton
from anyformer.skeletons.encoder import Encoder
from anyformer.skeletons.pyramid import Pyramid
from anyformer.skeletons.stack import Blocks


class Medium(Part):
    """One kind of medium inside a text: `project(tower(inputs).hidden[cut:])` in place of placeholders.

    Args:
        token: the id of the placeholder; it is not looked up, and can lie outside the vocabulary.
        tower: any encoder, e.g. `recipe("vit", "tiny")`, whose hidden states are read; heads and a pool are not built.
        project: from the tower's width to the stream's.
        cut: positions at the beginning that are left out: 1 for a class token.
        grid: True gives the cells of a picture places of their own on three axes, for `RotaryAxes`: time, row and
            column; the text goes on behind the largest of them.

    Shape: the tower's inputs -> (N, P, D).
    """

    def __init__(
        self,
        dim: int,
        token: int,
        tower: Recipe[Skeleton],
        project: Recipe[Bridge] = Projector.of(),
        cut: int = 0,
        grid: bool = False,
    ):
        super().__init__()
        if token < 0:
            raise ValueError(f"Medium: token is {token}; an id is 0 or more")
        if cut < 0:
            raise ValueError(f"Medium: cut is {cut}; 0 or more positions can be left out")
        if not issubclass(tower.part, Encoder | Pyramid):
            raise ValueError(f"Medium: tower must be an encoder, with hidden states; got a {tower.part.__name__}")
        self.tower: Any = bare(tower).build()
        self.project = project.build(dim, self.tower.width)
        self.token, self.cut, self.prefix, self.grid = token, cut, "", grid

    def entrances(self) -> tuple[Entrance, ...]:
        """The front-ends of the tower."""
        return tuple(Entrance(entrance.front, self.prefix + entrance.prefix) for entrance in self.tower.entrances())

    def inputs(self) -> dict[str, Input]:
        """The tensors that the tower reads, under the names of the whole model."""
        return {name: read for entrance in self.entrances() for name, read in entrance.inputs().items()}

    def own(self, inputs: Inputs) -> dict[str, Tensor]:
        """The tower's inputs among those of a call, by its own names."""
        return {name: inputs[self.prefix + name] for name in self.tower.inputs() if self.prefix + name in inputs}

    def forward(self, given: Inputs) -> tuple[Output, Tensor]:
        """The tower's output, and (N, P, D)."""
        out = self.tower(**given)
        return out, self.project(out.hidden[:, self.cut :])

    def keep(self, out: Output) -> Tensor | None:
        """Which positions are real, (N, P); None = all."""
        return None if out.keep is None else out.keep[:, self.cut :]

    def each(self, out: Output, vectors: Tensor) -> list[Tensor]:
        """The vectors of each medium, (P, D), without padding."""
        keep = self.keep(out)
        return list(vectors) if keep is None else [row[real] for row, real in zip(vectors, keep, strict=True)]

    def flat(self, out: Output, vectors: Tensor) -> Tensor:
        """The vectors of all media, one after another, (N P, D)."""
        keep = self.keep(out)
        return vectors.flatten(0, 1) if keep is None else vectors[keep]

    def arranged(self, given: Inputs, counts: Sequence[int]) -> dict[str, Tensor]:
        """The inputs of media one after another, as the model takes them. `counts`: of each row."""
        return dict(given)

    def places(self, given: Inputs) -> list[Tensor] | None:
        """The places of the positions of each medium behind its beginning, (3, P); None: one after another."""
        if not self.grid:
            return None
        front, count = self.tower.entrances()[0].front, self.lengths(given)[0]
        cells = front.cells(given)
        if cells is None or cells[0] * cells[1] != count:
            raise ValueError(
                f"Medium: grid=True needs a position for each cell of a picture; {cells} cells are {count}"
            )
        index = torch.arange(count, device=next(iter(given.values())).device)
        place = torch.stack((torch.zeros_like(index), index // cells[1], index % cells[1]))  # (3, P)
        return [place] * next(iter(given.values())).shape[0]

    def lengths(self, given: Inputs) -> list[int]:
        """The number of positions that each medium takes."""
        front = self.tower.entrances()[0].front
        mask = given.get(front.mask) if front.mask else None
        if mask is not None:
            return front.keep(mask.bool(), given)[:, self.cut :].sum(1).tolist()
        count = next(iter(given.values())).shape[0]
        if isinstance(self.tower, Blocks) and not any(hasattr(block, "behind") for block in self.tower.blocks):
            return [front.length(given) - self.cut] * count
        shapes = tuple((name, tuple(value.shape), value.dtype) for name, value in given.items())
        return [_length(self.tower.recipe, shapes) - self.cut] * count


def bare(tower: Recipe[Any]) -> Recipe[Any]:
    """The tower without heads, and without a pool, unless files hold it."""
    kept = tower.pool is not None and issubclass(tower.pool.part, Kept)
    return tower.but(heads={}, pool=tower.pool if kept else None)


@functools.cache
def _length(tower: Recipe[Any], shapes: tuple[tuple[str, tuple[int, ...], torch.dtype], ...]) -> int:
    """The positions of a tower that changes the length of its stream, by a pass without content."""
    inputs = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape, dtype in shapes}
    return pages.empty(tower)(**inputs).hidden.shape[1]


@dataclass(frozen=True)
class Row:
    """The media of one row so far.

    Attributes:
        vectors: of all media that have begun, (P, D), or None. ends: where each ends in them.
        places: the index in the text of each placeholder. axes: the places of each medium, (3, P), or None.
    """

    vectors: Tensor | None = None
    ends: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    axes: tuple[Tensor | None, ...] = ()

    def spans(self) -> list[tuple[list[int], Tensor]]:
        """The indices of the placeholders of each medium with places of its own, so far, and these places."""
        starts = (0, *self.ends)
        every = zip(starts, self.ends, self.axes, strict=False)
        return [(list(self.places[start:end]), axis) for start, end, axis in every if axis is not None]


class Read(Slot):
    """The decoding state of a medium: it can be cut, trimmed and reordered like the text around it."""

    def __init__(self, batch: int):
        self.rows = [Row()] * batch

    def reorder(self, index: Tensor) -> None:
        self.rows = [self.rows[i] for i in index.tolist()]

    def trim(self, length: int) -> None:
        self.rows = [self._trimmed(row, length) for row in self.rows]

    def bytes(self) -> int:
        return sum(row.vectors.nbytes for row in self.rows if row.vectors is not None)

    @property
    def joins(self) -> bool:
        return True

    def shift(self, count: int) -> None:
        self.rows = [replace(row, places=tuple(place + count for place in row.places)) for row in self.rows]

    def join(self, other: Read) -> None:
        self.rows = self.rows + other.rows

    def _trimmed(self, row: Row, length: int) -> Row:
        """The row with the media that have begun before `length`."""
        places = tuple(place for place in row.places if place < length)
        begun = [end for number, end in enumerate(row.ends) if (row.ends[number - 1] if number else 0) < len(places)]
        vectors = None if row.vectors is None else row.vectors[: max(begun, default=0)]
        return Row(vectors, tuple(begun), places, row.axes[: len(begun)])


def placed(
    name: str,
    medium: Medium,
    here: Tensor,
    each: list[Tensor],
    axes: list[Tensor] | None,
    rows: list[Row],
    first: int,
    state: State | None,
) -> list[Row]:
    """The rows with the media of this call.

    Args:
        name: of the medium, for errors. here: (B, T) its placeholders. each: the vectors of each medium, (P, D).
        axes: the places of each medium, or None.
        first: the number of tokens before this call. state: with one, a medium can go on in the next call.

    Raises:
        ValueError: naming the row, if its media do not fill its placeholders exactly, or media are left over.
    """
    own_axes: list[Tensor | None] = list(axes) if axes is not None else [None] * len(each)
    queue, filled = list(zip(each, own_axes, strict=True)), []
    for number, (row, marks) in enumerate(zip(rows, here.tolist(), strict=True)):
        spots = [at for at, mark in enumerate(marks) if mark]
        vectors, ends, own = [] if row.vectors is None else [row.vectors], list(row.ends), list(row.axes)
        before, total = len(row.places), len(row.places) + len(spots)
        while total > (ends[-1] if ends else 0) and queue:
            one, axis = queue.pop(0)
            vectors.append(one)
            own.append(axis)
            ends.append((ends[-1] if ends else 0) + len(vectors[-1]))
        stops = [before + i for i, at in enumerate(spots) if not i or at != spots[i - 1] + 1] + [total]
        stops = [stop for stop in stops if stop != before or not spots or spots[0]]  # a run that goes on from before
        if state is not None and spots and spots[-1] == len(marks) - 1:
            stops = stops[:-1]  # it goes on in the next call
        if total > (ends[-1] if ends else 0) or not {0, *ends}.issuperset(stops):
            raise ValueError(_problem(name, medium, number, len(spots), before, ends, bool(each)))
        joined = torch.cat(vectors) if len(vectors) > 1 else vectors[0] if vectors else None
        filled.append(Row(joined, tuple(ends), (*row.places, *(first + at for at in spots)), tuple(own)))
    if queue:
        raise ValueError(
            f"{len(queue)} of {len(each)} media of the kind {name} are left over: the rows have no placeholders (token "
            f"{medium.token}) for them; each needs as many as it makes positions, here {len(queue[0][0])}"
        )
    return filled


def joined(rows: list[Row], here: Tensor) -> Tensor | None:
    """The vectors that fill the placeholders `here` (B, T) of this call, the last ones of each row: (P, D), or None."""
    counts = here.sum(1).tolist()
    pieces = [
        row.vectors[len(row.places) - count : len(row.places)]
        for row, count in zip(rows, counts, strict=True)
        if row.vectors is not None and count
    ]
    return torch.cat(pieces) if pieces else None


def at_once(positions: Tensor, media: list[tuple[Tensor, Tensor]]) -> Tensor:
    """`on_axes` for a whole text, without a look at its content.

    Args:
        media: of each kind, where its placeholders are, (B, T), and the places in each of its media, (3, P).
    """
    counts = [(here, place, here.long().cumsum(1) - here.long()) for here, place in media]  # placeholders before
    saved = sum((before // place.shape[1]) * (place.shape[1] - 1 - place.amax()) for _, place, before in counts)
    text = positions - saved  # (B, T)
    places = text[None].repeat(3, 1, 1)
    for here, place, before in counts:
        index = before % place.shape[1]
        places = torch.where(here, text - index + place[:, index], places)
    return places


def on_axes(positions: Tensor, first: int, rows: list[list[Row]]) -> Tensor:
    """The places of the tokens of this call, (3, B, T): of a text its position on every axis, behind a medium from the
    largest place in it on.

    Args:
        positions: (B, T), padding not counted. first: the number of tokens before this call.
        rows: of each kind of medium, the rows with the media of this call.
    """
    places, count = positions[None].repeat(3, 1, 1), positions.shape[1]
    for number, kinds in enumerate(zip(*rows, strict=True)):
        saved, row = 0, places[:, number]  # (3, T)
        for index, axis in sorted((span for kind in kinds for span in kind.spans()), key=lambda span: span[0]):
            inside = [(at - first, j) for j, at in enumerate(index) if first <= at < first + count]
            for at, j in inside:  # the position of its first placeholder, and its own place behind it
                row[:, at] = positions[number, at] - j - saved + axis[:, j]
            if len(index) == axis.shape[1]:
                fewer = len(index) - int(axis.max()) - 1
                saved += fewer
                row[:, max(0, index[-1] + 1 - first) :] -= fewer
    return places


def _problem(name: str, medium: Medium, row: int, count: int, before: int, ends: list[int], any_: bool) -> str:
    """The fault of a row whose media do not fill its placeholders."""
    said = f"row {row} has {count} placeholders of {name} (token {medium.token})"
    if not any_ and not before:
        inputs = ", ".join(medium.inputs())
        return f"{said}, and no {inputs} came with the text; pass {inputs}, or a text without placeholders"
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    after = f", {before} came before" if before else ""
    made = " + ".join(map(str, sizes)) or "none"
    return (
        f"{said}{after}, and its media make {made} positions: in each row every medium needs exactly as many "
        "placeholders as it makes positions, one after another"
    )
