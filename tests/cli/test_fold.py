"""fold on the command line: atoms, confidence, expected errors, several proteins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import anyformer as af
from anyformer.media.proteins import read_pdb


def test_the_verb_writes_atoms_and_errors(cli: Any, tmp_path: Path) -> None:
    model = af.build("esmfold", "tiny", seed=0)
    model.save(tmp_path / "model")
    (tmp_path / "one.fasta").write_text(">one\nMKTAY\n")
    (tmp_path / "two.fasta").write_text(">a/b\nMKT\n>c\nGAV:PL\n")
    out, errors = tmp_path / "x.pdb", tmp_path / "x.json"
    place = str(tmp_path / "model")
    code, text, _ = cli(
        "fold", place, str(tmp_path / "one.fasta"), "--out", str(out), "--errors", str(errors), "--json"
    )
    (said,) = json.loads(text)
    assert code == 0 and said["residues"] == 5 and len(json.loads(errors.read_text())["one"]) == 5
    (chain,) = read_pdb(out)
    assert chain.letters == "MKTAY" and not np.isnan(chain.positions[:, :4]).any()
    factors = {float(line[60:66]) for line in out.read_text().splitlines() if line.startswith("ATOM")}
    assert abs(sum(factors) / len(factors) - said["plddt"]) < 10
    code, text, _ = cli("fold", place, str(tmp_path / "two.fasta"), "--out", str(tmp_path / "many"), "--errors",
                        str(tmp_path / "x.npz"))  # fmt: skip
    assert code == 0 and sorted(p.name for p in (tmp_path / "many").iterdir()) == ["a_b.pdb", "c.pdb"]
    assert np.load(tmp_path / "x.npz")["c"].shape == (5, 5) and "pTM" in text
    code, _, err = cli("fold", place, str(tmp_path / "two.fasta"), "--out", str(out))
    assert code == 2 and "--out is a folder for several" in err
    code, _, err = cli("fold", place, str(tmp_path / "one.fasta"), "--errors", "x.txt")
    assert code == 2 and "--errors is a .json or .npz file" in err
