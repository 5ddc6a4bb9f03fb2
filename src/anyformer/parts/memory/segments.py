"""Segment recurrence: memory across the segments of a text.

B batch, T queries of this call, P keys of earlier calls, S = P + T keys, C queries of a chunk, D width, H heads, K head
width, L tokens of a segment, M tokens of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer, OverTime
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Norm
from anyformer.core.state import Slot, aligned
from anyformer.parts.attention.heads import width
from anyformer.parts.attention.kernels import reader
from anyformer.parts.attention.masks import Causal, View
from anyformer.parts.attention.scores import Bias, Call, Score, StackBias, changed
from anyformer.parts.attention.scores import made as made_scores
from anyformer.parts.fused import apart
from anyformer.parts.recurrent.chunked import Recurrent


@dataclass(frozen=True)
class Chunk:
    """Some queries of a call, and the keys in their reach. Indices count all tokens so far.

    Args:
        rows: the slice of the T queries.
        held: the slice of the S keys that are read with stop-gradient.
        own: the slice of the T keys that are read with gradient.
        index: (C,) of the queries.
        begin: (1 or B, C) index of the first token of each query's text. `base`: of its segment.
    """

    rows: slice
    held: slice
    own: slice
    index: Tensor
    begin: Tensor
    base: Tensor


@dataclass(frozen=True)
class Places:
    """The positions of the T queries of a call and the S = P + T keys. Segments count from the start of each text, so
    padding, other rows and earlier documents of a row do not move them."""

    first: int  # index of the first query
    past: int  # P
    count: int  # T
    begin: Tensor  # (1 or B, T) index of the first token of each query's text
    keep: Tensor | None  # (B, S) False = padding
    straight: bool  # True if all rows begin at index 0, so that their segments align

    @property
    def key(self) -> int:
        """The index of the first key."""
        return self.first - self.past

    def keys(self, columns: slice) -> Tensor:
        """(n,) the indices of some keys."""
        return torch.arange(self.key + columns.start, self.key + columns.stop, device=self.begin.device)

    def chunks(self, segment: int, memory: int, learns: bool) -> Iterator[Chunk]:
        """The queries, at most L at a time, so that time and memory grow with T x (M + L)."""
        if isinstance(self.count, torch.SymInt):  # torch.export: no loop can depend on the length
            yield self._chunk(segment, 0, self.count, 0, 0, self.past + self.count)
            return
        at = 0
        while at < self.count:
            done = (self.first + at) % segment if self.straight else 0
            stop = min(self.count, at + segment - done)
            own = at - done if self.straight else at - segment + 1  # earliest start of their segments
            oldest = max(0, self.past + own - memory)
            both = learns and self.straight  # then held and own keys are separate tensors
            yield self._chunk(segment, at, stop, max(0, own), oldest, self.past + (max(0, own) if both else stop))
            at = stop

    def _chunk(self, segment: int, at: int, stop: int, own: int, oldest: int, newest: int) -> Chunk:
        index = torch.arange(self.first + at, self.first + stop, device=self.begin.device)  # (C,)
        begin = self.begin[:, at:stop]  # (1 or B, C)
        base = index - (index - begin) % segment
        return Chunk(slice(at, stop), slice(oldest, newest), slice(own, stop), index, begin, base)

    def seen(self, chunk: Chunk, columns: slice, memory: int) -> Tensor:
        """True for visible keys: those of the query's text in its segment, up to itself, and M before it.

        Every query sees itself, padding too, so that no row is empty. Shape: (1 or B, C, n).
        """
        key, query = self.keys(columns), chunk.index[:, None]
        oldest = torch.maximum(chunk.base - memory, chunk.begin)[..., None]  # (1 or B, C, 1)
        seen = (key <= query) & (key >= oldest)
        if self.keep is not None:
            seen = seen & self.keep[:, None, columns]
        return seen | (key == query)

    def view(self, chunk: Chunk, columns: slice) -> View:
        """These queries and keys, for score parts."""
        count, keys = chunk.rows.stop - chunk.rows.start, columns.stop - columns.start
        first = self.first + chunk.rows.start
        return View(Causal(), first, count, self.key + columns.start, keys, device=self.begin.device)


def places(flow: Flow, count: int, past: int, device: torch.device) -> Places:
    """The positions of a call's tokens, after `past` keys of earlier calls."""
    first, straight = flow.first, flow.keep is None
    index = torch.arange(first, first + count, device=device)  # (T,)
    if flow.documents is not None:
        begin = index - flow.positions  # (B, T)
    elif flow.keep is not None:
        begin = flow.keep.long().argmax(1, keepdim=True).expand(-1, count)  # (B, T)
    else:
        begin = torch.zeros_like(index)[None]  # (1, T)
    keep = None if flow.keep is None else flow.keep[:, first - past :]
    return Places(first, past, count, begin, keep, straight)


@dataclass(frozen=True)
class Source:
    """Keys and values for the queries of a chunk.

    Args:
        k, v: (B, H, n, K). seen: (1 or B, C, n). bias: (1 or B, H, C, n), or None.
        columns: their indices among the S keys, or None for others.
    """

    k: Tensor
    v: Tensor
    seen: Tensor
    bias: Tensor | None
    columns: slice | None


@dataclass
class Pass:
    """Values that the chunks of one call share.

    Args:
        learns: True with gradients: past and current keys are then separate tensors.
        q: (B, H, T, K). `asked`: the same after the score parts.
        own: keys and values of this call, (B, H, T, K). held: those without gradient to x, (B, H, S, K).
        bias, cap: of the score parts.
        shown: (B, H, T, S) the weights, if they are recorded.
        more: values of other kinds of memory.
    """

    x: Tensor
    flow: Flow
    slot: Any
    learns: bool
    at: Places
    q: Tensor
    asked: Tensor
    own: tuple[Tensor, Tensor]
    held: tuple[Tensor, Tensor]
    bias: Bias | None
    cap: float | None
    shown: Tensor | None = None
    more: Any = None

    def __post_init__(self) -> None:
        self.queries = reader(self.asked)
        self.readers = {name: tuple(map(reader, getattr(self, name))) for name in ("own", "held")}

    def source(self, chunk: Chunk, columns: slice, pair: str, where: slice, seen: Tensor) -> Source:
        """The keys `columns`, at the slice `where` of `pair`: "own" or "held"."""
        bias = None if self.bias is None else self.bias(self.at.view(chunk, columns))
        k, v = (read(where.start, where.stop) for read in self.readers[pair])
        return Source(k, v, seen, bias, columns)


def together(sources: list[Source], rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values of all sources, (B, H, n, K) each, and their mask, (B, 1, C, n)."""
    k, v = (torch.cat([getattr(s, name) for s in sources], 2) for name in ("k", "v"))
    return k, v, torch.cat([s.seen.expand(rows, -1, -1) for s in sources], 2)[:, None]


def weigh(q: Tensor, sources: list[Source], scale: float, cap: float | None, more: Tensor | None = None) -> Tensor:
    """One softmax over all keys of the sources, and in front of them over `more` scores, (B, H, C, n')."""
    k, seen = torch.cat([s.k for s in sources], 2), torch.cat([s.seen.expand(q.shape[0], -1, -1) for s in sources], 2)
    scores = q @ k.mT * scale  # (B, H, C, n)
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    biases = [s.bias.expand(q.shape[0], -1, -1, -1) for s in sources if s.bias is not None]
    if biases:
        scores = scores + torch.cat(biases, 3)
    scores = scores.masked_fill(~seen[:, None], torch.finfo(scores.dtype).min)  # no row is empty: each sees itself
    return (scores if more is None else torch.cat((more, scores), 3)).softmax(-1)


def show(shown: Tensor, chunk: Chunk, sources: list[Source], w: Tensor) -> None:
    """Writes the weights of a chunk to its keys' columns; keys that are no tokens have none."""
    for source, part in zip(sources, w.detach().split([s.k.shape[2] for s in sources], 3), strict=True):
        if source.columns is not None:
            shown[:, :, chunk.rows, source.columns] += part


def plainly(part: nn.Module, x: Tensor) -> Tensor:
    """`part(x)`."""
    return part(x)


class Tail(Recurrent):
    """Keys and values of the last tokens, (B, H, P, K) each. It can return to a mark."""

    def recent(self, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the last `count` tokens, or of all if there are fewer."""
        k, v = self.held[:2]
        start = max(0, k.shape[2] - count)
        return k[:, :, start:], v[:, :, start:]

    @property
    def joins(self) -> bool:
        return len(self.held) == 2  # a compressed memory has its slots at the same indices in all rows

    def join(self, other: Recurrent) -> None:
        self.held = tuple(aligned(a, b, 2) for a, b in zip(self.held, other.held, strict=True))
        self.mark()


class SegmentRecurrence(Mixer):
    """Attention to a segment of L tokens and the M tokens before it, with stop-gradient to the layer below these
    (Transformer-XL: Dai et al., 2019; arXiv:1901.02860).

    ```
    layer n + 1                              q q q q            queries of segment 2
                                           ╱ ╱ ╱ ╱ │
    layer n      [ segment 0 ][ segment 1 ][ segment 2 ]
                        └── M, k and v of SG(h) ──┘└ k and v of h, up to oneself
    ```
    Segments count from the first token of each text. A row of N segments gives the same as N successive calls with one
    segment each, with the gradient of the paper's loop: training only needs rows longer than a segment. Layer by
    layer the memory reaches M tokens further back.

    The projections of memory have gradients (only their input is detached): W_k and W_v learn from reads of memory
    too. Calls with `state=` continue the memory beyond the end of a row, in training too; a state holds keys and
    values, so W_k and W_v learn nothing from earlier calls.

    Args:
        heads: H. `head_dim`: K; width / heads by default.
        segment: L. `memory`: M; 0 = none.
        bias: of the projections q, k, v; `out_bias`: of o, the same by default.
        norm: of each head's q and k, or None.
        scale: of the scores; K^-1/2 by default.
        scores: score parts, e.g. `[Relative.of()]`; their positions must be relative.
        dropout: of the weights, in training.

    Taps: `weights` (B, H, T, S).
    Shape: (B, T, D) -> same. State: keys and values of the last M + L - 1 tokens, (B, H, M + L - 1, K) each.
    """

    packs = True

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        head_dim: int | None = None,
        segment: int = 128,
        memory: int = 128,
        bias: bool = True,
        out_bias: bool | None = None,
        norm: Recipe[Norm] | None = None,
        scale: float | None = None,
        scores: Sequence[Recipe[Score]] = (),
        dropout: float = 0.0,
    ):
        super().__init__()
        name = type(self).__name__
        if min(heads, segment) < 1 or memory < 0:
            raise ValueError(
                f"{name}: heads and segment must be at least 1, memory at least 0; got heads={heads}, "
                f"segment={segment}, memory={memory}"
            )
        self.heads, self.head_dim = heads, width(name, dim, heads, head_dim)
        self.segment, self.memory, self.scale, self.dropout = segment, memory, scale, dropout
        self.q, self.k, self.v = (nn.Linear(dim, heads * self.head_dim, bias) for _ in range(3))
        self.o = nn.Linear(heads * self.head_dim, dim, bias if out_bias is None else out_bias)
        self.norm = None if norm is None else nn.ModuleDict({n: norm.build(self.head_dim) for n in ("q", "k")})
        parts = made_scores(scores, dim, heads, self.head_dim, False)
        for part in (s for s in parts if isinstance(s, OverTime)):
            raise ValueError(
                f"{name}: {type(part).__name__} depends on the tokens between two tokens, and memory holds keys and "
                "values only; use scores that depend on distance (Relative, Alibi, Decay …)"
            )
        self.scores: Any = nn.ModuleList(parts) if parts else None

    @property
    def sharpness(self) -> float:
        """The factor of the products of queries and keys."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def reach(self) -> int:
        """The number of visible tokens before a query."""
        return self.memory + self.segment - 1

    @property
    def farthest(self) -> int:
        """The largest distance to a visible key."""
        return self.reach

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        self.needs_causal(flow)
        call = self._call(x, flow)
        y = torch.cat([self._read(call, chunk) for chunk in call.at.chunks(self.segment, self.memory, call.learns)], 2)
        self._end(call)
        if call.shown is not None:
            flow.taps.put(self, "weights", call.shown)  # type: ignore[union-attr]
        return self.o(y.transpose(1, 2).flatten(2))

    def _call(self, x: Tensor, flow: Flow) -> Pass:
        """Queries, keys and values of this call, and those that remain of earlier ones."""
        slot, learns, T, past = flow.slot(self), torch.is_grad_enabled(), x.shape[1], 0
        q = self._heads("q", self.q(x))  # (B, H, T, K)
        made = (apart(part, x) if learns else (part(x),) for part in (self.k, self.v))
        pairs = [(self._heads("k", k), self._heads("v", v)) for k, v in zip(*made, strict=True)]
        own, held = pairs[0], pairs[-1]  # in training the second is without gradient to x
        if slot is not None:
            k, v = slot.recent(self.reach)  # (B, H, P, K) each
            past = k.shape[2]
            held = torch.cat((k, held[0]), 2), torch.cat((v, held[1]), 2)  # (B, H, S, K) each
        at = flow.once(("places", past), lambda: places(flow, T, past, x.device))
        stack = flow.find(StackBias)
        many = T if isinstance(T, torch.SymInt) else min(T, self.segment)  # queries of a chunk
        keys = self.farthest + many  # no part needs a larger distance from the last query
        whole = View(Causal(), at.first, T, at.first + T - keys, keys, device=x.device)
        asked, bias, cap = changed(self.scores or (), Call(x, q, self.sharpness, whole, flow), stack)
        listens = flow.taps is not None and flow.taps.wants(self, "weights")
        shown = q.new_zeros(*q.shape[:3], at.past + T) if listens else None
        return Pass(x, flow, slot, learns, at, q, asked, own, held, bias, cap, shown)

    def _heads(self, name: str, y: Tensor, through: Callable[[nn.Module, Tensor], Tensor] = plainly) -> Tensor:
        """q, k or v of every head, (B, n, H K) -> (B, H, n, K)."""
        y = y.unflatten(-1, (self.heads, self.head_dim))  # (B, n, H, K)
        return (y if self.norm is None or name == "v" else through(self.norm[name], y)).transpose(1, 2)

    def _sources(self, call: Pass, chunk: Chunk) -> list[Source]:
        """The sources of the queries of a chunk: detached keys, then in training the call's own."""
        at, first = call.at, call.at.first
        seen = at.seen(chunk, chunk.held, self.memory)  # (1 or B, C, n)
        if not call.learns:
            return [call.source(chunk, chunk.held, "held", chunk.held, seen)]
        mine = slice(chunk.own.start + at.past, chunk.own.stop + at.past)
        here = (at.keys(chunk.held) >= chunk.base[..., None]) & (at.keys(chunk.held) >= first)
        live = at.seen(chunk, mine, self.memory) & (at.keys(mine) >= chunk.base[..., None])
        return [
            call.source(chunk, chunk.held, "held", chunk.held, seen & ~here),
            call.source(chunk, mine, "own", chunk.own, live),
        ]

    def _read(self, call: Pass, chunk: Chunk) -> Tensor:
        """The outputs of the queries of a chunk, (B, H, C, K)."""
        sources, asked = self._sources(call, chunk), call.queries(chunk.rows.start, chunk.rows.stop)
        fused = call.bias is None and call.cap is None
        if not fused or call.shown is not None:
            w = weigh(asked, sources, self.sharpness, call.cap)  # (B, H, C, n)
        if call.shown is not None:
            show(call.shown, chunk, sources, w)
        if not fused:
            return F.dropout(w, self.dropout, self.training) @ torch.cat([s.v for s in sources], 2)
        k, v, seen = together(sources, len(asked))
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(asked, k, v, seen, dropout, scale=self.sharpness)

    def _end(self, call: Pass) -> None:
        """Stores the tokens that the next call can see."""
        if call.slot is not None:
            call.slot.put(call.x.shape[1], *self._recent(call))

    def _recent(self, call: Pass) -> list[Tensor]:
        """Keys and values of the last tokens."""
        oldest = max(0, call.held[0].shape[2] - self.reach)
        return [t[:, :, oldest:].detach() for t in call.held]

    def start(self, batch: int, length: int, like: Tensor) -> Slot:
        return Tail(*(like.new_zeros(batch, self.heads, 0, self.head_dim) for _ in range(2)))
