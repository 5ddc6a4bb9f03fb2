"""Norms. B batch, T time, D width."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.part import Part
from anyformer.parts.fused import rms_norm


class LayerNorm(Part):
    """y = (x - mean) / sqrt(var + eps) * weight + bias over the last axis (Ba et al., 2016; arXiv:1607.06450).
    Shape: (..., D)."""

    def __init__(self, dim: int, eps: float = 1e-5, bias: bool = True):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


class RMSNorm(Part):
    """y = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, 2019; arXiv:1910.07467). Shape: (..., D).

    In half precision the mean is taken in float32, as the published models were trained.
    """

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in (torch.float32, torch.float64):
            return rms_norm(x, self.weight, self.eps)
        return self.weight * F.rms_norm(x.float(), x.shape[-1:], None, self.eps).to(x.dtype)
