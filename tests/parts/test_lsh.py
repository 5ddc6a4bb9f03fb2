"""Attention inside chunks: local and LSH, beside their definitions and beside transformers' Reformer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer.core.recipe import Recipe
from anyformer.parts.approximate.lsh import LocalAttention, LSHAttention
from anyformer.parts.rows import rows
from tests.parts.mixing import flow, made, padding_is_not_read, run, slopes_are_right, step_by_step

HASHED: dict[str, Recipe] = {
    "one round": LSHAttention.of(heads=3, size=4, buckets=6, seed=1),
    "three rounds": LSHAttention.of(heads=2, size=4, rounds=3, buckets=4, seed=2),
    "factors": LSHAttention.of(heads=3, head_dim=5, size=3, rounds=2, buckets=(4, 2), before=2, seed=3, bias=True),
    "behind": LSHAttention.of(heads=2, size=5, rounds=2, buckets=4, before=1, after=1, seed=4),
    "alone": LSHAttention.of(heads=2, size=4, rounds=2, buckets=8, before=0, seed=5),
}
LOCAL: dict[str, Recipe] = {
    "one before": LocalAttention.of(heads=3, size=4),
    "two before": LocalAttention.of(heads=2, head_dim=5, size=3, before=2, bias=True),
    "alone": LocalAttention.of(heads=2, size=4, before=0),
    "behind": LocalAttention.of(heads=3, size=3, after=1),
    "filled": LocalAttention.of(heads=3, size=3, fill=6),
}
EVERY = {f"lsh, {n}": r for n, r in HASHED.items()} | {f"local, {n}": r for n, r in LOCAL.items()}
names = pytest.mark.parametrize("name", EVERY)
both = pytest.mark.parametrize("causal", [True, False])


def text(rows: int, time: int) -> Tensor:
    return torch.randn(rows, time, 12, dtype=torch.float64)


def chunks_by_hand(mixer: Any, order: list[int], place: list[int], score: Tensor, v: Tensor, causal: bool) -> Any:
    """Attention of one head of one text: `order` is the row of tokens that is cut into chunks (they may come twice)."""
    size, y, total = mixer.size, torch.zeros(len(order), v.shape[-1]).to(v), torch.zeros(len(order)).to(v)
    chunks = [list(range(i, i + size)) for i in range(0, len(order), size)]
    for n, chunk in enumerate(chunks):
        seen = [i for step in range(-mixer.before, mixer.after + 1) for i in chunks[(n + step) % len(chunks)]]
        for i in chunk:
            s = torch.full((len(seen),), -1e9).to(v)
            for j, other in enumerate(seen):
                a, b = place[order[i]], place[order[other]]
                if b < score.shape[0] and (b <= a or not causal):
                    s[j] = score[a, b] if a < score.shape[0] else 0.0
                if a == b and isinstance(mixer, LSHAttention):
                    s[j] = -1e5
            y[i], total[i] = s.softmax(0) @ v[[place[order[j]] for j in seen]], s.logsumexp(0)
    return y, total


def by_hand(mixer: LSHAttention, x: Tensor, causal: bool) -> Tensor:
    """The definition, for one text (1, T, D): sort, cut, look around, join the rounds."""
    count, size = x.shape[1], mixer.size
    filled = -(-count // size) * size
    qk, v = (p(x).unflatten(-1, (mixer.heads, -1)).transpose(1, 2)[0] for p in (mixer.qk, mixer.v))  # (H, T, K)
    bucket, out = mixer.buckets(qk[None], mixer.turn(qk))[0], []  # (H, R, T)
    for h in range(mixer.heads):
        order: list[int] = []
        for r in range(mixer.rounds):
            first = [*bucket[h, r].tolist(), *[10**9] * (filled - count)]
            order += sorted(range(filled), key=list(zip(first, range(filled), strict=True)).__getitem__)
        score = qk[h] @ (qk[h] * mixer._scale(qk[h])).T
        padded = F.pad(v[h], (0, 0, 0, filled - count))
        y, total = chunks_by_hand(mixer, order, list(range(filled)), score, padded, causal)
        joined = torch.zeros(count, v.shape[-1]).to(v)
        for t in range(count):
            at = [i for i, token in enumerate(order) if token == t]
            joined[t] = (total[at].softmax(0)[:, None] * y[at]).sum(0)
        out.append(joined)
    return mixer.o(torch.cat(out, -1))[None]


@both
@pytest.mark.parametrize("name", HASHED)
def test_lsh_is_its_definition(name: str, causal: bool) -> None:
    mixer = made(HASHED[name])
    for time in (9, 12):
        x = text(1, time)
        torch.testing.assert_close(run(mixer, x, causal), by_hand(mixer, x, causal))


@both
@names
def test_padding_is_not_seen(name: str, causal: bool) -> None:
    padding_is_not_read(made(EVERY[name]), text(3, 11), causal, [slice(0, 3), slice(8, 11), slice(2, 11)])


@both
@names
def test_gradients(name: str, causal: bool) -> None:
    keep = torch.ones(2, 10, dtype=torch.bool)
    keep[1, :3] = False
    slopes_are_right(made(EVERY[name]), text(2, 10), causal, keep)
    slopes_are_right(made(EVERY[name]), text(1, 8), causal)


@names
def test_no_value_comes_from_the_future(name: str) -> None:
    mixer, x = made(EVERY[name]), text(1, 13).requires_grad_()
    for at in (0, 5, 11):
        (slope,) = torch.autograd.grad(run(mixer, x)[0, at].square().sum(), x)
        assert slope[0, : at + 1].abs().max() > 0
        assert slope[0, at + 1 :].abs().max() == 0


def shared(mixer: LSHAttention, x: Tensor, causal: bool) -> Tensor:
    """Full attention in which a key is the query of its token, made a unit vector; nobody sees himself but who must."""
    q, v = (p(x).unflatten(-1, (mixer.heads, -1)).transpose(1, 2) for p in (mixer.qk, mixer.v))  # (B, H, T, K)
    score = q @ F.normalize(q, dim=-1).mT
    score = score + torch.eye(x.shape[1]) * -1e5
    score = score.masked_fill(torch.ones(x.shape[1], x.shape[1]).triu(1).bool(), -1e9) if causal else score
    return mixer.o((score.softmax(-1) @ v).transpose(1, 2).flatten(2))


@both
def test_lsh_of_one_chunk_is_full_attention(causal: bool) -> None:
    """Whatever the buckets: not hashed at all, or hashed and cut into one chunk a round."""
    for name, recipe in HASHED.items():
        x = text(2, 9)
        mixer = made(recipe.but(size=9))
        torch.testing.assert_close(run(mixer, x, causal), shared(mixer, x, causal), rtol=1e-5, atol=1e-5, msg=name)
        mixer = made(recipe.but(size=11))  # chunks of more than the text, filled up
        qk, v = mixer._split(mixer.qk(x)), mixer._split(mixer.v(x))
        passing = flow(9, causal)
        torch.testing.assert_close(
            mixer._hashed(qk, v, rows(passing, x), passing), mixer._unhashed(qk, qk, v, passing), msg=name
        )


@both
def test_local_attention_of_one_chunk_is_full_attention(causal: bool) -> None:
    from anyformer.parts import Attention

    mixer, full, x = made(LocalAttention.of(heads=3, size=9)), made(Attention.of(heads=3, bias=False)), text(2, 9)
    full.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(run(mixer, x, causal), run(full, x, causal))


@pytest.mark.parametrize("name", ["one before", "two before", "alone", "filled"])
def test_local_token_by_token_is_the_whole(name: str) -> None:
    mixer, x = made(LOCAL[name]), text(2, 23)
    whole = run(mixer, x)
    torch.testing.assert_close(run(mixer, x[:, :10]), whole[:, :10])
    for pieces in ([1] * 23, [7, 1, 9, 6], [4, 4, 4, 11]):
        torch.testing.assert_close(step_by_step(mixer, x, pieces), whole)


def test_lsh_token_by_token_is_the_whole_up_to_a_chunk() -> None:
    mixer, x = made(HASHED["three rounds"].but(size=9)), text(2, 10)
    for pieces in ([1] * 9, [4, 2, 3]):
        torch.testing.assert_close(step_by_step(mixer, x[:, :9], pieces), run(mixer, x[:, :9]))
    with pytest.raises(ValueError, match=r"up to size=9 tokens; got a length of 10.*cache=False"):
        step_by_step(mixer, x, [9, 1])
    with pytest.raises(ValueError, match="LSHAttention decodes step by step up to size=9 tokens; got a length of 12"):
        mixer.start(1, 12, x)


def test_buckets_are_drawn_anew_in_training_alone() -> None:
    x = text(1, 40)
    free, fixed = (made(LSHAttention.of(heads=2, size=4, buckets=8, seed=seed)) for seed in (None, 0))
    assert torch.equal(run(free, x), run(fixed, x))  # in evaluation no seed is the seed 0
    assert torch.equal(run(free, x), run(free, x))
    free.train()
    fixed.train()
    assert not torch.equal(run(free, x), run(free, x))
    assert torch.equal(run(fixed, x), run(fixed, x))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (LSHAttention.of(size=0), "at least 1"),
        (LSHAttention.of(heads=0), "at least 1"),
        (LSHAttention.of(before=-1), "at least 0"),
        (LSHAttention.of(heads=3, rounds=0), "rounds must be at least 1"),
        (LSHAttention.of(heads=3, buckets=7), "even"),
        (LSHAttention.of(heads=3, buckets=(4, 3)), "even"),
        (LSHAttention.of(heads=5), "does not divide into 5 heads"),
        (LocalAttention.of(heads=3, size=4, fill=6), "fill is a multiple of size=4; got 6"),
    ],
)
def test_what_makes_no_sense_is_named(recipe: Recipe, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe.build(12)


# ------------------------------------------------------------------------------------------------- transformers


def theirs(mixer: Any, causal: bool) -> Any:
    """Their layer with our weights; `o` is not part of it."""
    package = pytest.importorskip("transformers.models.reformer.modeling_reformer", reason="needs transformers")
    lsh = isinstance(mixer, LSHAttention)
    kind = "lsh" if lsh else "local"
    given = {f"{kind}_attn_chunk_length": mixer.size, f"{kind}_num_chunks_before": mixer.before}
    given |= {f"{kind}_num_chunks_after": mixer.after, f"{kind}_attention_probs_dropout_prob": 0.0}
    if lsh:
        buckets = mixer.factors[0] if len(mixer.factors) == 1 else list(mixer.factors)
        given |= {"num_buckets": buckets, "num_hashes": mixer.rounds, "hash_seed": mixer.seed}
    config = package.ReformerConfig(
        attn_layers=[kind], is_decoder=causal, hidden_size=12, num_attention_heads=mixer.heads,
        attention_head_size=mixer.head_dim, **given,
    )  # fmt: skip
    layer = (package.LSHSelfAttention if lsh else package.LocalSelfAttention)(config, layer_idx=0)
    pairs = {"query_key": "qk", "value": "v"} if lsh else {"query": "q", "key": "k", "value": "v"}
    layer.load_state_dict({f"{a}.weight": getattr(mixer, b).weight for a, b in pairs.items()})
    return layer.eval()


def bare(recipe: Recipe) -> Any:
    """The mixer in float32 with no `o` and no biases."""
    mixer = made(recipe.but(bias=False), dtype=torch.float32)
    mixer.o = torch.nn.Identity()
    return mixer


@pytest.mark.parametrize("name", HASHED)
def test_buckets_are_transformers(name: str) -> None:
    mixer, x = bare(HASHED[name]), text(2, 60).float()
    layer = theirs(mixer, True)
    qk = mixer._split(mixer.qk(x))  # (B, H, T, K)
    expected = layer._hash_vectors(qk, mixer.rounds, None).unflatten(2, (mixer.rounds, 60))
    many = torch.arange(mixer.rounds)[:, None] * torch.tensor(mixer.factors).prod()
    assert torch.equal(mixer.buckets(qk, mixer.turn(qk)) + many, expected)
    assert len(mixer.buckets(qk, mixer.turn(qk)).unique()) > 2


@both
@names
def test_layers_are_transformers(name: str, causal: bool) -> None:
    """On whole texts, and on texts that they fill up with padding; values and gradients.

    In float64, with the buckets of float32: in float32 they lose up to 0.4 % of a token that sees nothing but itself in
    several rounds, since exp(-1e5 - logsumexp(-1e5, …)) has three digits.
    """
    mixer = bare(EVERY[name])
    layer, step, given = theirs(mixer, causal), getattr(mixer, "fill", mixer.size), {}
    exact, mixer = copy.deepcopy(layer).double(), copy.deepcopy(mixer).double()
    for length in (2 * step, 4 * step, 3 * step - 1, 4 * step + 1):
        if causal and mixer.before * mixer.size >= length and isinstance(mixer, LocalAttention):
            continue  # they see tokens twice
        x = text(2, length).requires_grad_()
        more = -length % step
        keep = torch.cat((torch.ones(2, length), torch.zeros(2, more)), 1) if more else None
        filled = F.pad(x, (0, 0, 0, more))
        if isinstance(mixer, LSHAttention):
            qk = mixer._split(layer.query_key(filled.float()))
            given = {"buckets": layer._hash_vectors(qk, mixer.rounds, keep)}
        expected = exact(filled, attention_mask=keep, **given).hidden_states[:, :length]
        found = run(mixer, x, causal)
        torch.testing.assert_close(found, expected)
        slopes = [torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0] for y in (found, expected)]
        torch.testing.assert_close(*slopes)


def test_a_copy_hashes_alike() -> None:
    mixer, x = made(HASHED["factors"]), text(1, 20)
    assert torch.equal(run(copy.deepcopy(mixer), x), run(mixer, x))
