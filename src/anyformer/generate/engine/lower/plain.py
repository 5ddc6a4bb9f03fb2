"""Rules of norms, feed-forward parts, linear layers and tied heads. B batch, T time, D width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.generate.engine.lower import lowers
from anyformer.generate.engine.lower.weights import Matrices
from anyformer.parts.embeddings import Table
from anyformer.parts.ffn import GatedMLP
from anyformer.parts.heads import Logits
from anyformer.parts.norms import OneRMSNorm, RMSNorm


def rms(weight: Tensor, eps: float) -> Callable[[Tensor], Tensor]:
    """One node for y = x / sqrt(mean(x^2) + eps) * weight."""
    stored = weight.detach().float()
    return lambda x: torch.onnx.ops.symbolic(
        "RMSNormalization", (x, stored), {"axis": -1, "epsilon": eps}, dtype=x.dtype, shape=x.shape
    )


@lowers(RMSNorm)
def _rms_norm(part: Any, to: Matrices) -> dict[str, Any]:
    return {"forward": rms(part.weight, part.eps)}


@lowers(OneRMSNorm)
def _one_rms_norm(part: Any, to: Matrices) -> dict[str, Any]:
    return {"forward": rms(1 + part.weight.detach().float(), part.eps)}


@lowers(nn.Linear)
def _linear(part: Any, to: Matrices) -> dict[str, Any]:
    return {"forward": to.one(part.weight, part.bias)}


@lowers(Table)
def _unembed(part: Any, to: Matrices) -> dict[str, Any]:
    return {"unembed": to.one(part.weight, None, head=True)}


@lowers(GatedMLP)
def _gated(part: Any, to: Matrices) -> dict[str, Any]:
    """Both matrices of the input as one."""
    both = to.joined(part.gate, part.up)

    def forward(x: Tensor, flow: Flow) -> Tensor:
        gate, up = both(x)
        return part.down(part.act(gate) * up)

    return {"forward": forward}


@lowers(Logits)
def _logits(part: Any, to: Matrices) -> dict[str, Any]:
    """A head with a matrix of its own; a tied one is the table's `unembed`."""
    if part.proj is None:
        return {}
    scores = to.one(part.proj.weight, None, head=True)

    def forward(x: Tensor, flow: Flow) -> Tensor:
        y = scores(x if part.scale == 1.0 else x * part.scale)
        y = y if part.bias is None else y + part.bias
        return y if part.offset is None else y + part.offset

    return {"forward": forward}
