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

from dataclasses import dataclass, replace
from typing import Any

from anyformer.core.part import check_option
from anyformer.core.recipe import Recipe
from anyformer.hub.tables.config import Same, key, quiet
from anyformer.hub.tables.t5 import CONFIG, NO_BIAS, ffn_config, head_config, mlp_rows, stack_rows
from anyformer.hub.tables.weights import Hub, row
from anyformer.models._first import t5_sizes
from anyformer.parts import MLP, Attention, Block, GatedMLP, Logits, RelativeBias, RMSNorm, Tokens
from anyformer.skeletons.encoder import Encoder
from anyformer.skeletons.encoder_decoder import EncoderDecoder
from anyformer.skeletons.stack import Stack


@dataclass(frozen=True)
class T5Body:
    """A T5 that writes."""

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


@dataclass(frozen=True)
class T5(T5Body):
    task: str = "seq2seq"  # or encode: the encoder only


def t5(c: T5) -> Recipe:
    check_option("t5", "task", c.task, ("seq2seq", "encode"))
    norm = RMSNorm.of(eps=c.eps)
    mixer = Attention.of(heads=c.heads, head_dim=c.head_dim, bias=False, scale=1.0, dropout=c.dropout)
    ffn = (GatedMLP if c.gated else MLP).of(hidden=c.hidden, act=c.act, bias=False, dropout=c.dropout)
    block = Block.of(mixer=mixer, ffn=ffn, norm=norm, dropout=c.dropout)
    bias = RelativeBias.of(heads=c.heads, buckets=c.buckets, far=c.far)
    embed = Tokens.of(vocab=c.vocab, dropout=c.dropout)
    if c.task == "encode":
        return Encoder.of(c.dim, embed, [block] * c.depth, norm=norm, bias=bias, dropout=c.dropout)
    encoder = Stack.of([block] * c.depth, norm=norm, bias=bias, dropout=c.dropout)
    both = block.but(cross=mixer.but(cross=True))
    decoder = Stack.of([both] * c.decoder_depth, norm=norm, bias=bias.but(causal=True), dropout=c.dropout)
    head = Logits.of(vocab=c.vocab, tied=c.tied, scale=c.dim**-0.5 if c.scaled else 1.0)
    return EncoderDecoder.of(c.dim, embed, encoder, decoder, head, begin_id=c.begin_id)


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
    "tiny": 44_576,
    "mini": 4_329_856,
    "small": 60_506_624,
    "base": 222_903_552,
    "large": 737_668_096,
    "3b": 2_851_598_336,
    "1.1-small": 76_961_152,
    "1.1-base": 247_577_856,
    "1.1-large": 783_150_080,
}
CASES = {
    "encoder": {"task": "encode"},
    "1.1": {"act": "gelu_tanh", "gated": True, "scaled": False},
    "odd": {"dim": 30, "heads": 3, "head_dim": 8, "act": "silu", "gated": True, "vocab": 101, "buckets": 32, "far": 99},
}


def first_weights(c: T5) -> dict[str, float]:
    """The sizes of T5. An untied head counts as a matrix; `transformers` draws it with the std of the tokens, which
    makes logits sqrt(D) large."""
    return t5_sizes(c.dim, c.heads, c.head_dim, c.hidden) | {"head.proj": c.dim**-0.5}


def _weights(c: T5) -> list:
    table, ffn = row("shared", "embed.tokens"), mlp_rows(c.gated)
    if c.task == "encode":
        return [table, stack_rows("encoder", "", "DenseReluDense", ffn)]
    return [
        table,
        stack_rows("encoder", "encoder", "DenseReluDense", ffn),
        stack_rows("decoder", "decoder", "DenseReluDense", ffn),
        row("lm_head", "head.proj", tied="embed.tokens"),
    ]


_BOTH = (
    *CONFIG,
    key("num_decoder_layers", "decoder_depth", default=Same("depth")),
    quiet("is_encoder_decoder", why="implied by the class"),
    quiet("classifier_dropout", why="for parts that the file does not have"),
)
HUBS = (
    Hub(
        "t5",
        architectures={"T5ForConditionalGeneration": {"task": "seq2seq"}, "T5EncoderModel": {"task": "encode"}},
        ignore=NO_BIAS,
        weights=_weights,
        config=(*_BOTH, ffn_config("relu"), head_config()),
    ),
    Hub(
        "mt5",
        architectures={
            "MT5ForConditionalGeneration": {"task": "seq2seq", "scaled": False},
            "MT5EncoderModel": {"task": "encode", "scaled": False},
        },
        ignore=NO_BIAS,
        weights=_weights,
        config=(*_BOTH, ffn_config("gated-gelu"), key("tie_word_embeddings", "tied", default=True)),
    ),
)
