"""Blocks of two streams: residues, or rows of an alignment, and pairs.

B batch, S rows of an alignment, L residues, D width of residues, C width of pairs, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.part import Part, drop
from anyformer.core.recipe import Recipe
from anyformer.parts.folding.attention import GatedAttention, PairPart, closed, shared_dropout
from anyformer.parts.folding.front import Rows
from anyformer.parts.folding.triangles import PairUpdates, Transition
from anyformer.parts.norms import LayerNorm


class RowAttention(PairPart):
    """Attention along each row of a table, with a number a head from each pair added to the scores (algorithm 7): rows
    of an alignment, or the one row of ESMFold.

    Args:
        heads: H. `head_dim`: K; D / heads by default.

    Shape: (B, S, L, D) and pairs (B, L, L, C) -> (B, S, L, D).
    """

    def __init__(self, dim: int, pair_dim: int, heads: int, head_dim: int | None = None):
        super().__init__()
        self.norm, self.norm_pair = LayerNorm(dim), LayerNorm(pair_dim)
        self.bias = nn.Linear(pair_dim, heads, bias=False)
        self.attention = GatedAttention(dim, heads, head_dim)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.bias.weight, std=self.bias.in_features**-0.5)

    def forward(self, x: Tensor, z: Tensor, flow: Flow) -> Tensor:
        bias = self.bias(self.norm_pair(z)).permute(0, 3, 1, 2)  # (B, H, L, L)
        keep = flow.keep_now(x.shape[2])
        return self.attention(self.norm(x), flow, bias, None if keep is None else keep[:, None])


class ColumnAttention(Part):
    """Attention of a residue to the same column of the other rows of an alignment (algorithm 8).

    Shape: (B, S, L, D) -> same.
    """

    def __init__(self, dim: int, heads: int, head_dim: int | None = None):
        super().__init__()
        self.norm, self.attention = LayerNorm(dim), GatedAttention(dim, heads, head_dim)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        rows = flow.get(Rows, "ColumnAttention").keep  # (B, S) or None
        y = self.attention(self.norm(x).transpose(1, 2), flow, None, None if rows is None else rows[:, None])
        return y.transpose(1, 2)


class OuterProductMean(PairPart):
    """The update of a pair by an alignment: the mean over its rows of the outer product of two columns (algorithm 10):
    z_ij <- o(sum over s of a_si (x) b_sj) / (rows with both + 1e-3). The bias of o is divided, too, as in published
    models.

    Args:
        hidden: width of a and b.

    Shape: (B, S, L, D) -> (B, L, L, C).
    """

    def __init__(self, dim: int, pair_dim: int, hidden: int = 32):
        super().__init__()
        if hidden < 1:
            raise ValueError(f"OuterProductMean: hidden must be at least 1, got {hidden}")
        self.norm = LayerNorm(dim)
        self.a, self.b = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.o = nn.Linear(hidden * hidden, pair_dim)

    def reset_parameters(self) -> None:
        closed(self.o)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        mask = real_cells(x, flow)  # (B, S, L, 1)
        a, b = (p(self.norm(x)) * mask for p in (self.a, self.b))  # (B, S, L, E)
        product = torch.einsum("bsie,bsjf->bijef", a, b).flatten(3)
        count = torch.einsum("bsi,bsj->bij", mask[..., 0], mask[..., 0])
        return self.o(product) / (count[..., None] + 1e-3)


def real_cells(x: Tensor, flow: Flow) -> Tensor:
    """(B, S, L, 1) 1 at the real residues of the real rows of an alignment, in its type."""
    rows, keep = flow.get(Rows, "OuterProductMean").keep, flow.keep_now(x.shape[2])
    mask = torch.ones(x.shape[:3], dtype=torch.bool, device=x.device)
    mask = mask if rows is None else mask & rows[:, :, None]
    return (mask if keep is None else mask & keep[:, None])[..., None].to(x.dtype)


class EvoformerBlock(PairPart):
    """One layer of AlphaFold 2 (Jumper et al., 2021; algorithm 6).

    ```
    m ── (+) row attention ── (+) column attention ── (+) MLP ──┬── m
               ^ bias                                   outer product mean
    z ─────────┴───────────────────────────────────────────────(+) ── PairUpdates ── z
    ```
    Args:
        rows, columns, outer, pairs: the parts. `factor`: hidden width / width of the MLP.
        dropout: after row attention, of whole columns of the alignment.

    Shape: (B, S, L, D), (B, L, L, C) -> same.
    """

    def __init__(
        self,
        dim: int,
        pair_dim: int,
        rows: Recipe[RowAttention],
        columns: Recipe[ColumnAttention],
        outer: Recipe[OuterProductMean],
        pairs: Recipe[PairUpdates],
        factor: int = 4,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.rows, self.columns = rows.build(dim, pair_dim), columns.build(dim)
        self.transition, self.outer = Transition(dim, factor), outer.build(dim, pair_dim)
        self.pairs, self.dropout = pairs.build(pair_dim), dropout

    def forward(self, x: Tensor, z: Tensor, flow: Flow) -> tuple[Tensor, Tensor]:
        x = x + shared_dropout(self, self.rows(x, z, flow), self.dropout, 1)
        x = x + self.columns(x, flow)
        x = x + self.transition(x, flow)
        return x, self.pairs(z + self.outer(x, flow), flow)


class SequenceToPair(PairPart):
    """Pairs from residues: o([q_j * k_i, q_j - k_i]) of q, k = linear(norm(x)) (Lin et al., 2022).

    Args:
        hidden: width of q and k; C / 2 by default.

    Shape: (B, L, D) -> (B, L, L, C), the first residue i.
    """

    def __init__(self, dim: int, pair_dim: int, hidden: int | None = None):
        super().__init__()
        inner = pair_dim // 2 if hidden is None else hidden
        if inner < 1:
            raise ValueError(f"SequenceToPair: hidden must be at least 1, got {hidden}")
        self.norm = LayerNorm(dim)
        self.q, self.k = nn.Linear(dim, inner), nn.Linear(dim, inner)
        self.o = nn.Linear(2 * inner, pair_dim)

    def reset_parameters(self) -> None:
        closed(self.o)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k = self.q(y)[:, None], self.k(y)[:, :, None]
        return self.o(torch.cat((q * k, q - k), -1))


class FoldingBlock(PairPart):
    """One layer of ESMFold's trunk (Lin et al., 2022): an Evoformer of a single row, where no column has others.

    ```
    x ── (+) attention ── (+) MLP ──┬── x
              ^ bias          SequenceToPair
    z ────────┴────────────────────(+) ── PairUpdates ── z
    ```
    Args:
        rows, pairs: the parts. `factor`: hidden width / width of the MLP.
        dropout: after attention and after the MLP.

    Shape: (B, 1, L, D), (B, L, L, C) -> same.
    """

    def __init__(
        self,
        dim: int,
        pair_dim: int,
        rows: Recipe[RowAttention],
        pairs: Recipe[PairUpdates],
        factor: int = 4,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.rows, self.pairs = rows.build(dim, pair_dim), pairs.build(pair_dim)
        self.transition, self.to_pair = Transition(dim, factor, dropout), SequenceToPair(dim, pair_dim)
        self.dropout = dropout

    def forward(self, x: Tensor, z: Tensor, flow: Flow) -> tuple[Tensor, Tensor]:
        x = x + drop(self, self.rows(x, z, flow))
        x = x + self.transition(x, flow)
        return x, self.pairs(z + self.to_pair(x[:, 0]), flow)
