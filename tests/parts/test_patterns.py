"""Sparse patterns: what they refuse, what they cost, how they are drawn. That they are right is the contract's."""

from __future__ import annotations

import pytest
import torch

import anyformer as af
from anyformer.core.mixer import start_state
from anyformer.parts import Attention, BlockWindow, Causal, Dilated, Global, Prefix, Random, Strided, Window
from anyformer.parts.attention.kernels import attend
from anyformer.parts.attention.masks import Mask, View
from tests.parts.mixing import flow, made, run

LONGFORMER = Window(2, 2) | Global(1)
BIGBIRD = BlockWindow(4) | Global(4) | Random(4, 2)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Dilated(0, 1), "step=0"), (lambda: Dilated(2, -1), "left=-1"), (lambda: Strided(0), "stride=0"),
        (lambda: Global(0), "tokens=0"), (lambda: BlockWindow(0), "size=0"), (lambda: Random(4, 0), "count=0"),
        (lambda: Prefix(-1), "tokens=-1"),
    ],
)  # fmt: skip
def test_senseless_numbers_are_named(make: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()  # type: ignore[operator]


def test_drawing() -> None:
    assert LONGFORMER.show(5) == "■ ■ ■ ■ ■\n■ ■ ■ ■ ·\n■ ■ ■ ■ ■\n■ ■ ■ ■ ■\n■ · ■ ■ ■"


def test_cost_of_a_sparse_pattern_is_linear() -> None:
    pairs = [BIGBIRD.kept(n) * n * n for n in (256, 512, 1024)]
    assert pairs[1] / pairs[0] == pytest.approx(2, abs=0.1)
    assert pairs[2] / pairs[1] == pytest.approx(2, abs=0.1)
    assert Causal().kept(100) == pytest.approx(0.505)


def test_drawn_blocks_depend_on_the_seed_and_not_on_the_length() -> None:
    def seen(mask: Mask, n: int) -> torch.Tensor:
        return View(mask, 0, n, 0, n).tensor()[0, 0]

    assert torch.equal(seen(Random(4, 1), 200)[:90, :90], seen(Random(4, 1), 90))
    assert not torch.equal(seen(Random(4, 1), 90), seen(Random(4, 1, seed=1), 90))


@pytest.mark.parametrize("mask", [LONGFORMER, BIGBIRD, Dilated(3, 2, 2) & ~Window(1, 1)], ids=str)
def test_a_page_takes_a_pattern_by_one_line_and_keeps_it(mask: Mask, tmp_path: object) -> None:
    model = af.recipe("bert", "tiny").but({"blocks.*.mixer.mask": mask}).build()
    model.save(tmp_path)
    again = af.load(str(tmp_path))
    assert again.recipe == model.recipe
    ids = torch.arange(24)[None] % 50
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).hidden, again(ids).hidden)


def test_a_mask_of_too_many_pairs_is_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (torch.randn(1, 2, 600, 4) for _ in range(3))
    view = View(LONGFORMER, 0, 600, 0, 600)
    expected = attend(q, k, v, view)
    monkeypatch.setattr("anyformer.parts.attention.masks.PAIRS", 100_000)
    made: list[int] = []
    plain = View.tensor

    def tensor(self: View) -> torch.Tensor:
        made.append(self.count * self.keys)
        return plain(self)

    monkeypatch.setattr(View, "tensor", tensor)
    torch.testing.assert_close(attend(q, k, v, view), expected, atol=1e-6, rtol=1e-5)
    assert made and max(made) < 200_000  # tiles alone


def test_a_window_gives_back_the_room_of_a_long_prompt() -> None:
    mixer, x = made(Attention.of(heads=2, mask=Window(3)), dtype=torch.float32), torch.randn(1, 60, 12)
    with torch.no_grad():
        state = start_state([mixer], 1)
        rows = [mixer(x[:, :50], flow(50, state=state))]
        rows += [mixer(x[:, at : at + 1], flow(1, first=at, state=state)) for at in range(50, 60)]
        torch.testing.assert_close(torch.cat(rows, 1), run(mixer, x))
    assert state.bytes() <= (2 * 3 + 2) * 2 * 12 * 4  # tokens, keys and values, width, float32
