"""Flamingo (Alayrac et al., 2022; arXiv:2204.14198), as published in IDEFICS (Laurençon et al., 2023;
arXiv:2306.16527). A finished language model that reads pictures between its tokens.

Differs from LLaMA by: gated blocks in front of every n-th block, in which a token attends to the last picture before
it, and to nothing where there is none. Their gates are 0 at first: the model begins as its language model, exactly. A
picture comes from a tower like CLIP's, without its last norm, and a resampler makes a few vectors of it.

```
pixels ── CLIP's tower ── resampler ── latents of each picture ─┐
                                                            keys, values
                      ┌─ RMSNorm ─ attention to the last picture ─ tanh(gate) ─(+)─┬─ RMSNorm ─ MLP ─ tanh(gate) ─(+)─┐
ids ── token ─────────┴────────────────────────────────────────────────────────────┴──────────────────────────────────┤
         ┌────────────────────────────────── … x depth / every ────── (block of LLaMA) x every ───────────────────────┘
         └──────── RMSNorm ── logits
```
`around(recipe, …)` does this to any decoder, whose weights then fit as they are.
"""

from dataclasses import dataclass, field

from anyformer.core.recipe import Recipe
from anyformer.hub.tables import idefics as tables
from anyformer.hub.tables.nested import within, within_if
from anyformer.hub.tables.weights import Hub
from anyformer.models.clip import Image, blocks
from anyformer.parts import MLP, Attention, Block, Entry, GatedMLP, LayerNorm, Logits, Patches, RMSNorm, Rotary, Tokens
from anyformer.parts.attention.media import MediaAttention
from anyformer.parts.heads import Kept
from anyformer.parts.norms import Gate
from anyformer.parts.positions import Linear, Scaling, longest
from anyformer.parts.resampler import ContextAttention, Resampler
from anyformer.skeletons.decoder import CausalLM
from anyformer.skeletons.encoder import Encoder
from anyformer.skeletons.interleaved import Images, interleaved


@dataclass(frozen=True)
class Latents:
    latents: int = 64
    depth: int = 6
    heads: int = 16
    head_dim: int = 96
    qk_norm: bool = False


@dataclass(frozen=True)
class Flamingo:
    dim: int = 4096
    depth: int = 32
    heads: int = 32
    hidden: int = 11008
    act: str = "silu"
    vocab: int = 32000
    extra: int = 2  # ids of a second table, behind the language model's own
    placeholder: int | None = 32001  # the id that stands for a picture; None: image_attention_mask is needed
    context: int = 2048
    eps: float = 1e-6
    theta: float = 10000.0
    scaling: Scaling | None = None
    dropout: float = 0.0
    tied: bool = False
    every: int = 4  # blocks of the language model behind each gated one
    qk_norm: bool = True  # of attention to pictures
    each: bool = False  # a gate for each channel
    image: Image = field(default_factory=lambda: Image(dim=1280, depth=32, heads=16, hidden=5120, patch=14, act="gelu"))
    resampler: Latents | None = field(default_factory=lambda: Latents(qk_norm=True))


def flamingo(c: Flamingo) -> Recipe:
    if c.depth % c.every:
        raise ValueError(f"Flamingo: every={c.every} does not divide depth={c.depth}")
    norm, ffn, vocab = RMSNorm.of(eps=c.eps), GatedMLP.of(hidden=c.hidden, act=c.act), c.vocab + c.extra
    rotary = Rotary.of(theta=c.theta, scaling=c.scaling)
    mixer = Attention.of(heads=c.heads, bias=False, positions=rotary, dropout=c.dropout)
    block = Block.of(mixer=mixer, ffn=ffn, norm=norm, dropout=c.dropout)
    head, context = Logits.of(vocab=vocab, tied=c.tied), longest(c.context, c.scaling)
    text = CausalLM.of(c.dim, Tokens.of(vocab=vocab), [block] * c.depth, norm=norm, head=head, context=context)
    per_head = norm if c.qk_norm else None
    cross = MediaAttention.of(memory_dim=c.image.dim, heads=c.heads, norm=per_head, dropout=c.dropout)
    gated = Block.of(mixer=None, cross=cross, ffn=ffn, norm=norm, dropout=c.dropout, scale=Gate.of(each=c.each))
    return interleaved(text, pictures(c.image, c.resampler), [gated] * (c.depth // c.every), c.every, c.placeholder)


def pictures(image: Image, latents: Latents | None) -> Recipe[Images]:
    embed = Patches.of(image=image.image, patch=image.patch, channels=image.channels, bias=False)
    norm = LayerNorm.of(eps=image.eps)
    tower = Encoder.of(image.dim, embed, blocks(image), norm=Kept.of(norm), entry=Entry.of(norm=norm))
    return Images.of(tower, None if latents is None else resampler(latents))


def resampler(c: Latents) -> Recipe[Resampler]:
    norm, ffn = LayerNorm.of(eps=1e-5), MLP.of(act="relu", bias=False)
    per_head = norm if c.qk_norm else None
    mixer = ContextAttention.of(norm=norm, heads=c.heads, head_dim=c.head_dim, qk_norm=per_head)
    return Resampler.of([Block.of(mixer=mixer, ffn=ffn, norm=norm)] * c.depth, latents=c.latents, norm=norm)


def around(
    text: Recipe, image: Image, latents: Latents | None, every: int = 4, heads: int = 8, placeholder: int | None = None
) -> Recipe:
    """Any decoder with pictures in its text: `every`-th block gets a gated one in front, with `heads` heads."""
    cross, width = MediaAttention.of(memory_dim=image.dim, heads=heads, norm=RMSNorm.of()), text["dim"]
    gated = Block.of(None, RMSNorm.of(), GatedMLP.of(hidden=4 * width), cross, scale=Gate.of())
    count = -(-len(text["blocks"]) // every)
    return interleaved(text, pictures(image, latents), [gated] * count, every, placeholder)


SIZES = {
    "tiny": Flamingo(
        dim=32,
        depth=2,
        heads=4,
        hidden=40,
        vocab=120,
        placeholder=121,
        context=64,
        every=2,
        each=True,
        image=Image(dim=24, depth=1, heads=2, hidden=36, image=8, patch=4, act="gelu"),
        resampler=Latents(latents=3, depth=2, heads=3, head_dim=6, qk_norm=True),
    ),
    "mini": Flamingo(
        dim=192,
        depth=4,
        heads=4,
        hidden=512,
        vocab=1022,
        placeholder=1023,
        context=256,
        tied=True,
        every=2,
        image=Image(dim=128, depth=4, heads=4, hidden=512, image=32, patch=8, act="gelu"),
        resampler=Latents(latents=8, depth=2, heads=4, head_dim=32, qk_norm=True),
    ),
    "9b": Flamingo(),
    "80b": Flamingo(dim=8192, depth=80, heads=64, hidden=22016),
}
PARAMETERS = {
    "tiny": 50_164,
    "mini": 4_020_868,
    "9b": 8_929_677_072,
    "80b": 79_967_841_064,
}
CASES = {
    "bare": {"resampler": None, "qk_norm": False, "tied": True, "extra": 0, "placeholder": None},
    "odd": {
        "dim": 30,
        "depth": 4,
        "heads": 3,
        "vocab": 99,
        "extra": 3,
        "placeholder": 50,
        "eps": 1e-3,
        "theta": 500.0,
        "tied": True,
        "image.depth": 2,
        "image.heads": 3,
        "image.image": 12,
        "image.channels": 1,
        "image.act": "quick_gelu",
        "image.eps": 1e-3,
        "resampler.qk_norm": False,
        "resampler.latents": 2,
        "resampler.heads": 2,
    },
    "stretched": {"scaling": Linear(4.0), "every": 1, "each": False},
}
HUBS = (
    Hub(
        "idefics",
        architectures={"IdeficsForVisionText2Text": {}},
        weights=tables.weights,
        ignore={
            "model.layers.{i}.self_attn.rotary_emb.inv_freq": "computed from rope_theta",
            "model.vision_model.embeddings.position_ids": "the numbers of the positions, which are computed",
        },
        processor="IdeficsImageProcessor",
        config=(
            *tables.TEXT,
            within("vision_config", "image", Image, *tables.IMAGE),
            within_if("use_resampler", "perceiver_config", "resampler", Latents, *tables.LATENTS),
        ),
    ),
)
