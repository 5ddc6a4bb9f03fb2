"""Fewer heads of keys and values: a trained model becomes a grouped-query one (Ainslie et al., 2023; arXiv:2305.13245).

```
before   kv  1  2  3  4        after, kv_heads = 2    kv   mean(1, 2)  mean(3, 4)
             |  |  |  |                                      /    \\      /    \\
         q   1  2  3  4                                q     1    2      3    4
```
The decoding cache shrinks by the same factor. The function changes: a short training recovers most of it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from anyformer.core import pages
from anyformer.core.recipe import Recipe
from anyformer.core.rewrite import select
from anyformer.parts.attention.attention import Attention


@torch.no_grad()
def pool_heads(model: Any, kv_heads: int, *patterns: str) -> list[str]:
    """Replaces the key and value heads of attention by means of neighbours, in place.

    W_k[g] = mean of W_k[h] over the heads h of group g, likewise for v and biases; G heads before, `kv_heads` after.

    Args:
        model: changed in place; it stays a model of its page if that can express it.
        kv_heads: the new number, a divisor of each part's old one.
        patterns: paths of the attention parts (see `core.rewrite.select`); by default all of them.

    Returns:
        The paths that changed.

    Raises:
        ValueError: naming the part, if its number of heads is not divisible; nothing has changed then.
    """
    chosen = select(model, *(patterns or ("**",)), kind=Attention)
    for path, part in chosen.items():
        if kv_heads < 1 or part.kv_heads % kv_heads:
            raise ValueError(f"{path} has {part.kv_heads} key and value heads, which cannot form {kv_heads} groups")
    for part in chosen.values():
        for name in ("k", "v"):
            setattr(part, name, _pooled(getattr(part, name), part.kv_heads, kv_heads))
        part.kv_heads = kv_heads
        assert part.recipe is not None, "parts are built from recipes"
        part.recipe = part.recipe.but(kv_heads=kv_heads)
    model.recipe = model.recipe.but({f"{path}.kv_heads": kv_heads for path in chosen})
    model.page, model.config = _page(model.page, model.config, kv_heads, model.recipe)
    return list(chosen)


def _pooled(proj: nn.Linear, before: int, after: int) -> nn.Linear:
    """A projection to `before` heads as one to `after`, each the mean of its group."""
    width = proj.out_features // before
    new = nn.Linear(proj.in_features, after * width, proj.bias is not None, proj.weight.device, proj.weight.dtype)
    for name, weight in proj.named_parameters():  # (G K, D) or (G K)
        groups = weight.unflatten(0, (after, before // after, width))  # (groups, heads, K, …)
        getattr(new, name).copy_(groups.mean(1).flatten(0, 1))
    return new.train(proj.training)


def _page(name: str | None, config: Any, kv_heads: int, recipe: Recipe) -> tuple[str | None, Any]:
    """The page and hyperparameters of this recipe; (None, None) if there are none."""
    if name is not None and "kv_heads" in {f.name for f in dataclasses.fields(config)}:
        config = dataclasses.replace(config, kv_heads=kv_heads)
        if pages.page(name).recipe(config) == recipe:
            return name, config
    return None, None
