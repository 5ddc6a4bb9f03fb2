"""`anyformer count` for people and for machines."""

from __future__ import annotations

import json
from typing import Any

import pytest

import anyformer as af
from anyformer.core import pages
from anyformer.edge import machine
from anyformer.edge.count import count


def test_the_command_says_it_for_people_and_machines(cli: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path))
    monkeypatch.setattr(machine, "matmul_rate", lambda *_: 2e9)
    monkeypatch.setattr(machine, "read_rate", lambda: 3e9)
    code, out, _ = cli("count", "gpt", "--tokens", "8", "--train")
    assert code == 0 and "blocks.*.mixer" in out and "optimiser" in out and "(estimate)" in out and "measured" in out
    af.build("gpt", "tiny", seed=0).save(tmp_path / "gpt")
    code, out, _ = cli("count", tmp_path / "gpt", "--tokens", "8", "--json")
    found = json.loads(out)
    assert code == 0 and found["parameters"] == count(pages.recipe("gpt", "tiny"), 8).parameters
    assert found["seconds"]["forward"] > 0 and found["joules"]["forward"] > 0 and found["machine"]["flops"] == 2e9
    assert "--train" in cli("count", "gpt", "--recompute")[2]
