"""Block-sparse attention: blocks of tokens see their neighbours, the text's two ends, and a few random blocks.

```
        blocks of keys                  G  the first and the last block of a text see all of it, and are seen by all
        0 1 2 3 4 5 6 7                 w  a block sees itself and one on each side
query 0 G G G G G G G G                 r  and `random` others, drawn for each head
      1 G w w · r · · G
      2 G w w w · r · G
      3 G r w w w · · G                 …  Time and memory are O(T x size x (5 + random)).
```
B batch, T time, H heads, K head width, n blocks of a text, N of the longest one, C blocks that a block sees, b size.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer.core import checks
from anyformer.core.documents import counted
from anyformer.core.flow import Flow
from anyformer.parts.attention.attention import Attention
from anyformer.parts.attention.kernels import attend, offer
from anyformer.parts.attention.masks import Full, View

PLANNED = (1024, 3072, 4096)  # lengths in tokens at which the reference code draws by an older method
REACH = 1024  # tokens from which that method draws
NEVER = float("-inf")


@dataclass(frozen=True)
class Rows:
    """The tokens of each row: `place` (B, T) is their index among its real ones, `length` (B,) the number of these."""

    place: Tensor
    length: Tensor
    keep: Tensor | None

    def blocks(self, size: int) -> Tensor:
        """The number of blocks of each text, (B,)."""
        return (self.length + size - 1) // size


class BlockSparse(Attention):
    """BigBird's attention (Zaheer et al., 2020; arXiv:2007.14062), as its published code computes it.

    A text of n blocks that has more than `size` (5 + 2 random) tokens is sparse; a shorter one sees all of itself. In
    training numpy's generator draws the random blocks from `seed`, for each layer and head, so that a text has the
    same blocks in each step; in evaluation none is drawn, and the first block counts 1 + `random` times in each
    softmax, as in the evaluation of the published models. A row consists of its real tokens only: padding, on any
    side, and longer rows in the batch change nothing (in transformers they do).

    Args:
        heads: H. size: b, tokens of a block. random: random blocks per block. seed: of the draws; the layer's
            number, by custom.
        planned: the longest text, in tokens, for which the draws of texts of exactly 1024, 3072 and 4096 tokens are
            made.
        bias: of q, k and v. dropout: of the weights, for texts that see all of themselves.
        kernel: "auto" and "chunked" gather the visible blocks; all others compute all pairs, with the logarithm of
            each key's count as a bias.

    Taps: `weights` (B, H, T, S).
    Shape: (B, T, D) -> same.
    """

    packs = False

    def skips_gaps(self) -> bool:
        return False

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        size: int = 64,
        random: int = 3,
        seed: int = 0,
        planned: int = 4096,
        bias: bool = True,
        dropout: float = 0.0,
        kernel: str = "auto",
    ):
        super().__init__(dim, heads, bias=bias, out_bias=True, dropout=dropout, kernel=kernel)
        if size < 1 or random < 0:
            raise ValueError(f"BlockSparse: size is 1 or more, random 0 or more; got size={size}, random={random}")
        self.size, self.random, self.seed, self.planned = size, random, seed, planned
        self.least = size * (5 + 2 * random)  # a text of at most so many tokens sees all of itself

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        self.needs_both_ways(flow)
        T = x.shape[1]
        rows = flow.once(BlockSparse, lambda: _rows(flow, x))
        seen = View(Full(), 0, T, 0, T, flow.keep, x.device)
        if flow.taps is not None and flow.taps.wants(self, "weights"):
            q, k, _ = self._heads(x)
            offer(flow, self, q, k, seen, lambda part: self._counts(rows, T, part.query, part.count).log())
        if not seen.open() and (self.kernel == "chunked" or (self.kernel == "auto" and self.least < T)):
            return self.o(flow.clear(self._gathered(x, flow, rows)))  # padding's outputs differ by kernel: make them 0
        bias = self._often(flow, rows, T) if seen.open() or self.least < T else None
        dropout = self.dropout if self.training and bias is None else 0.0
        kernel = "auto" if self.kernel == "chunked" else self.kernel
        bias = None if bias is None else bias.to(x.dtype)
        y = attend(*self._heads(x), seen, bias=bias, dropout=dropout, kernel=kernel)  # (B, H, T, K)
        return self.o(flow.clear(y.transpose(1, 2).flatten(2)))

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, (B, H, T, K) each."""
        q, k, v = (self._split(p(x), self.heads).transpose(1, 2) for p in (self.q, self.k, self.v))
        return q, k, v

    def _draws(self) -> bool:
        return self.training and self.random > 0

    def _once(self, name: str) -> tuple[object, ...]:
        """The key of values shared by all layers that see the same blocks."""
        own = (self.seed, self.planned, self.heads) if self._draws() else ()
        return (BlockSparse, name, self.size, self.random, *own)

    def _drawn(self, rows: Rows, N: int) -> Tensor:
        """The random blocks of the inner blocks of every row, (B, H, N - 2, random); 0 for none."""
        draw = torch.compiler.disable(drawn) if torch.compiler.is_compiling() else drawn  # it would trace numpy
        blocks = torch.zeros(len(rows.length), self.heads, max(0, N - 2), self.random, dtype=torch.long)
        for row, length in enumerate(rows.length.tolist()):
            if length > self.least:
                n = -(-length // self.size)
                blocks[row, :, : n - 2] = draw(self.seed, self.heads, n, self.size, self.random, self.planned)
        return blocks.to(rows.length.device)

    def _often(self, flow: Flow, rows: Rows, T: int) -> Tensor:
        return flow.once(self._once("bias"), lambda: self._counts(rows, T, 0, T).log())

    def _counts(self, rows: Rows, T: int, first: int, count: int) -> Tensor:
        """The count of each key for `count` queries from the first one, (B, H or 1, t, T)."""
        block, last = rows.place // self.size, (rows.blocks(self.size) - 1)[:, None, None]  # (B or 1, T), (B, 1, 1)
        query, key = block[:, first : first + count, None], block[:, None]
        counts = ((query - key).abs().le(1) | key.eq(0) | key.eq(last)).float()[:, None]  # (B, 1, T, T)
        if self._draws():
            N = -(-T // self.size)
            table = self._drawn(rows, N)
            extra = torch.zeros(*table.shape[:2], N, N, device=table.device)
            extra[:, :, 1:-1].scatter_add_(3, table, torch.ones_like(table, dtype=extra.dtype))
            rowwise = extra.gather(2, query[:, None].expand(len(table), self.heads, -1, N))  # (B, H, T, N)
            counts = counts + rowwise.gather(3, key[:, None].expand(*rowwise.shape[:3], -1))
        else:
            counts = counts + self.random * key.eq(0)[:, None]
        whole = query.eq(0) | query.eq(last) | rows.length.le(self.least)[:, None, None]
        return torch.where(whole[:, None], 1.0, counts)

    def _gathered(self, x: Tensor, flow: Flow, rows: Rows) -> Tensor:
        """Attention of each block to copies of its visible blocks, (B, T, H K)."""
        T = x.shape[1]
        N = -(-T // self.size)
        if rows.keep is not None:  # real tokens first, so that a block is a slice
            order = rows.keep.int().argsort(dim=1, descending=True, stable=True)  # (B, T)
            x = x.gather(1, order[..., None].expand_as(x))
        q, k, v = (F.pad(t, (0, 0, 0, N * self.size - T)) for t in self._heads(x))  # (B, H, N b, K) each
        lay = torch.compiler.disable(self._layout) if torch.compiler.is_compiling() else self._layout  # shapes are data
        layout = flow.once(self._once("layout"), lambda: lay(rows, N))
        y = torch.zeros_like(q)
        if len(short := layout.short):
            some = slice(0, min(T, self.least))
            seen = View(Full(), 0, some.stop, 0, some.stop, layout.real[short, some], x.device)
            dropout = self.dropout if self.training else 0.0
            mine = [t[short][:, :, some] for t in (q, k, v)]
            attended = attend(mine[0], mine[1], mine[2], seen, dropout=dropout)
            y = y.index_copy(0, short, F.pad(attended, (0, 0, 0, y.shape[2] - some.stop)))
        if len(long := layout.long):
            y = y.index_copy(0, long, self._sparse(q[long], k[long], v[long], layout))
        y = y[:, :, :T].transpose(1, 2).flatten(2)
        return y if rows.keep is None else y.gather(1, order.argsort(1)[..., None].expand_as(y))

    def _layout(self, rows: Rows, N: int) -> Layout:
        """The visible blocks of the inner blocks of the sparse rows, partly drawn at random."""
        device, size = rows.length.device, self.size
        sparse = rows.length > self.least
        every = torch.arange(len(sparse), device=device)
        if rows.keep is None and not checks.traced():  # no need to look at the lengths, which may have no content
            long, short = (every, every[:0]) if rows.place.shape[1] > self.least else (every[:0], every)
        else:
            long, short = sparse.nonzero()[:, 0], (~sparse).nonzero()[:, 0]
        real = torch.arange(N * size, device=device) < rows.length[:, None]  # (B, N b)
        last = rows.blocks(size)[long, None] - 1  # (B', 1)
        inner = torch.arange(1, max(1, N - 1), device=device).expand(len(long), -1)  # (B', N - 2)
        columns = [torch.zeros_like(inner), inner - 1, inner, inner + 1, last.expand_as(inner)]
        hidden = [inner < 0, inner == 1, inner < 0, inner + 1 >= last, inner < 0]  # the ends are already included
        index, out = torch.stack(columns, -1)[:, None], torch.stack(hidden, -1)[:, None]  # (B', 1, N - 2, 5)
        often = torch.zeros_like(index, dtype=torch.float32)
        if self._draws():
            table = self._drawn(rows, N)[long]  # (B', H, N - 2, random)
            index = torch.cat((index.expand(-1, self.heads, -1, -1), table), -1)
            out = torch.cat((out.expand(-1, self.heads, -1, -1), torch.zeros_like(table, dtype=torch.bool)), -1)
            often = torch.zeros_like(index, dtype=torch.float32)
        else:
            often[..., 0] = math.log(1 + self.random)
        tokens = index[..., None] * size + torch.arange(size, device=device)  # (B', H or 1, N - 2, C, b)
        out = out[..., None] | (tokens >= rows.length[long][:, None, None, None, None])
        bias = often[..., None].expand_as(tokens).masked_fill(out, NEVER).flatten(-2)  # (B', H or 1, N - 2, C b)
        return Layout(long, short, real, index, bias, last[:, 0])

    def _sparse(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """The sparse rows, (B', H, N b, K): the inner blocks, and the two ends of each text."""
        q, k, v = (t.unflatten(2, (-1, self.size)) for t in (q, k, v))  # (B', H, N, b, K)
        B, H, N, b, K = q.shape
        at = layout.index.flatten(2).expand(B, H, -1)[..., None, None].expand(-1, -1, -1, b, K)
        keys, values = (t.gather(2, at).view(B, H * (N - 2), -1, K) for t in (k, v))  # (B', H (N - 2), C b, K)
        bias = layout.bias.to(q.dtype).expand(-1, H, -1, -1).flatten(1, 2)[:, :, None].expand(-1, -1, b, -1)
        inner = F.scaled_dot_product_attention(q[:, :, 1:-1].flatten(1, 2), keys, values, bias)
        ends = torch.stack((torch.zeros_like(layout.last), layout.last), 1)  # (B', 2)
        at = ends[:, None, :, None, None].expand(-1, H, -1, b, K)
        seen = layout.real[layout.long][:, None, None]  # (B', 1, 1, N b)
        whole = F.scaled_dot_product_attention(q.gather(2, at).flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3), seen)
        whole = whole.unflatten(2, (2, b))  # (B', H, 2, b, K)
        y = torch.cat((whole[:, :, :1], inner.unflatten(1, (H, N - 2)), torch.zeros_like(whole[:, :, :1])), 2)
        return y.scatter(2, at[:, :, 1:], whole[:, :, 1:]).flatten(2, 3)


@dataclass(frozen=True)
class Layout:
    """The visible blocks of a batch's sparse rows.

    Args:
        long, short: the rows that are sparse, and those that see all of themselves.
        real: (B, N b) True = a real token, real ones first.
        index: (B', H or 1, N - 2, C) visible blocks of each inner block.
        bias: (B', H or 1, N - 2, C b) log of the count of their tokens.
        last: (B',) the last block of each text.
    """

    long: Tensor
    short: Tensor
    real: Tensor
    index: Tensor
    bias: Tensor
    last: Tensor


def _rows(flow: Flow, x: Tensor) -> Rows:
    B, T = x.shape[:2]
    if flow.keep is None:
        return Rows(torch.arange(T, device=x.device)[None], torch.full((B,), T, device=x.device), None)
    return Rows(counted(flow.keep), flow.keep.sum(1), flow.keep)


@functools.lru_cache(maxsize=256)
def drawn(seed: int, heads: int, blocks: int, size: int, random: int, planned: int) -> Tensor:
    """The random blocks of the inner blocks of a text, (H, blocks - 2, random), as in the reference code.

    Args:
        blocks: of the text. size: tokens of a block. random: number of draws. The others: see `BlockSparse`.
    """
    noise = np.random.RandomState(seed)
    if blocks * size in PLANNED and blocks * size <= planned:
        per_head = [_among_many(noise, planned // size, size, random)[: blocks - 2] for _ in range(heads)]
        return torch.from_numpy(np.stack(per_head))
    first = 5 + 2 * random  # draws are from the first blocks, for texts of any length
    table = [[_among_first(noise, i, first, random) for _ in range(heads)] for i in range(1, blocks)]
    return torch.from_numpy(np.array(table, dtype=np.int64)).transpose(0, 1)[:, :-1]


def _among_first(noise: np.random.RandomState, block: int, first: int, random: int) -> np.ndarray:
    """`random` of the first blocks, without the ends of these, the neighbours, and those of the ends."""
    near = {0, first - 1, block - 1, block, block + 1}
    near |= {first - 2} if block == 1 else {1} if block == first - 2 else set()
    return np.array([b for b in noise.permutation(np.arange(first)) if b not in near][:random], dtype=np.int64)


def _among_many(noise: np.random.RandomState, blocks: int, size: int, random: int) -> np.ndarray:
    """`random` of the inner blocks up to `REACH`, not the neighbours: the older method, for the longest text."""
    inner = np.arange(1, blocks - 1, dtype=np.int64)
    last = REACH // size - 1 if 2 * size < REACH else blocks - 1
    table = np.zeros((blocks - 2, random), dtype=np.int64)
    for block in range(1, blocks - 1):
        before, after = inner[: max(0, block - 2)], inner[block + 1 : last]
        if block <= 2:
            pool = inner[block + 1 : last]
        elif block >= blocks - 3 or block - 2 > last:
            pool = inner[:last]
        else:
            pool = np.concatenate((before, after))
        table[block - 1] = noise.permutation(pool)[:random]
    return table
