"""fold: sequences to atoms; chains, batches, files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.generate import fold
from anyformer.generate.folding import JUMP, LINKER, batch_of
from anyformer.media.proteins import sequence


@pytest.fixture(scope="module")
def model() -> Any:
    made = af.build("esmfold", "tiny", seed=0)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(std=0.2, generator=noise)
    return made


def test_proteins_in_a_batch_are_the_same_as_alone(model: Any) -> None:
    texts = ["MKTAYIAKQR", "GAV", "PLWEX"]
    together, alone = fold(model, texts, batch=3), [fold(model, [t])[0] for t in texts]
    for one, two in zip(together, alone, strict=True):
        assert np.allclose(one.positions, two.positions, atol=1e-4) and np.allclose(one.pae, two.pae, atol=1e-4)
        assert np.allclose(one.plddt, two.plddt, atol=1e-3) and abs(one.ptm - two.ptm) < 1e-5
        assert one.plddt.min() >= 0 and one.plddt.max() <= 100 and 0 < one.ptm < 1


def test_lines_and_the_mode_of_the_model_come_back(model: Any) -> None:
    model.train()
    one, two = fold(model, ["MKTAYIAKQR"], lines=1), fold(model, ["MKTAYIAKQR"])
    assert np.allclose(one[0].positions, two[0].positions, atol=1e-4)
    assert model.training and model.lines == 16
    model.eval()


def test_chains_are_parted_by_a_linker_that_is_left_out(model: Any) -> None:
    inputs, (own,) = batch_of(model, [sequence("MKT:GA")], None)
    assert inputs["input_ids"].shape == (1, 3 + LINKER + 2) and int(own.sum()) == 5
    places = inputs["position_ids"][0].tolist()
    assert places[0] == 0 and places[3 + LINKER] == 3 + LINKER + JUMP
    (one,) = fold(model, ["MKT:GA"])
    assert one.positions.shape == (5, 14, 3) and one.pae.shape == (5, 5) and one.chains == ("MKT", "GA")
    assert "TER" in one.pdb() and one.pdb().count("TER") == 2


def test_an_alignment_counts_and_the_order_of_its_rows_does_not(tmp_path: Path) -> None:
    model = af.build("alphafold2", "tiny", seed=0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
    rows = ["MKTAY", "M-SAY", "LKTGY"]
    texts = {"a": rows, "b": [rows[0], rows[2], rows[1]], "c": rows[:1]}
    made = {}
    for name, own in texts.items():
        (tmp_path / f"{name}.a3m").write_text("".join(f">{i}\n{row}\n" for i, row in enumerate(own)))
        (made[name],) = fold(model, ["MKTAY"], msa=tmp_path / f"{name}.a3m")
    (alone,) = fold(model, ["MKTAY"])
    assert np.allclose(made["a"].positions, made["b"].positions, atol=1e-4)
    assert np.allclose(made["c"].positions, alone.positions, atol=1e-5)
    assert not np.allclose(made["a"].positions, alone.positions, atol=1e-2)
    with pytest.raises(ValueError, match="is not protein1"):
        fold(model, ["MKTAW"], msa=tmp_path / "a.a3m")
    with pytest.raises(ValueError, match="an alignment belongs to one protein, and there are 2"):
        fold(model, ["MKTAY", "MK"], msa=tmp_path / "a.a3m")
    with pytest.raises(ValueError, match=r"msa must be .proteins, residues, rows. = .1, 5"):
        model(input_ids=torch.zeros(1, 5, dtype=torch.long), msa=torch.zeros(1, 4, 2, dtype=torch.long))


def test_what_cannot_be_folded_is_refused(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"5 residues, and at most 4 are folded.*most=5"):
        fold(model, ["MKTAY"], most=4)
    with pytest.raises(ValueError, match="no protein to fold"):
        fold(model, [])
    with pytest.raises(ValueError, match="fold needs a folding model"):
        fold(af.build("bert", "tiny"), ["MK"])
    (tmp_path / "a.a3m").write_text(">q\nMK\n")
    with pytest.raises(ValueError, match="folds a sequence without an alignment"):
        fold(model, ["MK"], msa=tmp_path / "a.a3m")
