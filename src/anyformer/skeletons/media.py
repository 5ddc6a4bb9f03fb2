"""Media inside a text: a tower, the map to the stream's width, and the placeholders that they fill.

B rows, T tokens, N media, P positions that they take, D width, S a tower's width.

Where media have places of their own on three axes, each of their positions carries five numbers, its marks: time, row
and column behind the beginning of its medium, its number in it, and, at the last one, by how much the places of the
text behind fall short of its positions.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

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


@dataclass(frozen=True)
class Inside(Entrance):
    """The entrance of a medium: a padding mask of its own is one of its inputs, and not that of the text."""

    reads: Mapping[str, Input] = field(default_factory=dict)

    @property
    def mask(self) -> None:
        return None

    def inputs(self) -> dict[str, Input]:
        return {self.prefix + name: read for name, read in self.reads.items()}


class Medium(Part):
    """One kind of medium inside a text: `project(tower(inputs).hidden[cut:])` in place of placeholders.

    Args:
        token: the id of the placeholder; it is not looked up, and can lie outside the vocabulary.
        tower: any encoder, e.g. `recipe("vit", "tiny")`, whose hidden states are read; heads and a pool are not built.
        project: from the tower's width to the stream's.
        cut: positions at the beginning that are left out: 1 for a class token.
        grid: True gives the cells of a picture places of their own on three axes, for `RotaryAxes`: time, row and
            column; the text goes on behind the largest of them.
        around: the ids that stand in front of the placeholders of a medium and behind them, in prompts; () = none.

    Shape: the tower's inputs -> (N, P, D).
    """

    packed: ClassVar[bool] = False  # True if media of several sizes stand one after another in one sequence

    def __init__(
        self,
        dim: int,
        token: int,
        tower: Recipe[Skeleton],
        project: Recipe[Bridge] = Projector.of(),
        cut: int = 0,
        grid: bool = False,
        around: Sequence[int] = (),
    ):
        super().__init__()
        if cut < 0:
            raise ValueError(f"Medium: cut is {cut}; 0 or more positions can be left out")
        if not issubclass(tower.part, Encoder | Pyramid):
            raise ValueError(f"Medium: tower must be an encoder, with hidden states; got a {tower.part.__name__}")
        self.tower: Any = bare(tower).build()
        self.project: Any = self.bridge(project, dim)
        self.cut, self.grid = cut, grid
        self.stands(token, around)

    def stands(self, token: int, around: Sequence[int]) -> None:
        """Sets the ids of the placeholder and of what stands around it."""
        if token < 0:
            raise ValueError(f"{type(self).__name__}: token is {token}; an id is 0 or more")
        if len(around) not in (0, 2):
            raise ValueError(f"{type(self).__name__}: around is the ids in front and behind, or (); got {around}")
        self.token, self.around, self.prefix = token, tuple(around), ""

    def bridge(self, project: Any, dim: int) -> Any:
        """The projector, built for the tower."""
        return project.build(dim, self.tower.width)

    def share(self, media: Any) -> None:
        """Takes what it uses of the media before it, by name; here nothing."""

    def entrances(self) -> tuple[Entrance, ...]:
        """The front-end of the tower."""
        return (Inside(self.tower.entrances()[0].front, self.prefix, self.reads()),)

    def reads(self) -> dict[str, Input]:
        """The tensors of a medium, by its own names."""
        return {name: replace(read, counted=()) for name, read in self.tower.inputs().items()}

    def inputs(self) -> dict[str, Input]:
        """The same under the names of the whole model."""
        return self.entrances()[0].inputs()

    def own(self, inputs: Inputs) -> dict[str, Tensor]:
        """The tensors of the medium among those of a call, by its own names."""
        return {name: inputs[self.prefix + name] for name in self.reads() if self.prefix + name in inputs}

    def example(self, rows: int, noise: torch.Generator) -> dict[str, Tensor]:
        """Random valid tensors of `rows` media, by its own names."""
        return self.tower.example(rows, {}, noise)

    def forward(self, given: Inputs) -> tuple[Output, Tensor]:
        """The tower's output, and (N, P, D)."""
        out = self.tower(**given)
        x = self.arrange(out.hidden, given)
        return out, self.project(x[:, : x.shape[1] // self.project.cells * self.project.cells])

    def arrange(self, hidden: Tensor, given: Inputs) -> Tensor:
        """The hidden states that are read, one medium a row, (N, P, S)."""
        return hidden[:, self.cut :]

    def keep(self, out: Output, given: Inputs) -> Tensor | None:
        """Which positions are real, (N, P); None = all."""
        if out.keep is None:
            return None
        keep, cells = self.arrange(out.keep, given), self.project.cells
        return keep[:, : keep.shape[1] // cells * cells].unflatten(1, (-1, cells)).all(-1)

    def each(self, out: Output, vectors: Tensor, given: Inputs) -> list[Tensor]:
        """The vectors of each medium, (P, D), without padding."""
        keep = self.keep(out, given)
        return list(vectors) if keep is None else [row[real] for row, real in zip(vectors, keep, strict=True)]

    def flat(self, out: Output, vectors: Tensor, given: Inputs) -> Tensor:
        """The vectors of all media, one after another, (N P, D), those of padding last."""
        keep = self.keep(out, given)
        return (
            vectors.flatten(0, 1)
            if keep is None
            else vectors.flatten(0, 1)[(~keep).flatten().long().argsort(stable=True)]
        )

    def arranged(self, given: Inputs, counts: Sequence[int]) -> dict[str, Tensor]:
        """The inputs of media one after another, as the model takes them. `counts`: of each row."""
        return dict(given)

    def entries(self, given: Inputs) -> dict[str, list[int]]:
        """The number of entries of each medium in the tensors where it is not one."""
        return {}

    def picked(self, given: Inputs, numbers: Sequence[int]) -> dict[str, Tensor]:
        """The tensors of these media alone."""
        counts, made = self.entries(given), dict[str, Tensor]()
        for name, value in given.items():
            parts = value.split(counts.get(name, [1] * len(value)))
            made[name] = torch.cat([parts[number] for number in numbers])
        return made

    def marks(self, given: Inputs) -> Tensor | None:
        """The marks of the positions of all media, one after another, (N P, 5); None: without places of their own."""
        if not self.grid:
            return None
        front, count = self.tower.entrances()[0].front, self.lengths(given)[0]
        cells = front.cells(given)
        if cells is None or cells[0] * cells[1] != count:
            raise ValueError(
                f"Medium: grid=True needs a position for each cell of a picture; {cells} cells are {count}"
            )
        index = torch.arange(count, device=next(iter(given.values())).device)
        place = torch.stack((torch.zeros_like(index), index // cells[1], index % cells[1]), 1)  # (P, 3)
        one = marks_of(place, index, index == count - 1, place.max())
        return one.repeat(next(iter(given.values())).shape[0], 1)

    def lengths(self, given: Inputs) -> list[int]:
        """The number of positions that each medium takes."""
        front, cells = self.tower.entrances()[0].front, self.project.cells
        mask = given.get(front.mask) if front.mask else None
        if mask is not None:
            keep = self.arrange(front.keep(mask.bool(), given), given)
            return (keep.sum(1) // cells).tolist()
        count = next(iter(given.values())).shape[0]
        if isinstance(self.tower, Blocks) and not any(hasattr(block, "behind") for block in self.tower.blocks):
            return [(front.length(given) - self.cut) // cells] * count
        shapes = tuple((name, tuple(value.shape), value.dtype) for name, value in given.items())
        return [(_length(self.tower.recipe, shapes) - self.cut) // cells] * count


def marks_of(place: Tensor, index: Tensor, last: Tensor, most: Tensor) -> Tensor:
    """The marks of positions, (P, 5).

    Args:
        place: time, row and column, (P, 3). index: of each position in its medium, (P,).
        last: True at the last one of each, (P,). most: the largest place in its medium, (P,) or a number.
    """
    return torch.cat((place, index[:, None], torch.where(last, index - most, 0)[:, None]), 1)


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
        places: the index in the text of each placeholder. marks: of all media that have begun, (P, 5), or None.
    """

    vectors: Tensor | None = None
    ends: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    marks: Tensor | None = None

    def short(self, count: int) -> Tensor | int:
        """By how much the places of the text fall short of its positions in front of the last `count` placeholders."""
        return 0 if self.marks is None else self.marks[: len(self.places) - count, 4].sum()


def evenly(vectors: Tensor, marks: Tensor | None, batch: int) -> list[Row]:
    """The rows where placeholders have no content: each has the same share of the vectors."""
    own = [None] * batch if marks is None else marks.tensor_split(batch)
    return [Row(part, (len(part),), (), mark) for part, mark in zip(vectors.tensor_split(batch), own, strict=True)]


class Read(Slot):
    """The decoding state of a medium: it can be cut, trimmed and reordered like the text around it."""

    def __init__(self, batch: int):
        self.rows = [Row()] * batch

    def reorder(self, index: Tensor) -> None:
        self.rows = [self.rows[i] for i in index.tolist()]

    def trim(self, length: int) -> None:
        self.rows = [self._trimmed(row, length) for row in self.rows]

    def bytes(self) -> int:
        return sum(t.nbytes for row in self.rows for t in (row.vectors, row.marks) if t is not None)

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
        end = max(begun, default=0)
        vectors, marks = (None if values is None else values[:end] for values in (row.vectors, row.marks))
        return Row(vectors, tuple(begun), places, marks)


def placed(
    name: str,
    medium: Medium,
    here: Tensor,
    each: list[Tensor],
    marks: Tensor | None,
    rows: list[Row],
    first: int,
    state: State | None,
) -> list[Row]:
    """The rows with the media of this call.

    Args:
        name: of the medium, for errors. here: (B, T) its placeholders. each: the vectors of each medium, (P, D).
        marks: of the positions of all media, or None.
        first: the number of tokens before this call. state: with one, a medium can go on in the next call.

    Raises:
        ValueError: naming the row, if its media do not fill its placeholders exactly, or media are left over.
    """
    queue, filled, taken = list(each), [], 0
    for number, (row, here_) in enumerate(zip(rows, here.tolist(), strict=True)):
        spots = [at for at, mark in enumerate(here_) if mark]
        vectors, ends = [] if row.vectors is None else [row.vectors], list(row.ends)
        before, total, begun = len(row.places), len(row.places) + len(spots), taken
        while total > (ends[-1] if ends else 0) and queue:
            vectors.append(queue.pop(0))
            taken += len(vectors[-1])
            ends.append((ends[-1] if ends else 0) + len(vectors[-1]))
        stops = [before + i for i, at in enumerate(spots) if not i or at != spots[i - 1] + 1] + [total]
        apart = not medium.around or {end for end in ends if before < end < total} <= {*stops}  # something between them
        stops = [stop for stop in stops if stop != before or not spots or spots[0]]  # a run that goes on from before
        if state is not None and spots and spots[-1] == len(here_) - 1:
            stops = stops[:-1]  # it goes on in the next call
        if not apart or total > (ends[-1] if ends else 0) or not {0, *ends}.issuperset(stops):
            raise ValueError(_problem(name, medium, number, len(spots), before, ends, bool(each)))
        new = [] if marks is None or taken == begun else [marks[begun:taken]]
        own = [*([] if row.marks is None else [row.marks]), *new]
        filled.append(Row(_one(vectors), tuple(ends), (*row.places, *(first + at for at in spots)), _one(own)))
    if queue:
        raise ValueError(
            f"{len(queue)} of {len(each)} media of the kind {name} are left over: the rows have no placeholders (token "
            f"{medium.token}) for them; each needs as many as it makes positions, here {len(queue[0])}"
        )
    return filled


def _one(values: list[Tensor]) -> Tensor | None:
    return torch.cat(values) if len(values) > 1 else values[0] if values else None


def joined(rows: list[Row], here: Tensor, what: str = "vectors") -> Tensor | None:
    """The vectors, or the marks, of the placeholders `here` (B, T) of this call, the last ones of each row: (P, …), or
    None."""
    pieces = [
        values[len(row.places) - count : len(row.places)]
        for row, count in zip(rows, here.sum(1).tolist(), strict=True)
        if (values := getattr(row, what)) is not None and count
    ]
    return torch.cat(pieces) if pieces else None


def laid(values: Tensor, here: Tensor) -> Tensor:
    """Values of placeholders at their places in the rows: (P, …) and `here` (B, T) -> (B, T, …); elsewhere anything."""
    return values[(here.flatten().cumsum(0) - 1).clamp(min=0)].unflatten(0, here.shape)


def on_axes(positions: Tensor, marks: Tensor, short: Tensor) -> Tensor:
    """The places of the tokens of this call, (3, B, T): of a text its position on every axis, behind a medium from the
    largest place in it on.

    Args:
        positions: (B, T), padding not counted.
        marks: (B, T, 5), 0 at tokens and in media without places of their own, which count as text.
        short: (B,) by how much places fall short of positions in front of this call.
    """
    index, fewer = marks[..., 3], marks[..., 4]
    begin = positions - short[:, None] - (fewer.cumsum(1) - fewer) - index  # (B, T), of a token its own place
    return begin + marks[..., :3].movedim(-1, 0)


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
        f"placeholders as it makes positions, one after another{', and ids around them' if medium.around else ''}"
    )
