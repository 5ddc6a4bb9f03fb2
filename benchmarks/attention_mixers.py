"""What `benchmarks.attention` measures: every mixer of `anyformer.parts`, a line each. T time, K width of a head.

One configuration: a stream of 512 numbers, 8 heads of 64, one text. A window sees 256 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from anyformer.core.recipe import Recipe
from anyformer.parts import (
    Attention,
    BlockWindow,
    Convolution,
    Dilated,
    Favor,
    Fourier,
    GatedDelta,
    Global,
    LinearAttention,
    Linformer,
    Mamba,
    Mamba2,
    Nystrom,
    Random,
    Strided,
    Window,
)  # fmt: skip

DIM, HEADS = 512, 8
BOUNDS = {"linear": (0.0, 1.15), "T log T": (0.0, 1.25), "quadratic": (1.7, 2.3)}  # what an exponent may be


@dataclass(frozen=True)
class Entry:
    """A mixer: its recipe for a text of T tokens, and how time and memory are said to grow.

    Attributes:
        causal: measured as in a decoder; otherwise both ways.
        time, memory: one of `BOUNDS`.
    """

    recipe: Callable[[int], Recipe]
    causal: bool = True
    time: str = "linear"
    memory: str = "linear"


def full(kernel: str, **options: object) -> Callable[[int], Recipe]:
    """Softmax attention by a kernel."""
    return lambda length: Attention.of(heads=HEADS, kernel=kernel, **options)


def linear(**options: object) -> Callable[[int], Recipe]:
    """Linear attention."""
    return lambda length: LinearAttention.of(heads=HEADS, **options)


def masked(mask: object) -> Callable[[int], Recipe]:
    """Softmax attention under a mask; the kernel is chosen by the rule of `parts.kernels`."""
    return lambda length: Attention.of(heads=HEADS, mask=mask)


SPARSE = BlockWindow(64, 1, 1) | Global(64) | Random(64, 3)
ENTRIES: dict[str, Entry] = {
    "full, sdpa": Entry(full("sdpa"), time="quadratic"),
    "full, sdpa, both ways": Entry(full("sdpa"), causal=False, time="quadratic"),
    "full, blockwise": Entry(full("blockwise"), time="quadratic"),
    "full, reference": Entry(full("reference"), time="quadratic", memory="quadratic"),
    "GQA, 2 of 8 heads": Entry(full("sdpa", kv_heads=2), time="quadratic"),
    "window 256": Entry(masked(Window(255))),
    "window 128 + 128, both ways": Entry(masked(Window(128, 128)), causal=False),
    "dilated 8 x 32": Entry(masked(Dilated(8, 32))),
    "window and strided 256, by mask": Entry(masked(Window(255) | Strided(256)), time="quadratic", memory="quadratic"),
    "window and global, by mask, both ways": Entry(
        masked(Window(128, 128) | Global(16)), causal=False, time="quadratic", memory="quadratic"
    ),
    "BigBird's mask, both ways": Entry(masked(SPARSE), causal=False, time="quadratic", memory="quadratic"),
    "linear, elu": Entry(linear()),
    "linear, elu, both ways": Entry(linear(), causal=False),
    "linear, square": Entry(linear(feature="square")),
    "FAVOR+": Entry(lambda length: Favor.of(heads=HEADS, bias=False)),
    "FAVOR+, both ways": Entry(lambda length: Favor.of(heads=HEADS, bias=False), causal=False),
    "Linformer, rank 256": Entry(
        lambda length: Linformer.of(length=length, heads=HEADS, bias=False, out_bias=True), causal=False
    ),
    "Nystrom, 64 landmarks": Entry(lambda length: Nystrom.of(heads=HEADS, bias=False), causal=False),
    "Fourier": Entry(lambda length: Fourier.of(), causal=False, time="T log T"),
    "Mamba": Entry(lambda length: Mamba.of()),
    "Mamba-2": Entry(lambda length: Mamba2.of(heads=2 * HEADS)),
    "gated delta": Entry(lambda length: GatedDelta.of(heads=HEADS)),
    "convolution 4": Entry(lambda length: Convolution.of()),
    "convolution 256, both ways": Entry(lambda length: Convolution.of(width=256), causal=False, time="T log T"),
}
DECODING: dict[str, Recipe] = {
    "full (8 key/value heads)": Attention.of(heads=HEADS),
    "GQA (2 key/value heads)": Attention.of(heads=HEADS, kv_heads=2),
    "MQA (1 key/value head)": Attention.of(heads=HEADS, kv_heads=1),
    "window 256": Attention.of(heads=HEADS, mask=Window(255)),
    "linear, elu": LinearAttention.of(heads=HEADS),
    "FAVOR+": Favor.of(heads=HEADS),
    "Mamba": Mamba.of(),
    "Mamba-2": Mamba2.of(heads=2 * HEADS),
    "gated delta": GatedDelta.of(heads=HEADS),
    "convolution 4": Convolution.of(),
}
