"""The external memory: searched, evicted, saved, and whose it is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.contract.subjects import redrawn
from anyformer.parts import NearestMemory
from anyformer.parts.memory.nearest import Memory, load_memory, memories, nearest, save_memory


def full(capacity: int | None = None, rows: int = 2, items: int = 40, recent: int = 4) -> Memory:
    memory = Memory(rows, 3, 8, 0, torch.zeros(()), capacity, recent)
    memory.add(*torch.randn(2, rows, 3, items, 8))
    return memory


def ids(rows: int, time: int) -> Tensor:
    return torch.randint(0, 128, (rows, time))


def memorizing(**changes: Any) -> Any:
    return redrawn(af.recipe("memorizing", "tiny", **changes).build()).eval()


def test_the_nearest_are_the_nearest() -> None:
    q, k = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 20, 8)
    seen = torch.rand(2, 5, 20) < 0.3
    seen[0, 1] = False
    index, there = nearest(q, k, seen, 4)
    for b in range(2):
        for h in range(3):
            for c in range(5):
                scores = {n: float(q[b, h, c] @ k[b, h, n]) for n in range(20) if seen[b, c, n]}
                best = sorted(scores, key=scores.__getitem__, reverse=True)[:4]
                assert index[b, h, c, there[b, h, c]].tolist() == best
    assert torch.equal(nearest(q, k, seen, 99)[1].sum(-1), seen.sum(-1)[:, None].expand(-1, 3, -1))


@pytest.mark.parametrize("index", ["Flat", "HNSW32"])
def test_faiss_finds_what_looking_at_all_finds(index: str) -> None:
    pytest.importorskip("faiss", reason="needs pip install faiss-cpu")
    memory, q = full(items=300), torch.randn(2, 3, 6, 8)
    seen = torch.rand(2, 6, 250) < 0.7
    seen[:, 3:] = seen[:, :1]
    seen[0, 0] = False
    seen[0, 0, 7] = True  # fewer than are asked for
    for _ in range(2):
        memory.index = None
        expected, there = memory.search(q, 5, seen, 50)
        memory.index = index
        found, also = memory.search(q, 5, seen, 50)
        hits = (found[..., None] == expected[..., None, :]) & also[..., None] & there[..., None, :]
        share = float(hits.sum() / there.sum())
        assert share == 1.0 if index == "Flat" else share > 0.8
        assert index != "Flat" or torch.equal(also, there)
        memory.reorder(torch.tensor([1, 0]))  # the index is made anew, and goes on
        memory.trim(290)
        memory.add(*torch.randn(2, 2, 3, 10, 8))


def test_the_index_decodes_what_looking_at_all_decodes() -> None:
    pytest.importorskip("faiss", reason="needs pip install faiss-cpu")
    model, text = memorizing(), ids(2, 26)
    keep = torch.ones(2, 26, dtype=torch.bool)
    keep[1, :7] = False
    with torch.no_grad():
        whole, state = model(text, attention_mask=keep).logits, model.start(2)
        for memory in memories(model, state).values():
            memory.index = "Flat"
        for at in range(0, 26, 2):
            found = model(text[:, at : at + 2], attention_mask=keep[:, at : at + 2], state=state).logits
            rows = keep[:, at : at + 2]
            torch.testing.assert_close(found[rows], whole[:, at : at + 2][rows], rtol=1e-4, atol=1e-4)


def test_without_faiss_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    memory = full()
    memory.index = "Flat"
    with pytest.raises(ValueError, match="pip install faiss-cpu"):
        memory.search(torch.randn(2, 3, 1, 8), 2, torch.ones(2, 1, 40, dtype=torch.bool), 0)


@torch.no_grad()
def test_the_oldest_make_place() -> None:
    memory = full(capacity=10, items=1)
    for _ in range(200):
        memory.add(*torch.randn(2, 2, 3, 1, 8))
        assert memory.length <= 2 * (10 + 4) + 1
    bytes_then = memory.bytes()
    last = memory.k[:, :, -5:].clone()
    memory.evict(memory.length - 5)
    assert memory.length == 5 and torch.equal(memory.k, last)
    memory.evict(99)
    assert memory.length == 4  # segments still see these
    assert memory.bytes() == bytes_then


def test_what_was_forgotten_is_not_found() -> None:
    """After `evict` a text goes on as with a smaller memory: as if its old part had never been looked up."""
    model, text = memorizing(capacity=None, segment=3, memory=0, place=0, depth=1), ids(1, 12)
    with torch.no_grad():
        state = model.start(1)
        model(text[:, :9], state=state)
        for memory in memories(model, state).values():
            memory.evict(9)
        found = model(text[:, 9:], state=state).logits
        (mixer,) = (m for m in model.modules() if isinstance(m, NearestMemory))
        mixer.capacity = mixer.reach  # segments of three: what is left are the last two tokens of the one before
        expected = model(text).logits[:, 9:]
    torch.testing.assert_close(found, expected)


def test_a_book_is_saved_and_looked_up_by_another_text(tmp_path: Path) -> None:
    model, book, text = memorizing(capacity=None), ids(2, 30), ids(2, 8)
    keep = torch.ones(2, 30, dtype=torch.bool)
    keep[1, :11] = False
    with torch.no_grad():
        state = model.start(2)
        model(book, attention_mask=keep, state=state)
        save_memory(model, state, tmp_path / "book.safetensors")
        alone, loaded = model(text).logits, load_memory(model, tmp_path / "book.safetensors")
        with_book = model(text, state=loaded).logits
        assert bool((with_book != alone).any(-1).all())  # from the first token on
        state = load_memory(model, tmp_path / "book.safetensors")
        for at in range(0, 8, 2):
            state.mark()
            model(ids(2, 5), state=state)
            state.trim(at)
            torch.testing.assert_close(model(text[:, at : at + 2], state=state).logits, with_book[:, at : at + 2])
        state = load_memory(model, tmp_path / "book.safetensors")
        state.reorder(torch.tensor([1]))  # a row has its own book, without its padding
        save_memory(model, state, tmp_path / "second.safetensors")
        torch.testing.assert_close(model(text[1:], state=state).logits, with_book[1:])
        short = model.start(1)
        model(book[1:, 11:], state=short)
        save_memory(model, short, tmp_path / "short.safetensors")
        again = load_memory(model, tmp_path / "short.safetensors")
        torch.testing.assert_close(model(text[1:], state=again).logits, with_book[1:])
        hidden = torch.zeros_like(text[:1], dtype=torch.bool).expand(2, -1)
        assert model(text, attention_mask=hidden, state=loaded).logits.isfinite().all()


def test_a_file_that_is_no_memory_is_refused(tmp_path: Path) -> None:
    model, other = memorizing(), memorizing(depth=2, place=0)
    state = model.start(1)
    model(ids(1, 9), state=state)
    save_memory(model, state, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="memory of another model"):
        load_memory(other, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="does not fit a layer of"):
        load_memory(memorizing(heads=2), tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="no layer of this model is a NearestMemory"):
        memories(af.build("gpt", "tiny"), state)
    assert [f.name for f in tmp_path.iterdir()] == ["m.safetensors"]
