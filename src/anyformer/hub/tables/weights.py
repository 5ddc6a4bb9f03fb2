"""The map between published tensor names and ours: one table, read in both directions.

    row("model.embed_tokens", "embed.tokens")                       a module: its weight and bias come together
    row("attn.c_attn", ("mixer.q", "mixer.k", "mixer.v"), Transpose(), Split())
    under("model.layers.{i}", "blocks.{i}", row(...), ...)          {i} is any index

A table never says how many layers there are: the names of the model do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Op:
    """A reversible change of tensors on the way in (`read`) and out (`write`). `shapes` are those of our tensors."""

    def read(self, tensors: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        raise NotImplementedError

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        raise NotImplementedError


class Transpose(Op):
    """Files of GPT-2 store x @ W; we hold W of W @ x. Vectors stay."""

    def read(self, tensors: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        return self.write(tensors)

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        return [t.T if t.ndim == 2 else t for t in tensors]


class Split(Op):
    """One tensor of theirs is several of ours, one below the other: q, k and v in one matrix."""

    def read(self, tensors: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        sizes = [s[0] for s in shapes]
        if tensors[0].shape[0] != sum(sizes):
            raise ValueError(f"it has {tensors[0].shape[0]} rows, and {' + '.join(map(str, sizes))} are expected")
        return list(tensors[0].split(sizes))

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        return [torch.cat(tensors)]


@dataclass(frozen=True)
class Thin(Op):
    """Their tensor has one more axis, of size 1: Reformer's tables of places, each where the other one goes on."""

    axis: int

    def read(self, tensors: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        return [t.squeeze(self.axis) for t in tensors]

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        return [t.unsqueeze(self.axis) for t in tensors]


@dataclass(frozen=True)
class Bare(Op):
    """Their tensor lacks leading axes of size 1."""

    axes: int

    def read(self, tensors: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        return [t[(None,) * self.axes] for t in tensors]

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        return [t.reshape(t.shape[self.axes :]) for t in tensors]


@dataclass(frozen=True)
class RotaryOrder(Op):
    """GGUF files of LLaMA order the rows of q and k for rotary pairs (2i, 2i + 1); we pair i with i + K/2."""

    heads: int

    def read(self, tensors: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        return [t.unflatten(0, (self.heads, -1, 2)).transpose(1, 2).flatten(0, 2) for t in tensors]

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        return [t.unflatten(0, (self.heads, 2, -1)).transpose(1, 2).flatten(0, 2) for t in tensors]


class Resample(Op):
    """Positions of a grid of patches, for a model that was built for another image size. Exact where the sizes
    agree."""

    def read(self, tensors: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        from anyformer.parts.embeddings import resample_grid

        side = round((shapes[0][1] - 1) ** 0.5)
        return [resample_grid(tensors[0], side, side)]

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        return tensors


@dataclass(frozen=True)
class Row:
    """One line of the table. See `row`."""

    theirs: str
    ours: tuple[str, ...]
    ops: tuple[Op, ...] = ()
    also: tuple[str, ...] = ()
    tied: str | None = None


def row(
    theirs: str, ours: str | tuple[str, ...], *ops: Op, also: str | tuple[str, ...] = (), tied: str | None = None
) -> Row:
    """Their module (or single parameter) is ours.

    Args:
        theirs, ours: paths; with several of ours, an op must divide the tensor.
        ops: in the order of reading.
        also: older names of theirs, accepted when reading.
        tied: our path that plays this part when the model has no `ours` (or `ours` is empty); a stored copy must be
            equal to it.
    """
    also = (also,) if isinstance(also, str) else also
    return Row(theirs, (ours,) if isinstance(ours, str) else ours, ops, also, tied)


def under(theirs: str, ours: str, *rows: Row | list[Row]) -> list[Row]:
    """The rows with a prefix on both sides; '' adds none."""

    def join(prefix: str, name: str) -> str:
        return f"{prefix}.{name}" if prefix and name else prefix or name

    return [
        Row(
            join(theirs, r.theirs),
            tuple(join(ours, o) for o in r.ours),
            r.ops,
            tuple(join(theirs, a) for a in r.also),
            r.tied,
        )
        for r in flat(rows)
    ]


def flat(rows: Iterable[Row | list[Row]]) -> list[Row]:
    """Nested lists of rows as one list."""
    return [r for x in rows for r in (flat(x) if isinstance(x, list) else [x])]


@dataclass(frozen=True)
class Link:
    """A row with all names filled in: these tensors of theirs become those of ours."""

    theirs: str
    ours: tuple[str, ...]
    ops: tuple[Op, ...]
    also: tuple[str, ...] = ()
    tied: bool = False  # no tensor of its own: may be absent, must be equal to `ours` when present
    twin: str | None = None  # our path that plays its part in a model where the two are tied

    def read(self, tensor: Tensor, shapes: list[Shape]) -> list[Tensor]:
        """Their tensor as ours.

        Raises:
            ValueError: naming both sides, if a shape differs.
        """
        tensors = [tensor]
        try:
            for op in self.ops:
                tensors = op.read(tensors, shapes)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"tensor {self.theirs!r} of shape {tuple(tensor.shape)}: {error}") from None
        for name, t, shape in zip(self.ours, tensors, shapes, strict=True):
            if tuple(t.shape) != shape:
                raise ValueError(f"tensor {self.theirs!r} has shape {tuple(t.shape)}, and {name!r} needs {shape}")
        return tensors

    def write(self, tensors: list[Tensor]) -> Tensor:
        """Our tensors as theirs."""
        for op in reversed(self.ops):
            tensors = op.write(tensors)
        return tensors[0].contiguous()


def links(rows: Iterable[Row | list[Row]], ours: Iterable[str]) -> list[Link]:
    """The table with the names of a model filled in.

    Raises:
        ValueError: if one of our tensors has no row or two, or two links want one tensor of theirs.
    """
    left, made = dict.fromkeys(ours), []
    known = set(left)
    for r in flat(rows):
        hits: dict[tuple[Any, ...], list[str | None]] = {}
        for place, pattern in enumerate(r.ours):
            for name in [n for n in left if (m := _pattern(pattern).match(n))]:
                m = _pattern(pattern).match(name)
                assert m is not None
                at = {k: v for k, v in m.groupdict().items() if k != "tail"}
                hits.setdefault((tuple(at.items()), m["tail"]), [None] * len(r.ours))[place] = name
                del left[name]
        for (at, tail), names in hits.items():
            fill = {
                "theirs": r.theirs.format(**dict(at)) + tail,
                "also": tuple(a.format(**dict(at)) + tail for a in r.also),
            }
            if None in names:
                raise ValueError(
                    f"{fill['theirs']!r} maps to {r.ours}, but the model has only {[n for n in names if n]}"
                )
            twin = r.tied + tail if r.tied is not None and r.tied + tail in known else None
            ours = tuple(n for n in names if n)
            made.append(Link(fill["theirs"], ours, r.ops, fill["also"], twin=twin))  # type: ignore[arg-type]
        for tail in (".weight", ""):
            if not hits and r.tied is not None and r.tied + tail in known:
                made.append(Link(r.theirs + tail, (r.tied + tail,), r.ops, tuple(a + tail for a in r.also), True))
    if left:
        raise ValueError(f"{len(left)} tensors of the model have no row in the map, the first is {next(iter(left))!r}")
    twice = [name for name, count in _counts(link.theirs for link in made).items() if count > 1]
    if twice:
        raise ValueError(f"two rows of the map write {twice[0]!r}")
    return made


def _pattern(path: str) -> re.Pattern[str]:
    """A path with {i} as a regular expression; the tail is '.weight', '.bias' or nothing."""
    return re.compile("^" + re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(path)) + r"(?P<tail>\.weight|\.bias|)$")


def _counts(items: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in items:
        counts[item] = counts.get(item, 0) + 1
    return counts


@dataclass(frozen=True)
class Hub:
    """How one family of files speaks of a page's models.

    Args:
        name: `model_type` in config.json, or `general.architecture` in a GGUF file.
        config: entries (see `anyformer.hub.tables.config`), each hyperparameter in one of them.
        weights: the rows for given hyperparameters.
        architectures: the names in `architectures` of config.json, each with the hyperparameters that it implies;
            the first is taken where a file names none.
        types: other values of `model_type` under which files of these architectures come, too.
        base: the prefix of names that some files leave out; `bare`: the architectures whose files are written
            without it.
        tails: older last words of names, accepted when reading: {"gamma": "weight"}.
        ignore: patterns ({i} = any index) of tensors that carry nothing, with the reason.
        format: "hf" or "gguf".
        outputs: names of theirs, dotted in nested outputs, that do not say themselves which of ours they are:
            {"image_embeds": "heads.image"}; lists of hidden states are those of the blocks there.
        processor: the type of image processor that its files mean where they say none, see `hub.processors`.
    """

    name: str
    config: tuple[Any, ...]
    weights: Callable[[Any], list[Any]]
    architectures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    types: tuple[str, ...] = ()
    base: str = ""
    bare: tuple[str, ...] = ()
    tails: Mapping[str, str] = field(default_factory=dict)
    ignore: Mapping[str, str] = field(default_factory=dict)
    format: str = "hf"
    outputs: Mapping[str, str] = field(default_factory=dict)
    processor: str | None = None

    def ignored(self, name: str) -> str | None:
        """Why a tensor of theirs carries nothing, or None."""
        return next((why for path, why in self.ignore.items() if _pattern(path).match(name)), None)
