"""Transformer-XL's relative positions. B batch, T queries, S keys, D width, H heads, K head width, N distances."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.parts.embeddings import Sinusoidal
from anyformer.parts.masks import View
from anyformer.parts.scores import Bias, Call, Score


class Relative(Score):
    """Positions by distance, in the scores alone (Dai et al., 2019; arXiv:1901.02860): a query i and a key j meet with

    ```
    scale ((q_i + u) . k_j  +  (q_i + v) . W R_{i-j})       R_d = sin and cos of d theta^(-2n/D), as `Sinusoidal`
            content                position                 u, v: learned, of each head
    ```
    Nothing depends on absolute places, so keys of an earlier segment can stand before those of this one: they have
    smaller (also negative) indices in the `View`. In an encoder distances are of both signs (XLNet).

    Args:
        theta: base of the frequencies.
        far: distances beyond count as this one (the paper's clamp_len), or None.

    Parameters: `u`, `v` (H, K), `r` = W (H K, D). Time: one more product of queries with T + S distances (S in a
    decoder); memory: a bias of all pairs, (B, H, T, S).
    """

    def __init__(self, dim: int, heads: int, head_dim: int, theta: float = 10000.0, far: int | None = None):
        super().__init__()
        if far is not None and far < 1:
            raise ValueError(f"Relative: far is the largest distance that is told apart, at least 1; got {far}")
        self.u, self.v = (nn.Parameter(torch.empty(heads, head_dim)) for _ in range(2))
        self.r = nn.Linear(dim, heads * head_dim, bias=False)
        self.waves, self.far = Sinusoidal(dim, theta), far
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for vector in (self.u, self.v):
            nn.init.normal_(vector, std=0.02)

    def query(self, q: Tensor) -> Tensor:
        return q + self.u[:, None]

    def bias(self, call: Call) -> Bias:
        q = (call.q + self.v[:, None]) * call.scale  # (B, H, T, K)

        def positions(view: View) -> Tensor:
            start = view.query - call.view.query
            return self.positions(q[:, :, start : start + view.count], view, call.flow.causal)

        return positions

    def positions(self, q: Tensor, view: View, causal: bool) -> Tensor:
        """q_i . W R_{i-j} for the queries and keys of a view.

        A product with every distance that occurs, then a shift: row i of it holds what its keys need, i columns further
        left than row 0 does, so rows that are read one number too short are the answer. In a decoder (`causal`) there
        are no distances below 0, and what stands at keys that lie ahead means nothing: the mask hides it.

        Shape: (B, H, T, K) -> (B, H, T, S).
        """
        T, S = view.count, view.keys
        most = view.query + T - 1 - view.key
        least = 0 if causal else view.query - view.key - S + 1
        distance = torch.arange(most, least - 1, -1, device=q.device)  # (N,), from the largest
        if self.far is not None:
            distance = distance.clamp(-self.far, self.far)
        r = self.r(self.waves(distance).to(q.dtype)).unflatten(-1, q.shape[1:2] + q.shape[3:])  # (N, H, K)
        every = F.pad(q @ r.permute(1, 2, 0), (0, 1))  # (B, H, T, N + 1)
        N = most - least + 1
        return every.flatten(2)[..., T - 1 : T - 1 + T * N].unflatten(-1, (T, N))[..., :S]
