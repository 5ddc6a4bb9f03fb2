"""Attention inside chunks: of neighbours in the text (local), or of tokens with equal random hashes (LSH).

B batch, T time, D width, H heads, K head width, R rounds of hashing, N chunks, C tokens of a chunk, S visible tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer
from anyformer.core.part import drop
from anyformer.parts.attention.cache import KeysValues, Sliding
from anyformer.parts.attention.heads import width
from anyformer.parts.rows import FAR, Rows, divided, rows

DRAWN = 2**24  # random numbers of one part, drawn in its constructor

HIDDEN, ITSELF = -1e9, -1e5  # scores of hidden keys, and of a token itself: visible only without other keys


class Chunked(Mixer):
    """Base of both kinds: heads, and chunks that see themselves and their neighbours, modulo the number of chunks.

    ```
    chunks of a text   [0] [1] [2] [3]        before = 1, after = 0: 2 sees 1 and 2, 0 sees 3 and 0
    ```
    Args:
        heads: H. `head_dim`: K; width / heads by default.
        size: C, tokens of a chunk.
        before, after: neighbours that a chunk sees beside itself.
        bias: of all projections.
        dropout: of the weights, in training.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        head_dim: int | None = None,
        size: int = 64,
        before: int = 1,
        after: int = 0,
        bias: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        name = type(self).__name__
        if min(heads, size) < 1 or min(before, after) < 0:
            raise ValueError(
                f"{name}: heads and size must be at least 1, before and after at least 0; "
                f"got {heads}, {size}, {before} and {after}"
            )
        self.heads, self.head_dim = heads, width(name, dim, heads, head_dim)
        self.size, self.before, self.after, self.dropout = size, before, after, dropout
        self.o = nn.Linear(heads * self.head_dim, dim, bias)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)  # (B, H, T, K)

    def _chunks(self, t: Tensor) -> Tensor:
        """(B, H, T, …) -> (B, H, N, C, …)."""
        return t.unflatten(2, (-1, self.size))

    def _around(self, t: Tensor, count: Tensor | None, blank: bool = False) -> Tensor:
        """Each chunk with its neighbours, (B, H, N, C, …) -> (B, H, N, S, …).

        Args:
            count: (B, 1) chunks of each row; None = N.
            blank: FAR in place of chunks before the first one, for positions in a decoder: these would be later
                or repeated tokens.
        """
        at, chunks = torch.arange(t.shape[2], device=t.device), []
        for step in range(-self.before, self.after + 1):
            if step and count is not None:
                index = (at + step) % count  # (B, N)
                rows = torch.arange(t.shape[0], device=t.device)[:, None]
                near = t.transpose(1, 2)[rows, index].transpose(1, 2)
            else:
                near = t.roll(-step, 2) if step else t
            chunks.append(near.masked_fill((at + step < 0)[:, None], FAR) if blank and step < 0 else near)
        return torch.cat(chunks, 3) if len(chunks) > 1 else t

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, itself: Tensor | None) -> tuple[Tensor, Tensor]:
        """softmax(q k^T) v, and the scores q k^T with hidden keys masked.

        Args:
            hidden: (…, C, S) True = hidden from the query. itself: True at the token itself, visible only without other
                keys; None = as other keys.

        Shapes: (…, C, K), (…, S, K) twice -> (…, C, K), (…, C, S).
        """
        wide = torch.promote_types(q.dtype, torch.float32)
        score = (q @ k.mT).to(wide).masked_fill(hidden, HIDDEN)  # (…, C, S)
        score = score if itself is None else score.masked_fill(itself, ITSELF)
        return drop(self, score.softmax(-1)).to(v.dtype) @ v, score

    def _merged(self, y: Tensor) -> Tensor:
        return self.o(y.transpose(1, 2).flatten(2))  # (B, H, T, K) -> (B, T, D)


def hides(mine: Tensor, theirs: Tensor, causal: bool) -> Tensor:
    """True where a query at position (…, C) does not see a key at position (…, S), FAR for no key: (…, C, S)."""
    theirs = theirs[..., None, :]
    return theirs > mine[..., None] if causal else theirs == FAR


def filled(time: int, by: int) -> int:
    """The padding to whole chunks. If the length is a symbol (`torch.export`), there are always several, because a
    program for one chunk would be limited to one."""
    return -time % by if isinstance(time, int) else -time % by + 2 * by


class LocalAttention(Chunked):
    """Attention of a chunk of the text to itself and its neighbours (Kitaev et al., 2020; arXiv:2001.04451):
    softmax(q k^T / sqrt(K)) v.

    ```
    decoder, size = 2, before = 1      encoder
    ■ · · · · ·                        ■ ■ · · ■ ■    the last chunk precedes the first one
    ■ ■ · · · ·                        ■ ■ · · ■ ■
    ■ ■ ■ · · ·                        ■ ■ ■ ■ · ·
    ■ ■ ■ ■ · ·                        ■ ■ ■ ■ · ·
    · · ■ ■ ■ ·                        · · ■ ■ ■ ■
    · · ■ ■ ■ ■                        · · ■ ■ ■ ■
    ```
    A text of `size` tokens or fewer is one chunk: full attention. Padding is not counted, and chunks begin with the
    text. In a decoder with `before` > 1, transformers counts tokens of short texts twice; here each counts once.

    Takes the options of `Chunked` and these:

    Args:
        fill: a text of more than one chunk is padded to a multiple of this, itself a multiple of `size`; `size` by
            default. Decides the last chunk, which an encoder's first one sees.

    Shape: (B, T, D) -> same. State: keys and values of the chunks in reach.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        head_dim: int | None = None,
        size: int = 64,
        before: int = 1,
        after: int = 0,
        fill: int | None = None,
        bias: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__(dim, heads, head_dim, size, before, after, bias, dropout)
        if fill is not None and (fill < 1 or fill % size):
            raise ValueError(f"LocalAttention: fill is a multiple of size={size}; got {fill}")
        self.fill = size if fill is None else fill
        self.q, self.k, self.v = (nn.Linear(dim, heads * self.head_dim, bias) for _ in range(3))

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        q, k, v = (self._split(p(x)) for p in (self.q, self.k, self.v))  # (B, H, T, K) each
        q, slot = q * self.head_dim**-0.5, flow.slot(self)
        if slot is not None:
            keys, values = slot.append(k, v)
            if flow.first:
                return self._merged(self._onward(q, keys, values, flow))
        time, there = x.shape[1], rows(flow, x)
        if isinstance(time, int) and time <= self.size:
            hidden = hides(there.place, there.place.masked_fill(there.place >= there.count, FAR), flow.causal)
            return self._merged(self._attend(q, k, v, hidden[:, None], None)[0])
        more = filled(time, self.fill)
        q, k, v = (self._chunks(F.pad(there.packed(t), (0, 0, 0, more))) for t in (q, k, v))  # (B, H, N, C, K) each
        count = None  # (B, 1) chunks of each row
        if not there.whole or not isinstance(time, int):
            several = divided(there.count, self.fill) * (self.fill // self.size)
            count = several.where(there.count > self.size, 1)
        mine = torch.arange(time + more, device=x.device)[None, None]  # (1, 1, T)
        theirs = mine.where(mine < there.count[:, None], FAR)  # (B, 1, T)
        k, v = self._around(k, count), self._around(v, count)  # (B, H, N, S, K) each
        theirs = self._around(self._chunks(theirs), count, blank=flow.causal)  # (B, 1, N, S)
        y, _ = self._attend(q, k, v, hides(self._chunks(mine), theirs, flow.causal), None)
        return self._merged(there.unpacked(y.flatten(2, 3)[:, :, :time]))

    def _onward(self, q: Tensor, k: Tensor, v: Tensor, flow: Flow) -> Tensor:
        """Attention of the newest tokens to all keys in the state."""
        end = flow.first + q.shape[2]
        keep = torch.ones(1, end, dtype=torch.bool, device=q.device) if flow.keep is None else flow.keep
        place = keep.long().cumsum(1) - 1  # (B, end)
        mine, theirs = place[:, -q.shape[2] :], place.masked_fill(~keep, FAR)[:, end - k.shape[2] :]
        oldest = (mine // self.size - self.before) * self.size  # (B, T)
        hidden = hides(mine, theirs, True) | (theirs[:, None] < oldest[..., None])  # (B, T, S)
        return self._attend(q, k, v, hidden[:, None], None)[0]

    def start(self, batch: int, length: int, like: Tensor) -> Sliding:
        left = (self.before + 1) * self.size - 1
        return Sliding(batch, self.heads, self.head_dim, min(length, 2 * left + 2), like, left)


class LSHAttention(Chunked):
    """Attention between tokens with equal random hashes (Kitaev et al., 2020; arXiv:2001.04451).

    ```
    tokens           a b c d e f g h          one vector is query and key: q, and k = q / |q|
    hash             2 0 1 2 0 1 2 0          h(q) = argmax [q W, -q W], W random; R rounds, each with its own W
    sorted           b e h c f a d g          by bucket, then by position
    chunks of C = 4  [b e h c] [f a d g]      each sees itself, `before` chunks before and `after` chunks after it
    ```
    y = sum_r exp(z_r - logsumexp_r z_r) y_r, where y_r = softmax(q k^T) v in round r, and z_r the logarithm of that
    softmax's denominator. All rounds are one row of chunks: the first chunk of a round sees the last one of the round
    before, and the first of all sees the last of all. A token sees itself only if it sees nothing else. Time and
    memory are O(R T S).

    A text of C tokens or fewer is not hashed: this is then exactly full attention with shared queries and keys, for
    any `rounds` and `buckets`. Padding is not counted, so the other rows of a batch do not change a row.

    **Longer texts, in a decoder:** no token sees a later one, but later ones change its set of visible ones, because
    they move the borders of the chunks. The same holds for the paper's Reformer and all others. A token's output
    changes as the text grows, so no state can hold it: beyond C tokens, generate with `cache=False`.

    Takes the options of `Chunked` and these:

    Args:
        rounds: R. `buckets`: of a round, an even number, or factors of it, even each: one hash for each factor, which
            costs the sum of the factors instead of their product. About 2 T / C is usual.
        seed: of the random W. None: new ones in each pass of training, always the same ones in evaluation.

    Shape: (B, T, D) -> same. State: queries and values of up to C tokens.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        head_dim: int | None = None,
        size: int = 64,
        before: int = 1,
        after: int = 0,
        rounds: int = 1,
        buckets: int | tuple[int, ...] = 32,
        seed: int | None = None,
        bias: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__(dim, heads, head_dim, size, before, after, bias, dropout)
        self.factors = (buckets,) if isinstance(buckets, int) else tuple(buckets)
        if rounds < 1 or not self.factors or any(n < 2 or n % 2 for n in self.factors):
            raise ValueError(
                "LSHAttention: rounds must be at least 1, and buckets an even number or even factors; "
                f"got {rounds} and {buckets}"
            )
        self.rounds, self.seed = rounds, seed
        self.qk, self.v = (nn.Linear(dim, heads * self.head_dim, bias) for _ in range(2))
        self.rotations: Tensor
        shape = (heads, self.head_dim, rounds, sum(self.factors) // 2)
        if math.prod(shape) > DRAWN:
            raise ValueError(
                f"LSHAttention: {heads} heads of width {self.head_dim}, {rounds} rounds and {buckets} buckets need "
                f"{math.prod(shape):,} random numbers; at most {DRAWN:,} are drawn"
            )
        noise = torch.Generator().manual_seed(0 if seed is None else seed)
        self.register_buffer("rotations", torch.randn(shape, generator=noise, device="cpu"), persistent=False)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        qk, v = self._split(self.qk(x)), self._split(self.v(x))  # (B, H, T, K) each
        slot = flow.slot(self)
        if slot is not None:
            self._fits(flow.first + x.shape[1])
            keys, values = slot.append(qk, v)
            return self._merged(self._unhashed(qk, keys, values, flow))
        if isinstance(x.shape[1], int) and x.shape[1] <= self.size:
            return self._merged(self._unhashed(qk, qk, v, flow))
        return self._merged(self._hashed(qk, v, rows(flow, x), flow))

    def _scale(self, qk: Tensor) -> Tensor:
        """The factor from query to key: k = q / (sqrt(K) sqrt(mean(q^2) + 1e-6)), about q / |q|. (…, K) -> (…, 1)."""
        return (qk.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.head_dim**-0.5

    def _unhashed(self, q: Tensor, k: Tensor, v: Tensor, flow: Flow) -> Tensor:
        """Full attention of the newest tokens to all."""
        place = torch.arange(k.shape[2], device=k.device)[None]  # (1, S)
        theirs = place if flow.keep is None else place.masked_fill(~flow.keep, FAR)
        mine = place[:, k.shape[2] - q.shape[2] :]
        itself = mine[..., None] == place[:, None]  # (1, T, S)
        return self._attend(q, k * self._scale(k), v, hides(mine, theirs, flow.causal)[:, None], itself)[0]

    def _hashed(self, qk: Tensor, v: Tensor, there: Rows, flow: Flow) -> Tensor:
        """Attention within chunks of the tokens sorted by bucket, back in their order, rounds joined."""
        batch, heads, time = qk.shape[:3]
        more = filled(time, self.size)
        length = time + more
        qk, v = (F.pad(t, (0, 0, 0, more)) for t in (qk, v))  # (B, H, T, K), T now of whole chunks
        added = torch.arange(time, length, device=qk.device).expand(batch, more)
        place = torch.cat((there.place, added), 1)  # (B, T)
        turn = self.turn(qk)  # drawn each time, so that dropout meets the same random state again
        # once: a reversible stack recomputes this in backward, where rounding must not move a token to another bucket
        order = flow.once((self, "order"), lambda: self.order(qk, turn, place, there.count)).long()  # (B, H, R T)
        token = order % length
        line = torch.arange(batch * heads, device=qk.device).view(batch, heads, 1)
        q, v, scale = (self._chunks(_picked(t, line, token)) for t in (qk, v, self._scale(qk)))  # (B, H, N, C, K)
        mine = place[:, None].expand(-1, heads, -1).gather(2, token).int()  # (B, H, R T)
        theirs = self._chunks(mine.masked_fill(mine >= there.count[..., None], FAR))
        count = None
        if not there.whole or not isinstance(time, int):
            count = divided(there.count, self.size).clamp(min=1) * self.rounds  # (B, 1)
        k, v, theirs = (self._around(t, count) for t in (q * scale, v, theirs))  # (B, H, N, S, …)
        mine = self._chunks(mine)
        itself = mine[..., None] == theirs[..., None, :]  # (B, H, N, C, S)
        y, score = self._attend(q, k, v, hides(mine, theirs, flow.causal), itself)
        back = order.argsort(-1)
        y = _picked(y.flatten(2, 3), line, back).unflatten(2, (self.rounds, length))  # (B, H, R, T, K)
        if self.rounds == 1:
            return y[:, :, 0, :time]
        share = (
            score.logsumexp(-1).flatten(2).gather(2, back).unflatten(2, (self.rounds, length)).softmax(2)
        )  # (B, H, R, T)
        return (y * share[..., None].to(y.dtype)).sum(2)[:, :, :time]

    def turn(self, qk: Tensor) -> Tensor:
        """The random W of this pass, (H, K, R, half the sum of the factors)."""
        fixed = self.rotations.to(qk)
        return torch.randn_like(fixed) if self.training and self.seed is None else fixed

    @torch.no_grad()
    def buckets(self, qk: Tensor, turn: Tensor) -> Tensor:
        """The bucket of each token in each round, (B, H, T, K) -> (B, H, R, T)."""
        turned = torch.einsum("bhtk,hkrn->bhrtn", qk, turn)
        bucket, step = torch.zeros_like(turned[..., 0], dtype=torch.long), 1
        for factor, side in zip(self.factors, turned.split([n // 2 for n in self.factors], -1), strict=True):
            bucket = bucket + step * torch.cat((side, -side), -1).argmax(-1)
            step *= factor
        return bucket

    @torch.no_grad()
    def order(self, qk: Tensor, turn: Tensor, place: Tensor, count: Tensor) -> Tensor:
        """The tokens by bucket and position, per round, (B, H, T, K) -> (B, H, R T); token t of round r is r T + t.

        Padding fills the last chunk of each round. Surplus padding, which the row alone would not have, comes after the
        last round.
        """
        time, many = qk.shape[2], math.prod(self.factors)
        bucket = self.buckets(qk, turn).where((place < count)[:, None, None], many)  # (B, H, R, T)
        rounds = torch.arange(self.rounds, device=qk.device)[:, None]  # (R, 1)
        own = (place < divided(count, self.size) * self.size)[:, None, None]  # (B, 1, 1, T)
        first = (rounds * (many + 1) + bucket).where(own, self.rounds * (many + 1) + rounds)
        return (first * time + place[:, None, None]).flatten(2).argsort(-1).int()

    def _fits(self, length: int) -> None:
        if length > self.size:
            raise ValueError(
                f"LSHAttention decodes step by step up to size={self.size} tokens; got a length of {length}: longer "
                "texts are sorted again with each token, which changes earlier outputs; generate without a cache: "
                "cache=False, --cache false"
            )

    def start(self, batch: int, length: int, like: Tensor) -> KeysValues:
        self._fits(length)
        return KeysValues(batch, self.heads, self.head_dim, length, like)


def _picked(t: Tensor, line: Tensor, token: Tensor) -> Tensor:
    """t[b, h, token[b, h, i]] for (B, H, T, K) and (B, H, M) -> (B, H, M, K), by whole vectors; `line` is b H + h."""
    flat = (line * t.shape[2] + token).flatten()
    return t.flatten(0, 2).index_select(0, flat).view(*token.shape, t.shape[-1])
