"""The map between published tensor names and ours: one table, read in both directions.

    row("model.embed_tokens", "embed.tokens")                       a module: its weight and bias come together
    row("attn.c_attn", ("mixer.q", "mixer.k", "mixer.v"), Transpose(), Split())
    row(("conv.weight_g", "conv.weight_v"), "conv.weight", WeightNorm(0))   ops for several of theirs: tables/several.py
    under("model.layers.{i}", "blocks.{i}", row(...), ...)          {i} is any index

A table does not fix the number of layers: the names of the model do.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]
Names = tuple[str, ...]
RUNNING, COUNTER = ".running_mean", ".num_batches_tracked"
TAILS = (".weight", ".bias", RUNNING, ".running_var", COUNTER)  # tensors of a module


class Op:
    """A reversible change of tensors on the way in (`read`) and out (`write`). `shapes` are those of our tensors."""

    def read(self, tensors: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        raise NotImplementedError

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        raise NotImplementedError


class Transpose(Op):
    """The transpose: files of GPT-2 store W of x @ W; ours is W @ x. Vectors stay."""

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
    """Their tensor has one more axis, of size 1: Reformer's two tables of positions, one for each axis."""

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


class Columns(Op):
    """The columns of their matrix read sines and cosines in turns; ours read all sines, then all cosines."""

    def read(self, tensors: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        return [torch.cat((t[:, ::2], t[:, 1::2]), 1) for t in tensors]

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        return [self._mixed(t) for t in tensors]

    def _mixed(self, t: Tensor) -> Tensor:
        out = torch.empty_like(t)
        sines = (t.shape[1] + 1) // 2
        out[:, ::2], out[:, 1::2] = t[:, :sines], t[:, sines:]
        return out


@dataclass(frozen=True)
class RotaryOrder(Op):
    """GGUF files of LLaMA order the rows of q and k for rotary pairs (2i, 2i + 1); we pair i with i + K/2."""

    heads: int

    def read(self, tensors: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        return [t.unflatten(0, (self.heads, -1, 2)).transpose(1, 2).flatten(0, 2) for t in tensors]

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        return [t.unflatten(0, (self.heads, 2, -1)).transpose(1, 2).flatten(0, 2) for t in tensors]


@dataclass(frozen=True)
class Resample(Op):
    """Positions of a grid of patches, which follow `first` others, interpolated for a model of another image size.
    Exact if the sizes agree."""

    first: int = 1

    def read(self, tensors: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        from anyformer.parts.embeddings import resample_grid

        side = round((shapes[0][1] - self.first) ** 0.5)
        return [resample_grid(tensors[0], side, side, self.first)]

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        return tensors


@dataclass(frozen=True)
class Row:
    """One line of the table. See `row`."""

    theirs: Names
    ours: Names
    ops: tuple[Op, ...] = ()
    also: tuple[Names, ...] = ()
    tied: str | None = None


def row(
    theirs: str | Names,
    ours: str | Names,
    *ops: Op,
    also: str | tuple[str | Names, ...] = (),
    tied: str | None = None,
) -> Row:
    """Their module (or single parameter) is ours.

    Args:
        theirs, ours: paths; with several on a side, an op must split or join the tensors.
        ops: in the order of reading.
        also: older names of theirs, accepted when reading; for several of theirs, a tuple each. A file that has them
            is written back with them.
        tied: our path that replaces `ours` when the model lacks it (or `ours` is empty); a stored copy must be equal
            to it.
    """
    older = tuple(_several(names) for names in _several(also))
    made = Row(_several(theirs), _several(ours), ops, older, tied)
    if any(len(names) != len(made.theirs) for names in older):
        raise ValueError(f"the row of {theirs!r} has older names {also!r}; each must be {len(made.theirs)} names")
    return made


def _several(names: Any) -> tuple[Any, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def under(theirs: str, ours: str, *rows: Row | list[Row]) -> list[Row]:
    """The rows with a prefix on both sides; '' adds none."""

    def join(prefix: str, name: str) -> str:
        return f"{prefix}.{name}" if prefix and name else prefix or name

    return [
        Row(
            tuple(join(theirs, t) for t in r.theirs),
            tuple(join(ours, o) for o in r.ours),
            r.ops,
            tuple(tuple(join(theirs, a) for a in names) for names in r.also),
            r.tied,
        )
        for r in flat(rows)
    ]


def flat(rows: Iterable[Row | list[Row]]) -> list[Row]:
    """Nested lists of rows as one list."""
    return [r for x in rows for r in (flat(x) if isinstance(x, list) else [x])]


class Differs(ValueError):
    """An op's objection to one of several tensors, by its index among them."""

    def __init__(self, place: int, why: str):
        super().__init__(why)
        self.place = place


@dataclass(frozen=True)
class Link:
    """A row with all names filled in: these tensors of theirs become those of ours."""

    theirs: Names
    ours: Names
    ops: tuple[Op, ...] = ()
    also: tuple[Names, ...] = ()
    tied: bool = False  # no tensor of its own: can be absent, must be equal to `ours` when present
    twin: str | None = None  # our path that replaces it in a model where the two are tied

    def read(self, tensors: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        """Their tensors as ours.

        Raises:
            ValueError: naming both sides, if a shape differs.
        """
        came, named = [tuple(t.shape) for t in tensors], ", ".join(map(repr, self.theirs))
        try:
            for op in self.ops:
                tensors = op.read(tensors, shapes)
        except Differs as error:
            beside = f" (beside {self.theirs[0]!r})" if error.place else ""
            raise ValueError(f"tensor {self.theirs[error.place]!r}{beside}: {error}") from None
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"tensor {named} of shape {', '.join(map(str, came))}: {error}") from None
        for name, t, shape in zip(self.ours, tensors, shapes, strict=True):
            if tuple(t.shape) != shape:
                raise ValueError(f"tensor {named} has shape {tuple(t.shape)}, and {name!r} needs {shape}")
        return tensors

    def write(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their tensors by name, from all of ours by name."""
        tensors = [ours[name] for name in self.ours]
        for op in reversed(self.ops):
            tensors = op.write(tensors)
        return {name: t.contiguous() for name, t in zip(self.theirs, tensors, strict=True)}


def links(rows: Iterable[Row | list[Row]], ours: Iterable[str]) -> list[Link]:
    """The table with the names of a model filled in.

    Raises:
        ValueError: if one of our tensors has no row or two, or two links use one tensor of theirs.
    """
    left, made = {name: place for place, name in enumerate(ours)}, []
    known, alike = set(left), dict[str, list[str]]()
    for name in left:
        alike.setdefault(_unnumbered(name), []).append(name)
    for r in flat(rows):
        hits: dict[tuple[Any, ...], list[str | None]] = {}
        for place, pattern in enumerate(r.ours):
            near = [n for tail in (*TAILS, "") for n in alike.get(_unnumbered(pattern) + tail, ()) if n in left]
            for name, m in [(n, m) for n in sorted(near, key=left.__getitem__) if (m := _pattern(pattern).match(n))]:
                at = {k: v for k, v in m.groupdict().items() if k != "tail"}
                hits.setdefault((tuple(at.items()), m["tail"]), [None] * len(r.ours))[place] = name
                del left[name]
        for (at, tail), names in hits.items():
            theirs, *also = (tuple(n.format(**dict(at)) + tail for n in names) for names in (r.theirs, *r.also))
            if None in names:
                raise ValueError(
                    f"{', '.join(theirs)!r} maps to {r.ours}, but the model has only {[n for n in names if n]}"
                )
            twin = r.tied + tail if r.tied is not None and r.tied + tail in known else None
            made.append(Link(theirs, tuple(n for n in names if n), r.ops, tuple(also), twin=twin))
        for tail in (".weight", ""):
            if not hits and r.tied is not None and r.tied + tail in known:
                theirs, *also = (tuple(n + tail for n in names) for names in (r.theirs, *r.also))
                made.append(Link(theirs, (r.tied + tail,), r.ops, tuple(also), True))
    if left:
        raise ValueError(f"{len(left)} tensors of the model have no row in the map, the first is {next(iter(left))!r}")
    twice = [name for name, count in _counts(name for link in made for name in link.theirs).items() if count > 1]
    if twice:
        raise ValueError(f"two rows of the map write {twice[0]!r}")
    return made


@functools.lru_cache(maxsize=100_000)
def _unnumbered(path: str) -> str:
    """A name or a path with {i}, a sign for each number: a path matches names alone that are alike then."""
    return re.sub(r"(?:\{\w\}|\d)+", "#", path)


@functools.cache
def _pattern(path: str) -> re.Pattern[str]:
    """A path with {i} as a regular expression; the tail is one of `TAILS` or nothing."""
    tails = "|".join(map(re.escape, (*TAILS, "")))
    return re.compile("^" + re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(path)) + f"(?P<tail>{tails})$")


def _counts(items: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in items:
        counts[item] = counts.get(item, 0) + 1
    return counts


@dataclass(frozen=True)
class Hub:
    """The map between one family of files and a page's models.

    Args:
        name: `model_type` in config.json, or `general.architecture` in a GGUF file, the kind in a file of
            CTranslate2; files of diffusers have none, and are found by their class.
        config: entries (see `anyformer.hub.tables.config`), each hyperparameter in one of them.
        weights: the rows for given hyperparameters.
        architectures: the names in `architectures` of config.json, or in `_class_name` of diffusers, each with the
            hyperparameters that it implies; the first is taken where a file names none.
        types: other values of `model_type` in files of these architectures.
        base: the prefix of names that some files leave out; `bare`: the architectures whose files are written
            without it.
        tails: older suffixes of names, accepted when reading: {"gamma": "weight"}.
        ignore: patterns ({i} = any index) of tensors that carry nothing, with the reason.
        format: "hf" (a directory of transformers), "gguf", "diffusers" or "ct2" (a folder of CTranslate2).
        inputs: our names of inputs, with theirs where they differ: {"pixel_values": "hidden_states"}.
        outputs: names of theirs, dotted in nested outputs, that differ from ours: {"image_embeds": "heads.image"};
            lists of hidden states are those of the blocks there.
        processor: the default type of image processor of its files, see `hub.processors`.
        settled: hyperparameters of the named class that a caller of `load` cannot change.
        around: the keys of processor_config.json beside the steps, for given hyperparameters; a file can lack them.
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
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    processor: str | None = None
    settled: tuple[str, ...] = ()
    around: Callable[[Any], Mapping[str, Any]] | None = None

    def ignored(self, name: str) -> str | None:
        """The reason why a tensor of theirs carries nothing, or None."""
        return next((why for path, why in self.ignore.items() if _pattern(path).match(name)), None)
