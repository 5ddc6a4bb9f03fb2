"""Blockwise attention is plain attention, to the last digits, in memory that grows with the length alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from anyformer.parts import Causal, Full, Global, Window
from anyformer.parts.attention import blockwise as module
from anyformer.parts.attention.kernels import attend
from anyformer.parts.attention.masks import Mask, View


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(module, "QUERIES", 8)
    monkeypatch.setattr(module, "KEYS", 16)


def draw(heads: int, groups: int, length: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    noise = torch.Generator().manual_seed(0)
    shapes = (heads, length), (groups, length), (groups, length)
    return tuple(torch.randn(2, h, n, 8, generator=noise, dtype=dtype, requires_grad=True) for h, n in shapes)


@pytest.mark.parametrize("mask", [Full(), Causal(), Causal() & Window(9), Window(3, 3) | Global(2)], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_equals_plain_softmax_to_1e_6_in_value_and_gradient(mask: Mask, groups: int) -> None:
    keep = torch.ones(2, 61, dtype=torch.bool)
    keep[1, :40] = False  # the second row: whole blocks of padding, and queries that see nothing
    view = View(mask, 0, 61, 0, 61, keep)
    found = []
    for kernel in ("reference", "blockwise"):
        q, k, v = draw(4, groups, 61)
        y = attend(q, k, v, view, kernel=kernel)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        found.append((y, q.grad, k.grad, v.grad))
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-6)


def test_gradient_in_float64() -> None:
    q, k, v = draw(2, 1, 17, torch.float64)
    bias = torch.randn(1, 2, 17, 17, dtype=torch.float64, requires_grad=True)
    view = View(Causal(), 0, 17, 0, 17)
    assert torch.autograd.gradcheck(lambda q, k, v, bias: module.blockwise(q, k, v, view, bias), (q, k, v, bias))


def test_without_the_rescale_it_is_wrong() -> None:
    """As some texts show it: each block is divided by its own largest score, and the sums are added as they are."""
    q, k, v = (x.detach() for x in draw(4, 4, 64))
    view = View(Full(), 0, 64, 0, 64)
    right = attend(q, k, v, view, kernel="reference")
    total, a = torch.zeros(2, 4, 64, 1), torch.zeros_like(q)
    for keys, values in zip(k.split(16, 2), v.split(16, 2), strict=True):
        scores = q @ keys.mT * q.shape[-1] ** -0.5
        p = (scores - scores.amax(-1, keepdim=True)).exp()
        total, a = total + p.sum(-1, keepdim=True), a + p @ values
    wrong = float((a / total - right).norm() / right.norm())
    ours = float((attend(q, k, v, view, kernel="blockwise") - right).norm() / right.norm())
    assert wrong > 0.1  # 10 % and more of the result
    assert ours < 1e-6


MEASURE = """
import sys, torch
from anyformer.parts.attention.kernels import attend
from anyformer.parts.attention.masks import Causal, View
torch.set_num_threads(1)
def run(n):
    q, k, v = (torch.randn(1, 1, n, 8).requires_grad_() for _ in range(3))
    attend(q, k, v, View(Causal(), 0, n, 0, n), kernel=sys.argv[1]).sum().backward()
def peak():  # not ru_maxrss, which begins with what the parent process had
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
run(512)
before = peak()
run(int(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_memory_is_linear() -> None:
    """Scores of 8,192 x 8,192 pairs are 268 MB; forward and backward of the blockwise kernel need a fraction of it."""

    def grown(kernel: str, length: int) -> float:
        command = [sys.executable, "-c", MEASURE, kernel, str(length)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024

    assert grown("reference", 4096) > 128  # two tensors of all pairs at least, MB
    assert grown("blockwise", 8192) < 40


def test_has_no_dropout() -> None:
    q, k, v = draw(2, 2, 4)
    with pytest.raises(ValueError, match="has no dropout"):
        attend(q, k, v, View(Full(), 0, 4, 0, 4), dropout=0.1, kernel="blockwise")
