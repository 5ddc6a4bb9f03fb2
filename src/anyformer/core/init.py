"""First weights."""

from __future__ import annotations

import math

import torch
from torch import nn

from anyformer.core.part import Part, check_option

SCHEMES = ("depth", "normal", "xavier", "mup")


@torch.no_grad()
def initialise(
    model: nn.Module,
    std: float = 0.02,
    seed: int | None = None,
    scheme: str = "depth",
    factors: dict[str, float] | None = None,
) -> None:
    """First weights by name; biases are 0, norms 1.

    A part that needs other first weights (a state space, a table of positions) draws them itself in
    `reset_parameters`, whatever the scheme.

    Args:
        std: of matrices and tables, from N(0, std).
        scheme: depth: what ends a residual branch is smaller by sqrt(2 x layers) (GPT-2). normal: nothing is smaller.
            xavier: std is sqrt(2 / (inputs + outputs)) for matrices (Glorot and Bengio, 2010). mup: depth, times
            `factors`.
        factors: of the std, by path of the matrix; `train.mup` makes them.
    """
    check_option("initialise", "scheme", scheme, SCHEMES)
    if (factors is not None) != (scheme == "mup"):
        raise ValueError("scheme='mup' needs factors, and no other scheme reads them; train.mup.Transfer has them")
    if seed is not None:
        torch.manual_seed(seed)
    depth = max(1, sum(1 for name, _ in model.named_modules() if name.split(".")[-2:-1] == ["blocks"]))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            ends = scheme in ("depth", "mup") and name.endswith(("mixer.o", "cross.o", ".down", "mixer.out"))
            wide = std / math.sqrt(2 * depth) if ends else std
            if scheme == "xavier" and not isinstance(module, nn.Embedding):
                outputs, inputs = module.weight.flatten(1).shape
                wide = math.sqrt(2 / (inputs + outputs))
            module.weight.normal_(std=wide * (factors or {}).get(name, 1.0))
            if isinstance(bias := getattr(module, "bias", None), torch.Tensor):
                bias.zero_()
    for module in model.modules():  # after the common rule, so that a part has the last word
        if isinstance(module, Part | nn.Conv1d):
            module.reset_parameters()
    for module in model.modules():
        if isinstance(module, Part):
            module.adjust_parameters()
