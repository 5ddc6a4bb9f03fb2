"""Memory: segments that follow each other are one long text, and what is summarised or looked up is the papers'."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import anyformer as af
from anyformer.core.flow import Flow
from anyformer.core.mixer import start_state
from anyformer.core.recipe import Recipe
from anyformer.core.taps import Taps
from anyformer.parts import (
    Attention,
    CompressiveMemory,
    Forget,
    NearestMemory,
    Relative,
    RMSNorm,
    SegmentRecurrence,
    Window,
)
from tests.parts.mixing import flow, made, run, slopes_are_right, step_by_step

RELATIVE = [Relative.of()]
EVERY: dict[str, Recipe] = {
    "recurrence": SegmentRecurrence.of(heads=3, segment=4, memory=5, scores=RELATIVE),
    "no memory": SegmentRecurrence.of(heads=2, head_dim=5, segment=3, memory=0),
    "conv": CompressiveMemory.of(heads=3, segment=2, memory=4, compressed=3, rate=2, scores=RELATIVE),
    "mean": CompressiveMemory.of(heads=2, segment=3, memory=3, compressed=2, rate=3, way="mean", norm=RMSNorm.of()),
    "max": CompressiveMemory.of(heads=2, segment=2, memory=2, compressed=4, rate=1, way="max", scores=RELATIVE),
    "nearest": NearestMemory.of(heads=3, segment=3, memory=2, top=3, norm=RMSNorm.of()),
    "nearest, few": NearestMemory.of(heads=2, segment=4, memory=0, top=2, capacity=5, gate=False),
}
every = pytest.mark.parametrize("recipe", EVERY.values(), ids=EVERY)


def text(rows: int, time: int) -> Tensor:
    return torch.randn(rows, time, 12, dtype=torch.float64)


def parameters(mixer: Any) -> dict[str, Tensor]:
    return dict(mixer.named_parameters())


def heads_of(mixer: Any, name: str, h: Tensor) -> Tensor:
    """q, k or v, (B, n, D) -> (B, H, n, K)."""
    return getattr(mixer, name)(h).unflatten(-1, (mixer.heads, -1)).transpose(1, 2)


def read(mixer: Any, h: Tensor, before: Tensor) -> Tensor:
    """A segment (B, L, D) that reads itself and what stands before it, (B, n, D), by the formulas of the paper."""
    past, (score,) = before.shape[1], mixer.scores
    q, both = heads_of(mixer, "q", h), torch.cat((before, h), 1)
    k, v = heads_of(mixer, "k", both), heads_of(mixer, "v", both)
    i, j = torch.arange(h.shape[1])[:, None] + past, torch.arange(both.shape[1])
    angles = (i - j)[..., None] * 10000.0 ** (-torch.arange(0, 12, 2, dtype=torch.float64) / 12)  # (L, n, D / 2)
    waves = torch.cat((angles.sin(), angles.cos()), -1).float().double()  # as `Sinusoidal` rounds them
    r = score.r(waves).unflatten(-1, (mixer.heads, -1))  # (L, n, H, K)
    content = (q + score.u[:, None]) @ k.mT
    position = torch.einsum("bhik,ijhk->bhij", q + score.v[:, None], r)
    scores = (content + position) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(j > i, -math.inf).softmax(-1)
    return mixer.o((weights @ v).transpose(1, 2).flatten(2))


def test_a_row_of_segments_is_transformer_xl() -> None:
    """Algorithm of Dai et al. (2019), two layers: hidden states kept from segment to segment, without gradient."""
    layers = [made(EVERY["recurrence"]) for _ in range(2)]
    x = text(2, 14).requires_grad_()
    y = x + run(layers[0], x)
    y = y + run(layers[1], y)
    kept, rows = [x[:, :0], x[:, :0]], []
    for segment in x.split(4, 1):
        h = segment
        for n, layer in enumerate(layers):
            out = h + read(layer, h, kept[n])
            kept[n] = torch.cat((kept[n], h.detach()), 1)[:, -5:]
            h = out
        rows.append(h)
    expected = torch.cat(rows, 1)
    torch.testing.assert_close(y, expected)
    inputs, goal = [x, *(p for layer in layers for p in layer.parameters())], torch.randn_like(y)
    slopes = [torch.autograd.grad((out * goal).sum(), inputs) for out in (y, expected)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("way", ["conv", "mean", "max"])
def test_a_row_of_segments_is_the_compressive_transformer(way: str) -> None:
    """Algorithms 1 and 2 of Rae et al. (2020), one layer."""
    recipe = CompressiveMemory.of(heads=3, segment=2, memory=4, compressed=3, rate=2, way=way, scores=RELATIVE)
    mixer, x = made(recipe).train(), text(2, 18).requires_grad_()
    call = flow(18)
    y = mixer(x, call)
    memory, compressed, rows, losses = x[:, :0].detach(), x[:, :0].detach(), [], []
    for segment in x.split(2, 1):
        h = segment.detach()
        rows.append(read(mixer, segment, torch.cat((compressed, memory), 1)))
        queue = torch.cat((memory, h), 1)
        old, memory = queue[:, : max(0, queue.shape[1] - 4)], queue[:, -4:]
        if old.shape[1]:
            pairs = old.unflatten(1, (-1, 2))
            new = {"mean": pairs.mean(2), "max": pairs.amax(2)}.get(way)
            new = mixer.conv(old.mT).mT if new is None else new
            q = heads_of(mixer, "q", h)
            seen = [
                F.scaled_dot_product_attention(q, heads_of(mixer, "k", m), heads_of(mixer, "v", m)) for m in (old, new)
            ]
            losses.append((seen[0] - seen[1]).square().mean((1, 3)).sum())
            compressed = torch.cat((compressed, new.detach()), 1)[:, -3:]
    torch.testing.assert_close(y, torch.cat(rows, 1))
    names = [n for n, _ in mixer.named_parameters() if "conv" not in n]
    inputs, goal = [x, *(parameters(mixer)[n] for n in names)], torch.randn_like(y)
    slopes = [torch.autograd.grad((out * goal).sum(), inputs, retain_graph=True) for out in (y, torch.cat(rows, 1))]
    torch.testing.assert_close(*slopes)
    if way == "conv":
        torch.testing.assert_close(call.aux["compression"], torch.stack(losses).sum() / 36)
        mine, theirs = call.aux["compression"] * 36, torch.stack(losses).sum()
        slopes = [
            torch.autograd.grad(loss, list(mixer.conv.parameters()), retain_graph=True) for loss in (mine, theirs)
        ]
        torch.testing.assert_close(*slopes)


def test_the_compressor_learns_from_its_own_loss_alone() -> None:
    mixer, x, call = made(EVERY["conv"]).train(), text(2, 11).requires_grad_(), flow(11)
    y = mixer(x, call)
    for goal, own in ((y.square().sum(), False), (call.aux["compression"], True)):
        found = torch.autograd.grad(goal, [x, *mixer.parameters()], allow_unused=True, retain_graph=True)
        names = ["x", *parameters(mixer)]
        assert {n for n, g in zip(names, found, strict=True) if g is not None} == {
            n for n in names if n.startswith("conv") == own
        }
    mixer.eval()(x, call := flow(11))
    assert not call.aux  # nothing is learned, nothing is computed


def test_the_auxiliary_loss_does_not_see_padding() -> None:
    mixer, x = made(EVERY["conv"]).train(), text(2, 13)
    keep = torch.ones(2, 13, dtype=torch.bool)
    keep[1, :6] = False
    both, alone = flow(13, keep=keep), [flow(13), flow(7)]
    mixer(x, both)
    mixer(x[:1], alone[0])
    mixer(x[1:, 6:], alone[1])
    a, b = (f.aux["compression"] for f in alone)
    torch.testing.assert_close(both.aux["compression"], (13 * a + 7 * b) / 20)


@every
def test_a_state_is_the_whole(recipe: Recipe) -> None:
    mixer, x = made(recipe), text(2, 23)
    whole = run(mixer, x)
    torch.testing.assert_close(run(mixer, x[:, :10]), whole[:, :10])  # and no token sees a later one
    for pieces in ([1] * 23, [6, 1, 9, 7], [22, 1]):
        torch.testing.assert_close(step_by_step(mixer, x, pieces), whole)
        with torch.no_grad():
            torch.testing.assert_close(step_by_step(mixer, x, pieces), whole)


@every
def test_a_state_returns_and_its_rows_change_places(recipe: Recipe) -> None:
    mixer, x = made(recipe), text(3, 20)
    holder = nn.ModuleList([mixer])
    state, order = start_state([holder], 3), torch.tensor([2, 0, 2])
    with torch.no_grad():
        mixer(x[:, :9], flow(9, state=state))
        state.length = 9
        state.mark()
        mixer(text(3, 7), flow(7, first=9, state=state))
        state.length = 16
        state.trim(9)
        state.reorder(order)
        found = mixer(x[order, 9:], flow(11, first=9, state=state))
        torch.testing.assert_close(found, run(mixer, x[order])[:, 9:])


@every
def test_a_state_stays_small(recipe: Recipe) -> None:
    mixer, x = made(recipe), text(1, 1)
    state, sizes = start_state([mixer], 1), []
    with torch.no_grad():
        for t in range(96):
            mixer(x, flow(1, first=t, state=state))
            sizes.append(state.bytes())
    if recipe.part is not NearestMemory or recipe.options["capacity"] is not None:
        assert max(sizes[48:]) <= max(sizes[:48])


@every
def test_padding_and_documents_are_not_seen(recipe: Recipe) -> None:
    mixer, x = made(recipe), text(2, 17)
    for side in (slice(0, 6), slice(9, 17)):
        keep = torch.ones(2, 17, dtype=torch.bool)
        keep[1, side] = False
        both = run(mixer, x * keep[..., None], True, keep)
        torch.testing.assert_close(both[0], run(mixer, x[:1])[0])
        torch.testing.assert_close(both[1][keep[1]], run(mixer, x[1:, keep[1]])[0])
        assert run(mixer, 0 * x, True, torch.zeros_like(keep)).isfinite().all()
    ids = torch.tensor([[0] * 7 + [1] * 10, [-1] * 2 + [0] * 12 + [1] * 3])
    places = torch.tensor([[*range(7), *range(10)], [*range(2), *range(12), *range(3)]])
    together = mixer(x, Flow(places, causal=True, keep=ids >= 0, documents=ids))
    for row, first, last in ((0, 0, 7), (0, 7, 17), (1, 2, 14), (1, 14, 17)):
        torch.testing.assert_close(together[row, first:last], run(mixer, x[row : row + 1, first:last])[0])


@every
def test_learning_through_a_state_is_learning_from_a_long_row(recipe: Recipe) -> None:
    """Call by call: the same numbers, the auxiliary loss too, and the same gradients of all but keys and values."""
    mixer, x = made(recipe).train(), text(2, 24)
    whole, goal = flow(24), torch.randn(2, 24, 12, dtype=torch.float64)
    totals = [(mixer(x, whole) * goal).sum() + sum(24 * v for v in whole.aux.values())]
    state, total = start_state([mixer], 2), torch.zeros(())
    for at in range(0, 24, 12):
        call = flow(12, first=at, state=state)
        total = total + (mixer(x[:, at : at + 12], call) * goal[:, at : at + 12]).sum()
        total = total + sum(12 * v for v in call.aux.values())
    used = [
        p for n, p in mixer.named_parameters() if n.split(".")[0] not in ("conv", "k", "v") and n != "norm.k.weight"
    ]
    slopes = [torch.autograd.grad(t, used) for t in (totals[0], total)]
    torch.testing.assert_close(totals[0], total)
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("name", ["recurrence", "nearest", "nearest, few"])
def test_gradients(name: str) -> None:
    """Of a first segment, which has no memory: what memory is made of has no gradient, by intention."""
    keep = torch.ones(2, 4, dtype=torch.bool)
    keep[1, :2] = False
    mixer = made(EVERY[name].but(segment=4))
    if getattr(mixer, "gate", None) is not None:
        mixer.gate.requires_grad_(False)  # nothing is found yet
    slopes_are_right(mixer, text(2, 4) * keep[..., None], True, keep)


def test_exact_limits() -> None:
    x = text(2, 21)

    def beside(recipe: Recipe, other: Recipe) -> None:
        one, two = made(recipe), made(other)
        two.load_state_dict({n: v for n, v in one.state_dict().items() if n in two.state_dict()})
        torch.testing.assert_close(run(one, x), run(two, x))

    full = Attention.of(heads=3)
    beside(SegmentRecurrence.of(heads=3, segment=21, memory=4), full)
    beside(SegmentRecurrence.of(heads=3, segment=4, memory=21), full)
    beside(SegmentRecurrence.of(heads=3, segment=1, memory=6), full.but(mask=Window(6)))
    beside(NearestMemory.of(heads=3, segment=4, memory=2, top=99, gate=False), full)
    beside(NearestMemory.of(heads=3, segment=1, memory=2, top=99, capacity=5, gate=False), full.but(mask=Window(7)))
    longer = SegmentRecurrence.of(heads=3, segment=4, memory=8, scores=RELATIVE)
    slots: dict[str, Any] = {"heads": 3, "segment": 4, "memory": 5, "compressed": 3, "rate": 1, "scores": RELATIVE}
    beside(CompressiveMemory.of(**slots, way="mean"), longer)
    beside(CompressiveMemory.of(**slots, way="max"), longer)


def test_weights_can_be_listened_to() -> None:
    for name, sums in (("recurrence", True), ("mean", False), ("nearest", False)):
        model = af.build(af.recipe("gpt", "tiny").but({"blocks.*.mixer": EVERY[name].but(heads=2)}), seed=0)
        ids = torch.randint(0, model.embed.vocab, (2, 11))
        before = model(ids).logits
        with Taps(model, "blocks.0.mixer.weights") as taps:
            torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=0)
        w = taps["blocks.0.mixer.weights"]
        assert w.shape == (2, 2, 11, 11) and not w.triu(1).any()
        assert bool((w.sum(-1) <= 1 + 1e-5).all()) and (not sums or torch.allclose(w.sum(-1), torch.ones(())))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (SegmentRecurrence.of(segment=0), "segment must be at least 1"),
        (SegmentRecurrence.of(memory=-1), "memory at least 0"),
        (SegmentRecurrence.of(heads=5), "does not divide into 5 heads"),
        (SegmentRecurrence.of(heads=2, scores=[Forget.of()]), "scores that depend on distance"),
        (CompressiveMemory.of(heads=2, segment=4, memory=2, rate=2), "memory must be at least segment"),
        (CompressiveMemory.of(heads=2, segment=4, memory=6, rate=4), "rate divides both"),
        (CompressiveMemory.of(heads=2, compressed=0), "at least 1"),
        (CompressiveMemory.of(heads=2, way="sum"), "way must be one of"),
        (NearestMemory.of(heads=2, top=0), "at least 1"),
        (NearestMemory.of(heads=2, capacity=0), "at least 1"),
    ],
)
def test_what_makes_no_sense_is_named(recipe: Recipe, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe.build(12)


def test_an_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="SegmentRecurrence sees only earlier tokens"):
        run(made(EVERY["recurrence"]), text(1, 5), causal=False)
