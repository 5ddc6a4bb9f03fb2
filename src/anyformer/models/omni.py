"""Qwen2.5-Omni's thinker (Xu et al., 2025; arXiv:2503.20215). Text, pictures, videos and sounds in one stream.

Differs from LLaVA 1.5 by: pictures of any size; videos, with their seconds; sounds; places on three axes, by time, row
and column. Differs from Qwen2 by: these places.

```
patches ── cube ── RMSNorm, attention in windows, in few blocks in frames, gated MLP ── cells ── MLP ─┐ image, video
log-mels ── conv, GELU ── conv / 2, GELU ── + place ── Whisper's blocks, in chunks ── mean of 2 ── W ─┤ sound
ids ── token ─────────────────────────────────────────────────────────────────────────────────────────┴─ Qwen2 ──
```
One tower reads pictures and videos. Qwen2.5-VL (Bai et al., 2025; arXiv:2502.13923) is this page without sounds. The
talker and its decoder, which make speech of the text, are not here.
"""

from dataclasses import dataclass, field, fields

from anyformer.core.recipe import Recipe
from anyformer.hub.tables import omni as tables
from anyformer.hub.tables.config import key
from anyformer.hub.tables.nested import within
from anyformer.hub.tables.weights import Hub
from anyformer.models.qwen2 import Qwen2, qwen2
from anyformer.parts import MLP, Attention, Averager, Block, Chunks, Cubes, GatedMLP, LayerNorm, Merger, RMSNorm
from anyformer.parts.attention.groups import Grouped
from anyformer.parts.grid import Rotary2D, RotaryAxes
from anyformer.skeletons import Encoder, Sounds, Videos, Views, with_media


@dataclass(frozen=True)
class View:
    dim: int = 1280
    depth: int = 32
    heads: int = 16
    hidden: int = 3420
    act: str = "silu"
    patch: int = 14
    frames: int = 2  # of a patch
    merge: int = 2  # patches of a cell, in each direction
    window: int = 112  # pixels
    full: tuple[int, ...] = (7, 15, 23, 31)  # blocks whose attention sees a whole frame


@dataclass(frozen=True)
class Sound:
    dim: int = 1280
    depth: int = 32
    heads: int = 20
    hidden: int = 5120
    act: str = "gelu"
    mels: int = 128
    window: int = 100  # positions of a chunk, of two frames of 10 ms each


@dataclass(frozen=True)
class Text:
    dim: int = 3584
    depth: int = 28
    heads: int = 28
    kv_heads: int = 4
    hidden: int = 18944
    act: str = "silu"
    vocab: int = 152064
    context: int = 32768
    eps: float = 1e-6
    theta: float = 1000000.0
    sections: tuple[int, ...] = (16, 24, 24)  # pairs of a head that turn by time, row and column
    attention_dropout: float = 0.0


@dataclass(frozen=True)
class Omni:
    view: View = field(default_factory=View)
    sound: Sound | None = field(default_factory=Sound)
    text: Text = field(default_factory=Text)
    tied: bool = False
    rate: int = 25  # places of a second
    image_token: int = 151655
    video_token: int = 151656
    sound_token: int = 151646
    view_around: tuple[int, ...] = (151652, 151653)  # in front of pictures and videos, and behind
    sound_around: tuple[int, ...] = (151647, 151648)


def omni(c: Omni) -> Recipe:
    text = {f.name: getattr(c.text, f.name) for f in fields(c.text) if f.name != "sections"}
    media: dict[str, Recipe] = {
        "image": Views.of(c.image_token, tower(c.view), Merger.of(RMSNorm.of()), c.view_around),
        "video": Videos.of(c.video_token, "image", c.rate, c.view_around),
    }
    if c.sound is not None:
        mean = Averager.of(LayerNorm.of(), unread=2)
        media["sound"] = Sounds.of(c.sound_token, ear(c.sound), mean, c.sound_around)
    axes = RotaryAxes.of(c.text.sections, theta=c.text.theta)
    return with_media(qwen2(Qwen2(**text, tied=c.tied)).but({"blocks.*.mixer.positions": axes}), **media)


def tower(c: View) -> Recipe:
    attention, cell = Attention.of(heads=c.heads, positions=Rotary2D.of()), c.merge * c.patch
    ffn = GatedMLP.of(hidden=c.hidden, act=c.act, bias=True)
    near, wide = (Block.of(Grouped.of(attention, by=by), ffn=ffn, norm=RMSNorm.of()) for by in ("windows", "frames"))
    embed = Cubes.of(c.patch, c.frames, merge=c.merge, window=c.window // cell)
    return Encoder.of(c.dim, embed, [wide if i in c.full else near for i in range(c.depth)])


def ear(c: Sound) -> Recipe:
    attention, ffn = Attention.of(heads=c.heads, bias="qv"), MLP.of(hidden=c.hidden, act=c.act)
    block = Block.of(mixer=attention, ffn=ffn, norm=LayerNorm.of())
    return Encoder.of(c.dim, Chunks.of(c.mels, 2 * c.window), [block] * c.depth)


_tiny = Omni(
    view=View(dim=16, depth=2, heads=2, hidden=20, patch=2, window=4, full=(1,)),
    sound=Sound(dim=16, depth=2, heads=2, hidden=20, mels=6, window=3),
    text=Text(dim=24, depth=2, heads=3, kv_heads=1, hidden=40, vocab=128, context=64, sections=(1, 2, 1)),
    image_token=121,
    video_token=122,
    sound_token=123,
    view_around=(124, 125),
    sound_around=(126, 127),
)
SIZES = {
    "tiny": _tiny,
    "mini": Omni(
        view=View(dim=128, depth=3, heads=4, hidden=256, patch=8, window=32, full=(2,)),
        sound=Sound(dim=128, depth=3, heads=4, hidden=512, mels=40, window=50),
        text=Text(dim=192, depth=4, heads=4, kv_heads=4, hidden=512, vocab=1024, context=256, sections=(8, 8, 8)),
        tied=True,
        image_token=1024,
        video_token=1025,
        sound_token=1026,
        view_around=(0, 1),
        sound_around=(2, 3),
    ),
    "7b": Omni(),
    "vl-7b": Omni(sound=None, rate=2, text=Text(context=128000)),
}
PARAMETERS = {"tiny": 30_720, "mini": 3_560_512, "7b": 8_931_806_720, "vl-7b": 8_292_166_656}
CASES = {
    "tied": {"tied": True, "text.act": "gelu_tanh", "rate": 10},
    "no sound": {"sound": None, "sound_token": 151646, "sound_around": (151647, 151648), "text.depth": 1},
    "other sizes": {
        "view.dim": 24,
        "view.depth": 3,
        "view.heads": 3,
        "view.hidden": 30,
        "view.patch": 3,
        "view.frames": 1,
        "view.merge": 1,
        "view.window": 6,
        "view.full": (0, 2),
        "sound.dim": 20,
        "sound.depth": 1,
        "sound.heads": 1,
        "sound.hidden": 24,
        "sound.mels": 9,
        "sound.window": 5,
        "text.dim": 32,
        "text.heads": 2,
        "text.kv_heads": 2,
        "text.hidden": 50,
        "text.vocab": 140,
        "text.eps": 1e-4,
        "text.theta": 500.0,
        "text.sections": (3, 2, 3),
        "image_token": 131,
        "video_token": 132,
        "sound_token": 133,
        "view_around": (134, 135),
        "sound_around": (136, 137),
    },
}
HUBS = (
    Hub(
        "qwen2_5_omni_thinker",
        architectures={"Qwen2_5OmniThinkerForConditionalGeneration": {}},
        weights=tables.weights,
        inputs={
            "grid_thw": "image_grid_thw",
            "video_pixel_values": "pixel_values_videos",
            "video_seconds": "video_second_per_grid",
        },
        processor="Qwen2VLImageProcessor",
        config=(
            within("text_config", "text", Text, *tables.TEXT),
            tables.tower("vision_config", "view", View, "out_hidden_size", *tables.VIEW),
            tables.tower("audio_config", "sound", Sound, "output_dim", *tables.SOUND),
            *tables.IDS,
            key("position_id_per_seconds", "rate", default=25),
            key("tie_word_embeddings", "tied", default=False),
            tables.NOTHING,
        ),
    ),
    Hub(
        "qwen2_5_vl",
        architectures={"Qwen2_5_VLForConditionalGeneration": {"sound": None}},
        weights=lambda c: tables.weights(c, joined=True),
        inputs={
            "grid_thw": "image_grid_thw",
            "video_pixel_values": "pixel_values_videos",
            "video_seconds": "second_per_grid_ts",
        },
        config=(
            tables.language("text", Text),
            tables.seeing("view", View),
            *tables.SEEING_IDS,
            key("tie_word_embeddings", "tied", default=False),
            tables.NOTHING,
        ),
        processor="Qwen2VLImageProcessor",
    ),
)
