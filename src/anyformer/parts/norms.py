"""Norms. B batch, T time, D width."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.part import Part
from anyformer.core.slots import Norm, Scale
from anyformer.parts.fused import rms_norm


class LayerNorm(Norm):
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


class RunningNorm(Part):
    """Base of the norms of a batch (Ioffe and Szegedy, 2015; arXiv:1502.03167): y = (x - mean) / sqrt(var + eps) *
    weight + bias for each channel, in training by mean and variance over the real entries of the batch, else by their
    stored running means.

    PyTorch's own takes padding for data. The statistics are those of one batch: neither accumulated batches nor other
    processes enter them.

    Args:
        eps: added to the variance.
        momentum: the share of a batch in the running means.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def reset_parameters(self) -> None:
        for tensor, value in ((self.weight, 1), (self.bias, 0), (self.running_mean, 0), (self.running_var, 1)):
            nn.init.constant_(tensor, value)

    def normed(self, x: Tensor, real: Tensor | None) -> Tensor:
        """(..., D), and which of its entries are real, (..., 1), None = all; in float32 at least -> (..., D)."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean, var = self._of_batch(wide, real) if self.training else (self.running_mean, self.running_var)
        scale = self.weight.to(wide) * (var.to(wide) + self.eps).rsqrt()
        return ((wide - mean.to(wide)) * scale + self.bias.to(wide)).to(x.dtype)

    def _of_batch(self, x: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and variance over the real entries, (D,) each; the running means follow."""
        x = x.flatten(0, -2)
        if real is None:
            mean, var, count = x.mean(0), x.var(0, correction=0), torch.tensor(len(x))
        else:
            other = ~real.reshape(-1, 1)
            count = (~other).sum().clamp(min=1)
            mean = x.masked_fill(other, 0.0).sum(0) / count
            var = (x - mean).masked_fill(other, 0.0).square().sum(0) / count
        with torch.no_grad():
            whole = var * count / (count - 1).clamp(min=1)  # without the bias of the sample
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_(whole.to(self.running_var), self.momentum)
        return mean, var


class TimeBatchNorm(RunningNorm):
    """A norm of the batch over the real positions of all rows, with the number of its batches, which files hold and
    nothing reads.

    Shape: (B, T, D), keep (B, T) or None -> (B, T, D).
    """

    num_batches_tracked: Tensor

    def __init__(self, dim: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__(dim, eps, momentum)
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.num_batches_tracked.zero_()

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        if self.training:
            self.num_batches_tracked += 1
        return self.normed(x, None if keep is None else keep[..., None])


class PlainNorm(Norm):
    """y = (x - mean) / sqrt(var + eps) over the last axis: LayerNorm without weight and bias. Shape: (..., D)."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.eps)


class OneRMSNorm(Norm):
    """y = x / sqrt(mean(x^2) + eps) * (1 + weight), in float32 at least (Gemma). Shape: (..., D)."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(dim)), eps

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return rms_norm(x.to(wide), 1 + self.weight.to(wide), self.eps).to(x.dtype)


class ScaleNorm(Norm):
    """y = g x / max(|x|, eps): one learned length instead of a weight for each channel (Nguyen and Salazar, 2019;
    arXiv:1910.05895). g is sqrt(D) at first, so that y is as long as after RMSNorm. Shape: (..., D)."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, self.dim**0.5)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        length = wide.norm(dim=-1, keepdim=True).clamp(min=self.eps)
        return self.weight * (wide / length).to(x.dtype)


class LayerScale(Scale):
    """y = weight * x with a small initial weight, at the end of a residual branch, so that a deep model begins close to
    the identity (Touvron et al., 2021; arXiv:2103.17239): `Block.of(…, scale=LayerScale.of())`. With
    start=0 it is ReZero (Bachlechner et al., 2020; arXiv:2003.04887), whose weight is one number. Shape: (..., D)."""

    def __init__(self, dim: int, start: float = 1e-5):
        super().__init__()
        self.start = start
        self.weight = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, self.start)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class StochasticDepth(Scale):
    """y = 0 for a row of the batch with probability `rate` in training, else x / (1 - rate); y = x in evaluation
    (Huang et al., 2016; arXiv:1603.09382). At the end of a residual branch, as in
    `Block.of(…, scale=StochasticDepth.of(0.1))`, it drops the branch, for each row by itself. Shape: (B, ..., D)."""

    def __init__(self, dim: int, rate: float):
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"StochasticDepth: rate is the share of dropped rows, from 0 to below 1; got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * keep / (1 - self.rate)


class Gate(Scale):
    """y = tanh(weight) x, 0 at first: the branch of a block that is added to a finished model does nothing until it has
    learned something (Alayrac et al., 2022; arXiv:2204.14198). Shape: (..., D).

    Args:
        each: a weight for each channel; else one number.
    """

    def __init__(self, dim: int, each: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim if each else 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.tanh()


class Times(Scale):
    """y = factor * x, fixed: residual multipliers (Granite, MiniCPM). Shape: (..., D)."""

    def __init__(self, dim: int, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class RMSNorm(Norm):
    """y = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, 2019; arXiv:1910.07467). Shape: (..., D).

    In half precision the mean is in float32, as in the training of the published models.
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
