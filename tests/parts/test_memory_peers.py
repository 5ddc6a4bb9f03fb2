"""Memory beside packages that have it: the same weights, the same numbers, segment by segment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anyformer.parts import CompressiveMemory, NearestMemory, Relative, RMSNorm, SegmentRecurrence
from tests.parts.mixing import flow, made, run


def text(rows: int, time: int) -> Tensor:
    return torch.randn(rows, time, 12, dtype=torch.float64)


def test_attention_with_memory_is_xlnets() -> None:
    module = pytest.importorskip("transformers.models.xlnet.modeling_xlnet", reason="needs transformers")
    from transformers import XLNetConfig, XLNetModel

    config = XLNetConfig(d_model=12, n_head=3, n_layer=1, d_inner=8, attn_type="uni", dropout=0.0, vocab_size=5)
    theirs = module.XLNetRelativeAttention(config).double()
    ours = made(SegmentRecurrence.of(heads=3, segment=6, memory=5, bias=False, scores=[Relative.of()]))
    (score,) = ours.scores
    with torch.no_grad():
        for name, layer in (("q", ours.q), ("k", ours.k), ("v", ours.v), ("r", score.r)):
            getattr(theirs, name).copy_(layer.weight.T.unflatten(1, (3, 4)))  # (D, H, K)
        theirs.o.copy_(ours.o.weight.unflatten(1, (3, 4)))
        theirs.r_w_bias.copy_(score.u)
        theirs.r_r_bias.copy_(score.v)
    memory, h = text(2, 11).split([5, 6], 1)
    places = XLNetModel(config).relative_positional_encoding(6, 11, 2).double()
    future = torch.ones(6, 11).triu(6)[..., None, None].double()  # 1 = hidden
    heads = [torch.einsum("ibh,hnd->ibnd", x.transpose(0, 1), w) for x, w in ((h, theirs.q), (memory, theirs.k))]
    both = torch.cat((memory, h), 1).transpose(0, 1)
    k, v, r = (torch.einsum("ibh,hnd->ibnd", x, w) for x, w in ((both, theirs.k), (both, theirs.v), (places, theirs.r)))
    read = theirs.rel_attn_core(heads[0], k, v, r, attn_mask=future.expand(-1, -1, 2, -1))  # (6, B, H, K)
    expected = torch.einsum("ibnd,hnd->bih", read, theirs.o)
    wide = made(SegmentRecurrence.of(heads=3, segment=6, memory=6, bias=False, scores=[Relative.of()]))
    wide.load_state_dict(ours.state_dict())
    filled = torch.cat((text(2, 1), memory, h), 1)  # a first segment of six tokens, of which memory holds five
    torch.testing.assert_close(run(ours, filled)[:, 6:], expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(run(wide, filled)[:, 6:], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rate", [1, 2])
def test_compression_is_compressive_transformer_pytorchs(rate: int) -> None:
    """With as much memory as a segment: with more, theirs rebuilds all of it and not what leaves (Algorithm 2)."""
    reason = "needs pip install compressive-transformer-pytorch"
    package: Any = pytest.importorskip("compressive_transformer_pytorch.compressive_transformer_pytorch", reason=reason)
    ours = made(CompressiveMemory.of(heads=3, segment=4, memory=4, compressed=5, rate=rate, bias=False, out_bias=True))
    theirs = package.SelfAttention(12, 4, 4, 5, rate, heads=3).double()
    state = ours.state_dict()
    names = {"to_q.weight": "q.weight", "to_out.weight": "o.weight", "to_out.bias": "o.bias"}
    names |= {f"compress_mem_fn.conv.{n}": f"conv.{n}" for n in ("weight", "bias")}
    found = {theirs_: state[mine] for theirs_, mine in names.items()}
    theirs.load_state_dict(found | {"to_kv.weight": torch.cat((state["k.weight"], state["v.weight"]))})
    ours.train()
    theirs.train()
    x, call, memories, rows, losses = text(2, 24), flow(24), None, [], []
    y = ours(x, call)
    for segment in x.split(4, 1):
        out, kept, loss = theirs(segment, memories=memories)
        memories = tuple(t.detach() for t in kept)
        rows.append(out)
        losses.append(loss.squeeze())
    torch.testing.assert_close(y, torch.cat(rows, 1))
    torch.testing.assert_close(call.aux["compression"], torch.stack(losses).mean())
    mine = torch.autograd.grad(call.aux["compression"], list(ours.conv.parameters()))
    conv = list(theirs.compress_mem_fn.parameters())
    torch.testing.assert_close(mine, torch.autograd.grad(torch.stack(losses).mean(), conv))


@pytest.mark.parametrize("memory", [0, 3])
def test_looking_up_is_memorizing_transformers_pytorchs(memory: int, tmp_path: Path) -> None:
    """One softmax over what is near and what FAISS finds; theirs has no gate between them, as the paper's has."""
    pytest.importorskip("faiss", reason="needs pip install faiss-cpu")
    reason = "needs pip install --no-deps memorizing-transformers-pytorch einops-exts"
    package: Any = pytest.importorskip("memorizing_transformers_pytorch.memorizing_transformers_pytorch", reason=reason)
    from memorizing_transformers_pytorch.knn_memory import KNNMemory

    recipe = NearestMemory.of(
        heads=3, segment=5, memory=memory, top=4, gate=False, bias=False, norm=RMSNorm.of(eps=0.0)
    )
    ours = made(recipe, dtype=torch.float32)
    theirs = package.KNNAttention(
        dim=12, heads=3, dim_head=4, num_retrieved_memories=4, xl_max_memories=memory, attn_scale_init=3.0
    ).eval()
    with torch.no_grad():  # theirs has one key and value for all heads, of length 1, and a factor of the scores
        k, v = theirs.to_kv.weight.chunk(2)
        ours.q.weight.copy_(theirs.to_q.weight)
        ours.k.weight.copy_(k.repeat(3, 1))
        ours.v.weight.copy_(v.repeat(3, 1))
        ours.o.weight.copy_(theirs.to_out.weight)
        ours.norm["q"].weight.fill_(3.0 / 4**0.5)  # q . k / 2 of vectors that are 2 long
        ours.norm["k"].weight.fill_(1.0)
    store = KNNMemory(4, num_indices=2, memmap_filename=str(tmp_path / "memory"), multiprocessing=False)
    x, near, rows = text(2, 30).float(), None, []
    for segment in x.split(5, 1):
        with torch.no_grad():
            out, near = theirs(segment, knn_memory=store, xl_memory=near)
        rows.append(out)
    torch.testing.assert_close(run(ours, x), torch.cat(rows, 1), rtol=1e-5, atol=1e-5)
