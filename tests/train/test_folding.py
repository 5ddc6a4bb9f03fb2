"""The loss of folding: what no motion changes and what a mirror does, torsions, metrics, and the task on PDB files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.media.proteins import pdb_text
from anyformer.parts.folding import residues
from anyformer.parts.folding.frames import Frames, from_quaternion
from anyformer.parts.folding.structure import atoms
from anyformer.parts.folding.torsions import backbone, renamed, torsions
from anyformer.train import finetune, train
from anyformer.train.folding import Folding, fape, lddt, rmsd, unpacked
from anyformer.train.options import TrainOptions
from anyformer.train.tasks.folding import FoldData, batch_of

TURN = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.7, 0.2]), dim=0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def frames(*shape: int) -> Frames:
    q = torch.nn.functional.normalize(torch.randn(*shape, 4), dim=-1)
    return Frames(from_quaternion(q), 5 * torch.randn(*shape, 3))


def motion() -> Frames:
    return Frames(from_quaternion(TURN)[None, None], torch.tensor([[[30.0, -4.0, 9.0]]]))


def protein(L: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Residues, ideal atoms at random angles, and which exist: (1, L, …)."""
    chain = torch.randint(0, 20, (1, L))
    angles = torch.nn.functional.normalize(torch.randn(1, L, 7, 2), dim=-1)
    return chain, atoms(frames(1, L), angles, chain), residues.EXISTS[chain]


def test_fape_sees_no_common_motion_but_a_mirror() -> None:
    true, points, keep = frames(1, 5), 6 * torch.randn(1, 9, 3), torch.ones(1, 5, dtype=torch.bool)
    there, moved = torch.ones(1, 9, dtype=torch.bool), motion()
    zero = fape(true, points, true, points, keep, there)
    assert float(zero) == pytest.approx(1e-3, rel=1e-2)  # 1e-2 angstrom, the root of 1e-4, over 10
    other = fape(moved.compose(true), moved.apply(points), true, points, keep, there)
    assert float(other) == pytest.approx(1e-3, rel=0.05)
    off, both = frames(1, 5), 6 * torch.randn(1, 9, 3)
    one = fape(off, both, true, points, keep, there)
    two = fape(moved.compose(off), moved.apply(both), true, points, keep, there)
    assert torch.allclose(one, two, atol=1e-4)
    _, place, has = protein()
    mirror = place * torch.tensor([1.0, 1.0, -1.0])
    flat = (backbone(mirror), mirror.flatten(1, 2), backbone(place), place.flatten(1, 2))
    assert float(fape(*flat, has[..., 1], has.flatten(1))) > 0.05  # distances alone cannot tell them apart
    near, _ = lddt(mirror[:, :, 1], place[:, :, 1], has[..., 1])
    assert float(near.sum()) > 0


def test_a_clamp_is_of_each_protein() -> None:
    true, off = frames(2, 4), frames(2, 4)
    points, keep = 50 * torch.randn(2, 7, 3), torch.ones(2, 4, dtype=torch.bool)
    given = (off, points, true, -points, keep, torch.ones(2, 7, dtype=torch.bool))
    free, clamped = fape(*given, float("inf")), fape(*given)
    mixed = fape(*given, torch.tensor([10.0, float("inf")]))
    assert torch.equal(mixed, torch.stack((clamped[0], free[1]))) and bool((clamped <= 1).all() and (free > 1).all())


def test_angles_of_atoms_give_these_atoms_again() -> None:
    chain, places, there = protein(40)
    angles, known = torsions(places, there, chain)
    again = atoms(backbone(places), angles, chain)
    assert float((again - places)[there].abs().max()) < 2e-3
    assert torch.equal(known[..., 3:], residues.HAS_ANGLE[chain][..., 3:]) and not known[..., :2].any()


def test_names_that_nobody_can_tell_apart_cost_nothing() -> None:
    chain = torch.tensor([[3, 13, 0]])  # D, F, A
    places = atoms(frames(1, 3), torch.nn.functional.normalize(torch.randn(1, 3, 7, 2), dim=-1), chain)
    there, slot = residues.EXISTS[chain], residues.SWAPPED[chain]
    other = places.gather(2, slot[..., None].expand_as(places))
    assert not torch.allclose(other, places)
    chosen, _ = renamed(other, there, chain, places)
    assert torch.allclose(chosen, places)


def test_metrics_are_counts_of_pairs_and_superposed() -> None:
    true, keep = 8 * torch.randn(1, 20, 3), torch.ones(1, 20, dtype=torch.bool)
    moved = motion().apply(true)
    kept, pairs = lddt(moved, true, keep)
    assert float(kept.sum() / pairs.sum()) == 1.0 and float(rmsd(moved[0], true[0], keep[0])) < 1e-3
    far = true.clone()
    far[0, 0] += 100.0
    kept, pairs = lddt(far, true, keep)
    assert float(kept[0, 0]) == 0.0 and 0.5 < float(kept.sum() / pairs.sum()) < 1.0
    keep[0, 0] = False
    kept, pairs = lddt(far, true, keep)
    assert float(kept.sum() / pairs.sum()) == 1.0 and float(rmsd(far[0], true[0], keep[0])) < 1e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("proteins")
    torch.manual_seed(3)
    for number, L in enumerate((9, 7)):
        chain, angles = torch.randint(0, 20, (1, L)), torch.nn.functional.normalize(torch.ones(1, L, 7, 2), dim=-1)
        turn = torch.arange(L) * 100 * torch.pi / 180  # of a helix
        half = torch.stack((torch.cos(turn / 2), turn * 0, turn * 0, torch.sin(turn / 2)), -1)[None]
        origin = torch.stack((2.3 * torch.cos(turn), 2.3 * torch.sin(turn), 1.5 * torch.arange(L)), -1)[None]
        places = atoms(Frames(from_quaternion(half), origin), angles, chain)
        letters = "".join(residues.LETTERS[i] for i in chain[0].tolist())
        (place / f"{number}.pdb").write_text(pdb_text([(letters, places[0].numpy(), np.zeros(L))], []))
    return place


def data(folder: Path) -> FoldData:
    return FoldData("fold", TrainOptions(data=str(folder), out=str(folder / "run")))


def test_the_loss_of_a_batch_is_the_sum_of_its_proteins(folder: Path) -> None:
    model, objective = af.build("esmfold", "tiny", seed=0).eval(), Folding()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.1)
        chains = data(folder).chains
        both = batch_of(chains)
        labels = both.pop("labels")
        whole = objective.each(model(**both), labels)
        alone = []
        for chain in chains:
            one = batch_of([chain])
            wanted = one.pop("labels")
            alone.append(objective.each(model(**one), wanted))
    for name, value in whole.items():
        assert torch.allclose(value, torch.stack([a[name] for a in alone]).sum(), rtol=1e-4), name
    assert set(whole) == {"fape", "torsion", "distogram", "lddt", "errors"}


def test_unknown_and_degenerate_atoms_give_finite_losses_and_gradients(folder: Path) -> None:
    model, objective = af.build("esmfold", "tiny", seed=0).train(), Folding()
    batch = batch_of(data(folder).chains)
    labels = batch.pop("labels")
    labels[0, 1, 1:] = float("nan")  # a residue without atoms
    labels[0, 2, 1:10] = 4.0  # N, CA and C in one place
    labels[1, :, 1:] = float("nan")  # a protein without any
    loss = objective(model(**batch), labels, 2.0)
    loss.backward()
    assert bool(loss.isfinite()) and all(
        bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None
    )
    chain, places, there = unpacked(labels)
    assert not there[0, 1].any() and not there[1].any() and bool(places.isfinite().all()) and chain.max() <= 20


def test_a_model_of_half_precision_has_losses_in_float32(folder: Path) -> None:
    model = af.build("esmfold", "tiny", seed=0).to(torch.bfloat16)
    batch = batch_of(data(folder).chains)
    labels = batch.pop("labels")
    loss = Folding()(model(**batch), labels, 2.0)
    assert loss.dtype == torch.float32 and bool(loss.isfinite())


def test_train_learns_a_protein_and_measures_distances(folder: Path, tmp_path: Path) -> None:
    done = train(
        model="esmfold", size="tiny", data=str(folder), out=str(tmp_path / "run"), steps=50, batch=2, lr=4e-3,
        overrides={"fold.trunk.structure.scale": 10, "fold.trunk.passes": 1},
        device="cpu", seed=0,
    )  # fmt: skip
    assert done.task == "fold" and done.held_out is not None and done.baseline is not None
    assert done.held_out < 0.75 * done.baseline  # 1 - lDDT


def test_adapters_learn_to_fold_and_come_back_merged(folder: Path, tmp_path: Path) -> None:
    af.build("esmfold", "tiny", seed=0).save(tmp_path / "start")
    told: dict[str, Any] = {"data": str(folder), "steps": 2, "batch": 2, "lr": 3e-3, "quiet": True, "save_every": 1}
    done = finetune(str(tmp_path / "start"), out=str(tmp_path / "run"), **told)
    assert done.task == "fold" and done.learned < done.parameters / 2 and done.folder is not None
    again = af.load(done.folder).state_dict()
    assert all(torch.equal(again[name], value) for name, value in done.model.state_dict().items())
    goes_on = str(tmp_path / "run" / "step-000001")
    more = finetune(str(tmp_path / "start"), out=str(tmp_path / "more"), resume=goes_on, **told)
    assert all(torch.equal(again[name], value) for name, value in more.model.state_dict().items())


def test_alignments_beside_the_files_are_read_and_their_cells_hidden(folder: Path, tmp_path: Path) -> None:
    for file in folder.glob("*.pdb"):
        (tmp_path / file.name).write_text(file.read_text())
    letters = data(folder).chains[0].letters
    (tmp_path / "0.a3m").write_text(f">q\n{letters}\n>r\n{'A' * len(letters)}\n>s\n{'-' * len(letters)}\n")
    model = af.build("alphafold2", "tiny", seed=0)
    task = data(tmp_path).task(model, None)
    batch = task.rows.rows(0, 2)
    assert batch["msa"].shape[2] == 2 and batch["labels"].shape[2] == 46
    chosen = batch["labels"][..., 44:] >= 0
    assert chosen.any() and torch.equal(batch["msa"] == 22, chosen)
    labels = batch.pop("labels")
    for number in range(12):  # what is drawn belongs to the number of the example, whatever is beside it
        one, three = task.rows.rows(number, 1), task.rows.rows(number, 3)
        if "msa" in one:
            assert torch.equal(one["msa"], three["msa"][:1, : one["msa"].shape[1]])
        both = [rows["labels"][:1, : one["labels"].shape[1], : one["labels"].shape[2]] for rows in (one, three)]
        torch.testing.assert_close(*both, equal_nan=True)
    clamped = torch.cat([task.rows.rows(number, 1)["labels"][:, 0, 43] for number in range(60)])
    assert 0 < int((clamped == 0).sum()) < 20
    parts = Folding().each(model(**batch), labels)
    assert set(parts) == {"fape", "torsion", "distogram", "lddt", "errors", "cells"}
    assert "msa" in next(task.held_out(2)) and "the model reads no alignment" in " ".join(
        data(tmp_path).task(af.build("esmfold", "tiny"), None).notes
    )
    (tmp_path / "0_A.a3m").write_text(">q\nMK\n")
    with pytest.raises(ValueError, match="the first row is not chain 0_A"):
        data(tmp_path)


def test_what_is_no_structure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="reads a PDB file, or a folder"):
        data(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no PDB file"):
        data(tmp_path)
    (tmp_path / "a.pdb").write_text(pdb_text([("GG", np.ones((2, 14, 3)), np.zeros(2))], []))
    with pytest.raises(ValueError, match="no chain has 4 residues with N, CA and C"):
        data(tmp_path)
