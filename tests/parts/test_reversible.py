"""Reversible wiring: the gradients of the plain pass, at the memory of one layer; feed-forward parts in chunks."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import profile

from anyformer.core.flow import Flow
from anyformer.core.recipe import Recipe
from anyformer.core.taps import Taps
from anyformer.parts import MLP, Attention, LayerNorm, Learned, Logits, MoE, TopK
from anyformer.parts.approximate.lsh import LSHAttention
from anyformer.parts.reversible import ChunkedMLP, ReversibleBlock, TwoStreams
from anyformer.skeletons.reversible import Reversible, ReversibleEncoder, ReversibleLM
from tests.apart import apart
from tests.parts.mixing import made, run

LSH = LSHAttention.of(heads=2, size=4, rounds=2, buckets=4)


def recipe(mixer: Recipe = LSH, ffn: Recipe | None = None, depth: int = 3, dim: int = 12, **options: Any) -> Recipe:
    ffn = ChunkedMLP.of(hidden=2 * dim, chunk=5, dropout=options.get("dropout", 0.0)) if ffn is None else ffn
    block = ReversibleBlock.of(mixer=mixer, ffn=ffn, norm=LayerNorm.of(), **options)
    embed = TwoStreams.of(vocab=30, positions=Learned.of(context=4096))
    return ReversibleLM.of(2 * dim, embed, [block] * depth, norm=LayerNorm.of(), head=Logits.of(vocab=30))


def model(dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    return made(recipe(**options), dtype=dtype)


def batch(time: int = 18) -> dict[str, Tensor]:
    keep = torch.ones(2, time, dtype=torch.long)
    keep[1, :5] = 0
    return {"input_ids": torch.randint(30, (2, time)), "attention_mask": keep}


def slopes(model: Any, given: dict[str, Tensor]) -> list[Tensor]:
    """The gradients by all parameters of something made of the logits and all losses."""
    torch.manual_seed(7)  # of dropout and hashing
    out = model(**given)
    total = (out.logits.square() * given["attention_mask"][..., None]).sum() + 3.0 * sum(out.aux.values())
    return list(torch.autograd.grad(total, list(model.parameters()), materialize_grads=True, allow_unused=True))


def both(model: Any, given: dict[str, Tensor], patch: pytest.MonkeyPatch) -> tuple[list[Tensor], list[Tensor]]:
    """Reversed, and by the plain pass."""
    found = slopes(model, given)
    patch.setattr(Reversible, "_plainly", lambda self, flow: True)
    return found, slopes(model, given)


MIXERS: dict[str, dict[str, Any]] = {
    "lsh": {"mixer": LSH},
    "attention": {"mixer": Attention.of(heads=3)},
    "dropout": {"mixer": LSH.but(dropout=0.3), "dropout": 0.2},
    "experts": {"ffn": MoE.of(router=TopK.of(experts=3, top=1, balance=0.1, z=0.1), expert=MLP.of(hidden=16))},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MIXERS)
def test_gradients_are_those_of_the_plain_pass(name: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = model(**MIXERS[name]).train(training)
    found, expected = both(ours, batch(), monkeypatch)
    assert sum(bool(g.any()) for g in expected) > 0.8 * len(expected)  # some expert may have no token
    torch.testing.assert_close(found, expected)


def test_gradients_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve layers back and forth lose nothing that matters."""
    found, expected = both(model(torch.float32, depth=12).train(), batch(40), monkeypatch)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 5e-4 * other.norm()


def test_every_layer_is_invertible() -> None:
    block, x = made(recipe().blocks[0], 24), torch.randn(2, 4, 24, dtype=torch.float64)
    flow = Flow(torch.arange(4), causal=True)
    a, b = block(x, flow).chunk(2, -1)
    b = b - block.branch("ffn", a, flow)
    torch.testing.assert_close(torch.cat((a - block.branch("mixer", b, flow), b), -1), x)


def peak(call: Callable[[], Tensor]) -> int:
    """The most bytes that a forward and a backward pass hold at once, beyond what was there, by PyTorch's own count."""
    with profile(profile_memory=True) as found:
        call().sum().backward()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    return int(torch.tensor([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).cumsum(0).max())


@apart
def test_memory_does_not_grow_with_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer more costs its gradients and the buckets of its tokens, 4 bytes a head and round; not its activations."""
    given = {"input_ids": torch.randint(30, (2, 512))}
    options: dict[str, Any] = {"dtype": torch.float32, "dim": 16, "mixer": LSH.but(size=32, buckets=32)}

    def used_by(depth: int) -> int:
        ours = model(depth=depth, **options)
        return peak(lambda: ours(**given).logits)

    used = {depth: used_by(depth) for depth in (2, 6)}
    weights = sum(p.nbytes for p in model(depth=1, **options).blocks.parameters())
    buckets = 2 * 512 * 2 * 2 * 4
    assert used[6] - used[2] < 1.2 * 4 * (weights + buckets)
    monkeypatch.setattr(Reversible, "_plainly", lambda self, flow: True)
    plain = {depth: used_by(depth) for depth in (2, 6)}
    assert plain[6] - plain[2] > 10 * (used[6] - used[2])
    assert used[6] < plain[6] / 2


def test_weights_that_changed_before_backward_are_noticed() -> None:
    ours = model()
    total = ours(**batch()).logits.sum()
    with torch.no_grad():
        ours.blocks[0].ffn.up.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()
    given = {n: p.detach().clone().requires_grad_() for n, p in ours.named_parameters()}
    total = torch.func.functional_call(ours, given, kwargs=batch()).logits.sum()
    with pytest.raises(ValueError, match="parameters were replaced"):
        total.backward()


def test_backward_twice_gives_the_same() -> None:
    ours = model(mixer=LSH.but(dropout=0.2), dropout=0.1).train()
    total = ours(**batch()).logits.square().sum()
    one, two = (torch.autograd.grad(total, list(ours.parameters()), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_who_listens_gets_the_plain_pass() -> None:
    ours, heard = model(), []
    with Taps(ours, "blocks.*") as taps:
        out = ours(**batch())
    assert taps["blocks.1"].requires_grad and out.logits.requires_grad
    hook = ours.blocks[1].register_forward_hook(lambda module, inputs, output: heard.append(output))
    ours(**batch()).logits.sum().backward()
    hook.remove()
    assert len(heard) == 1 and heard[0].requires_grad


def test_only_trained_weights_get_gradients() -> None:
    ours = model()
    for name, parameter in ours.named_parameters():
        parameter.requires_grad_("blocks.1.mixer" in name)
    ours(**batch()).logits.sum().backward()
    assert {n for n, p in ours.named_parameters() if p.grad is not None} == {
        n for n, _ in ours.named_parameters() if "blocks.1.mixer" in n
    }


def test_chunks_of_a_feed_forward_part_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 11, 12, dtype=torch.float64, requires_grad=True)
    whole = made(ChunkedMLP.of(hidden=40))
    expected = run(whole, x)
    slope = torch.autograd.grad(expected.square().sum(), [x, *whole.parameters()])
    for chunk in (1, 4, 11, 50):
        ours = copy.deepcopy(whole)
        ours.chunk = chunk
        torch.testing.assert_close(run(ours, x), expected)
        found = torch.autograd.grad(run(ours, x).square().sum(), [x, *ours.parameters()])
        torch.testing.assert_close(found, slope)
        with torch.no_grad():
            torch.testing.assert_close(run(ours, x), expected)


def test_chunks_of_a_feed_forward_part_save_memory() -> None:
    x = torch.randn(1, 2048, 8, requires_grad=True)
    used = {}
    for chunk in (None, 64):
        part: Any = made(ChunkedMLP.of(hidden=512, chunk=chunk), 8, torch.float32)
        used[chunk] = peak(functools.partial(run, part, x))
    assert used[64] < used[None] / 8


def test_an_encoder_goes_both_ways() -> None:
    block = ReversibleBlock.of(mixer=LSH, ffn=ChunkedMLP.of(), norm=LayerNorm.of())
    heads = {"tokens": Logits.of(vocab=30)}
    encoder = made(ReversibleEncoder.of(16, TwoStreams.of(vocab=30), [block] * 2, heads=heads))
    ids = torch.randint(30, (1, 9))
    slope = torch.autograd.grad(encoder(ids).logits[0, 0].sum(), encoder.embed.tokens.weight)[0]
    assert (slope.abs().sum(1) > 0).sum() > 3


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (ChunkedMLP.of(chunk=0), "chunk, in tokens, must be at least 1"),
        (ReversibleBlock.of(mixer=LSH, ffn=MLP.of(), norm=LayerNorm.of()), "11 does not divide into two streams"),
        (TwoStreams.of(vocab=5), "TwoStreams: a width of 11"),
    ],
)
def test_what_makes_no_sense_is_named(part: Recipe, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        part.build(11)
