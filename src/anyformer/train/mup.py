"""muP: hyperparameters found on a narrow model serve a wide one (Yang et al., 2022; arXiv:2203.03466).

The narrow model, the base, is as it always was. A wider one of the same depth differs by factors; a is by how much the
inputs of a matrix are more than in the base, b the outputs, d the width, k the width of a head:

| what | first weights | learning rate (Adam) | in forward |
|---|---|---|---|
| matrix, a > 1 and b > 1 (hidden) | a^-1/2 | 1 / a | |
| matrix, a > 1 and b = 1 (a head of its own, a router) | 1 / a | 1 / a | |
| matrix, a = 1; tables; vectors | 1 | 1 | |
| logits by the token table (tied) | | | 1 / d |
| attention's scale | | | base's scale / k, not / sqrt(k) |

    transfer = Transfer(wide_recipe, base_recipe)
    model = transfer.build(seed=0)                            # forward and first weights
    Settings(..., lr_multipliers=transfer.lr_multipliers)                       # and the learning rates
A rewrite of the recipe by paths: it works for every page, and a checkpoint holds it.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from anyformer.core import pages
from anyformer.core.init import initialise
from anyformer.core.recipe import Recipe
from anyformer.parts import (
    Attention,
    LatentAttention,
    Linformer,
    LocalAttention,
    LSHAttention,
    Nystrom,
    ProbSparse,
    SegmentRecurrence,
)

# The mixers whose scores are divided by the root of the width of a head.
SOFTMAX = (
    Attention, LatentAttention, SegmentRecurrence, Linformer, Nystrom, LSHAttention, LocalAttention, ProbSparse,
)  # fmt: skip


class Transfer:
    """The changes of muP between two recipes of the same paths.

    Attributes:
        recipe: the wide recipe, with the scales of attention and logits.
        factors: of the std of first weights, by path of the matrix. `lr_multipliers`: of the learning rate, by path of
            the parameter.

    Raises:
        ValueError: if the recipes are not the same but for widths, no map differs, or a part has no scale that could
            be set.
    """

    def __init__(self, wide: Recipe, base: Recipe):
        narrow, model = pages.empty(base), pages.empty(wide)
        there = {name: module for name, module in narrow.named_modules()}
        ours = dict(model.named_modules())
        if there.keys() != ours.keys():
            odd = sorted(there.keys() ^ ours.keys())
            raise ValueError(
                f"muP compares two widths of one model, but only one has {odd[0]!r}; have they the same depth?"
            )
        self.factors: dict[str, float] = {}
        self.lr_multipliers: dict[str, float] = {}
        scales: dict[str, float] = {}
        for path, module in ours.items():
            other: Any = there[path]
            if isinstance(module, nn.ConvTranspose2d):  # it is drawn by its own inputs
                if (a := module.in_channels / other.in_channels) != 1:
                    self.lr_multipliers[f"{path}.weight"] = 1 / a
            elif isinstance(module, nn.Linear | nn.Conv2d):
                b, a = (x / y for x, y in zip(module.weight.shape[:2], other.weight.shape[:2], strict=True))
                if a != 1:
                    self.factors[path] = 1 / a if b == 1 else 1 / math.sqrt(a)
                    self.lr_multipliers[f"{path}.weight"] = 1 / a
            elif isinstance(module, SOFTMAX) and module.head_dim != other.head_dim:
                if "scale" not in module.recipe.options:  # type: ignore[union-attr]
                    name = type(module).__name__
                    raise ValueError(f"muP changes the scale of attention, and {name} at {path!r} has no such option")
                scale = other.scale if other.scale is not None else other.head_dim**-0.5
                scales[f"{path}.scale"] = scale * other.head_dim / module.head_dim
            elif getattr(module, "proj", 0) is None and hasattr(module, "scale"):  # logits by the token table
                scales[f"{path}.scale"] = other.scale * _width(narrow) / _width(model)
        if not self.lr_multipliers and wide != base:
            raise ValueError(
                "muP scales linear maps and convolutions of pictures, and none differs between these recipes"
            )
        self.recipe = wide.but(scales) if scales else wide

    def build(self, seed: int) -> Any:
        """The wide model with its first weights."""
        model = pages.build(self.recipe, seed=seed)
        initialise(model, seed=seed, scheme="mup", factors=self.factors)
        return model


def _width(model: Any) -> int:
    return model.embed.tokens.weight.shape[1]
