"""LoRA: a frozen matrix learns by a product of two thin ones (Hu et al., 2021; arXiv:2106.09685).

```
x ──┬── W, frozen ─────────────────────────(+)──> y        y = W x + (alpha / rank) B A x
    └── dropout ── A ── B ── x alpha / rank ┘              A (rank, in), B (out, rank); B = 0 at first: y is unchanged
```
    added = lora.add(model, rank=8, targets=("**.mixer.*", "**.ffn.*"))
    ... train: only lora_a and lora_b learn ...
    lora.merge(model)                                      # plain matrices again: W + (alpha / rank) B A

A rewrite of the tree: it works for every `nn.Linear` of every model, and all other paths stay what they were.
I inputs, O outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.recipe import nearest
from anyformer.core.rewrite import rewrite, select


class LoraLinear(nn.Module):
    """A linear layer with an adapter beside it. `weight` and `bias` are the layer's own parameters, at their own paths.

    Args:
        base: the layer; it is not copied.
        rank: R. `alpha`: the adapter is scaled by alpha / rank. `dropout`: on what enters the adapter, in training.

    Shape: (..., I) -> (..., O).
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float):
        super().__init__()
        self.weight, self.bias, self.scale = base.weight, base.bias, alpha / rank
        inputs, outputs, like = base.in_features, base.out_features, base.weight
        self.lora_a = nn.Parameter(like.new_empty(rank, inputs).normal_(std=inputs**-0.5))
        self.lora_b = nn.Parameter(like.new_zeros(outputs, rank))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        small = F.linear(self.dropout(x), self.lora_a)  # (..., R)
        return F.linear(x, self.weight, self.bias) + F.linear(small, self.lora_b) * self.scale

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One matrix of the same function: W + scale B A, summed in float32 or better, rounded once."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        whole = self.weight.to(wide) + self.scale * (self.lora_b.to(wide) @ self.lora_a.to(wide))  # (O, I)
        plain = nn.Linear(whole.shape[1], whole.shape[0], self.bias is not None, device="meta")
        plain.weight, plain.bias = nn.Parameter(whole.to(self.weight.dtype)), self.bias
        return plain

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]} -> {self.weight.shape[0]}, rank={len(self.lora_a)}, scale={self.scale:g}"


def add(
    model: nn.Module,
    rank: int = 8,
    alpha: float = 16.0,
    targets: Sequence[str] = ("**.mixer.q", "**.mixer.v"),
    dropout: float = 0.0,
) -> dict[str, LoraLinear]:
    """Gives every linear layer at the targets an adapter and freezes all other parameters; the function stays the same.

    Args:
        model: changed in place.
        rank: width of the adapters.
        alpha: they are scaled by alpha / rank.
        targets: path patterns (see `core.rewrite.select`). `("**",)`: every linear layer; the default is the paper's
            choice, for attention; a model without q and v wants e.g. `("**.mixer.*",)`.
        dropout: on what enters the adapters, in training.

    Returns:
        The adapted layers by path; their parameters are at `path.lora_a` and `path.lora_b`.

    Raises:
        ValueError: for a target without a linear layer (with the nearest paths), a rank below 1, a dropout outside
            [0, 1), or a model that has adapters already.
    """
    if rank < 1:
        raise ValueError(f"rank must be 1 or more, got {rank}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
    if old := _adapters(model):
        raise ValueError(
            f"the model has {len(old)} adapters already, the first at {next(iter(old))}; call merge(model) first"
        )
    made = rewrite(model, *targets, kind=nn.Linear, make=lambda base: LoraLinear(base, rank, alpha, dropout))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith((".lora_a", ".lora_b")))
    return made


def merge(model: nn.Module) -> list[str]:
    """Adds every adapter to its matrix: plain `nn.Linear` modules with the same function, up to the rounding of floats.

    All parameters are trainable afterwards, as in a fresh model.

    Returns:
        The paths that were adapted.

    Raises:
        ValueError: if there is no adapter.
    """
    if not _adapters(model):
        raise ValueError("the model has no adapters to merge; lora.add(model) makes them")
    plain = rewrite(model, "**", kind=LoraLinear, make=LoraLinear.merged)
    model.requires_grad_(True)
    return list(plain)


def state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters alone, by path: what a fine-tune needs to keep. Empty if there is none."""
    return {f"{path}.{n}": getattr(m, n).detach() for path, m in _adapters(model).items() for n in ("lora_a", "lora_b")}


@torch.no_grad()
def load_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts what `state` gave into a model with the same adapters.

    Raises:
        ValueError: naming the tensor, if one is missing, left over, or of another shape; nothing has changed then.
    """
    ours = state(model)
    for name in [*(n for n in tensors if n not in ours), *(n for n in ours if n not in tensors)]:
        where = "place in the model" if name in tensors else "tensor among those given"
        raise ValueError(f"{name!r} has no {where}{nearest(name, list(ours if name in tensors else tensors))}")
    for name, tensor in tensors.items():
        if (given := tuple(tensor.shape)) != (wanted := tuple(ours[name].shape)):
            raise ValueError(f"{name!r} has shape {given}, the model needs {wanted}; was it another rank?")
    for name, tensor in tensors.items():
        ours[name].copy_(tensor)


def _adapters(model: nn.Module) -> dict[str, LoraLinear]:
    there = any(isinstance(m, LoraLinear) for m in model.modules())
    return select(model, "**", kind=LoraLinear) if there else {}
