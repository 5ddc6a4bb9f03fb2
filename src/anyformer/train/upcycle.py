"""Sparse upcycling: a trained dense model becomes a mixture of experts (Komatsuzaki et al., 2022; arXiv:2212.05055).

```
ffn ──>  router ─┬─ copy of ffn ─┬─ weighted sum        the weights sum to 1 and the copies are equal:
                 ├─ copy of ffn ─┤                      the function is what it was, until training
                 └─ …            ┘                      makes the copies differ
```
    upcycle(model, "blocks.1::2.ffn", experts=8, top=2)   # every second block
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from anyformer.core.part import Part
from anyformer.core.rewrite import rewrite
from anyformer.parts.moe import MoE, TopK

STD = 0.02  # of a new router


@torch.no_grad()
def upcycle(
    model: Any,
    *patterns: str,
    experts: int = 8,
    top: int = 2,
    factor: float | None = None,
    balance: float = 0.01,
    z: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Puts `experts` copies of a feed-forward part and a new router in its place; the function stays the same.

    Args:
        model: changed in place. Its recipe says so; it is no longer what a page describes, and is saved in our format.
        patterns: paths (see `core.rewrite.select`); by default every `ffn`.
        experts, top, factor, balance, z: of `parts.moe.TopK`. A `factor` drops tokens in training.
        seed: of the routers' first weights.

    Returns:
        The paths that changed.

    Raises:
        ValueError: for a path without such a part, one that is a mixture already, or options that do not fit.
    """
    noise = torch.Generator().manual_seed(seed)
    router = TopK.of(experts=experts, top=top, renormalise=True, factor=factor, balance=balance, z=z)

    def mixture(old: Part) -> MoE:
        if isinstance(old, MoE):
            raise ValueError("the part is a mixture of experts already; pass patterns without it")
        recipe = old.recipe
        assert recipe is not None, "parts are built from recipes"
        like = next((m for m in old.modules() if isinstance(m, nn.Linear)), None)
        if like is None:
            raise ValueError(f"{recipe.part.__name__} has no linear layer, so it is not a feed-forward part")
        with torch.device("meta"):
            new = MoE.of(router=router, expert=recipe).build(like.in_features)
        new.experts = nn.ModuleList(copy.deepcopy(old) for _ in range(experts))
        new.router = new.router.to_empty(device="cpu")
        new.router.proj.weight.normal_(0.0, STD, generator=noise)
        new.router.to(device=like.weight.device, dtype=like.weight.dtype)
        return new

    made = rewrite(model, *(patterns or ("**.ffn",)), kind=Part, make=mixture)
    model.recipe = model.recipe.but({path: new.recipe for path, new in made.items()})
    model.page, model.config = None, None
    return list(made)
