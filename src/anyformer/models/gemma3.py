"""Gemma 3, text (Gemma Team, 2025; arXiv:2503.19786). A decoder with full attention in every sixth layer only.

Differs from LLaMA by: five layers with a window for each one with full attention, each kind with its own rotary
theta; q and k are normed; a norm before and one after each branch (sandwich), which multiplies by 1 + weight; token
vectors are scaled by sqrt(dim); GELU in the gated MLP.

```
ids ── token · √dim ──┬─ norm ─ attention ─ norm ─(+)─┬─ norm ─ down(gelu(gate) · up) ─ norm ─(+)── … ── norm ── logits
                      └───────────────────────────────┘└──────────────────────────────────────┘
layer   1 2 3 4 5  6   7 8 9 …        q, k ── norm ── rotary
sees    · · · · ·  ■   · · ·          ·  the last `window` tokens, local_theta        ■  everything, theta
```
"""

from dataclasses import dataclass, replace

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.config import ACTS, Lens, key, keys, must, quiet
from anyformer.hub.tables.gguf import PlusOne, decoder_config, decoder_rows
from anyformer.hub.tables.llama import ATTENTION, STACK, llama_rows
from anyformer.hub.tables.rope import layer_kinds, two_ropes
from anyformer.hub.tables.weights import Hub, flat, row, under
from anyformer.models._tasks import choose
from anyformer.parts import Attention, Block, GatedMLP, Logits, OneRMSNorm, Rotary, Tokens, Window
from anyformer.parts.positions import Linear, Scaling, longest
from anyformer.skeletons.decoder import CausalLM


@dataclass(frozen=True)
class Gemma3:
    dim: int = 640
    depth: int = 18
    heads: int = 4
    kv_heads: int = 1
    head_dim: int | None = None  # dim / heads
    hidden: int = 2048
    act: str = "gelu_tanh"
    vocab: int = 262144
    context: int = 32768
    eps: float = 1e-6
    theta: float = 1000000.0
    scaling: Scaling | None = None
    local_theta: float = 10000.0
    window: int = 512  # tokens in most layers' window, the query included
    every: int = 6  # each layer of this number has full attention
    query_scale: int = 256  # scores are divided by its root
    bias: bool = False
    tied: bool = True
    attention_dropout: float = 0.0
    task: str = "lm"  # or none: hidden states only


def gemma3(c: Gemma3) -> Recipe:
    norm = OneRMSNorm.of(eps=c.eps)
    far = Attention.of(
        heads=c.heads,
        kv_heads=c.kv_heads,
        head_dim=c.head_dim or c.dim // c.heads,
        bias=c.bias,
        norm=norm,
        scale=c.query_scale**-0.5,
        positions=Rotary.of(theta=c.theta, scaling=c.scaling),
        dropout=c.attention_dropout,
    )
    near = far.but(positions=Rotary.of(theta=c.local_theta), mask=Window(c.window - 1))
    wide = Block.of(mixer=far, ffn=GatedMLP.of(hidden=c.hidden, act=c.act), norm=norm, wiring="sandwich")
    blocks = [wide if (i + 1) % c.every == 0 else wide.but(mixer=near) for i in range(c.depth)]
    embed = Tokens.of(vocab=c.vocab, scale=c.dim**0.5)
    head = choose("gemma3", "task", c.task, {"lm": Logits.of(vocab=c.vocab, tied=c.tied), "none": None})
    context = longest(c.context, c.scaling)
    return CausalLM.of(c.dim, embed, blocks, norm=norm, head=head, context=context)


_short = Gemma3(dim=32, depth=2, kv_heads=2, head_dim=12, hidden=48, vocab=128, context=64, window=7, every=2)
_tiny = replace(_short, theta=1e5, local_theta=1e3, query_scale=9)
SIZES = {
    "tiny": _tiny,
    "mini": replace(_tiny, dim=192, depth=4, head_dim=48, hidden=512, vocab=1024, context=256, window=64),
    "270m": Gemma3(head_dim=256),
    "1b": Gemma3(dim=1152, depth=26, head_dim=256, hidden=6912),
}
PARAMETERS = {"tiny": 22_864, "mini": 1_822_272, "270m": 268_098_176, "1b": 999_885_952}
CASES = {
    "bare": {"task": "none"},
    "bias": {"bias": True, "tied": False, "act": "silu"},
    "odd": {"dim": 33, "heads": 3, "kv_heads": 1, "head_dim": 10, "vocab": 101, "depth": 5, "every": 3},
    "everything": {"every": 1, "scaling": Linear(8.0)},
    "plain width": {"head_dim": None, "query_scale": 8, "window": 5},
}


def _weights(c: Gemma3) -> list:
    norms = {
        "input_layernorm": "norm.mixer",
        "post_attention_layernorm": "norm.mixer_out",
        "pre_feedforward_layernorm": "norm.ffn",
        "post_feedforward_layernorm": "norm.ffn_out",
    }
    attention = [*ATTENTION, row("q_norm", "norm.q"), row("k_norm", "norm.k")]
    return llama_rows(c.task, norms=norms, attention=attention)


def _gguf(c: Gemma3) -> list:
    names = {
        "post_attention_norm": "norm.mixer_out",
        "post_ffw_norm": "norm.ffn_out",
        "attn_q_norm": "mixer.norm.q",
        "attn_k_norm": "mixer.norm.k",
    }
    outer = under("blk.{i}", "blocks.{i}", *(row(theirs, ours) for theirs, ours in names.items()))
    return [replace(r, ops=(PlusOne(),)) if "norm" in r.ours[0] else r for r in flat([decoder_rows(), outer])]


_PATTERN = ("sliding_window_pattern", "_sliding_window_pattern")
HUBS = (
    Hub(
        "gemma3_text",
        architectures={
            "Gemma3ForCausalLM": {"task": "lm"},
            "Gemma3TextModel": {"task": "none"},
        },
        base="model.",
        bare=("Gemma3TextModel",),
        weights=_weights,
        config=(
            *STACK,
            *keys(num_key_value_heads="kv_heads", max_position_embeddings="context"),
            *keys(sliding_window="window", query_pre_attn_scalar="query_scale"),
            key("hidden_activation", "act", ACTS),
            key("attention_bias", "bias", default=False),
            Lens(
                ("head_dim",),
                ("head_dim",),
                lambda c: {"head_dim": c.get("head_dim", 256)},
                lambda c: {"head_dim": c.head_dim or c.dim // c.heads},
            ),
            layer_kinds(_PATTERN, 6, first=False),
            two_ropes(("rope_theta", 1e6), ("rope_local_base_freq", 1e4), stretches=True),
            key("tie_word_embeddings", "tied", default=True),
            must("use_bidirectional_attention", False),
            must("final_logit_softcapping", None),
            must("attn_logit_softcapping", None),
            quiet("cache_implementation", why="how decoding holds its cache"),
        ),
    ),
    Hub(
        "gemma3",
        format="gguf",
        weights=_gguf,
        config=(*decoder_config("gemma3"), key("gemma3.attention.sliding_window", "window")),
    ),
)
