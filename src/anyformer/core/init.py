"""Initial weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from anyformer.core.part import Part, check_option
from anyformer.core.rewrite import matching

SCHEMES = ("depth", "normal", "xavier", "mup")


Size = float | tuple[float, float]  # a standard deviation; or one, and the number of them at which the tails are cut


@torch.no_grad()
def initialise(
    model: nn.Module,
    std: float = 0.02,
    seed: int | None = None,
    scheme: str = "depth",
    factors: dict[str, float] | None = None,
) -> None:
    """Draws the initial weights by name; biases are 0, norms 1.

    A part that needs other initial weights (a state space, a table of positions) draws them itself in
    `reset_parameters`, under every scheme. A page's published sizes (`first_weights`) take precedence over both under
    the scheme `depth`, the default; the other schemes ignore them.

    Args:
        std: of matrices and tables, from N(0, std).
        scheme: depth: output projections of branches are divided by sqrt(2 · layers) (GPT-2). normal: none is divided.
            xavier: std is sqrt(2 / (inputs + outputs)) for matrices (Glorot and Bengio, 2010). mup: depth, times
            `factors`.
        factors: of the std, by path of the matrix; `train.mup` makes them.
    """
    check_option("initialise", "scheme", scheme, SCHEMES)
    if (factors is not None) != (scheme == "mup"):
        raise ValueError("only scheme='mup' reads factors, and it needs them; train.mup.Transfer computes them")
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
    for module in model.modules():  # after the common rule, so that a part's own rule takes precedence
        if isinstance(module, Part | nn.Conv1d):
            module.reset_parameters()
    if scheme == "depth":
        for tensor, size in published(model):
            if isinstance(size, tuple):
                wide, cutoff = size
                nn.init.trunc_normal_(tensor, std=wide, a=-cutoff * wide, b=cutoff * wide)
            else:
                tensor.normal_(std=size)
    for module in model.modules():
        if isinstance(module, Part):
            module.adjust_parameters()


def published(model: nn.Module) -> Iterator[tuple[Tensor, Size]]:
    """The tensors with a published initial size on the model's page, with these sizes. A pattern matches modules, whose
    weights it means, or ends in the name of a parameter; where two match one tensor, the later one counts. In a changed
    recipe, a pattern can match nothing."""
    draws = getattr(getattr(model, "recipe", None), "draws", None)
    sizes: Mapping[str, Size] = draws() if draws else {}
    for pattern, size in sizes.items():
        for tensor in tensors(model, pattern):
            yield tensor, size


def tensors(model: nn.Module, pattern: str) -> list[Tensor]:
    """The parameters that a pattern matches, and the weights of the modules that it matches."""
    above, _, last = pattern.rpartition(".")
    owners = [(m, "weight") for m in matching(model, pattern)] + [(m, last) for m in matching(model, above)]
    return [p for m, name in owners if (p := m._parameters.get(name)) is not None]
