"""Sizes of first weights that several pages share: standard deviations by path pattern."""

from __future__ import annotations


def t5_sizes(dim: int, heads: int, head_dim: int, hidden: int) -> dict[str, float]:
    """T5's: each matrix by its inputs, and q by sqrt(K) less, because scores are not divided by it."""
    wide = dim**-0.5
    sizes = {"embed.tokens": 1.0, "**.bias.table": wide}
    for branch in ("mixer", "cross"):
        sizes |= {f"**.blocks.*.{branch}.q": (dim * head_dim) ** -0.5, f"**.blocks.*.{branch}.[kv]": wide}
        sizes |= {f"**.blocks.*.{branch}.o": (heads * head_dim) ** -0.5}
    return sizes | {"**.blocks.*.ffn.[ug]*": wide, "**.blocks.*.ffn.down": hidden**-0.5}  # up and gate


def mamba_sizes(dim: int, hidden: int, depth: int) -> dict[str, float]:
    """Mamba's: matrices as PyTorch draws a linear layer, uniformly within 1 / sqrt(inputs), of which this is the
    standard deviation; what ends a branch, by depth. Tokens have the common 0.02."""
    wide, inner = (3 * dim) ** -0.5, (3 * hidden) ** -0.5
    return {"blocks.*.mixer.into": wide, "blocks.*.mixer.out": inner / depth**0.5, "head.proj": wide}
