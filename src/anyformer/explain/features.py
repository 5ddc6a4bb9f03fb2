"""The inputs that an explanation is about: vectors of tokens, pixels, samples, steps; and passes with others.

B batch, T units, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.front import Entrance, Input
from anyformer.parts.quantised import GridTable
from anyformer.skeletons import Skeleton
from anyformer.skeletons.base import Output

CHANNELS = {"channels", "features", "mels", "state", "action", "return", "numbers", "sides"}  # axes inside a unit
BASELINES = ("mean", "zeros", "pad", "blur")
COPIES, NUMBERS = 8, 1 << 26  # of a row in one pass: at most, and so that its largest tensor has at most these numbers
Values = dict[str, Tensor]  # by the name of the input
Tokens = nn.Embedding | GridTable


@dataclass(frozen=True)
class Feature:
    """One input of a call, as numbers.

    Args:
        name: of the input, as in `model.inputs()`.
        value: of ids the rows of the token table, (B, T, D); of numbers the input itself.
        axes: the names of its axes after the batch; the last one of ids is "channels".
        table: of ids the token table, else None.
        keep: (B, T) True = real, over the first counted axis; None = all.
        cells: rows and columns of the patches of a picture, or None.
    """

    name: str
    value: Tensor
    axes: tuple[str, ...]
    table: Tokens | None = None
    keep: Tensor | None = None
    cells: tuple[int, int] | None = None

    def units(self, each: Tensor) -> Tensor:
        """The sums over the numbers of each unit: (B, T) of tokens, frames and steps, (B, rows, columns) of patches."""
        inside = [i for i, axis in enumerate(self.axes, 1) if axis in CHANNELS]
        each = each.sum(inside) if inside else each
        if self.cells is None:
            return each
        rows, columns = self.cells
        return each.unflatten(-2, (rows, -1)).unflatten(-1, (columns, -1)).sum((-3, -1))

    def shape(self) -> tuple[int, ...]:
        """The shape of `units`, without the batch."""
        return tuple(self.units(torch.zeros_like(self.value)).shape[1:])

    def spread(self, units: Tensor) -> Tensor:
        """A value for each unit (rows, …) at each of its numbers: the shape of `value`, or one that broadcasts."""
        if self.cells is not None:
            high, wide = (n // c for n, c in zip(self.value.shape[-2:], self.cells, strict=True))
            units = units.repeat_interleave(high, -2).repeat_interleave(wide, -1)
        for i, axis in enumerate(self.axes, 1):
            units = units.unsqueeze(i) if axis in CHANNELS else units
        return units


class Explained:
    """A model and one call, whose features can be replaced: `explained.run({"input_ids": vectors})`.

    Args:
        model: any model, in evaluation mode.
        inputs: the tensors of the call by name.
        only: the names of the inputs to explain; None: all token ids and all numbers, but a single number for a row,
            such as a time step of noise, which stays as it is.

    Raises:
        ValueError: for a model in training mode, an input that is not finite, an unknown name.
    """

    def __init__(self, model: Any, inputs: Mapping[str, Tensor], only: Sequence[str] | None = None):
        if not isinstance(model, Skeleton):
            raise ValueError(f"expected a model of anyformer (load, build), got {type(model).__name__}")
        if model.training:
            raise ValueError("the model is in training mode, where dropout changes every pass; call model.eval() first")
        self.model, self.inputs, self.only = model, dict(inputs), only
        self.missing: dict[str, str] = {}  # inputs of ids without a rule, and why
        self.ids: dict[str, Feature] = {}  # the same as whole numbers, which occlusion can replace
        self.features = {f.name: f for f in self._found()}
        if only is not None:
            for name in only:
                if name not in self.features:
                    raise ValueError(f"{name!r} is no input to explain; this call has {', '.join(self.features)}")
            self.features = {name: self.features[name] for name in only}

    def check(self) -> None:
        """Raises ValueError for an input of ids that has no shares, unless others were chosen; without any input."""
        for why in self.missing.values() if self.only is None else ():
            raise ValueError(why)
        if not self.features:
            raise ValueError("this call has no token ids and no numbers, so no part of it can have a share")

    def by_ids(self) -> None:
        """Makes ids that are looked up in several tables inputs to explain, for a method without gradients."""
        self.features, self.missing = {**self.features, **self.ids}, {}

    together = 1  # copies of the row in one pass
    head: nn.Module | None = None  # whose scores are needed at one place of each row alone
    places: list[int] | None = None  # these places, once a pass has told how many there are
    place: Callable[[int, Tensor | None, int], list[int] | None]  # of so many positions, padding and rows

    def run(self, values: Mapping[str, Tensor] | None = None) -> Output:
        """The output with these values in place of some features; random parts draw the same numbers every time."""
        values = values or {}
        inputs = dict(self.inputs)
        inputs.update({n: v.to(inputs[n].dtype) for n, v in values.items() if self.features[n].table is None})
        tables = {name: value for name, value in values.items() if self.features[name].table is not None}
        hooks = [self.features[name].table.register_forward_hook(self._replaced(name, v)) for name, v in tables.items()]  # type: ignore[union-attr]
        try:
            with torch.random.fork_rng(devices=[]), self._narrowed():
                torch.manual_seed(0)
                return self.model(**inputs)
        finally:
            for hook in hooks:
                hook.remove()

    def copies(self, count: int) -> Explained:
        """The call with its one row `count` times."""
        rows = {n: v.expand(count, *v.shape[1:]) for n, v in self.inputs.items()}
        made = Explained(self.model, rows, self.only)
        if made.ids.keys() <= self.features.keys():
            made.by_ids()
        made.head, made.places = self.head, self.places
        return made

    def room(self, logits: Tensor | None) -> int:
        """The copies of the row that fit into one pass; 1 where rows act on each other or belong to no one."""
        model = self.model
        single = all(v.ndim > 0 and len(v) == 1 for v in self.inputs.values())
        if not single or model.alike or model.across or model.inserts(self.inputs):
            return 1
        size = max(
            [1, *(f.value.numel() for f in self.features.values())] + ([] if logits is None else [logits.numel()])
        )
        return max(1, min(COPIES, NUMBERS // size))

    @contextmanager
    def _narrowed(self) -> Iterator[None]:
        """The head scores the places that are needed alone, row by row: the same digits with few and many copies."""
        if self.head is None:
            yield
            return
        before = vars(self.head).get("forward")
        plain: Any = self.head.forward

        def forward(x: Tensor, flow: Flow) -> Tensor:
            if self.places is None:
                self.places = self.place(x.shape[1], flow.keep_now(x.shape[1]), len(x))
            if self.places is None:
                return plain(x, flow)
            every = self.places * len(x) if len(self.places) == 1 else self.places
            return torch.cat([plain(x[i : i + 1, at : at + 1], flow) for i, at in enumerate(every)])  # (B, 1, V)

        self.head.forward = forward  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            del self.head.forward
            if before is not None:
                self.head.forward = before  # type: ignore[method-assign]

    def _replaced(self, name: str, value: Tensor) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            return value.to(output.dtype) if self._is(name, args[0]) else None

        return hook

    def _is(self, name: str, ids: Any) -> bool:
        """True if a table is asked for this input; source and target can share one."""
        mine, others = self.inputs[name], [self.inputs[n] for n in self.features if n != name]
        if ids is mine or any(ids is other for other in others):
            return ids is mine
        return isinstance(ids, Tensor) and ids.shape == mine.shape

    def _found(self) -> list[Feature]:
        found = []
        for entrance in self.model.entrances():
            for name, read in entrance.inputs().items():
                value = self.inputs.get(name)
                if value is None or not read.axes or name == entrance.mask:
                    continue
                plain = name.removeprefix(entrance.prefix)
                if not read.ids and value.is_floating_point():
                    found.append(self._numbers(name, value, read, entrance))
                elif read.ids and plain == entrance.front.main:
                    found += self._tokens(name, value, read, entrance)
        return found

    def _numbers(self, name: str, value: Tensor, read: Input, entrance: Entrance) -> Feature:
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinity; fill such places with 0 and mark them in a mask")
        axes = read.axes[-(value.ndim - 1) :] if value.ndim > 1 else ()
        cells = None
        if axes[-2:] == ("height", "width"):
            cells = entrance.front.cells(entrance.given(self.inputs))
            if cells is not None and any(n % c for n, c in zip(value.shape[-2:], cells, strict=True)):
                cells = None
        keep = self.inputs.get(entrance.mask) if entrance.mask and read.counted else None
        return Feature(name, value.detach(), axes, keep=None if keep is None else keep.bool(), cells=cells)

    def _tokens(self, name: str, ids: Tensor, read: Input, entrance: Entrance) -> list[Feature]:
        front = entrance.front
        table = next(
            (t for n in ("tokens", "node") if isinstance(t := getattr(front, n, None), nn.Embedding | GridTable)), None
        )
        if table is None:
            self.missing[name] = (
                f"{name}: {type(front).__name__} has no single table of tokens, whose rows integrated gradients and "
                "occlusion would change; pass only=, the other inputs to explain, or method='occlusion' with a token's "
                "id as baseline"
            )
            keep = self.inputs.get(entrance.mask) if entrance.mask else None
            self.ids[name] = Feature(name, ids.double(), read.axes, keep=None if keep is None else keep.bool())
            return []
        keep = self.inputs.get(entrance.mask) if entrance.mask else None
        vectors = rows_of(table, ids)
        return [Feature(name, vectors, (*read.axes, "channels"), table, None if keep is None else keep.bool())]

    def baseline(self, wanted: Any) -> Values:
        """The values that stand for no information, in the shape of each feature.

        Args:
            wanted: "mean": of the token table, and of the real units of each channel of numbers; "zeros"; "pad": the
                row of the padding token; "blur": a picture without detail; an id or the text of a token; a tensor for
                a call with one feature; or a dictionary of these by the name of the input.
        """
        if isinstance(wanted, Mapping):
            for name in wanted:
                if name not in self.features:
                    raise ValueError(f"baseline: {name!r} is no input of this call; it has {', '.join(self.features)}")
            return {n: self._baseline(f, wanted.get(n, "mean")) for n, f in self.features.items()}
        if isinstance(wanted, Tensor) and len(self.features) > 1:
            raise ValueError(f"baseline: this call has several inputs, {', '.join(self.features)}; pass one for each")
        return {n: self._baseline(f, wanted) for n, f in self.features.items()}

    def _baseline(self, feature: Feature, wanted: Any) -> Tensor:
        value, table = feature.value, feature.table
        if isinstance(wanted, Tensor):
            if wanted.shape != value.shape:
                raise ValueError(
                    f"baseline of {feature.name}: expected the shape {tuple(value.shape)}, got {tuple(wanted.shape)}"
                )
            return wanted.to(value)
        if isinstance(wanted, int) and feature.name in self.ids:
            return torch.full_like(value, wanted)
        if isinstance(wanted, int) or (isinstance(wanted, str) and wanted not in BASELINES):
            if table is None:
                raise ValueError(f"baseline {wanted!r} is a token, and {feature.name} are numbers; use mean or zeros")
            from anyformer.explain.target import token_id

            return self._row(table, token_id(self.model, wanted)).expand_as(value)
        if wanted == "zeros":
            return torch.zeros_like(value)
        if wanted == "pad" and table is not None:
            if self.model.tokenizer is None:
                raise ValueError("baseline 'pad' needs a tokenizer, which has a padding token; pass the token's id")
            return self._row(table, self.model.tokenizer.pad_id).expand_as(value)
        if wanted == "blur" and feature.axes[-2:] == ("height", "width"):
            return blurred(value)
        if wanted in ("pad", "blur"):
            what = "of tokens" if wanted == "pad" else "of pictures"
            raise ValueError(f"baseline {wanted!r} is one {what}, and {feature.name} is another input; use mean")
        if wanted != "mean":
            raise ValueError(f"baseline: expected {', '.join(BASELINES)}, a token or a tensor; got {wanted!r}")
        if table is not None:
            every = table.dequantised().to(value) if isinstance(table, GridTable) else table.weight.detach()
            return every.mean(0).expand_as(value)
        return self._mean(feature)

    def _row(self, table: Tokens, token: int) -> Tensor:
        return rows_of(table, torch.tensor([token], device=next(self.model.parameters()).device))[0]

    def _mean(self, feature: Feature) -> Tensor:
        """The mean over the real units, for each row and channel."""
        value = feature.value
        over = [i for i, axis in enumerate(feature.axes, 1) if axis not in CHANNELS]
        if not over:
            return torch.zeros_like(value)
        real = torch.ones_like(value)
        if feature.keep is not None:
            real = real * feature.spread(feature.keep.to(value.dtype))
        return ((value * real).sum(over, keepdim=True) / real.sum(over, keepdim=True).clamp(min=1)).expand_as(value)


def rows_of(table: Tokens, ids: Tensor) -> Tensor:
    """The rows of some ids, (…, D), as they are stored."""
    return (table(ids) if isinstance(table, GridTable) else F.embedding(ids, table.weight)).detach()


def blurred(pixels: Tensor) -> Tensor:
    """A picture (…, height, width) under a Gauss bell of a sixth of its shorter side."""
    side = min(pixels.shape[-2:])
    sigma = max(1.0, side / 6)
    half = min(side - 1, math.ceil(2 * sigma))
    bell = torch.exp(-0.5 * (torch.arange(-half, half + 1, device=pixels.device) / sigma) ** 2).to(pixels)
    bell = bell / bell.sum()
    flat = F.pad(pixels.flatten(0, -3)[:, None], (half,) * 4, mode="reflect")
    flat = F.conv2d(F.conv2d(flat, bell[None, None, :, None]), bell[None, None, None])
    return flat[:, 0].reshape(pixels.shape)
