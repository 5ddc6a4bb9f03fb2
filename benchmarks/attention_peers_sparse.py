"""Other people's sparse attention, and attention with a memory, with our weights in them. `attention_peers` lists them.

B batch, T time, D width, H heads, K width of a head, L tokens of a segment, S keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.attention_adapters import Called, Layer, copied, joined, linears, own
from benchmarks.attention_mixers import DIM, GLOBALS, HEADS

SELF = linears({"q": "query", "k": "key", "v": "value"})
WIDE = linears({f"wide.{a}": f"{b}_global" for a, b in (("q", "query"), ("k", "key"), ("v", "value"))})
PROJECTED = linears({"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"})


def seeded(seed: int) -> Callable[[Any, Tensor], Any]:
    """A call with the global generator at a seed: what theirs draws there, ours draws from a generator of its own."""

    def call(m: Any, x: Tensor) -> Any:
        torch.manual_seed(seed)
        return m(x)

    return call


def longformer(ours: Any, length: int) -> Layer:
    """With `ours.wide` the first tokens are global."""
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    config = LongformerConfig(
        hidden_size=DIM, num_attention_heads=HEADS, attention_window=[256], attention_probs_dropout_prob=0.0
    )
    theirs, some = LongformerSelfAttention(config, 0), hasattr(ours, "wide")
    copied(theirs, joined(ours, SELF | WIDE) if some else joined(ours, SELF) | own(theirs, "_global"))
    far = torch.zeros(1, length, dtype=torch.bool)
    far[:, :GLOBALS] = some
    none = torch.zeros(1, length, dtype=torch.bool)
    return Called(theirs, lambda m, x: m(x, 10000.0 * far, none, far, some)[0], ours.o)


def big_bird(ours: Any, length: int) -> Layer:
    """A short text gets full attention, as from their model."""
    from transformers import BigBirdConfig, BigBirdModel
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdSelfAttention

    config = BigBirdConfig(
        hidden_size=DIM, num_attention_heads=HEADS, block_size=ours.size, num_random_blocks=ours.random,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    if length <= ours.least:
        whole = BigBirdSelfAttention(config)
        copied(whole, joined(ours, SELF))
        return Called(whole, lambda m, x: m(x)[0], ours.o)
    theirs = BigBirdBlockSparseAttention(config, seed=ours.seed)
    copied(theirs, joined(ours, SELF))

    def call(m: Any, x: Tensor) -> Tensor:
        blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(
            x.new_ones(x.shape[:2]), ours.size
        )
        return m(x, band, rows, columns, blocked, blocked)[0]

    return Called(theirs, call, ours.o)


def reformer_config(ours: Any, kind: str, causal: bool, **more: Any) -> Any:
    from transformers import ReformerConfig

    options = {f"{kind}_attn_chunk_length": ours.size, f"{kind}_num_chunks_before": ours.before,
             f"{kind}_num_chunks_after": ours.after, f"{kind}_attention_probs_dropout_prob": 0.0}  # fmt: skip
    return ReformerConfig(
        attn_layers=[kind], is_decoder=causal, hidden_size=DIM, num_attention_heads=HEADS,
        attention_head_size=DIM // HEADS, **options, **more,
    )  # fmt: skip


def hf_lsh(ours: Any, length: int) -> Layer:
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention

    config = reformer_config(
        ours, "lsh", False, num_buckets=ours.factors[0], num_hashes=ours.rounds, hash_seed=ours.seed
    )
    theirs = LSHSelfAttention(config, layer_idx=0)
    copied(theirs, joined(ours, {"qk.weight": "query_key.weight", "v.weight": "value.weight"}))
    return Called(theirs, lambda m, x: m(x).hidden_states, ours.o)


def hf_local(ours: Any, length: int) -> Layer:
    from transformers.models.reformer.modeling_reformer import LocalSelfAttention

    theirs = LocalSelfAttention(reformer_config(ours, "local", True), layer_idx=0)
    copied(theirs, joined(ours, {"q.weight": "query.weight", "k.weight": "key.weight", "v.weight": "value.weight"}))
    return Called(theirs, lambda m, x: m(x).hidden_states, ours.o)


def reformer(ours: Any, length: int) -> Layer:
    """Their scores are q . k / |k| / sqrt(K), ours are without the root, so their queries are that much longer."""
    from reformer_pytorch.reformer_pytorch import LSHSelfAttention

    theirs = LSHSelfAttention(
        DIM, heads=HEADS, bucket_size=ours.size, n_hashes=ours.rounds, random_rotations_per_head=True
    )
    copied(theirs, {
        "toqk.weight": ours.qk.weight * ours.head_dim**0.5, "tov.weight": ours.v.weight, "to_out.weight": ours.o.weight,
        "to_out.bias": torch.zeros(DIM),
    })  # fmt: skip
    return Called(theirs, seeded(ours.seed))


def informer(ours: Any, length: int) -> Layer:
    from transformers.models.informer.modeling_informer import InformerProbSparseAttention

    theirs = InformerProbSparseAttention(DIM, HEADS, sampling_factor=ours.factor)
    copied(theirs, joined(ours, PROJECTED))
    draw = seeded(ours.seed)
    return Called(theirs, lambda m, x: draw(m, x)[0])


def autoformer(ours: Any, length: int) -> Layer:
    from transformers.models.autoformer.modeling_autoformer import AutoformerAttention

    theirs = AutoformerAttention(DIM, HEADS, autocorrelation_factor=int(ours.factor))
    copied(theirs, joined(ours, PROJECTED))
    return Called(theirs, lambda m, x: m(x)[0])


def xlnet(ours: Any, length: int) -> Layer:
    """Their attention of a segment, in a loop over the segments, each with the one before as its memory."""
    from transformers import XLNetConfig, XLNetModel
    from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention

    assert ours.memory == ours.segment
    theirs, (score,) = XLNetRelativeAttention(XLNetConfig(d_model=DIM, n_head=HEADS, d_inner=DIM)), ours.scores
    mine = {"q": ours.q, "k": ours.k, "v": ours.v, "r": score.r}
    copied(theirs, {
        **{name: layer.weight.T.unflatten(1, (HEADS, -1)) for name, layer in mine.items()},
        "o": ours.o.weight.unflatten(1, (HEADS, -1)), "r_w_bias": score.u, "r_r_bias": score.v,
        **own(theirs, "r_s_bias", "seg_embed", "layer_norm"),
    })  # fmt: skip
    frequencies = score.waves.theta ** (-torch.arange(0.0, DIM, 2.0) / DIM)

    def read(m: Any, h: Tensor, memory: Tensor) -> Tensor:
        """(L, B, D), after a memory (0 or L, B, D)."""
        both = torch.cat((memory, h))  # (S, B, D)
        waves = XLNetModel.positional_embedding(torch.arange(float(len(both)), -1.0, -1.0), frequencies, h.shape[1])
        future = h.new_ones(len(h), len(both)).triu(1 + len(memory))[..., None, None]  # 1 = hidden
        q, k, v, r = (
            torch.einsum("ibh,hnd->ibnd", t, w) for t, w in ((h, m.q), (both, m.k), (both, m.v), (waves, m.r))
        )
        y = m.rel_attn_core(q, k, v, r, attn_mask=future.expand(-1, -1, h.shape[1], HEADS))  # (L, B, H, K)
        return torch.einsum("ibnd,hnd->ibh", y, m.o)

    def call(m: Any, x: Tensor) -> Tensor:
        parts = x.transpose(0, 1).split(ours.segment)  # (L, B, D) each
        memories = [parts[0][:0], *(part.detach() for part in parts)]
        return torch.cat([read(m, *pair) for pair in zip(parts, memories, strict=False)]).transpose(0, 1)

    return Called(theirs, call)


def compressive(ours: Any, length: int) -> Layer:
    """Their layer segment by segment, its memories handed on."""
    from compressive_transformer_pytorch.compressive_transformer_pytorch import SelfAttention

    theirs = SelfAttention(DIM, ours.segment, ours.memory, ours.compressed, ours.rate, heads=HEADS)
    names = linears({"conv": "compress_mem_fn.conv", "o": "to_out"}) | {"q.weight": "to_q.weight"}
    copied(theirs, joined(ours, names) | {"to_kv.weight": torch.cat((ours.k.weight, ours.v.weight))})

    def call(m: Any, x: Tensor) -> Tensor:
        memories, rows = None, []
        for segment in x.split(ours.segment, 1):
            y, kept, _ = m(segment, memories=memories)
            memories = tuple(t.detach() for t in kept)
            rows.append(y)
        return torch.cat(rows, 1)

    return Called(theirs, call)
