"""Stacks of forecasters. B rows, T steps, D width, F numbers of a row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.part import call
from anyformer.core.recipe import Recipe
from anyformer.parts.embeddings import Entry
from anyformer.parts.series.decomposition import Trend, check_width, trend
from anyformer.parts.series.distil import Distil
from anyformer.parts.series.window import Window
from anyformer.skeletons.stack import Stack


class DistilledStack(Stack):
    """Blocks with a part between each two of them that makes the stream shorter (Informer's encoder).

    Args:
        blocks: one recipe a layer. `entry`: before the first one.
        between: `Distil.of()`, or None.

    Shape: (B, T, F) -> (B, about T / 2^(blocks - 1), D), with the flow behind.
    """

    def __init__(
        self, dim: int, blocks: Any, entry: Recipe[Entry] | None = None, between: Recipe[Distil] | None = None
    ):
        super().__init__(dim, blocks, entry=entry)
        count = 0 if between is None else len(self.blocks) - 1
        self.between = nn.ModuleList(between.build(dim) for _ in range(count) if between is not None)

    def layers(self) -> Iterable[nn.Module]:
        for i, block in enumerate(self.blocks):
            yield block
            yield from self.between[i : i + 1]


class TrendStack(Stack):
    """Blocks that take trends off the stream and add them to that of the context (Autoformer's decoder).

    ```
    rows ahead: a start of the context, then those of the horizon
    season   lagged values of the context - their trend │ 0      ── entry ── block x N ──> (B, T, D)
    trend    their trend                                │ their mean  ──(+)── trends of the blocks ──> Trend (B, T, F)
    ```
    Both have the features of their steps behind the lagged values.

    Args:
        blocks: `TrendBlock.of(...)` a layer. `entry`: before the first one.
        average: steps of a trend's mean, an odd number.

    Shape: (B, T, F) -> (B, T, D), with the flow.
    """

    def __init__(self, dim: int, blocks: Any, entry: Recipe[Entry], average: int = 25):
        super().__init__(dim, blocks, entry=entry)
        self.average = check_width("TrendStack", average)

    def forward(self, rows: Tensor, flow: Flow) -> tuple[Tensor, Flow]:
        window = flow.get(Window, "TrendStack")
        if window.start is None:
            raise ValueError("TrendStack sees all steps ahead at once: build its front-end with a start, e.g. start=10")
        lagged = window.lagged  # (B, S, C L)
        ahead, first = rows.shape[1] - window.start, lagged.shape[1] - window.start
        level, features = trend(lagged, self.average), rows[..., lagged.shape[2] :]
        season = torch.cat(((lagged - level)[:, first:], lagged.new_zeros(rows.shape[0], ahead, lagged.shape[2])), 1)
        mean = lagged.mean(1, keepdim=True).expand(-1, ahead, -1)
        total = torch.cat((torch.cat((level[:, first:], mean), 1), features), -1)  # (B, T, F)
        x: Any = call(self.entry, torch.cat((season, features), -1), flow)
        for block in self.blocks:
            x, more = block(x, flow)
            total = total + more
        flow.put(Trend(total))
        return x, flow
