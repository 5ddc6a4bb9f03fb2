"""The ways to round one matrix, against brute force and the packages of their authors."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from anyformer.compress import rounding
from anyformer.parts.quantised import BITS, GridLinear, packed, unpacked


def drawn(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A matrix, and the mean products of correlated inputs of uneven size."""
    noise = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * columns, columns, generator=noise) @ torch.randn(columns, columns, generator=noise)
    x = x * torch.logspace(-1, 1, columns)
    return torch.randn(rows, columns, generator=noise), x.T @ x / len(x)


@pytest.mark.parametrize("bits", BITS)
def test_packed_numbers_come_back(bits: int) -> None:
    q = torch.randint(0, 2**bits, (5, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    q[0, :8], q[1, :8] = 0, 2**bits - 1
    stored = packed(q, bits)
    assert stored.shape == (5, 48 * bits // 8) and torch.equal(unpacked(stored, bits), q)
    if bits < 8:  # the first number is lowest
        assert int(stored[2, 0]) % 2**bits == int(q[2, 0])


@pytest.mark.parametrize("bits", BITS)
def test_round_to_nearest_is_off_by_half_a_step_at_most(bits: int) -> None:
    matrix, _ = drawn(6, 40)
    made = rounding.rtn(matrix, bits, 16)  # the last group has 8
    step = made.scale.repeat_interleave(16, 1)[:, :40]
    assert bool(((matrix - made.matrix()).abs() <= 0.505 * step + 0.01 * step).all())
    held = GridLinear(nn.Linear(40, 6), bits, 16)
    held.put(made.q, made.scale, made.zero)
    assert torch.equal(held.dequantised(), made.matrix())
    x = torch.randn(3, 2, 40)
    torch.testing.assert_close(held(x), x @ made.matrix().T + held.bias)


@pytest.mark.parametrize("bits", BITS)
def test_whole_zeros_cut_nothing_off(bits: int) -> None:
    matrix, products = drawn(6, 40)
    matrix[0], matrix[1], matrix[2] = matrix[0].abs() + 0.1, -matrix[1].abs() - 0.1, 0
    for made in (rounding.rtn(matrix, bits, 16, whole=True), rounding.gptq(matrix, bits, 16, products, whole=True)):
        assert torch.equal(made.zero, made.zero.round()) and 1 <= made.zero.min() <= made.zero.max() <= 2**bits - 1
    near = rounding.rtn(matrix, bits, 16, whole=True)
    step = near.scale.repeat_interleave(16, 1)[:, :40]
    assert bool(((matrix - near.matrix()).abs() <= 0.505 * step + 0.02 * step).all())
    free = rounding.rtn(matrix[3:], bits, 16).scale.mean()
    assert near.scale[3:].mean() < free * 2**bits / (2**bits - 2)  # a step is hardly longer for it


@pytest.mark.parametrize("bits", BITS)
def test_centred_grids_have_their_zero_in_the_middle_and_cut_little_off(bits: int) -> None:
    """Half a step, but for the weights beyond the end that has one step fewer, which are a step off at most."""
    matrix, products = drawn(6, 40)
    matrix[0], matrix[1], matrix[2] = matrix[0].abs() + 0.1, -matrix[1].abs() - 0.1, 0
    near, made = (
        rounding.rtn(matrix, bits, 16, centred=True),
        rounding.gptq(matrix, bits, 16, products, centred=True),
    )
    for one in (near, made):
        assert set(one.zero.unique().tolist()) == {2 ** (bits - 1)} and bool((one.scale != 0).all())
        assert bits < 8 or int(one.q.min()) >= 1  # kernels negate numbers of 8 bits
    step = near.scale.abs().repeat_interleave(16, 1)[:, :40]
    assert bool(((matrix - near.matrix()).abs() <= (0.51 if bits == 8 else 1.01) * step).all())
    assert bool((near.matrix()[2] == 0).all())
    errors = [rounding.output_error(matrix, one.matrix(), products) for one in (near, made)]
    assert bits == 8 or errors[1] < errors[0]


def test_a_product_in_blocks_is_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from anyformer.parts import quantised

    matrix, _ = drawn(7, 16)
    made, held = rounding.rtn(matrix, 4, 8), GridLinear(nn.Linear(16, 7), 4, 8)
    held.put(made.q, made.scale, made.zero)
    x = torch.randn(2, 16, requires_grad=True)
    whole = held(x)
    monkeypatch.setattr(quantised, "TOGETHER", 32)
    torch.testing.assert_close(held(x), whole)
    (slope,) = torch.autograd.grad(held(x).sum(), x)
    torch.testing.assert_close(slope, made.matrix().sum(0).expand(2, 16))


def obq(matrix: Tensor, bits: int, group: int, products: Tensor) -> Tensor:
    """Optimal brain quantisation by brute force: a column is rounded, and all that are left move to where the outputs
    are nearest, by least squares over them alone."""
    made = rounding.rtn(matrix, bits, group)  # of the same grid
    scale, zero = (t.double().repeat_interleave(group, 1)[:, : matrix.shape[1]] for t in (made.scale, made.zero))
    w, H = matrix.double().clone(), products.double().clone()
    H.diagonal().add_(rounding.DAMP * H.diagonal().mean())
    left = H.diagonal().argsort(descending=True, stable=True).tolist()
    done = torch.zeros_like(w)
    while left:
        j, *left = left
        q = (w[:, j] / scale[:, j] + zero[:, j]).round().clamp(0, 2**bits - 1)
        done[:, j] = (q - zero[:, j]) * scale[:, j]
        off = done[:, j] - w[:, j]  # (O,): the others minimise e H e with e_j = off
        if left:
            w[:, left] -= off[:, None] * torch.linalg.solve(H[left][:, left], H[left, j])[None]
    return done


@pytest.mark.parametrize(("bits", "group", "seed"), list(itertools.product((3, 4), (8, 16), range(3))))
def test_gptq_is_optimal_brain_quantisation(bits: int, group: int, seed: int) -> None:
    matrix, products = drawn(1, 8, seed)
    made = rounding.gptq(matrix, bits, group, products).matrix()
    torch.testing.assert_close(made.double(), obq(matrix, bits, group, products), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(24, 32), (8, 200), (40, 17)])
def test_gptq_beats_rounding_to_nearest_on_its_inputs(rows: int, columns: int) -> None:
    matrix, products = drawn(rows, columns)
    near, made = rounding.rtn(matrix, 4, 16).matrix(), rounding.gptq(matrix, 4, 16, products).matrix()
    errors = [rounding.output_error(matrix, m, products) for m in (near, made)]
    assert errors[1] < 0.7 * errors[0]
    x = torch.linalg.cholesky(products.double()).T  # inputs with these products
    exact = [float(((matrix - m).double() @ x.T).square().sum()) for m in (near, made)]
    assert errors == pytest.approx(exact, rel=1e-4)


def test_gptq_takes_inputs_that_are_always_zero() -> None:
    matrix, products = drawn(4, 16)
    products[3], products[:, 3] = 0, 0
    made = rounding.gptq(matrix, 4, 8, products).matrix()
    assert bool(made.isfinite().all())
    near = rounding.rtn(matrix, 4, 8).matrix()
    assert rounding.output_error(matrix, made, products) < rounding.output_error(matrix, near, products)


@pytest.mark.parametrize(("bits", "group"), [(4, 64), (3, 32), (8, 64)])
def test_hqq_is_that_of_its_package(bits: int, group: int) -> None:
    theirs = pytest.importorskip("hqq.core.quantize", reason="pip install hqq==0.2.8.post1")
    matrix, _ = drawn(32, 128)
    q, meta = theirs.Quantizer.quantize(
        matrix, nbits=bits, group_size=group, optimize=True, round_zero=False, axis=1, bitpack=False,
        compute_dtype=torch.float32, device="cpu",
    )  # fmt: skip
    expected = ((q.float() - meta["zero"]) * meta["scale"]).view_as(matrix)
    scale, zero = rounding.half_quadratic(matrix, bits, group)
    torch.testing.assert_close(scale.flatten(), meta["scale"].flatten(), rtol=1e-3, atol=0)
    torch.testing.assert_close(zero.flatten(), meta["zero"].flatten(), rtol=1e-3, atol=1e-3)
    ours, other = ((matrix - m).abs().mean() for m in (rounding.hqq(matrix, bits, group).matrix(), expected))
    assert float(ours) == pytest.approx(float(other), rel=0.02)  # scales and zeros are stored in 16 bits


def test_hqq_makes_the_mean_error_smaller() -> None:
    matrix, _ = drawn(16, 128)
    near, made = rounding.rtn(matrix, 3, 64).matrix(), rounding.hqq(matrix, 3, 64).matrix()
    assert float((matrix - made).abs().mean()) < 0.99 * float((matrix - near).abs().mean())


@pytest.mark.parametrize(
    ("value", "said"),
    [(float("nan"), "infinities or NaN"), (float("inf"), "infinities or NaN"), (1e8, "too much for a scale")],
)
def test_what_no_grid_holds_is_refused(value: float, said: str) -> None:
    matrix = torch.ones(2, 8)
    matrix[1, 3] = value
    with pytest.raises(ValueError, match=said):
        rounding.rtn(matrix, 4, 8)


def test_too_little_text_for_gptq_is_damped() -> None:
    matrix, _ = drawn(4, 16)
    one = torch.randn(2, 16)
    assert rounding.gptq(matrix, 4, 8, one.T @ one / 2).matrix().isfinite().all()
