"""The block of AlphaFold 2 beside openfold3's, weights and masks alike. `pip install --no-deps openfold3==0.5.0
ml-collections absl-py gemmi biotite` makes these modules importable; without them the test is skipped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.parts.folding.blocks import ColumnAttention, EvoformerBlock, OuterProductMean, RowAttention
from anyformer.parts.folding.front import Rows
from anyformer.parts.folding.triangles import PairUpdates

evoformer = pytest.importorskip(
    "openfold3.core.model.latent.evoformer", reason="openfold3 is installed by hand, without its dependencies"
)

MHA = {"linear_q": "q", "linear_k": "k", "linear_v": "v", "linear_o": "o", "linear_g": "gate"}
PRODUCT = {"a_p": "a", "a_g": "a_gate", "b_p": "b", "b_g": "b_gate", "g": "gate", "z": "o"}
NAMES = {
    "msa_att_row.layer_norm_m": "rows.norm",
    "msa_att_row.layer_norm_z": "rows.norm_pair",
    "msa_att_row.linear_z": "rows.bias",
    "msa_att_col._msa_att.layer_norm_m": "columns.norm",
    "outer_product_mean.layer_norm": "outer.norm",
    "outer_product_mean.linear_1": "outer.a",
    "outer_product_mean.linear_2": "outer.b",
    "outer_product_mean.linear_out": "outer.o",
}
for theirs, ours in (("msa_transition", "transition"), ("pair_stack.pair_transition", "pairs.transition")):
    NAMES |= {f"{theirs}.layer_norm": f"{ours}.norm", f"{theirs}.transition_mlp.layers.0.0": f"{ours}.up"}
    NAMES[f"{theirs}.transition_mlp.linear_out"] = f"{ours}.o"
for theirs, ours in (("msa_att_row", "rows"), ("msa_att_col._msa_att", "columns")):
    NAMES |= {f"{theirs}.mha.{a}": f"{ours}.attention.{b}" for a, b in MHA.items()}
for theirs, ours in (("tri_att_start", "starting"), ("tri_att_end", "ending")):
    NAMES |= {
        f"pair_stack.{theirs}.layer_norm": f"pairs.{ours}.norm",
        f"pair_stack.{theirs}.linear_z": f"pairs.{ours}.bias",
    }
    NAMES |= {f"pair_stack.{theirs}.mha.{a}": f"pairs.{ours}.attention.{b}" for a, b in MHA.items()}
for theirs, ours in (("tri_mul_out", "outgoing"), ("tri_mul_in", "incoming")):
    NAMES |= {f"pair_stack.{theirs}.linear_{a}": f"pairs.{ours}.{b}" for a, b in PRODUCT.items()}
    NAMES |= {f"pair_stack.{theirs}.layer_norm_{side}": f"pairs.{ours}.norm_{side}" for side in ("in", "out")}


def pair() -> tuple[nn.Module, nn.Module]:
    """Their block and ours, with the same random weights; biases that only ours has are 0."""
    theirs = evoformer.EvoformerBlock(
        c_m=12, c_z=8, c_hidden_msa_att=5, c_hidden_opm=3, c_hidden_mul=8, c_hidden_pair_att=4, no_heads_msa=3,
        no_heads_pair=2, transition_type="relu", transition_n=4, msa_dropout=0.0, pair_dropout=0.0,
        no_column_attention=False, opm_first=False, fuse_projection_weights=False, inf=1e9, eps=1e-3,
    ).eval()  # fmt: skip
    # openfold3 turns the bias of the ending node, as AlphaFold 3 does; AlphaFold 2 (algorithm 14) and ESMFold do not
    ending = theirs.pair_stack.tri_att_end
    ending.forward = lambda z, transpose_bias, plain=ending.forward, **more: plain(z, **more)
    ours = EvoformerBlock(
        12, 8, RowAttention.of(heads=3, head_dim=5), ColumnAttention.of(heads=3, head_dim=5),
        OuterProductMean.of(hidden=3), PairUpdates.of(heads=2, head_dim=4),
    ).eval()  # fmt: skip
    noise, mine = torch.Generator().manual_seed(0), ours.state_dict()
    seen = set()
    with torch.no_grad():
        for tensor in mine.values():
            tensor.zero_()
        for name, tensor in theirs.state_dict().items():
            module, _, tail = name.rpartition(".")
            path = f"{NAMES[module]}.{tail}"
            tensor.normal_(0.0, 0.25, generator=noise)
            mine[path].copy_(tensor)
            seen.add(path)
    assert all(path.endswith("bias") for path in mine.keys() - seen)  # every matrix and norm has its counterpart
    return theirs, ours


def slopes(output: tuple[Tensor, Tensor], x: Tensor, z: Tensor, rows: Tensor, keep: Tensor) -> list[Tensor]:
    noise = torch.Generator().manual_seed(1)
    m, pairs = output
    there, real = rows[:, :, None] & keep[:, None], keep[:, :, None] & keep[:, None]
    total: Any = sum(
        (t.masked_fill(~mask[..., None], 0.0) * torch.randn(t.shape, generator=noise)).sum()
        for t, mask in ((m, there), (pairs, real))
    )
    return list(torch.autograd.grad(total, (x, z)))


def test_the_block_of_alphafold_is_openfolds() -> None:
    theirs, ours = pair()
    B, S, L = 2, 4, 6
    noise = torch.Generator().manual_seed(2)
    x = torch.randn(B, S, L, 12, generator=noise, requires_grad=True)
    z = torch.randn(B, L, L, 8, generator=noise, requires_grad=True)
    keep = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    rows = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    flow = Flow(torch.arange(L), keep=keep)
    flow.put(Rows(None, rows))
    mine = ours(x, z, flow)
    msa_mask = (rows[:, :, None] & keep[:, None]).float()
    pair_mask = (keep[:, :, None] & keep[:, None]).float()
    other = theirs(x, z, msa_mask, pair_mask)
    for b in range(B):
        here = keep[b]
        assert torch.allclose(mine[0][b][rows[b]][:, here], other[0][b][rows[b]][:, here], atol=2e-5)
        assert torch.allclose(mine[1][b][here][:, here], other[1][b][here][:, here], atol=2e-5)
    for one, two in zip(slopes(mine, x, z, rows, keep), slopes(other, x, z, rows, keep), strict=True):
        assert torch.allclose(one, two, atol=1e-4)
