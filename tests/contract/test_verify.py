"""`verify` as a user meets it: a model of one's own, one that is broken; the table, JSON, what was left out and why."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.contract import CHECKS, Report, compositions, verify
from anyformer.contract.report import OWN, Row, selected
from anyformer.contract.subjects import redrawn
from anyformer.hub.formats.safetensors import open_weights, write_safetensors
from anyformer.parts import RMSNorm
from anyformer.parts.attention.cache import KeysValues


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def result(report: Report, check: str) -> Row:
    return next(row for row in report.rows if row.check == check)


def saved(folder: Path, page: str = "llama", **changes: Any) -> str:
    af.build(page, "tiny", seed=0, **changes).save(folder)
    return str(folder)


@pytest.mark.parametrize("page", ["llama", "bert", "t5", "mamba"])
def test_a_model_of_ones_own_passes(tmp_path: Path, page: str) -> None:
    report = verify(saved(tmp_path / "model", page))
    assert report.ok, str(report)
    assert {row.check for row in report.rows} == {c.name for c in CHECKS if c.checkpoint} | {OWN.name}
    assert result(report, "parity").result == "pass"


@pytest.fixture
def own_type_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyformer.contract.report.CHECKS", [])


TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize("mixed", [False, True], ids=["one type", "norms in float32"])
@pytest.mark.parametrize("name", TYPES)
def test_what_load_gives_is_looked_at_in_its_own_type(
    tmp_path: Path, own_type_alone: None, name: str, mixed: bool
) -> None:
    folder = tmp_path / "model"
    model = redrawn(af.build("llama", "tiny", seed=0)).to(TYPES[name])
    weights = {n: t.float() if mixed and "norm" in n else t for n, t in model.state_dict().items()}
    af.hub.save(model, folder, weights=weights)
    assert next(af.load(folder).parameters()).dtype == TYPES[name]
    row = result(verify(str(folder)), OWN.name)
    assert row.result == "pass", row.detail
    assert (row.difference == 0) is (name == "float32")


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_what_goes_wrong_in_half_precision_alone_fails(
    tmp_path: Path, own_type_alone: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path, forward = saved_as(tmp_path / "model", TYPES[name]), RMSNorm.forward
    monkeypatch.setattr(
        RMSNorm, "forward", lambda self, x: forward(self, x) * (1.0 if x.dtype == torch.float32 else 1.5)
    )
    row = result(verify(path), OWN.name)
    assert row.result == "FAIL" and "rounding alone by" in row.detail


def saved_as(folder: Path, dtype: torch.dtype) -> str:
    redrawn(af.build("llama", "tiny", seed=0)).to(dtype).save(folder)
    return str(folder)


def test_another_class_of_the_files_is_compared_with_that_class(tmp_path: Path) -> None:
    folder = Path(saved(tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "angle": 3}))
    report = verify(str(folder), task="none", ignore=["angle"])
    assert report.ok, str(report)
    assert result(report, "parity").result == "pass"


def test_a_composition_passes_what_needs_no_oracle(tmp_path: Path) -> None:
    next(s for s in compositions() if s.model.generates).model.save(tmp_path / "model")
    report = verify(str(tmp_path / "model"))
    assert report.ok, str(report)
    assert result(report, "parity").result == "left out"
    assert "transformers lacks" in result(report, "parity").detail
    assert result(report, "caching changes nothing").result == "pass"


def test_a_fault_in_one_place_fails_there_and_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "model")
    monkeypatch.setattr(KeysValues, "trim", lambda self, length: None)
    report = verify(path)
    assert not report.ok
    assert [row.check for row in report.rows if row.result == "FAIL"] == ["cached after rollback"]
    assert "FAIL: cached after rollback" in report.table()


def test_weights_that_are_not_numbers_fail(tmp_path: Path) -> None:
    path = saved(tmp_path / "model")
    file = open_weights(path)
    tensors = {name: file.get(name).clone() for name in file.names()}
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    write_safetensors(path, tensors)
    report = verify(path)
    assert not report.ok
    assert "not finite" in report.table()


def test_a_model_that_cannot_be_loaded_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"no_such_key": 1}))
    with pytest.raises(ValueError, match="no_such_key"):
        verify(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        verify(str(tmp_path / "nowhere"))


def test_without_the_oracle_the_rest_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyformer.contract.report.available", lambda: False)
    report = verify(saved(tmp_path / "model"))
    assert report.ok
    assert "pip install" in result(report, "parity").detail
    assert result(report, "batching changes nothing").result == "pass"


def test_no_check_of_a_page_fails_for_want_of_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr("anyformer.contract.report.CHECKS", [c for c in CHECKS if c.item == 3])
    report = verify("vit")
    assert report.ok is False and not any(row.result == "FAIL" for row in report.rows)  # nothing was run
    assert "pip install" in result(report, "ledger is complete").detail


def test_progress_table_and_json_say_the_same(tmp_path: Path) -> None:
    told: list[str] = []
    report = verify(saved(tmp_path / "model", depth=1), progress=told.append)
    assert len(told) == len(report.rows)
    data = json.loads(json.dumps(report.to_json()))
    assert data["ok"] is True
    assert [row["check"] for row in data["rows"]] == [row.check for row in report.rows]
    lines = report.table().splitlines()
    assert lines[0].startswith(report.subject)
    assert all(any(row.check in line and row.result in line for line in lines) for row in report.rows)
    assert all(row.detail for row in report.rows if row.result == "left out"), "something was left out without a reason"


def test_drawn_variances_are_positive() -> None:
    norm = redrawn(torch.nn.BatchNorm1d(64))
    assert (
        bool((norm.running_var > 0).all())
        and bool((norm.running_mean < 0).any())
        and int(norm.num_batches_tracked) == 0
    )


def test_an_empty_report_is_not_a_good_one() -> None:
    assert not Report("nothing").ok


def test_every_check_runs_somewhere() -> None:
    from anyformer.contract import cases

    run = {check.name for check, _ in cases()}
    assert run == {check.name for check in CHECKS}
    for item in (*range(1, 15), 16, *range(18, 22)):
        assert any(check.item == item for check in CHECKS), f"item {item} of the contract has no check"


@pytest.mark.parametrize("name", ["vit", "linear"])
def test_a_check_without_a_case_has_a_reason(name: str) -> None:
    for check in CHECKS:
        cases, why = selected(check, name, None)
        assert next(cases, None) is not None or (why and not why.endswith(": None")), check.name
