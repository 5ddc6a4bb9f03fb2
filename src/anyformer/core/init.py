"""First weights."""

import math

import torch
from torch import nn

from anyformer.core.part import Part


@torch.no_grad()
def initialise(model: nn.Module, std: float = 0.02, seed: int | None = None) -> None:
    """Matrices and tables from N(0, std), biases 0, norms 1; what ends a residual branch is smaller by sqrt(2 x
    layers) (GPT-2).

    A part that needs other first weights draws them itself in `reset_parameters`.
    """
    if seed is not None:
        torch.manual_seed(seed)
    depth = max(1, sum(1 for name, _ in model.named_modules() if name.split(".")[-2:-1] == ["blocks"]))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            ends = name.endswith(("mixer.o", "cross.o", ".down", "mixer.out"))
            module.weight.normal_(std=std / math.sqrt(2 * depth) if ends else std)
            if isinstance(bias := getattr(module, "bias", None), torch.Tensor):
                bias.zero_()
    for module in model.modules():  # after the common rule, so that a part has the last word
        if isinstance(module, Part | nn.Conv1d):
            module.reset_parameters()
