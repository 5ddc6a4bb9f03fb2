"""First weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from anyformer.core.part import Part, check_option
from anyformer.core.rewrite import matching

SCHEMES = ("depth", "normal", "xavier", "mup")


Size = float | tuple[float, float]  # a standard deviation; or one, and at how many of them the tails are cut off


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
    `reset_parameters`, whatever the scheme. Where the page of a model says what its publishers drew with
    (`first_weights`), this wins over both under the scheme `depth`, which is the default; the other schemes do as they
    say on every page.

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
    """The tensors whose first sizes the model's page gives, with these sizes. A pattern leads to modules, whose weights
    are meant, or ends in the name of a parameter; where two lead to one tensor, the later one has the last word. In a
    recipe that was changed, a pattern may lead nowhere."""
    draws = getattr(getattr(model, "recipe", None), "draws", None)
    sizes: Mapping[str, Size] = draws() if draws else {}
    for pattern, size in sizes.items():
        for tensor in tensors(model, pattern):
            yield tensor, size


def tensors(model: nn.Module, pattern: str) -> list[Tensor]:
    """The parameters that a pattern leads to: its own, and the weights of modules."""
    above, _, last = pattern.rpartition(".")
    owners = [(m, "weight") for m in matching(model, pattern)] + [(m, last) for m in matching(model, above)]
    return [p for m, name in owners if (p := m._parameters.get(name)) is not None]
