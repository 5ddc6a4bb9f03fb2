"""Parts of folding: geometry beside transformers', what no motion of a protein changes, and what padding never does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.core.flow import Flow
from anyformer.parts.folding import residues
from anyformer.parts.folding.attention import GatedAttention, Lines
from anyformer.parts.folding.blocks import OuterProductMean, RowAttention
from anyformer.parts.folding.frames import Frames, from_atoms, from_quaternion, superposed, turned
from anyformer.parts.folding.front import ABSENT, ALPHABET, Rows
from anyformer.parts.folding.heads import aligned_errors, lddt_of, ptm_of
from anyformer.parts.folding.structure import InvariantPointAttention, atoms
from anyformer.parts.folding.triangles import PairUpdates, TriangleMultiplication
from anyformer.parts.folding.trunk import bins


def random_frames(*shape: int) -> Frames:
    q = torch.randn(*shape, 4)
    return Frames(from_quaternion(q / q.norm(dim=-1, keepdim=True)), 4 * torch.randn(*shape, 3))


def redrawn(part: torch.nn.Module) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for p in part.parameters():
            p.normal_(std=0.3)
    return part


def flow_of(count: int, keep: Tensor | None = None) -> Flow:
    return Flow(torch.arange(count), keep=keep)


def test_tables_of_residues_are_those_of_alphafold() -> None:
    rc = pytest.importorskip("transformers.models.esm.openfold_utils.residue_constants")
    assert list(residues.LETTERS) == rc.restypes_with_x and list(residues.TYPES) == rc.atom_types
    assert (residues.EXISTS.numpy() == rc.restype_atom14_mask.astype(bool)).all()
    there = residues.EXISTS
    assert (residues.GROUP.numpy() == rc.restype_atom14_to_rigid_group)[there.numpy()].all()
    assert torch.allclose(residues.PLACES, torch.tensor(rc.restype_atom14_rigid_group_positions))
    usual = torch.tensor(rc.restype_rigid_group_default_frame)  # (21, 8, 4, 4)
    rotation, origin = residues.FRAMES
    assert torch.allclose(rotation, usual[..., :3, :3], atol=1e-6)
    assert torch.allclose(origin, usual[..., :3, 3], atol=1e-6)
    pi = torch.tensor(rc.chi_pi_periodic)[:, :4].bool()
    assert torch.equal(residues.TURNS[:, 3:], pi & residues.HAS_ANGLE[:, 3:])


def test_atoms_move_with_their_frames_and_no_bond_changes() -> None:
    chain, angles = torch.randint(0, 20, (2, 6)), torch.nn.functional.normalize(torch.randn(2, 6, 7, 2), dim=-1)
    still, motion = random_frames(2, 6), random_frames(1, 1)
    one, two = atoms(still, angles, chain), atoms(motion.compose(still), angles, chain)
    there = residues.EXISTS[chain]
    assert torch.allclose(motion[..., None].apply(one)[there], two[there], atol=1e-4)
    bond = (one[..., 1, :] - one[..., 0, :]).norm(dim=-1)  # CA - N
    usual = (residues.PLACES[chain][..., 1, :] - residues.PLACES[chain][..., 0, :]).norm(dim=-1)
    assert torch.allclose(bond, usual, atol=1e-4)


def test_a_frame_of_atoms_gives_these_atoms_back() -> None:
    frames = random_frames(5)
    place = residues.PLACES[3, :3]  # N, CA, C of D
    n, ca, c = (frames.apply(place[i].expand(5, 3)) for i in range(3))
    again = from_atoms(n, ca, c)
    assert torch.allclose(again.rotation, frames.rotation, atol=1e-4)
    assert torch.allclose(again.origin, frames.origin, atol=1e-4)


def test_a_degenerate_frame_is_finite_with_its_gradient() -> None:
    point = torch.zeros(1, 3, requires_grad=True)
    frame = from_atoms(point, point * 1, point * 2)  # all atoms in one place
    (frame.rotation.sum() + frame.origin.sum()).backward()
    assert point.grad is not None and bool(point.grad.isfinite().all()) and bool(frame.rotation.isfinite().all())


def test_a_small_turn_keeps_the_quaternion_a_unit() -> None:
    q = torch.nn.functional.normalize(torch.randn(7, 4), dim=-1)
    moved = turned(q, torch.randn(7, 3))
    assert torch.allclose(moved.norm(dim=-1), torch.ones(7), atol=1e-6)
    assert torch.allclose(turned(q, torch.zeros(7, 3)), q, atol=1e-6)
    rotation = from_quaternion(moved)
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3).expand(7, 3, 3), atol=1e-5)


def test_point_attention_sees_no_motion_of_the_whole() -> None:
    part, L = redrawn(InvariantPointAttention(12, 6, heads=3, head_dim=4, queries=2, points=3)), 7
    x, z, frames, motion = torch.randn(2, L, 12), torch.randn(2, L, L, 6), random_frames(2, L), random_frames(2, 1)
    one, two = part(x, z, frames, flow_of(L)), part(x, z, motion.compose(frames), flow_of(L))
    assert torch.allclose(one, two, atol=2e-4)
    other = Frames(frames.rotation, frames.origin + torch.randn(2, L, 3))
    assert not torch.allclose(one, part(x, z, other, flow_of(L)), atol=1e-2)  # it does see where residues are


def test_superposition_undoes_a_motion_and_no_mirror() -> None:
    points, motion = torch.randn(9, 3), random_frames(1)
    assert torch.allclose(superposed(motion.apply(points), points), points, atol=1e-5)
    mirror = points * torch.tensor([1.0, 1.0, -1.0])
    assert (superposed(mirror, points) - points).square().mean() > 0.05


@pytest.mark.parametrize("lines", [1, 3, 100])
@pytest.mark.parametrize("learns", [False, True])
def test_lines_at_a_time_change_no_number(lines: int, learns: bool) -> None:
    part = redrawn(PairUpdates(8, heads=2))
    z = torch.randn(2, 5, 5, 8, requires_grad=learns)
    keep = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    results, slopes = [], []
    for count in (lines, 10_000):
        flow = flow_of(5, keep)
        flow.put(Lines(count))
        with torch.set_grad_enabled(learns):
            y = part(z, flow)
        results.append(y.detach())
        slopes.append(torch.autograd.grad(y.square().sum(), z)[0] if learns else y)
    assert torch.allclose(results[0], results[1], atol=1e-5) and torch.allclose(slopes[0], slopes[1], atol=1e-3)


def test_attention_of_lines_holds_few_scores_at_a_time() -> None:
    """The largest tensor of scores has the rows of `Lines`, not all of them."""
    part, L, seen = redrawn(GatedAttention(8, 2)), 24, []
    plain = torch.nn.functional.scaled_dot_product_attention

    def noted(q: Tensor, *rest: Any) -> Tensor:
        seen.append(q.shape[0] if q.ndim == 4 else q.shape[1])
        return plain(q, *rest)

    torch.nn.functional.scaled_dot_product_attention = noted  # type: ignore[assignment]
    try:
        flow = flow_of(L)
        flow.put(Lines(4))
        with torch.no_grad():
            part(torch.randn(1, L, L, 8), flow, torch.randn(1, 2, L, L), None)
    finally:
        torch.nn.functional.scaled_dot_product_attention = plain
    assert seen == [4] * 6


@pytest.mark.parametrize("outgoing", [True, False])
def test_triangle_products_are_sums_over_the_third_residue(outgoing: bool) -> None:
    part = redrawn(TriangleMultiplication(4, outgoing))
    z = torch.randn(1, 3, 3, 4)
    x = part.norm_in(z)[0]
    a, b = (torch.sigmoid(g(x)) * p(x) for g, p in ((part.a_gate, part.a), (part.b_gate, part.b)))
    total = torch.zeros(3, 3, 4)
    for i in range(3):
        for j in range(3):
            for k in range(3):
                total[i, j] += a[i, k] * b[j, k] if outgoing else a[k, i] * b[k, j]
    expected = part.o(part.norm_out(total)) * torch.sigmoid(part.gate(x))
    assert torch.allclose(part(z, flow_of(3))[0], expected, atol=1e-5)


def test_outer_product_mean_divides_by_the_rows_that_are_there() -> None:
    part, x = redrawn(OuterProductMean(6, 4, hidden=3)), torch.randn(1, 5, 4, 6)
    flow = flow_of(4)
    flow.put(Rows(None, torch.tensor([[True, True, True, False, False]])))
    three = flow_of(4)
    three.put(Rows())
    assert torch.allclose(part(x, flow), part(x[:, :3], three), atol=1e-6)


def test_row_attention_of_padding_is_finite() -> None:
    part = redrawn(RowAttention(8, 4, heads=2))
    keep = torch.tensor([[False, False, False]])
    assert bool(part(torch.randn(1, 1, 3, 8), torch.randn(1, 3, 3, 4), flow_of(3, keep)).isfinite().all())


def test_confidence_is_that_of_transformers() -> None:
    loss = pytest.importorskip("transformers.models.esm.openfold_utils.loss")
    scores = torch.randn(1, 21, 21, 64)
    assert math.isclose(float(ptm_of(scores)), float(loss.compute_tm(scores[0])), rel_tol=1e-5)
    wanted = loss.compute_predicted_aligned_error(scores)["predicted_aligned_error"]
    assert torch.allclose(aligned_errors(scores), wanted, atol=1e-4)
    padded = torch.nn.functional.pad(scores, (0, 0, 0, 4, 0, 4))
    keep = (torch.arange(25) < 21)[None]
    assert torch.allclose(ptm_of(padded, keep), ptm_of(scores), atol=1e-6)  # padding is no part of a protein
    assert torch.allclose(lddt_of(torch.zeros(2, 50)), torch.full((2,), 0.5))


def test_distances_have_the_bins_of_transformers() -> None:
    esmfold = pytest.importorskip("transformers.models.esm.modeling_esmfold")
    place = 6 * torch.randn(2, 6, 14, 3)
    wanted = esmfold.EsmFoldingTrunk.distogram(place[:, :, :3], 3.375, 21.375, 15)
    assert torch.equal(bins(place), wanted)


def test_the_language_model_reads_its_own_alphabet() -> None:
    model = af.build("esmfold", "tiny", seed=0)
    letters = [ALPHABET[i] for i in model.embed.ids.tolist()]
    assert letters == ["<pad>", *residues.LETTERS]


def test_residues_outside_the_alphabet_are_refused() -> None:
    model = af.build("esmfold", "tiny", seed=0).eval()
    with pytest.raises(ValueError, match="input_ids holds 21, which is no number of a residue"):
        model(torch.tensor([[1, 21]]))
    with pytest.raises(ValueError, match="recycles is the number of passes after the first one"):
        model(torch.tensor([[1, 2]]), recycles=-1)
    with pytest.raises(ValueError, match="padding in the middle"):
        model(torch.tensor([[1, 2, 3]]), attention_mask=torch.tensor([[1, 0, 1]]))
    assert ABSENT == -1


def test_recycles_count_as_they_are_called() -> None:
    model = af.build("esmfold", "tiny", seed=0).eval()  # 2 passes
    ids = torch.tensor([[4, 8, 15, 16, 2, 3]])
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    with torch.no_grad():
        usual, one, two = model(ids), model(ids, recycles=1), model(ids, recycles=0)
    assert torch.equal(usual.hidden, one.hidden) and not torch.allclose(usual.hidden, two.hidden)
