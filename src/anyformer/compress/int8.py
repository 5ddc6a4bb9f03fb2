"""Weights in 8 bits: each row of a matrix as whole numbers -127 … 127 and one scale.

    scale_i = max_j |W_ij| / 127        q_ij = round(W_ij / scale_i)        W_ij ≈ scale_i q_ij

Stated error: each weight is off by at most half a step, |W_ij - scale_i q_ij| <= scale_i / 2, so an output is
off by at most scale_i / 2 x sum_j |x_j|, plus the rounding of floats (`Int8Linear.bound`). Activations stay floats; no
data is needed.

    print(quantise(model))                 # int8: 210 of 210 linear layers, 538.1 MB -> 220.2 MB, weights off by …

A rewrite of the tree, for every `nn.Linear` of every model. I inputs, O outputs, V vocabulary, D width.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.pages import empty
from anyformer.core.recipe import Recipe
from anyformer.core.rewrite import rewrite, select
from anyformer.hub.formats.guard import atomic_write, inside, read_json
from anyformer.hub.formats.safetensors import open_weights, write_safetensors
from anyformer.parts.embeddings import Table

KIND = "anyformer-int8"  # model_type of models that `save` writes
BLOCK = 1 << 18  # weights that are floats at one time: 1 MB, which stays in the cache


class Int8(nn.Module):
    """A matrix in 8 bits: buffers `weight` (O, I) int8 and `scale` (O,) in the type that the weights had."""

    unsaved = "compress.int8.save writes a model with int8 parts"
    weight: Tensor
    scale: Tensor

    def __init__(self, matrix: Tensor):
        super().__init__()
        tiny = torch.finfo(matrix.dtype).tiny  # for a row of zeros
        scale = (matrix.abs().amax(1).double() / 127).to(matrix.dtype).clamp(min=tiny)  # (O,)
        rows = zip(matrix.split(_rows(matrix)), scale.split(_rows(matrix)), strict=True)
        whole = [(w.double() / s.double()[:, None]).round().clamp(-127, 127).to(torch.int8) for w, s in rows]
        self.register_buffer("weight", torch.cat(whole))
        self.register_buffer("scale", scale)

    def dequantised(self) -> Tensor:
        """The dequantised matrix, (O, I) float32."""
        return self.weight.float() * self.scale.float()[:, None]

    def product(self, x: Tensor) -> Tensor:
        """x times the matrix, (..., I) -> (..., O), a block of rows at a time: memory stays at a byte a weight."""
        x_ = x.float() if x.dtype == torch.float16 else x  # sums of 127 x can be too large for float16
        y = torch.cat([F.linear(x_, block.to(x_.dtype)) for block in self.weight.split(_rows(self.weight))], -1)
        return (y * self.scale).to(x.dtype)

    def bound(self, x: Tensor) -> Tensor:
        """The largest possible error of each product, (..., I) -> (..., O).

        scale / 2 x sum |x|, plus the rounding error of two sums of I products, each at most 127 scale |x|.
        """
        rounding = 127 * 2 * (x.shape[-1] * torch.finfo(torch.float32).eps + 2 * torch.finfo(x.dtype).eps)
        return x.abs().float().sum(-1, keepdim=True) * self.scale.float() * (0.5 + rounding)


class Int8Linear(Int8):
    """A linear layer in 8 bits; `bias` is unchanged. Gradients reach input and bias. Shape: (..., I) -> (..., O)."""

    def __init__(self, base: nn.Linear):
        super().__init__(base.weight.detach())
        self.bias = base.bias

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x)
        return y if self.bias is None else y + self.bias


class Int8Table(Int8):
    """A token table in 8 bits, also for a head that is tied to it. Shapes: ids (...) -> (..., D) -> (..., V)."""

    def __init__(self, base: Table):
        super().__init__(base.weight.detach())

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids].to(self.scale.dtype) * self.scale[ids][..., None]

    def unembed(self, x: Tensor) -> Tensor:
        """Scores of all tokens."""
        return self.product(x)


@dataclass(frozen=True)
class Coverage:
    """The report of `quantise`. Bytes are those of all parameters and buffers of the model."""

    layers: tuple[str, ...]  # paths of the linear layers that are int8 now
    of: int  # linear layers in the model
    tables: tuple[str, ...]  # paths of the token tables that are int8 now
    before: int
    after: int
    error: float  # the largest |W - Wq|
    steps: float  # the largest |W - Wq| / scale: at most 0.5

    def __str__(self) -> str:
        tables = f" and {len(self.tables)} token table" if self.tables else ""
        return (
            f"int8: {len(self.layers)} of {self.of} linear layers{tables}, {self.before / 1e6:.1f} MB -> "
            f"{self.after / 1e6:.1f} MB, weights off by at most {self.error:.2g} ({self.steps:.3f} steps)"
        )


@torch.no_grad()
def quantise(model: nn.Module, targets: Sequence[str] = ("**",), tables: bool = False) -> Coverage:
    """Quantises the linear layers at the targets to 8 bits, in place.

    Args:
        targets: path patterns (see `core.rewrite.select`); every linear layer by default.
        tables: also the token table, and with it a head that is tied to it. Such a head decides between close scores,
            so by default the table is unchanged.

    Raises:
        ValueError: for a target without a linear layer (with the nearest paths), a model without a token table, or
            weights that are not finite; nothing has changed then.
    """
    before, was = _bytes(model), dict(model.named_modules(remove_duplicate=False))
    chosen: dict[str, Any] = dict(select(model, *targets, kind=nn.Linear))
    chosen |= select(model, "**", kind=Table) if tables else {}
    for path, base in chosen.items():
        if not base.weight.isfinite().all():
            raise ValueError(f"{path}.weight holds infinities or NaN, so it has no largest value to scale by")
    made = rewrite(model, *chosen, kind=(nn.Linear, Table), make=_int8)
    off = {path: (chosen[path].weight.float() - new.dequantised()).abs().amax(1) for path, new in made.items()}  # (O,)
    return Coverage(
        tuple(p for p, new in made.items() if isinstance(new, Int8Linear)),
        sum(isinstance(m, nn.Linear | Int8Linear) for m in was.values()),
        tuple(p for p, new in made.items() if isinstance(new, Int8Table)),
        before,
        _bytes(model),
        max(float(o.max()) for o in off.values()),
        max(float((o / made[p].scale.float()).max()) for p, o in off.items()),
    )


def save(model: Any, folder: str | os.PathLike) -> None:
    """Writes a model with int8 parts: config.json with its recipe and their paths, model.safetensors with our names.

    The format is our own; `load` reads it. Each file is written under a temporary name and renamed when complete.
    """
    folder = Path(folder)
    layers = select(model, "**", kind=Int8)
    write_safetensors(folder, model.state_dict())
    if model.tokenizer is not None:
        model.tokenizer.save(folder)
    config = {"model_type": KIND, "recipe": model.recipe.to_json(), "int8": list(layers)}
    atomic_write(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())


def load(folder: str | os.PathLike) -> Any:
    """The model that `save` wrote, loaded without float copies of its int8 weights.

    Raises:
        ValueError: naming the tensors that are missing, left over, or of another shape or type.
    """
    from anyformer.hub.processors import read_processor
    from anyformer.hub.text.tokenizer import Tokenizer

    config = read_json(inside(folder, "config.json"))
    if not isinstance(config, dict) or config.get("model_type") != KIND:
        raise ValueError(f"{folder} holds no {KIND} model; anyformer.load reads other kinds")
    model = empty(Recipe.from_json(config.get("recipe")))
    rewrite(model, *config.get("int8", []), kind=(nn.Linear, Table), make=_int8)  # still on the meta device
    file, ours = open_weights(folder), model.state_dict()
    for name in sorted(set(ours) ^ set(file.names())):
        raise ValueError(f"{folder}: {name!r} {'is missing' if name in ours else 'is not in the model'}")
    for name, like in ours.items():
        dtype, shape = file.dtype(name), tuple(like.shape)
        if file.shape(name) != shape or (dtype == torch.int8) != (like.dtype == torch.int8):
            raise ValueError(f"{folder}: {name!r} is {dtype} {file.shape(name)}, expected {like.dtype} {shape}")
    model.load_state_dict({name: file.get(name) for name in ours}, assign=True)
    model.tokenizer = Tokenizer.load(folder) if Tokenizer.exists(folder) else None
    model.processor = read_processor(Path(folder))
    return model.eval()


def _int8(base: Any) -> Int8:
    return Int8Table(base) if isinstance(base, Table) else Int8Linear(base)


def _rows(matrix: Tensor) -> int:
    """The number of rows of a matrix in a block."""
    return max(1, BLOCK // matrix.shape[1])


def _bytes(model: nn.Module) -> int:
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
