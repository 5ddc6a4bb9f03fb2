"""Proteins from files and into them: FASTA, alignments, PDB.

| file              | read as                                                                            |
|-------------------|------------------------------------------------------------------------------------|
| .fasta, .fa, .faa | sequences; `:` parts chains; small letters are capitals; `*` at the end is dropped |
| .a3m              | an alignment; small letters are insertions, which are dropped; `.` is `-`          |
| .sto, .stk        | a Stockholm alignment; columns where the first row has a gap are dropped           |
| .pdb, .ent        | the first model: atoms of amino acids, a chain at a time                           |

20 letters are residues, X is an unknown one; B, J, O, U and Z, rare or ambiguous, become X. Anything else is an error
with its place. L residues, S rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anyformer.parts.folding.residues import ATOMS, LETTERS, NAMES, SLOTS, UNKNOWN

GAP = "-"
RARE = "BJOUZ"
MODIFIED = {"MSE": "MET", "SEC": "CYS", "PYL": "LYS", "HSD": "HIS", "HSE": "HIS", "HSP": "HIS"}  # read as these
MOST_BYTES = 1 << 28
CHAINS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True)
class Sequence:
    """A protein without a structure.

    Attributes:
        name: the first word behind `>`.
        chains: the letters of each chain, of `LETTERS`.
    """

    name: str
    chains: tuple[str, ...]

    def __len__(self) -> int:
        return sum(map(len, self.chains))


@dataclass(frozen=True, eq=False)
class Structure:
    """One chain with its atoms.

    Attributes:
        name: of the file, with the chain.
        letters: its residues.
        numbers: (L,) as in the file; a jump is a gap in the structure.
        positions: (L, 14, 3) in angstrom, NaN where an atom is missing.
    """

    name: str
    letters: str
    numbers: np.ndarray
    positions: np.ndarray


def sequence(letters: str, name: str = "the protein") -> Sequence:
    """A protein of letters; `:` parts chains.

    Raises:
        ValueError: for an empty chain, or a letter that is no residue, with its place.
    """
    text = "".join(letters.split()).upper()
    text = text[:-1] if text.endswith("*") else text
    chains = text.split(":")
    place = 0
    for number, chain in enumerate(chains, 1):
        if not chain:
            what = f"chain {number} of {len(chains)} is empty" if len(chains) > 1 else "it has no residues"
            raise ValueError(f"{name}: {what}; a protein is one letter for each residue, such as MKTAYIAK")
        for letter in chain:
            place += 1
            if letter not in LETTERS and letter not in RARE:
                raise ValueError(
                    f"{name}: {letter!r} at residue {place} is no amino acid; expected {LETTERS[:UNKNOWN]}, X for an "
                    f"unknown one, or {', '.join(RARE)}, which are read as X"
                )
    known = str.maketrans(dict.fromkeys(RARE, "X"))
    return Sequence(name, tuple(chain.translate(known) for chain in chains))


def read_fasta(path: str | Path) -> list[Sequence]:
    """The sequences of a FASTA file.

    Raises:
        FileNotFoundError, ValueError: for no sequence, two of one name, or what `sequence` refuses.
    """
    found = [sequence(text, name) for name, text in fasta(_text(path).splitlines(), path)]
    names = [one.name for one in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{path}: two sequences are called {twice!r}; give each a name of its own behind '>'")
    return found


def read_sequences(path: str | Path) -> list[Sequence]:
    """The sequences of a FASTA file; of a PDB file the chains of its one protein, without their atoms."""
    if Path(path).suffix.lower() not in (".pdb", ".ent"):
        return read_fasta(path)
    return [Sequence(Path(path).stem, tuple(chain.letters for chain in read_pdb(path)))]


def _text(path: str | Path) -> str:
    file = Path(path)
    if file.is_file() and file.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has {file.stat().st_size:,} bytes; at most {MOST_BYTES:,} are read")
    return file.read_text(encoding="utf-8", errors="replace")


def fasta(lines: Iterable[str], where: object) -> Iterator[tuple[str, str]]:
    """Names and letters behind each `>` of the lines of a FASTA file; `where` is named in errors.

    Raises:
        ValueError: for lines that begin without a name, or none at all.
    """
    name, parts, count = None, list[str](), 0
    for number, line in enumerate(lines, 1):
        if line.startswith(">"):
            if name is not None:
                yield name, "".join(parts)
            count, parts = count + 1, []
            name = next(iter(line[1:].split()), f"protein{count}")
        elif line.strip() and not line.startswith((";", "#")):
            if name is None:
                raise ValueError(f"{where}, line {number}: a FASTA file begins with '>name'; got {line.strip()[:30]!r}")
            parts.append(line.strip())
    if name is None:
        raise ValueError(f"{where} holds no sequence: expected '>name' and its letters below")
    yield name, "".join(parts)


def read_alignment(path: str | Path) -> list[str]:
    """The rows of an alignment, the first one the protein itself, each as long as it: letters and `-`.

    Raises:
        ValueError: for another ending, rows that differ in length, or a letter that is no residue.
    """
    ending = Path(path).suffix.lower()
    if ending in (".a3m", ".fasta", ".fa"):
        records = fasta(_text(path).splitlines(), path)
        rows = [(name, "".join(c for c in text if not c.islower())) for name, text in records]
    elif ending in (".sto", ".stk"):
        rows = _stockholm(path)
    else:
        raise ValueError(f"{path}: an alignment ends in .a3m, .sto or .fasta (aligned); got {ending or 'no ending'!r}")
    rows = [(name, text.replace(".", GAP).replace("~", GAP).upper()) for name, text in rows]
    first = rows[0][1]
    for name, text in rows:
        if len(text) != len(first):
            raise ValueError(
                f"{path}: row {name!r} has {len(text)} columns, the first row, {rows[0][0]!r}, {len(first)}; the rows "
                "of an alignment are equally long (in .a3m, without small letters)"
            )
        for place, letter in enumerate(text, 1):
            if letter not in LETTERS and letter not in RARE and letter != GAP:
                raise ValueError(
                    f"{path}: row {name!r} has {letter!r} in column {place}, which is no residue and no gap"
                )
    kept = [i for i, letter in enumerate(first) if letter != GAP]
    known = str.maketrans(dict.fromkeys(RARE, "X"))
    return ["".join(text[i] for i in kept).translate(known) for _, text in rows]


def _stockholm(path: str | Path) -> list[tuple[str, str]]:
    """The rows of a Stockholm file, whose lines can come in pieces."""
    rows: dict[str, str] = {}
    for line in _text(path).splitlines():
        if line.startswith("//"):
            break
        if line.strip() and not line.startswith("#"):
            parts = line.split()
            if len(parts) != 2:
                raise ValueError(f"{path}: a line of a Stockholm file is a name and its letters; got {line[:40]!r}")
            rows[parts[0]] = rows.get(parts[0], "") + parts[1]
    if not rows:
        raise ValueError(f"{path} holds no row")
    return list(rows.items())


def read_pdb(path: str | Path, chain: str | None = None) -> list[Structure]:
    """The chains of the first model of a PDB file, atoms that 14 slots hold; of two places of an atom, the first.

    Residues without CA, C or N stay in the sequence without atoms; a residue that is no amino acid is left out, except
    for a few modified ones, which are read as the usual one.

    Raises:
        ValueError: for a file without such a chain, or a line whose numbers cannot be read.
    """
    found: dict[str, dict[tuple[int, str], tuple[str, dict[str, tuple[float, ...]]]]] = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        if line.startswith("ENDMDL"):
            break
        if not line.startswith(("ATOM  ", "HETATM")):
            continue
        name, label = line[12:16].strip(), line[17:20].strip()
        label = MODIFIED.get(label, label)
        if label not in NAMES or (line.startswith("HETATM") and line[17:20].strip() not in MODIFIED):
            continue
        try:
            place = tuple(float(line[i : i + 8]) for i in (30, 38, 46))
            key = int(line[22:26]), line[26]
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: no numbers in the columns of an atom: {line.rstrip()!r}"
            ) from None
        atoms = found.setdefault(line[21], {}).setdefault(key, (label, {}))[1]
        name = "SD" if name == "SE" and label == "MET" else name
        atoms.setdefault(name, place)
    if chain is not None and chain not in found:
        raise ValueError(f"{path} has no chain {chain!r} of amino acids; it has {', '.join(found) or 'none'}")
    if not found:
        raise ValueError(f"{path} holds no amino acid: expected lines 'ATOM' of the PDB format")
    stem = Path(path).stem
    return [_structure(f"{stem}_{c.strip() or 'A'}", rows) for c, rows in found.items() if chain in (None, c)]


def _structure(name: str, rows: dict[tuple[int, str], tuple[str, dict[str, tuple[float, ...]]]]) -> Structure:
    positions = np.full((len(rows), SLOTS, 3), np.nan, dtype=np.float32)
    letters = ""
    for row, (label, atoms) in enumerate(rows.values()):
        kind = NAMES.index(label)
        letters += LETTERS[kind]
        for slot, atom in enumerate(ATOMS[kind]):
            if atom in atoms:
                positions[row, slot] = atoms[atom]
    return Structure(name, letters, np.array([number for number, _ in rows]), positions)


def pdb_text(chains: list[tuple[str, np.ndarray, np.ndarray]], remarks: list[str]) -> str:
    """A PDB file of chains: letters, positions (L, 14, 3), and the number in the column of B factors of each residue,
    (L,).

    Raises:
        ValueError: for what the format cannot hold: more than 62 chains, 9,999 residues of one, 99,999 atoms, a place
            beyond 9,999 angstrom, or one that is no number.
    """
    if len(chains) > len(CHAINS):
        raise ValueError(f"the PDB format names {len(CHAINS)} chains, and there are {len(chains)}")
    lines, serial = [f"REMARK   1 {remark}"[:80] for remark in remarks], 0
    for name, (letters, positions, factors) in zip(CHAINS, chains, strict=False):
        if len(letters) > 9_999:
            raise ValueError(f"the PDB format numbers 9,999 residues of a chain, and chain {name} has {len(letters):,}")
        for number, (letter, places, factor) in enumerate(zip(letters, positions, factors, strict=True), 1):
            kind = LETTERS.index(letter)
            for atom, place in zip(ATOMS[kind], places, strict=False):
                serial += 1
                if not (np.isfinite(place).all() and (place > -1000).all() and (place < 10_000).all()):
                    raise ValueError(f"atom {atom} of residue {number} is at {place.tolist()}: no PDB file holds that")
                x, y, z = place
                shown = atom if len(atom) == 4 else f" {atom}"
                lines.append(
                    f"ATOM  {serial:>5} {shown:<4} {NAMES[kind]} {name}{number:>4}    "
                    f"{x:8.3f}{y:8.3f}{z:8.3f}{1:6.2f}{min(float(factor), 999.99):6.2f}          {atom[0]:>2}"
                )
        serial += 1
        lines.append(f"TER   {serial:>5}      {NAMES[LETTERS.index(letters[-1])]} {name}{len(letters):>4}")
    if serial > 99_999:
        raise ValueError(f"the PDB format numbers 99,999 atoms, and there are {serial:,}")
    return "\n".join([*lines, "END", ""])
