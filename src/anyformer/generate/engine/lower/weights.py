"""Matrices in a graph: how y = W x + b is stored and computed. I inputs, O outputs, n blocks of inputs, M rows of x.

While a model is traced, a linear layer is one node `anyformer::Linear` with a number. The graph is then written with
the nodes of a form, so that one trace serves all forms:

```
Float32            y = W x
Blocks(bits)       w = s (q - z) for each block of 32 inputs, one kernel (MatMulNBits); x is rounded to 8 bits a block
Rows               w = s q for each row, q in 8 bits; x in two terms of 8 bits, x = t (a + b / 254)
```
A kernel's zero point z is a whole number, and that of a file (Q4_1: w = d q + m) is not. What z misses, m + d z, is one
number a block: `Blocks` stores it as more blocks, in 4 bits, whose inputs are the sums of x over the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

BLOCK = 32  # inputs that share a scale
MOST = {4: 7, 8: 127}  # the largest number of a symmetric code
DOMAIN, LINEAR = "anyformer", "Linear"


@dataclass(frozen=True)
class Matrix:
    """The matrices W (O, I) and biases b (O,) of one product, side by side, and whether it scores tokens."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    head: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the outputs."""
        return tuple(len(weight) for weight in self.weights)

    def weight(self) -> Tensor:
        """All rows, float32."""
        return torch.cat([weight.detach().float() for weight in self.weights])

    def bias(self) -> Tensor | None:
        """The bias of all rows, float32; None without any."""
        if all(bias is None for bias in self.biases):
            return None
        pairs = zip(self.weights, self.biases, strict=True)
        return torch.cat([torch.zeros(len(w)) if b is None else b.detach().float() for w, b in pairs])


class Matrices:
    """The matrices of a model, collected while it is traced."""

    def __init__(self) -> None:
        self.all: list[Matrix] = []

    def one(self, weight: Tensor, bias: Tensor | None, head: bool = False) -> Callable[[Tensor], Tensor]:
        """y = W x + b, (..., I) -> (..., O)."""
        product = self._add(Matrix((weight,), (bias,), head))
        return lambda x: product(x)[0]

    def joined(self, *layers: Any) -> Callable[[Tensor], Sequence[Tensor]]:
        """Linear layers of the same input as one product with several outputs."""
        return self._add(Matrix(tuple(layer.weight for layer in layers), tuple(layer.bias for layer in layers)))

    def _add(self, matrix: Matrix) -> Callable[[Tensor], Sequence[Tensor]]:
        number: list[int] = []

        def product(x: Tensor) -> Sequence[Tensor]:
            if not number:  # only what the model reaches
                number.append(len(self.all))
                self.all.append(matrix)
            return torch.onnx.ops.symbolic_multi_out(
                f"{DOMAIN}::{LINEAR}",
                (x,),
                {"matrix": number[0]},
                dtypes=[x.dtype] * len(matrix.sizes),
                shapes=[(*x.shape[:-1], size) for size in matrix.sizes],
                version=1,
            )

        return product


class Writer(Protocol):
    """A writer of nodes into a graph; a value is what it returned before, or an input of the product."""

    def node(self, kind: str, inputs: Sequence[Any], outputs: int = 1, domain: str = "", **attributes: Any) -> Any: ...

    def constant(self, value: np.ndarray) -> Any: ...


class Form:
    """The form of the matrices of a graph."""

    def write(self, to: Writer, x: Any, matrix: Matrix) -> Any:
        """The nodes of y = W x + b; returns y."""
        y, bias = self.product(to, x, matrix.weight(), matrix.head), matrix.bias()
        return y if bias is None else to.node("Add", (y, to.constant(bias.numpy())))

    def product(self, to: Writer, x: Any, weight: Tensor, head: bool) -> Any:
        """W x, for W (O, I) float32."""
        raise NotImplementedError


class Float32(Form):
    """float32, as the model is."""

    def product(self, to: Writer, x: Any, weight: Tensor, head: bool) -> Any:
        return to.node("MatMul", (x, to.constant(weight.mT.contiguous().numpy())))


class Codes(NamedTuple):
    """w = s (q - z): q (O, n, 32) whole numbers from 0, s and z (O, n)."""

    q: Tensor
    s: Tensor
    z: Tensor


class Blocks(Form):
    """Blocks of 32 inputs in 4 or 8 bits; the head in 8.

    Args:
        bits: 4, 8, or 0: 4 for a matrix that 4 bits store exactly, because it comes from such a file; else 8.
        exact: store what whole zero points miss. Without it 4 bits are another model, which a test needs.
    """

    def __init__(self, bits: int, exact: bool = True):
        self.bits, self.exact = bits, exact

    def product(self, to: Writer, x: Any, weight: Tensor, head: bool) -> Any:
        if weight.shape[1] % BLOCK:
            return Float32().product(to, x, weight, head)
        if head or self.bits == 8:
            return _multiplied(to, x, symmetric(weight, 8), 8)
        codes, missed = affine(weight)
        if not (self.bits or _exact(weight, codes, missed)):
            return _multiplied(to, x, symmetric(weight, 8), 8)
        if not self.exact or not bool(missed.any()):
            return _multiplied(to, x, codes, 4)
        count = missed.shape[1]
        missed = torch.nn.functional.pad(missed, (0, -count % BLOCK))
        more, terms = [], 2  # two terms of 4 bits: 7 bits together
        for _ in range(terms):
            more.append(symmetric(missed, 4))
            missed = missed - dequantised(more[-1])
        codes = Codes(*(torch.cat(parts, 1) for parts in zip(codes, *more, strict=True)))
        sums = np.zeros((weight.shape[1], terms * missed.shape[1]), np.float32)  # x @ sums = the sums of the blocks
        place = np.arange(weight.shape[1])
        for term in range(terms):
            sums[place, term * missed.shape[1] + place // BLOCK] = 1
        wide = to.node("Concat", (x, to.node("MatMul", (x, to.constant(sums)))), axis=-1)
        return _multiplied(to, wide, codes, 4)


class Rows(Form):
    """8 bits and one scale a row, x in two terms of 8 bits: one product of whole numbers with twice the rows.

    Processors multiply 8-bit numbers exactly by VNNI or AMX; older x86 ones add pairs of products in 16 bits, where
    127 x 255 x 2 does not fit. See `processor.exact_products`.
    """

    def product(self, to: Writer, x: Any, weight: Tensor, head: bool) -> Any:
        scale = weight.abs().amax(1).clamp(min=torch.finfo(weight.dtype).tiny) / 127  # (O,)
        q = to.constant((weight / scale[:, None]).round().to(torch.int8).mT.contiguous().numpy())  # (I, O)
        number = {n: to.constant(np.array(n, np.float32)) for n in (1.0, 127.0, 254.0, 1e-30)}
        zero = to.constant(np.array(128, np.uint8))
        rows = to.node("Reshape", (x, to.constant(np.array([-1, weight.shape[1]]))))  # (M, I)
        most = to.node("ReduceMax", (to.node("Abs", (rows,)), to.constant(np.array([-1]))), keepdims=1)
        t = to.node("Max", (to.node("Div", (most, number[127.0])), number[1e-30]))  # (M, 1)
        x_ = to.node("Div", (rows, t))
        a = to.node("Round", (x_,))
        b = to.node("Mul", (to.node("Sub", (x_, a)), number[254.0]))
        both = to.node("QuantizeLinear", (to.node("Concat", (a, b), axis=0), number[1.0], zero))  # (2 M, I)
        sums = to.node("Cast", (to.node("MatMulInteger", (both, q, zero)),), to=1)
        first, second = to.node("Split", (sums,), 2, axis=0, num_outputs=2)
        y = to.node("Add", (first, to.node("Div", (second, number[254.0]))))
        y = to.node("Mul", (to.node("Mul", (y, t)), to.constant(scale.numpy())))  # (M, O)
        lead = to.node("Slice", (to.node("Shape", (x,)), *(to.constant(np.array([n])) for n in (0, -1))))
        shape = to.node("Concat", (lead, to.constant(np.array([len(weight)]))), axis=0)
        return to.node("Reshape", (y, shape))


def symmetric(weight: Tensor, bits: int) -> Codes:
    """Codes without a zero point of their own: w = s (q - 2^(bits - 1)), by the largest |w| of each block."""
    blocks = weight.unflatten(1, (-1, BLOCK))
    most, middle = MOST[bits], 2.0 ** (bits - 1)
    s = (blocks.abs().amax(2) / most).clamp(min=1e-30)
    q = (blocks / s[..., None]).round_().clamp_(-most, most).add_(middle)
    return Codes(q, s, torch.full_like(s, middle))


def affine(weight: Tensor) -> tuple[Codes, Tensor]:
    """Codes of 4 bits with a whole zero point, and what the zero point misses of each block, (O, n).

    The numbers of a block run from its smallest weight to its largest one in 15 steps, as in Q4_1: weights that come
    from such a file are found exactly.
    """
    blocks = weight.unflatten(1, (-1, BLOCK))
    low, high = blocks.amin(2), blocks.amax(2)
    d = torch.where(high > low, (high - low) / 15, 1.0)
    q = (blocks - low[..., None]).div_(d[..., None]).round_().clamp_(0, 15)
    z = (-low / d).round().clamp(0, 15)
    return Codes(q, d, z), low + d * z


def is_affine(weight: Tensor) -> bool:
    """True if 4 bits store the weights exactly, up to the rounding of floats."""
    return _exact(weight, *affine(weight))


def _exact(weight: Tensor, codes: Codes, missed: Tensor) -> bool:
    made = (codes.q - codes.z[..., None]).mul_(codes.s[..., None]).add_(missed[..., None]).flatten(1)
    return bool(made.sub_(weight).abs_().max() <= 1e-5 * weight.abs().max())


def dequantised(codes: Codes) -> Tensor:
    """The matrix of some codes, (O, I)."""
    return (codes.s[..., None] * (codes.q - codes.z[..., None])).flatten(1)


def _packed(t: Tensor, bits: int) -> np.ndarray:
    """Whole numbers as bytes: two numbers of 4 bits in one, the first one low; the last axis is made even."""
    t = t.to(torch.uint8)
    if bits == 4:
        t = torch.nn.functional.pad(t, (0, t.shape[-1] % 2))
        t = t[..., 0::2] | (t[..., 1::2] << 4)
    return t.contiguous().numpy()


def _multiplied(to: Writer, x: Any, codes: Codes, bits: int) -> Any:
    """The product with some codes: one node."""
    outputs, count, _ = codes.q.shape
    inputs = [x, to.constant(_packed(codes.q, bits)), to.constant(codes.s.float().contiguous().numpy())]
    if bits == 4:
        inputs.append(to.constant(_packed(codes.z, bits)))  # without it, the middle
    sizes = {"K": count * BLOCK, "N": outputs, "bits": bits, "block_size": BLOCK, "accuracy_level": 4}
    return to.node("MatMulNBits", inputs, domain="com.microsoft", **sizes)
