"""Widths of heads."""


def width(owner: str, dim: int, heads: int, head_dim: int | None) -> int:
    """The width of a head."""
    if head_dim is None and dim % heads:
        raise ValueError(f"{owner}: a width of {dim} does not divide into {heads} heads; give head_dim")
    if head_dim is not None and head_dim < 1:
        raise ValueError(f"{owner}: head_dim must be at least 1; got {head_dim}")
    return dim // heads if head_dim is None else head_dim
