"""LoRA: a frozen matrix learns by a product of two thin ones (Hu et al., 2021; arXiv:2106.09685). DoRA: its direction
learns so, and the length of each row by a number of its own (Liu et al., 2024; arXiv:2402.09353).

```
x ──┬── W, frozen ─────────────────────────(+)──> y        LoRA   y = W' x,  W' = W + (alpha / rank) B A
    └── dropout ── A ── B ── x alpha / rank ┘              DoRA   y = m W' x / |W'|, |W'| the length of each row
```
A (rank, in), B (out, rank); B = 0 and m = |W| at first: y is unchanged.

    added = lora.add(model, rank=8, targets=("**.mixer.*", "**.ffn.*"))
    ... train: only lora_a and lora_b (DoRA: and lora_m) learn ...
    lora.merge(model)                                      # plain matrices again: W'

A rewrite of the tree: it works for every `nn.Linear` of every model, and all other paths stay what they were. W may be
in 4 bits (`compress.nf4`): that is QLoRA (Dettmers et al., 2023; arXiv:2305.14314), and it merges to a full matrix.
I inputs, O outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.compress.nf4 import Nf4, Nf4Linear, linear
from anyformer.core.rewrite import rewrite, select
from anyformer.core.value import nearest

OWN = ("lora_a", "lora_b", "lora_m")  # trained tensors of an adapter


class LoraLinear(nn.Module):
    """A linear layer with an adapter beside it. `weight` and `bias` are the layer's own, at their own paths.

    Args:
        base: the layer; it is not copied.
        rank: R. `alpha`: the adapter is scaled by alpha / rank. `dropout`: on the input of the adapter, in training.

    Shape: (..., I) -> (..., O).
    """

    unsaved = "lora.merge(model) turns it into a plain model; train.adapters.write writes only the adapters"
    weight: Tensor | Nf4
    bias: Tensor | None

    def __init__(self, base: nn.Linear | Nf4Linear, rank: int, alpha: float, dropout: float):
        super().__init__()
        self.weight, self.bias, self.scale = base.weight, base.bias, alpha / rank
        tensor = base.weight.codes if isinstance(base.weight, Nf4) else base.weight
        wide = torch.promote_types(base.weight.dtype, torch.float32)  # trained tensors are float32, whatever W is
        like = tensor.new_empty(0, dtype=wide)
        self.lora_a = nn.Parameter(like.new_empty(rank, base.in_features).normal_(std=base.in_features**-0.5))
        self.lora_b = nn.Parameter(like.new_zeros(base.out_features, rank))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = linear(x, self.weight, self.bias)  # (..., O)
        return (y + self.added(x)).to(y.dtype)

    def added(self, x: Tensor) -> Tensor:
        """scale B A x, (..., O), in the adapter's type."""
        small = F.linear(self.dropout(x).to(self.lora_a.dtype), self.lora_a)  # (..., R)
        return F.linear(small, self.lora_b) * self.scale

    @torch.no_grad()
    def whole(self) -> Tensor:
        """W + scale B A, (O, I), in float32 or better."""
        w = self.weight.dequantised() if isinstance(self.weight, Nf4) else self.weight
        wide = torch.promote_types(w.dtype, torch.float32)
        return w.to(wide) + self.scale * (self.lora_b.to(wide) @ self.lora_a.to(wide))

    def merged(self) -> nn.Linear:
        """One matrix of the same function, rounded once."""
        whole = self.whole()  # (O, I)
        plain = nn.Linear(whole.shape[1], whole.shape[0], self.bias is not None, device="meta")
        plain.weight = nn.Parameter(whole.to(self.weight.dtype))
        plain.bias = self.bias  # type: ignore[assignment]
        return plain

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]} -> {self.weight.shape[0]}, rank={len(self.lora_a)}, scale={self.scale:g}"


class DoraLinear(LoraLinear):
    """The same with a length for each row, `lora_m` (O,). As in the paper, |W'| counts as constant in the gradient."""

    def __init__(self, base: nn.Linear | Nf4Linear, rank: int, alpha: float, dropout: float):
        super().__init__(base, rank, alpha, dropout)
        self.lora_m = nn.Parameter(self.lengths(super().whole()).to(self.lora_a.dtype))

    @staticmethod
    def lengths(whole: Tensor) -> Tensor:
        """The length of each row, (O, I) -> (O,); above 0, so that one can divide by it."""
        return torch.linalg.vector_norm(whole, dim=1).clamp(min=torch.finfo(whole.dtype).tiny)

    def forward(self, x: Tensor) -> Tensor:
        factor = self.lora_m / self.lengths(super().whole()).to(self.lora_m.dtype)  # (O,)
        y = linear(x, self.weight, None)  # (..., O)
        y = ((y + self.added(x)) * factor).to(y.dtype)
        return y if self.bias is None else y + self.bias

    @torch.no_grad()
    def whole(self) -> Tensor:
        """m W' / |W'|, (O, I), in float32 or better."""
        whole = super().whole()
        return whole * (self.lora_m / self.lengths(whole))[:, None]


def add(
    model: nn.Module,
    rank: int = 8,
    alpha: float = 16.0,
    targets: Sequence[str] = ("**.mixer.q", "**.mixer.v"),
    dropout: float = 0.0,
    dora: bool = False,
) -> dict[str, LoraLinear]:
    """Gives every linear layer at the targets an adapter and freezes all other parameters; the function stays the same.

    Args:
        model: changed in place.
        rank: width of the adapters.
        alpha: they are scaled by alpha / rank.
        targets: path patterns (see `core.rewrite.select`). `("**",)`: every linear layer; the default is the paper's
            choice, for attention; a model without q and v wants e.g. `("**.mixer.*",)`.
        dropout: on the input of the adapters, in training.
        dora: they are DoRA's.

    Returns:
        The adapted layers by path; their parameters are at `path.lora_a`, `path.lora_b` (and `path.lora_m`).

    Raises:
        ValueError: for a target without a linear layer (with the nearest paths), a rank below 1, a dropout outside
            [0, 1), or a model that has adapters already.
    """
    if rank < 1:
        raise ValueError(f"rank must be 1 or more, got {rank}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
    if old := adapters(model):
        raise ValueError(
            f"the model has {len(old)} adapters already, the first at {next(iter(old))}; call merge(model) first"
        )
    kind = DoraLinear if dora else LoraLinear

    def make(base: Any) -> LoraLinear:
        return kind(base, rank, alpha, dropout)

    made = rewrite(model, *targets, kind=(nn.Linear, Nf4Linear), make=make)
    model.requires_grad_(False)
    for adapter in made.values():
        for parameter in own(adapter).values():
            parameter.requires_grad_(True)
    return made


def merge(model: nn.Module) -> list[str]:
    """Adds every adapter to its matrix: plain `nn.Linear` modules with the same function, up to the rounding of floats.

    All parameters are trainable afterwards, as in a fresh model.

    Returns:
        The paths that were adapted.

    Raises:
        ValueError: if there is no adapter.
    """
    if not adapters(model):
        raise ValueError("the model has no adapters to merge; lora.add(model) makes them")
    plain = rewrite(model, "**", kind=LoraLinear, make=lambda adapter: adapter.merged())
    model.requires_grad_(True)
    return list(plain)


def state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters by path; empty if there is none."""
    return {f"{path}.{n}": p.detach() for path, m in adapters(model).items() for n, p in own(m).items()}


@torch.no_grad()
def load_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Loads the result of `state` into a model with the same adapters.

    Raises:
        ValueError: naming the tensor, if one is missing, left over, or of another shape; nothing has changed then.
    """
    ours = state(model)
    for name in [*(n for n in tensors if n not in ours), *(n for n in ours if n not in tensors)]:
        where = "place in the model" if name in tensors else "tensor among those given"
        raise ValueError(f"{name!r} has no {where}{nearest(name, list(ours if name in tensors else tensors))}")
    for name, tensor in tensors.items():
        if (shape := tuple(tensor.shape)) != (expected := tuple(ours[name].shape)):
            raise ValueError(f"{name!r} has shape {shape}, the model needs {expected}; was it another rank?")
    for name, tensor in tensors.items():
        ours[name].copy_(tensor)


def own(adapter: LoraLinear) -> dict[str, nn.Parameter]:
    """The trained tensors of the adapter, by name."""
    return {n: p for n, p in adapter.named_parameters(recurse=False) if n in OWN}


def adapters(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers by path; empty if there are none."""
    there = any(isinstance(m, LoraLinear) for m in model.modules())
    return select(model, "**", kind=LoraLinear) if there else {}
