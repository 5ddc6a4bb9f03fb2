"""Norms and activations against their formulas, and QK-norm in attention."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import anyformer as af
from anyformer.core.recipe import Recipe
from anyformer.parts import Attention, LayerScale, RMSNorm, Rotary, ScaleNorm
from anyformer.parts.ffn import ACTIVATIONS
from tests.parts.mixing import made, run, slopes_are_right, step_by_step

QK = Attention.of(heads=4, kv_heads=2, head_dim=6, norm=RMSNorm.of(), positions=Rotary.of())


def test_scale_norm_is_a_learned_length() -> None:
    norm, x = ScaleNorm.of().build(12), torch.randn(2, 5, 12)
    torch.testing.assert_close(norm(x), 12**0.5 * x / x.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(norm(x), RMSNorm.of(eps=0.0).build(12)(x))
    torch.testing.assert_close(norm(1000 * x), norm(x))
    assert norm(0 * x).isfinite().all()
    assert sum(p.numel() for p in norm.parameters()) == 1
    assert norm.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_layer_scale_starts_as_almost_nothing() -> None:
    scale, x = LayerScale.of(start=0.01).build(12), torch.randn(2, 5, 12)
    torch.testing.assert_close(scale(x), 0.01 * x)
    assert torch.equal(scale.weight, torch.full((12,), 0.01))


@pytest.mark.parametrize("recipe", [ScaleNorm.of(), LayerScale.of(start=0.5)])
def test_gradients_of_norms(recipe: Recipe) -> None:
    norm, x = recipe.build(4).double(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, w: torch.func.functional_call(norm, {"weight": w}, (x,)), (x, norm.weight)
    )


def test_a_model_with_another_norm_everywhere() -> None:
    model = af.build(af.recipe("gpt", "tiny").but({"**.norm": ScaleNorm.of()}), seed=0)
    assert all(isinstance(m, ScaleNorm) for n, m in model.named_modules() if n.endswith(("norm.mixer", "norm.ffn")))
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_squared_relu() -> None:
    torch.testing.assert_close(ACTIVATIONS["relu2"](torch.tensor([-2.0, 0.0, 3.0])), torch.tensor([0.0, 0.0, 9.0]))


def test_qk_norm_is_a_norm_of_each_head_before_the_positions() -> None:
    mixer, x = made(QK, 12), torch.randn(2, 7, 12, dtype=torch.float64)
    plain = made(QK.but(norm=None), 12)
    plain.load_state_dict({n: v for n, v in mixer.state_dict().items() if not n.startswith("norm.")})

    class Normed(nn.Module):
        def __init__(self, linear: nn.Linear, norm: nn.Module):
            super().__init__()
            self.linear, self.norm = linear, norm

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.linear(x).unflatten(-1, (-1, 6))).flatten(-2)

    plain.q, plain.k = Normed(plain.q, mixer.norm["q"]), Normed(plain.k, mixer.norm["k"])
    torch.testing.assert_close(run(mixer, x), run(plain, x))
    torch.testing.assert_close(step_by_step(mixer, x, [3, 1, 3]), run(mixer, x))
    slopes_are_right(mixer, x[:, :5], True)


def test_qk_norm_makes_scores_independent_of_the_length_of_queries() -> None:
    mixer, x = made(QK.but(bias=False), 12), torch.randn(1, 7, 12, dtype=torch.float64)
    y = run(mixer, x)
    with torch.no_grad():
        mixer.q.weight.mul_(100)
    torch.testing.assert_close(run(mixer, x), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_under_autocast_a_norm_of_float32_is_in_float32_forwards_and_backwards(kind):
    norm, found = RMSNorm(16), []
    for cast in (False, True):
        x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with torch.autocast("cpu", kind, enabled=cast):
            y = norm(x)
        y.square().sum().backward()
        found.append((y, x.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
