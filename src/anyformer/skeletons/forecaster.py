"""Forecasters of time series. B rows, S steps of context, H steps ahead, D width, P parameters of a law."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.front import Entrance
from anyformer.core.part import Part
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Head
from anyformer.core.state import Memory
from anyformer.parts.series.laws import Law
from anyformer.parts.series.window import Series, Window
from anyformer.skeletons.base import Output, Skeleton, embed_inputs
from anyformer.skeletons.stack import Stack


@dataclass(frozen=True)
class Read:
    """What a forecaster knows of windows that it has read."""

    window: Window
    memory: Tensor  # (B, S', D) the encoder's
    flow: Flow

    def repeated(self, count: int) -> Read:
        """Each row `count` times, for as many draws."""
        return replace(self, window=self.window.repeated(count), memory=self.memory.repeat_interleave(count, 0))


class Forecaster(Skeleton, Part):
    """An encoder of the past, and a decoder whose steps ahead have laws (Informer, Autoformer).

    ```
    past_values … -> embed -> rows (B, S, F) -> encoder -> memory
                       └─ rows ahead (B, H, F) -> decoder ──┴ cross -> head -> heads.forecast (B, H, P)
    ```
    `beside.shift` and `beside.scale` are those of each window.

    Args:
        dim: width of both streams.
        embed: `Series.of(...)`.
        encoder, decoder: stacks whose `entry` takes the rows in: `Inward.of(...)`.
        head: `Forecast.of(...)`.
        causal: a step ahead sees the ones before it only.
    """

    lesson = (200, 2e-3)  # a likelihood first has to find the scale of the values
    static = frozenset({"steps"})

    def __init__(
        self,
        dim: int,
        embed: Recipe[Series],
        encoder: Recipe[Stack],
        decoder: Recipe[Stack],
        head: Recipe[Head],
        causal: bool = True,
    ):
        super().__init__()
        self.embed, self.encoder, self.decoder = embed.build(dim), encoder.build(dim), decoder.build(dim)
        self.heads, self.causal = nn.ModuleDict({"forecast": head.build(dim)}), causal

    def entrances(self) -> tuple[Entrance, ...]:
        return (Entrance(self.embed),)

    @property
    def law(self) -> Law:
        """The law of its forecasts."""
        head: Any = self.heads["forecast"]
        return head.law

    @property
    def stepwise(self) -> bool:
        """True if it forecasts one step after another."""
        return self.embed.start is None

    def forward(self, **inputs: Tensor | None) -> Output:
        """A window by name (`model.inputs()`) to an Output with the parameters of the law of each step ahead,
        `heads.forecast` (B, H, P) or with several targets (B, H, C, P).
        """
        named = self.check_inputs(inputs)
        return self.told(self.read(named), named)

    def read(self, named: Mapping[str, Tensor]) -> Read:
        """The past of windows, read once."""
        tensors, flow = self.begin(self.entrances()[0], named)
        x, flow = self.encoder(embed_inputs(self.embed, tensors, flow), flow)
        return Read(flow.get(Window, "Forecaster"), x, flow)

    def told(self, read: Read, named: Mapping[str, Tensor]) -> Output:
        """The steps ahead of windows that were read, by `future_values` and `future_time_features`."""
        names = ("future_values", "future_time_features")
        ahead = {name: named[name] for name in names if name in named}
        front, window = self.embed, read.window
        rows = front.ahead(window, ahead)  # (B, n, F)
        places = torch.arange(front.first, front.first + rows.shape[1], device=rows.device)
        flow = Flow(places, causal=self.causal, memory=Memory(read.memory), taps=self.taps)
        flow.put(window)
        flow.take(read.flow)
        x, flow = self.decoder(rows, flow)  # (B, n, D)
        forecast = self.heads["forecast"](x, flow)[:, -rows.shape[1] + (front.start or 0) :]
        shift, scale = (
            v.to(x.dtype) if front.size > 1 else v[..., 0].to(x.dtype) for v in (window.shift, window.scale)
        )
        return Output(
            x, forecast, {"forecast": forecast}, memory=read.memory, aux=flow.aux, figures=flow.figures,
            beside={"shift": shift, "scale": scale},
        )  # fmt: skip

    def encode(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **inputs: Tensor | None
    ) -> Tensor:
        """The encoder's memory (B, S, D) of windows."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        return self.read(self.check_inputs(given)).memory
