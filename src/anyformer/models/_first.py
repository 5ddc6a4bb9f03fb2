"""Initial sizes that several pages share: standard deviations by path pattern."""

from __future__ import annotations


def t5_sizes(dim: int, heads: int, head_dim: int, hidden: int) -> dict[str, float]:
    """The sizes of T5: each matrix by its inputs, and q by sqrt(K) less, because scores are not divided by it."""
    wide = dim**-0.5
    sizes = {"embed.tokens": 1.0, "**.bias.table": wide}
    for branch in ("mixer", "cross"):
        sizes |= {f"**.blocks.*.{branch}.q": (dim * head_dim) ** -0.5, f"**.blocks.*.{branch}.[kv]": wide}
        sizes |= {f"**.blocks.*.{branch}.o": (heads * head_dim) ** -0.5}
    return sizes | {"**.blocks.*.ffn.[ug]*": wide, "**.blocks.*.ffn.down": hidden**-0.5}  # up and gate


def mamba_sizes(dim: int, hidden: int, depth: int) -> dict[str, float]:
    """The sizes of Mamba: matrices as in PyTorch's linear layer, uniform within 1 / sqrt(inputs), of which this is the
    standard deviation; output projections of branches by depth. Tokens have the common 0.02."""
    wide, inner = (3 * dim) ** -0.5, (3 * hidden) ** -0.5
    return {"blocks.*.mixer.into": wide, "blocks.*.mixer.out": inner / depth**0.5, "head.proj": wide}
