"""Hierarchical attention: near tokens one by one, far ones by means over cells that grow with the distance.

B batch, T time, D width, H heads, K head width, b tokens of a block, N blocks, c cells of a block, L levels, M cells of
a level, C cells that a block of queries sees, S keys that it sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer
from anyformer.core.part import built
from anyformer.core.recipe import Recipe
from anyformer.core.state import Slot
from anyformer.parts.attention.heads import width
from anyformer.parts.positions import Rotary
from anyformer.parts.rows import Rows, rows

NEVER = float("-inf")
PIECE = 128  # queries of a continued text that are answered at a time


class Hierarchical(Mixer):
    """Attention that sees its neighbourhood exactly and all else at growing scales (as the fast multipole method:
    Kang et al., 2023; arXiv:2310.11960; means of keys as in Zhu and Soricut, 2021; arXiv:2107.11906).

    ```
    a block of queries, b tokens: ■         a decoder sees
    |       ·       |   ·   |   ·   | · | · |▪▪▪▪|■
    └─ the rest: 1 ─┘   cells of    cells   block before and its own: each token
                        level 1     of level 0: c a block
    ```
    A cell of n tokens stands for each of them with the mean of their keys and values:

    ```
    y_t = sum_near exp(q k_j) v_j + sum_cells n exp(q mean(k)) mean(v), over the same sum without values
    ```
    which is full attention where the keys of each cell are equal, and for a text of 2 b tokens or fewer. Every token
    counts once. Blocks of level l have b 2^l tokens; a query reads at most 2 c cells of each level on a side, and one
    mean of what lies beyond the last level. Time and memory are O(T (b + c L)). Padding is not counted: blocks begin
    with the text. Keys are turned by rotary positions before the mean, so q mean(k) is the mean score of the cell.

    Args:
        heads: H. `head_dim`: K; width / heads by default.
        size: b. `cells`: c, a divisor of b.
        levels: L; with log2(T / b) of them nothing is beyond the last one.
        bias: of all projections.
        positions: `Rotary.of(...)`, or None.

    Shape: (B, T, D) -> same. State: keys and values, and the sums of the cells of each level; a new token reads 2 b + 2
    c L + 1 of them.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        head_dim: int | None = None,
        size: int = 32,
        cells: int = 4,
        levels: int = 8,
        bias: bool = False,
        positions: Recipe[Rotary] | None = None,
    ):
        super().__init__()
        if min(heads, size, cells, levels) < 1 or size % cells:
            raise ValueError(
                "Hierarchical: heads, size, cells and levels must be at least 1, and cells a divisor of size; got "
                f"{heads}, {size}, {cells} and {levels}"
            )
        self.heads, self.head_dim = heads, width("Hierarchical", dim, heads, head_dim)
        self.size, self.cells, self.levels = size, cells, levels
        self.q, self.k, self.v = (nn.Linear(dim, heads * self.head_dim, bias) for _ in range(3))
        self.o = nn.Linear(heads * self.head_dim, dim, bias)
        self.positions = built(positions, self.head_dim)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        x = flow.clear(x)
        q, k, v = (p(x).unflatten(-1, (self.heads, self.head_dim)) for p in (self.q, self.k, self.v))  # (B, T, H, K)
        if self.positions is not None:
            q, k = self.positions(q, flow), self.positions(k, flow)
        there, slot = rows(flow, x), flow.slot(self)
        pair = torch.stack([there.packed(t.transpose(1, 2)) for t in (k, v)])  # (2, B, H, T, K)
        q = q.transpose(1, 2)
        if slot is not None:
            keep = None if flow.keep is None else flow.keep[:, : flow.first]
            start = torch.full(x.shape[:1], flow.first, device=x.device) if keep is None else keep.sum(1)
            slot.append(pair, start)
            if flow.first:
                time = flow.first + x.shape[1]
                return self._merged(self._onward(q, slot, there.place + start[:, None], time))
        return self._merged(there.unpacked(self._whole(there.packed(q), pair, there, flow.causal)))

    def _merged(self, y: Tensor) -> Tensor:
        return self.o(y.transpose(1, 2).flatten(2))  # (B, H, T, K) -> (B, T, D)

    def _whole(self, q: Tensor, pair: Tensor, there: Rows, causal: bool) -> Tensor:
        """The queries of a text from its beginning, (B, H, T, K), in the order of the positions."""
        time, more = q.shape[2], -q.shape[2] % self.size
        if not isinstance(time, int):  # an open size: a program would be closed to a text of one block
            more = more + self.size
        if not there.whole:  # behind a text come zeros, which its last cells do not count
            pair = pair.masked_fill(~there.real()[:, None, :, None], 0.0)
        pair, q = F.pad(pair, (0, 0, 0, more)), F.pad(q, (0, 0, 0, more)).unflatten(2, (-1, self.size))
        N, count = q.shape[2], None if there.whole else there.count[..., None]  # (B, 1, 1)
        block = torch.arange(N, device=q.device)[None]  # (1, N)
        far = Far.of(self, block, sums(self, pair, N), time if count is None else count, causal)
        sides = [pair.unflatten(3, (-1, self.size))]  # (2, B, H, N, b, K)
        sides.insert(0, F.pad(sides[0], (0, 0, 0, 0, 1, 0))[:, :, :, :N])
        if not causal:
            sides.append(F.pad(sides[1], (0, 0, 0, 0, 0, 1))[:, :, :, 1:])
        keys, values = torch.cat((*sides, far.mean.to(pair.dtype)), 4)  # (B, H, N, S, K) each
        mine = torch.arange(N * self.size, device=q.device).unflatten(0, (-1, self.size))[None]  # (1, N, b)
        theirs = (block - 1)[..., None] * self.size + torch.arange(len(sides) * self.size, device=q.device)
        real = (theirs >= 0) & (theirs < (time if count is None else count))  # (1 or B, N, 2 b or 3 b)
        before, theirs = real[:, :, None], theirs[:, :, None]
        seen = before & (theirs <= mine[..., None]) if causal else before.expand(-1, -1, self.size, -1)
        seen = seen | (theirs == mine[..., None])  # padding sees itself, so that no row is empty
        near = torch.zeros(seen.shape, device=q.device).masked_fill(~seen, NEVER)  # (1 or B, N, b, 2 b or 3 b)
        bias = torch.cat((near, far.weight[:, :, None].expand(*near.shape[:3], -1)), -1)  # (1 or B, N, b, S)
        return attended(q, keys, values, bias).flatten(2, 3)[:, :, :time]

    def _onward(self, q: Tensor, slot: Pyramid, place: Tensor, time: int) -> Tensor:
        """The queries that continue texts of up to `time` tokens, (B, H, T, K), at their places, (B, T)."""
        made, room = [], torch.arange(2 * self.size, device=q.device)
        tables = slot.tables(self.deep(-(-time // self.size)))
        for queries, at in zip(q.split(PIECE, 2), place.split(PIECE, 1), strict=True):
            block = at // self.size  # (B, t)
            theirs = (block[..., None] - 1) * self.size + room  # (B, t, 2 b)
            far = Far.of(self, block, tables, time, True)
            near = picked(slot.memory, theirs)  # (2, B, H, t, 2 b, K)
            keys, values = torch.cat((near, far.mean.to(near.dtype)), 4)
            hidden = (theirs < 0) | (theirs > at[..., None])
            bias = torch.cat((far.weight.new_zeros(theirs.shape).masked_fill(hidden, NEVER), far.weight), -1)
            made.append(attended(queries[:, :, :, None], keys, values, bias[:, :, None])[:, :, :, 0])
        return torch.cat(made, 2)

    def deep(self, blocks: Any) -> int:
        """The levels that are read: the first, and those with a far block; all for a length that is a symbol."""
        if not isinstance(blocks, int):
            return self.levels
        return max(1, sum(-(-blocks // 2**level) > 2 for level in range(self.levels)))

    def start(self, batch: int, length: int, like: Tensor) -> Pyramid:
        return Pyramid(self, batch, length, like)


def attended(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K) + bias) v, each block apart.

    Shapes: q (B, H, N, b, K), k and v (B, H, N, S, K), bias (1 or B, N, b, S) -> (B, H, N, b, K).
    """
    batch = q.shape[0]
    bias = bias.to(q.dtype).expand(batch, -1, -1, -1).flatten(0, 1)[:, None]  # (B N, 1, b, S)
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))  # (B N, H, b or S, K)
    return F.scaled_dot_product_attention(q, k, v, bias).unflatten(0, (batch, -1)).transpose(1, 2)


def picked(table: Tensor, index: Tensor) -> Tensor:
    """The entries at an index, (1 or B, N, m), those outside replaced by any: (2, B, H, M, K) -> (2, B, H, N, m, K)."""
    index = index.clamp(0, table.shape[3] - 1)
    if index.shape[0] == 1:
        return table[:, :, :, index[0]]
    where = index.flatten(1)[None, :, None, :, None].expand(2, -1, table.shape[2], -1, table.shape[4])
    return table.gather(3, where).unflatten(3, index.shape[1:])


@dataclass(frozen=True)
class Tables:
    """Sums of keys and values. levels: of the cells of each level, (2, B, H, M, K). before, after: of all blocks of the
    last level in front of each, and from each on; None if nothing is beyond that level."""

    levels: list[Tensor]
    before: Tensor | None
    after: Tensor | None


def sums(part: Hierarchical, pair: Tensor, blocks: Any) -> Tables:
    """The sums of whole texts, of keys and values (2, B, H, N b, K)."""
    wide = pair.to(torch.promote_types(pair.dtype, torch.float32))
    table, levels, deep = wide.unflatten(3, (-1, part.size // part.cells)).sum(4), list[Tensor](), part.deep(blocks)
    for _ in range(deep):
        levels.append(table)
        more = -blocks % 2 + (0 if isinstance(blocks, int) else 2)  # as above: never a single one
        table = F.pad(table, (0, 0, 0, more * part.cells)).unflatten(3, (-1, 2)).sum(4)
        blocks = (blocks + more) // 2
    if deep < part.levels:
        return Tables(levels, None, None)
    each = levels[-1].unflatten(3, (-1, part.cells)).sum(4)  # (2, B, H, M / c, K)
    before, after = each.cumsum(3), each.flip(3).cumsum(3).flip(3)
    return Tables(levels, F.pad(before, (0, 0, 1, 0)), F.pad(after, (0, 0, 0, 1)))


@dataclass(frozen=True)
class Far:
    """What blocks of queries see of far tokens: means of keys and values, (2, B, H, N, C, K), and the logarithm of the
    number of tokens of each, (1 or B, N, C)."""

    mean: Tensor
    weight: Tensor

    @classmethod
    def of(cls, part: Hierarchical, block: Tensor, tables: Tables, count: Tensor | int, causal: bool) -> Far:
        """Those of the blocks with the numbers `block`, (1 or B, N), in texts of `count` tokens, (B, 1, 1) or all.

        At level l, block i = block >> l sees in detail i - 1, i and i + 1; blocks around i >> 1 are level l + 1's. In
        between are, of the blocks 2 (i >> 1) + (-2, -1, 2, 3), those that do not touch i.
        """
        found, numbers = list[Tensor](), list[Tensor]()
        inside = torch.arange(part.cells, device=block.device)
        for level, table in enumerate(tables.levels):
            pair, odd = (block >> (level + 1))[..., None] * 2, ((block >> level) & 1).bool()[..., None]
            ones = torch.ones_like(odd)
            boxes = [pair - 2, pair - 1] if causal else [pair - 2, pair - 1, pair + 2, pair + 3]
            apart = torch.cat([ones, odd] if causal else [ones, odd, ~odd, ones], -1)  # (1 or B, N, 2 or 4)
            cell = (torch.cat(boxes, -1)[..., None] * part.cells + inside).flatten(-2)  # (1 or B, N, 2 c or 4 c)
            wide = (part.size // part.cells) << level
            number = (count - cell * wide).clamp(0, wide)
            valid = apart.repeat_interleave(part.cells, -1) & (cell >= 0)
            numbers.append(number.where(valid, 0))
            found.append(picked(table, cell))
        if tables.before is not None:
            wide, pair = part.size << (part.levels - 1), (block >> part.levels)[..., None] * 2
            numbers.append(((pair - 2).clamp(min=0) * wide).clamp(max=count))
            found.append(picked(tables.before, pair - 2))
            if not causal and tables.after is not None:
                numbers.append((count - (pair + 4) * wide).clamp(min=0))
                found.append(picked(tables.after, pair + 4))
        rows = max(n.shape[0] for n in numbers)
        number = torch.cat([n.expand(rows, -1, -1) for n in numbers], -1)  # (1 or B, N, C)
        mean = torch.cat(found, 4) / number.clamp(min=1)[:, None, :, :, None]
        return cls(mean, number.to(mean.dtype).log())


class Pyramid(Slot):
    """Keys and values of all tokens so far, without padding, and the sums of the cells that they fill. A sum is right
    once its cell is full, and nothing reads it before. Shapes: those of `Tables`."""

    def __init__(self, part: Hierarchical, batch: int, room: int, like: Tensor):
        self.size, self.cells, self.depth = part.size, part.cells, part.levels
        wide = torch.promote_types(like.dtype, torch.float32)
        self.memory = like.new_zeros(2, batch, part.heads, 0, part.head_dim)
        self.levels = [self.memory.to(wide) for _ in range(self.depth)]
        self.before = self.memory.to(wide)
        self.watched = False  # True if a pass with gradients may have saved these tensors: none is written again
        self._reserve(room)

    def tables(self, deep: int) -> Tables:
        """The sums of the first levels."""
        return Tables(self.levels[:deep], self.before if deep == self.depth else None, None)

    def append(self, pair: Tensor, start: Tensor) -> None:
        """Adds keys and values (2, B, H, T, K) behind the first `start` tokens of each row, (B,)."""
        many = pair.shape[3]
        self._reserve(int(start.max()) + many)
        self.memory = self._put(self.memory, pair, start[:, None] + torch.arange(many, device=start.device))
        self._add(start, many)
        self.watched = torch.is_grad_enabled()

    def _add(self, start: Tensor, many: int) -> None:
        """Makes the sums of the cells that `many` tokens behind `start` fill, level by level, up to the first level
        where they fill none."""
        below, wide, each, end = self.memory, self.size // self.cells, self.size // self.cells, start + many

        def touched() -> Tensor:
            """The numbers of the cells, (B, m): some rows fill fewer."""
            return start[:, None] // wide + torch.arange((many - 1) // wide + 2, device=start.device)

        def inside(index: Tensor) -> Tensor:
            """The sums of what lies in the cells, (2, B, H, m, K)."""
            parts = index[..., None] * each + torch.arange(each, device=start.device)
            return picked(below, parts).to(self.before.dtype).sum(4)

        for level in range(self.depth):
            if bool((end // wide == start // wide).all()):
                return
            index = touched()
            self.levels[level] = self._put(self.levels[level], inside(index), index)
            below, wide, each = self.levels[level], 2 * wide, 2
        wide, each = wide // 2 * self.cells, self.cells
        index = touched()
        total = picked(self.before, index[:, :1, None])[:, :, :, 0] + inside(index).cumsum(3)
        self.before = self._put(self.before, total, index + 1)

    def _put(self, table: Tensor, values: Tensor, index: Tensor) -> Tensor:
        where = index[None, :, None, :, None].expand(2, -1, table.shape[2], -1, table.shape[4])
        if self.watched or torch.is_grad_enabled():
            return table.scatter(3, where, values.to(table.dtype))
        return table.scatter_(3, where, values.to(table.dtype))

    def _reserve(self, tokens: int) -> None:
        """Makes room for so many tokens, at least twice as much as before where it was too small."""
        if tokens > (held := self.memory.shape[3]):
            room = max(tokens, 2 * held)
            self.memory = _longer(self.memory, room)
            wide = self.size // self.cells
            self.levels = [_longer(t, room // (wide << level) + 4) for level, t in enumerate(self.levels)]
            self.before = _longer(self.before, room // (self.size << (self.depth - 1)) + 6)

    def _each(self, change: Any, *others: Pyramid) -> None:
        """Replaces every tensor by `change` of it and those of other states."""
        self.memory = change(self.memory, *(o.memory for o in others))
        self.levels = [change(t, *(o.levels[i] for o in others)) for i, t in enumerate(self.levels)]
        self.before = change(self.before, *(o.before for o in others))

    def reorder(self, index: Tensor) -> None:
        self._each(lambda t: t[:, index])

    def trim(self, length: int) -> None:
        """Keeps what later tokens overwrite."""

    @property
    def joins(self) -> bool:
        return True

    def shift(self, count: int) -> None:
        """Stores no padding."""

    def join(self, other: Pyramid) -> None:
        def both(a: Tensor, b: Tensor) -> Tensor:
            room = max(a.shape[3], b.shape[3])
            return torch.cat((_longer(a, room), _longer(b, room)), 1)

        self._each(both, other)

    def bytes(self) -> int:
        return sum(t.nbytes for t in (self.memory, *self.levels, self.before))


def _longer(t: Tensor, room: int) -> Tensor:
    return F.pad(t, (0, 0, 0, room - t.shape[3]))
