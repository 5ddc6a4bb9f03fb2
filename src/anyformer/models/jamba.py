"""Jamba (Lieber et al., 2024; arXiv:2403.19887): a decoder of three kinds of parts.

Differs from Mamba: one layer of eight is attention (grouped heads, no positions: the other layers know the order);
every layer has an MLP, which in every second layer is a mixture of experts (two a token, weights not renormalised); and
what a token selects (step, B, C) is normed.

```
            0      1      2      3      4          5      6      7        the eight layers that repeat
x ─ norm ─ Mamba  Mamba  Mamba  Mamba  Attention  Mamba  Mamba  Mamba ─(+)─ x
x ─ norm ─ MLP    MoE    MLP    MoE    MLP        MoE    MLP    MoE   ─(+)─ x
```
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.config import Lens, key, keys, must, quiet
from anyformer.hub.tables.weights import Hub, row, under
from anyformer.parts import Attention, Block, GatedMLP, Logits, Mamba, MoE, RMSNorm, Tokens, TopK
from anyformer.skeletons.decoder import CausalLM


@dataclass(frozen=True)
class Jamba:
    dim: int = 4096
    depth: int = 32
    heads: int = 32
    kv_heads: int = 8
    hidden: int = 14336  # of an MLP, and of each expert
    vocab: int = 65536
    context: int = 262144
    attention_every: int = 8  # layer i is attention where i % attention_every = attention_from
    attention_from: int = 4
    experts_every: int = 2
    experts_from: int = 1
    experts: int = 16
    top: int = 2
    balance: float = 0.001
    state: int = 16
    expand: int = 2
    rank: int | None = None  # dim / 16, rounded up
    conv_kernel: int = 4
    conv_bias: bool = True
    bias: bool = False  # of Mamba's projections
    eps: float = 1e-6
    tied: bool = False
    attention_dropout: float = 0.0


SIZES = {
    "tiny": Jamba(32, 3, 4, 2, 24, 128, 64, attention_every=3, attention_from=1, experts_from=0, experts=4, state=4),
    "mini": Jamba(192, 4, 6, 2, 512, 1024, 512, attention_every=4, attention_from=2, experts=4),
    "v0.1": Jamba(),
    "1.5-large": Jamba(dim=8192, depth=72, heads=64, hidden=24576),
}
PARAMETERS = {"v0.1": 51_570_323_328, "1.5-large": 398_555_145_696}
CASES = {
    "tied, biases": {"tied": True, "bias": True, "conv_bias": False},
    "odd": {"dim": 36, "heads": 3, "kv_heads": 1, "expand": 3, "state": 5, "rank": 7, "conv_kernel": 3, "vocab": 101},
    "dense": {"experts": 1, "top": 1, "attention_from": 0},
    "experts everywhere": {"experts_every": 1, "experts": 3, "top": 3},
}


def jamba(c: Jamba) -> Recipe:
    norm = RMSNorm.of(eps=c.eps)
    mamba = Mamba.of(
        hidden=c.expand * c.dim, state=c.state, rank=c.rank, conv_kernel=c.conv_kernel, bias=c.bias,
        conv_bias=c.conv_bias, norm=norm,
    )  # fmt: skip
    attention = Attention.of(heads=c.heads, kv_heads=c.kv_heads, bias=False, dropout=c.attention_dropout)
    mlp = GatedMLP.of(hidden=c.hidden)
    sparse = [i % c.experts_every == c.experts_from and c.experts > 1 for i in range(c.depth)]
    balance = c.balance / max(1, sum(sparse))
    moe = MoE.of(router=TopK.of(experts=c.experts, top=c.top, balance=balance), expert=mlp)
    mixers = [attention if i % c.attention_every == c.attention_from else mamba for i in range(c.depth)]
    blocks = [Block.of(mixer=m, ffn=moe if s else mlp, norm=norm) for m, s in zip(mixers, sparse, strict=True)]
    head = Logits.of(vocab=c.vocab, tied=c.tied)
    return CausalLM.of(c.dim, Tokens.of(vocab=c.vocab), blocks, norm=norm, head=head, context=c.context)


def _weights(c: Jamba) -> list:
    mamba = {"in_proj": "into", "conv1d": "conv", "x_proj": "select", "dt_proj": "step", "A_log": "A_log", "D": "skip",
             "out_proj": "out", "dt_layernorm": "norm.step", "b_layernorm": "norm.B",
             "c_layernorm": "norm.C"}  # fmt: skip
    gated = [row(f"{n}_proj", n) for n in ("gate", "up", "down")]
    return [
        row("model.embed_tokens", "embed.tokens"),
        row("model.final_layernorm", "norm"),
        row("lm_head", "head.proj", tied="embed.tokens"),
        under(
            "model.layers.{i}", "blocks.{i}",
            row("input_layernorm", "norm.mixer"), row("pre_ff_layernorm", "norm.ffn"),
            under("mamba", "mixer", *(row(theirs, ours) for theirs, ours in mamba.items())),
            under("self_attn", "mixer", *(row(f"{n}_proj", n) for n in "qkvo")),
            under("feed_forward", "ffn", *gated, row("router", "router.proj"),
                  under("experts.{e}", "experts.{e}", *gated)),
        ),
    ]  # fmt: skip


def _rank(config: Mapping[str, Any]) -> dict[str, Any]:
    rank = config.get("mamba_dt_rank", "auto")
    return {"rank": None if rank in ("auto", math.ceil(config.get("hidden_size", 0) / 16)) else rank}


HUBS = (
    Hub(
        "jamba",
        architectures={"JambaForCausalLM": {}},
        weights=_weights,
        config=(
            *keys(hidden_size="dim", num_hidden_layers="depth", num_attention_heads="heads", vocab_size="vocab"),
            *keys(intermediate_size="hidden", rms_norm_eps="eps"), must("hidden_act", "silu"),
            key("num_key_value_heads", "kv_heads", default=8), key("tie_word_embeddings", "tied", default=False),
            key("max_position_embeddings", "context", default=262144),
            key("attn_layer_period", "attention_every", default=8),
            key("attn_layer_offset", "attention_from", default=4),
            key("expert_layer_period", "experts_every", default=2),
            key("expert_layer_offset", "experts_from", default=1),
            key("num_experts", "experts", default=16), key("num_experts_per_tok", "top", default=2),
            key("router_aux_loss_coef", "balance", default=0.001), key("mamba_d_state", "state", default=16),
            key("mamba_expand", "expand", default=2), key("mamba_d_conv", "conv_kernel", default=4),
            key("mamba_conv_bias", "conv_bias", default=True), key("mamba_proj_bias", "bias", default=False),
            Lens(("mamba_dt_rank",), ("rank",), _rank, lambda c: {"mamba_dt_rank": c.rank or math.ceil(c.dim / 16)}),
            key("attention_dropout", "attention_dropout", default=0.0),
            quiet("output_router_logits", why="there it also switches the load-balance loss on; here `balance` does"),
            quiet("use_mamba_kernels", "use_mambapy", "use_associative_scan", why="how it is computed"),
            quiet("num_logits_to_keep", why="for how many places logits are made; here all, or the last in decoding"),
        ),
    ),
)  # fmt: skip
