"""A design on running text: bits for each byte, where less is better, and a folder that continues a prompt."""

from __future__ import annotations

import json
import math
import random
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.cli import edge, main
from anyformer.compress import few
from anyformer.core import pages
from anyformer.edge import artefact, design, finish, learn
from anyformer.edge.design import Design, Point
from anyformer.edge.finish import designed, mattered
from anyformer.edge.medium import Texts
from anyformer.edge.running import Running, reading
from anyformer.edge.shared import GROUP, Shared
from anyformer.edge.space import space
from anyformer.edge.task import read
from anyformer.edge.wish import Wish
from tests.edge.bare import bare
from tests.later import needs

needs("optuna", reason="the search needs the extra anyformer[edge]")
WISH = Wish("", "bits", 120_000, 5.0, hours=2 / 3600, tokens=32, model="llama", of="tiny", trials=3)
SPACE: dict[str, list[Any]] = {
    "dim": [32], "depth": [1], "bits": [8], "tied": [0, 1], "mixer": ["own"], "heads": [2], "kv_heads": [0],
    "hidden": [1, 2],
}  # fmt: skip


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real English: 80,000 characters of Python's own documentation."""
    file = tmp_path_factory.mktemp("book") / "book.txt"
    file.write_text("\n".join(topics[name] for name in sorted(topics))[:80_000], encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def made(book: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("edge") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYFORMER_CACHE", str(out.parent / "cache"))
        patch.setattr(design, "BEST", 1)
        return designed(replace(WISH, task=str(book), values=SPACE), out, say=lambda _: None), out


def test_running_text_is_searched_measured_and_stored_as_rows_are(
    made: tuple[dict[str, Any], Path], book: Path
) -> None:
    report, out = made
    assert {f.name for f in (out / "model").iterdir()} == {"model.onnx", "run.py"}
    size = sum(f.stat().st_size for f in (out / "model").iterdir())
    assert size == report["chosen"]["real_size"] == pytest.approx(report["chosen"]["size"], rel=0.06)
    assert 2 < report["value"] < 5.5 and report["interval"][0] < report["value"] < report["interval"][1]
    assert report["difference"] < 1e-4 and report["lost"] < 0.01 and report["covered"] > 0.9
    pieces = (len(book.read_bytes()) - 1) // 32
    held = pieces // 10
    assert report["row"] == "32 bytes at once"
    assert report["rows"] == {"learn": pieces - 2 * held, "choose": held, "test": held}
    assert report["better"] == "lower" and "vocab" in report["without"] and report["matrices"]["embed.tokens"] == 8
    assert all(1 < p["metric"] < 9 for p in report["points"])
    for values in report["mattered"].values():
        assert [bits for bits, _ in values.values()] == sorted(bits for bits, _ in values.values())
    assert edge.report(report, "out").startswith(f"bits      {report['value']:.4f} (95 %: ")
    assert 'd.better == "lower"' in (out / "front.html").read_text(encoding="utf-8")


def test_the_script_needs_no_torch_has_the_bits_of_the_report_and_continues(
    made: tuple[dict[str, Any], Path], book: Path, tmp_path: Path
) -> None:
    report, out = made
    script = out / "model" / "run.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 40
    held = 32 * report["rows"]["test"] + 1
    (tmp_path / "held.txt").write_bytes(book.read_bytes()[-held:])

    def said(*args: str) -> str:
        call = [*bare(script, "tokenizers"), *args]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout

    assert said("--bits", str(tmp_path / "held.txt")) == f"{report['value']:.4f} bits for each of {held - 1:,} bytes\n"
    (tmp_path / "odd.txt").write_bytes(book.read_bytes()[:50])  # a piece, and a shorter one
    model = af.load(out / "trained").eval()
    ids, lost = torch.tensor([list(book.read_bytes()[:50])]), 0.0
    for begin, end in ((0, 32), (32, 49)):
        logits = model(input_ids=ids[:, begin:end]).logits[0]
        lost += float(torch.nn.functional.cross_entropy(logits, ids[0, begin + 1 : end + 1], reduction="sum"))
    assert float(said("--bits", str(tmp_path / "odd.txt")).split()[0]) == pytest.approx(
        lost / math.log(2) / 49, abs=0.05
    )
    first = said("The value of", "--bytes", "60")
    assert first == said("The value of", "--bytes", "60") != said("The value of", "--bytes", "60", "--seed", "1")
    assert first.startswith("The value of") and 60 <= len(first) <= 73
    assert model.tokenizer.vocab_size == model.vocab == 257  # the trained model reads and writes text by itself


@pytest.mark.parametrize("page", ["llama", "gpt"])
def test_a_decoder_of_a_page_is_a_file_with_the_numbers_of_the_model(page: str, book: Path, tmp_path: Path) -> None:
    medium = reading(pages.recipe(page, "tiny"), 64, None)
    task = read(book, "bits", medium)
    made = space(pages.recipe(page, "tiny"), 64, {**SPACE, "mixer": ["own", "linear"]}, medium.sizes())
    choice = {**made.end(True, random.Random(0)), "bits": 4, "mixer.0": "own", "tied": 1}
    model = pages.build(made.recipe(made.full(choice)), seed=0).eval()
    few.quantise(model, few.Work("rtn", GROUP, few.plan(model, 4, GROUP)))
    artefact.write(model, tmp_path / "model.onnx")
    checks = medium.checks(task.parts["test"], None)
    assert [c["input_ids"].shape[1] for c in checks] == [1, 3, 17, 33, 63]
    assert artefact.difference(artefact.opened(tmp_path / "model.onnx"), model, checks) < 1e-5
    (only,) = artefact.session(tmp_path / "model.onnx", 1).get_inputs()
    assert only.name == "input_ids"


@pytest.mark.parametrize("page", ["llama", "gpt", "mamba"])
def test_shared_weights_of_a_decoder_are_those_of_a_model_alone(page: str) -> None:
    base, medium, noise = pages.recipe(page, "mini"), Running(16), random.Random(3)
    values: dict[str, list[Any]] = {"dim": [32, 64], "depth": [1, 2]} | ({} if page == "mamba" else {"heads": [2]})
    made = space(base, 16, values, medium.sizes())
    assert {"own", "mamba"} <= set(made.layer["mixer"]) and "mixer=fourier" in made.without
    assert page == "mamba" or "hidden" in made.layer
    weights, ids = Shared(made).eval(), torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(3):
            choice = made.drawn(noise)
            alone = weights.standing(choice).eval()
            assert torch.equal(alone(input_ids=ids).logits, weights.run(choice)(input_ids=ids).detach())
            changed = ids.clone()
            changed[:, 5:] = 7
            assert torch.allclose(alone(input_ids=changed).logits[:, :5], alone(input_ids=ids).logits[:, :5], atol=1e-5)


def test_every_byte_is_a_label_once_and_the_end_is_looked_at_once(book: Path) -> None:
    task, text = read(book, "bits", Running(32)), np.frombuffer(book.read_bytes(), np.uint8)
    labels = torch.cat([task.parts[name].labels.flatten() for name in ("learn", "choose", "test")])
    assert torch.equal(labels, torch.from_numpy(text.copy()).long()[-len(labels) :]) and len(text) - len(labels) <= 32
    batch = task.medium.batch(task.parts["test"], None, [0, 2])["input_ids"]
    assert torch.equal(batch[:, 1:], task.parts["test"].labels[[0, 2], :-1])


def test_another_text_is_looked_at_once_if_it_is_named(book: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("another text " * 20, encoding="utf-8")
    task = read(book, "bits", Running(32), test=tmp_path / "other.txt")
    assert bytes(task.parts["test"].items[-1]) == ("another text " * 20).encode()[-33:]  # type: ignore[misc]
    assert bytes(task.parts["choose"].items[-1]) == book.read_bytes()[-33:]  # type: ignore[misc]
    (tmp_path / "other.txt").write_text("short", encoding="utf-8")
    with pytest.raises(ValueError, match="--test has less than one of the pieces of text, of 32 bytes at once"):
        read(book, "bits", Running(32), test=tmp_path / "other.txt")


def test_bits_equal_an_independent_computation_and_less_is_better(book: Path) -> None:
    task = read(book, "bits", Running(32))
    part = task.parts["test"].first(40)
    noise = torch.randn(40, 32, 257, generator=torch.Generator().manual_seed(0))
    p = noise.double().softmax(-1).numpy()
    each = [-math.log2(p[i, j, part.labels[i, j]]) for i in range(40) for j in range(32)]
    assert -task.measure(noise, part) == pytest.approx(np.mean(each), rel=1e-5)
    right = torch.nn.functional.one_hot(part.labels, 257) * 9.0
    assert task.measure(right, part) > task.measure(noise, part)
    low, high = task.interval(noise, part)
    assert low < -task.measure(noise, part) < high
    with torch.no_grad():
        value = learn.loss(task, part, list(range(40)), noise)
    assert float(value) / math.log(2) == pytest.approx(-task.measure(noise, part), rel=1e-5)
    q = (noise * 1.1).double().log_softmax(-1).numpy()
    assert finish.moved(task, noise * 1.1, noise) == pytest.approx((p * (np.log(p) - q)).sum(-1).mean(), rel=1e-4)


def test_what_mattered_puts_fewer_bits_first() -> None:
    points = [Point({"dim": d}, 9, 1.0, metric=-bits) for d, bits in ((32, 3.0), (64, 2.0), (64, 2.5), (96, 2.2))]
    points.append(Point({"dim": 128}, 9, 1.0))  # not computed
    assert mattered(points, WISH) == {"dim": {"64": [2.0, 2], "96": [2.2, 1], "32": [3.0, 1]}}
    assert [*mattered(points, WISH)["dim"]] == ["64", "96", "32"]
    assert max(points, key=lambda p: p.goodness).metric == -2.0 and points[-1].goodness < -100


def test_what_is_no_running_text_or_no_decoder_is_refused(book: Path, tmp_path: Path) -> None:
    assert isinstance(reading(pages.recipe("gpt", "tiny"), 8, None), Running)
    assert isinstance(reading(pages.recipe("bert", "tiny"), 8, None), Texts)
    (tmp_path / "short.txt").write_text("Too short.", encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"texts": "no such column"}\n', encoding="utf-8")
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"model": "bert"}, "--metric bits is of running text, and the model reads texts"),
        ({"metric": "accuracy"}, "--metric accuracy needs labels, and the model continues text"),
        ({"model": "t5"}, "the recipe has no 'blocks', so depth is no choice of EncoderDecoder"),
        ({"task": str(tmp_path / "short.txt")}, "has 0 pieces of text; a design needs at least 50"),
        ({"task": str(tmp_path / "rows.jsonl")}, "text"),
        ({"values": {"vocab": [512]}}, "the rows fix 'embed.vocab', so vocab is no choice of CausalLM"),
        ({"teacher": "t"}, "a teacher reads texts, and the rows are pieces of text: leave --teacher out"),
    )
    for change, says in cases:
        with pytest.raises(ValueError) as error:
            Design(
                replace(WISH, **{"task": str(book), **change}),
                tmp_path / "out",
                af.build("bert", "tiny") if "teacher" in change else None,
            )
        assert says in str(error.value)
    assert not (tmp_path / "out").exists()


def test_rows_with_text_alone_are_running_text(tmp_path: Path) -> None:
    rows = [{"text": f"Row {i}: {'word ' * (i % 9)}", "label": i} for i in range(200)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    task = read(tmp_path / "rows.jsonl", "bits", Running(16))
    assert bytes(task.parts["test"].items[-1]) == ("\n\n".join(r["text"] for r in rows)).encode()[-17:]  # type: ignore[misc]


def test_the_command_of_the_document_on_running_text_is_understood(
    made: tuple[dict[str, Any], Path], book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYFORMER_CACHE", str(made[1].parent / "cache"))
    text = (Path(__file__).parents[2] / "docs" / "edge.md").read_text(encoding="utf-8")
    commands = [c for c in re.findall(r"^anyformer (edge (?:.*\\\n)*.*)$", text, re.M) if "--metric bits" in c]
    assert len(commands) == 2
    for command in commands:
        args = shlex.split(command.replace("\\\n", " "))
        for name, value in {"--task": str(book), "--size": "1kB", "--out": str(tmp_path / "out")}.items():
            args[args.index(name) + 1] = value
        if "--target" in args:  # its package can be missing; tests/edge/test_gguf.py
            args[args.index("--target") + 1] = "onnx"
        small = [part for name, values in SPACE.items() for part in (f"--space.{name}", json.dumps(values))]
        assert main([*args, "--of", "tiny", "--tokens", "32", *small]) == 3  # nothing has a kilobyte
        shutil.rmtree(tmp_path / "out")
