"""Every target writes a file that gives the model's numbers at any length, says what it cannot hold, and foresees its
times and bytes; what is deployed runs without this package."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.cli import main
from anyformer.core import pages
from anyformer.edge import artefact, design, device, pte, targets
from anyformer.edge.finish import designed
from anyformer.edge.medium import Pictures, Sounds, Texts
from anyformer.edge.running import Running
from anyformer.edge.space import Choice, key, space
from anyformer.edge.targets.base import LENGTHS, Target, rounded
from anyformer.edge.wish import Wish
from tests.edge.test_artefact import BASE, CHOICE
from tests.edge.test_design import SPACE, silent, written
from tests.edge.test_space import SMALL

needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="pip install executorch==1.5.1"
)
BOTH = ["torch", pytest.param("executorch", marks=needs_executorch)]
TINY = {**SPACE, "dim": [16], "depth": [1, 2], "mixer": ["own"], "vocab": [160]}


@pytest.mark.parametrize("name", BOTH)
def test_a_file_gives_the_numbers_of_the_model_and_its_bytes_are_counted(name: str, tmp_path: Path) -> None:
    """Two rows of odd lengths, padded: sizes that are fixed in a file are not those of its inputs."""
    target, made = targets.find(name)(tokens=40), space(BASE, 40, SMALL)
    model = pages.build(made.recipe(CHOICE), seed=0).eval()
    entries = target.plan(model, 8)
    small = rounded(model, entries)
    file = tmp_path / target.file
    report = target.write(small, file)
    batches = [artefact.example(small, n, rows=2) for n in (1, 7, 33)]
    for batch in batches:
        batch["input_ids"], batch["attention_mask"][1, batch["input_ids"].shape[1] // 2 + 1 :] = (
            batch["input_ids"] % 96,
            0,
        )
    assert target.difference(file, small, batches) < 1e-5
    with torch.no_grad():
        assert float((small(**batches[1]).logits - model(**batches[1]).logits).abs().max()) > 1e-6  # it is rounded
    assert 0 < file.stat().st_size - target.weights(model, entries) < 120_000
    ((p50, p95, memory), *others) = target.measured(file, small)
    assert len(others) == 2 and 0 < p50 <= p95 and memory > 0
    if name == "executorch":
        assert report.delegated is not None and report.delegated[0] == report.delegated[1] > 5
        assert {e.bits for e in entries if e.why == "XNNPACK multiplies it in float32"} == {None}
        assert [e.path for e in entries if e.bits] == ["embed.tokens"]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Target], device.Table]:
    """A table of a target whose files take a millisecond a layer and one for the ends, and 100 and 50 bytes."""

    def table(target: Target) -> device.Table:
        def probe(self: Target, model: Any, choice: Choice, path: Path) -> Any:
            wide = sum(choice[f"hidden.{i}"] for i in range(choice["depth"]))
            return lambda: 1.0 + wide, 50 + 100 * wide

        monkeypatch.setattr(type(target), "_probe", probe)
        monkeypatch.setattr(device, "timed", lambda runs, *_: {name: run() for name, run in runs.items()})
        wanted: dict[str, Any] = {
            **SMALL,
            "dim": [16],
            "mixer": ["own", "convolution"],
            "kv_heads": [0],
            "heads": [2],
            "pool": ["own"],
        }
        return device.Table(space(BASE, 12, wanted), target)

    return table


def test_a_layer_is_half_the_difference_of_two_files(
    counted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path))
    table, noise = counted(targets.find("torch")(tokens=12)), random.Random(0)
    table.fill()
    rows = dict(table.rows)
    for _ in range(8):
        choice = table.space.drawn(noise)
        wide = sum(choice[f"hidden.{i}"] for i in range(choice["depth"]))
        assert table.milliseconds(choice) == pytest.approx(1 + wide) and table.graph(choice) == 50 + 100 * wide
    assert table.rows == rows  # all was known
    other = targets.find("onnx")(tokens=12)
    assert device.Table(table.space, other).rows == {} and "PyTorch" in table.key  # times of a target are its own


def test_bits_that_cost_time_have_rows_of_their_own() -> None:
    made, target = space(BASE, 12, SMALL), targets.find("torch")(tokens=12)
    table = device.Table(made, target)
    names = [{table._name(part) for _, part in table._signed({**CHOICE, "bits": b})} for b in (4, 8)]
    assert not names[0] & names[1]


@pytest.mark.parametrize("name", list(targets.TARGETS))
@pytest.mark.parametrize("medium", [Texts, Pictures, Sounds, Running])
def test_a_script_has_at_most_40_lines(name: str, medium: Any) -> None:
    script = targets.TARGETS[name]().script(medium).decode()
    compile(script, "run.py", "exec")
    assert len(script.splitlines()) <= 40 and max(map(len, script.splitlines())) <= 120
    assert "anyformer" not in script.replace('["anyformer"]', "") and Template(script).get_identifiers() == []


def test_a_target_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="--target tpu: unknown; there is onnx, executorch, torch, gguf"):
        targets.find("tpu")


@pytest.mark.parametrize(
    ("target", "package", "says"),
    [
        ("onnx", "onnxscript", r'onnx needs onnxscript .*pip install "anyformer\[engine\]"'),
        ("executorch", "executorch", r"executorch needs executorch.*pip install executorch==1\.5\.1"),
    ],
)
def test_a_missing_package_is_named_with_the_command_before_anything_is_written(
    target: str, package: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    wish = Wish(written(tmp_path / "rows.jsonl"), "pearson", 90_000, 5.0, target=target)
    with pytest.raises(ImportError, match=says):
        designed(wish, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_products_that_a_target_does_not_have_are_refused(tmp_path: Path) -> None:
    wish = Wish(written(tmp_path / "rows.jsonl"), "pearson", 90_000, 5.0, target="torch", products="int8")
    with pytest.raises(ValueError, match="--target torch: products must be one of 'float32'; got 'int8'"):
        wish.check()


def test_a_mixer_that_cannot_be_held_is_left_out_and_refused_by_path_where_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target, tried = targets.find("torch")(tokens=12), list[Any]()

    def write(model: Any, path: Path, *_: Any) -> None:
        tried.append(model)
        if "Convolution" in repr(model.recipe):
            raise ValueError("no such operator")

    monkeypatch.setattr(target, "write", write)
    monkeypatch.setattr(target, "difference", lambda path, model, some: 0.5 * ("Window" in repr(model.recipe)))
    made = space(BASE, 12, {**SMALL, "mixer": ["own", "window", "convolution"], "pool": ["own", "additive"]})
    left = target.fitted(made)
    assert left.layer["mixer"] == ("own",) and left.without["mixer=convolution"] == "no such operator"
    assert left.without["mixer=window"] == "the file differs from the model by 5.0e-01"
    assert len(tried) == 4 and max(LENGTHS) > 12  # own, window, convolution, and the other pool
    with pytest.raises(ValueError, match=r"--target torch: blocks\.0\.mixer = window: the file differs"):
        target.fitted(made, ("mixer",))


@needs_executorch
def test_executorch_refuses_four_bits_and_products_that_are_left(tmp_path: Path) -> None:
    kind = targets.find("executorch")
    made = space(BASE, 12, {**SMALL, "bits": [4, 8], "mixer": ["own"], "pool": ["own"]})
    with pytest.raises(ValueError, match="--target executorch: bits = 4: XNNPACK multiplies it in float32, or in 8"):
        kind(tokens=12).fitted(made, ("bits",))
    model = pages.build(made.recipe({**CHOICE, "depth": 1, "pool": "own"}), seed=0).eval()
    with pytest.raises(ValueError, match=r"XNNPACK takes \d+ of \d+ products, 110% is the least"):
        kind(tokens=12, coverage=1.1).write(model, tmp_path / "model.pte")
    assert not any(tmp_path.iterdir())


@needs_executorch
def test_executorch_multiplies_whole_numbers(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="pip install torchao")
    target, made = targets.find("executorch")(tokens=12, products="int8"), space(BASE, 12, SMALL)
    choice = {**CHOICE, "depth": 1}
    model = pages.build(made.recipe(choice), seed=0).eval()
    small = rounded(model, target.plan(model, 8))
    plain, whole = tmp_path / "plain.pte", tmp_path / "whole.pte"
    target.write(small, plain)
    assert target.write(small, whole, whole=True).whole >= 5 and whole.stat().st_size < plain.stat().st_size
    row = artefact.example(small, 9, rows=2)
    assert 1e-6 < target.difference(whole, small, [row]) < 0.05
    assert target.whole and pte.DELEGATED == 0.9


@pytest.mark.parametrize("name", BOTH)
def test_a_whole_design_for_a_target(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(design, "BEST", 1)
    rows, out = written(tmp_path / "rows.jsonl"), tmp_path / "out"
    wish = Wish(
        rows, "pearson", 400_000, 50.0, target=name, hours=4 / 3600, tokens=16, of="tiny", values=TINY, trials=2
    )
    report = designed(wish, out, say=silent)
    target = targets.find(name)(tokens=16)
    files = {f.name: f.stat().st_size for f in (out / "model").iterdir()}
    assert set(files) == {target.file, "tokenizer.json", "run.py", "facts.json"}
    assert sum(files.values()) == report["chosen"]["real_size"] == pytest.approx(report["chosen"]["size"], rel=0.08)
    assert len(report["chosen"]["real"]) == 3 and report["difference"] < 1e-4 and report["table"]["error"] < 5
    assert (report["delegated"] is None) == (name == "torch") and designed(wish, out, say=silent) == report
    assert any(key(report["chosen"]["choice"]) == key(p["choice"]) for p in report["points"])
    texts = ["good great lovely film", "bad", "the film was awful and dull at night with people and music in town"]
    code = (
        "import sys, runpy\nsys.modules.update(dict.fromkeys(('anyformer', 'transformers', 'onnxruntime')))\n"
        "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    )
    call = [sys.executable, "-c", code, str(out / "model" / "run.py"), *texts]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    scores = [float(line.split("\t")[0]) for line in done.stdout.splitlines()]
    model, facts = af.load(out / "trained").eval(), json.loads((out / "model" / "facts.json").read_text())
    ids, mask = model.tokenizer.batch(texts)
    with torch.no_grad():
        ours = model(input_ids=ids[:, :16], attention_mask=mask[:, :16]).logits[:, 0]
    assert scores[:2] == pytest.approx((ours * facts["deviation"] + facts["mean"]).tolist()[:2], abs=0.2)
    assert scores[0] > scores[1]
    assert main(["edge", "--help"]) in (0, None)


def test_fewer_than_all_targets_have_products_of_whole_numbers() -> None:
    assert {n for n, t in targets.TARGETS.items() if "int8" in t.kinds} == {"onnx", "executorch"}
    assert replace(Wish("a", "f1", 1, 1.0), target="torch", tokens=9).runtime().tokens == 9
