"""Memory tokens: learned vectors before the text. B batch, T time, S tokens so far, D width, m memory tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer, OverTime
from anyformer.core.state import Slot


class MemoryTokens(Mixer):
    """Blocks with m learned tokens before the text (Memory Transformer: Burtsev et al., 2020;
    arXiv:2006.11527).

    ```
    x (B, T, D) ──┐                                    ┌── (B, T, D)
                  ├── (B, m + T, D) ── block x N ──────┤
    m vectors ────┘                                    └── m vectors, dropped
    ```
    In an encoder they see the text and the text sees them: room for other content than tokens. In a decoder they
    precede everything, so they are the same for every text. They take the positions 0 … m - 1, and texts begin at m; in
    rows padded on the left they are between the padding and the text. Any model gets them by one line:

    ```python
    recipe.but({"blocks": [MemoryTokens.of(8, recipe.options["blocks"])]})      # or "encoder.blocks", …
    ```
    Args:
        tokens: m.
        blocks: one recipe a layer.

    Shape: (B, T, D) -> same. State: their index in each row, (B,), beside the states of the blocks.
    """

    def __init__(self, dim: int, tokens: int, blocks: Any):
        super().__init__()
        if tokens < 1:
            raise ValueError(f"MemoryTokens: tokens must be at least 1; got {tokens}")
        self.tokens = nn.Parameter(torch.empty(tokens, dim))
        self.blocks = nn.ModuleList(b.build(dim) for b in blocks)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.tokens, std=0.02)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        m, T, slot = len(self.tokens), x.shape[1], flow.slot(self)
        keep, now = flow.keep, flow.keep_now(T)
        if slot is not None and slot.at is not None:
            if now is not None and not bool(now.all()):
                raise ValueError(
                    "MemoryTokens: padding after the memory tokens; with a state, give every row a token of its text "
                    "in the first call"
                )
            keep = None if keep is None else picked(ahead(keep, m), inserted(slot.at, m, keep.shape[1]))
            return self._through(x, flow.inside(flow.positions + m, keep, flow.first + m))
        positions = torch.arange(m, device=x.device).expand(*flow.positions.shape[:-1], m)
        positions = torch.cat((positions, flow.positions + m), -1)  # (m + T,) or (B, m + T)
        x = torch.cat((self.tokens.to(x.dtype).expand(x.shape[0], -1, -1), x), 1)  # (B, m + T, D)
        at = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
        if keep is not None and now is not None:
            at = torch.where(now.any(1), now.long().argmax(1), T)  # (B,): after the padding
            order = inserted(at, m, T)  # (B, m + T)
            x, keep = picked(x, order), picked(ahead(keep, m), order)
            positions = picked(positions.expand_as(order), order)
        if slot is not None:
            slot.at = at
            for mixer in (p for p in self.modules() if isinstance(p, OverTime) and p is not self):
                flow.state.prefix[mixer] = flow.state.prefix.get(mixer, 0) + m  # type: ignore[union-attr]
        x = self._through(x, flow.inside(positions, keep))
        if keep is None:
            return x[:, m:]
        text = torch.arange(T, device=x.device)
        return picked(x, text + m * (text >= at[:, None]))

    def _through(self, x: Tensor, flow: Flow) -> Tensor:
        for block in self.blocks:
            x = block(x, flow)
        return x

    def start(self, batch: int, length: int, like: Tensor) -> Inserted:
        return Inserted()


class Inserted(Slot):
    """The index of the memory tokens of each row: `at` (B,) is the number of tokens of padding before them; None = not
    read yet."""

    def __init__(self) -> None:
        self.at: Tensor | None = None

    def reorder(self, index: Tensor) -> None:
        self.at = None if self.at is None else self.at[index]

    def trim(self, length: int) -> None:
        """Keeps the memory tokens."""

    @property
    def joins(self) -> bool:
        return True

    def shift(self, count: int) -> None:
        self.at = None if self.at is None else self.at + count

    def join(self, other: Inserted) -> None:
        self.at = None if self.at is None or other.at is None else torch.cat((self.at, other.at))

    def bytes(self) -> int:
        return 0 if self.at is None else self.at.nbytes


def ahead(keep: Tensor, count: int) -> Tensor:
    """(B, S) with `count` real tokens in front."""
    return torch.cat((keep.new_ones(keep.shape[0], count), keep), 1)


def inserted(at: Tensor, count: int, length: int) -> Tensor:
    """The order that moves the first `count` of n = count + length columns to the column `at`, (B,) -> (B, n)."""
    column, at = torch.arange(count + length, device=at.device), at[:, None]
    return torch.where(column < at, column + count, torch.where(column < at + count, column - at, column))


def picked(x: Tensor, order: Tensor) -> Tensor:
    """The columns of (B, n) or (B, n, D) in another order, (B, k)."""
    return x.gather(1, order if x.ndim == 2 else order[..., None].expand(-1, -1, x.shape[2]))
