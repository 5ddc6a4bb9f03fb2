"""Pooling of a whole text by attention with one learned query. B batch, T time, D width, F hidden width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.slots import Pool


class AdditivePool(Pool):
    """Additive attention with a learned query, as a pool: the weights of tokens are learned (Bahdanau et al., 2014,
    arXiv:1409.0473, score states so; Yang et al., 2016, "Hierarchical attention networks", pool by it).

    ```
    s_t = v . tanh(W x_t + b)        a = softmax(s) over the real tokens        pooled = sum_t a_t x_t
    ```
    With v = 0 it is the mean. A row of padding only gives 0.

    Args:
        hidden: F; D by default.

    Taps: `weights` (B, T). Shape: (B, T, D) -> (B, D).
    """

    def __init__(self, dim: int, hidden: int | None = None):
        super().__init__()
        if hidden is not None and hidden < 1:
            raise ValueError(f"AdditivePool: hidden must be at least 1; got {hidden}")
        self.key = nn.Linear(dim, dim if hidden is None else hidden)
        self.query = nn.Linear(self.key.out_features, 1, bias=False)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        scores = self.query(torch.tanh(self.key(x)))[..., 0]  # (B, T)
        if flow.keep is None:
            weights = scores.softmax(-1)
        else:
            floor = torch.finfo(scores.dtype).min  # as in `kernels.weights`: a row of padding has a softmax, then 0
            weights = scores.masked_fill(~flow.keep, floor).softmax(-1).masked_fill(~flow.keep, 0.0)
        if flow.taps is not None and flow.taps.wants(self, "weights"):
            flow.taps.put(self, "weights", weights)
        return (weights[:, None] @ x)[:, 0]
