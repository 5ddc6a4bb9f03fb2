"""Amino acids: their order, atoms and ideal geometry, as AlphaFold 2 numbers them.

14 slots hold the heavy atoms of any residue, in the order of `ATOMS`; 37 types name all of them. 8 rigid groups: the
backbone, one without atoms, one of phi without heavy atoms, psi, chi 1 to 4.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LETTERS = "ARNDCQEGHILKMFPSTWYVX"  # X: unknown, without atoms
UNKNOWN = LETTERS.index("X")
SLOTS, GROUPS, ANGLES = 14, 8, 7
FIRST_CHI = 4  # the group of chi 1; its angle is the fourth: omega, phi, psi, chi 1 …


@functools.cache
def _table() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("residues.json").read_text())


TYPES: tuple[str, ...] = tuple(_table()["atoms"])  # the 37 names of atoms
NAMES: tuple[str, ...] = (*(r["name"] for r in _table()["residues"]), "UNK")
ATOMS: tuple[tuple[str, ...], ...] = (*(tuple(a[0] for a in r["atoms"]) for r in _table()["residues"]), ())
CHI: tuple[Any, ...] = (*(tuple(map(tuple, r["chi"])) for r in _table()["residues"]), ())  # four atoms an angle
SWAPS: tuple[dict[str, str], ...] = (
    *(r["swaps"] for r in _table()["residues"]),
    {},
)  # nobody can tell these apart


def _filled(values: Any) -> Tensor:
    """A tensor of 21 residues, on the CPU also where the default device is another one."""
    return torch.tensor(values, device="cpu")


def _exists() -> Tensor:
    """(21, 14) True where a residue has an atom in the slot."""
    return _filled([[slot < len(atoms) for slot in range(SLOTS)] for atoms in ATOMS])


def _groups() -> Tensor:
    """(21, 14) the rigid group of each atom."""
    rows = [[a[1] for a in r["atoms"]] for r in _table()["residues"]] + [[]]
    return _filled([row + [0] * (SLOTS - len(row)) for row in rows])


def _positions() -> Tensor:
    """(21, 14, 3) the place of each atom in the frame of its group, in angstrom."""
    rows = [[a[2:] for a in r["atoms"]] for r in _table()["residues"]] + [[]]
    return _filled([row + [[0.0, 0.0, 0.0]] * (SLOTS - len(row)) for row in rows])


def _types() -> Tensor:
    """(21, 14) the number of each atom's type, 0 where there is none."""
    return _filled([[TYPES.index(a) for a in atoms] + [0] * (SLOTS - len(atoms)) for atoms in ATOMS])


def _turns() -> Tensor:
    """(21, 7) True for an angle that is the same after half a turn."""
    rows = [[False] * 3 + r["turned"] + [False] * (4 - len(r["turned"])) for r in _table()["residues"]]
    return _filled([*rows, [False] * ANGLES])


def _has_angle() -> Tensor:
    """(21, 7) True for an angle that the residue has: omega, phi, psi, its chi."""
    return _filled([[i < 3 + len(chi) and bool(ATOMS[r]) for i in range(ANGLES)] for r, chi in enumerate(CHI)])


def _swapped() -> Tensor:
    """(21, 14) the slot of each atom in the other naming of the same residue."""
    rows = []
    for atoms, swaps in zip(ATOMS, SWAPS, strict=True):
        both = {**swaps, **{b: a for a, b in swaps.items()}}
        rows.append([atoms.index(both.get(a, a)) for a in atoms] + list(range(len(atoms), SLOTS)))
    return _filled(rows)


def _frames() -> tuple[Tensor, Tensor]:
    """The rotation (21, 8, 3, 3) and origin (21, 8, 3) of each group in the frame of the group that carries it.

    The x axis goes along the bond that the angle turns about; the y axis towards the atom before it. Groups that a
    residue lacks, and all of X, are 0.
    """
    rotation, origin = torch.zeros(21, GROUPS, 3, 3, device="cpu"), torch.zeros(21, GROUPS, 3, device="cpu")
    for r, names in enumerate(ATOMS[:UNKNOWN]):
        place = {name: PLACES[r, slot].double() for slot, name in enumerate(names)}
        axis = lambda *values: torch.tensor(values, dtype=torch.float64, device="cpu")  # noqa: E731
        made = {
            0: (torch.eye(3, device="cpu"), torch.zeros(3, device="cpu")),
            1: (torch.eye(3, device="cpu"), torch.zeros(3, device="cpu")),
            2: (_basis(place["N"] - place["CA"], axis(1.0, 0.0, 0.0)), place["N"]),
            3: (_basis(place["C"] - place["CA"], place["CA"] - place["N"]), place["C"]),
        }
        for number, (before, start, end, _) in enumerate(CHI[r]):
            if number == 0:
                made[FIRST_CHI] = _basis(place[end] - place[start], place[before] - place[start]), place[end]
            else:  # the axis before ends in the origin of its own frame
                made[FIRST_CHI + number] = _basis(place[end], axis(-1.0, 0.0, 0.0)), place[end]
        for group, (turn, at) in made.items():
            rotation[r, group], origin[r, group] = turn, at
    return rotation, origin


def _basis(x: Tensor, y: Tensor) -> Tensor:
    """The rotation whose first two columns lie along x, and in the plane of x and y."""
    first = x / x.norm()
    second = y - (y @ first) * first
    second = second / second.norm()
    return torch.stack((first, second, torch.linalg.cross(first, second)), 1)


EXISTS, GROUP, PLACES, TYPE = _exists(), _groups(), _positions(), _types()
TURNS, HAS_ANGLE, SWAPPED = _turns(), _has_angle(), _swapped()
FRAMES = _frames()
