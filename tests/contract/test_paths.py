"""Paths are public API: where weights, taps and adapters are found. A change of one must be meant.

`python tests/contract/test_paths.py` writes the files anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import anyformer as af
from anyformer.core.pages import empty

FOLDER = Path(__file__).parent / "paths"


def listing(page: str) -> str:
    """Every tensor of the page at `tiny`, with its shape."""
    model = empty(af.recipe(page, "tiny"))
    return "".join(f"{name} {'x'.join(map(str, value.shape))}\n" for name, value in model.state_dict().items())


@pytest.mark.parametrize("page", af.names())
def test_paths_are_what_they_were(page: str) -> None:
    file = FOLDER / f"{page}.txt"
    assert file.exists(), f"no {file.name} yet: `python {Path(*Path(__file__).parts[-3:])}` writes it"
    assert listing(page).splitlines() == file.read_text().splitlines()


def test_no_paths_of_pages_that_are_gone() -> None:
    assert {file.stem for file in FOLDER.glob("*.txt")} == set(af.names())


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in af.names():
        (FOLDER / f"{name}.txt").write_text(listing(name))
