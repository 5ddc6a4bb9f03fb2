"""ProbSparse attention: only the queries with a distinct choice of keys attend. B batch, T time, D width, H heads, K
head width, U keys drawn, A queries that attend.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer
from anyformer.core.part import check_option, drop
from anyformer.parts.attention.heads import width
from anyformer.parts.attention.masks import CHUNK
from anyformer.parts.rows import Rows, rows


class ProbSparse(Mixer):
    """Attention of the active queries only (Zhou et al., 2020; arXiv:2012.07436).

    ```
    m_i = max_j s_ij - sum_j s_ij / T            s = q k^T / sqrt(K), over U keys drawn at random
    A = factor * ceil(ln(1 + T)) tokens of the largest m:    y_i = softmax(s_i) v, over all keys
    all others:                                              y_i = mean of v; in a decoder v_1 + … + v_i
    ```
    A query with equal scores attends to all keys equally, which is the mean; `m` measures its distance from that. With
    A >= T this is full attention.

    **In a decoder** no value of a later token enters, but the choice of attending tokens depends on the whole text, as
    in the paper: there is no state, and an early token's output can change as the text grows. Generate with
    `cache=False`.

    Args:
        heads: H. `head_dim`: K; width / heads by default.
        factor: see above; more is closer to full attention.
        draws: U: "few" is factor * ceil(ln(1 + T)), as in the paper, in O(T ln T). "many" is the smaller of T and
            factor * T * ceil(ln(1 + T)), which is always T, as in Informer of transformers, in O(T^2). Keys are drawn
            with replacement, the same ones for all queries and heads.
        seed: of the draws. None: new ones in each pass of training, always the same ones in evaluation.
        bias: of all projections.
        dropout: of the weights, in training.

    Padding is not counted: the other rows of a batch do not change a row. Shape: (B, T, D) -> same.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        head_dim: int | None = None,
        factor: int = 5,
        draws: str = "few",
        seed: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        check_option("ProbSparse", "draws", draws, ("few", "many"))
        if min(heads, factor) < 1:
            raise ValueError(f"ProbSparse: heads and factor must be at least 1; got {heads} and {factor}")
        self.heads, self.head_dim = heads, width("ProbSparse", dim, heads, head_dim)
        self.factor, self.draws, self.seed, self.dropout = factor, draws, seed, dropout
        self.q, self.k, self.v = (nn.Linear(dim, heads * self.head_dim, bias) for _ in range(3))
        self.o = nn.Linear(heads * self.head_dim, dim, bias)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        there = rows(flow, x)
        q, k, v = (
            there.packed(p(x).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2))
            for p in (self.q, self.k, self.v)
        )  # (B, H, T, K) each, real tokens first
        q, time, real = q * self.head_dim**-0.5, x.shape[1], there.real()
        active, most = self._few(there.count), min(self.factor * math.ceil(math.log1p(time)), time)  # (B, 1) A of a row
        chosen = self.measure(q, k, there).topk(most, -1).indices  # (B, H, A)
        score = _at(q, chosen) @ k.mT  # (B, H, A, T)
        least = torch.finfo(score.dtype).min
        if flow.causal:
            score = score.masked_fill(torch.arange(time, device=x.device) > chosen[..., None], least)
        if not there.whole:
            score = score.masked_fill(~real[:, None, None], least)
        y = drop(self, score.softmax(-1)) @ v  # (B, H, A, K)
        v = v if there.whole else v * real[:, None, :, None]
        wide = torch.promote_types(v.dtype, torch.float32)  # sums over the whole text
        rest = v.to(wide).cumsum(2) if flow.causal else v.to(wide).sum(2, keepdim=True)
        rest = rest if flow.causal else rest / there.count[..., None, None].clamp(min=1)
        rest = rest.to(v.dtype).expand_as(v)
        if not there.whole:  # a short row has fewer active tokens
            enough = (torch.arange(most, device=x.device) < active)[:, None, :, None]
            y = y.where(enough, _at(rest, chosen))
        y = rest.scatter(2, chosen[..., None].expand_as(y), y)
        return self.o(there.unpacked(y).transpose(1, 2).flatten(2))

    @torch.no_grad()
    def measure(self, q: Tensor, k: Tensor, there: Rows) -> Tensor:
        """m of each query, -inf for padding, (B, H, T, K) twice -> (B, H, T)."""
        time, count, few = k.shape[2], there.count, self.draws == "few"
        many = self._few(count) if few else count  # (B, 1) U of each row
        most = min(self.factor * math.ceil(math.log1p(time)), time) if few else time
        if there.whole:  # some queries at a time: their scores stay in the processor's cache
            drawn = k.index_select(2, self._drawn(time, most).to(q.device)).mT  # (B, H, K, U)
            pieces = (part @ drawn for part in q.split(CHUNK, 2))  # (B, H, C, U) each
            return torch.cat([s.amax(-1) - s.sum(-1) / time for s in pieces], 2)
        key = torch.stack([self._drawn(n, most) for n in count[:, 0].tolist()]).to(q.device)  # (B, U)
        score = q @ _at(k, key[:, None].expand(-1, k.shape[1], -1)).mT  # (B, H, T, U)
        mine = (torch.arange(most, device=q.device) < many)[:, None, None]  # (B, 1, 1, U)
        highest = score.masked_fill(~mine, float("-inf")).amax(-1)
        measured = highest - (score * mine).sum(-1) / count[..., None].clamp(min=1)
        return measured.masked_fill(~there.real()[:, None], float("-inf"))

    def _drawn(self, count: int, most: int) -> Tensor:
        """Indices of drawn keys of a text of `count` tokens, (U,); the same for a row in a batch and alone."""
        fixed = self.seed is not None or not self.training
        if fixed and torch.compiler.is_exporting() and isinstance(count, int):
            return torch.tensor(_numbers(count, most, self.seed or 0))  # a program would draw others each time
        noise = torch.Generator().manual_seed(self.seed or 0) if fixed else None
        return torch.randint(max(count, 1), (most,), generator=noise)

    def _few(self, count: Tensor) -> Tensor:
        """factor * ceil(ln(1 + n)) of n tokens, but at most n."""
        return (self.factor * count.double().log1p().ceil()).long().minimum(count)


def _numbers(count: int, most: int, seed: int) -> list[int]:
    """The drawn indices, in real numbers while a model is traced."""
    with _disable_current_modes():
        return torch.randint(max(count, 1), (most,), generator=torch.Generator().manual_seed(seed)).tolist()


def _at(t: Tensor, index: Tensor) -> Tensor:
    """t[b, h, index[b, h, i]] for (B, H, T, K) and (B, H, A) -> (B, H, A, K)."""
    return t.gather(2, index[..., None].expand(-1, -1, -1, t.shape[-1]))
