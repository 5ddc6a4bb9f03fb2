"""Keys and values in 8 bits: each number within its bound, a quarter of the memory, all that a state does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from anyformer.generate import generate
from anyformer.parts.attention.cache import KeysValues, Sliding, decoded, encoded

from .subjects import each_page, model
from .test_generate import rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_each_number_is_within_half_a_step(dtype):
    vectors = torch.randn(2, 3, 5, 24, generator=torch.Generator().manual_seed(0)).mul(9).to(dtype)
    vectors[0, 0, 0] = 0
    back = decoded(encoded(vectors), dtype)
    bound = vectors.abs().amax(-1, keepdim=True) / 254
    rounding = 1 + 2 * 127 * torch.finfo(dtype).eps if dtype in (torch.bfloat16, torch.float16) else 1 + 1e-4
    assert back.dtype == dtype and bool(((back - vectors).abs() <= bound * rounding).all())
    assert not torch.equal(back, vectors) and not back[0, 0, 0].any()


@pytest.mark.parametrize("name", each_page())
def test_a_text_read_through_it_gives_nearly_the_same_scores(name):
    m = model(name)
    row, count = rows(m)[1], 6
    if m.reads_source:
        options: dict[str, Any] = {"max_new_tokens": count, "cache": "int8"}
        assert len(generate(m, row, **options)) <= count  # a source is read once: what its state holds is tested below
        return
    plain, state = m.start(1, 16), m.start(1, 16)
    held = state.in_8_bits()
    if not held:
        with pytest.raises(ValueError, match="has none"):
            generate(m, row, max_new_tokens=2, cache="int8")
        return
    ids = torch.tensor([row])
    with torch.no_grad():
        expected = torch.cat([m(ids[:, :5], state=plain).logits, m(ids[:, 5:], state=plain).logits], 1)
        scores = torch.cat([m(ids[:, :5], state=state).logits, m(ids[:, 5:], state=state).logits], 1)
    assert 0 < float((scores - expected).norm() / expected.norm()) < 0.1
    assert state.bytes() < plain.bytes()


def test_it_is_a_quarter_of_the_memory_and_slides():
    like = torch.zeros(1)
    for make in (lambda: KeysValues(2, 3, 64, 8, like), lambda: Sliding(2, 3, 64, 8, like, left=4)):
        plain, narrow = make(), make()
        assert narrow.in_8_bits()
        assert narrow.bytes() == plain.bytes() * (64 + 4) // (4 * 64)
        with torch.no_grad():
            for step in range(20):
                new = torch.randn(2, 2, 3, 1, 64, generator=torch.Generator().manual_seed(step))
                for a, b in zip(narrow.append(*new), plain.append(*new), strict=True):
                    assert a.shape == b.shape and torch.allclose(a, b, atol=0.02)
        index = torch.tensor([1, 0, 1])
        for slot in (plain, narrow):
            slot.reorder(index)
        assert torch.allclose(narrow.v, plain.v, atol=0.02) and len(narrow.k) == 3
    with pytest.raises(ValueError, match="gradients"):
        narrow.append(*new)


@pytest.mark.parametrize("name", ["llama:", "gemma3:", "t5:", "jamba:"])
def test_rows_beams_and_guesses_go_on_with_it(name):
    m = model(name)
    options: dict[str, Any] = {"max_new_tokens": 8, "cache": "int8"}
    batch = generate(m, rows(m), **options)
    assert batch == [generate(m, row, **options) for row in rows(m)]
    assert generate(m, rows(m), **options, speculate="lookup") == batch
    assert generate(m, rows(m), **options, num_beams=2) != [[]] * 4
    with pytest.raises(ValueError, match="int8"):
        generate(m, rows(m), max_new_tokens=2, cache="int7")  # type: ignore[arg-type]
