"""Whisper (Radford et al., 2022; arXiv:2212.04356). An encoder of sound, and a decoder that writes its text.

Differs from BART by: log-mel features instead of source tokens, with sines for places; norms before the branches and
at the end of each side; no bias of the keys.

```
log-mels ── conv, GELU ── conv / 2, GELU ── + place ──┬─ LayerNorm ─ attention ─(+)─ … MLP ─(+)─ LayerNorm ─ memory
                                                      └────────────────────────┘                               │
target ── token + place ──┬─ LayerNorm ─ causal attention ─(+)─┬─ LayerNorm ─ cross ─(+)─ … MLP ─(+)─ LayerNorm ─ logits
                          └───────────────────────────────┘   └────────────────────┘
```
The target begins with tokens for the language, the task, and the absence of times; times are tokens, too.
"""

from dataclasses import dataclass

from anyformer.core.recipe import Recipe
from anyformer.hub.tables import ct2
from anyformer.hub.tables.bart import layers
from anyformer.hub.tables.config import ACTS, Lens, alike, key, keys, must, quiet
from anyformer.hub.tables.weights import Hub, Split, row, under
from anyformer.parts import MLP, Attention, Block, LayerNorm, Learned, Logits, Mels, Tokens
from anyformer.skeletons.encoder_decoder import EncoderDecoder
from anyformer.skeletons.stack import Stack


@dataclass(frozen=True)
class Whisper:
    dim: int = 384
    depth: int = 4
    decoder_depth: int = 4
    heads: int = 6
    hidden: int = 1536
    vocab: int = 51865
    mels: int = 80  # features of a frame
    frames: int = 1500  # positions of the encoder: two frames of 10 ms each
    context: int = 448  # tokens of a target
    act: str = "gelu"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    begin_id: int = 50258


def whisper(c: Whisper) -> Recipe:
    norm = LayerNorm.of()
    mixer = Attention.of(heads=c.heads, bias="qv", dropout=c.attention_dropout)
    ffn = MLP.of(hidden=c.hidden, act=c.act, dropout=c.hidden_dropout)
    block = Block.of(mixer=mixer, ffn=ffn, norm=norm, dropout=c.dropout)
    both = block.but(cross=mixer.but(cross=True))
    source = Mels.of(mels=c.mels, context=c.frames, dropout=c.dropout)
    embed = Tokens.of(vocab=c.vocab, positions=Learned.of(context=c.context), dropout=c.dropout)
    encoder, decoder = Stack.of([block] * c.depth, norm=norm), Stack.of([both] * c.decoder_depth, norm=norm)
    head = Logits.of(vocab=c.vocab, tied=True)
    return EncoderDecoder.of(
        c.dim, embed, encoder, decoder, head, begin_id=c.begin_id, context=c.context, source=source
    )


SIZES = {
    "tiny": Whisper(
        dim=32, depth=2, decoder_depth=3, heads=4, hidden=48, vocab=128, mels=7, frames=9, context=64, begin_id=3
    ),
    "mini": Whisper(
        dim=192, depth=4, decoder_depth=4, heads=4, hidden=768, vocab=1024, frames=500, context=256, begin_id=1
    ),
    "tiny.en": Whisper(vocab=51864, begin_id=50257),
    "whisper-tiny": Whisper(),
    "base.en": Whisper(dim=512, depth=6, decoder_depth=6, heads=8, hidden=2048, vocab=51864, begin_id=50257),
    "base": Whisper(dim=512, depth=6, decoder_depth=6, heads=8, hidden=2048),
    "small": Whisper(dim=768, depth=12, decoder_depth=12, heads=12, hidden=3072),
    "medium": Whisper(dim=1024, depth=24, decoder_depth=24, heads=16, hidden=4096),
    "large-v2": Whisper(dim=1280, depth=32, decoder_depth=32, heads=20, hidden=5120),
    "large-v3": Whisper(dim=1280, depth=32, decoder_depth=32, heads=20, hidden=5120, vocab=51866, mels=128),
    "large-v3-turbo": Whisper(dim=1280, depth=32, decoder_depth=4, heads=20, hidden=5120, vocab=51866, mels=128),
}
PARAMETERS = {  # without the encoder's places, constants that files store: `frames` x `dim` more
    "tiny": 60_208,
    "mini": 4_554_624,
    "tiny.en": 37_184_256,
    "whisper-tiny": 37_184_640,
    "base.en": 71_825_408,
    "base": 71_825_920,
    "small": 240_582_912,
    "medium": 762_321_920,
    "large-v2": 1_541_384_960,
    "large-v3": 1_541_570_560,
    "large-v3-turbo": 806_958_080,
}
CASES = {
    "odd": {"dim": 30, "heads": 3, "hidden": 50, "vocab": 101, "mels": 1, "frames": 4, "context": 77, "begin_id": 100},
    "shallow": {"depth": 1, "decoder_depth": 1, "heads": 1, "act": "relu"},
}


def _weights(c: Whisper) -> list:
    side = layers()
    return [
        *under(
            "model.encoder",
            "",
            row("conv1", "source.first"),
            row("conv2", "source.second"),
            row("embed_positions.weight", "source.places"),
            under("layers.{i}", "encoder.blocks.{i}", *side["encoder"]),
            row("layer_norm", "encoder.norm"),
        ),
        *under(
            "model.decoder",
            "",
            row("embed_tokens", "embed.tokens"),
            row("embed_positions", "embed.positions"),
            under("layers.{i}", "decoder.blocks.{i}", *side["decoder"]),
            row("layer_norm", "decoder.norm"),
        ),
        row("proj_out", "head.proj", tied="embed.tokens"),
    ]


def _ct2_weights(c: Whisper) -> list:
    side = ct2.layers(c.dim, Split())
    return [
        row("encoder.conv1", "source.first"),
        row("encoder.conv2", "source.second"),
        row("encoder.position_encodings.encodings", "source.places"),
        row("decoder.embeddings", "embed.tokens"),
        row("decoder.position_encodings.encodings", "embed.positions.weight"),
        row("decoder.projection", "head.proj", tied="embed.tokens"),
        under("encoder.layer_{i}", "encoder.blocks.{i}", *side["encoder"]),
        row("encoder.layer_norm", "encoder.norm"),
        under("decoder.layer_{i}", "decoder.blocks.{i}", *side["decoder"]),
        row("decoder.layer_norm", "decoder.norm"),
    ]


_HIDDEN = ("time_prob", "time_length", "time_min_masks", "feature_prob", "feature_length", "feature_min_masks")
# files without it have an id of the full vocabulary; in published ones the end of a text is in front of its beginning
PAD = Lens(("pad_token_id",), (), lambda config: {}, lambda c: {"pad_token_id": max(c.begin_id - 1, 0)}, "for training")
HUBS = (
    Hub(
        "whisper",
        architectures={"WhisperForConditionalGeneration": {}},
        weights=_weights,
        processor="WhisperFeatureExtractor",
        config=(
            *keys(d_model="dim", vocab_size="vocab", num_mel_bins="mels", decoder_layers="decoder_depth"),
            *keys(max_source_positions="frames", max_target_positions="context"),
            key("encoder_layers", "depth", also=("num_hidden_layers",)),
            alike("heads", "encoder_attention_heads", "decoder_attention_heads"),
            alike("hidden", "encoder_ffn_dim", "decoder_ffn_dim"),
            key("activation_function", "act", ACTS, default="gelu"),
            key("decoder_start_token_id", "begin_id", default=50257),
            key("dropout", "dropout", default=0.0),
            key("attention_dropout", "attention_dropout", default=0.0),
            key("activation_dropout", "hidden_dropout", default=0.0),
            quiet(
                "encoder_layerdrop", "decoder_layerdrop", why="layers that its training left out; `fit` leaves out none"
            ),
            must("scale_embedding", False),
            must("tie_word_embeddings", True),
            must("is_encoder_decoder", True),
            PAD,
            quiet(
                "apply_spec_augment",
                *(f"mask_{name}" for name in _HIDDEN),
                why="parts of the input that its training hid; `fit` does not hide any",
            ),
            quiet("use_weighted_layer_sum", "classifier_proj_size", why="for classes of sound; this file has none"),
            quiet("forced_decoder_ids", "median_filter_width", why="for `transcribe`, whose options these are"),
        ),
    ),
    Hub(
        "WhisperSpec",
        format="ct2",
        architectures={"WhisperForConditionalGeneration": {}},
        weights=_ct2_weights,
        tails={"gamma": "weight", "beta": "bias"},
        processor="WhisperFeatureExtractor",
        config=(
            ct2.size("encoder.conv1.bias", 0, "dim"),
            ct2.size("encoder.conv1.weight", 1, "mels"),
            ct2.size("encoder.position_encodings.encodings", 0, "frames"),
            ct2.size("decoder.position_encodings.encodings", 0, "context"),
            ct2.size("decoder.embeddings.weight", 0, "vocab"),
            ct2.size("encoder.layer_0.ffn.linear_0.bias", 0, "hidden"),
            *keys(**{"encoder.layers": "depth", "decoder.layers": "decoder_depth"}),
            alike("heads", "encoder.num_heads", "decoder.num_heads"),
            key("token <|startoftranscript|>", "begin_id"),
            *ct2.SETTINGS,
            quiet("tokens", why="the vocabulary; the model can have more rows"),
            quiet("suppress_ids", "suppress_ids_begin", "alignment_heads", why="for `transcribe`"),
            quiet("lang_ids", why="the tokenizer has the tokens of languages"),
        ),
    ),
)
