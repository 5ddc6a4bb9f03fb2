"""The gradient written by hand is that of the plain formula."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anyformer.parts.fused import (
    PIECE,
    SHORT,
    WIDE_PIECE,
    EluPlusOne,
    RootMeanSquare,
    apart,
    depthwise,
    elu_plus_one,
    relative_exp,
    rms_norm,
)


@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_rms_norm_has_the_right_gradient(eps):
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: RootMeanSquare.apply(x, w, eps), (x, weight))
    torch.testing.assert_close(RootMeanSquare.apply(x, weight, eps), F.rms_norm(x, (8,), weight, eps))


def test_a_second_gradient_of_rms_norm_is_an_error_and_no_wrong_number():
    x, weight = torch.randn(2, 8, requires_grad=True), torch.ones(8, requires_grad=True)
    (first,) = torch.autograd.grad(rms_norm(x, weight, 1e-6).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_without_gradients_and_strided_inputs_the_numbers_are_the_same():
    x, weight = torch.randn(2, 3, 5, 8).transpose(1, 2), torch.randn(8)
    with_grad = rms_norm(x.clone().requires_grad_(), weight, 1e-6)
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), with_grad.detach())


def test_elu_plus_one_and_its_gradient():
    x = torch.tensor([-40.0, -3.0, -0.1, 0.1, 2.0, 50.0], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(EluPlusOne.apply(x)[1:], F.elu(x)[1:] + 1)
    assert EluPlusOne.apply(x)[0] > 0 and torch.autograd.gradcheck(EluPlusOne.apply, x)
    torch.testing.assert_close(elu_plus_one(x.detach()), elu_plus_one(x).detach())


def test_elu_plus_one_in_pieces():
    x = torch.randn(2, 3, PIECE + 5, 2)
    for text in (x, x.transpose(1, 3), x[..., :1].expand_as(x)):
        torch.testing.assert_close(elu_plus_one(text), F.elu(text) + 1)


@pytest.mark.parametrize("time", [1, WIDE_PIECE - 1, WIDE_PIECE, 2 * WIDE_PIECE + 1])
@pytest.mark.parametrize("width", [1, 4, SHORT, SHORT + 1])
@pytest.mark.parametrize("has_bias", [True, False])
def test_depthwise_is_the_convolution(time, width, has_bias):
    shapes = ((2, time + width - 1, 6), (6, 1, width), (6,))
    inputs, weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    given = (inputs, weight, bias if has_bias else None)
    ours, theirs = depthwise(*given), F.conv1d(inputs.mT, weight, given[2], groups=6).mT
    torch.testing.assert_close(ours, theirs)
    leaves, slope = [t for t in given if t is not None], torch.randn_like(ours)
    torch.testing.assert_close(torch.autograd.grad(ours, leaves, slope), torch.autograd.grad(theirs, leaves, slope))


def test_exp_relative_to_the_maximum_has_the_right_value_and_gradient():
    x = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: relative_exp(x, 1e-4), x)
    y, top = relative_exp(x * 1e3, 0.5)
    torch.testing.assert_close(top[..., 0], 1e3 * x.amax(-1))
    torch.testing.assert_close(y, (1e3 * x - top).exp() + 0.5)


class Doubled(nn.Linear):
    """Not a plain linear map, though its class is made of one."""

    def forward(self, x):
        return 2 * super().forward(x)


def watched(*sizes):
    """A linear map with a hook: also not a plain one."""
    part = nn.Linear(*sizes)
    part.register_forward_hook(lambda part, given, y: 2 * y)
    return part


@pytest.mark.parametrize("make", [nn.Linear, Doubled, watched])
@pytest.mark.parametrize("wide", [torch.float32, torch.bfloat16])
def test_a_map_of_what_is_own_and_of_what_is_held(make, wide):
    part, x = make(5, 4), torch.randn(2, 3, 5, requires_grad=True)
    slopes = torch.randn(2, 2, 3, 4).unbind()
    leaves = [x, *part.parameters()]
    with torch.autocast("cpu", wide, enabled=wide != torch.float32):
        ours, theirs = apart(part, x), (part(x), part(x.detach()))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True))
    found, wanted = (
        torch.autograd.grad(sum((y * s).sum() for y, s in zip(pair, slopes, strict=True)), leaves)
        for pair in (ours, theirs)
    )
    tolerance = 1e-5 if wide == torch.float32 else 0.05  # sums are rounded in another order
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    part.requires_grad_(False)
    torch.testing.assert_close(torch.autograd.grad(apart(part, x)[0].sum(), x), torch.autograd.grad(part(x).sum(), x))
