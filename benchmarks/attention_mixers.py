"""What `benchmarks.attention` measures: every mixer of `anyformer.parts`, a line each. T time, K width of a head.

One configuration: a stream of 512 numbers, 8 heads of 64, one text. A window sees 256 tokens, and so long is a segment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from anyformer.core.flow import Flow
from anyformer.core.recipe import Recipe
from anyformer.parts import (
    Alibi,
    Attention,
    AutoCorrelation,
    BlockWindow,
    CompressiveMemory,
    Convolution,
    Dilated,
    Favor,
    Forget,
    Fourier,
    GatedDelta,
    Global,
    Hierarchical,
    LatentAttention,
    LinearAttention,
    Linformer,
    LocalAttention,
    LSHAttention,
    Mamba,
    Mamba2,
    MemoryTokens,
    NearestMemory,
    Nystrom,
    ProbSparse,
    Random,
    Relative,
    SegmentRecurrence,
    SoftCap,
    Strided,
    Window,
)  # fmt: skip
from anyformer.parts.attention.block_sparse import BlockSparse
from anyformer.parts.attention.global_tokens import GlobalAttention, GlobalTokens

DIM, HEADS, GLOBALS = 512, 8, 16  # of Longformer: the first tokens are global
BOUNDS = {"linear": (0.0, 1.15), "T log T": (0.0, 1.25), "quadratic": (1.7, 2.3)}  # what an exponent may be


@dataclass(frozen=True)
class Entry:
    """A mixer: its recipe for a text of T tokens, and the stated growth of time and memory.

    Attributes:
        causal: measured as in a decoder; otherwise both ways.
        time, memory: one of `BOUNDS`.
        training: measured as in training, where BigBird draws its blocks.
    """

    recipe: Callable[[int], Recipe]
    causal: bool = True
    time: str = "linear"
    memory: str = "linear"
    training: bool = False

    def flow(self, length: int) -> Flow:
        """What a pass over one text shares; the first tokens are global, for the mixer that asks which ones are."""
        places = torch.arange(length)
        flow = Flow(places, causal=self.causal)
        flow.put(GlobalTokens((places < GLOBALS)[None]))
        return flow


def full(kernel: str, **options: Any) -> Callable[[int], Recipe]:
    """Softmax attention by a kernel."""
    return lambda length: Attention.of(heads=HEADS, kernel=kernel, **options)


def linear(**options: Any) -> Callable[[int], Recipe]:
    """Linear attention."""
    return lambda length: LinearAttention.of(heads=HEADS, **options)


def one(recipe: Recipe) -> Callable[[int], Recipe]:
    """The same recipe at every length."""
    return lambda length: recipe


def lsh(length: int) -> Recipe:
    """As many buckets as there are chunks, in each of four rounds."""
    return LSHAttention.of(heads=HEADS, size=64, rounds=4, buckets=length // 64, seed=0)


def hierarchical(length: int) -> Recipe:
    """Blocks of 64, and eight levels: nothing is beyond the last one up to 32,768 tokens."""
    return Hierarchical.of(heads=HEADS, size=64, cells=4, levels=8)


def masked(mask: Any) -> Callable[[int], Recipe]:
    """Softmax attention under a mask; the kernel is chosen by the rule of `parts.kernels`."""
    return lambda length: Attention.of(heads=HEADS, mask=mask)


SPARSE = BlockWindow(64, 1, 1) | Global(64) | Random(64, 3)
RECURRENT = SegmentRecurrence.of(heads=HEADS, segment=256, memory=256, bias=False, scores=[Relative.of()])
COMPRESSIVE = CompressiveMemory.of(
    heads=HEADS, segment=256, memory=256, compressed=64, rate=4, bias=False, out_bias=True
)
NEAREST = NearestMemory.of(heads=HEADS, segment=256, memory=256, top=32, capacity=2048)
LATENT = LatentAttention.of(heads=HEADS, kv_rank=128)
ENTRIES: dict[str, Entry] = {
    "full, sdpa": Entry(full("sdpa"), time="quadratic"),
    "full, sdpa, both ways": Entry(full("sdpa"), causal=False, time="quadratic"),
    "full, blockwise": Entry(full("blockwise"), time="quadratic"),
    "full, reference": Entry(full("reference"), time="quadratic", memory="quadratic"),
    "full, ALiBi": Entry(full("auto", scores=[Alibi.of()]), time="quadratic", memory="quadratic"),
    "full, forgetting gates": Entry(full("auto", scores=[Forget.of()]), time="quadratic", memory="quadratic"),
    "full, soft cap 50": Entry(full("auto", scores=[SoftCap.of(50.0)]), time="quadratic", memory="quadratic"),
    "full, 16 memory tokens": Entry(one(MemoryTokens.of(16, [Attention.of(heads=HEADS)])), time="quadratic"),
    "latent (MLA), rank 128": Entry(one(LATENT), time="quadratic"),
    "GQA, 2 of 8 heads": Entry(full("sdpa", kv_heads=2), time="quadratic"),
    "window 256": Entry(masked(Window(255))),
    "window 128 + 128, both ways": Entry(masked(Window(128, 128)), causal=False),
    "window 128 + 128 and 16 global, both ways": Entry(
        one(GlobalAttention.of(heads=HEADS, mask=Window(128, 128))), causal=False
    ),
    "local, chunks of 128": Entry(one(LocalAttention.of(heads=HEADS, size=128))),
    "dilated 8 x 32": Entry(masked(Dilated(8, 32))),
    "window and strided 256, by mask": Entry(masked(Window(255) | Strided(256)), time="quadratic", memory="quadratic"),
    "window and global, by mask, both ways": Entry(
        masked(Window(128, 128) | Global(16)), causal=False, time="quadratic", memory="quadratic"
    ),
    "BigBird's mask, both ways": Entry(masked(SPARSE), causal=False, time="quadratic", memory="quadratic"),
    "BigBird's blocks of 64, both ways": Entry(
        one(BlockSparse.of(heads=HEADS, size=64, random=3)), causal=False, training=True
    ),
    "LSH, 4 rounds, both ways": Entry(lsh, causal=False, time="T log T", memory="T log T"),
    "hierarchical, blocks of 64": Entry(hierarchical),
    "hierarchical, blocks of 64, both ways": Entry(hierarchical, causal=False),
    "ProbSparse, both ways": Entry(one(ProbSparse.of(heads=HEADS)), causal=False, time="T log T", memory="T log T"),
    "ProbSparse, all keys, both ways": Entry(
        one(ProbSparse.of(heads=HEADS, draws="many", seed=0)), causal=False, time="quadratic", memory="T log T"
    ),
    "auto-correlation, both ways": Entry(one(AutoCorrelation.of()), causal=False, time="T log T", memory="T log T"),
    "Transformer-XL, 256 + 256": Entry(one(RECURRENT)),
    "compressive, 256 + 256 + 64 of 4": Entry(one(COMPRESSIVE)),
    "kNN memory of 2,048": Entry(one(NEAREST)),
    "linear, elu": Entry(linear()),
    "linear, elu, both ways": Entry(linear(), causal=False),
    "linear, square": Entry(linear(feature="square")),
    "FAVOR+": Entry(one(Favor.of(heads=HEADS, bias=False))),
    "FAVOR+, both ways": Entry(one(Favor.of(heads=HEADS, bias=False)), causal=False),
    "Linformer, rank 256": Entry(
        lambda length: Linformer.of(length=length, heads=HEADS, bias=False, out_bias=True), causal=False
    ),
    "Nystrom, 64 landmarks": Entry(one(Nystrom.of(heads=HEADS, bias=False)), causal=False),
    "Fourier": Entry(one(Fourier.of()), causal=False, time="T log T"),
    "Mamba": Entry(one(Mamba.of())),
    "Mamba-2": Entry(one(Mamba2.of(heads=2 * HEADS))),
    "delta": Entry(one(GatedDelta.of(heads=HEADS, gated=False))),
    "gated delta": Entry(one(GatedDelta.of(heads=HEADS))),
    "convolution 4": Entry(one(Convolution.of())),
    "convolution 256, both ways": Entry(one(Convolution.of(width=256)), causal=False, time="T log T"),
}
FAMILIES = {  # a plot each: where they begin
    "softmax over all keys": "full, sdpa",
    "over some keys": "window 256",
    "segments with memory": "Transformer-XL, 256 + 256",
    "kernels, low rank, recurrences, transforms": "linear, elu",
}
DECODING: dict[str, Recipe] = {
    "full (8 key/value heads)": Attention.of(heads=HEADS),
    "GQA (2 key/value heads)": Attention.of(heads=HEADS, kv_heads=2),
    "MQA (1 key/value head)": Attention.of(heads=HEADS, kv_heads=1),
    "full, ALiBi": Attention.of(heads=HEADS, scores=[Alibi.of()]),
    "full, forgetting gates": Attention.of(heads=HEADS, scores=[Forget.of()]),
    "latent (MLA), rank 128": LATENT,
    "window 256": Attention.of(heads=HEADS, mask=Window(255)),
    "local, chunks of 128": LocalAttention.of(heads=HEADS, size=128),
    "hierarchical, blocks of 64": hierarchical(0),
    "Transformer-XL, 256 + 256": RECURRENT,
    "compressive, 256 + 256 + 64 of 4": COMPRESSIVE,
    "kNN memory of 2,048": NEAREST,
    "linear, elu": LinearAttention.of(heads=HEADS),
    "FAVOR+": Favor.of(heads=HEADS),
    "Mamba": Mamba.of(),
    "Mamba-2": Mamba2.of(heads=2 * HEADS),
    "delta": GatedDelta.of(heads=HEADS, gated=False),
    "gated delta": GatedDelta.of(heads=HEADS),
    "convolution 4": Convolution.of(),
}
