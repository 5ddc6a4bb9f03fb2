"""Sources, weights and what is held out, as text and as ids; and `train` on them."""

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from anyformer.cli import main
from anyformer.cli.options import Parser
from anyformer.data import baseline, corpus, files, text
from anyformer.data.baseline import bigram_bits_per_byte
from anyformer.data.corpus import Corpus
from anyformer.data.order import Global
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.train import train
from anyformer.train.tasks import text as tasks
from tests.later import later

torch.set_num_threads(1)
BYTES = Tokenizer.bytes_level()
ENGLISH = text.read()[:60_000]
SMALL: dict[str, Any] = {
    "size": "tiny", "context": 32, "batch": 4, "steps": 8, "warmup": 2, "eval_every": 0, "save_every": 4, "quiet": True,
    "tokenizer": "bytes",
}  # fmt: skip


@pytest.fixture
def sources(tmp_path):
    """A text, and a table of paragraphs in a column of another name."""
    (tmp_path / "a.txt").write_text(ENGLISH[:20_000])
    paragraphs = [p for p in ENGLISH[20_000:].split("\n\n") if p.strip()]
    rows = [json.dumps({"content": p, "id": i}) for i, p in enumerate(paragraphs)]
    (tmp_path / "b.jsonl").write_text("\n".join(rows))
    return tmp_path / "a.txt", tmp_path / "b.jsonl", paragraphs


COMMAND = ["train", "--model", "gpt", "--size", "tiny", "--steps", "2", "--context", "32", "--tokenizer", "bytes"]


# ------------------------------------------------------------------------------------------------ text


def test_one_text_is_what_it_was_before_there_was_a_cache(sources):
    learn, held_out = text.split(ENGLISH[:20_000])
    data = corpus.read(sources[0])
    made = Corpus.of(BYTES, data)
    assert "".join(corpus.learn(data)) == learn
    assert made.parts[0].train.ids.tolist() == list(learn.encode())
    assert next(made.held_out()).tolist() == [*learn.encode()[-1:], *held_out.encode()]
    assert made.held_out_bytes == len(held_out.encode())
    assert corpus.bigram(data) == pytest.approx(bigram_bits_per_byte(learn, held_out), rel=1e-12)
    rows = made.rows("random", 32, 5)
    ours, theirs = Global(rows, 4)(9), text.Windows(text.tokenise(BYTES, learn), 4, 32, 5)(9)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_documents_are_divided_by_characters_with_an_end_between_them(sources):
    _, table, paragraphs = sources
    data = corpus.read(table, {"text": "content"})
    made = Corpus.of(BYTES, data).parts[0]
    total = sum(map(len, paragraphs))
    end = min(BYTES.eos_ids)
    joined: list[int] = []
    for i, paragraph in enumerate(paragraphs):
        joined += [end] * (i > 0) + [*paragraph.encode()]
    both = [*made.train.ids.tolist(), *made.held_out.ids.tolist()]
    assert both == joined and data[0].scan.documents == len(paragraphs)  # cut within a document: no end there
    assert len(made.train.starts) + len(made.held_out.starts) == len(paragraphs) + 1
    characters = sum(len(t) for _, t in data[0].part(held_out=False))
    assert characters == data[0].scan.cut == text.cut(total)
    assert made.held_out_bytes == len(made.held_out.ids)  # ends are counted as a byte
    spans = np.split(made.train.ids, made.train.starts[1:])
    assert [BYTES.decode(s) for s in spans[:-1]] == paragraphs[: len(spans) - 1]


def test_bigram_in_pieces_is_the_bigram(sources, monkeypatch):
    paragraphs = sources[2]

    learn, held = (b"\0".join(t.encode() for t in part) for part in (paragraphs[:40], paragraphs[40:]))
    wanted = bigram_bits_per_byte(learn.decode(), held.decode())
    monkeypatch.setattr(baseline, "TOGETHER", 100)
    pieces = baseline.Bigram()
    for i in range(0, len(learn), 333):
        pieces.count(learn[i : i + 333])
    for i in range(0, len(held), 17):
        pieces.predict(held[i : i + 17])
    assert pieces.bits / pieces.predicted == pytest.approx(wanted, rel=1e-12)


def test_scan_is_kept_and_a_damaged_one_is_made_again(sources, tmp_path, monkeypatch):
    first = corpus.read(sources[0], folder=tmp_path / "cache")
    (kept,) = (tmp_path / "cache").glob("scan-*.json")
    monkeypatch.setattr(corpus, "_scan", None)  # not called again
    assert corpus.read(sources[0], folder=tmp_path / "cache") == first
    monkeypatch.undo()
    for damage in ("", "{", "[]", '{"key": 1}'):
        kept.write_text(damage)
        assert corpus.read(sources[0], folder=tmp_path / "cache") == first


def test_what_data_may_be(tmp_path):
    assert corpus.weights("a.txt") == {"a.txt": 1} and corpus.weights({"a": 2, "b": 1}) == {"a": 2, "b": 1}
    assert corpus.weights("a.txt=0.7,b.jsonl=3e-1") == {"a.txt": 0.7, "b.jsonl": 0.3}
    (tmp_path / "odd=1,x=2").write_text("a file of that name")
    assert corpus.weights(tmp_path / "odd=1,x=2") == {str(tmp_path / "odd=1,x=2"): 1}
    with pytest.raises(ValueError, match="names a source twice"):
        corpus.weights("a=1,a=2")
    with pytest.raises(ValueError, match="data is empty"):
        corpus.weights({})
    with pytest.raises(ValueError, match=r"weights must be above 0, got 1\.0, 0\.0"):
        corpus.read({"pydoc": 1, "x": 0})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        corpus.read("pydoc=1,nowhere.txt=1")


@pytest.mark.parametrize("content", ["x", ""])
def test_too_little_text_is_an_error(content, tmp_path):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(ValueError, match=r"would be empty; use a longer text|holds no text"):
        corpus.read(tmp_path / "a.txt")


def test_a_tokenizer_is_made_from_the_beginning_of_each_source(sources, monkeypatch):
    monkeypatch.setattr(corpus, "TOKENIZER_CHARACTERS", 1000)
    monkeypatch.setattr(files, "PIECE", 300)
    data = corpus.read({str(sources[0]): 1, "pydoc": 5})
    assert "".join(corpus.learn(data)) == ENGLISH[:500] * 2


# ------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("order", ["random", "epochs", "packed"])
def test_mixed_rows_come_from_their_sources_as_often_as_they_weigh(order, sources, tmp_path):
    for name, letter in {"a": "a", "b": "b"}.items():
        (tmp_path / f"{name}.csv").write_text("text\n" + f"{letter * 99}\n" * 300)
    data = corpus.read(f"{tmp_path}/a.csv=3,{tmp_path}/b.csv=1")
    rows = Corpus.of(BYTES, data).rows(order, 64, seed=1).rows(500, 1000)
    assert set(rows) == {"input_ids", "labels"} | ({"document_ids"} if order == "packed" else set())
    letters = Counter(bytes([row[row < 256].max()]) for row in rows["input_ids"].numpy())
    assert 700 < letters[b"a"] < 800 and letters[b"a"] + letters[b"b"] == 1000


def test_a_source_that_is_too_short_is_named(tmp_path):
    (tmp_path / "short.txt").write_text("too short")
    made = Corpus.of(BYTES, corpus.read({"pydoc": 1, str(tmp_path / "short.txt"): 1}))
    with pytest.raises(ValueError, match=r"short\.txt: the text to train on has 8 tokens"):
        made.rows("epochs", 64, 0)


def test_fingerprint_is_of_ids_and_weights(sources):
    a, b = str(sources[0]), "pydoc"
    found = {Corpus.of(BYTES, corpus.read(d)).fingerprint() for d in (a, b, {a: 1, b: 1}, {a: 2, b: 2}, {a: 1, b: 2})}
    assert len(found) == 4  # equal shares are equal
    assert len({Corpus.of(t, corpus.read(a)).fingerprint() for t in (BYTES, Tokenizer.train_bpe([ENGLISH], 300))}) == 2


# ------------------------------------------------------------------------------------------------ train


def weights_of(result):
    return {name: p.clone() for name, p in result.model.state_dict().items()}


@pytest.mark.parametrize("rows", [*later("random"), "epochs"])
def test_resume_within_an_epoch_of_a_mixture_with_workers_is_exact(rows, sources, tmp_path):
    options = {**SMALL, "data": {str(sources[0]): 0.7, str(sources[1]): 0.3}, "accumulate": 2, "order": rows}
    (sources[1]).write_text(sources[1].read_text().replace('"content"', '"text"'))
    straight = train("gpt", out=tmp_path / "straight", **options)
    threads = train("gpt", out=tmp_path / "threads", workers=2, **options)
    branch = train("gpt", out=tmp_path / "branch", workers=3, resume=str(tmp_path / "straight/step-000004"), **options)
    for other in (threads, branch):
        assert other.loss == straight.loss and other.bits_per_byte == straight.bits_per_byte
        assert all(torch.equal(p, weights_of(other)[n]) for n, p in weights_of(straight).items())
    with pytest.raises(ValueError, match="corpus was"):
        data = {name: w for name, w in zip(options["data"], (1, 1), strict=True)}
        train("gpt", out=tmp_path / "x", resume=str(tmp_path / "straight/step-000004"), **{**options, "data": data})
    with pytest.raises(ValueError, match="order was"):
        changed = {**options, "order": "epochs" if rows == "random" else "random"}
        train("gpt", out=tmp_path / "y", resume=str(tmp_path / "straight/step-000004"), **changed)


@pytest.mark.parametrize("model", ["llama", "mamba"])
def test_packed_documents_are_trained_on(model, sources, tmp_path):
    options = {**SMALL, "data": sources[1], "fields": {"text": "content"}, "order": "packed", "save_every": 0}
    result = train(model, out=tmp_path / "run", lr=1e-2, **{**options, "steps": 40})
    assert result.loss < 0.7 * math.log(257) and result.bits_per_byte is not None


def test_bits_per_byte_of_a_mixture_are_those_of_all_held_out_bytes(sources, tmp_path):
    fields = {"text": "content"}
    data = {str(sources[0]): 1.0, str(sources[1]): 3.0}
    result = train("gpt", data=data, fields=fields, out=tmp_path / "run", **{**SMALL, "steps": 2})
    bits = size = 0.0
    for name in data:
        alone = Corpus.of(BYTES, corpus.read(name, fields))
        with torch.no_grad():
            goal = tasks.on_text("causal", result.model, alone, "random", 32, 0, bigram=0.0)
            bits += goal.measure(result.model, 4) * alone.held_out_bytes
        size += alone.held_out_bytes
    assert result.bits_per_byte == pytest.approx(bits / size, rel=1e-6)
    assert result.bits_per_byte is not None and result.bits_per_byte < 9
    assert result.bigram_bits_per_byte is not None and 1 < result.bigram_bits_per_byte < 6


def test_the_command_takes_a_mixture_in_three_ways(sources, tmp_path, capsys):
    a, b = str(sources[0]), str(sources[1])
    base = [*COMMAND, "--quiet"]
    (sources[1]).write_text(sources[1].read_text().replace('"content"', '"text"'))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"data": {a: 0.7, b: 0.3}}))
    config = ["--config", str(tmp_path / "c.yaml")]
    ways = [["--data", f"{a}=0.7,{b}=0.3"], ["--data", json.dumps({a: 0.7, b: 0.3})], config]
    said = []
    for i, way in enumerate(ways):
        assert main([*base, *way, "--out", str(tmp_path / str(i)), "--order", "epochs"]) == 0, capsys.readouterr().err
        said.append((tmp_path / str(i) / "log.jsonl").read_text())
        assert (
            main(["train", "--config", str(tmp_path / str(i) / "config.yaml"), "--out", str(tmp_path / f"{i}again")])
            == 0
        )
    losses = [[json.loads(line).get("loss") for line in text.splitlines()] for text in said]
    assert losses[0] == losses[1] == losses[2]


def test_the_command_takes_names_of_columns(sources, tmp_path, capsys):
    data = ["--data", str(sources[1]), "--out", str(tmp_path / "run")]
    assert main([*COMMAND, *data]) == 2
    assert "no column 'text' (did you mean content?); it has 'content', 'id'" in capsys.readouterr().err
    assert main([*COMMAND, *data, "--fields.text", "content"]) == 0
    assert "held-out" in capsys.readouterr().out


def test_options_are_described():
    parser = Parser("train", "", "")
    parser.add_function(train)
    assert "a.txt=0.7,b.jsonl=0.3" in parser.format_help()


def test_other_tasks_take_names_of_columns_mixtures_and_workers(sources, tmp_path):
    (sources[1]).write_text(sources[1].read_text().replace('"content"', '"text"'))
    options = {**SMALL, "data": {str(sources[0]): 1, str(sources[1]): 2}, "fields": {"text": "text"}}
    result = train("bert", **options, order="epochs", workers=2, cache=str(tmp_path / "own"), out=tmp_path / "run")
    assert result.held_out is not None and list((tmp_path / "own").glob("*/ids.bin"))
    with pytest.raises(ValueError, match="order=packed is for the task causal"):
        train("bert", **options, order="packed", out=tmp_path / "x")
