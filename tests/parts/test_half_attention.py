"""Attention of bfloat16 with its own backward pass: values of the fused kernel, gradients of the formula."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import anyformer as af
from anyformer.parts.attention import half
from anyformer.parts.attention.kernels import attend
from anyformer.parts.attention.masks import CAUSAL, FULL, Mask, Packed, View, Window

pytestmark = pytest.mark.skipif(not half.SUPPORTED, reason="this processor does not multiply bfloat16")
CPU = torch.device("cpu")


def drawn(heads: int, groups: int, queries: int, keys: int, width: int = 16) -> list[Tensor]:
    """q, k, v of two rows with scores of some size, and a gradient of the output."""
    noise = torch.Generator().manual_seed(queries + heads)
    sizes = ((heads, queries), (groups, keys), (groups, keys), (heads, queries))
    return [torch.randn(2, h, t, width, generator=noise).mul_(1.5).bfloat16() for h, t in sizes]


def found(tensors: list[Tensor], seen: View, kernel: str, **options: Any) -> list[Tensor]:
    """The output, and the gradients of q, k, v."""
    q, k, v, grad = (t.clone().requires_grad_() for t in tensors)
    y = attend(q, k, v, seen, kernel=kernel, **options)
    return [y.detach(), *torch.autograd.grad(y, (q, k, v), grad)]


def documents(lengths: list[int]) -> Packed:
    """Two rows, packed with documents of these lengths."""
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    places = torch.cat([torch.arange(n) for n in lengths])
    return Packed(ids.expand(2, -1), places.expand(2, -1))


def views() -> dict[str, tuple[View, int]]:
    """Views of 150 or 320 tokens, and the key heads of four heads."""
    padding = torch.arange(150) >= torch.tensor([[0], [40]])
    mine = documents([60, 80, 10])

    def view(mask: Mask, count: int, **options: Any) -> View:
        return View(mask, 0, count, 0, count, device=CPU, **options)

    return {
        "causal": (view(CAUSAL, 150), 4),
        "grouped": (view(CAUSAL, 150), 2),
        "one key head": (view(CAUSAL, 150), 1),
        "everything": (view(FULL, 150), 4),
        "padding": (view(CAUSAL, 150, keep=padding), 4),
        "documents": (view(CAUSAL, 150, mine=mine, theirs=mine), 2),
        "window": (view(CAUSAL & Window(20), 320), 4),
        "window above a block": (view(CAUSAL & Window(200), 600), 2),
        "window above the text": (view(CAUSAL & Window(149), 150), 4),
        "window and padding": (view(CAUSAL & Window(20), 320, keep=torch.arange(320) >= torch.tensor([[9], [0]])), 2),
    }


@pytest.mark.parametrize("name", views())
@pytest.mark.parametrize("scale", [None, 0.3])
def test_gradients_are_those_of_the_formula(name: str, scale: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As close to the formula in float64 as bfloat16 is; and more than one block of keys, more than one of heads."""
    seen, groups = views()[name]
    monkeypatch.setattr(half, "BLOCK", 128)
    monkeypatch.setattr(half, "PIECE", 3 * half.BLOCK * seen.count)
    taken = Mock(wraps=half.attention)
    monkeypatch.setattr(half, "attention", taken)
    tensors = drawn(4, groups, seen.count, seen.keys)
    ours = found(tensors, seen, "auto", scale=scale)
    assert taken.called
    exact = found([t.double() for t in tensors], seen, "reference", scale=scale)
    for mine, right in zip(ours, exact, strict=True):
        assert (mine.double() - right).norm() <= 0.01 * right.norm()


def test_values_are_the_fused_ones_bit_for_bit() -> None:
    q, k, v, _ = drawn(2, 2, 96, 96)
    ours = half.attention(q.requires_grad_(), k, v, None, True, None)
    assert torch.equal(ours, F.scaled_dot_product_attention(q, k, v, is_causal=True))


def test_windows_make_no_tensor_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A causal window, above and below half of the text, is read by its pieces; a window above the text is none."""
    made = Mock(side_effect=AssertionError("a mask of all pairs was made"))
    monkeypatch.setattr(View, "tensor", made)
    for left, count in ((20, 320), (200, 320), (319, 320)):
        tensors = drawn(2, 2, count, count)
        assert found(tensors, View(CAUSAL & Window(left), 0, count, 0, count, device=CPU), "auto")[0].shape[2] == count


def test_a_query_that_sees_nothing_has_no_gradient() -> None:
    q, k, v, grad = drawn(2, 2, 80, 80)
    mask = torch.ones(1, 1, 80, 80, dtype=torch.bool).tril()
    mask[..., 5, :] = False
    y = half.attention(q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), mask, False, None)
    gradients = torch.autograd.grad(y, (q, k, v), grad)
    assert not y[:, :, 5].any() and not gradients[0][:, :, 5].any()
    assert all(bool(g.isfinite().all()) and bool(g.any()) for g in gradients)


def test_large_scores_stay_finite() -> None:
    q, k, v, grad = (t * 30 for t in drawn(2, 2, 80, 80))
    y = half.attention(q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), None, True, None)
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(y, (q, k, v), grad))


def test_it_is_taken_only_where_it_holds() -> None:
    q, k, v, _ = drawn(2, 2, 64, 64)
    q.requires_grad_()
    assert half.faster(q, k, v, None, 0.0)
    assert half.faster(q, k, v, torch.ones(1, 1, 64, 64, dtype=torch.bool), 0.0)
    assert not half.faster(q, k, v, torch.zeros(1, 1, 64, 64), 0.0)  # a bias
    assert not half.faster(q, k, v, None, 0.1) and not half.faster(q.float(), k, v, None, 0.0)
    assert not half.faster(q[:, :, :9], k, v, None, 0.0) and not half.faster(q.detach(), k, v, None, 0.0)
    with torch.no_grad():
        assert not half.faster(q, k, v, None, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert half.faster(q.float(), k, v, None, 0.0)


def test_a_model_learns_the_same_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients under autocast beside those of float32: as far off as with PyTorch's backward pass."""
    ids = torch.randint(0, 128, (2, 96), generator=torch.Generator().manual_seed(0))

    def gradients(precise: bool) -> Tensor:
        model = af.build("llama", "tiny", seed=0, context=96).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            model(ids).logits.float().square().mean().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    exact, ours = gradients(True), gradients(False)
    monkeypatch.setattr(half, "faster", lambda *_: False)
    theirs = gradients(False)
    assert not torch.equal(ours, theirs)
    assert (ours - exact).norm() <= 1.2 * (theirs - exact).norm()


@pytest.mark.slow
@pytest.mark.parametrize("mask", [None, Window(20)])
def test_a_compiled_model_uses_it(mask: Mask | None) -> None:
    """Gradients of a compiled model are those of the model as it is, to rounding."""
    ids = torch.randint(0, 128, (2, 96), generator=torch.Generator().manual_seed(0))
    found = []
    for compiled in (False, True):
        model = af.build("llama", "tiny", seed=0, context=96, depth=1).train()
        model.blocks[0].mixer.mask = mask
        run = torch.compile(model, fullgraph=True) if compiled else model
        with torch.autocast("cpu", torch.bfloat16), torch.profiler.profile() as profile:
            run(ids).logits.float().square().mean().backward()
        names = {event.key for event in profile.key_averages()}
        assert not any("flash_attention_for_cpu_backward" in name for name in names)
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert (found[0] - found[1]).norm() < 0.02 * found[0].norm()
