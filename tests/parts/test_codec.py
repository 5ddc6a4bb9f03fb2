"""Codecs of sound: the codes and the sound of transformers, pieces, books that follow their vectors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.contract.subjects import redrawn
from anyformer.core.flow import Flow
from anyformer.parts.sound.books import DECAY, Book, Books
from anyformer.parts.sound.pieces import cut
from anyformer.skeletons.codec import Codec

torch.set_num_threads(1)
PIECES: dict[str, Any] = {
    "channels": 2, "normalise": True, "chunk": 0.3, "overlap": 0.1, "causal": False, "norm": "group",
}  # fmt: skip


def codec(**changes: Any) -> Any:
    return redrawn(af.build("encodec", "tiny", **changes)).eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("changes", [{}, PIECES, {"causal": False}], ids=["24 kHz", "48 kHz", "32 kHz"])
def test_codes_of_each_bandwidth_and_their_sound_are_those_of_transformers(
    changes: dict[str, Any], tmp_path: Any
) -> None:
    transformers = pytest.importorskip("transformers")
    ours = codec(**changes)
    ours.save(tmp_path)
    theirs = transformers.EncodecModel.from_pretrained(tmp_path).eval()
    for samples in (1, 6, 47, 100):
        x = noise(2, samples, ours.embed.channels, seed=samples)
        for bandwidth in ours.bandwidths:
            with torch.no_grad():
                wanted = theirs.encode(x.mT, None, bandwidth)
                pad = wanted.last_frame_pad_length
                rows = [c.transpose(1, 2) for c in wanted.audio_codes]
                rows[-1] = rows[-1][:, : rows[-1].shape[1] - pad]
                sound = theirs.decode(wanted.audio_codes, wanted.audio_scales, last_frame_pad_length=pad)[0]
            found = ours.codes_of(x, bandwidth=bandwidth)
            assert torch.equal(found.codes, torch.cat(rows, 1)) and found.counts.tolist() == [samples] * 2
            assert found.codes.shape[2] == ours.books_for(bandwidth)
            torch.testing.assert_close(ours.sound_of(*found), sound.mT[:, :samples], rtol=1e-5, atol=1e-5)


def test_fewer_books_are_the_first_of_all_and_each_row_has_its_own_number() -> None:
    model = codec()
    x = noise(3, 40, 1)
    whole = model.codes_of(x)
    used = torch.tensor([1, 3, 2])
    with torch.no_grad():
        out = model(input_values=x, books=used)
        alone = [model(input_values=x[i : i + 1], books=used[i : i + 1]).heads["sound"][0] for i in range(3)]
    for row, count in enumerate(used.tolist()):
        assert torch.equal(out.beside["codes"][row, :, :count], whole.codes[row, :, :count])
        assert not out.beside["codes"][row, :, count:].any()
        again = model.sound_of(whole.codes[row : row + 1, :, :count], whole.counts[row : row + 1])[0]
        torch.testing.assert_close(out.heads["sound"][row], again)
        torch.testing.assert_close(out.heads["sound"][row], alone[row])


def test_a_padded_sound_has_the_codes_that_it_has_alone() -> None:
    for changes in ({}, PIECES):
        model = codec(**changes)
        lengths = [100, 1, 37, 66]
        x = noise(4, 100, model.embed.channels)
        mask = torch.arange(100) < torch.tensor(lengths)[:, None]
        x[~mask] = torch.nan
        together = model.codes_of(x, mask)
        sounds = model.sound_of(*together)
        for row, length in enumerate(lengths):
            alone = model.codes_of(x[row : row + 1, :length])
            frames = alone.codes.shape[1]
            assert torch.equal(together.codes[row, :frames], alone.codes[0]) and not together.codes[row, frames:].any()
            torch.testing.assert_close(sounds[row, :length], model.sound_of(*alone)[0])
            assert not sounds[row, length:].any()


def test_pieces_cover_a_sound_and_their_frames_follow_each_other() -> None:
    for piece, step in ((36, 32), (10, 10), (7, 1), (None, None)):
        for count in (1, 9, 10, 11, 36, 37, 68, 99):
            groups = cut([count, 3], 6, piece, step)
            each = sorted(
                (place, start, group.length)
                for group in groups
                for row, start, place in zip(group.rows, group.starts, group.places, strict=True)
                if row == 0
            )
            assert set().union(*(range(s, s + n) for _, s, n in each)) == set(range(count))
            ends = [place + -(-n // 6) for place, _, n in each]
            assert [place for place, _, _ in each] == [0, *ends[:-1]]
            model = af.build("encodec", "tiny")
            model.embed.piece, model.embed.step = piece, step
            assert model.embed.frames(count) == ends[-1] == int(model.embed.frames(torch.tensor([count]))[0])


def test_a_book_is_the_running_mean_of_its_vectors() -> None:
    book = Book(3, 4)
    books = Books(3, vocab=4, books=1)
    books.books[0] = book
    book.counts.fill_(5.0)
    book.table.copy_(noise(4, 3))
    book.sums.copy_(book.table * 5)
    x = noise(1, 50, 3, seed=1)
    code = book.nearest(x[0])
    counts, sums = book.counts.clone(), book.sums.clone()
    books.train()(x, Flow(torch.arange(50)))
    books.bound()
    for v in range(4):
        mine = x[0][code == v]
        counts[v] = DECAY * counts[v] + (1 - DECAY) * len(mine)
        sums[v] = DECAY * sums[v] + (1 - DECAY) * mine.sum(0)
    torch.testing.assert_close(book.counts, counts)
    torch.testing.assert_close(book.table, sums / counts[:, None])
    before = book.table.clone()
    books.eval()(x, Flow(torch.arange(50)))
    with torch.no_grad():
        books.train()(x, Flow(torch.arange(50)))
    books.bound()
    assert torch.equal(book.table, before), "neither evaluation nor a look at a spike moves a table"


def test_new_tables_are_filled_with_vectors_and_dead_codes_move() -> None:
    books = Books(3, vocab=8, books=2).train()
    x = noise(2, 40, 3)
    books(x, Flow(torch.arange(40)))
    books.bound()
    first, every = books.books[0].table, x.flatten(0, 1)
    # new tables are all zeros, so the first code was the nearest of every vector: it is their mean
    torch.testing.assert_close(first[0], every.mean(0))
    assert all(bool((every - code).abs().amax(1).lt(1e-5).any()) for code in first[1:])
    assert len(first.unique(dim=0)) == 8
    books.books[0].table[5] = 1e3  # far from everything: never the nearest
    books.books[0].counts[5], books.books[0].sums[5] = 1e-9, 1e-6
    books(x, Flow(torch.arange(40)))
    books.bound()
    assert books.books[0].table[5].abs().max() < 10
    assert set(books.books[0].nearest(every).tolist()) == set(range(8))


def test_the_gradient_passes_the_codes_and_draws_the_vectors_to_them() -> None:
    books = Books(3, vocab=4, books=2, commitment=0.5)
    for i, book in enumerate(books.books):
        book.table.copy_(noise(4, 3, seed=i))
    x, flow = noise(1, 5, 3, seed=7).requires_grad_(), Flow(torch.arange(5))
    y, codes = books.train()(x, flow)
    weights = noise(1, 5, 3, seed=8)
    (slope,) = torch.autograd.grad((y * weights).sum(), x, retain_graph=True)
    assert torch.allclose(slope, weights) and torch.allclose(y, books.vectors(codes))
    left, wanted = x, torch.zeros(())
    for book, code in zip(books.books, codes.unbind(-1), strict=True):
        wanted = wanted + 0.5 * (left - book.table[code]).square().mean()
        left = left - book.table[code]
    torch.testing.assert_close(flow.aux["commitment"], wanted)


def one_of_two(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    books = Books(3, vocab=8, books=2).train()
    x = noise(4, 20, 3)
    for step in range(3):
        books(x[2 * rank : 2 * rank + 2] + step, Flow(torch.arange(20)))
        books.bound()
    torch.save(books.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_agree_on_the_books(tmp_path: Any) -> None:
    torch.multiprocessing.start_processes(one_of_two, (str(tmp_path),), 2, start_method="fork")
    a, b = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(a[name], b[name]) for name in a)
    books = Books(3, vocab=8, books=2).train()
    for step in range(3):
        books(noise(4, 20, 3) + step, Flow(torch.arange(20)))
        books.bound()
    alone = books.state_dict()
    torch.testing.assert_close(a["books.0.counts"].sum(), alone["books.0.counts"].sum())


def test_what_makes_no_sense_is_refused_by_name() -> None:
    model: Codec = codec()
    with pytest.raises(ValueError, match=r"input_values must be floats of the shape \(batch, samples, 1\)"):
        model(input_values=noise(2, 30))
    with pytest.raises(ValueError, match=r"\(batch, samples, 1\), one number for each channel; got .*\(1, 30, 2\)"):
        model(input_values=noise(1, 30, 2))
    with pytest.raises(ValueError, match="input_values have no samples"):
        model(input_values=noise(1, 0, 1))
    assert model.codes_of(noise(1, 1, 1)).codes.shape == (1, 1, 3)
    with pytest.raises(ValueError, match="padding on the left or inside a sound"):
        model(input_values=noise(1, 4, 1), attention_mask=torch.tensor([[0, 1, 1, 1]]))
    with pytest.raises(ValueError, match=r"bandwidth=7: this codec has 0\.08, 0\.25, in thousand bits"):
        model.codes_of(noise(1, 30, 1), bandwidth=7)
    with pytest.raises(ValueError, match="code 16 is outside the tables: codes go from 0 to 15"):
        model.sound_of(torch.full((1, 2, 3), 16))
    with pytest.raises(ValueError, match=r"\(batch, frames, 1 to 3 books\)"):
        model.sound_of(torch.zeros(1, 2, 4, dtype=torch.long))
    pieces = codec(**PIECES)
    with pytest.raises(ValueError, match="counts is missing: this codec cuts a sound into pieces"):
        pieces.sound_of(torch.zeros(1, 2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="chunk and overlap come together"):
        af.build("encodec", "tiny", chunk=1.0)
