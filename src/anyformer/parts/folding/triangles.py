"""Updates of pairs by triangles. B batch, L residues, i j k residues, C width of pairs, H heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.part import Part, drop
from anyformer.core.slots import FeedForward
from anyformer.parts.folding.attention import (
    GatedAttention,
    closed,
    lecun,
    opened,
    real_pairs,
    shared_dropout,
)
from anyformer.parts.norms import LayerNorm


class TriangleMultiplication(Part):
    """The update of a pair by the products of the two other sides of every triangle (algorithms 11 and 12).

    ```
    outgoing   z_ij <- sum over k of a_ik b_jk          incoming   z_ij <- sum over k of a_ki b_kj
    ```
    a, b = sigmoid(gate(x)) linear(x) of x = norm(z), 0 where a residue is padding; the sum is normed, projected and
    gated by sigmoid(gate(x)).

    Args:
        outgoing: edges from i and j to k, else from k to i and j.
        hidden: width of a and b; C by default.

    Shape: (B, L, L, C) -> same.
    """

    def __init__(self, dim: int, outgoing: bool = True, hidden: int | None = None):
        super().__init__()
        inner = dim if hidden is None else hidden
        if inner < 1:
            raise ValueError(f"TriangleMultiplication: hidden must be at least 1, got {hidden}")
        self.outgoing = outgoing
        self.norm_in, self.norm_out = LayerNorm(dim), LayerNorm(inner)
        self.a, self.b, self.a_gate, self.b_gate = (nn.Linear(dim, inner) for _ in range(4))
        self.gate, self.o = nn.Linear(dim, dim), nn.Linear(inner, dim)

    def reset_parameters(self) -> None:
        for layer in (self.a, self.b):
            lecun(layer)
        for layer in (self.a_gate, self.b_gate, self.gate):
            opened(layer)
        closed(self.o)

    def forward(self, z: Tensor, flow: Flow) -> Tensor:
        x, real = self.norm_in(z), real_pairs(flow, z.shape[1])
        a, b = torch.sigmoid(self.a_gate(x)) * self.a(x), torch.sigmoid(self.b_gate(x)) * self.b(x)
        if real is not None:
            a, b = (t.masked_fill(~real[..., None], 0.0) for t in (a, b))
        a, b = (t.permute(0, 3, 1, 2) for t in (a, b))  # (B, C, L, L)
        summed = a @ b.mT if self.outgoing else a.mT @ b
        return self.o(self.norm_out(summed.permute(0, 2, 3, 1))) * torch.sigmoid(self.gate(x))


class TriangleAttention(Part):
    """Attention of a pair to the pairs with the same start, or the same end, biased by the third side of the triangle
    (algorithms 13 and 14).

    ```
    starting   z_ij sees z_ik, bias linear(z_jk)          ending   z_ij sees z_kj, bias linear(z_ki)
    ```
    Args:
        heads: H. `head_dim`: K; C / heads by default.
        ending: pairs with the same end.

    Shape: (B, L, L, C) -> same.
    """

    def __init__(self, dim: int, heads: int, ending: bool = False, head_dim: int | None = None):
        super().__init__()
        self.ending, self.norm = ending, LayerNorm(dim)
        self.bias = nn.Linear(dim, heads, bias=False)
        self.attention = GatedAttention(dim, heads, head_dim)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.bias.weight, std=self.bias.in_features**-0.5)

    def forward(self, z: Tensor, flow: Flow) -> Tensor:
        x = self.norm(z.transpose(1, 2) if self.ending else z)  # (B, I, L, C)
        keep = flow.keep_now(z.shape[1])
        y = self.attention(x, flow, self.bias(x).permute(0, 3, 1, 2), None if keep is None else keep[:, None])
        return y.transpose(1, 2) if self.ending else y


class Transition(FeedForward):
    """o(relu(up(norm(x)))), for each cell alone (algorithms 9 and 15).

    Args:
        factor: hidden width / width.
        dropout: at the end.

    Shape: (..., D) -> same.
    """

    def __init__(self, dim: int, factor: int = 4, dropout: float = 0.0):
        super().__init__()
        if factor < 1:
            raise ValueError(f"Transition: factor must be at least 1, got {factor}")
        self.norm, self.dropout = LayerNorm(dim), dropout
        self.up, self.o = nn.Linear(dim, factor * dim), nn.Linear(factor * dim, dim)

    def reset_parameters(self) -> None:
        lecun(self.up, 2.0)
        closed(self.o)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        return drop(self, self.o(torch.relu(self.up(self.norm(x)))))


class PairUpdates(Part):
    """The second half of a block of AlphaFold 2 and of ESMFold, on the pairs alone; each is added to them.

    ```
    z ── (+) product, outgoing ── (+) product, incoming ── (+) attention, starting ── (+) attention, ending ── (+) MLP
    ```
    Args:
        heads: of triangle attention. `head_dim`: K of each; C / heads by default.
        hidden: width inside the products; C by default.
        factor: of the MLP.
        dropout: after products and attention: of whole columns, where the update goes along rows, else of whole rows.
        last_dropout: after the MLP.

    Shape: (B, L, L, C) -> same.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int | None = None,
        hidden: int | None = None,
        factor: int = 4,
        dropout: float = 0.0,
        last_dropout: float = 0.0,
    ):
        super().__init__()
        self.outgoing = TriangleMultiplication(dim, True, hidden)
        self.incoming = TriangleMultiplication(dim, False, hidden)
        self.starting = TriangleAttention(dim, heads, False, head_dim)
        self.ending = TriangleAttention(dim, heads, True, head_dim)
        self.transition, self.dropout = Transition(dim, factor, last_dropout), dropout

    def forward(self, z: Tensor, flow: Flow) -> Tensor:
        for update, axis in ((self.outgoing, 2), (self.incoming, 1), (self.starting, 2), (self.ending, 1)):
            z = z + shared_dropout(self, update(z, flow), self.dropout, axis)
        return z + self.transition(z, flow)
