"""The common names of tensors and settings of encoder-decoders in files of CTranslate2, for their pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anyformer.hub.tables.config import Lens, must, quiet
from anyformer.hub.tables.weights import Op, Row, Shape, row, under


@dataclass(frozen=True)
class ZeroKeys(Op):
    """One bias of theirs, of q, k and v or of k and v, in which the keys' is 0: ours has none."""

    keys: int  # numbers of the keys' bias

    def read(self, tensors: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        sizes = [s[0] for s in shapes]
        wanted = [*sizes[:-1], self.keys, sizes[-1]]
        if tensors[0].ndim != 1 or len(tensors[0]) != sum(wanted):
            raise ValueError(f"it has {len(tensors[0])} numbers, and {' + '.join(map(str, wanted))} are expected")
        *before, keys, last = tensors[0].split(wanted)
        if bool(keys.any()):
            raise ValueError("its keys have a bias, and this page has none")
        return [*before, last]

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        *before, last = tensors
        return [torch.cat((*before, last.new_zeros(self.keys), last))]


def layers(dim: int, split: Op) -> dict[str, list[Any]]:
    """Rows of a layer of each side. `split`: the op of matrices of q, k and v in one."""

    def norm(theirs: str, ours: str) -> Row:
        return row(f"{theirs}.layer_norm", f"norm.{ours}")

    mixer = under(
        "self_attention",
        "mixer",
        row("linear_0.weight", ("q.weight", "k.weight", "v.weight"), split),
        row("linear_0.bias", ("q.bias", "v.bias"), ZeroKeys(dim)),
        row("linear_1", "o"),
    )
    cross = under(
        "attention",
        "cross",
        row("linear_0", "q"),
        row("linear_1.weight", ("k.weight", "v.weight"), split),
        row("linear_1.bias", ("v.bias",), ZeroKeys(dim)),
        row("linear_2", "o"),
    )
    ffn = [row("ffn.linear_0", "ffn.up"), row("ffn.linear_1", "ffn.down"), norm("ffn", "ffn")]
    own = [*mixer, norm("self_attention", "mixer")]
    return {"encoder": [*own, *ffn], "decoder": [*own, *cross, norm("attention", "cross"), *ffn]}


def size(theirs: str, axis: int, ours: str) -> Lens:
    """A hyperparameter that is the size of a tensor."""
    name = f"{theirs}.shape"

    def get(config: Mapping[str, Any]) -> dict[str, Any]:
        if len(config[name]) <= axis:
            raise ValueError(f"tensor {theirs!r} has the shape {tuple(config[name])}, without an axis {axis}")
        return {ours: config[name][axis]}

    return Lens((name,), (ours,), get, lambda hyper: {})


SETTINGS = (
    must("decoder.pre_norm", 1),
    must("decoder.activation", 3),  # GELU
    must("decoder.alibi", 0),
    must("decoder.scale_embeddings", 0),
    must("decoder.start_from_zero_embedding", 0),
    quiet("decoder.alibi_use_positive_positions", "decoder.scale_alibi", why="for ALiBi, which it does not have"),
    quiet("decoder.alignment_heads", "decoder.alignment_layer", why="for outputs of attention"),
)
