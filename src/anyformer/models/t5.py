"""T5 (Raffel et al., 2019; arXiv:1910.10683), v1.0 and v1.1. An encoder-decoder.

Differs from the 2017 Transformer by: RMSNorm before the branches, no biases, no positions in the stream but one learned
bias on the scores for each stack, scores that are not divided by sqrt(K). v1.1: a gated GELU instead of ReLU, and
logits that are not scaled.

```
source ── token ──┬─ RMSNorm ─ attention + bias ─(+)─┬─ RMSNorm ─ MLP ─(+)── … x depth ── RMSNorm ── memory
                  └─────────────────────────────┘   └──────────────┘                                  │
target ── token ──┬─ RMSNorm ─ attention + bias, causal ─(+)─┬─ RMSNorm ─ cross ─(+)─┬─ RMSNorm ─ MLP ─(+)── … ── logits
                  └─────────────────────────────────────┘   └────────────────┘      └──────────────┘
```
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.config import ACTS, COMMON, NO_CLASSES, Lens, Same, key, keys, must, quiet
from anyformer.hub.tables.weights import Hub, row, under
from anyformer.parts import MLP, Attention, Block, GatedMLP, Logits, RelativeBias, RMSNorm, Tokens
from anyformer.skeletons.encoder_decoder import EncoderDecoder
from anyformer.skeletons.stack import Stack


@dataclass(frozen=True)
class T5:
    dim: int = 512
    depth: int = 6
    decoder_depth: int = 6
    heads: int = 8
    head_dim: int = 64
    hidden: int = 2048
    vocab: int = 32128
    act: str = "relu"
    gated: bool = False
    buckets: int = 32
    far: int = 128
    eps: float = 1e-6
    tied: bool = True
    scaled: bool = True  # logits by dim^-1/2
    dropout: float = 0.0
    begin_id: int = 0


_11 = T5(depth=8, decoder_depth=8, heads=6, hidden=1024, act="gelu_tanh", gated=True, tied=False, scaled=False)
_base: dict[str, Any] = {"dim": 768, "depth": 12, "decoder_depth": 12, "heads": 12}
_large: dict[str, Any] = {"dim": 1024, "depth": 24, "decoder_depth": 24, "heads": 16}
SIZES = {
    "tiny": T5(dim=32, depth=2, decoder_depth=3, heads=4, head_dim=6, hidden=48, vocab=128, buckets=8, far=20),
    "mini": T5(dim=192, depth=4, decoder_depth=4, heads=4, head_dim=48, hidden=768, vocab=1024),
    "small": T5(),
    "base": replace(T5(), **_base, hidden=3072),
    "large": replace(T5(), **_large, hidden=4096),
    "3b": replace(T5(), **(_large | {"heads": 32}), head_dim=128, hidden=16384),
    "1.1-small": _11,
    "1.1-base": replace(_11, **_base, hidden=2048),
    "1.1-large": replace(_11, **_large, hidden=2816),
}
PARAMETERS = {
    "small": 60_506_624, "base": 222_903_552, "large": 737_668_096, "3b": 2_851_598_336,
    "1.1-small": 76_961_152, "1.1-base": 247_577_856, "1.1-large": 783_150_080,
}  # fmt: skip
CASES = {
    "1.1": {"act": "gelu_tanh", "gated": True, "scaled": False},
    "odd": {"dim": 30, "heads": 3, "head_dim": 8, "act": "silu", "gated": True, "vocab": 101, "buckets": 32, "far": 99},
}


def t5(c: T5) -> Recipe:
    norm = RMSNorm.of(eps=c.eps)
    mixer = Attention.of(heads=c.heads, head_dim=c.head_dim, bias=False, scale=1.0, dropout=c.dropout)
    ffn = (GatedMLP if c.gated else MLP).of(hidden=c.hidden, act=c.act, bias=False, dropout=c.dropout)
    block = Block.of(mixer=mixer, ffn=ffn, norm=norm, dropout=c.dropout)
    bias = RelativeBias.of(heads=c.heads, buckets=c.buckets, far=c.far)
    encoder = Stack.of([block] * c.depth, norm=norm, bias=bias, dropout=c.dropout)
    both = block.but(cross=mixer.but(cross=True))
    decoder = Stack.of([both] * c.decoder_depth, norm=norm, bias=bias.but(causal=True), dropout=c.dropout)
    head = Logits.of(vocab=c.vocab, tied=c.tied, scale=c.dim**-0.5 if c.scaled else 1.0)
    return EncoderDecoder.of(
        c.dim, Tokens.of(vocab=c.vocab, dropout=c.dropout), encoder, decoder, head, begin_id=c.begin_id
    )


def _side(name: str, layers: dict[str, str], gated: bool) -> list:
    """Rows of one stack; `layers` are its branches in their order, ours to their name."""
    ffn = [row("wi_0", "gate"), row("wi_1", "up")] if gated else [row("wi", "up")]
    rows = []
    for j, (ours, theirs) in enumerate(layers.items()):
        inner = [*ffn, row("wo", "down")] if ours == "ffn" else [row(n, n) for n in ("q", "k", "v", "o")]
        rows += [row(f"layer.{j}.layer_norm", f"norm.{ours}"), *under(f"layer.{j}.{theirs}", ours, *inner)]
    return [
        row(f"{name}.final_layer_norm", f"{name}.norm"),
        row(f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias", f"{name}.bias.table"),
        row(f"{name}.embed_tokens", (), tied="embed.tokens"),
        under(f"{name}.block.{{i}}", f"{name}.blocks.{{i}}", *rows),
    ]


def _weights(c: T5) -> list:
    encoder = {"mixer": "SelfAttention", "ffn": "DenseReluDense"}
    decoder = {"mixer": "SelfAttention", "cross": "EncDecAttention", "ffn": "DenseReluDense"}
    head = row("lm_head", "head.proj", tied="embed.tokens")
    return [row("shared", "embed.tokens"), _side("encoder", encoder, c.gated), _side("decoder", decoder, c.gated), head]


def _get_ffn(config: Mapping[str, Any]) -> dict[str, Any]:
    gate, _, word = str(config.get("feed_forward_proj", "relu")).rpartition("-")
    word = "gelu_new" if (gate, word) == ("gated", "gelu") else word
    act, gated = config.get("dense_act_fn", word), config.get("is_gated_act", gate == "gated")  # these two win there
    if gate not in ("", "gated") or word not in ACTS or act not in ACTS:
        raise ValueError(
            f"config keys 'feed_forward_proj' and 'dense_act_fn' are {config.get('feed_forward_proj')!r} and {act!r}; "
            f"known are ACT and gated-ACT with {', '.join(ACTS)}"
        )
    return {"act": ACTS[act], "gated": gated}


def _put_ffn(c: T5) -> dict[str, Any]:
    theirs = next(t for t, ours in ACTS.items() if ours == c.act)
    name = "gelu" if c.gated and c.act == "gelu_tanh" else theirs
    return {"feed_forward_proj": f"gated-{name}" if c.gated else name, "dense_act_fn": theirs, "is_gated_act": c.gated}


def _get_head(config: Mapping[str, Any]) -> dict[str, Any]:
    tied = config.get("tie_word_embeddings", True)  # before transformers 5 False meant v1.1, which does not scale
    return {"tied": tied, "scaled": config.get("scale_decoder_outputs", tied)}


HUBS = (
    Hub(
        "t5",
        architectures={"T5ForConditionalGeneration": {}},
        ignore={"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias": "cross-attention has no bias"},
        weights=_weights,
        config=(
            *keys(d_model="dim", num_layers="depth", num_heads="heads", d_kv="head_dim", d_ff="hidden"),
            *keys(vocab_size="vocab", relative_attention_num_buckets="buckets", layer_norm_epsilon="eps"),
            key("dropout_rate", "dropout", default=0.1), key("decoder_start_token_id", "begin_id", default=0),
            key("num_decoder_layers", "decoder_depth", default=Same("depth")),
            key("relative_attention_max_distance", "far", default=128),
            Lens(("feed_forward_proj", "dense_act_fn", "is_gated_act"), ("act", "gated"), _get_ffn, _put_ffn),
            Lens(("tie_word_embeddings", "scale_decoder_outputs"), ("tied", "scaled"), _get_head,
                 lambda c: {"tie_word_embeddings": c.tied, "scale_decoder_outputs": c.scaled}),
            must("is_encoder_decoder", True), must("is_decoder", False),
            quiet("classifier_dropout", "n_positions", "output_past", why="for what this file does not have"),
            NO_CLASSES, *COMMON,
        ),
    ),
)  # fmt: skip
