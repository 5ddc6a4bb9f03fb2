"""Attention with global tokens, marked in each batch: they see all of their text and are seen by all of it.

```
        keys 0 1 2 3 4 5 6 7          ■  window, by q k v     □  a global token, by q k v
query 0      ◆ ◆ ◆ ◆ ◆ ◆ ◆ ◆          ◆  by projections of their own, wide.q wide.k wide.v
      1      □ ■ ■ · · · · ·
      2      □ ■ ■ ■ · · · ·          the window is `mask`; tokens 0 and 5 are global
      3      □ · ■ ■ ■ □ · ·
      4      □ · · ■ ■ □ · ·
      5      ◆ ◆ ◆ ◆ ◆ ◆ ◆ ◆
      6      □ · · · · □ ■ ■
      7      □ · · · · □ ■ ■
```
B batch, T time (queries and keys), D width, H heads, K head width, N most global tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from anyformer.core.flow import Companion, Flow
from anyformer.parts.attention.attention import Attention
from anyformer.parts.attention.kernels import attend, reader, weights
from anyformer.parts.attention.masks import CHUNK, Full, Mask, Packed, View, view


@dataclass(frozen=True)
class GlobalTokens(Companion):
    """The tokens (B, T), True = global, that attend to all of their text and are attended by all of it."""

    left_by: ClassVar[str] = "GlobalEncoder"
    per_position: ClassVar[bool] = True
    mask: Tensor


@dataclass(frozen=True)
class Marked(View):
    """A view in which every query of a text sees its keys `wide` (B, T)."""

    wide: Tensor | None = None

    def rows(self, start: int, stop: int) -> Marked:
        """The same as `queries`: a global key can be anywhere."""
        return self.queries(start, stop)

    def columns(self, start: int, stop: int) -> Marked:
        """The same for the keys start … stop only."""
        near = View.columns(self, start, stop)
        return Marked(**vars(near), wide=None if self.wide is None else self.wide[:, start:stop])

    def nothing(self) -> bool:
        """True only without queries or keys: any key can be global."""
        return not self.count or not self.keys

    def whole(self) -> Tensor:
        """The mask of a global token, (1 or B, 1, T, S): all of its text."""
        return View.tensor(replace(self, mask=Full()))

    def tensor(self) -> Tensor:
        """The mask, (1 or B, 1, T, S)."""
        seen = super().tensor()
        return seen if self.wide is None else seen | (self.whole() & self.wide[:, None, None])


@dataclass(frozen=True)
class Few:
    """The indices of the global tokens: `index` (B, N), padded; `real` (B, N) marks the valid entries."""

    index: Tensor
    real: Tensor

    def of(self, x: Tensor) -> Tensor:
        """The global tokens' part of x (B, H, T, K), (B, H, N, K)."""
        return x.gather(2, self.index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


class GlobalAttention(Attention):
    """Attention within a mask, and to global tokens, `GlobalTokens` in the flow (Beltagy et al., 2020;
    arXiv:2004.05150).

    An ordinary token sees the keys of its mask and all global tokens, in one softmax, by q, k and v. A global token
    sees all of its text, by q, k and v of its own, `wide.q` …; without global tokens these are not used.

    With a mask of width w and N global tokens, time and memory are O(T (w + N)): chunks of queries against the keys
    in reach, preceded by the global ones (`kernel="chunked"`, and "auto" if the text is long), and N queries
    against all keys. Any other kernel, and an exported program, compute all pairs.

    Args:
        heads: H. bias: of all projections. mask, dropout, kernel: as in `Attention`.

    Taps: `weights` (B, H, T, S).
    Shape: (B, T, D) -> same.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        bias: bool = True,
        mask: Mask | None = None,
        dropout: float = 0.0,
        kernel: str = "auto",
    ):
        super().__init__(dim, heads, bias=bias, mask=mask, dropout=dropout, kernel=kernel)
        self.wide = nn.ModuleDict({name: nn.Linear(dim, heads * self.head_dim, bias) for name in ("q", "k", "v")})

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        self.needs_both_ways(flow)
        T = x.shape[1]
        seen = flow.once((GlobalAttention, self.mask), lambda: self._seen(flow, T, x.device))
        q, k, v = (self._heads(p(x)) for p in (self.q, self.k, self.v))  # (B, H, T, K) each
        if flow.taps is not None and flow.taps.wants(self, "weights"):
            flow.taps.offer(self, "weights", self._weights(x, q, k, seen), T)
        few = flow.once("few", lambda: _few(seen))
        dropout = self.dropout if self.training else 0.0
        if self.kernel == "chunked" or (self.kernel == "auto" and seen.local()):
            pieces = flow.once((GlobalAttention, self.mask, "pieces"), lambda: _pieces(seen, few))
            y = _chunked(q, k, v, pieces, few, dropout)
        else:
            mask = flow.once((GlobalAttention, self.mask, "mask"), lambda: None if seen.everything() else seen.tensor())
            y = attend(q, k, v, seen, mask, dropout=dropout, kernel=self.kernel)
        if few is not None:
            y = self._with_global(x, y, seen, few, dropout)
        return self.o(y.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return self._split(x, self.heads).transpose(1, 2)  # (B, H, T, K)

    def _seen(self, flow: Flow, count: int, device: torch.device) -> Marked:
        tokens = flow.find(GlobalTokens)
        return Marked(**vars(view(flow, self.mask, count, count, device)), wide=None if tokens is None else tokens.mask)

    def _with_global(self, x: Tensor, y: Tensor, seen: Marked, few: Few, dropout: float) -> Tensor:
        """y (B, H, T, K) with the global tokens' own outputs in their place."""
        theirs = x.gather(1, few.index[..., None].expand(-1, -1, x.shape[2]))  # (B, N, D)
        q, k, v = (self._heads(self.wide[name](of)) for name, of in (("q", theirs), ("k", x), ("v", x)))
        N, mine = few.index.shape[1], None
        if seen.mine is not None:
            mine = Packed(seen.mine.ids.gather(1, few.index), seen.mine.positions.gather(1, few.index))
        whole = View(Full(), 0, N, 0, seen.keys, seen.keep, seen.device, mine, seen.theirs)
        far = attend(q, k, v, whole, dropout=dropout, kernel=self.kernel)  # (B, H, N, K)
        assert seen.wide is not None
        at = few.index[:, None, :, None].expand_as(far)
        return torch.where(seen.wide[:, None, :, None], torch.zeros_like(y).scatter(2, at, far), y)

    def _weights(self, x: Tensor, q: Tensor, k: Tensor, seen: Marked) -> Callable[[slice], Tensor]:
        """Rows (B, H, t, S) of ordinary tokens, and of global ones by projections of their own."""
        wide = seen.wide
        far = None if wide is None else (self._heads(self.wide["q"](x)), self._heads(self.wide["k"](x)))

        def rows(at: slice) -> Tensor:
            part = seen.queries(at.start, at.stop)
            near = weights(q[:, :, at], k, part.tensor())
            if wide is None or far is None:
                return near
            return torch.where(wide[:, None, at, None], weights(far[0][:, :, at], far[1], part.whole()), near)

        return rows


def _few(seen: Marked) -> Few | None:
    """The global tokens of each row, or None if there are none."""
    if seen.wide is None:
        return None
    counts = seen.wide.sum(1)  # (B,)
    most = seen.keys if seen.open() else int(counts.max())  # in an exported program no shape depends on the data
    if not seen.open() and most == 0:
        return None
    index = seen.wide.int().argsort(dim=1, descending=True, stable=True)[:, :most]  # (B, N), each token once
    return Few(index, torch.arange(most, device=index.device) < counts[:, None])


def _pieces(seen: Marked, few: Few | None) -> list[tuple[slice, Tensor]]:
    """`CHUNK` queries each, the keys in their reach, and their mask over the global tokens and these keys."""
    pieces = []
    for start in range(0, seen.count, CHUNK):
        rows = slice(start, min(start + CHUNK, seen.count))
        near = View.rows(seen, rows.start, rows.stop)
        low = near.key - seen.key
        columns, mask = slice(low, low + near.keys), View.tensor(near)  # (1 or B, 1, t, s)
        if few is not None:
            assert seen.wide is not None
            mask = mask & ~seen.wide[:, None, None, columns]  # they come first, once
            front = few.real[:, None, None].expand(-1, 1, rows.stop - start, -1)  # (B, 1, t, N)
            if seen.mine is not None:
                front = front & (
                    seen.mine.ids[:, None, rows, None] == seen.mine.ids.gather(1, few.index)[:, None, None]
                )
            mask = torch.cat((front, mask), -1)
        pieces.append((columns, mask))
    return pieces


def _chunked(
    q: Tensor, k: Tensor, v: Tensor, pieces: list[tuple[slice, Tensor]], few: Few | None, dropout: float
) -> Tensor:
    """Chunks of queries against the global keys and those in reach: O(T (w + N)). (B, H, T, K)."""
    front = None if few is None else (few.of(k), few.of(v))  # (B, H, N, K) each
    out, keys_of, values_of = [], reader(k), reader(v)
    for asked, (columns, mask) in zip(q.split(CHUNK, 2), pieces, strict=True):
        keys, values = keys_of(columns.start, columns.stop), values_of(columns.start, columns.stop)
        if front is not None:
            keys, values = torch.cat((front[0], keys), 2), torch.cat((front[1], values), 2)
        out.append(torch.nn.functional.scaled_dot_product_attention(asked, keys, values, mask, dropout))
    return torch.cat(out, 2)
