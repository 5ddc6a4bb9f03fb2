"""A student learns what its teacher says, at real places alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import anyformer as af
from anyformer.compress.distil import check_pair, divergence, heal
from anyformer.compress.held import Held
from anyformer.hub.text.tokenizer import Tokenizer


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_the_divergence_times_the_square_of_the_temperature() -> None:
    student, teacher = drawn(3, 5, 7).double(), drawn(3, 5, 7, seed=1).double()
    for T in (1.0, 2.0, 4.0):
        p, q = (teacher / T).softmax(-1), (student / T).log_softmax(-1)
        expected = T**2 * F.kl_div(q.flatten(0, 1), p.flatten(0, 1), reduction="batchmean")
        torch.testing.assert_close(divergence(student, teacher, temperature=T).double(), expected, rtol=1e-5, atol=1e-7)


def test_padding_does_not_count() -> None:
    student, teacher = drawn(2, 6, 7), drawn(2, 6, 7, seed=1)
    keep = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]).bool()
    real = divergence(student[keep], teacher[keep])
    torch.testing.assert_close(divergence(student, teacher, keep), real)
    other = teacher.masked_fill(~keep[..., None], 3.0)
    torch.testing.assert_close(divergence(student, other, keep), real)
    torch.testing.assert_close(divergence(teacher, teacher, keep), torch.tensor(0.0))


def held(model: Any) -> Held:
    made = [{"input_ids": torch.randint(0, 128, (4, 16), generator=torch.Generator().manual_seed(n))} for n in range(8)]
    return Held(made, made, [], False, "random inputs")


@pytest.mark.parametrize("name", ["gpt", "bert"])  # with scores, and with hidden states alone
def test_a_student_comes_nearer_to_its_teacher(name: str) -> None:
    teacher = af.build(name, "tiny", seed=0, task="none" if name == "bert" else "lm").eval()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * drawn(*parameter.shape))
    frozen = copy.deepcopy(teacher.state_dict())
    healed = heal(student, teacher, held(teacher), 40, rate=3e-3)
    assert healed.steps == 40 and healed.last < healed.first / 2
    assert all(torch.equal(v, frozen[k]) for k, v in teacher.state_dict().items())


def test_zeros_stay_zeros() -> None:
    teacher = af.build("gpt", "tiny", seed=0).eval()
    student = copy.deepcopy(teacher)
    up: Any = student.blocks[0].ffn.up
    mask = drawn(*up.weight.shape) > 0
    up.weight.data *= mask
    heal(student, teacher, held(teacher), 5, {"blocks.0.ffn.up.weight": mask}, rate=1e-2)
    assert torch.equal(up.weight != 0, mask)


def test_a_pair_that_does_not_fit_is_refused() -> None:
    gpt = af.build("gpt", "tiny", seed=0)
    with pytest.raises(ValueError, match="the teacher has 99 tokens and the student 128"):
        check_pair(gpt, af.build("gpt", "tiny", vocab=99))
    with pytest.raises(ValueError, match="at least 1 step"):
        heal(gpt, gpt, held(gpt), 0)
    one, two = (af.build("bert", "tiny", task="none", dim=dim, seed=0) for dim in (32, 48))
    with pytest.raises(ValueError, match="the teacher's have 48 numbers, the student's 32"):
        heal(one, two, held(one), 1)


def test_a_loss_that_is_not_finite_leaves_the_student_as_it_was() -> None:
    teacher = af.build("gpt", "tiny", seed=0).eval()
    student = copy.deepcopy(teacher)
    teacher.blocks[0].ffn.up.weight.data[0, 0] = float("nan")
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(FloatingPointError, match="not finite"):
        heal(student, teacher, held(teacher), 2)
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())


def test_the_command_prunes_heals_and_rounds(tmp_path: Path) -> None:
    from anyformer.compress.shrink import Missed, Wish, compress

    model = af.build("gpt", "tiny", vocab=257, context=256, depth=3, seed=0).eval()
    model.tokenizer = Tokenizer.bytes_level()
    teacher = af.build("gpt", "tiny", vocab=257, context=256, depth=1, seed=1).eval()
    wish = Wish(8, group=8, prune=("heads=25%", "depth=1", "2:4"), heal=2, factor=4)
    done = compress(model, tmp_path / "out", wish, teacher=teacher)
    assert [cut.rule for cut in done.cuts] == ["heads=25%", "depth=1", "2:4", "rank=4"]
    assert done.parameters[1] < done.parameters[0] and done.healed is not None and done.packed is not None
    again = af.load(tmp_path / "out")
    assert len(again.blocks) == 2 and again.blocks[0].mixer.heads == 3
    text = again.generate("Once", max_new_tokens=3)
    assert isinstance(text, str)
    with pytest.raises(Missed, match="above the bound of 0"):
        compress(model, tmp_path / "no", Wish(prune=("ffn=50%",), max_kld=0.0))
    with pytest.raises(ValueError, match="nothing was asked for"):
        compress(model, tmp_path / "no", Wish())
    assert not (tmp_path / "no").exists()
