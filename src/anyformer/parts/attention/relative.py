"""Transformer-XL's relative positions. B batch, T queries, S keys, D width, H heads, K head width, N distances."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.parts.attention.kernels import reader
from anyformer.parts.attention.masks import View
from anyformer.parts.attention.scores import Bias, Call, Score
from anyformer.parts.embeddings import Sinusoidal


class Relative(Score):
    """Positions by distance, in the scores alone (Dai et al., 2019; arXiv:1901.02860): for a query i and a key j

    ```
    scale ((q_i + u) . k_j  +  (q_i + v) . W R_{i-j})       R_d = sin and cos of d theta^(-2n/D), as `Sinusoidal`
            content                position                 u, v: learned, of each head
    ```
    Nothing depends on absolute positions, so keys of an earlier segment can precede those of this one: they have
    smaller (also negative) indices in the `View`. In an encoder distances are of both signs (XLNet).

    Args:
        theta: base of the frequencies.
        far: the largest distance; larger ones count as this one (the paper's clamp_len), or None.

    Parameters: `u`, `v` (H, K), `r` = W (H K, D). Time: one more product of queries with T + S distances (S in a
    decoder); memory: a bias of all pairs, (B, H, T, S), in pieces where texts are long.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, theta: float = 10000.0, far: int | None = None):
        super().__init__()
        if far is not None and far < 1:
            raise ValueError(
                f"Relative: far, the largest distance with a vector of its own, must be at least 1; got {far}"
            )
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
        q, whole, causal = (call.q + self.v[:, None]) * call.scale, call.view, call.flow.causal  # (B, H, T, K)
        most, least = distances(whole, causal)

        def made() -> Tensor:
            distance = torch.arange(most, least - 1, -1, device=q.device)  # (N,), from the largest
            return self.waves(distance if self.far is None else distance.clamp(-self.far, self.far)).to(q.dtype)

        key = ("waves", self.far, self.waves.dim, self.waves.theta, whole.query, whole.key)
        waves = made() if whole.open() else call.flow.once(key, made)  # (N, D): all layers have the same
        r = self.r(waves).unflatten(-1, q.shape[1:2] + q.shape[3:]).permute(1, 2, 0)  # (H, K, N)

        queries = reader(q)

        def positions(view: View) -> Tensor:
            far, near = distances(view, causal)
            start = view.query - whole.query
            asked = queries(start, start + view.count)
            return shifted(asked @ r[..., most - far : most - near + 1], view.keys)

        return positions


def distances(view: View, causal: bool) -> tuple[int, int]:
    """The largest and the smallest i - j; none below 0 in a decoder, which hides later keys."""
    most = view.query + view.count - 1 - view.key
    return most, 0 if causal else view.query - view.key - view.keys + 1


def shifted(every: Tensor, keys: int) -> Tensor:
    """The scores of each query by key, from those by distance, the largest first.

    Row i has its keys i columns further left than row 0: reading rows one number too short aligns them. The values
    at later keys, in a decoder, mean nothing.

    Shape: (B, H, T, N) -> (B, H, T, S), S up to N.
    """
    T, N = every.shape[2:]
    flat = F.pad(every, (0, 1)).flatten(2)  # rows of N + 1
    return flat[..., T - 1 : T - 1 + T * N].unflatten(-1, (T, N))[..., :keys]
