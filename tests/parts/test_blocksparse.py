"""Block-sparse attention: the blocks are those of `transformers` under the same seed; every kernel is the definition.

B batch, T time, H heads, K head width.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.core.flow import Flow
from anyformer.parts import Attention
from anyformer.parts.attention.block_sparse import BlockSparse, drawn


def flow(keep: Tensor, padded: bool) -> Flow:
    return Flow((keep.long().cumsum(1) - 1).clamp(min=0), keep=keep if padded else None)


@pytest.mark.parametrize(
    ("blocks", "size", "count"),
    [(12, 64, 3), (20, 64, 3), (10, 2, 2), (8, 1, 1), (16, 64, 3), (48, 64, 3), (64, 64, 3)],
)
def test_blocks_are_those_of_transformers(blocks: int, size: int, count: int) -> None:
    """Also for texts of 1024, 3072 and 4096 tokens, which are drawn in another way."""
    from transformers import BigBirdConfig
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

    config = BigBirdConfig(hidden_size=8, num_attention_heads=4, block_size=size, num_random_blocks=count)
    theirs = BigBirdBlockSparseAttention(config).train()
    for seed in (0, 5):
        np.random.seed(seed)
        length = blocks * size
        if length in (1024, 3072, 4096):
            many = (4096, 4096, size, size, count)
            expected = [theirs._bigbird_block_rand_mask(*many, last_idx=1024)[: blocks - 2] for _ in range(4)]
        else:
            plan = theirs._get_rand_attn_plan(length, size, count)
            expected = theirs._bigbird_block_rand_mask_with_head(length, length, size, size, 4, *plan)
        found = drawn(seed, 4, blocks, size, count, 4096)
        assert torch.equal(found, torch.from_numpy(np.stack(expected)).long())


def definition(part: BlockSparse, x: Tensor, keep: Tensor) -> Tensor:
    """Block by block: a softmax over the tokens of a list of blocks, in which a block may stand more than once."""
    y = torch.zeros(*x.shape[:2], part.heads * part.head_dim, dtype=x.dtype)
    for row, real in enumerate(keep):
        at = real.nonzero()[:, 0]
        L, size = len(at), part.size
        n = -(-L // size)
        q, k, v = (p(x[row, at]).unflatten(-1, (part.heads, -1)) for p in (part.q, part.k, part.v))  # (L, H, K)
        extra = torch.zeros(part.heads, n, part.random, dtype=torch.long)
        if part.training and part.random and part.least < L:
            extra[:, 1:-1] = drawn(part.seed, part.heads, n, size, part.random, part.planned)
        for block in range(n):
            for head in range(part.heads):
                seen = list(range(n))
                if part.least < L and 0 < block < n - 1:
                    seen = sorted({0, block - 1, block, block + 1, n - 1}) + extra[head, block].tolist()
                keys = [t for b in seen for t in range(b * size, min(L, (b + 1) * size))]
                rows = range(block * size, min(L, (block + 1) * size))
                scores = q[rows, head] @ k[keys, head].T * part.head_dim**-0.5
                out = scores.softmax(-1) @ v[keys, head]
                y[row, at[rows], head * part.head_dim : (head + 1) * part.head_dim] = out
    return part.o(y)


@pytest.mark.parametrize("kernel", ["auto", "reference", "sdpa", "chunked", "blockwise"])
@pytest.mark.parametrize("training", [False, True])
def test_every_kernel_is_the_definition(kernel: str, training: bool) -> None:
    noise, rng = torch.Generator().manual_seed(0), random.Random(0)
    for size, count, T in ((1, 1, 9), (3, 2, 40), (2, 0, 13), (4, 1, 61), (4, 1, 20)):
        part = BlockSparse(12, heads=3, size=size, random=count, seed=3, kernel=kernel).double().train(training)
        keep = torch.ones(3, T, dtype=torch.bool)
        keep[1, : rng.randint(0, T // 3)] = False
        keep[2, T - rng.randint(1, T - 2) :] = False
        x = torch.randn(3, T, 12, generator=noise, dtype=torch.float64, requires_grad=True)
        for padded in (False, True):
            real = keep if padded else torch.ones_like(keep)
            found, expected = part(x, flow(real, padded))[real], definition(part, x, real)[real]
            torch.testing.assert_close(found, expected)
            out = torch.randn(found.shape, generator=noise, dtype=torch.float64)
            slopes = [torch.autograd.grad((y * out).sum(), [x, *part.parameters()]) for y in (found, expected)]
            for mine, wanted in zip(*slopes, strict=True):
                torch.testing.assert_close(mine, wanted)


def test_gradients_are_those_of_finite_differences() -> None:
    part = BlockSparse(4, heads=2, size=1, random=1, kernel="chunked").double().train()
    keep = torch.tensor([[True] * 10, [False, False] + [True] * 8])
    x = torch.randn(2, 10, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: part(x, flow(keep, True)) * keep[..., None], x)


def test_a_short_text_sees_all_of_itself() -> None:
    part, full = BlockSparse(12, heads=3, size=4, random=1), Attention(12, heads=3)
    full.load_state_dict(part.state_dict())
    for T, same in ((28, True), (29, False)):
        x, places = torch.randn(1, T, 12), Flow(torch.arange(T))
        assert torch.allclose(part(x, places), full(x, places), atol=1e-6) is same


def test_the_seed_draws_and_evaluation_does_not() -> None:
    x, places = torch.randn(1, 60, 12), Flow(torch.arange(60))
    one, other = (BlockSparse(12, heads=3, size=4, random=1, seed=s, kernel="chunked") for s in (0, 1))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.eval()(x, places), other.eval()(x, places))
    trained = [part.train()(x, Flow(torch.arange(60))) for part in (one, other, one)]
    assert torch.equal(trained[0], trained[2]) and not torch.allclose(trained[0], trained[1])


@pytest.mark.parametrize("options", [{"size": 0}, {"random": -1}])
def test_what_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="size is 1 or more, random 0 or more"):
        BlockSparse(12, heads=3, **options)


def test_it_is_no_decoder() -> None:
    with pytest.raises(ValueError, match="it fits an Encoder"):
        af.build(af.recipe("gpt", "tiny").but({"blocks.*.mixer": BlockSparse.of(heads=4)}))(torch.zeros(1, 3).long())
