"""Whole numbers for one matrix: five ways to round it to a grid.

    W_ij ≈ scale_ig (q_ij - zero_ig)        0 <= q < 2^bits        g = the group of input j

| method | needs | what it does |
|---|---|---|
| rtn | nothing | rounds to nearest; the grid of a group goes from its smallest weight to its largest |
| hqq | nothing | the zeros that make the error sparse, |W - Wq|^0.7 (Badri and Shaji, 2023) |
| gptq | inputs x | column by column; those to come make up for its error (Frantar et al., 2022; arXiv:2210.17323) |
| awq | inputs x | inputs with large values are scaled up before (Lin et al., 2023; arXiv:2306.00978; `compress.awq`) |
| signround | inputs x | learns offsets and grids from what blocks answer (Cheng et al., 2023; `compress.learned`) |

The error that counts is that of the outputs, sum_o e_o H e_o^T with e = W - Wq and H = mean x x^T. O outputs, I inputs,
G groups, g inputs of a group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

STEPS, POWER, BETA = 20, 0.7, 10.0  # of hqq: as in its authors' package, where beta does not grow
DAMP = 0.01  # of gptq: added to H's diagonal, as a share of its mean
BLOCK = 128  # columns of gptq whose errors are passed on together
LEAST = 2.0**-24  # the smallest number of float16
MOST = 65504.0  # its largest


@dataclass(frozen=True)
class Rounded:
    """A matrix on its grid. `q` (O, I) whole numbers; `scale`, `zero` (O, G), numbers that float16 holds."""

    q: Tensor
    scale: Tensor
    zero: Tensor
    group: int

    def matrix(self) -> Tensor:
        """The rounded matrix, (O, I) float32."""
        scale, zero = (
            t.float().repeat_interleave(self.group, 1)[:, : self.q.shape[1]] for t in (self.scale, self.zero)
        )
        return (self.q.float() - zero) * scale


def grid(matrix: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Scales and zeros (O, G) of grids between the `ends` of each group."""
    low, high = ends(matrix, bits, group)
    scale = ((high - low) / (2**bits - 1)).clamp(min=LEAST)
    return scale, -low / scale


def rtn(matrix: Tensor, bits: int, group: int, whole: bool = False, centred: bool = False) -> Rounded:
    """Round to nearest.

    Args:
        whole: zeros are whole numbers from 1, as the kernels and files of others have them. centred: as `centre`.
    """
    return _nearest(matrix.float(), *_halves(matrix, bits, group, whole, centred), bits, group, _least(bits, centred))


def hqq(matrix: Tensor, bits: int, group: int) -> Rounded:
    """Half-quadratic quantisation, with its scales and zeros in 16 bits."""
    scale, zero = half_quadratic(matrix.float(), bits, group)
    return _nearest(matrix.float(), _half(scale), _half(zero.clamp(-MOST, MOST)), bits, group)


def half_quadratic(matrix: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """The scales of `rtn`, and the zeros (O, G) that minimise sum |W - Wq|^p, p = 0.7.

    Each step shrinks the present errors d to e = sign(d) max(|d| - |d|^(p - 1) / beta, 0), and takes as zero the mean
    of q - (W - e) / scale, until the mean error no longer falls.
    """
    groups = grouped(matrix, group)  # (O, G, g)
    scale, zero = (t[..., None] for t in grid(matrix, bits, group))
    best = math.inf
    real = grouped(torch.ones_like(matrix[:1]), group)  # (1, G, g) without the padding
    for _ in range(STEPS):
        q = (groups / scale + zero).round().clamp(0, 2**bits - 1)
        off = groups - (q - zero) * scale
        sparse = off.sign() * (off.abs() - off.abs().clamp(min=1e-12) ** (POWER - 1) / BETA).clamp(min=0)
        zero = ((q - (groups - sparse) / scale) * real).sum(-1, keepdim=True) / real.sum(-1, keepdim=True)
        error = float((off.abs() * real).sum() / (real.sum() * len(matrix)))
        if error >= best:
            break
        best = error
    return scale[..., 0], zero[..., 0]


def gptq(
    matrix: Tensor, bits: int, group: int, products: Tensor, whole: bool = False, centred: bool = False
) -> Rounded:
    """GPTQ, on the grids of `rtn`, the columns with the largest inputs first.

    Args:
        products: H = mean x x^T of the inputs, (I, I). whole, centred: as in `rtn`.

    Raises:
        ValueError: if H has no inverse, damped or not.
    """
    w, H = matrix.double().clone(), products.double().clone()
    scale, zero = _halves(matrix, bits, group, whole, centred)
    least = _least(bits, centred)
    dead = H.diagonal() == 0  # inputs that are always 0: their weights are free
    H.diagonal()[dead] = 1
    order = H.diagonal().argsort(descending=True, stable=True)
    w, H = w[:, order], H[order][:, order]
    columns = [t.double().repeat_interleave(group, 1)[:, : w.shape[1]][:, order] for t in (scale, zero)]
    H.diagonal().add_(DAMP * H.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(H)
    if int(failed):
        raise ValueError("the products of its inputs have no inverse: calibrate with more text")
    upper = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)  # H^-1 = U^T U
    q = torch.empty_like(w)
    for start in range(0, w.shape[1], BLOCK):
        end = min(start + BLOCK, w.shape[1])
        off = torch.empty_like(w[:, start:end])
        for j in range(start, end):
            s, z = columns[0][:, j], columns[1][:, j]
            q[:, j] = (w[:, j] / s + z).round().clamp(least, 2**bits - 1)
            off[:, j - start] = (w[:, j] - (q[:, j] - z) * s) / upper[j, j]
            w[:, j + 1 : end] -= off[:, j - start, None] * upper[j, j + 1 : end]
        w[:, end:] -= off @ upper[start:end, end:]
    return Rounded(q[:, order.argsort()].to(torch.uint8), scale, zero, group)


def output_error(matrix: Tensor, rounded: Tensor, products: Tensor) -> float:
    """The mean squared error of the outputs, summed over them: sum_o e_o H e_o^T."""
    off = (matrix - rounded).double()
    return float((off @ products.double() * off).sum())


def _nearest(matrix: Tensor, scale: Tensor, zero: Tensor, bits: int, group: int, least: int = 0) -> Rounded:
    groups = grouped(matrix, group)
    q = (groups / scale[..., None] + zero[..., None]).round().clamp(least, 2**bits - 1)
    return Rounded(q.flatten(1)[:, : matrix.shape[1]].to(torch.uint8), scale, zero, group)


def grouped(matrix: Tensor, group: int) -> Tensor:
    """(O, I) -> (O, G, g), with zeros at the end."""
    return F.pad(matrix, (0, -matrix.shape[1] % group)).unflatten(1, (-1, group))


def ends(matrix: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """The smallest weight of a group, or 0, and the largest, or 0: (O, G).

    Raises:
        ValueError: for weights that are not finite, or too large for a scale of float16.
    """
    if not matrix.isfinite().all():
        raise ValueError("it holds infinities or NaN")
    groups = grouped(matrix, group)  # (O, G, g)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    if bool(((high - low) / (2**bits - 1) > MOST).any()):
        raise ValueError(f"its weights reach {float(matrix.abs().max()):.3g}, too much for a scale of 16 bits")
    return low, high


def _halves(matrix: Tensor, bits: int, group: int, whole: bool = False, centred: bool = False) -> tuple[Tensor, Tensor]:
    if centred:
        return centre(matrix.float(), bits, group)
    return stored(*ends(matrix.float(), bits, group), bits, whole)


def centre(matrix: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Scales and zeros of grids whose zero is the middle of the numbers, as in GGUF's Q8_0 and Q4_0. In 8 bits both
    ends are 127 steps away; in fewer the largest weight is the end with one step more, and the scale has its sign."""
    low, high = ends(matrix, bits, group)
    middle = 2 ** (bits - 1)
    scale = torch.maximum(high, -low) / (middle - 1) if bits == 8 else torch.where(high > -low, high, low) / -middle
    zero = torch.full_like(scale, middle)
    return _half(torch.where(scale.abs() < LEAST, LEAST, scale)), zero


def _least(bits: int, centred: bool) -> int:
    """The smallest number: kernels of 8 bits negate numbers, so that -128 is none of a centred grid."""
    return int(centred and bits == 8)


def stored(low: Tensor, high: Tensor, bits: int, whole: bool = False) -> tuple[Tensor, Tensor]:
    """Scales and zeros of grids between two ends, as they are stored, in 16 bits: the zero belongs to the rounded
    scale, or the scale to the whole zero."""
    most = 2**bits - 1
    scale = ((high - low) / most).clamp(min=LEAST)
    zero = -low / scale
    if not whole:
        half = _half(scale)
        return half, _half(zero * scale / half)
    low, high = -zero * scale, (most - zero) * scale
    zero = zero.round().clamp(1, most)
    above = torch.where(zero < most, high / (most - zero).clamp(min=1), 0.0)  # both ends stay on the grid
    return _half(torch.maximum(-low / zero, above).clamp(LEAST, MOST)), zero


def _half(values: Tensor) -> Tensor:
    """The nearest numbers of float16, as float32."""
    return values.to(torch.float16).float()
