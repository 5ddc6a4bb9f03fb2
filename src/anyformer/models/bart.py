"""BART (Lewis et al., 2019; arXiv:1910.13461). An encoder-decoder that learns to repair damaged text.

Differs from the 2017 Transformer by: learned positions, separate for each side; a norm over the entry of each side;
GELU; unscaled tokens.

```
source ── token + place ── LayerNorm ──┬─ attention ─(+)─ LayerNorm ─┬─ MLP, GELU ─(+)─ LayerNorm ─ … ─ memory
                                       └────────────┘                └────────────┘                       │
target ── token + place ── LayerNorm ──┬─ attention, causal ─(+)─ LayerNorm ─┬─ cross ─(+)─ LayerNorm ─┬─ MLP … ─ logits
                                       └────────────────────┘                └─────────┘               └─────
```
"""

from dataclasses import dataclass

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.bart import seq2seq_config, seq2seq_rows
from anyformer.hub.tables.config import key, keys, must
from anyformer.hub.tables.weights import Hub, row
from anyformer.parts import MLP, Attention, Block, Entry, LayerNorm, Learned, Logits, Tokens
from anyformer.skeletons.encoder_decoder import EncoderDecoder
from anyformer.skeletons.stack import Stack


@dataclass(frozen=True)
class Bart:
    dim: int = 1024
    depth: int = 12
    decoder_depth: int = 12
    heads: int = 16
    hidden: int = 4096
    vocab: int = 50265
    context: int = 1024
    act: str = "gelu"
    scaled: bool = False  # tokens by sqrt(dim)
    offset: bool = True  # a stored vector is added to the logits; files of the bare model have none
    dropout: float = 0.0
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    begin_id: int = 2


def bart(c: Bart) -> Recipe:
    norm = LayerNorm.of()
    mixer = Attention.of(heads=c.heads, dropout=c.attention_dropout)
    ffn = MLP.of(hidden=c.hidden, act=c.act, dropout=c.hidden_dropout)
    block = Block.of(mixer=mixer, ffn=ffn, norm=norm, wiring="post", dropout=c.dropout)
    both = block.but(cross=mixer.but(cross=True))
    entry = Entry.of(positions=Learned.of(context=c.context, offset=2), norm=norm, dropout=c.dropout)
    encoder, decoder = Stack.of([block] * c.depth, entry=entry), Stack.of([both] * c.decoder_depth, entry=entry)
    embed = Tokens.of(vocab=c.vocab, scale=c.dim**0.5 if c.scaled else 1.0)
    head = Logits.of(vocab=c.vocab, tied=True, offset=c.offset)
    return EncoderDecoder.of(c.dim, embed, encoder, decoder, head, begin_id=c.begin_id, context=c.context)


SIZES = {
    "tiny": Bart(dim=32, depth=2, decoder_depth=3, heads=4, hidden=48, vocab=128, context=64),
    "mini": Bart(dim=192, depth=4, decoder_depth=4, heads=4, hidden=768, vocab=1024, context=256),
    "base": Bart(dim=768, depth=6, decoder_depth=6, heads=12, hidden=3072),
    "large": Bart(),
}
PARAMETERS = {"tiny": 58_832, "mini": 4_449_792, "base": 139_420_416, "large": 406_291_456}
TASK = "denoise"  # the default task of `anyformer train`
CASES = {
    "odd": {"dim": 33, "heads": 3, "hidden": 50, "vocab": 101, "context": 77, "begin_id": 100},
    "scaled": {"depth": 1, "decoder_depth": 1, "heads": 1, "act": "relu", "scaled": True},
    "bare": {"offset": False},
}


HUBS = (
    Hub(
        "bart",
        architectures={"BartForConditionalGeneration": {"offset": True}, "BartModel": {"offset": False}},
        base="model.",
        bare=("BartModel",),
        ignore={f"model.{side}.version": "a mark of fairseq" for side in ("encoder", "decoder")},
        weights=lambda c: seq2seq_rows(row("embed_positions", "positions"), row("layernorm_embedding", "norm")),
        config=(
            *seq2seq_config(),
            *keys(vocab_size="vocab"),
            key("decoder_start_token_id", "begin_id", default=2),
            must("static_position_embeddings", False),
            must("normalize_embedding", True),
            must("extra_pos_embeddings", 2),
        ),
    ),
)
