"""Proteins in files: what is read, what is refused, and what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anyformer.media.proteins import pdb_text, read_alignment, read_fasta, read_pdb, sequence


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_fasta_has_names_chains_and_rare_letters(tmp_path: Path) -> None:
    one, two = read_fasta(written(tmp_path, "a.fasta", ">one of them\nmkt\nAY*\n\n>two\nGBU:PX\n"))
    assert (one.name, one.chains) == ("one", ("MKTAY",))
    assert (two.name, two.chains, len(two)) == ("two", ("GXX", "PX"), 5)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds no sequence"),
        ("MKT\n", "begins with '>name'"),
        (">a\n>b\nMK\n", "a: it has no residues"),
        (">a\nMK:\n", "chain 2 of 2 is empty"),
        (">a\nMK1T\n", "'1' at residue 3 is no amino acid"),
        (">a\nM-T\n", "'-' at residue 2 is no amino acid"),
        (">a\nMK\n>a\nMK\n", "two sequences are called 'a'"),
    ],
)
def test_what_is_no_sequence_is_refused_with_its_place(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=why):
        read_fasta(written(tmp_path, "a.fasta", text))


def test_alignments_of_both_kinds_are_the_same(tmp_path: Path) -> None:
    a3m = written(tmp_path, "a.a3m", ">q\nMKTA\n>r\nM-TaaA\n>s\n-KTZ\n")
    sto = written(tmp_path, "a.sto", "# STOCKHOLM 1.0\nq MK--\nr M.AA\ns -KA.\n\nq TA\nr TA\ns TZ\n//\n")
    assert read_alignment(a3m) == ["MKTA", "M-TA", "-KTX"] == read_alignment(sto)


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.a3m", ">q\nMKTA\n>r\nMKT\n", "row 'r' has 3 columns, the first row, 'q', 4"),
        ("a.a3m", ">q\nMK\n>r\nM1\n", "row 'r' has '1' in column 2"),
        ("a.sto", "# STOCKHOLM 1.0\n//\n", "holds no row"),
        ("a.aln", "x", "an alignment ends in .a3m, .sto"),
    ],
)
def test_what_is_no_alignment_is_refused(name: str, text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=why):
        read_alignment(written(tmp_path, name, text))


def test_a_written_structure_is_read_again(tmp_path: Path) -> None:
    places = np.random.default_rng(0).normal(scale=20, size=(5, 14, 3)).astype(np.float32)
    text = pdb_text(
        [("MKX", places[:3], np.array([90.0, 80.5, 0.0])), ("GW", places[3:], np.array([50.0, 1.0]))], ["x"]
    )
    lines = text.splitlines()
    atoms = [line for line in lines if line.startswith("ATOM")]
    assert all(len(line) == 78 for line in atoms) and lines[-1] == "END"
    assert float(atoms[0][60:66]) == 90.0 and atoms[0][12:16] == " N  " and atoms[0][76:78] == " N"
    one, two = read_pdb(written(tmp_path, "a.pdb", text))
    assert (one.letters, two.letters) == ("MK", "GW")  # X has no atoms
    assert np.allclose(one.positions[0, :8], places[0, :8], atol=1e-3) and np.isnan(one.positions[0, 8:]).all()
    assert two.numbers.tolist() == [1, 2] and two.name == "a_B"


def test_gaps_missing_atoms_and_second_places_of_a_pdb_file(tmp_path: Path) -> None:
    atom = "ATOM  {:>5} {:<4}{}{} A{:>4}    {:8.3f}{:8.3f}{:8.3f}  1.00  0.00           C"
    lines = [
        atom.format(1, " CA", "A", "GLY", 3, 1, 2, 3),
        atom.format(2, " CA", "B", "GLY", 3, 7, 7, 7),
        atom.format(3, " N", " ", "ALA", 9, 1, 1, 1),
        atom.format(4, " O", " ", "HOH", 10, 1, 1, 1),
        "ENDMDL",
        atom.format(5, " CA", " ", "GLY", 99, 1, 1, 1),
    ]
    (one,) = read_pdb(written(tmp_path, "a.pdb", "\n".join(lines)))
    assert one.letters == "GA" and one.numbers.tolist() == [3, 9]
    assert one.positions[0, 1].tolist() == [1, 2, 3] and np.isnan(one.positions[1, 1]).all()
    with pytest.raises(ValueError, match="has no chain 'C' of amino acids; it has A"):
        read_pdb(tmp_path / "a.pdb", "C")
    with pytest.raises(ValueError, match="line 1: no numbers in the columns"):
        read_pdb(written(tmp_path, "b.pdb", lines[0][:30] + "x" * 24))
    with pytest.raises(ValueError, match="holds no amino acid"):
        read_pdb(written(tmp_path, "c.pdb", "HEADER\n"))


def test_what_no_pdb_file_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="9,999 residues of a chain"):
        pdb_text([("G" * 10_000, np.zeros((10_000, 14, 3)), np.zeros(10_000))], [])
    with pytest.raises(ValueError, match="no PDB file holds that"):
        pdb_text([("G", np.full((1, 14, 3), np.nan), np.zeros(1))], [])
    with pytest.raises(ValueError, match="is no amino acid"):
        sequence("MK?")
