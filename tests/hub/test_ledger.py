"""The ledger's summary: each kind of key that a model's files hold, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

import anyformer as af
from anyformer.hub.ledger import Ledger, TensorLine
from anyformer.hub.tables.config import Line

TENSOR = TensorLine("a", (1,), "F32", "used", "a")


@pytest.mark.parametrize("status", ["used", "fixed", "ignored", "refused"])
def test_the_summary_counts_every_status_of_a_key(status: str) -> None:
    ledger = Ledger(
        "folder", "hf", [TENSOR], files={"generation_config.json": [Line("k", 1, status, "")], "empty.json": []}
    )
    assert ledger.summary() == f"1 tensors: 1 used; 1 keys of generation_config.json: 1 {status}"


def test_files_without_keys_are_not_in_the_summary(tmp_path: Path) -> None:
    own = af.build(af.recipe("gpt", "tiny").but({"blocks.0.mixer": af.parts.Mamba.of()}), seed=0)  # our own format
    own.save(tmp_path / "own")
    assert (
        af.load(tmp_path / "own").ledger.summary() == f"{len(own.state_dict())} tensors: {len(own.state_dict())} used"
    )
