"""Attention of the last tokens of a text: values and gradients beside the formula with a mask."""

import pytest
import torch

from anyformer.parts.attention.continued import Continued
from anyformer.parts.attention.kernels import attend
from anyformer.parts.attention.masks import CAUSAL, Full, View


@pytest.mark.parametrize(("queries", "keys", "groups"), [(5, 12, 4), (1, 9, 2), (64, 65, 1), (300, 700, 2)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_values_and_gradients_are_those_of_the_formula(queries, keys, groups, scale):
    draw = torch.Generator().manual_seed(queries)

    def random(heads, length):
        return torch.randn(2, heads, length, 8, generator=draw, dtype=torch.float64, requires_grad=True)

    q, k, v = random(4, queries), random(groups, keys), random(groups, keys)
    seen = View(CAUSAL, keys - queries, queries, 0, keys, device=torch.device("cpu"))
    found = {}
    for kernel in ("sdpa", "reference"):
        y = attend(q, k, v, seen, scale=scale, kernel=kernel)
        found[kernel] = [
            y,
            *torch.autograd.grad((y * torch.sin(torch.arange(y.numel()).view(y.shape))).sum(), (q, k, v)),
        ]
        assert ("Continued" in type(y.grad_fn).__name__) == (kernel == "sdpa")
    for ours, theirs in zip(*found.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_it_is_taken_only_where_it_holds():
    q, k = torch.randn(1, 2, 3, 4, requires_grad=True), torch.randn(1, 2, 7, 4)
    plain = View(CAUSAL, 4, 3, 0, 7, device=torch.device("cpu"))
    keep = torch.ones(1, 7, dtype=torch.bool)
    others = [View(CAUSAL, 4, 3, 0, 7, keep, torch.device("cpu")), View(Full(), 4, 3, 0, 7, device=torch.device("cpu")),
              View(CAUSAL, 2, 3, 0, 7, device=torch.device("cpu"))]  # fmt: skip
    name = Continued.__name__

    def taken(*args, **options):
        made = attend(*args, **options).grad_fn
        return made is not None and name in type(made).__name__

    assert taken(q, k, k, plain) and not any(taken(q, k, k, other) for other in others)
    assert not taken(q, k, k, plain, dropout=0.1) and not taken(q.detach(), k, k, plain)
    assert not taken(q, k, k, plain, bias=torch.zeros(1, 2, 3, 7)) and not taken(q, k, k, plain, cap=2.0)
