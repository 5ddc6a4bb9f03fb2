"""The small models whose quality is measured: what differs between them is one part, all else is the same.

Every row of a table is a `Variant`; its feed-forward width is chosen so that all have the same number of parameters.
T time, D width, F width of the feed-forward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from anyformer.core.recipe import Recipe
from anyformer.parts import (
    MLP,
    Alibi,
    Attention,
    AutoCorrelation,
    Axial,
    Block,
    CompressiveMemory,
    Convolution,
    ConvPositions,
    Decay,
    Dilated,
    Distances,
    Favor,
    Forget,
    Fourier,
    GatedDelta,
    GatedMLP,
    Hierarchical,
    LatentAttention,
    LayerNorm,
    LayerScale,
    Learned,
    LinearAttention,
    Linformer,
    Logits,
    LSHAttention,
    Mamba,
    Mamba2,
    NearestMemory,
    Nystrom,
    Prefix,
    ProbSparse,
    Relative,
    RelativeBias,
    RMSNorm,
    Rotary,
    ScaleNorm,
    SegmentRecurrence,
    Sinusoidal,
    Span,
    Strided,
    Temperature,
    Tokens,
    Window,
    deepnorm,
)  # fmt: skip
from anyformer.parts.attention.block_sparse import BlockSparse
from anyformer.parts.positions import Dynamic, Linear, Scaling, YaRN
from anyformer.skeletons.decoder import CausalLM
from anyformer.skeletons.encoder import Encoder

DIM, DEPTH, HEADS, CONTEXT, BYTES = 128, 2, 4, 512, 256
MASK = BYTES  # what a hidden byte is replaced by
Feed = Callable[[int], Recipe]  # a feed-forward of a hidden width


RMS, ROTARY = RMSNorm.of(), Rotary.of()


def mlp(act: str) -> Feed:
    """A feed-forward of two matrices."""
    return lambda hidden: MLP.of(hidden=hidden, act=act)


def gated(act: str) -> Feed:
    """A feed-forward of three matrices."""
    return lambda hidden: GatedMLP.of(hidden=hidden, act=act)


GELU = mlp("gelu")


@dataclass(frozen=True)
class Variant:
    """One row. `mixers`: a recipe a layer, repeated from the top. `places`: added to the tokens. `entry`: before the
    first block. `bias`: of the stack. `block`: what differs from a block with its norms before the branches.

    `scalings`: rotary scalings that the trained model is also evaluated with, without more training.
    """

    mixers: tuple[Recipe, ...]
    places: Recipe | None = None
    entry: Recipe | None = None
    bias: Recipe | None = None
    norm: Recipe = RMS
    block: dict[str, Any] = field(default_factory=dict)
    ffn: Feed = GELU
    encoder: bool = False
    scalings: tuple[str, ...] = ()


def attention(positions: Recipe | None = ROTARY, **options: Any) -> Recipe:
    """Softmax attention with rotary positions, unless other ones are given."""
    return Attention.of(heads=HEADS, bias=False, positions=positions, **options)


FULL, SINES = attention(), Sinusoidal.of()


def first(width: int) -> Recipe:
    """A convolution of few channels before the first block: what stands beside a byte, for mixers that know no places.
    With sines, in this many steps, not even full attention becomes better than the frequencies of pairs of bytes."""
    return ConvPositions.of(width=width, groups=64)


NARROW = Window(63)
BASE = Variant((FULL,))


def scaling(name: str, times: int) -> Scaling:
    """A rotary scaling for texts that are `times` as long as trained."""
    made = {
        "linear": Linear(float(times)),
        "dynamic": Dynamic(1.0, CONTEXT),
        "yarn": YaRN(float(times), CONTEXT),
    }
    return made[name]


def plain(*scores: Recipe, **options: Any) -> Recipe:
    """Softmax attention without positions, but with those score parts."""
    return attention(positions=None, scores=list(scores), **options)


def memory(part: Any, **options: Any) -> Recipe:
    """Attention by segments of 128, with as many tokens of memory."""
    return part.of(heads=HEADS, segment=128, memory=128, bias=False, **options)


def lsh(after: int = 0) -> Recipe:
    """Hashed attention: chunks of 64, 2 rounds of 16 buckets."""
    return LSHAttention.of(heads=HEADS, size=64, after=after, rounds=2, buckets=16, seed=0)


HIERARCHICAL = Hierarchical.of(heads=HEADS, size=32, cells=4, levels=4)

MIXERS: dict[str, Variant] = {
    "full": BASE,
    "full, convolution first": Variant((plain(),), entry=first(4)),
    "GQA, 2 of 4 heads": Variant((attention(kv_heads=2),)),
    "MQA, 1 of 4 heads": Variant((attention(kv_heads=1),)),
    "latent (MLA), rank 64": Variant((LatentAttention.of(heads=HEADS, kv_rank=64),)),
    "latent (MLA), rank 32": Variant((LatentAttention.of(heads=HEADS, kv_rank=32),)),
    "window 64": Variant((attention(mask=NARROW),)),
    "window 64 and first 4": Variant((attention(mask=NARROW | Prefix(4)),)),
    "window 16 and every 16th": Variant((attention(mask=Window(15) | Strided(16)),)),
    "dilated 8 x 16": Variant((attention(mask=Dilated(8, 16)),)),
    "window 64, last layer full": Variant((attention(mask=NARROW), FULL)),
    "linear, elu": Variant((LinearAttention.of(heads=HEADS, bias=False),), entry=first(4)),
    "linear, square": Variant((LinearAttention.of(heads=HEADS, bias=False, feature="square"),), entry=first(4)),
    "FAVOR+": Variant((Favor.of(heads=HEADS, bias=False),), entry=first(4)),
    "LSH, 2 rounds": Variant((lsh(),), entry=first(4)),
    "hierarchical, blocks of 32": Variant((HIERARCHICAL.but(positions=Rotary.of()),)),
    "learned temperature": Variant((attention(scores=[Temperature.of(learned=True)]),)),
    "learned span": Variant((attention(scores=[Span.of(far=CONTEXT)]),)),
    "forgetting gates": Variant((plain(Forget.of()),)),
    "segments of 128, XL memory": Variant((memory(SegmentRecurrence, scores=[Relative.of()]),)),
    "segments of 128, compressive memory": Variant((memory(CompressiveMemory, scores=[Relative.of()]),)),
    "segments of 128, nearest 32": Variant((memory(NearestMemory, scores=[Relative.of()]),)),
    "convolution 16": Variant((Convolution.of(width=16),)),
    "Mamba": Variant((Mamba.of(),)),
    "Mamba-2": Variant((Mamba2.of(heads=HEADS, state=32),)),
    "delta": Variant((GatedDelta.of(heads=HEADS, gated=False),)),
    "gated delta": Variant((GatedDelta.of(heads=HEADS),)),
    "Mamba-2, last layer full": Variant((Mamba2.of(heads=HEADS, state=32), FULL)),
    "gated delta, last layer full": Variant((GatedDelta.of(heads=HEADS), FULL)),
}
POSITIONS = {
    "rotary": replace(BASE, scalings=("linear", "dynamic", "yarn")),
    "rotary, a quarter": Variant((attention(positions=Rotary.of(fraction=0.25)),)),
    "none": Variant((plain(),)),
    "learned": Variant((plain(),), Learned.of(context=CONTEXT)),
    "sinusoidal": Variant((plain(),), SINES),
    "axial": Variant((plain(),), Axial.of([64, 64], [DIM // 2, DIM // 2])),
    "T5 relative": Variant((plain(),), bias=RelativeBias.of(heads=HEADS, causal=True)),
    "Transformer-XL relative": Variant((plain(Relative.of()),)),
    "learned by distance": Variant((plain(Distances.of(far=CONTEXT)),)),
    "ALiBi": Variant((plain(Alibi.of()),)),
    "log decay, learned": Variant((plain(Decay.of(rate=1.0, shape="log", learned=True)),)),
    "forgetting gates": Variant((plain(Forget.of()),)),
    "convolution 16 at the entry": Variant((plain(),), entry=ConvPositions.of(width=16, groups=16)),
}
NORMS = {
    "RMSNorm, pre": BASE,
    "LayerNorm, pre": replace(BASE, norm=LayerNorm.of()),
    "ScaleNorm, pre": replace(BASE, norm=ScaleNorm.of()),
    "RMSNorm, post": replace(BASE, block={"wiring": "post"}),
    "LayerNorm, post": replace(BASE, norm=LayerNorm.of(), block={"wiring": "post"}),
    "LayerNorm, DeepNorm": replace(BASE, norm=LayerNorm.of(), block=deepnorm(DEPTH)),
    "RMSNorm, sandwich": replace(BASE, block={"wiring": "sandwich"}),
    "RMSNorm, parallel": replace(BASE, block={"wiring": "parallel"}),
    "RMSNorm, pre, LayerScale 0.1": replace(BASE, block={"scale": LayerScale.of(start=0.1)}),
    "RMSNorm, pre, QK-norm": Variant((attention(norm=RMSNorm.of()),)),
}
FEEDS = {
    "GELU": BASE,
    "ReLU": replace(BASE, ffn=mlp("relu")),
    "squared ReLU": replace(BASE, ffn=mlp("relu2")),
    "SiLU": replace(BASE, ffn=mlp("silu")),
    "SwiGLU": replace(BASE, ffn=gated("silu")),
    "GeGLU": replace(BASE, ffn=gated("gelu")),
    "ReGLU": replace(BASE, ffn=gated("relu")),
}
BOTH = Variant((plain(),), entry=first(5), encoder=True)
ENCODERS = {
    "full": BOTH,
    "full, rotary": replace(BOTH, mixers=(FULL,), entry=None),
    "window 64 + 64": replace(BOTH, mixers=(plain(mask=Window(64, 64)),)),
    "linear, elu": replace(BOTH, mixers=(LinearAttention.of(heads=HEADS, bias=False),)),
    "FAVOR+": replace(BOTH, mixers=(Favor.of(heads=HEADS, bias=False),)),
    "Linformer, rank 32": replace(BOTH, mixers=(Linformer.of(length=CONTEXT, rank=32, heads=HEADS, bias=False),)),
    "Nystrom, 64 landmarks": replace(BOTH, mixers=(Nystrom.of(heads=HEADS, landmarks=64, bias=False),)),
    "BigBird, blocks of 32": replace(BOTH, mixers=(BlockSparse.of(heads=HEADS, size=32, random=2, bias=False),)),
    "LSH, 2 rounds": replace(BOTH, mixers=(lsh(after=1),)),
    "hierarchical, blocks of 32": replace(BOTH, mixers=(HIERARCHICAL,)),
    "ProbSparse": replace(BOTH, mixers=(ProbSparse.of(heads=HEADS, bias=False, seed=0),)),
    "auto-correlation": replace(BOTH, mixers=(AutoCorrelation.of(bias=False),)),
    "Fourier": replace(BOTH, mixers=(Fourier.of(),)),
    "convolution 17": replace(BOTH, mixers=(Convolution.of(width=17),)),
}
GROUPS: dict[str, dict[str, Variant]] = {
    "mixers": MIXERS, "positions": POSITIONS, "norms": NORMS, "feed-forward": FEEDS, "encoders": ENCODERS,
}  # fmt: skip


def model(v: Variant, hidden: int, dim: int = DIM, depth: int = DEPTH, vocab: int | None = None) -> Recipe:
    """The whole model with a feed-forward of that width."""
    mixers = [v.mixers[i % len(v.mixers)] for i in range(depth)]
    blocks = [Block.of(mixer=m, norm=v.norm, ffn=v.ffn(hidden), **v.block) for m in mixers]
    last = None if v.block.get("wiring") == "post" else v.norm
    scale = dim**0.5 if v.places == SINES else 1.0  # as Vaswani et al. do: sines are large beside fresh embeddings
    embed = Tokens.of(vocab=vocab or BYTES + v.encoder, positions=v.places, scale=scale)
    head = Logits.of(vocab=vocab or BYTES)
    if v.encoder:
        return Encoder.of(dim, embed, blocks, norm=last, heads={"tokens": head}, entry=v.entry)
    return CausalLM.of(dim, embed, blocks, norm=last, head=head, bias=v.bias, entry=v.entry)


def parameters(recipe: Recipe) -> int:
    """Counted without memory."""
    with torch.device("meta"):
        return sum(p.numel() for p in recipe.build().parameters())


@functools.cache
def wanted(encoder: bool) -> int:
    """The number of parameters that all models of a kind have, within 2 %: that of the first one with F = 4 D."""
    return parameters(model(BOTH if encoder else BASE, 4 * DIM))


def fitted(v: Variant) -> Recipe:
    """The model with the feed-forward that brings it nearest to the wanted number of parameters.

    Raises:
        ValueError: if it stays more than 2 % away.
    """
    aim, few = wanted(v.encoder), parameters(model(v, 8))
    each = (parameters(model(v, 16)) - few) / 8  # parameters are linear in F
    hidden = max(1, 8 + round((aim - few) / each))
    recipe = model(v, hidden)
    count = parameters(recipe)
    if abs(count / aim - 1) > 0.02:
        raise ValueError(f"{v.mixers[0]!r} has {count} parameters at a feed-forward of {hidden}; wanted: {aim}")
    return recipe
