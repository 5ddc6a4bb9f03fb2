"""Faults of training that were silent: each is understood, refused, or said."""

import json
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import anyformer as af
from anyformer.data import models, records, sources
from anyformer.data.batches import Numbered
from anyformer.hub.text.reading import reading
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.train import (
    Settings,
    fit,
    lora,
    memory,
    model_setup,
    model_source,
    objectives,
    optim,
    session,
    train,
)
from anyformer.train.objectives import IGNORE
from anyformer.train.tasks import rows, splits, tables
from anyformer.train.tasks.base import collate
from anyformer.train.tasks.encode import RowEncoder, written

torch.set_num_threads(1)
teach: Any = train  # called with options from tables
QUICK: dict[str, Any] = {"size": "tiny", "tokenizer": "bytes", "batch": 2, "context": 16, "quiet": True}


def tokens(number, rows_=4, shift=1):
    ids = torch.randint(3, 97, (rows_, 9), generator=torch.Generator().manual_seed(number))
    return {"input_ids": ids[:, :8], "labels": ids[:, shift : shift + 8]}


def small():
    return af.build("gpt", "tiny", seed=0)


# ------------------------------------------------------------------------------------------------ resume


def test_a_refused_resume_leaves_every_file_as_it_was(tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat on the mat. " * 60)
    options = {**QUICK, "data": tmp_path / "a.txt", "out": tmp_path / "run", "warmup": 0}
    teach("gpt", steps=2, **options)
    before = {f: f.read_bytes() for f in (tmp_path / "run").rglob("*") if f.is_file()}
    with pytest.raises(ValueError, match="batch was 2 and is now 4"):
        teach("gpt", steps=3, **{**options, "batch": 4}, tensorboard=True, resume=True)
    assert before == {f: f.read_bytes() for f in (tmp_path / "run").rglob("*") if f.is_file()}
    said = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    teach(**{**said, "resume": True, "steps": 3})
    assert (tmp_path / "run/step-000003").exists()


def test_more_steps_go_on_with_the_warmup_of_the_run(tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat on the mat. " * 60)
    options = {**QUICK, "data": tmp_path / "a.txt", "out": tmp_path / "run"}
    teach("gpt", steps=4, **options)
    done = teach("gpt", steps=12, **options, resume=True)  # of 12 steps, a tenth would be 1
    facts = json.loads((done.checkpoint / "training.json").read_text())
    assert done.steps == 12 and facts["settings"]["warmup"] == 0
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["warmup"] == 0


class Shuffling:
    """Like a DataLoader that shuffles: another order in each round, by PyTorch's generator."""

    def __iter__(self):
        yield from (tokens(int(i)) for i in torch.randperm(6))


KINDS: dict[str, Any] = {"a list": [tokens(i) for i in range(6)], "shuffled": Shuffling()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [3, 8])
def test_an_iterable_goes_on_with_the_same_batches_or_not_at_all(kind, stop, tmp_path):
    def run(steps, out, **more):
        settings = Settings(steps, warmup=0, schedule="constant")
        return fit(small(), KINDS[kind], objectives.causal_lm, settings, tmp_path / out, **more).loss

    run(stop, "b")
    wanted = run(10, "a")
    try:
        assert run(10, "b", resume=True) == wanted
    except ValueError as error:
        assert kind == "shuffled" and "the order of the batches has changed" in str(error)


def test_other_batches_are_refused():
    batches = Numbered([tokens(i) for i in range(4)])
    batches(2)
    with pytest.raises(ValueError, match="order of the batches"):
        Numbered([tokens(i) for i in (0, 1, 3, 2)]).go_on(3, batches.sums())
    Numbered([tokens(i) for i in range(4)]).go_on(3, batches.sums())


# ------------------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize(
    "objective", [objectives.causal_lm, objectives.seq2seq, objectives.masked_lm, objectives.classification]
)
def test_labels_of_any_whole_type_count_alike(objective, kind):
    batch = tokens(0)
    output = small()(batch["input_ids"])
    wanted = objective(output, batch["labels"], 1.0)
    assert torch.equal(objective(output, batch["labels"].to(kind), 1.0), wanted)
    with pytest.raises(ValueError, match="labels must be whole numbers"):
        objective(output, batch["labels"].float(), 1.0)


def test_nothing_counted_is_an_error(tmp_path):
    nothing = lambda n: {**tokens(n), "labels": torch.full((4, 8), IGNORE)}  # noqa: E731
    with pytest.raises(ValueError, match="every label is -100"):
        fit(small(), nothing, objectives.causal_lm, Settings(1), tmp_path / "a")
    later = lambda n: tokens(n) if n != 2 else nothing(n)  # noqa: E731
    assert fit(small(), later, objectives.causal_lm, Settings(4, warmup=0), tmp_path / "b").step == 4


def test_labels_that_are_the_inputs_are_refused_and_a_constant_text_is_not(tmp_path):
    for objective in (objectives.causal_lm, objectives.masked_lm):
        with pytest.raises(ValueError, match="the labels are the inputs themselves"):
            fit(small(), lambda n: tokens(n, shift=0), objective, Settings(1), tmp_path / objective.__name__)
    same = torch.full((2, 8), 5)
    fit(
        small(),
        lambda n: {"input_ids": same, "labels": same},
        objectives.causal_lm,
        Settings(1, warmup=0),
        tmp_path / "a",
    )
    kept = torch.full((2, 8), IGNORE)
    kept[0, 3] = 7  # a hidden token that stands there as it was
    ids = torch.arange(16).reshape(2, 8) % 9
    ids[0, 3] = 7
    fit(
        small(),
        lambda n: {"input_ids": ids, "labels": kept},
        objectives.masked_lm,
        Settings(1, warmup=0),
        tmp_path / "b",
    )


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32, np.int64])
@pytest.mark.parametrize("shape", [(), (3,), (3, 2)])
def test_values_keep_their_kind_in_a_batch(kind, shape):
    values = [np.full(shape, 1.5 + i).astype(kind) for i in range(2)]
    batch = collate([{"values": v, "labels": np.array(0)} for v in values])["values"]
    assert batch.is_floating_point() == (np.dtype(kind).kind == "f")
    assert torch.equal(batch, torch.stack([torch.as_tensor(v) for v in values]).to(batch.dtype))


# ------------------------------------------------------------------------------------------------ measures


@pytest.mark.parametrize("first", [float("nan"), float("inf")])
def test_a_measure_that_is_no_number_is_never_the_best(first, tmp_path):
    values = iter([first, 3.0, 2.0, 1.0, 0.5])
    settings = Settings(5, warmup=0, eval_every=1, patience=2)
    done = fit(small(), tokens, objectives.causal_lm, settings, tmp_path / "a", measure=lambda m: next(values))
    assert done.best == {"step": 5, "held_out": 0.5} and not done.early
    rows_ = [json.loads(line) for line in (tmp_path / "a/log.jsonl").read_text().splitlines()]
    assert next(r["held_out"] for r in rows_ if "held_out" in r) is None
    done = fit(small(), tokens, objectives.causal_lm, settings, tmp_path / "b", measure=lambda m: first)
    assert done.early and done.step == 2 and done.best is None


@pytest.mark.parametrize("period", [2, 5, 10, 20])
def test_what_is_held_out_has_no_period(period):
    labels = np.arange(400) % period
    learn, out = splits.one_in_ten("x", 400)
    places = [part.of(np.arange(part.size)) for part in (learn, out)]
    assert sorted(np.concatenate(places).tolist()) == list(range(400))
    assert len(set(labels[places[1]])) > period / 2


@pytest.mark.parametrize("count", [2, 9, 10, 11, 19, 101])
def test_a_tenth_is_a_partition(count):
    learn, out = splits.one_in_ten("x", count)
    places = [part.of(np.arange(part.size)).tolist() for part in (learn, out)]
    assert sorted(places[0] + places[1]) == list(range(count)) and out.size == -(-count // 10)


def test_a_class_that_is_not_held_out_is_said(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "it barks,dog\n" * 19 + "it sings,bird\n")
    model = af.build("bert", "tiny", seed=0, task="classify", classes=2, vocab=257)
    model.tokenizer = Tokenizer.bytes_level()
    sources = tables.read(tmp_path / "a.csv", None)
    encoder = RowEncoder("classify", ("text", "label"), model, tables.classes(sources, ("text", "label")), 16)
    task = rows.on_rows(encoder, sources, splits.random_share(0.1, 3), 0)
    assert "2 classes: bird, dog" in task.summary
    held = {int(label) for batch in task.held_out(4) for label in batch["labels"]}
    assert held == {1} and any("no held-out example has the label bird" in note for note in task.notes)


# ------------------------------------------------------------------------------------------------ labels, text


LABELS = ["007", "7", "1_0", "10", "+3", "3", "1e3", "1000", "0.50", "0.5", "-0", "0", "٣", "x"]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_class_is_its_text(form, tmp_path):
    file = tmp_path / f"a.{form}"
    if form == "csv":
        file.write_text("text,label\n" + "".join(f"some text,{label}\n" for label in LABELS))
    else:
        file.write_text("".join(json.dumps({"text": "t", "label": label}) + "\n" for label in [*LABELS, 7, 10, 0.5]))
    found = tables.classes(tables.read(file, None), ("text", "label"))
    assert sorted(found) == sorted(LABELS)
    assert [c for c in found if c in ("0", "0.5", "3", "10", "1000")] == ["0", "0.5", "3", "10", "1000"]


def test_scores_are_said_to_be_classes():
    assert "3 classes: 0.0, 0.5, 1.25; each number is a class of its own: regression is not supported" in tables.listed(
        ["0.0", "0.5", "1.25"]
    )
    assert tables.listed(["1", "2"]) == "2 classes: 1, 2" and tables.listed(list("abcdefghi")).endswith("g, h, …")


@pytest.mark.parametrize("row", [{"text": "cut \ud83d"}, {"text": "fine", "messages": [{"content": "\ude00"}]}])
def test_half_a_surrogate_pair_is_named_with_file_and_row(row, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": "a"}) + "\n" + json.dumps(row) + "\n")
    for found in (records.records(file), records.Columns({}, ()).of(file, [{"text": "a"}, row])):
        with pytest.raises(ValueError, match=r"a\.jsonl, row 2: '\w+' has half a surrogate pair"):
            list(found)
    assert list(records.Columns({}, ()).of(file, [{"text": "whole 😀"}]))


def test_a_message_without_content_is_named():
    tokenizer = Tokenizer.bytes_level()
    tokenizer.template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    said = {"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "x"}]}
    with pytest.raises(ValueError, match="message 1, of 'user', has no content"):
        written(tokenizer, said, "messages", 16)


@pytest.mark.parametrize("around", [False, True])  # a post-processor, and none
@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_a_cut_target_has_no_end_and_a_cut_source_has(kind, around):
    from anyformer.data import vocabulary

    tokenizer = vocabulary.make(["the cat sat on the mat and ran\n"] * 40, kind, 60)
    if not around:
        core = json.loads(tokenizer.core.to_str()) | {"post_processor": None}
        tokenizer = Tokenizer(type(tokenizer.core).from_str(json.dumps(core)), tokenizer.roles)
    found = reading(tokenizer, "the cat sat on the mat", ends=kind == "unigram")
    end = tokenizer.role_id("eos_token" if kind == "unigram" else "sep_token")
    assert found.ids[-1] == end and found.cut(5)[-1] == end and found.cut(5, closed=False)[-1] != end
    assert found.cut(99) == found.ids and len(found.cut(5)) == len(found.cut(5, closed=False)) == 5


def test_a_source_is_read_alike_in_training_and_generation():
    model = af.build("t5", "tiny", seed=0, vocab=257)
    model.tokenizer = Tokenizer.bytes_level()  # puts nothing around a text
    model.tokenizer.roles["eos_token"] = "<|endoftext|>"
    from anyformer.generate.prompts import Prompts
    from anyformer.train.tasks.encode import whole

    assert (
        Prompts(model, "abc").rows == [whole(model.tokenizer, "abc", 9, ends=True, closed=True)] == [[97, 98, 99, 256]]
    )


@pytest.mark.parametrize(("kind", "unit"), [("bytes", "bits per byte"), ("wordpiece", "nats a token")])
def test_bits_per_byte_are_of_tokenizers_that_lose_nothing(kind, unit, tmp_path):
    from anyformer.data import vocabulary

    text = "The Cat sat on the Mat.\n" * 80
    (tmp_path / "a.txt").write_text(text)
    if kind != "bytes":
        vocabulary.make([text], kind, 60).save(tmp_path / "tokens")
    options = {**QUICK, "tokenizer": kind if kind == "bytes" else str(tmp_path / "tokens"), "prompt": "the"}
    done = teach("gpt", data=tmp_path / "a.txt", out=tmp_path / "run", steps=1, **options)
    assert (done.bits_per_byte is None) == (done.bigram_bits_per_byte is None) == (unit != "bits per byte")
    assert (done.held_out is None) == (done.baseline is None) == (unit == "bits per byte")


# ------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_decay_and_learn_by_muon(dora):
    model = small()
    lora.add(model, rank=4, targets=("**.blocks.**",), dora=dora)
    matrices = {id(p) for n, p in model.named_parameters() if n.endswith(("lora_a", "lora_b"))}
    for kind in ("adamw", "muon"):
        made = optim.make(model, Settings(1, optimizer=kind, weight_decay=0.5))
        decays = {id(p) for group in made.param_groups for p in group["params"] if group["weight_decay"]}
        assert decays == matrices
        chosen = [part for part in made.parts if type(part).__name__ == ("Muon" if kind == "muon" else "AdamW")]
        assert {id(p) for group in chosen[0].param_groups for p in group["params"]} >= matrices


BAD = [
    {"weight_decay": float("inf")},
    {"steps": 2.5},
    {"warmup": 1.5},
    {"min_lr_ratio": 2.0},
    {"lr": float("inf")},
    {"seed": 0.5},
]


@pytest.mark.parametrize("option", BAD, ids=lambda o: next(iter(o)))
def test_settings_out_of_range_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        Settings(**{"steps": 1, **option})


def test_how_the_rate_moves_is_said():
    assert session.rate_summary(Settings(100, lr=1e-3, warmup=10)) == (
        "learning rate: 0.001 after 10 steps of warmup, then cosine to 0.0001"
    )
    assert "does not end within 20 steps, so the rate ends at 0.0002" in session.rate_summary(
        Settings(20, lr=1e-3, warmup=100)
    )


def test_class_names_are_kept_and_finetune_keeps_the_head(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "it barks,dog\nit meows,cat\n" * 12)
    done = teach("bert", data=tmp_path / "a.csv", task="classify", out=tmp_path / "a", steps=1, **QUICK)
    assert json.loads((done.checkpoint / "config.json").read_text())["id2label"] == {"0": "cat", "1": "dog"}
    given = af.load(done.checkpoint)
    model, fresh = model_setup.with_classifier(given, "classify", ("cat", "dog"), 1)
    assert fresh == [] and all(torch.equal(a, b) for a, b in zip(model.parameters(), given.parameters(), strict=True))


def test_one_resolver_serves_every_verb(tmp_path, monkeypatch):
    small().save(tmp_path / "mine")
    monkeypatch.setattr(sources, "get", lambda name: tmp_path / "mine")  # real weights by name are fetched elsewhere
    assert models.find(str(tmp_path / "mine")) == tmp_path / "mine" == models.find("smollm2")
    assert model_source.model_source("smollm2", None, None).given is not None
    for ask in (models.find, model_source.pretrained, lambda name: model_source.model_source(name, None, None)):
        for wrong, right in (("smolm2", "smollm2"), ("gtp", "gpt")):
            with pytest.raises(FileNotFoundError, match=f"no model '{wrong}' .did you mean {right}"):
                ask(wrong)
    with pytest.raises(ValueError, match="an architecture, without weights"):
        model_source.pretrained("gpt")


# ------------------------------------------------------------------------------------------------ memory, patches


def test_memory_of_a_contrastive_loss_is_predicted_and_advised_in_pairs(tmp_path):
    model = af.build("bert", "tiny", seed=0)
    batch = {"input_ids": torch.randint(3, 90, (8, 6)), "labels": torch.arange(4).repeat_interleave(2)}
    said, problem = memory.advice(model, batch, objectives.Contrastive(), Settings(1), 1)
    assert said.peak > said.weights > 0
    assert "batch 2, with fewer negatives" in problem and "accumulate" not in problem
    with pytest.raises(ValueError, match="a pair's number at both of its rows"):
        fit(
            model, lambda n: {**batch, "labels": torch.arange(8)}, objectives.Contrastive(), Settings(1), tmp_path / "a"
        )


@pytest.mark.parametrize("fails", [False, True])
def test_fit_leaves_no_patched_forward_behind(fails, tmp_path):
    model = small()
    batches = (lambda n: {**tokens(n), "labels": torch.full((4, 8), IGNORE)}) if fails else tokens
    try:
        settings = Settings(1, warmup=0, activation_checkpointing=("blocks.*",))
        fit(model, batches, objectives.causal_lm, settings, tmp_path / "a")
    except ValueError:
        assert fails
    assert not any("forward" in vars(m) for m in model.modules())


def test_files_of_a_checkpoint_have_one_mode(tmp_path):
    fit(small(), tokens, objectives.causal_lm, Settings(1, warmup=0), tmp_path / "a")
    modes = {f.name: f.stat().st_mode & 0o777 for f in (tmp_path / "a/step-000001").iterdir()}
    assert modes["training.safetensors"] == modes["training.json"] == modes["config.json"]
