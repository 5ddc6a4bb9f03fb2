"""The front-end of time series: a window of the past, scaled, with its lags and features.

B rows, P steps of the past, S steps of context, H steps ahead, C targets of a step, L lags, F numbers of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from anyformer.core.flow import Companion, Flow
from anyformer.core.front import FrontEnd, Input, Inputs
from anyformer.core.part import check_option
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Norm, Positions
from anyformer.parts.embeddings import Entry, Sinusoidal, Table

SCALINGS = ("mean", "std", "none")
LEAST = {"mean": 1e-10, "std": 1e-5}  # of a scale; of a variance


@dataclass(frozen=True)
class Window(Companion):
    """The past of each row in its own scale, and what is the same at all its steps."""

    left_by: ClassVar[str] = "Series"
    values: Tensor  # (B, P, C), scaled
    lagged: Tensor  # (B, S, C L) those before each step of the context
    shift: Tensor  # (B, 1, C)
    scale: Tensor  # (B, 1, C)
    fixed: Tensor  # (B, G) static features, shift and scale among them
    times: Tensor  # (B, S, K) features of the steps of context
    start: int | None  # steps of the context before those ahead

    def repeated(self, count: int) -> Window:
        """Each row `count` times."""
        names = ("values", "lagged", "shift", "scale", "fixed", "times")
        return replace(self, **{name: getattr(self, name).repeat_interleave(count, 0) for name in names})

    def scaled(self, values: Tensor) -> Tensor:
        """(B, T, C) in the scale of the window; what is missing (NaN) is 0 before."""
        return (values.nan_to_num(0.0) - self.shift) / self.scale


class Series(FrontEnd):
    """A window of a time series as rows of numbers, one a step (Salinas et al., 2017, "DeepAR"; arXiv:1704.04110).

    ```
    row of step t:  (x[t - lag] - shift) / scale, targets, lags │ static │ log(1 + |shift|) │ log scale │ time[t]
    ```
    Shift and scale are those of the context alone, of its observed values; so nothing of the future, and no other row,
    enters them. Without any observed value shift is 0 and scale 1. A missing value is NaN, or marked by 0 in
    `past_observed_mask`; its content is never read: it counts as 0.

    The window has S + the largest lag steps. The rows of the context are the output, and those of the steps ahead come
    from `ahead`:

    - start None: one step after another. The row of a step has the values before it (`future_values`), true ones in
      training, drawn ones in a forecast. So the last one of them is never read.
    - start n: all at once. The last n rows of the context begin them. Lags that reach the past hold its values, those
      of steps ahead are 0.

    Args:
        context: S. `horizon`: H, the most steps ahead. `size`: C.
        lags: steps back, at least 1: with 0 a row would hold the value that it predicts.
        scaling: mean (of absolute values), std, or none.
        times: K, features of a step that are known ahead: calendar, covariates.
        numbers: static numbers of a series. `categories`: the sizes of its static categories, whose vectors have
            `widths`.
        start: see above.

    Shape: (B, P) or with several targets (B, P, C) -> (B, S, F), whatever the width of the stream.
    """

    main = "past_values"

    def __init__(
        self,
        dim: int,
        context: int,
        horizon: int,
        size: int = 1,
        lags: Sequence[int] = (1, 2, 3, 4, 5, 6, 7),
        scaling: str = "mean",
        times: int = 0,
        numbers: int = 0,
        categories: Sequence[int] = (),
        widths: Sequence[int] = (),
        start: int | None = None,
    ):
        super().__init__()
        check_option("Series", "scaling", scaling, SCALINGS)
        if min(context, horizon, size) < 1 or min(times, numbers) < 0:
            raise ValueError(
                f"Series: context={context}, horizon={horizon} and size={size} must be at least 1, times={times} and "
                f"numbers={numbers} at least 0"
            )
        if not lags or min(lags) < 1:
            raise ValueError(
                f"Series: lags are steps back, at least 1, got {tuple(lags)}: with a lag of 0 a row holds the value "
                "that it predicts"
            )
        if len(categories) != len(widths) or min((*categories, *widths, 1)) < 1:
            raise ValueError(
                f"Series: each of the categories {tuple(categories)} needs a size and a width of at least 1, and the "
                f"widths are {tuple(widths)}"
            )
        if start is not None and not 0 <= start <= context:
            raise ValueError(f"Series: start={start} steps of the context, which has {context}")
        self.context, self.horizon, self.size, self.start = context, horizon, size, start
        self.lags, self.scaling, self.times, self.numbers = tuple(lags), scaling, times, numbers
        self.past = context + max(lags)
        self.categories = nn.ModuleList(Table(n, width) for n, width in zip(categories, widths, strict=True))
        self.first = context if start is None else context - start  # place of the first row of `ahead`

    def inputs(self) -> dict[str, Input]:
        values, fixed = (("time",), ("time",)) if self.size == 1 else (("time", "targets"),) * 2
        ahead, open_ = (("steps",), ()) if self.size == 1 else (("steps", "targets"), ("targets",))
        read = {
            "past_values": Input(values, fixed=fixed),
            "past_observed_mask": Input(values, fixed=fixed, required=False, ids=True),
            "past_time_features": Input(("time", "features"), fixed=("time", "features"), required=self.times > 0),
            "future_time_features": Input(("steps", "features"), fixed=("features",), required=self.times > 0),
        }
        if self.start is None:
            read["future_values"] = Input(ahead, fixed=open_)
        if self.numbers:
            read["static_real_features"] = Input(("numbers",), fixed=("numbers",))
        if len(self.categories):
            read["static_categorical_features"] = Input(("categories",), fixed=("categories",), ids=True)
        return read

    def length(self, inputs: Inputs) -> int:
        past = inputs["past_values"]
        if past.ndim == 2 + (self.size > 1) and past.shape[1] < self.past:
            raise ValueError(
                f"past_values has {past.shape[1]} steps, and the model needs {self.past}: a context of {self.context} "
                f"and a largest lag of {max(self.lags)}"
            )
        steps = [inputs[n].shape[1] for n in ("future_values", "future_time_features") if n in inputs]
        wide = () if self.size == 1 else (self.size,)
        wanted: dict[str, tuple[Any, ...]] = {
            "past_values": (self.past, *wide),
            "past_observed_mask": (self.past, *wide),
            "past_time_features": (self.past, self.times),
            "future_time_features": (steps[0] if steps else self.horizon, self.times),
            "future_values": (steps[0] if steps else self.horizon, *wide),
            "static_real_features": (self.numbers,),
            "static_categorical_features": (len(self.categories),),
        }
        for name, value in inputs.items():
            if tuple(value.shape) != (past.shape[0], *wanted[name]):
                shape = ", ".join(map(str, ("batch", *wanted[name])))
                raise ValueError(f"{name} must be ({shape}), got {tuple(value.shape)}")
        if any(not 0 < count <= self.horizon for count in steps):
            raise ValueError(f"{steps[0]} steps ahead, and the model's horizon is 1 to {self.horizon}")
        return self.context

    def example(self, rows: int, size: tuple[int, ...], noise: torch.Generator) -> dict[str, Tensor]:
        wide = () if self.size == 1 else (self.size,)
        there = torch.rand(rows, self.past, *wide, generator=noise) < 0.8
        there[:, -1] = True
        made = {
            "past_values": (2 + 3 * torch.randn(rows, self.past, *wide, generator=noise)).masked_fill(~there, 0.0),
            "past_observed_mask": there.long(),
            "past_time_features": torch.randn(rows, self.past, self.times, generator=noise),
            "future_time_features": torch.randn(rows, self.horizon, self.times, generator=noise),
            "future_values": torch.randint(0, 9, (rows, self.horizon, *wide), generator=noise).float(),  # for any law
            "static_real_features": torch.randn(rows, self.numbers, generator=noise),
        }
        drawn = [torch.randint(0, t.num_embeddings, (rows,), generator=noise) for t in self._tables()]
        if drawn:
            made["static_categorical_features"] = torch.stack(drawn, 1)
        return {name: value for name, value in made.items() if name in self.inputs()}

    def sizes(self) -> list[tuple[int, ...]]:
        return [(self.past, self.horizon)]

    def check_ids(self, inputs: Inputs) -> None:
        for place, table in enumerate(self._tables()):
            ids = inputs["static_categorical_features"][:, place]
            bad = ids[(ids < 0) | (ids >= table.num_embeddings)]
            if len(bad):
                raise ValueError(
                    f"static_categorical_features[:, {place}] holds {int(bad[0])}: its category has the numbers 0 to "
                    f"{table.num_embeddings - 1}"
                )

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        window = self.window(inputs)
        flow.put(window)
        return self.joined(window, window.lagged, window.times)

    def window(self, inputs: Inputs) -> Window:
        """The window of the inputs."""
        past = self._wide(inputs["past_values"])
        past = past.to(torch.promote_types(past.dtype, torch.float32))  # 1e-10 is 0 in half precision
        mask = inputs.get("past_observed_mask")
        there = ~past.isnan() if mask is None else ~past.isnan() & self._wide(mask).bool()
        past = past.masked_fill(~there, 0.0)
        shift, scale = self.scales(past[:, -self.context :], there[:, -self.context :])
        fixed = [shift.abs().log1p().squeeze(1), scale.log().squeeze(1)]
        if self.numbers:
            fixed.insert(0, inputs["static_real_features"].to(past.dtype))
        ids = inputs.get("static_categorical_features")
        fixed = [*(t(ids[:, i]) for i, t in enumerate(self._tables())), *fixed] if ids is not None else fixed
        times = inputs.get("past_time_features", past.new_zeros(past.shape[0], self.past, 0))[:, -self.context :]
        values = (past - shift) / scale
        lagged = self.lagged(values, self.past - self.context, self.context)
        same = torch.cat([f.to(past.dtype) for f in fixed], 1)
        return Window(values, lagged, shift, scale, same, times, self.start)

    def scales(self, past: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale of the observed values, (B, S, C) -> (B, 1, C) each; missing ones are 0."""
        count = there.sum(1, keepdim=True)
        zero = torch.zeros_like(past[:, :1])
        if self.scaling == "none":
            return zero, zero + 1
        if self.scaling == "mean":
            mean = past.abs().sum(1, keepdim=True) / count.clamp(min=1)
            return zero, mean.where(count > 0, zero + 1).clamp(min=LEAST["mean"])
        shift = past.sum(1, keepdim=True) / count.clamp(min=1)
        spread = ((past - shift) * there).square().sum(1, keepdim=True) / count.clamp(min=1) + LEAST["std"]
        return shift, spread.sqrt().where(count > 0, zero + 1)

    def lagged(self, values: Tensor, first: int, count: int) -> Tensor:
        """The values before each of `count` steps from `first` on: (B, T, C) -> (B, count, C L)."""
        return torch.stack([values[:, first - lag : first - lag + count] for lag in self.lags], -1).flatten(2)

    def joined(self, window: Window, lagged: Tensor, times: Tensor) -> Tensor:
        """Lagged values (B, n, C L) with the features of their steps: (B, n, F)."""
        fixed = window.fixed[:, None].expand(-1, times.shape[1], -1)
        return torch.cat((lagged, fixed, times.to(lagged.dtype)), -1)

    def ahead(self, window: Window, inputs: Inputs) -> Tensor:
        """The rows from `self.first` on: a start of the context if there is one, then the steps ahead, (B, n, F)."""
        times = self.times_ahead(window, inputs)
        steps = times.shape[1]
        if self.start is None:
            known = window.scaled(self._wide(inputs["future_values"]).to(window.values.dtype))
        else:
            known = window.values.new_zeros(window.values.shape[0], steps, self.size)
        values = torch.cat((window.values, known), 1)
        rows = self.joined(window, self.lagged(values, self.past, steps), times)
        if self.start is None:
            return rows
        begun = slice(self.context - self.start, None)
        return torch.cat((self.joined(window, window.lagged[:, begun], window.times[:, begun]), rows), 1)

    def times_ahead(self, window: Window, inputs: Inputs) -> Tensor:
        """The features of the steps ahead, (B, n, K)."""
        if (times := inputs.get("future_time_features")) is not None:
            return times
        known = inputs.get("future_values")
        steps = self.horizon if known is None else known.shape[1]
        return window.values.new_zeros(window.values.shape[0], steps, 0)

    def _wide(self, values: Tensor) -> Tensor:
        """(B, T) or (B, T, C) -> (B, T, C)."""
        return values[..., None] if self.size == 1 else values

    def _tables(self) -> list[Any]:
        return list(self.categories)


class Stored(Positions):
    """Sines as in `Sinusoidal`, in a table of `context` rows that files hold and training leaves alone.

    Shape: positions (T,) or (B, T) -> (..., D).
    """

    weight: Tensor

    def __init__(self, dim: int, context: int):
        super().__init__()
        self.register_buffer("weight", torch.empty(context, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.weight.is_meta:  # nothing to compute, of a file's size, however large
            return
        with torch.device("cpu"):
            self.weight.copy_(Sinusoidal(self.weight.shape[1])(torch.arange(len(self.weight))))

    def forward(self, positions: Tensor) -> Tensor:
        return nn.functional.embedding(positions, self.weight)


class Inward(Entry):
    """The entry of one side: x = norm(W row + positions[position]), from rows of `features` numbers.

    Args:
        features: F. The others are those of `Entry`.

    Shape: (B, T, F) -> (B, T, D).
    """

    def __init__(
        self,
        dim: int,
        features: int,
        positions: Recipe[Positions] | None = None,
        norm: Recipe[Norm] | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(dim, positions, norm, dropout)
        self.proj = nn.Linear(features, dim, bias=False)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        kind = x.dtype if self.norm is None else self.norm.weight.dtype  # that of W may be 8 bits
        return super().forward(self.proj(x.to(kind)), flow)
