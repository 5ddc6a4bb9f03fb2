"""Every task, from real text or images to a model that beats a guess; resuming is exact; mistakes are named."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.data import text
from anyformer.data.order import Global
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.train import train
from anyformer.train.model_source import model_source
from anyformer.train.options import TrainOptions
from anyformer.train.tasks import registry, splits, training_data
from anyformer.train.tasks import text as text_tasks
from anyformer.train.tasks.base import collate
from tests.later import later

torch.set_num_threads(1)
SMALL: dict[str, Any] = {"size": "tiny", "batch": 8, "warmup": 5, "eval_every": 0, "save_every": 0, "quiet": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Real text, and rows made of it: sentences with their topic, words with their kind, a cipher."""
    home = tmp_path_factory.mktemp("data")
    (home / "book.txt").write_text(text.read()[:120_000], encoding="utf-8")
    from pydoc_data.topics import topics

    def write(name, rows):
        (home / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def sentences(*names):
        return [s.strip() for name in names for s in topics[name].replace("\n", " ").split(".") if len(s) > 20]

    lists = {"text": sentences("string-methods", "formatstrings"), "class": sentences("specialnames", "customization")}
    pairs = list(itertools.chain(*zip(*([(t, k) for t in v][:40] for k, v in lists.items()), strict=True)))
    write("topics.jsonl", [{"text": t, "label": k} for t, k in pairs])
    words = [t.split()[:12] for s in lists.values() for t in s]
    write("tags.jsonl", [{"words": w, "labels": ["upper" if x[:1].isupper() else "code" if "_" in x or "(" in x else
                                                 "word" for x in w]} for w in words])  # fmt: skip
    plain = sorted({w[:4].lower() for w in re.findall("[a-zA-Z]{4,}", text.read()[:200_000])})
    write("pairs.jsonl", [{"source": w, "target": w.upper()} for w in plain])
    return home


BETTER = {"masked": 0.98, "span": 0.85, "denoise": 0.96, "seq2seq": 0.8, "classify": 0.6, "tag": 0.5}


def options(folder, kind):
    letters = {"tokenizer": "bytes", "context": 32}  # within seconds, letters are learned and words are not
    return {
        "masked": {"model": "bert", "data": folder / "book.txt", "steps": 400, "lr": 5e-3, **letters},
        "span": {"model": "t5", "data": folder / "book.txt", "steps": 250, "lr": 1e-2, **letters},
        "denoise": {"model": "bart", "data": folder / "book.txt", "steps": 350, "lr": 3e-3, **letters, "context": 24,
                    "warmup": 50},
        "seq2seq": {"model": "t5", "task": "seq2seq", "data": folder / "pairs.jsonl", "steps": 350, "lr": 1e-2,
                    **letters, "context": 8, "batch": 16},
        "classify": {"model": "bert", "task": "classify", "data": folder / "topics.jsonl", "steps": 60, "lr": 3e-3,
                     "context": 48, "vocab": 400},
        "tag": {"model": "bert", "task": "tag", "data": folder / "tags.jsonl", "steps": 60, "lr": 1e-2,
                "context": 40, "vocab": 400},
    }[kind]  # fmt: skip


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("denoise", "seq2seq", "masked")]


@pytest.mark.parametrize("kind", ["span", "classify", "tag", *SLOW])
def test_task_learns_from_real_text(kind, folder, tmp_path):
    result = train(out=tmp_path / "run", **{**SMALL, **options(folder, kind)})
    assert result.task == kind and result.held_out is not None and result.baseline is not None
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-10:]) < 0.9 * losses[0]
    assert result.held_out < BETTER[kind] * result.baseline, (result.held_out, result.baseline)
    again = af.load(result.checkpoint)
    assert again.tokenizer.vocab_size == again.embed.vocab


@pytest.mark.parametrize("kind", ["masked", "images", *later("span", "denoise", "seq2seq", "classify")])
def test_task_resumes_exactly(kind, folder, tmp_path):
    """In the middle of an epoch of a mixture, with accumulation and workers."""
    given: dict[str, Any]
    if kind == "images":
        pictures(tmp_path / "a", 30), pictures(tmp_path / "b", 40)
        two, given = ("a", "b"), {"model": "vit", "overrides": {"image": 8, "patch": 2, "channels": 1}}
    else:
        given = {**options(folder, kind)}
        name, half = given["data"].name, tmp_path / given["data"].name
        half.write_text("".join(given["data"].read_text().splitlines(keepends=True)[:500]))
        two = (str(given["data"]), name)
    given["data"] = {str(tmp_path / source): weight for source, weight in zip(two, (0.7, 0.3), strict=True)}
    given |= {**SMALL, "steps": 7, "save_every": 3, "keep_last": 9, "accumulate": 2, "warmup": 2}
    given |= {} if kind in registry.COLUMNS else {"order": "epochs"}
    straight = train(out=tmp_path / "x", workers=2, **given)
    branch = train(out=tmp_path / "y", resume=str(tmp_path / "x/step-000003"), **given)
    assert (branch.loss, branch.held_out) == (straight.loss, straight.held_out)
    for p, q in zip(branch.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(p, q)
    with pytest.raises(ValueError, match="batch was 8 and is now 4"):
        train(out=tmp_path / "y", resume=True, **{**given, "batch": 4, "steps": 9})


def pictures(folder, count):
    """Real digits as an image folder."""
    from PIL import Image

    for i, (pixels, label) in enumerate(zip(*digits(count), strict=True)):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{i}.png")


def digits(count):
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images[:count] * 15.9375).astype(np.uint8), data.target[:count]


def test_hidden_residues_of_fasta_are_learned_by_the_models_own_mask(tmp_path):
    family = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVG"
    proteins = (f">p{i}\n{family[i % 7 :]}{family[: i % 7]}\n" for i in range(60))
    (tmp_path / "a.fasta").write_text("".join(proteins))
    told = {"data": tmp_path / "a.fasta", "steps": 40, "batch": 8, "lr": 1e-2, "context": 32, "quiet": True}
    done = train("esm", "tiny", tokenizer="bytes", out=tmp_path / "run", **told)
    assert done.model.config.mask == done.model.tokenizer.role_id("mask_token")
    assert done.task == "masked" and done.held_out is not None and done.baseline is not None
    assert done.held_out < done.baseline
    with pytest.raises(ValueError, match="the task masked needs a tokenizer with a cls_token"):
        train("esm", "tiny", tokenizer="chars", out=tmp_path / "no", **told)


def test_images_of_a_folder(tmp_path):
    pictures(tmp_path / "digits", 600)
    given = {**SMALL, "steps": 250, "lr": 3e-3, "batch": 32, "out": tmp_path / "run"}
    result = train("vit", data=tmp_path / "digits", overrides={"image": 8, "patch": 2, "channels": 1}, **given)
    assert result.task == "images" and result.baseline is not None and result.held_out is not None
    assert result.baseline > 0.8 and result.held_out < 0.5
    assert af.load(result.checkpoint).config.classes == 10


def goal(kind, page, data, context=16, batch=4, **given):
    """A task and its model."""
    taught = training_data(kind, TrainOptions(data=data, seed=3, **given))
    task = {"masked": "masked", "classify": "classify"}.get(kind)
    head: dict[str, Any] = {"task": task, "classes": taught.classes or 2} if task else {}
    model = af.build(page, "tiny", vocab=400, **head)
    model.tokenizer = registry.add_special_tokens(Tokenizer.bytes_level(), kind)
    return taught.task(model, context)


@pytest.mark.parametrize("rows", ["random", "epochs"])
@pytest.mark.parametrize(("kind", "page"), [("masked", "bert"), ("span", "t5"), ("denoise", "bart")])
def test_batches_are_functions_of_the_number_and_two_small_ones_are_a_large_one(kind, page, rows, folder):
    other = folder / "topics.jsonl"  # a mixture, three of four rows from the book
    task = goal(kind, page, {str(folder / "book.txt"): 3, str(other): 1}, order=rows)
    one, two, both = (Global(task.rows, n)(i) for n, i in ((4, 6), (4, 7), (8, 3)))
    for i in range(8):
        small = (one, two)[i // 4]
        for name, value in both.items():
            if name in small:  # a batch may have no mask, and another width
                width = small[name].shape[1]
                assert torch.equal(value[i][:width], small[name][i % 4]), name
    assert not torch.equal(both["input_ids"][0], both["input_ids"][1])
    with pytest.raises(ValueError, match="order=packed is for the task causal"):
        goal(kind, page, folder / "book.txt", order="packed")


def test_windows_of_epochs_are_all_seen_before_one_comes_again(folder, tmp_path):
    (tmp_path / "a.txt").write_text("".join(chr(33 + i % 90) for i in range(2000)))
    task = goal("span", "t5", tmp_path / "a.txt", order="epochs")
    source = task.rows.windows
    seen = source.rows(0, source.size)["input_ids"]
    assert len(set(seen[:, 0].tolist())) > 60 and source.size == (1800 - 1) // source.context


def test_rows_come_once_in_an_epoch_and_every_tenth_never(tmp_path):
    lines = [{"text": chr(65 + i // 26) + chr(65 + i % 26), "label": i % 2} for i in range(50)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = goal("classify", "bert", tmp_path / "a.jsonl")
    epochs = [[tuple(row) for row in task.rows.rows(45 * n, 45)["input_ids"].tolist()] for n in range(2)]
    assert len(set(epochs[0])) == 45 and set(epochs[0]) == set(epochs[1]) and epochs[0] != epochs[1]
    held = {tuple(row) for batch in task.held_out(2) for row in batch["input_ids"].tolist()}
    assert len(held) == 5 and not held & set(epochs[0])
    cls, sep = 257, 258
    assert next(iter(held))[0] == cls and next(iter(held))[-1] == sep


def test_rows_of_several_tables_come_by_weight(tmp_path):
    for name in "ab":
        lines = ({"text": f"{name}{i}", "label": i % 2} for i in range(40))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = goal("classify", "bert", f"{tmp_path / 'a.jsonl'}=3,{tmp_path / 'b.jsonl'}=1")
    seen = task.rows.rows(0, 1000)["input_ids"][:, 1]
    assert (seen == ord("a")).sum() == 750 and (seen == ord("b")).sum() == 250
    again = torch.cat([task.rows.rows(i, 50)["input_ids"][:, 1] for i in range(0, 1000, 50)])
    assert torch.equal(again, seen)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_a_table_larger_than_what_may_be_held_is_learned_from(tmp_path):
    """Pictures inside a Parquet file: 80 MB in 55 MB more than 10 MB take (Arrow keeps some)."""
    pytest.importorskip("pyarrow")
    code = """
import io, os, sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from PIL import Image
import anyformer as af
from anyformer.data.order import Global
from anyformer.train.tasks import rows, splits, tables
from anyformer.train.tasks.encode import RowEncoder
from anyformer.train.model_setup import with_processor

def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024

out = io.BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)).save(out, "png")

def learn(name, count):
    schema = pa.schema({"image": pa.struct({"bytes": pa.binary()}), "label": pa.string()})
    with pq.ParquetWriter(name, schema, use_dictionary=False, compression="none") as file:
        for i in range(0, count, 100):
            many = [{"image": {"bytes": out.getvalue() + os.urandom(8)}, "label": "ab"[j % 2]} for j in range(100)]
            file.write_table(pa.Table.from_pylist(many, schema))
    sources = tables.read(name, None)
    model = with_processor(af.build("vit", "tiny", classes=2))
    encoder = RowEncoder("images", ("image", "label"), model, tables.classes(sources, ("image", "label")), 0)
    batches = Global(rows.on_rows(encoder, sources, splits.one_in_ten, 0, sys.argv[1] + "/cache").rows, 8)
    return [batches(i)["pixel_values"].shape for i in range(20)]

learn(sys.argv[1] + "/small.parquet", 400)
before = peak()
assert learn(sys.argv[1] + "/large.parquet", 3000)[19] == (8, 3, 16, 16)
print(os.path.getsize(sys.argv[1] + "/large.parquet") >> 20, peak() - before)
"""
    env = os.environ | {"PYTHONPATH": str(Path(af.__file__).parents[1])}
    command = [sys.executable, "-c", code, str(tmp_path)]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    size, grown = map(float, run.stdout.split())
    assert size > 75 and grown < 55, run.stdout


def test_padding_gets_masks_and_is_not_counted():
    examples = [{"input_ids": np.array([5, 6, 7]), "labels": np.array([1, -100, 2])},
                {"input_ids": np.array([8]), "labels": np.array([3])}]  # fmt: skip
    batch = collate(examples, pad=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, -100, 2], [3, -100, -100]]
    assert "attention_mask" not in collate(examples[:1])


@pytest.mark.parametrize(
    ("model", "task", "default"),
    [("gpt", None, "causal"), ("bert", None, "masked"), ("t5", None, "span"), ("bart", None, "denoise"),
     ("vit", None, "images"), ("reformer", None, "causal"), ("longformer", None, "masked"),
     ("t5", "denoise", "denoise"), ("bert", "tag", "tag")],
)  # fmt: skip
def test_the_skeleton_chooses(model, task, default):
    assert model_source(model, "tiny", {}, task).task == default


@pytest.mark.parametrize(
    ("model", "task", "said"),
    [("gpt", "masked", r"gpt \(CausalLM\) cannot be trained on the task 'masked'; it can on causal"),
     ("t5", "causal", "it can on span, denoise, seq2seq"), ("vit", "classify", "it can on images")],
)  # fmt: skip
def test_a_task_that_does_not_fit_is_refused(model, task, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        train(model, task=task, out=tmp_path / "x", **SMALL)


@pytest.mark.parametrize(("model", "columns", "kind"), [("reformer", ["text"], "write"),
                                                        ("longformer", ["text", "label"], "classify")])  # fmt: skip
def test_a_kind_of_a_skeleton_is_tuned_as_the_skeleton(model, columns, kind):
    assert registry.infer("auto", model, af.build(model, "tiny"), columns)[0] == kind


def test_a_decoder_without_a_state_for_the_whole_sample_writes_it_all_the_same(folder, tmp_path):
    done = train("reformer", data=folder / "book.txt", out=tmp_path / "x", steps=2, **SMALL)  # hashes 24 tokens
    assert done.sample.startswith("The ") and len(done.model.tokenizer.encode(done.sample)) > 24


def test_mistakes_in_rows_are_named(tmp_path):
    def rows(*lines):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return train("bert", task="classify", data=tmp_path / "rows.jsonl", out=tmp_path / "x", **SMALL)

    with pytest.raises(ValueError, match="no column 'label'"):
        rows({"text": "a", "lable": 1})
    with pytest.raises(ValueError, match="every label is '1'; classification"):
        rows({"text": "a", "label": 1}, {"text": "b", "label": 1})
    with pytest.raises(ValueError, match=r"at least 2 rows .* got 1"):
        splits.one_in_ten("a.jsonl", 1)
    with pytest.raises(ValueError, match=r"rows.jsonl, row 2: 'text' is ''; every row needs text"):
        rows({"text": "a", "label": 1}, {"text": "", "label": 2})
    with pytest.raises(ValueError, match="order=packed is for text, and classify reads each row once"):
        train("bert", task="classify", data=tmp_path / "rows.jsonl", out=tmp_path / "x", **{**SMALL, "order": "packed"})
    made = af.build("bert", "tiny", task="classify", classes=2, vocab=400)
    made.tokenizer = registry.add_special_tokens(Tokenizer.bytes_level(), "classify")
    made.save(tmp_path / "model")
    with pytest.raises(ValueError, match="the data has 3 classes, the model's head 2"):
        lines = [json.dumps({"text": str(i), "label": i % 3}) + "\n" for i in range(12)]
        (tmp_path / "three.jsonl").write_text("".join(lines))
        given = {**SMALL, "size": None, "context": 16}
        train(str(tmp_path / "model"), task="classify", data=tmp_path / "three.jsonl", out=tmp_path / "y", **given)
    made.tokenizer.roles.pop("mask_token", None)
    with pytest.raises(ValueError, match="needs a tokenizer with a mask_token"):
        text_tasks._masked(made, 16)
