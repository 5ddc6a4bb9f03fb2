"""EnCodec (Défossez et al., 2022; arXiv:2210.13438). A codec: sound as a few rows of codes, and the codes as sound.

Differs from the discrete VAE of DALL-E by: sound instead of pictures; an LSTM on both sides; a frame has several codes,
one of what the codes before left over, so that fewer of them are fewer bits.

```
samples ── conv ── (residual ── ELU ── conv / r) x ratios ── LSTM ── conv ── vectors ─┬─ nearest in book 1: code 1
                                                       what its vector leaves over ──┴─ nearest in book 2: code 2 …
samples ── conv ── (residual ── transposed conv x r ── ELU) x ratios ── LSTM ── conv ── sum of the codes' vectors
```
The 24 kHz model is causal, with weight norms; that of 48 kHz is stereo, in pieces of a second, each as loud as 1.
"""

from dataclasses import dataclass

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.encodec import CONFIG, book_count, codec_rows
from anyformer.hub.tables.weights import Hub
from anyformer.parts.sound.books import Books
from anyformer.parts.sound.codec import Convolutions, SoundDecoder
from anyformer.parts.sound.pieces import SoundEncoder
from anyformer.skeletons.codec import Codec


@dataclass(frozen=True)
class Encodec:
    dim: int = 128
    rate: int = 24000  # Hz
    channels: int = 1
    bandwidths: tuple[float, ...] = (1.5, 3.0, 6.0, 12.0, 24.0)  # thousand bits a second
    codes: int = 1024  # of each book
    normalise: bool = False  # pieces to one loudness, which is kept beside the codes
    chunk: float | None = None  # seconds of a piece; None: a sound is one
    overlap: float | None = None  # share of a piece that the next one repeats
    filters: int = 32
    ratios: tuple[int, ...] = (8, 5, 4, 2)  # samples of a frame, multiplied
    residual: int = 1
    kernel: int = 7
    last_kernel: int = 7
    residual_kernel: int = 3
    growth: int = 2  # of the dilation in residual blocks
    causal: bool = True
    pad: str = "reflect"
    norm: str = "weight"  # or group, over a piece
    compress: int = 2
    lstm: int = 2
    trim: float = 1.0
    shortcut: bool = True


def encodec(c: Encodec) -> Recipe:
    if (c.chunk is None) != (c.overlap is None):
        raise ValueError(f"encodec: chunk and overlap come together; got chunk={c.chunk}, overlap={c.overlap}")
    piece = None if c.chunk is None else int(c.chunk * c.rate)
    step = None if piece is None or c.overlap is None else max(1, int((1.0 - c.overlap) * piece))
    how = Convolutions(
        filters=c.filters,
        ratios=c.ratios,
        residual=c.residual,
        kernel=c.kernel,
        last_kernel=c.last_kernel,
        residual_kernel=c.residual_kernel,
        growth=c.growth,
        causal=c.causal,
        pad=c.pad,
        norm=c.norm,
        compress=c.compress,
        lstm=c.lstm,
        shortcut=c.shortcut,
    )
    embed = SoundEncoder.of(how=how, channels=c.channels, piece=piece, step=step, normalise=c.normalise)
    books = Books.of(vocab=c.codes, books=book_count(c.rate, c.ratios, c.codes, c.bandwidths))
    decoder = SoundDecoder.of(how=how, channels=c.channels, trim=c.trim)
    return Codec.of(c.dim, embed, books, decoder, rate=c.rate, bandwidths=c.bandwidths)


SIZES = {
    "tiny": Encodec(
        dim=12,
        rate=120,
        bandwidths=(0.08, 0.25),
        codes=16,
        filters=4,
        ratios=(3, 2),
        kernel=5,
        last_kernel=3,
        lstm=1,
    ),
    "mini": Encodec(dim=64, rate=8000, bandwidths=(0.8, 1.6, 3.2), codes=256, filters=16, ratios=(5, 4, 4), lstm=1),
    "24khz": Encodec(),
    "48khz": Encodec(
        rate=48000,
        channels=2,
        bandwidths=(3.0, 6.0, 12.0, 24.0),
        normalise=True,
        chunk=1.0,
        overlap=0.01,
        causal=False,
        norm="group",
    ),
    "32khz": Encodec(
        rate=32000, bandwidths=(2.2,), codes=2048, filters=64, ratios=(8, 5, 4, 4), causal=False, shortcut=False
    ),
}
PARAMETERS = {"tiny": 8_462, "mini": 618_482, "24khz": 14_851_810, "48khz": 14_856_294, "32khz": 56_884_674}
CASES = {
    "pieces": {
        "channels": 2,
        "bandwidths": (0.2,),
        "normalise": True,
        "chunk": 0.3,
        "overlap": 0.1,
        "causal": False,
        "norm": "group",
    },
    "deep": {
        "residual": 2,
        "lstm": 2,
        "compress": 1,
        "residual_kernel": 5,
        "growth": 3,
        "trim": 0.5,
        "pad": "constant",
    },
    "plain": {
        "shortcut": False,
        "ratios": (2, 4),
        "pad": "replicate",
        "dim": 10,
        "filters": 6,
        "codes": 8,
        "kernel": 7,
    },
}
HUBS = (
    Hub(
        "encodec",
        architectures={"EncodecModel": {}},
        processor="EncodecFeatureExtractor",
        outputs={"audio_values": "heads.sound", "audio_codes": "beside.codes"},
        weights=lambda c: codec_rows(len(c.ratios), c.residual),
        config=CONFIG,
    ),
)
