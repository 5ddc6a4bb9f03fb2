"""Products of large matrices by oneDNN: the layer's numbers and gradients, and the layer itself wherever something else
looks on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from anyformer.core.flow import Flow
from anyformer.parts import MLP, GatedMLP
from anyformer.parts import products as held
from anyformer.parts.products import ENDS, Product, fast, fused, product

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"),
    reason="this PyTorch has no oneDNN, and PyTorch's product is used",
)


@pytest.fixture(autouse=True)
def _on_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the processor; and every matrix is large."""
    monkeypatch.setattr(held, "amd", lambda: True)
    monkeypatch.setattr(held, "LEAST", 1)
    monkeypatch.setattr(held, "ROWS", 0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3), (0,), (2, 1, 4)])
def test_it_is_the_layer(bias: bool, shape: tuple[int, ...]) -> None:
    layer, x = nn.Linear(6, 4, bias), torch.randn(*shape, 6)
    with torch.no_grad():
        assert fast(layer, x)
        torch.testing.assert_close(product(layer, x), layer(x))
        torch.testing.assert_close(product(layer, x.mT.contiguous().mT), layer(x))


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_the_layers(bias: bool) -> None:
    layer, weight = nn.Linear(6, 4, bias), torch.randn(2, 5, 4)
    x = torch.randn(2, 5, 6, requires_grad=True)
    given = [x, *layer.parameters()]
    wanted = torch.autograd.grad((layer(x) * weight).sum(), given)
    out = product(layer, x)
    assert isinstance(out.grad_fn, Product._backward_cls)  # type: ignore[attr-defined]
    for found, expected in zip(torch.autograd.grad((out * weight).sum(), given), wanted, strict=True):
        torch.testing.assert_close(found, expected)
    layer.weight.requires_grad_(False)
    (alone,) = torch.autograd.grad((product(layer, x) * weight).sum(), [x])
    torch.testing.assert_close(alone, wanted[0])


def test_rows_that_divide_badly_get_some_of_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "MANY", 3)
    layer, x = nn.Linear(6, 4), torch.randn(3, 3, 6, requires_grad=True)
    weight = torch.randn(3, 3, 4)
    wanted = torch.autograd.grad((layer(x) * weight).sum(), [x, layer.weight])
    out = product(layer, x)
    torch.testing.assert_close(out, layer(x))
    for found, expected in zip(torch.autograd.grad((out * weight).sum(), [x, layer.weight]), wanted, strict=True):
        torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(product(layer, x, "gelu"), F.gelu(layer(x)))


def test_second_derivatives_are_the_layers() -> None:
    layer, x = nn.Linear(6, 4), torch.randn(3, 6, requires_grad=True)

    def slope(of: Callable[[Any, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        (first,) = torch.autograd.grad(of(layer, x).pow(3).sum(), [x], create_graph=True)
        return torch.autograd.grad(first.square().sum(), [layer.weight])[0]

    torch.testing.assert_close(slope(product), slope(lambda layer, x: layer(x)))


@pytest.mark.parametrize("act", ["gelu", "gelu_tanh", "relu", "silu", "quick_gelu"])
@pytest.mark.parametrize("kind", [MLP, GatedMLP])
def test_a_feed_forward_part_is_the_same(kind: Any, act: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part, x = kind(8, hidden=16, act=act), torch.randn(2, 3, 8)
    flow = Flow(torch.arange(3))
    with torch.no_grad():
        assert fused(part.up, x, act) == (act in ENDS)
        one = part(x, flow)
    learned = part(x, flow)
    learned.sum().backward()
    slopes = [p.grad.clone() for p in part.parameters()]
    part.zero_grad()
    monkeypatch.setattr(held, "amd", lambda: False)
    other = part(x, flow)
    other.sum().backward()
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(learned, other)
    for slope, parameter in zip(slopes, part.parameters(), strict=True):
        torch.testing.assert_close(slope, parameter.grad)


def test_a_layer_that_is_watched_or_another_module_is_called_as_it_is() -> None:
    layer, x, seen = nn.Linear(6, 4), torch.randn(3, 6), list[int]()
    assert not fast(layer.double(), x.double()) and not fast(layer.to(torch.bfloat16), x.bfloat16())
    layer = nn.Linear(6, 4)
    assert not fast(nn.Sequential(layer), x) and not fast(layer, x.to("meta"))
    hook = layer.register_forward_hook(lambda *_: seen.append(1))
    product(layer, x)
    hook.remove()
    assert seen == [1] and fast(layer, x)
    with FlopCounterMode(display=False) as counter:
        product(layer, x)
    assert counter.get_total_flops() == 2 * 3 * 6 * 4
    with torch.autocast("cpu", torch.bfloat16):
        assert product(layer, x).dtype == torch.bfloat16
    with forward_ad.dual_level():
        out = product(layer, forward_ad.make_dual(x, torch.ones_like(x)))
        torch.testing.assert_close(forward_ad.unpack_dual(out).tangent, F.linear(torch.ones_like(x), layer.weight))
    one = torch.func.vmap(lambda row: product(layer, row))(x)
    torch.testing.assert_close(one, layer(x))
    whole = torch.func.jacrev(lambda row: product(layer, row))(x[0])
    torch.testing.assert_close(whole, layer.weight)


def test_small_matrices_and_other_processors_are_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Linear(6, 4), torch.randn(3, 6)
    monkeypatch.setattr(held, "LEAST", 25)
    assert not fast(layer, x)
    monkeypatch.setattr(held, "LEAST", 24)
    assert fast(layer, x)
    monkeypatch.setattr(held, "amd", lambda: False)
    assert not fast(layer, x)


def test_few_rows_are_the_layers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "ROWS", 32)
    layer = nn.Linear(6, 4)
    assert not fast(layer, torch.randn(31, 6)) and fast(layer, torch.randn(4, 8, 6))
