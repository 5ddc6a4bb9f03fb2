"""Global tokens: every way to compute them is the definition, in value and gradient; the limits; the errors.

B batch, T time, D width, H heads, K head width.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.core.flow import Flow
from anyformer.parts import MLP, Attention, Dilated, MoE, TopK, Window
from anyformer.parts.attention.global_tokens import GlobalAttention, GlobalTokens
from anyformer.parts.attention.masks import Mask
from tests.later import later


def flow(T: int, wide: Tensor | None = None, keep: Tensor | None = None, documents: Tensor | None = None) -> Flow:
    positions = torch.arange(T) if documents is None else af.core.documents.positions_in_documents(documents)
    made = Flow(positions, keep=keep, documents=documents)
    if wide is not None:
        made.put(GlobalTokens(wide))
    return made


def definition(part: GlobalAttention, x: Tensor, mask: Mask | None, flow: Flow) -> Tensor:
    """Pair by pair: q_i k_j where the mask shows it or j is global; where i is, wide.q_i wide.k_j of its whole text."""
    B, T, _ = x.shape
    index = torch.arange(T)
    text = torch.ones(B, T, T, dtype=torch.bool)
    if flow.keep is not None:
        text &= flow.keep[:, None]
    place = index.expand(B, T)
    if flow.documents is not None:
        text &= flow.documents[:, None] == flow.documents[:, :, None]
        place = flow.positions
    shown = text if mask is None else text & mask.allowed(place[:, :, None], place[:, None])
    tokens = flow.find(GlobalTokens)
    wide = torch.zeros(B, T, dtype=torch.bool) if tokens is None else tokens.mask
    shown = shown | (text & wide[:, None])  # (B, T, T)

    def by(q: Any, k: Any, v: Any, seen: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (part.heads, -1)).transpose(1, 2) for p in (q, k, v))  # (B, H, T, K)
        power = torch.where(seen[:, None], (q @ k.mT * q.shape[-1] ** -0.5).exp(), 0.0)
        total = power.sum(-1, keepdim=True)
        return (power @ v / torch.where(total > 0, total, 1.0)).transpose(1, 2).flatten(2)

    near, far = by(part.q, part.k, part.v, shown), by(part.wide["q"], part.wide["k"], part.wide["v"], text)
    return part.o(torch.where(wide[..., None], far, near))


@pytest.mark.parametrize("kernel", ["auto", "blockwise", *later("reference", "sdpa", "chunked")])
@pytest.mark.parametrize("mask", [Window(5, 5), Dilated(3, 4, 2), None], ids=str)
def test_every_kernel_is_the_definition(mask: Mask | None, kernel: str) -> None:
    noise, rng = torch.Generator().manual_seed(0), random.Random(0)
    for T in (1, 7, 300):
        part = GlobalAttention(12, heads=3, mask=mask, kernel=kernel).double()
        wide, keep = torch.rand(2, T, generator=noise) < 0.05, torch.ones(2, T, dtype=torch.bool)
        keep[0, : rng.randint(0, T // 2)] = False
        keep[1, T - rng.randint(0, T // 2) :] = False
        wide[0, -1] = True
        x = torch.randn(2, T, 12, generator=noise, dtype=torch.float64, requires_grad=True)
        documents = (torch.arange(T) * 3 // T).expand(2, T)
        for given in (flow(T), flow(T, wide), flow(T, wide & keep, keep), flow(T, wide, documents=documents)):
            found, expected = part(x, given), definition(part, x, mask, given)
            torch.testing.assert_close(found, expected)
            out = torch.randn(found.shape, generator=noise, dtype=torch.float64)
            weights = [x, *part.parameters()]
            slopes = [torch.autograd.grad((y * out).sum(), weights, allow_unused=True, materialize_grads=True)
                      for y in (found, expected)]  # fmt: skip
            for mine, wanted in zip(*slopes, strict=True):
                torch.testing.assert_close(mine, wanted)


def test_gradients_are_those_of_finite_differences() -> None:
    part = GlobalAttention(4, heads=2, mask=Window(1, 1), kernel="chunked").double()
    wide = torch.tensor([[False, False, True, False, False, False], [False] * 6])
    keep = torch.tensor([[True] * 6, [False, True, True, True, True, True]])
    x = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: part(x, flow(6, wide, keep)) * keep[..., None], x)


def test_limits() -> None:
    """Without global tokens it is `Attention`; where all are global, full attention by the projections of theirs."""
    part = GlobalAttention(12, heads=3, mask=Window(2, 2)).double()
    plain, x = Attention(12, heads=3, mask=Window(2, 2)).double(), torch.randn(2, 9, 12, dtype=torch.float64)
    plain.load_state_dict({k: v for k, v in part.state_dict().items() if not k.startswith("wide.")})
    none, all_of_them = torch.zeros(2, 9, dtype=torch.bool), torch.ones(2, 9, dtype=torch.bool)
    torch.testing.assert_close(part(x, flow(9, none)), plain(x, flow(9)))
    plain.mask = None
    plain.load_state_dict({**plain.state_dict(), **{k[5:]: v for k, v in part.state_dict().items() if "wide." in k}})
    torch.testing.assert_close(part(x, flow(9, all_of_them)), plain(x, flow(9)))


def test_a_page_takes_dilated_windows() -> None:
    recipe = af.recipe("longformer", "tiny").but({"blocks.*.mixer.mask": Dilated(2, 3, 3)})
    ids = torch.randint(128, (1, 20), generator=torch.Generator().manual_seed(0))
    far = torch.zeros(1, 20, dtype=torch.long)
    far[0, 3] = 1
    with af.Taps(model := af.build(recipe, seed=0).eval(), "blocks.0.mixer.weights") as taps:
        model(ids, global_attention_mask=far)
    seen = (taps["blocks.0.mixer.weights"][0, 0] > 0).nonzero().tolist()  # pairs
    window = {(i, i + 2 * d) for i in range(20) for d in range(-3, 4) if 0 <= i + 2 * d < 20}
    assert {(i, j) for i, j in seen} == window | {(i, 3) for i in range(20)} | {(3, j) for j in range(20)}


def test_errors() -> None:
    decoder = af.recipe("gpt", "tiny").but({"blocks.*.mixer": GlobalAttention.of(heads=4)})
    with pytest.raises(ValueError, match="it fits an Encoder"):
        af.build(decoder)(torch.zeros(1, 3, dtype=torch.long))
    model = af.build("longformer", "tiny")
    with pytest.raises(ValueError, match="global_attention_mask must be"):
        model(torch.zeros(1, 3, dtype=torch.long), global_attention_mask=torch.zeros(1, 4))
    for window in (5, 0, (4,)):
        with pytest.raises(ValueError, match="window is an even number"):
            af.build("longformer", "tiny", window=window)


def test_losses_of_parts_come_out_as_of_any_encoder():
    """A router's balance is said by an encoder with global tokens, too."""
    mixture = MoE.of(router=TopK.of(experts=4, top=2), expert=MLP.of(hidden=16))
    model = af.build(af.recipe("longformer", "tiny").but({"blocks.*.ffn": mixture}), seed=0).train()
    said = model(torch.randint(5, 100, (2, 9), generator=torch.Generator().manual_seed(0)))
    assert said.aux and all(loss > 0 for loss in said.aux.values()) and said.figures
