"""Jamba (Lieber et al., 2024; arXiv:2403.19887): a decoder of three kinds of parts.

Differs from Mamba: one layer of eight is attention (grouped heads, no positions: the other layers encode the order);
every layer has an MLP, which in every second layer is a mixture of experts (two a token, weights not renormalised);
and the selected values (step, B, C) are normed.

```
            0      1      2      3      4          5      6      7        the eight layers that repeat
x ─ norm ─ Mamba  Mamba  Mamba  Mamba  Attention  Mamba  Mamba  Mamba ─(+)─ x
x ─ norm ─ MLP    MoE    MLP    MoE    MLP        MoE    MLP    MoE   ─(+)─ x
```
"""

from dataclasses import dataclass, replace

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.config import key, must, quiet
from anyformer.hub.tables.llama import ATTENTION, GATED_MLP, STACK
from anyformer.hub.tables.mamba import MAMBA, mixer_rows, step_rank
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


def jamba(c: Jamba) -> Recipe:
    norm = RMSNorm.of(eps=c.eps)
    mamba = Mamba.of(
        hidden=c.expand * c.dim,
        state=c.state,
        rank=c.rank,
        conv_kernel=c.conv_kernel,
        bias=c.bias,
        conv_bias=c.conv_bias,
        norm=norm,
    )
    attention = Attention.of(heads=c.heads, kv_heads=c.kv_heads, bias=False, dropout=c.attention_dropout)
    mlp = GatedMLP.of(hidden=c.hidden)
    sparse = [i % c.experts_every == c.experts_from and c.experts > 1 for i in range(c.depth)]
    balance = c.balance / max(1, sum(sparse))
    moe = MoE.of(router=TopK.of(experts=c.experts, top=c.top, balance=balance), expert=mlp)
    mixers = [attention if i % c.attention_every == c.attention_from else mamba for i in range(c.depth)]
    blocks = [Block.of(mixer=m, ffn=moe if s else mlp, norm=norm) for m, s in zip(mixers, sparse, strict=True)]
    head = Logits.of(vocab=c.vocab, tied=c.tied)
    return CausalLM.of(c.dim, Tokens.of(vocab=c.vocab), blocks, norm=norm, head=head, context=c.context)


_small = Jamba(dim=32, depth=3, heads=4, kv_heads=2, hidden=24, vocab=128, context=64, experts=4)
SIZES = {
    "tiny": replace(_small, attention_every=3, attention_from=1, experts_from=0, state=4),
    "mini": replace(
        _small, dim=192, depth=4, heads=6, hidden=512, vocab=1024, context=512, attention_every=4, attention_from=2
    ),
    "v0.1": Jamba(),
    "1.5-large": Jamba(dim=8192, depth=72, heads=64, hidden=24576),
}
PARAMETERS = {"tiny": 47_732, "mini": 4_198_596, "v0.1": 51_570_323_328, "1.5-large": 398_555_145_696}
CASES = {
    "tied, biases": {"tied": True, "bias": True, "conv_bias": False},
    "odd": {"dim": 36, "heads": 3, "kv_heads": 1, "expand": 3, "state": 5, "rank": 7, "conv_kernel": 3, "vocab": 101},
    "dense": {"experts": 1, "top": 1, "attention_from": 0},
    "experts everywhere": {"experts_every": 1, "experts": 3, "top": 3},
}


def _weights(c: Jamba) -> list:
    norms = {"dt_layernorm": "norm.step", "b_layernorm": "norm.B", "c_layernorm": "norm.C"}
    experts = under("experts.{e}", "experts.{e}", *GATED_MLP)
    return [
        row("model.embed_tokens", "embed.tokens"),
        row("model.final_layernorm", "norm"),
        row("lm_head", "head.proj", tied="embed.tokens"),
        under(
            "model.layers.{i}",
            "blocks.{i}",
            row("input_layernorm", "norm.mixer"),
            row("pre_ff_layernorm", "norm.ffn"),
            under("mamba", "mixer", *mixer_rows({**MAMBA, **norms})),
            under("self_attn", "mixer", *ATTENTION),
            under("feed_forward", "ffn", *GATED_MLP, row("router", "router.proj"), experts),
        ),
    ]


HUBS = (
    Hub(
        "jamba",
        architectures={"JambaForCausalLM": {}},
        weights=_weights,
        config=(
            *STACK,
            must("hidden_act", "silu"),
            key("num_key_value_heads", "kv_heads", default=8),
            key("tie_word_embeddings", "tied", default=False),
            key("max_position_embeddings", "context", default=262144),
            key("attn_layer_period", "attention_every", default=8),
            key("attn_layer_offset", "attention_from", default=4),
            key("expert_layer_period", "experts_every", default=2),
            key("expert_layer_offset", "experts_from", default=1),
            key("num_experts", "experts", default=16),
            key("num_experts_per_tok", "top", default=2),
            key("router_aux_loss_coef", "balance", default=0.001),
            key("mamba_d_state", "state", default=16),
            key("mamba_expand", "expand", default=2),
            key("mamba_d_conv", "conv_kernel", default=4),
            key("mamba_conv_bias", "conv_bias", default=True),
            key("mamba_proj_bias", "bias", default=False),
            step_rank("mamba_dt_rank"),
            quiet("output_router_logits", why="there it also switches the load-balance loss on; here `balance` does"),
            quiet("use_mamba_kernels", "use_mambapy", "use_associative_scan", why="how it is computed"),
            quiet("num_logits_to_keep", why="the number of positions with logits; here all, or the last in decoding"),
        ),
    ),
)
