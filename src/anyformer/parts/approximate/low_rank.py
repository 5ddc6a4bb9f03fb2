"""Attention to a few summaries of the text instead of all of it: for encoders.

B batch, T time, D width, H heads, G key/value heads, K head width, R rank, M landmarks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer
from anyformer.parts.attention.heads import width


class Linformer(Mixer):
    """Attention over R learned mixtures of the keys and of the values (Wang et al., 2020; arXiv:2006.04768):
    softmax(q (E k)^T / sqrt(K)) (F v).

    ```
    k (T, K) ── E (R, T) ──> (R, K) ─┐
    q (T, K) ────────────────────────┴─ softmax (T, R) ── F v (R, K) ──> (T, K)
    ```
    Row t of E and F belongs to position t of a text, padding not counted: a text can be shorter than `length`, not
    longer. With R = `length` = T and identities it is full attention.

    Args:
        length: the longest text, in tokens. `rank`: R.
        heads: H. `kv_heads`: G, a divisor of H; H by default. `head_dim`: K; width / heads by default.
        shared: v is k, and F is E.
        bias: of the projections q, k, v; `out_bias`: of o, the same by default.

    Shape: (B, T, D) -> same. It mixes the future in: no use in a decoder, and no state.
    """

    def __init__(
        self,
        dim: int,
        length: int,
        rank: int = 256,
        heads: int = 8,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        shared: bool = False,
        bias: bool = True,
        out_bias: bool | None = None,
    ):
        super().__init__()
        self.heads, self.kv_heads = heads, heads if kv_heads is None else kv_heads
        if min(length, rank, heads, self.kv_heads) < 1:
            raise ValueError(
                "Linformer: length, rank, heads and kv_heads must be at least 1; got "
                f"{length}, {rank}, {heads} and {self.kv_heads}"
            )
        self.head_dim = width("Linformer", dim, heads, head_dim)
        if heads % self.kv_heads:
            raise ValueError(f"Linformer: kv_heads={self.kv_heads} does not divide heads={heads}")
        self.length, self.rank = length, rank
        self.q = nn.Linear(dim, heads * self.head_dim, bias)
        self.k = nn.Linear(dim, self.kv_heads * self.head_dim, bias)
        self.v = None if shared else nn.Linear(dim, self.kv_heads * self.head_dim, bias)
        self.E = nn.Parameter(torch.empty(length, rank))  # (T, R): files hold it transposed to the paper's
        self.F = None if shared else nn.Parameter(torch.empty(length, rank))
        self.o = nn.Linear(heads * self.head_dim, dim, bias if out_bias is None else out_bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws uniformly within 1 / sqrt(R)."""
        for table in (self.E, self.F):
            if table is not None:
                nn.init.uniform_(table, -(self.rank**-0.5), self.rank**-0.5)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        self.needs_both_ways(flow)
        T = x.shape[1]
        if self.length < T:
            raise ValueError(
                f"Linformer was built for {self.length} tokens, the text has {T}: its projections have a row for each "
                f"position; cut the text, or build it with length={T} and train these rows"
            )
        keep = flow.keep_now(T)
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, K)
        k = self._summary(self.k(x), self.E, flow.positions, keep)  # (B, H, R, K)
        if self.v is None or self.F is None:
            v = k
        else:
            v = self._summary(self.v(x), self.F, flow.positions, keep)
        y = F.scaled_dot_product_attention(q, k, v)  # (B, H, T, K)
        return self.o(y.transpose(1, 2).flatten(2))

    def _summary(self, t: Tensor, table: Tensor, positions: Tensor, keep: Tensor | None) -> Tensor:
        """(B, T, G K) -> (B, H, R, K)."""
        t = t if keep is None else t * keep[..., None]
        mixed = F.embedding(positions, table).mT @ t  # (B, R, G K); table[positions] has a slower gradient
        heads = mixed.unflatten(-1, (self.kv_heads, self.head_dim)).transpose(1, 2)  # (B, G, R, K)
        return heads.repeat_interleave(self.heads // self.kv_heads, 1)


class Nystrom(Mixer):
    """Attention through landmarks, means of neighbouring queries and keys (Xiong et al., 2021; arXiv:2102.03902):

    ```
    softmax(q k~^T) · pinv(softmax(q~ k~^T)) · softmax(q~ k^T) v         q~, k~: M landmarks; all scaled by K^-1/2
       (T, M)                  (M, M)               (M, T)
    ```
    A landmark is the mean over L = T / M (rounded up) tokens, counted so that the last one ends with the text; the
    first ones can have fewer tokens. A text of at most M tokens is its own landmarks; then this is full attention,
    up to the error of the inverse, which six steps of an iteration of third order approximate.

    Args:
        heads: H. `head_dim`: K; width / heads by default. `landmarks`: M.
        steps: of the iteration.
        bias: of all projections.

    Shape: (B, T, D) -> same. It mixes the future in: no use in a decoder, and no state.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        head_dim: int | None = None,
        landmarks: int = 64,
        steps: int = 6,
        bias: bool = True,
    ):
        super().__init__()
        if min(heads, landmarks, steps) < 1:
            raise ValueError(
                f"Nystrom: heads, landmarks and steps must be at least 1; got {heads}, {landmarks} and {steps}"
            )
        self.heads, self.head_dim = heads, width("Nystrom", dim, heads, head_dim)
        self.landmarks, self.steps = landmarks, steps
        self.q, self.k, self.v = (nn.Linear(dim, heads * self.head_dim, bias) for _ in range(3))
        self.o = nn.Linear(heads * self.head_dim, dim, bias)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        self.needs_both_ways(flow)
        keep = flow.keep_now(x.shape[1])
        q, k, v = (part(x) for part in (self.q, self.k, self.v))  # (B, T, H K) each
        if keep is None and not isinstance(x.shape[1], torch.SymInt):
            qm, km, used = self._side_by_side(q, k)  # (B, M, H K) each, (B, 1, 1, M) or None
        else:
            qm, km, used = self._anywhere(q, k, keep)
        q, k, v, qm, km = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v, qm, km))
        sharpness = self.head_dim**-0.5
        qm = qm * sharpness  # (B, H, M, K)
        inverse = pseudo_inverse(_softmax(qm @ km.mT, used), self.steps)  # (B, H, M, M)
        seen = None if keep is None else keep[:, None, None]  # (B, 1, 1, T)
        of = F.scaled_dot_product_attention(qm, k, v, seen, scale=1.0)  # (B, H, M, K)
        y = F.scaled_dot_product_attention(q, km, inverse @ of, used, scale=sharpness)
        return self.o(y.transpose(1, 2).flatten(2))

    def _side_by_side(self, *pair: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Landmarks of texts without padding, (B, T, D) -> (B, M, D) each, and a mask of the valid ones, or None if all
        are: a kernel without a mask is faster."""
        T, M = pair[0].shape[1], self.landmarks
        each = -(-T // M)  # L
        before = M * each - T  # missing tokens of the first landmarks
        if not before:
            q, k = (t.unflatten(1, (M, each)).mean(2) for t in pair)
            return q, k, None
        last = torch.arange(1, M + 1, device=pair[0].device) * each
        size = (last - before).clamp(0, each)[:, None]  # (M, 1)
        q, k = (F.pad(t, (0, 0, before, 0)).unflatten(1, (M, each)).sum(2) / size.clamp(min=1) for t in pair)
        return q, k, None if before < each else (size > 0).mT[None, None]

    def _anywhere(self, q: Tensor, k: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Landmarks of rows with padding, or of an open length: by a matrix from tokens to landmarks."""
        real = torch.ones_like(q[..., 0], dtype=torch.bool) if keep is None else keep  # (B, T)
        count = real.sum(1, keepdim=True)  # (B, 1)
        each = torch.div(count + self.landmarks - 1, self.landmarks, rounding_mode="floor").clamp(min=1)  # L
        first = self.landmarks * each - count  # the first landmarks have fewer tokens, or none
        index = torch.div(real.cumsum(1) - 1 + first, each, rounding_mode="floor")  # (B, T)
        mine = (index[:, None] == torch.arange(self.landmarks, device=index.device)[:, None]) & real[:, None]
        size = mine.sum(-1, keepdim=True)  # (B, M, 1)
        means = mine.to(q.dtype) / size.clamp(min=1)  # (B, M, T)
        return means @ q, means @ k, (size > 0).mT[:, None]


def _softmax(scores: Tensor, used: Tensor | None) -> Tensor:
    """Softmax between landmarks, (B, H, M, M); 0 for the rows and columns of empty ones."""
    if used is None:
        return scores.softmax(-1)
    scores = scores.masked_fill(~used, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) * used * used.mT


def pseudo_inverse(a: Tensor, steps: int) -> Tensor:
    """The Moore-Penrose inverse of (…, M, M) by Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4.

    Each matrix starts at its own A^T / (|A|_1 |A|_inf), so a row of a batch does not depend on the others.
    """
    size = a.abs().sum(-2).amax(-1) * a.abs().sum(-1).amax(-1)  # (…,)
    z, one = a.mT / size.clamp(min=torch.finfo(a.dtype).tiny)[..., None, None], torch.eye(a.shape[-1]).to(a)
    a, z, (seven, fifteen, thirteen) = a.flatten(0, -3), z.flatten(0, -3), (n * one for n in (7, 15, 13))
    for _ in range(steps):  # each product and sum in one call: the matrices are small
        az = a @ z
        inner = torch.baddbmm(thirteen, az, torch.baddbmm(fifteen, az, seven - az, alpha=-1), alpha=-1)
        z = torch.baddbmm(z, z, inner, beta=0, alpha=0.25)
    return z.unflatten(0, size.shape)
