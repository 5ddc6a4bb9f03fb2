"""`anyformer compress`: what it prints and writes, and what makes it fail."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.compress import calibrate, few
from anyformer.compress.shrink import origin_of
from anyformer.generate import classify, generate
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.parts import Classifier, First
from anyformer.parts.quantised import Grid
from anyformer.train.measured import measured


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral with a byte tokenizer."""
    model = af.build("mixtral", "tiny", vocab=257, context=512, seed=0)
    model.tokenizer = Tokenizer.bytes_level()
    folder = tmp_path_factory.mktemp("experts")
    model.save(folder)
    return folder


def small(folder: Path, tmp_path: Path, *more: str) -> tuple[str, ...]:
    return ("compress", str(folder), "--to", "int4", "--group", "8", "--out", str(tmp_path / "out"), *more)


@pytest.mark.parametrize("method", ["rtn", "hqq", "gptq", "awq", "signround"])
def test_the_smaller_model_is_read_by_all_verbs(cli: Any, decoder: Path, tmp_path: Path, method: str) -> None:
    code, out, err = cli(*small(decoder, tmp_path, "--method", method))
    assert code == 0, err
    assert (
        "matrices  16 of 16 in 4 and 8 bits" in out and "KLD" in out and "perplexity" in out and "measured here" in out
    )
    model = af.load(tmp_path / "out")
    assert model.ledger.count("used") == len(model.state_dict())
    _, said, _ = cli("generate", tmp_path / "out", "Once", "--max_new_tokens", 5)
    assert said == "Once" + generate(model, "Once", max_new_tokens=5) + "\n"
    assert cli("inspect", tmp_path / "out")[0] == cli("count", tmp_path / "out", "--tokens", "4")[0] == 0
    code, out, _ = cli("compress", tmp_path / "out", "--to", "int8", "--out", tmp_path / "twice")
    assert code == 2 and not (tmp_path / "twice").exists()


def test_everything_for_machines(cli: Any, decoder: Path, tmp_path: Path) -> None:
    code, out, _ = cli(*small(decoder, tmp_path, "--keep", "**.down", "head", "--json"))
    found = json.loads(out)
    assert code == 0 and found["bytes"][1] < 0.7 * found["bytes"][0]
    left = {m["path"]: m["why"] for m in found["matrices"] if m["bits"] is None}
    assert left == dict.fromkeys(("blocks.0.ffn.down", "blocks.1.ffn.down", "head.proj"), "kept, as asked")
    assert 0 < found["distance"]["kld"] < 0.1 and found["coverage"] < 1


def test_finer_bits_go_where_they_matter_and_are_read_again(cli: Any, decoder: Path, tmp_path: Path) -> None:
    code, out, err = cli(*small(decoder, tmp_path, "--finer", "0.1", "--json"))
    assert code == 0, err
    bits = {m["path"]: m["bits"] for m in json.loads(out)["matrices"]}
    plain = json.loads(cli(*small(decoder, tmp_path, "--overwrite", "--json"))[1])
    fine = [m["path"] for m in plain["matrices"] if m["bits"] == 4 and bits[m["path"]] == 8]
    assert 0 < len(fine) < sum(m["bits"] == 4 for m in plain["matrices"])
    assert json.loads(out)["distance"]["kld"] < plain["distance"]["kld"]


def skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    real = few.replace
    monkeypatch.setattr(few, "replace", lambda m, path, new: path == "blocks.1.mixer.v" or real(m, path, new))


def dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = calibrate.Seen.add, [0]

    def add(self: Any, x: torch.Tensor) -> None:
        calls[0] += 1
        if calls[0] != 20:
            real(self, x)

    monkeypatch.setattr(calibrate.Seen, "add", add)


def swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Grid.put
    monkeypatch.setattr(Grid, "put", lambda self, q, scale, zero: real(self, q, scale.roll(1, 0), zero))


def routed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = few.plan
    monkeypatch.setattr(few, "plan", lambda *a: [replace(e, bits=8) if "router" in e.why else e for e in real(*a)])


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (skipped, "blocks.1.mixer.v is full, and 4 bits were planned: it was passed over"),
        (dropped, "of the calibration: its figures would be of a part of the text"),
        (swapped, "holds other numbers than the method chose: its scales or codes are misplaced"),
        (routed, "is a router in few bits"),
    ],
)
def test_a_fault_makes_the_command_fail(
    cli: Any, experts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Any, said: str
) -> None:
    words = small(experts, tmp_path, "--method", "gptq")
    fault(monkeypatch)
    code, _, err = cli(*words)
    assert code == 2 and said in err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--max-kld", "0"), "above the bound of 0"),
        (
            ("--keep", "blocks", "--coverage", "0.9"),
            "of the matrices' numbers would change, 90.0% was asked; left: blocks.",
        ),
        (("--keep", "**"), "nothing can be changed"),
        (("--keep", "blocks.7"), "blocks.7"),
        (("--group", "12"), "group must be a multiple of 8"),
        (("--coverage", "2"), "coverage must be above 0 and at most 1"),
        (("--calibrate", "short.txt"), "each half of the text needs 4 windows of 128 tokens"),
        (("--calibrate", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_what_is_not_good_enough_is_not_written(
    cli: Any, decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("one sample")
    code, _, err = cli(*small(decoder, tmp_path, *more))
    assert code == 2 and said in err, err
    assert [p.name for p in tmp_path.iterdir()] == ["short.txt"]


def test_another_model_is_not_replaced_unless_asked(cli: Any, decoder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    code, _, err = cli(*small(decoder, tmp_path))
    assert code == 2 and "--overwrite" in err and (tmp_path / "out" / "notes.txt").exists()
    assert cli(*small(decoder, tmp_path, "--overwrite"))[0] == 0


def test_a_full_disk_leaves_nothing(cli: Any, decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anyformer.compress import shrink

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shrink.os, "replace", full)
    code, _, err = cli(*small(decoder, tmp_path))
    assert code == 2 and "No space left" in err and not list(tmp_path.iterdir())


def test_a_source_in_few_bits_is_said_to_be_one(decoder: Path, tmp_path: Path) -> None:
    model = af.load(decoder)
    assert origin_of(model) == ""
    count = sum(p.numel() for p in model.parameters())
    (tmp_path / "q4.gguf").write_bytes(b"0" * (5 * count // 8))
    model.ledger.path = str(tmp_path / "q4.gguf")
    assert "the source was in few bits already (5.0 a weight)" in origin_of(model)


def test_pruned_and_healed_models_are_read_and_described(cli: Any, decoder: Path, tmp_path: Path) -> None:
    words = ("compress", decoder, "--prune", "heads=50%", "ffn=50%", "--heal", "2", "--out", tmp_path / "out")
    code, out, err = cli(*words)
    assert code == 0, err
    assert "heads=50% 2 of 2 parts" in out and "hidden units" in out and "healed    2 steps" in out and "numbers" in out
    assert cli("generate", tmp_path / "out", "Once", "--max_new_tokens", 2)[0] == 0
    found = json.loads(cli("count", tmp_path / "out", "--tokens", "4", "--json")[1])
    whole = json.loads(cli("count", decoder, "--tokens", "4", "--json")[1])
    assert found["parameters"] < whole["parameters"] and found["forward"] < whole["forward"]
    code, out, _ = cli(*words[:2], "--prune", "2:4", "--out", tmp_path / "zeros", "--json")
    assert code == 0 and json.loads(out)["cuts"][0]["zeros"]["blocks.0.ffn.up"] == 0.5


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "nothing was asked for"),
        (("--prune", "heads=0%"), "the share must be above 0 %"),
        (("--prune", "heads"), "expected heads=25%"),
        (("--factor", "9999"), "no linear layer becomes smaller"),
        (("--distil", "TEACHER"), "add --heal"),
        (("--distil", "TEACHER", "--heal", "3"), "the teacher has 99 tokens and the student 257"),
        (("--heal", "-1"), "--heal is a number of steps"),
        (("--to", "int8", "--finer", "0.2"), "--finer is a share from 0, of 3 or 4 bits"),
        (("--prune", "ffn=50%", "--coverage", "0.5"), "--coverage is about matrices in few bits"),
    ],
)
def test_what_cannot_be_pruned_is_said(
    cli: Any, decoder: Path, tmp_path: Path, more: tuple[str, ...], said: str
) -> None:
    af.build("gpt", "tiny", vocab=99, seed=0).save(tmp_path / "teacher")
    words = [str(tmp_path / "teacher") if word == "TEACHER" else word for word in more]
    code, _, err = cli("compress", decoder, *words, "--out", tmp_path / "out")
    assert code == 2 and said in err and not (tmp_path / "out").exists()


def test_the_task_is_measured_before_and_after_on_rows_of_ones_own(cli: Any, decoder: Path, tmp_path: Path) -> None:
    (rows := tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"text": f"Once {n} times"}) + "\n" for n in range(5))
    )
    code, out, err = cli(*small(decoder, tmp_path, "--data", str(rows)))
    assert code == 0 and "nats a token (5 examples)" in out, err
    before, after = json.loads(cli(*small(decoder, tmp_path, "--data", str(rows), "--overwrite", "--json"))[1])[
        "measured"
    ]
    assert before != after
    goals = [measured(model, rows).measure(model, 2) for model in (af.load(decoder), af.load(tmp_path / "out"))]
    assert goals == pytest.approx([before, after], rel=1e-5)


@pytest.mark.parametrize("names", [("neg", "pos"), ("pos", "neg")])
def test_classes_are_the_models_own_and_no_others(names: tuple[str, str], cli: Any, tmp_path: Path) -> None:
    model = af.build(
        af.recipe("bert", "tiny", vocab=300).but({"heads": {"classes": Classifier.of(classes=2)}, "pool": First.of()}),
        seed=0,
    )
    model.tokenizer, model.origin = Tokenizer.bytes_level(), {"classes": list(names)}
    rows = [{"text": "abc"[:n] * n, "label": "pos"} for n in (1, 2, 3)]
    (data := tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = [max(classify(model, [row["text"]])[0].items(), key=lambda pair: pair[1])[0] for row in rows]
    assert measured(model, data).measure(model, 2) == pytest.approx(said.count("neg") / 3)
    data.write_text(json.dumps({"text": "x", "label": "angry"}))
    with pytest.raises(ValueError, match=r"rows.jsonl: the model has no class 'angry'; it has (neg, pos|pos, neg)"):
        measured(model, data)
