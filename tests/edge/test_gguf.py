"""A design for llama.cpp: what the file holds is what the model holds, bytes are its tokens, and it continues texts."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.compress import few
from anyformer.core import pages
from anyformer.edge import artefact, design, device, finish, targets
from anyformer.edge.design import Design
from anyformer.edge.finish import designed
from anyformer.edge.running import Running
from anyformer.edge.shared import GROUP
from anyformer.edge.space import Space, space
from anyformer.edge.targets.base import LENGTHS, rounded
from anyformer.edge.targets.gguf import Gguf, paged
from anyformer.edge.wish import Wish
from anyformer.hub import save_gguf
from anyformer.hub.formats.gguf import GGUF
from anyformer.parts.quantised import Grid, full
from tests.later import needs

needs("optuna", reason="the search needs the extra anyformer[edge]")
needs_llama = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="pip install llama-cpp-python")
WISH = Wish("", "bits", 120_000, 50.0, target="gguf", hours=2 / 3600, tokens=32, model="llama", of="tiny", trials=3)
SPACE: dict[str, list[Any]] = {
    "dim": [32], "depth": [1, 2], "bits": [8, 4], "tied": [0, 1], "mixer": ["own"], "heads": [2], "kv_heads": [0, 1],
    "hidden": [1, 2],
}  # fmt: skip
PROOF = "naïve café, 東京 🙂\r\n\tthe end  of it"


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real English: 80,000 characters of Python's own documentation, and letters that are several bytes."""
    file = tmp_path_factory.mktemp("book") / "book.txt"
    file.write_text("\n".join(topics[name] for name in sorted(topics))[:80_000] + PROOF, encoding="utf-8")
    return file


def of(page: str, tokens: int = 32, **values: Any) -> Space:
    base = pages.recipe(page, "tiny")
    made = space(base, tokens, {**SPACE, **values}, Running(tokens).sizes())
    return replace(made, alike=tuple(made.layer))


def drawn(page: str, bits: int = 8, tied: int = 0, **values: Any) -> Any:
    """A model whose every weight was drawn, with two layers."""
    made = of(page, **values)
    choice = {**made.end(True, random.Random(0)), "bits": bits}
    choice |= {"tied": tied} if "tied" in made.model else {}
    model, noise = pages.build(made.recipe(made.full(choice)), seed=0), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=noise) * 0.05)
    return model.eval()


def ids(size: int, rows: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (rows, size), generator=torch.Generator().manual_seed(size))


@pytest.mark.parametrize(("page", "bits", "tied"), [("llama", 8, 0), ("llama", 4, 1), ("qwen2", 4, 0)])
def test_a_file_holds_the_very_numbers_of_the_model(page: str, bits: int, tied: int, tmp_path: Path) -> None:
    """Also those that no rounding to the nearest gives: of GPTQ, whose blocks can lack their largest number."""
    target, model = Gguf(tokens=32), drawn(page, bits, tied)
    entries = target.plan(model, bits)
    assert all(e.centred for e in entries) and {e.bits for e in entries} == {bits, 8}
    few.quantise(model, few.Work("gptq", GROUP, entries), [{"input_ids": ids(32, 8)}])
    target.write(model, tmp_path / "model.gguf")
    back, same = af.load(tmp_path / "model.gguf").eval(), full(model)
    assert back.recipe == model.recipe and paged(model.recipe)[0] == page
    for name, tensor in same.state_dict().items():
        if tensor.ndim > 1:
            assert torch.equal(back.state_dict()[name], tensor), name
    with torch.no_grad():
        torch.testing.assert_close(back(input_ids=ids(17)).logits, same(input_ids=ids(17)).logits, atol=1e-5, rtol=0)
    stored = GGUF(tmp_path / "model.gguf")
    assert stored.metadata["general.file_type"] == {8: 7, 4: 2}[bits]
    assert back.tokenizer.encode("é") == list("é".encode()) and back.tokenizer.encode(PROOF) == list(PROOF.encode())
    assert (
        back.tokenizer.eos_ids == {256}
        and 0 < (tmp_path / "model.gguf").stat().st_size - target.weights(same, entries) < 13_000
    )


def test_the_numbers_are_not_what_rounding_anew_would_give(tmp_path: Path) -> None:
    """Or the test above says nothing."""
    target, model = Gguf(tokens=32), drawn("llama", 4)
    few.quantise(model, few.Work("gptq", GROUP, target.plan(model, 4)), [{"input_ids": ids(32, 8)}])
    made = full(model)
    made.page, made.config = paged(model.recipe)
    save_gguf(made, tmp_path / "model.gguf", "q4_0")
    back, ours = af.load(tmp_path / "model.gguf").state_dict(), made.state_dict()
    assert any(not torch.equal(back[name], ours[name]) for name in ours)


def test_other_grids_are_refused_by_name(tmp_path: Path) -> None:
    model = rounded(drawn("llama"), few.plan(drawn("llama"), 8, GROUP))  # zeros of their own
    with pytest.raises(ValueError, match=r"[\w.]+ and 15 others are in few bits, which a GGUF file has in forms"):
        Gguf().write(model, tmp_path / "model.gguf")
    assert not any(tmp_path.iterdir())


def test_rows_without_whole_blocks_stay_floats_and_count_against_the_coverage() -> None:
    model = drawn("llama", dim=[40], hidden=[4])
    entries = {e.path: e for e in Gguf().plan(model, 8)}
    assert entries["blocks.0.ffn.down"].bits == 8 and entries["blocks.0.mixer.q"].bits is None
    with pytest.raises(ValueError, match=r"of the matrices' numbers are in few bits.*no whole blocks of 32 numbers"):
        artefact.check_covered(model, list(entries.values()), 0.9)


@pytest.mark.parametrize(
    ("page", "mixer", "says"),
    [
        ("llama", "window", r"holds no blocks\.0\.mixer\.mask = Window"),
        ("llama", "convolution", r"holds no blocks\.0\.mixer = Convolution \(it has Attention\)"),
        ("llama", "linear", r"holds no blocks\.0\.mixer = LinearAttention"),
        ("llama", "mamba", r"holds no blocks\.0\.mixer = Mamba"),
        ("gpt", "own", r"a GGUF file, here of \w+, holds no embed\.positions = Learned"),
        ("gemma3", "own", "local_theta=1000.0 cannot be written in this format, which has only 10000.0"),
    ],
)
def test_what_no_architecture_has_is_refused_by_path(page: str, mixer: str, says: str) -> None:
    """The files of a page hold less than its recipes: a tiny Gemma has another theta."""
    made = of(page, mixer=[mixer])
    with pytest.raises(ValueError, match=rf"--target gguf: blocks\.0\.mixer = {mixer}: .*{says}"):
        Gguf(tokens=32).fitted(made, ("mixer",))


def test_layers_of_one_file_are_alike() -> None:
    for choice in of("llama", kv_heads=[1]).uniform():  # a search begins with these, so each is of the space
        assert choice["kv_heads.0"] == 1
    made, noise, different = of("llama", depth=[2]), random.Random(0), 0
    for _ in range(20):
        for choice, alike in ((made.drawn(noise), True), (replace(made, alike=()).drawn(noise), False)):
            same = all(choice[f"{name}.0"] == choice[f"{name}.1"] for name in made.layer)
            different += not same
            assert same or not alike
            if same:
                assert paged(made.recipe(choice))[0] == "llama"
            else:
                with pytest.raises(ValueError, match="a GGUF file, here of llama, holds no blocks"):
                    paged(made.recipe(choice))
    assert different > 5


def test_a_layer_is_half_the_difference_of_two_files_of_it(monkeypatch: Any, tmp_path: Path) -> None:
    """A millisecond for the ends, two if they are tied, and as many for a layer as its hidden width says."""
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path))
    probed = Counter[bool]()

    def probe(self: Gguf, model: Any, choice: Any, path: Path) -> Any:
        layers = {tuple(choice[f"{n}.{i}"] for n in SPACE if f"{n}.{i}" in choice) for i in range(choice["depth"])}
        probed[len(layers) == 1] += 1
        wide = sum(choice[f"hidden.{i}"] for i in range(choice["depth"]))
        return lambda: 1.0 + choice.get("tied", 0) + wide, 50 + 100 * wide

    monkeypatch.setattr(Gguf, "_probe", probe)
    monkeypatch.setattr(Gguf, "runtime", lambda self: "llama.cpp")
    monkeypatch.setattr(device, "timed", lambda runs, *_: {name: run() for name, run in runs.items()})
    made, noise = of("llama"), random.Random(0)
    table = device.Table(made, Gguf(tokens=32))
    table.fill()
    for _ in range(8):
        choice = made.drawn(noise)
        wide = sum(choice[f"hidden.{i}"] for i in range(choice["depth"]))
        assert table.milliseconds(choice) == pytest.approx(1 + choice["tied"] + wide)
        assert table.graph(choice) == 50 + 100 * wide
    assert probed[True] > 4 and not probed[False]


def test_what_is_no_language_model_and_a_missing_package_are_said_before_anything_is_written(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    wish = replace(WISH, task=str(book))
    for metric in ("accuracy", "pearson"):
        with pytest.raises(
            ValueError, match=f"--target gguf: --metric {metric}: .*choose --target onnx, .*--model llama"
        ):
            designed(replace(wish, metric=metric, model="bert"), tmp_path / "out")
    with pytest.raises(ImportError, match=r"--target gguf needs llama_cpp .*: pip install llama-cpp-python"):
        designed(wish, tmp_path / "out")
    with pytest.raises(ValueError, match="--target gguf: products must be one of 'float32'"):
        replace(wish, products="int8").check()
    assert not (tmp_path / "out").exists()


@needs_llama
@pytest.mark.parametrize("page", ["llama", "qwen2"])
def test_llama_cpp_computes_the_logits_of_the_model(page: str, tmp_path: Path) -> None:
    """To 1e-4 in float32; in few bits its products round the inputs to 8 bits."""
    target, model = Gguf(tokens=32), drawn(page)
    batches = [{"input_ids": ids(size)} for size in (*LENGTHS, 32)]
    target.write(model, tmp_path / "float32.gguf")
    assert target.difference(tmp_path / "float32.gguf", model, batches) < 1e-5
    with torch.no_grad():
        model.norm.weight.mul_(1.01)
    assert target.difference(tmp_path / "float32.gguf", model, batches) > 1e-3  # and it is seen
    small = rounded(model, target.plan(model, 8))
    target.write(small, tmp_path / "model.gguf")
    assert 1e-5 < target.difference(tmp_path / "model.gguf", small, batches) < 0.05
    ((p50, p95, memory), *others) = target.measured(tmp_path / "model.gguf", small)
    assert len(others) == 2 and 0 < p50 <= p95 and memory > 0


@needs_llama
def test_llama_cpp_reads_bytes(tmp_path: Path) -> None:
    import llama_cpp

    Gguf(tokens=32).write(drawn("llama"), tmp_path / "model.gguf")
    llm = llama_cpp.Llama(str(tmp_path / "model.gguf"), n_ctx=32, verbose=False)
    try:
        for text in ("é", PROOF, " a", "a  b"):
            assert llm.tokenize(text.encode()) == list(text.encode())  # and nothing before them
            assert llm.detokenize(list(text.encode())) == text.encode()
        assert llm.token_eos() == 256
    finally:
        llm.close()


@needs_llama
def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF and no more")
    with pytest.raises(ValueError, match=r"llama\.cpp does not open .*model\.gguf"):
        Gguf().opened(tmp_path / "model.gguf")


@pytest.fixture(scope="module")
def made(book: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("edge") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYFORMER_CACHE", str(out.parent / "cache"))
        patch.setattr(design, "BEST", 2)
        patch.setattr(device, "SECONDS", 0.002)
        values = {**SPACE, "depth": [1], "bits": [8], "tied": [0], "kv_heads": [1]}
        return designed(replace(WISH, task=str(book), values=values), out, say=lambda _: None), out


@needs_llama
def test_a_whole_design_is_searched_measured_and_continues_texts(
    made: tuple[dict[str, Any], Path], book: Path, tmp_path: Path
) -> None:
    import llama_cpp

    report, out = made
    files = {f.name: f.stat().st_size for f in (out / "model").iterdir()}
    assert set(files) == {"model.gguf", "facts.json", "run.py"}
    assert sum(files.values()) == report["chosen"]["real_size"] == pytest.approx(report["chosen"]["size"], rel=0.02)
    assert len(report["chosen"]["real"]) == 3 and 2 < report["value"] < 5.5 and report["lost"] < 0.05
    assert report["covered"] == 1 and "in float32 it differs by" in report["products"]
    assert report["matrices"]["embed.tokens"] == 8
    script, held = out / "model" / "run.py", 32 * report["rows"]["test"] + 1
    (tmp_path / "held.txt").write_bytes(book.read_bytes()[-held:])
    code = (
        f"import sys, runpy\nsys.path.append({str(Path(llama_cpp.__file__).parents[1])!r})\n"
        "sys.modules.update(dict.fromkeys(('torch', 'anyformer', 'transformers', 'tokenizers')))\n"
        "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    )

    def said(*args: str) -> str:
        done = subprocess.run([sys.executable, "-c", code, str(script), *args], capture_output=True, check=True)
        assert done.stderr == b""
        return done.stdout.decode()

    bits = said("--bits", str(tmp_path / "held.txt"))
    assert bits == f"{report['value']:.4f} bits for each of {held - 1:,} bytes\n"
    first = said("é of", "--bytes", "90")  # more than the 32 that the model reads
    assert first == said("é of", "--bytes", "90") != said("é of", "--bytes", "90", "--seed", "1")
    assert first.startswith("é of") and 40 <= len(first.encode()) <= 4 + 3 * 90 + 2


@needs_llama
def test_a_file_that_moves_the_answers_is_not_handed_over(
    made: tuple[dict[str, Any], Path], book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other numbers in the file: the same in float32 are compared, and the file's own answers."""
    monkeypatch.setenv("ANYFORMER_CACHE", str(made[1].parent / "cache"))
    one = Design(replace(WISH, task=str(book), values=SPACE), tmp_path / "out", say=lambda _: None)
    model, target, work = drawn("llama"), Gguf(tokens=32), few.Work("rtn", GROUP, [])
    work.entries = target.plan(model, 8)
    small, test = rounded(model, work.entries), one.task.parts["test"]
    answers = one.task.answers(finish.learn.logits_of(small), test, None)
    off, _ = finish._write(one, small, None, tmp_path / "good")
    assert off < 1e-5 and {f.name for f in (tmp_path / "good").iterdir()} == {"model.gguf", "facts.json", "run.py"}
    _, there, _ = finish.as_it_runs(one, small, work, None, tmp_path / "good", answers, off)
    assert off < there < 0.05
    for grid in [m for m in small.modules() if isinstance(m, Grid)]:
        grid.codes.copy_(grid.codes.flip(0))  # the rows of each matrix are misplaced
    target.write(small, tmp_path / "good" / "model.gguf")
    with pytest.raises(ValueError, match=r"the written file moves the answers by .*; allowed: 0\.01"):
        finish.as_it_runs(one, small, work, None, tmp_path / "good", answers, off)
    assert targets.find("gguf") is Gguf
