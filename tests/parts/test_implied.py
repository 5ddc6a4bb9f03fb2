"""Maps that recurrences and linear attention imply: times the values they are the output, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import anyformer as af
from anyformer.core.flow import Flow
from anyformer.core.recipe import Recipe
from anyformer.core.taps import Taps
from anyformer.explain.features import Explained
from anyformer.explain.maps import attention_maps
from anyformer.explain.roles import roles
from anyformer.parts import Favor, GatedDelta, LinearAttention, Mamba, Mamba2

B, T, D = 2, 9, 16


class Held(nn.Module):
    """A mixer as a model that can be recorded."""

    taps: Any = None

    def __init__(self, mixer: nn.Module):
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor, causal: bool, keep: Tensor | None) -> Tensor:
        return self.mixer(x, Flow(torch.arange(x.shape[1]), causal=causal, keep=keep, taps=self.taps))


def _convolved(conv: nn.Conv1d, x: Tensor) -> Tensor:
    wide = F.pad(x.mT, (conv.kernel_size[0] - 1, 0))
    return F.silu(F.conv1d(wide, conv.weight, conv.bias, groups=conv.groups).mT)


def _values(m: Any, x: Tensor) -> Tensor:
    """What the mixer is linear in, (B, H, T, V)."""
    if isinstance(m, LinearAttention):
        return m.v(x).unflatten(-1, (m.heads, -1)).transpose(1, 2)
    if isinstance(m, GatedDelta):
        mixed = _convolved(m.conv, torch.cat((m.q(x), m.k(x), m.v(x)), -1))
        return mixed[..., -m.inner :].unflatten(-1, (m.heads, -1)).transpose(1, 2)
    if isinstance(m, Mamba2):
        mixed = _convolved(m.conv, m.into(x)[..., m.hidden : m.hidden + m.mixed])
        return mixed[..., : m.hidden].unflatten(-1, (m.heads, -1)).transpose(1, 2)
    return _convolved(m.conv, m.into(x)[..., : m.hidden]).mT[..., None]  # a head of width 1 for each channel


def _finished(m: Any, x: Tensor, y: Tensor) -> Tensor:
    """The output of the mixer, of y (B, H, T, V)."""
    if isinstance(m, LinearAttention):
        return m.o(y.transpose(1, 2).flatten(2))
    if isinstance(m, GatedDelta):
        return m.o(m.norm(y.transpose(1, 2)).flatten(2) * F.silu(m.gate(x)))
    if isinstance(m, Mamba2):
        return m.out(m.norm(y.transpose(1, 2).flatten(2), m.into(x)[..., : m.hidden]))
    return m.out(y[..., 0].mT * F.silu(m.into(x)[..., m.hidden :]))


@pytest.mark.parametrize(
    ("part", "causal"),
    [
        (LinearAttention.of(heads=2), True), (LinearAttention.of(heads=2), False), (Favor.of(heads=2), True),
        (Favor.of(heads=2, feature="relu"), False), (GatedDelta.of(heads=2), True), (Mamba2.of(heads=4, state=4), True),
        (Mamba2.of(heads=4, state=4, groups=2), True), (Mamba.of(state=4), True),
    ],
)  # fmt: skip
def test_the_map_times_the_values_is_the_output(part: Recipe, causal: bool) -> None:
    torch.manual_seed(0)
    model = Held(part.build(D)).double().eval()
    x = torch.randn(B, T, D, dtype=torch.float64)
    with torch.no_grad():
        plain = model(x, causal, None)
        with Taps(model, "mixer.implied", "mixer.weights") as taps:
            assert torch.equal(model(x, causal, None), plain)  # looking changes nothing
        M, m = taps["mixer.implied"], model.mixer
        torch.testing.assert_close(_finished(m, x, M @ _values(m, x)), plain)
    assert not causal or not M.triu(1).any()  # nobody sees the future
    torch.testing.assert_close(taps["mixer.weights"].sum(-1), torch.ones_like(taps["mixer.weights"][..., 0]))
    if isinstance(m, LinearAttention):  # its map is what it weighs with
        torch.testing.assert_close(taps["mixer.weights"], M)


def test_padding_has_no_weight() -> None:
    keep = torch.ones(B, T, dtype=torch.bool)
    keep[0, :3] = False
    for part in (LinearAttention.of(heads=2), GatedDelta.of(heads=2), Mamba2.of(heads=4, state=4), Mamba.of(state=4)):
        torch.manual_seed(0)
        model = Held(part.build(D)).double().eval()
        with torch.no_grad(), Taps(model, "mixer.implied") as taps:
            model(torch.randn(B, T, D, dtype=torch.float64), True, keep)
        assert not taps["mixer.implied"][0, ..., :3].any() and taps["mixer.implied"][1, ..., :3].any()


@pytest.mark.parametrize("name", ["linear", "performer", "mamba", "mamba2", "jamba"])
def test_pages_have_them_in_the_report(name: str) -> None:
    model = af.build(name, "tiny", seed=0).eval()
    call = model.complete(model.example(1, {}, torch.Generator().manual_seed(0)))
    maps, _ = attention_maps(Explained(model, call))
    assert any("(" in made.kind for made in maps)
    for made in maps:
        torch.testing.assert_close(made.weights.sum(-1), torch.ones_like(made.weights[..., 0]))
    if name in ("linear", "performer"):
        assert roles(model, call).found
