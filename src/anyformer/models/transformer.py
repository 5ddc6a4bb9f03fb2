"""The Transformer (Vaswani et al., 2017; arXiv:1706.03762). An encoder-decoder for translation, the first of all.

Differs from T5 by: sines for positions, LayerNorm after each sum (post-norm, so none after the last block), biases
everywhere, tokens scaled by sqrt(D), unscaled logits of the one table for source and target.

```
source ── token x sqrt(D) + place ──┬─ attention ─(+)─ LayerNorm ─┬─ MLP ─(+)─ LayerNorm ── … x depth ── memory
                                    └────────────┘                └───────┘                                │
target ── token x sqrt(D) + place ──┬─ attention, causal ─(+)─ LayerNorm ─┬─ cross ─(+)─ LayerNorm ─┬─ MLP … ─ logits
                                    └────────────────────┘                └─────────┘               └─────
```

Files are Marian's (Helsinki-NLP/opus-mt-*; `MarianMTModel`). In their order, the sines come first and the
cosines second, as in the paper's code.

The counts: the paper's table has 65 and 213 million, without a derivation. Those here follow its text, with its joint
vocabulary of 37,000: 63.1 and 214.2 million. `opus-en-de` is the published file, 74,410,496 with the two untrained
tables of 512 x 512 sines that `transformers` counts.
"""

from dataclasses import dataclass, replace

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.bart import seq2seq_config, seq2seq_rows
from anyformer.hub.tables.config import alike, key, must, quiet
from anyformer.hub.tables.weights import Hub
from anyformer.parts import MLP, Attention, Block, LayerNorm, Logits, Sinusoidal, Tokens
from anyformer.skeletons.encoder_decoder import EncoderDecoder
from anyformer.skeletons.stack import Stack


@dataclass(frozen=True)
class Transformer:
    dim: int = 512
    depth: int = 6
    decoder_depth: int = 6
    heads: int = 8
    hidden: int = 2048
    vocab: int = 37000
    context: int = 1024
    act: str = "relu"
    scaled: bool = True  # tokens by sqrt(dim)
    dropout: float = 0.0
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    begin_id: int = 0


def transformer(c: Transformer) -> Recipe:
    norm = LayerNorm.of()
    mixer = Attention.of(heads=c.heads, dropout=c.attention_dropout)
    ffn = MLP.of(hidden=c.hidden, act=c.act, dropout=c.hidden_dropout)
    block = Block.of(mixer=mixer, ffn=ffn, norm=norm, wiring="post", dropout=c.dropout)
    both = block.but(cross=mixer.but(cross=True))
    embed = Tokens.of(
        vocab=c.vocab, positions=Sinusoidal.of(), scale=c.dim**0.5 if c.scaled else 1.0, dropout=c.dropout
    )
    head = Logits.of(vocab=c.vocab, tied=True, offset=True)
    encoder, decoder = Stack.of([block] * c.depth), Stack.of([both] * c.decoder_depth)
    return EncoderDecoder.of(c.dim, embed, encoder, decoder, head, begin_id=c.begin_id, context=c.context)


SIZES = {
    "tiny": Transformer(dim=32, depth=2, decoder_depth=3, heads=4, hidden=48, vocab=128, context=64, begin_id=5),
    "mini": Transformer(dim=192, depth=4, decoder_depth=4, heads=4, hidden=768, vocab=1024, context=256),
    "base": Transformer(),
    "big": Transformer(dim=1024, heads=16, hidden=4096),
    "opus-en-de": Transformer(vocab=58101, context=512, act="silu", begin_id=58100),
}
PARAMETERS = {"tiny": 54_480, "mini": 4_349_952, "base": 63_082_496, "big": 214_245_376, "opus-en-de": 73_886_208}
TASK = "seq2seq"  # the default task of `anyformer train`
CASES = {
    "odd": {"dim": 33, "heads": 3, "hidden": 50, "vocab": 101, "context": 77, "begin_id": 100},
    "small": {"depth": 1, "decoder_depth": 1, "heads": 1, "act": "silu", "scaled": False},
}


_begin = key("decoder_start_token_id", "begin_id", default=58100)


def _put_begin(c: Transformer) -> dict[str, int]:
    return {"decoder_start_token_id": c.begin_id, "pad_token_id": c.begin_id}  # one token for both


HUBS = (
    Hub(
        "marian",
        types=("bart",),  # before 2020-11
        architectures={"MarianMTModel": {}},
        ignore={f"model.{side}.embed_positions": "the sines" for side in ("encoder", "decoder")},
        weights=lambda c: seq2seq_rows(),
        config=(
            *seq2seq_config(),
            replace(_begin, put=_put_begin),
            alike("vocab", "vocab_size", "decoder_vocab_size", absent=True),
            must("share_encoder_decoder_embeddings", True),
            must("normalize_embedding", False),
            quiet("static_position_embeddings", "extra_pos_embeddings", why="positions are sines, without a table"),
        ),
    ),
)
