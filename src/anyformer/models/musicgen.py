"""MusicGen (Copet et al., 2023; arXiv:2306.05284). A decoder writes the codes of music after a text.

Differs from T5, whose encoder it reads, by: a step has a code of each book of an EnCodec, their vectors added, and a
head for each; fixed places, cosines first; LayerNorm, no biases; book q is said q steps late, so that it can follow
the books before it.

```
text ── T5 encoder ── (linear) ── memory ────────────────────────────────┐
codes ── sum of Q tables ── + place ──┬─ LayerNorm ─ causal attention ─(+)─┬─ LayerNorm ─ cross ─(+)─ … MLP ─(+)─┐
                                      └────────────────────────────────────┘└────────────────────┘             │
             next codes ── a head for each book ── LayerNorm ── … x depth ─────────────────────────────────────┘
```
Alone (`text=None`), the decoder is about nothing. Codes become sound by the `codec`, which the network never asks.
"""

from dataclasses import asdict, dataclass, field

from anyformer.core.part import check_option
from anyformer.core.recipe import Recipe
from anyformer.hub.tables import encodec as files
from anyformer.hub.tables.config import ACTS, Lens, key, must, quiet
from anyformer.hub.tables.nested import beside, within
from anyformer.hub.tables.t5 import CONFIG, NO_BIAS, ffn_config, mlp_rows, stack_rows
from anyformer.hub.tables.weights import Hub, row, under
from anyformer.media.patterns import PATTERNS, Delay
from anyformer.models._first import t5_sizes
from anyformer.models.encodec import Encodec, encodec
from anyformer.models.t5 import T5, t5
from anyformer.parts import MLP, Attention, Block, LayerNorm
from anyformer.parts.sound.stacked import CosinePlaces, StackedCodes, StackedLogits
from anyformer.skeletons.composer import Composer
from anyformer.skeletons.stack import Stack


@dataclass(frozen=True)
class Text:
    dim: int = 768
    depth: int = 12
    heads: int = 12
    head_dim: int = 64
    hidden: int = 3072
    vocab: int = 32128
    act: str = "relu"
    gated: bool = False
    buckets: int = 32
    far: int = 128
    eps: float = 1e-6
    dropout: float = 0.0


@dataclass(frozen=True)
class Writer:
    dim: int = 1024
    depth: int = 24
    heads: int = 16
    hidden: int = 4096
    vocab: int = 2048  # codes of a book
    books: int = 4
    channels: int = 1  # 2: the books of left and right alternate
    context: int = 2048
    act: str = "gelu"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0


@dataclass(frozen=True)
class Musicgen:
    text: Text | None = field(default_factory=Text)
    codec: Encodec | None = field(default_factory=Encodec)
    writer: Writer = field(default_factory=Writer)
    pattern: str = "delay"  # or parallel, flat: how books are laid out


def musicgen(c: Musicgen) -> Recipe:
    w, norm = c.writer, LayerNorm.of()
    check_option("musicgen", "pattern", c.pattern, tuple(PATTERNS))
    check_option("musicgen", "writer.channels", w.channels, (1, 2))
    mixer = Attention.of(heads=w.heads, bias=False, dropout=w.attention_dropout)
    ffn = MLP.of(hidden=w.hidden, act=w.act, bias=False, dropout=w.hidden_dropout)
    block = Block.of(mixer=mixer, cross=mixer.but(cross=True), ffn=ffn, norm=norm, dropout=w.dropout)
    embed = StackedCodes.of(vocab=w.vocab, books=w.books, positions=CosinePlaces.of(), dropout=w.dropout)
    return Composer.of(
        w.dim,
        embed,
        Stack.of([block] * w.depth, norm=norm),
        StackedLogits.of(vocab=w.vocab, books=w.books),
        pattern=Delay(w.channels) if c.pattern == "delay" else PATTERNS[c.pattern],
        encoder=None if c.text is None else t5(T5(**asdict(c.text), task="encode")),
        codec=None if c.codec is None else encodec(c.codec),
        stereo=w.channels == 2,
        context=w.context,
    )


_codec = Encodec(
    dim=12, rate=120, bandwidths=(0.25,), codes=16, filters=4, ratios=(3, 2), kernel=5, last_kernel=3, lstm=1
)
_text = Text(dim=24, depth=2, heads=3, head_dim=6, hidden=40, vocab=128, buckets=8, far=20)
_writer = Writer(dim=32, depth=2, heads=4, hidden=48, vocab=16, books=3, context=64)
_32khz = Encodec(
    rate=32000, bandwidths=(2.2,), codes=2048, filters=64, ratios=(8, 5, 4, 4), causal=False, shortcut=False
)
_medium = Writer(dim=1536, depth=48, heads=24, hidden=6144)
_large = Writer(dim=2048, depth=48, heads=32, hidden=8192)
SIZES = {
    "tiny": Musicgen(text=_text, codec=_codec, writer=_writer),
    "mini": Musicgen(
        text=Text(dim=128, depth=2, heads=4, head_dim=32, hidden=512, vocab=1024),
        codec=Encodec(dim=64, rate=8000, bandwidths=(3.2,), codes=256, filters=16, ratios=(5, 4, 4), lstm=1),
        writer=Writer(dim=192, depth=4, heads=4, hidden=768, vocab=256),
    ),
    "small": Musicgen(codec=_32khz),
    "medium": Musicgen(codec=_32khz, writer=_medium),
    "large": Musicgen(codec=_32khz, writer=_large),
    "stereo-small": Musicgen(codec=_32khz, writer=Writer(books=8, channels=2)),
}
PARAMETERS = {
    "tiny": 45_918,
    "mini": 3_926_578,
    "small": 586_884_674,
    "medium": 2_005_251_138,
    "large": 3_423_470_146,
    "stereo-small": 603_665_986,
}
CASES = {
    "stereo": {"writer.books": 4, "writer.channels": 2, "codec.bandwidths": (0.2,), "text.dim": 32, "text.gated": True},
    "alone": {"text": None, "codec": None, "writer.dim": 30, "writer.heads": 3, "writer.books": 1},
    "odd": {
        "writer.dim": 33,
        "writer.heads": 1,
        "writer.act": "relu",
        "writer.vocab": 8,
        "codec.codes": 8,
        "codec.chunk": 0.3,
        "codec.overlap": 0.1,
        "codec.causal": False,
        "codec.pad": "constant",
        "codec.norm": "group",
    },
}


def first_weights(c: Musicgen) -> dict[str, float]:
    """The text encoder has the sizes of T5, the decoder 0.02 everywhere."""
    plain = {f"decoder.blocks.*.{path}": 0.02 for path in ("mixer.o", "cross.o", "ffn.down")}
    if c.text is None:
        return plain
    sizes = t5_sizes(c.text.dim, c.text.heads, c.text.head_dim, c.text.hidden)
    mine = {path.removeprefix("**."): size for path, size in sizes.items() if ".cross." not in path}
    return plain | {f"encoder.{path}": size for path, size in mine.items()}


def _writer_rows(c: Musicgen) -> list:
    attention = [row("q_proj", "q"), row("k_proj", "k"), row("v_proj", "v"), row("out_proj", "o")]
    layer = [
        *under("self_attn", "mixer", *attention),
        *under("encoder_attn", "cross", *attention),
        row("fc1", "ffn.up"),
        row("fc2", "ffn.down"),
        row("self_attn_layer_norm", "norm.mixer"),
        row("encoder_attn_layer_norm", "norm.cross"),
        row("final_layer_norm", "norm.ffn"),
    ]
    return [
        row("model.decoder.embed_tokens.{i}", "embed.tables.{i}"),
        *under("model.decoder.layers.{i}", "decoder.blocks.{i}", *layer),
        row("model.decoder.layer_norm", "decoder.norm"),
        row("lm_heads.{i}", "head.books.{i}"),
    ]


def _weights(c: Musicgen) -> list:
    assert c.text is not None and c.codec is not None
    return [
        *under(
            "text_encoder",
            "encoder",
            row("shared", "embed.tokens"),
            stack_rows("encoder", "", "DenseReluDense", mlp_rows(c.text.gated)),
        ),
        *under("audio_encoder", "codec", *files.codec_rows(len(c.codec.ratios), c.codec.residual)),
        *under("decoder", "", *_writer_rows(c)),
        row("enc_to_dec_proj", "project"),
    ]


_TEXT = (
    *(entry for entry in CONFIG if entry.fields != ("begin_id",)),
    ffn_config("relu"),
    quiet("num_decoder_layers", "decoder_start_token_id", why="of a decoder, which the file lacks"),
    quiet("tie_word_embeddings", "scale_decoder_outputs", "classifier_dropout", why="of a head, which the file lacks"),
    quiet("is_encoder_decoder", why="the file has its encoder alone"),
)
_WRITER = (
    key("hidden_size", "dim", default=1024),
    key("num_hidden_layers", "depth", default=24),
    key("num_attention_heads", "heads", default=16),
    key("ffn_dim", "hidden", default=4096),
    key("vocab_size", "vocab", default=2048),
    key("num_codebooks", "books", default=4),
    key("audio_channels", "channels", default=1),
    key("max_position_embeddings", "context", default=2048),
    key("activation_function", "act", ACTS, default="gelu"),
    key("dropout", "dropout", default=0.1),
    key("attention_dropout", "attention_dropout", default=0.0),
    key("activation_dropout", "hidden_dropout", default=0.0),
    must("scale_embedding", False),
    must("cross_attention_hidden_size", None),
    must("tie_word_embeddings", False),
    quiet("layerdrop", why="layers that its training left out; `fit` leaves out none"),
    quiet("add_cross_attention", "is_decoder", why="implied by the class"),
    Lens(
        ("pad_token_id", "bos_token_id"),
        (),
        lambda config: {},
        lambda w: {"pad_token_id": w.vocab, "bos_token_id": w.vocab},
        "the id behind the codes",
    ),
)
HUBS = (
    Hub(
        "musicgen",
        architectures={"MusicgenForConditionalGeneration": {"pattern": "delay"}},
        processor="EncodecFeatureExtractor",
        ignore={f"text_encoder.{name}": why for name, why in NO_BIAS.items()},
        weights=_weights,
        config=(
            within("text_encoder", "text", Text, *_TEXT),
            within("audio_encoder", "codec", Encodec, *files.CONFIG),
            within("decoder", "writer", Writer, *_WRITER),
            quiet("is_encoder_decoder", why="implied by the class"),
        ),
    ),
    Hub(
        "musicgen_decoder",
        architectures={"MusicgenForCausalLM": {"text": None, "codec": None, "pattern": "delay"}},
        outputs={"hidden_states": "decoder"},
        weights=_writer_rows,
        config=(beside("writer", Writer, *_WRITER),),
    ),
)
