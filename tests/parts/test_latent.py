"""Latent attention: the paper's formula, both of its forms, exact limits, and a state that holds latents alone."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anyformer as af
from anyformer.compress import int8
from anyformer.contract import packing
from anyformer.contract.subjects import Subject
from anyformer.core.init import initialise
from anyformer.core.recipe import Recipe
from anyformer.core.state import State
from anyformer.explain.attention import attention_picture
from anyformer.parts import Attention, LatentAttention, RelativeBias, RMSNorm, Rotary, Window
from anyformer.parts.attention.scores import StackBias
from anyformer.train import lora
from tests.parts.mixing import flow, made, padded_is_alone, run, slopes_are_right, step_by_step

SMALL = LatentAttention.of(heads=3, kv_rank=5, nope_dim=4, rope_dim=2, value_dim=7)
RECIPES: dict[str, Recipe] = {
    "small": SMALL,
    "low-rank queries": SMALL.but(q_rank=6, bias=True, value_dim=3, positions=Rotary.of(pairs="adjacent")),
    "window": SMALL.but(mask=Window(3), rope_dim=4, scale=0.7),
    "no positions": SMALL.but(positions=None, rope_dim=0, norm=None),
    "one head": SMALL.but(heads=1, q_rank=2),
}
each = pytest.mark.parametrize("name", RECIPES)


def text(rows: int, time: int) -> Tensor:
    return torch.randn(rows, time, 12, dtype=torch.float64)


def definition(m: Any, x: Tensor, causal: bool) -> Tensor:
    """The formulas of the paper, head by head, for one text (T, D)."""
    c, shared = m.kv_down(x).split([m.kv_rank, m.rope_dim], -1)
    c = c if m.norm is None else m.norm["kv"](c)
    q = m.q(x if m.q_down is None else m.norm["q"](m.q_down(x))).unflatten(-1, (m.heads, -1))
    up, place = m.kv.weight.unflatten(0, (m.heads, -1)), torch.arange(len(x))
    seen = place[:, None] >= place if causal else torch.ones(len(x), len(x), dtype=torch.bool)
    if m.mask is not None:
        seen = seen & (place[:, None] - place <= m.mask.left)
    scale = (m.nope_dim + m.rope_dim) ** -0.5 if m.scale is None else m.scale
    heads = []
    for h in range(m.heads):
        k, v = c @ up[h, : m.nope_dim].T, c @ up[h, m.nope_dim :].T
        scores = q[:, h, : m.nope_dim] @ k.T
        if m.positions is not None:
            scores = scores + turned(m, q[:, h, m.nope_dim :]) @ turned(m, shared).T
        heads.append((scores * scale).masked_fill(~seen, -math.inf).softmax(-1) @ v)
    return m.o(torch.cat(heads, -1))


def turned(m: Any, x: Tensor) -> Tensor:
    """Pairs of (T, P) as complex numbers, times exp(i t theta^(-2n/P)); real parts, then imaginary ones."""
    half = x.shape[1] // 2
    a, b = (x[:, ::2], x[:, 1::2]) if m.positions.pairs == "adjacent" else (x[:, :half], x[:, half:])
    angle = torch.outer(torch.arange(len(x)).double(), 10000.0 ** (-torch.arange(half).double() / half))
    z = torch.complex(a, b) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((z.real, z.imag), -1)


@each
@pytest.mark.parametrize("causal", [True, False])
def test_is_the_definition_by_every_kernel(name: str, causal: bool) -> None:
    if name == "window" and not causal:
        return
    mixer, x = made(RECIPES[name]), text(2, 9)
    expected = torch.stack([definition(mixer, row, causal) for row in x])
    for kernel in ("auto", "reference", "sdpa", "chunked", "blockwise"):
        mixer.kernel = kernel
        torch.testing.assert_close(run(mixer, x, causal), expected, atol=1e-6, rtol=1e-6)  # angles are float32


@each
def test_any_pieces_are_the_whole_in_both_forms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, x, rng = made(RECIPES[name]), text(2, 13), random.Random(0)
    whole, plainly = run(mixer, x), LatentAttention.absorbs
    torch.testing.assert_close(run(mixer, x[:, :8]), whole[:, :8])  # and no token sees a later one
    taken: list[bool] = []

    def noted(mixer: LatentAttention, count: int, keys: int) -> bool:
        taken.append(plainly(mixer, count, keys))
        return taken[-1]

    rules: list[Callable[[LatentAttention, int, int], bool]] = [noted, lambda m, t, s: True, lambda m, t, s: False]
    for rule in rules:
        monkeypatch.setattr(LatentAttention, "absorbs", rule)
        for _ in range(6):
            cuts = sorted(rng.sample(range(1, 13), rng.choice((1, 3, 12))))
            pieces = [b - a for a, b in zip([0, *cuts], [*cuts, 13], strict=True)]
            torch.testing.assert_close(step_by_step(mixer, x, pieces), whole)
    assert True in taken and (False in taken or name == "no positions")  # whose latents are narrower than its heads


def test_the_rule_takes_the_form_with_fewer_multiplications() -> None:
    """In DeepSeek-V2 one token, and a few of them, never a first reading: where the two cost the same, counted."""
    with torch.device("meta"):
        v2 = LatentAttention(5120, heads=128, kv_rank=512, q_rank=1536, nope_dim=128, rope_dim=64)
    assert v2.absorbs(1, 2) and v2.absorbs(1, 100_000) and v2.absorbs(170, 10**9)
    assert not v2.absorbs(171, 10**9) and not any(v2.absorbs(n, n) for n in (1, 100, 10_000))
    up, few, many = 512 * 256, 2 * (512 + 64), 2 * (128 + 64)
    for count, keys in ((1, 1), (30, 60), (100, 300), (169, 5000), (171, 10**6)):
        assert v2.absorbs(count, keys) == (count * (up + keys * few) < keys * (up + count * many))


@each
def test_the_absorbed_form_has_the_same_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, x = made(RECIPES[name]), text(2, 6)
    out, given = torch.randn_like(x), [x.requires_grad_(), *mixer.parameters()]
    expected = torch.autograd.grad((run(mixer, x) * out).sum(), given)
    monkeypatch.setattr(LatentAttention, "absorbs", lambda *_: True)
    for found, plain in zip(
        torch.autograd.grad((step_by_step(mixer, x, [6]) * out).sum(), given), expected, strict=True
    ):
        torch.testing.assert_close(found, plain)


@each
def test_padding_is_not_seen_and_gradients_are_right(name: str) -> None:
    mixer, keep = made(RECIPES[name]), torch.tensor([[True] * 5, [False] * 2 + [True] * 3])
    for causal in (True, False):
        padded_is_alone(mixer, text(2, 11), causal)
        slopes_are_right(mixer, text(2, 5) * keep[..., None], causal, keep)


def as_attention(mixer: Any) -> Any:
    """Attention of full heads, its matrices the products of ours, the shared key in front of each head's own."""
    H, N, P, R = mixer.heads, mixer.nope_dim, mixer.rope_dim, mixer.kv_rank
    full = made(Attention.of(heads=H, head_dim=N + P, bias=False, positions=Rotary.of(fraction=P / (N + P))))
    up, (down, shared) = mixer.kv.weight.unflatten(0, (H, -1)), mixer.kv_down.weight.split([R, P])
    with torch.no_grad():
        q = mixer.q.weight if mixer.q_down is None else mixer.q.weight @ mixer.q_down.weight
        full.q.weight.copy_(q.unflatten(0, (H, -1)).roll(P, 1).flatten(0, 1))
        k = torch.cat((shared.expand(H, -1, -1), up[:, :N] @ down), 1)
        full.k.weight.copy_(k.flatten(0, 1))
        full.v.weight.copy_((up[:, N:] @ down).flatten(0, 1))
        full.o.weight.copy_(mixer.o.weight)
    return full


@pytest.mark.parametrize("kv_rank", [2, 12, 30])
@pytest.mark.parametrize("causal", [True, False])
def test_without_norms_it_is_attention_with_products_of_matrices(kv_rank: int, causal: bool) -> None:
    """Of any rank; a bias of the stack is added as attention adds it."""
    mixer = made(LatentAttention.of(heads=3, kv_rank=kv_rank, q_rank=7, nope_dim=4, rope_dim=4, value_dim=8, norm=None))
    full, x, bias = as_attention(mixer), text(2, 9), made(RelativeBias.of(heads=3, buckets=8, far=9))
    torch.testing.assert_close(run(mixer, x, causal), run(full, x, causal))
    shifted, theirs = flow(9, causal), flow(9, causal)
    shifted.put(StackBias(bias))
    theirs.put(StackBias(bias))
    torch.testing.assert_close(mixer(x, shifted), full(x, theirs))
    assert not torch.allclose(mixer(x, shifted), run(mixer, x, causal))


def test_with_identity_as_the_latent_it_is_multi_head_attention() -> None:
    mixer = made(LatentAttention.of(heads=3, kv_rank=12, rope_dim=0, positions=None, norm=None))
    full, x = made(Attention.of(heads=3, bias=False)), text(2, 9)
    k, v = mixer.kv.weight.unflatten(0, (3, 2, 4)).unbind(1)
    full.load_state_dict({
        "q.weight": mixer.q.weight, "k.weight": k.flatten(0, 1), "v.weight": v.flatten(0, 1), "o.weight": mixer.o.weight
    })  # fmt: skip
    with torch.no_grad():
        mixer.kv_down.weight.copy_(torch.eye(12))
    torch.testing.assert_close(run(mixer, x), run(full, x))


def test_positions() -> None:
    """Only distances count, far out too; without them the order of what came before does not; no turn is none."""
    mixer, x = made(SMALL), text(1, 7)
    for shift in (1, 1000, 100_000):
        moved = flow(7)
        moved.positions = moved.positions + shift
        torch.testing.assert_close(mixer(x, moved), run(mixer, x), atol=1e-7 * shift + 1e-6, rtol=0)  # float32 angles
    other = torch.cat((x[:, [3, 1, 5, 0, 4, 2]], x[:, 6:]), 1)
    for recipe in (RECIPES["no positions"], SMALL.but(positions=None)):
        plain = made(recipe)
        torch.testing.assert_close(run(plain, other)[:, -1], run(plain, x)[:, -1])
    assert not torch.allclose(run(mixer, other)[:, -1], run(mixer, x)[:, -1])
    still, unturned = flow(7), made(SMALL.but(positions=None))
    still.positions = 0 * still.positions
    torch.testing.assert_close(mixer(x, still), run(unturned, x))


def test_documents_of_a_row_are_kept_apart() -> None:
    for recipe in (SMALL.but(heads=4), SMALL.but(heads=4, mask=Window(4), q_rank=5)):
        subject = Subject(f"latent {hash(recipe)}", af.recipe("llama", "tiny").but({"blocks.*.mixer": recipe}))
        for seed in range(3):
            packing.packing_changes_nothing(subject, random.Random(seed))
        packing.no_gradient_between_documents(subject, random.Random(0))


def decoder(page: str, **options: Any) -> Any:
    """A page at `tiny` with latent attention in it, weights that hide nothing."""
    recipe = af.recipe(page, "tiny").but({"blocks.*.mixer": LatentAttention.of(heads=4, kv_rank=12, **options)})
    model = af.build(recipe, seed=0).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.2)
    return model


def test_the_state_is_the_latents_and_the_shared_key() -> None:
    small, full = decoder("llama"), af.build("llama", "tiny", kv_heads=4)
    held = {name: state_after(model, 1, 40).bytes() for name, model in (("small", small), ("full", full))}
    assert held == {"small": 2 * 40 * (12 + 4) * 4, "full": 2 * 40 * 2 * 32 * 4}  # layers, tokens, numbers, bytes
    near = decoder("llama", mask=Window(5))
    assert state_after(near, 20, 1).bytes() == state_after(near, 60, 1).bytes() < held["small"]
    slot = next(iter(small.start(3, length=9).slots.values()))
    assert slot.memory.shape == (1, 3, 1, 9, 16)


def state_after(model: Any, calls: int, tokens: int) -> State:
    state = model.start(1)
    with torch.no_grad():
        for _ in range(calls):
            model(torch.randint(0, 128, (1, tokens)), state=state)
    return state


@pytest.mark.parametrize("mask", [None, Window(4)], ids=["full", "window"])
def test_speculation_and_beams(mask: Window | None) -> None:
    model, ids = decoder("llama", mask=mask), torch.randint(0, 128, (3, 14))
    with torch.no_grad():
        expected = model(torch.cat((ids[[2, 0], :9], ids[[1, 1], 11:]), 1)).logits
        state = model.start(3)
        for t in range(9):
            model(ids[:, t : t + 1], state=state)
        state.mark()
        model(ids[:, 9:11], state=state)
        state.trim(9)
        state.reorder(torch.tensor([2, 0]))
        found = model(ids[[1, 1], 11:], state=state).logits
    torch.testing.assert_close(found, expected[:, 9:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("page", ["gpt", "llama"])
def test_a_page_takes_it_learns_with_it_and_generates(page: str, tmp_path: Any) -> None:
    recipe = af.recipe(page, "tiny").but({"blocks.*.mixer": LatentAttention.of(heads=4, kv_rank=12, q_rank=10)})
    model, ids = af.build(recipe, seed=0), torch.randint(0, 128, (4, 20))
    optimiser, losses = torch.optim.AdamW(model.parameters(), 1e-2), []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimiser.zero_grad(), loss.backward(), optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0], losses[::10]
    rows = [ids[0, :9].tolist(), ids[1, :3].tolist()]
    model.eval()
    for options in ({"temperature": 0.0}, {"num_beams": 3}):
        cached = model.generate(rows, max_new_tokens=12, **options)
        assert cached == model.generate(rows, max_new_tokens=12, cache=False, **options)
    model.save(tmp_path)
    again = af.load(str(tmp_path))
    assert again.recipe == recipe and torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("change", ["adapters", "int8"])
def test_what_stands_in_the_place_of_its_matrix_decodes_too(change: str) -> None:
    model, ids = decoder("llama"), torch.randint(0, 128, (2, 9))
    before = model(ids).logits
    if change == "adapters":
        for adapter in lora.add(model, rank=2, targets=("**.mixer.kv",)).values():
            nn.init.normal_(adapter.lora_b)
    else:
        int8.quantise(model, ("**.mixer.kv",))
    with torch.no_grad():
        whole, state = model.eval()(ids).logits, model.start(2)
        steps = torch.cat([model(ids[:, t : t + 1], state=state).logits for t in range(9)], 1)
    assert not torch.allclose(whole, before)
    torch.testing.assert_close(steps, whole, atol=1e-4, rtol=1e-4)


def test_weights_can_be_listened_to_in_both_forms_and_drawn(tmp_path: Any) -> None:
    model, ids = decoder("llama"), torch.randint(0, 128, (2, 9))
    with torch.no_grad():
        before = model(ids).logits
        with af.Taps(model, "blocks.0.mixer.weights") as taps:
            assert torch.equal(model(ids).logits, before)
        whole, state = taps["blocks.0.mixer.weights"], model.start(2)  # (B, H, T, S)
        model(ids[:, :8], state=state)
        with af.Taps(model, "blocks.0.mixer.weights") as taps:
            model(ids[:, 8:], state=state)
    torch.testing.assert_close(whole.sum(-1), torch.ones(2, 4, 9))
    torch.testing.assert_close(taps["blocks.0.mixer.weights"], whole[:, :, 8:], atol=1e-5, rtol=1e-4)
    assert attention_picture(model, [1, 2, 3, 4], tmp_path / "maps.png").stat().st_size > 1000


def test_half_precision_is_near() -> None:
    exact, x = made(SMALL, dtype=torch.float32), text(1, 30).float()
    half = made(SMALL, dtype=torch.bfloat16)
    for found in (run(half, x.bfloat16()), step_by_step(half, x.bfloat16(), [20] + [1] * 10)):
        assert (found.float() - run(exact, x)).norm() / run(exact, x).norm() < 0.05


def test_first_weights_and_the_papers_sizes() -> None:
    mixer = LatentAttention.of(heads=4).build(64)
    assert (mixer.kv_rank, mixer.nope_dim, mixer.rope_dim, mixer.value_dim) == (64, 16, 8, 16)
    initialise(mixer, seed=0)
    assert 0.015 < float(mixer.kv.weight.detach().std()) < 0.025
    assert mixer.norm is not None and torch.equal(mixer.norm.get_parameter("kv.weight"), torch.ones(64))
    with torch.device("meta"):
        v2 = LatentAttention(5120, heads=128, kv_rank=512, q_rank=1536, nope_dim=128, rope_dim=64)
    ranks = 5120 * 1536 + 1536 + 1536 * 128 * 192 + 5120 * (512 + 64) + 512 + 512 * 128 * 256
    assert sum(p.numel() for p in v2.parameters()) == ranks + 128 * 128 * 5120


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (LatentAttention.of(heads=5), "a width of 12 does not divide into 5 heads; give nope_dim"),
        (LatentAttention.of(heads=0), "does not divide into 0 heads"),
        (SMALL.but(kv_rank=0), "kv_rank is a width and must be at least 1; got 0"),
        (SMALL.but(q_rank=0), "q_rank is a width and must be at least 1; got 0"),
        (SMALL.but(nope_dim=0), "nope_dim is a width and must be at least 1; got 0"),
        (SMALL.but(value_dim=-1), "value_dim is a width and must be at least 1; got -1"),
        (SMALL.but(rope_dim=3), "Rotary turns pairs: 3 of 3 numbers a head cannot be paired"),
        (SMALL.but(rope_dim=0), r"rope_dim is the width that positions turn; got 0 .* rope_dim=0, positions=None"),
        (SMALL.but(rope_dim=-2, positions=None), "rope_dim is the width that positions turn; got -2"),
        (SMALL.but(kernel="fast"), "kernel must be one of 'auto'"),
        (SMALL.but(mask=~Window(0) & Window(0)), "hides every token"),
    ],
)
def test_what_makes_no_sense_is_named(recipe: Recipe, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe.build(12)


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(ValueError, match=r"no option 'kv_dim'.*did you mean"):
        LatentAttention.of(kv_dim=3)  # type: ignore[call-arg]
    assert Recipe.from_json(SMALL.to_json()) == SMALL.but(norm=RMSNorm.of())
