"""Feed-forward parts: what a gated one keeps for backward, and that its gradients stay those of the formula."""

import pytest
import torch
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.operations import LiveTensors
from anyformer.core.recompute import recompute, remade
from anyformer.parts import GatedMLP

B, T, D, HIDDEN = 2, 8, 16, 48


def made(act="silu", dropout=0.0):
    torch.manual_seed(0)
    return GatedMLP(D, HIDDEN, act, dropout=dropout), torch.randn(B, T, D, requires_grad=True)


def slopes(y, mlp, x):
    return torch.autograd.grad((y * y.detach().cos()).sum(), [x, *mlp.parameters()])


@pytest.mark.parametrize("act", ["silu", "gelu_tanh", "relu2"])
def test_gradients_of_a_gated_mlp_are_those_of_the_formula_to_the_last_bit(act):
    mlp, x = made(act)
    plain = mlp.down(mlp.act(mlp.gate(x)) * mlp.up(x))
    y = mlp(x, Flow(torch.arange(T)))
    assert torch.equal(y, plain)
    assert all(map(torch.equal, slopes(y, mlp, x), slopes(plain, mlp, x)))
    with torch.no_grad():
        torch.testing.assert_close(mlp(x, Flow(torch.arange(T))), plain)


def test_any_view_of_what_is_remade_is_the_same_view():
    x = torch.randn(4, 6, requires_grad=True)
    y, a, b = x.exp(), torch.randn(4, 3, requires_grad=True), torch.randn(6, 2, requires_grad=True)
    with remade(y, lambda: x.detach().exp()):
        found = (y.T @ a).sum() + (y[1:3, 2:] @ b[2:]).square().sum()
    plain = (y.T @ a).sum() + (y[1:3, 2:] @ b[2:]).square().sum()
    both = [torch.autograd.grad(loss, [x, a, b], retain_graph=True) for loss in (found, plain)]
    assert all(map(torch.equal, *both))


def test_a_second_derivative_exists():
    mlp, x = made("gelu_tanh")
    mlp, x = mlp.double(), x.detach().double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: mlp(x, Flow(torch.arange(T))), x[:1, :2].detach().requires_grad_())


@pytest.mark.parametrize("dropout, kept", [(0.0, 2), (0.1, 6)], ids=["remade", "dropout"])
def test_it_keeps_two_of_four_hidden_tensors(dropout, kept):
    mlp, x = made(dropout=dropout)
    with LiveTensors() as live:
        y = mlp(x, Flow(torch.arange(T)))
    of_hidden, others = B * T * HIDDEN * 4, x.nbytes + y.nbytes + sum(p.nbytes for p in mlp.parameters())
    assert kept * of_hidden <= live.now <= kept * of_hidden + others
    F.mse_loss(y, torch.zeros_like(y)).backward()
    assert mlp.gate.weight.grad is not None


def test_made_again_as_a_whole_it_keeps_nothing():
    mlp, x = made()
    recompute(torch.nn.ModuleDict({"ffn": mlp}), "ffn")
    with LiveTensors() as live:
        y = mlp(x, Flow(torch.arange(T)))
    assert live.now < B * T * HIDDEN * 4 + x.nbytes + y.nbytes + sum(p.nbytes for p in mlp.parameters())
    plain = mlp.down(mlp.act(mlp.gate(x)) * mlp.up(x))
    assert all(map(torch.equal, slopes(y, mlp, x), slopes(plain, mlp, x)))
