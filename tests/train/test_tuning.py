"""`finetune` with all that `train` has around it: encoder-decoders, images, processes, the best model, mixing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import anyformer as af
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.train import adapters, checkpoint, lora
from anyformer.train import finetune as typed
from anyformer.train.tasks import registry
from tests.later import later
from tests.train import tuning_worker
from tests.train.launched import ENVIRONMENT, launch

pytestmark = pytest.mark.usefixtures("forked")

torch.set_num_threads(1)
finetune: Any = typed  # called with options from tables
WORKER = Path(__file__).with_name("tuning_worker.py")
COLOURS = ("blue", "green", "red")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Models of each kind as published folders, and rows and pictures for them."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("tuning")
    words = [f"{a}{b}" for a in "bdgkpt" for b in "aeiou"]
    lines(folder / "pairs.jsonl", ({"source": w, "target": w.upper()} for w in words * 4))
    lines(folder / "asked.jsonl", ({"prompt": w, "response": w.upper()} for w in words * 4))
    draw = np.random.default_rng(0)
    rows = []
    for i in range(60):
        pixels = draw.integers(0, 120, (16, 16, 3), dtype=np.uint8)
        pixels[..., (2, 1, 0)[i % 3]] += 110
        name = COLOURS[i % 3]
        (folder / "pictures" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "pictures" / name / f"{i}.png")
        rows.append({"image": f"pictures/{name}/{i}.png", "label": name})
    lines(folder / "pictures.jsonl", rows)
    for name in ("t5", "bart", "transformer", "gpt"):
        made = af.build(name, "tiny", seed=0, vocab=300)
        task = "causal" if name == "gpt" else "seq2seq"
        made.tokenizer = registry.add_special_tokens(Tokenizer.train_bpe(words + [w.upper() for w in words], 300), task)
        made.save(folder / name)
    af.build("vit", "tiny", seed=0, task="none").save(folder / "vit")
    return folder


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------- encoder-decoders, images


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("model, data", [("t5", "pairs"), *later(("bart", "asked"), ("transformer", "pairs"))])
def test_an_encoder_decoder_learns_to_say_the_target(model, data, method, place, tmp_path):
    options: dict[str, Any] = {"steps": 60, "batch": 16, "lr": 1e-2, "quiet": True}
    options["trainable"] = ["embed"] if method == "lora" else None  # frozen random tokens can say little
    done = finetune(str(place / model), place / f"{data}.jsonl", method, out=tmp_path / "run", **options)
    assert done.task == "seq2seq" and done.after < 0.8 * done.before
    opened = af.load(done.folder)
    assert opened.page == model and (done.learned == done.parameters) == (method == "full")
    source = torch.tensor([opened.tokenizer.encode("ka")])
    assert int(source[0, -1]) in opened.tokenizer.eos_ids
    given = {"input_ids": source, "decoder_input_ids": torch.tensor([[opened.begin_id, 40, 41]])}
    torch.testing.assert_close(opened(**given).logits, done.model(**given).logits)
    if method == "lora":
        again = af.load(place / model)
        adapters.read(again, done.checkpoint)
        lora.merge(again)
        torch.testing.assert_close(again(**given).logits, opened(**given).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("data", ["pictures", "pictures.jsonl", "pictures.parquet"])
def test_an_encoder_of_images_learns_to_classify(data, method, place, tmp_path):
    if data == "pictures.parquet":  # as published data sets hold images
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        rows = [json.loads(line) for line in (place / "pictures.jsonl").read_text().splitlines()]
        rows = [{"image": {"bytes": (place / r["image"]).read_bytes(), "path": ""}, "label": r["label"]} for r in rows]
        pq.write_table(pa.Table.from_pylist(rows), place / data)
    options = {"steps": 30, "batch": 12, "lr": 5e-3, "quiet": True}
    done = finetune(str(place / "vit"), place / data, method, out=tmp_path / "run", **options)
    assert done.task == "images" and done.classes == COLOURS and done.after == 0 < done.before
    opened = af.load(done.folder)
    assert opened.config.task == "classify" and opened.config.classes == 3
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(done.folder).eval()
    assert theirs.config.id2label == dict(enumerate(COLOURS))
    pixels = torch.linspace(-1, 1, 2 * 3 * 256).view(2, 3, 16, 16)
    torch.testing.assert_close(theirs(pixels).logits, done.model(pixel_values=pixels).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model, data", [("vit", "pictures"), ("t5", "pairs.jsonl")])
@pytest.mark.parametrize("more", [{"method": "full"}, {"method": "lora", "dropout": 0.2, "ema": 0.5}], ids=str)
def test_resuming_is_bitwise_with_workers_and_accumulation(model, data, more, place, tmp_path):
    options: dict[str, Any] = {
        "steps": 6, "save_every": 3, "batch": 24, "accumulate": 2, "workers": 2, "lr": 1e-3, "quiet": True, **more
    }  # fmt: skip
    given = (str(place / model), place / data)
    straight = finetune(*given, out=tmp_path / "a", **options)
    resumed = finetune(*given, out=tmp_path / "b", resume=str(tmp_path / "a/step-000003"), **{**options, "workers": 0})
    assert (resumed.loss, resumed.before, resumed.after) == (straight.loss, straight.before, straight.after)
    files = sorted(str(f.relative_to(tmp_path / "a")) for f in (tmp_path / "a/step-000006").rglob("*.safetensors"))
    assert len(files) > 1
    for file in files:
        ours, theirs = load_file(tmp_path / "a" / file), load_file(tmp_path / "b" / file)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


# ----------------------------------------------------------------------------------- what is around a run


def test_a_run_is_foreseen_shown_and_drawn(place, tmp_path, capsys):
    options: dict[str, Any] = {"steps": 8, "batch": 8, "eval_every": 4, "statistics_every": 4, "label_smoothing": 0.1}
    options |= {"precision": "bf16", "activation_checkpointing": ["**.blocks.*"], "optimizer": "muon"}
    options |= {"schedule": "wsd", "ema": 0.5}
    done = finetune(str(place / "t5"), place / "pairs.jsonl", out=tmp_path / "run", tensorboard=True, **options)
    said = capsys.readouterr().out
    assert "a step needs" in said and "GB at most" in said and "memory" in said and "nats a token (perplexity" in said
    assert "seq2seq" in said and "model: " in said and f"at step {done.kept}" in said
    names = {f.name for f in (tmp_path / "run").iterdir()}
    assert {"curves.png", "curves.html", "tensorboard", "log.csv", "statistics.jsonl", "environment.json"} <= names
    assert [row["held_out"] for row in log(tmp_path / "run") if "held_out" in row][-1] == done.after
    with pytest.raises(ValueError, match=r"a step needs .* and .* GB are free"):
        finetune(str(place / "t5"), place / "pairs.jsonl", out=tmp_path / "no", memory=-1.0, quiet=True, steps=2)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_with_ema_the_mean_is_measured_saved_and_kept(method, place, tmp_path):
    options = {"steps": 6, "batch": 8, "lr": 1e-2, "ema": 0.9, "quiet": True}
    done = finetune(str(place / "gpt"), place / "asked.jsonl", method, out=tmp_path / "run", **options)
    plain = finetune(str(place / "gpt"), place / "asked.jsonl", method, out=tmp_path / "plain", **{**options, "ema": 0})
    file = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    last, mean = (load_file(done.checkpoint / where / file) for where in ("", "ema"))
    ours = load_file(plain.checkpoint / file)
    assert all(torch.equal(last[k], ours[k]) for k in ours) and any(not torch.equal(last[k], mean[k]) for k in mean)
    assert done.after != plain.after and done.model.state_dict().keys() == plain.model.state_dict().keys()
    kept = af.load(done.folder)
    assert all(torch.equal(t, kept.state_dict()[n]) for n, t in done.model.state_dict().items())
    again = af.load(place / "gpt") if method == "lora" else af.load(done.checkpoint / "ema")
    if method == "lora":
        adapters.read(again, done.checkpoint / "ema")
        lora.merge(again)
    ids = torch.arange(9)[None]
    torch.testing.assert_close(again(ids).logits, kept(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_with_patience_the_best_model_is_kept(method, place, tmp_path):
    """A rate that destroys what was learned: the first evaluations are the best ones."""
    options = {"steps": 40, "batch": 8, "lr": 0.5, "grad_clip": float("inf"), "warmup": 8, "schedule": "constant"}
    options |= {"eval_every": 2, "patience": 3, "keep_last": 1, "quiet": True}
    done = finetune(str(place / "gpt"), place / "asked.jsonl", method, out=tmp_path / "run", **options)
    measured = {row["step"]: row["held_out"] for row in log(tmp_path / "run") if "held_out" in row}
    assert done.kept == min(measured, key=lambda step: measured[step]) < done.steps == done.kept + 6 < 40
    assert done.after == measured[done.kept] < measured[done.steps] and done.checkpoint.name == f"step-{done.steps:06d}"
    kept = af.load(done.folder)
    again = af.load(place / "gpt") if method == "lora" else af.load(tmp_path / f"run/step-{done.kept:06d}")
    if method == "lora":
        adapters.read(again, tmp_path / f"run/step-{done.kept:06d}")
        lora.merge(again)
    ids = torch.arange(9)[None]
    torch.testing.assert_close(again(ids).logits, kept(ids).logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(done.model(ids).logits, kept(ids).logits)


def test_tables_are_mixed_by_weight_and_fields_rename(place, tmp_path):
    rows = [json.loads(line) for line in (place / "asked.jsonl").read_text().splitlines()]
    lines(tmp_path / "other.jsonl", ({"q": r["response"], "a": r["prompt"]} for r in rows))
    lines(tmp_path / "more.jsonl", ({"q": r["prompt"], "a": r["response"]} for r in rows))
    given: Any = {"fields": {"prompt": "q", "response": "a"}, "steps": 3, "batch": 8, "quiet": True}
    data = {str(tmp_path / "other.jsonl"): 3.0, str(tmp_path / "more.jsonl"): 1.0}
    done = finetune(str(place / "gpt"), data, out=tmp_path / "run", **given)
    facts = json.loads((done.checkpoint / "training.json").read_text())["facts"]
    assert facts["shares"] == [750, 250] and facts["task"] == "write" and done.task == "write"
    with pytest.raises(ValueError, match="shares was"):
        data[str(tmp_path / "more.jsonl")] = 3.0
        finetune(str(place / "gpt"), data, out=tmp_path / "run", **given, resume=True)


@pytest.mark.parametrize(
    "given, said",
    [
        (
            {"model": "vit", "data": "pictures", "context": 9},
            "context=9 is a number of tokens, and .*vit reads pixel_values",
        ),
        (
            {"model": "vit", "data": "pictures", "tokenizer": "t5"},
            "vit reads pixel_values, not text; leave tokenizer out",
        ),
        (
            {"model": "vit", "data": "pairs.jsonl"},
            "can be tuned to images, and the columns .*'source', 'target', fit",
        ),
        ({"model": "t5", "data": "text.jsonl"}, "can be tuned to seq2seq, and the columns .*'text', fit write"),
        ({"model": "vit", "data": "gone.jsonl"}, r"gone\.jsonl, row 2: there is no image '.*x/nowhere\.png'"),
        ({"model": "vit", "data": "odd.jsonl"}, r"odd\.jsonl, row 1: 'image' is a int; expected a file name"),
        ({"model": "vit", "data": "noise.jsonl"}, r"noise\.png cannot be read as an image"),
        ({"model": "gpt", "data": "pairs.jsonl", "parallel": "zero", "communication": {"x": 1}}, "has stage; got 'x'"),
        ({"model": "gpt", "data": "pairs.jsonl", "patience": 2}, "patience=2 counts evaluations, and eval_every=0"),
        ({"model": "t5", "data": "pairs.jsonl", "held_out": "pictures.jsonl"}, "row 1: no column 'source'"),
    ],
    ids=str,
)
def test_mistakes_are_named_before_the_first_step(given, said, place, tmp_path):
    (place / "noise.png").write_bytes(b"noise")
    lines(place / "text.jsonl", [{"text": "ka"}] * 9)
    there = {"image": "pictures/red/2.png", "label": "a"}
    lines(place / "gone.jsonl", [there, {"image": "x/nowhere.png", "label": "b"}])
    lines(place / "odd.jsonl", [{"image": 3, "label": label} for label in "ab"])
    lines(place / "noise.jsonl", [{"image": "noise.png", "label": label} for label in "ab"])
    given = {**given, "model": str(place / given["model"]), "data": str(place / given["data"])}
    if "held_out" in given:
        given["held_out"] = str(place / given["held_out"])
    with pytest.raises(ValueError, match=said):
        finetune(**given, out=tmp_path / "run", steps=2, quiet=True)
    assert not list(tmp_path.glob("run/step-*"))


def test_the_commands_of_the_docs_run(place, tmp_path, monkeypatch, capsys):
    """Each with small models and data of ours under their names."""
    from anyformer.cli import main

    lines(tmp_path / "pairs.jsonl", ({"prompt": f"ka {i}", "response": "ke"} for i in range(40)))
    lines(tmp_path / "translations.jsonl", ({"source": f"ka {i}", "target": "ke"} for i in range(40)))
    (tmp_path / "reviews.csv").write_text("text,label\n" + "".join(f"ka {i},{'ab'[i % 2]}\n" for i in range(40)))
    (tmp_path / "pictures").symlink_to(place / "pictures")
    bert = af.build("bert", "tiny", seed=0, vocab=300)
    bert.tokenizer = Tokenizer.load(place / "gpt")
    bert.save(tmp_path / "minilm")
    for name, model in {"smollm2": "gpt", "runs/t5/step-001000": "t5", "runs/vit/step-001000": "vit"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(place / model)
    monkeypatch.chdir(tmp_path)
    docs = (Path(__file__).parents[2] / "docs/finetuning.md").read_text()
    found = [line.partition("#")[0].split() for line in docs.splitlines() if line.startswith("anyformer finetune")]
    found = [words for words in found if not any(word.startswith("data/") for word in words)]  # those take minutes
    assert len(found) == 5
    for words in found:
        left = [w for i, w in enumerate(words) if "--epochs" not in words[max(0, i - 1) : i + 1]]
        assert main([*left[1:], "--steps", "2", "--batch", "8"]) == 0, capsys.readouterr().err
        out = Path(words[words.index("--out") + 1])
        assert (out / "model" if "full" not in words else out / "step-000002").is_dir()


# ------------------------------------------------------------------------------------- several processes

JOBS: list[dict[str, Any]] = [
    {"model": "gpt", "data": "asked.jsonl", "method": "full", "parallel": "ddp"},
    {"model": "gpt", "data": "asked.jsonl", "method": "lora", "parallel": "ddp", "workers": 1},
    {"model": "gpt", "data": "asked.jsonl", "method": "full", "parallel": "fsdp"},
    {"model": "gpt", "data": "asked.jsonl", "method": "lora", "parallel": "fsdp"},
    {"model": "t5", "data": "pairs.jsonl", "method": "lora", "parallel": "ddp", "ema": 0.5},
    {"model": "vit", "data": "pictures", "method": "lora", "parallel": "fsdp"},
]


def title(job):
    return "-".join((job["model"], job["method"], job["parallel"]))


QUICK = (JOBS[1], JOBS[3])  # in `make test`


@pytest.fixture(scope="module")
def both(place, tmp_path_factory, request):
    """Each job alone and in two processes; and two of these again, in two processes and in one, from their middle."""
    folder = tmp_path_factory.mktemp("both")
    jobs, chosen = [], QUICK if "not slow" in request.config.option.markexpr else JOBS
    for job in chosen:
        whole = {**job, "model": str(place / job["model"]), "data": str(place / job["data"]), "save_every": 12}
        whole["keep_last"] = 9
        jobs.append({**whole, "out": str(folder / "two" / title(job))})
        said = tuning_worker.job(**whole, out=str(folder / "one" / title(job)))
        (folder / "one" / title(job) / "said-0.json").write_text(json.dumps(said))
    for job in [jobs[chosen.index(job)] for job in QUICK]:
        again = {"resume": f"{job['out']}/step-000012", "out": f"{job['out']}-again"}
        jobs.append({**job, **again})
    launch(folder, 2, jobs, WORKER)
    return folder


@pytest.mark.parametrize("job", [*QUICK, *later(*(job for job in JOBS if job not in QUICK))], ids=title)
def test_two_processes_are_one(job, both):
    one, two = both / "one" / title(job), both / "two" / title(job)
    for key in ("loss", "grad_norm"):
        a, b = ([row[key] for row in log(run) if key in row] for run in (one, two))
        assert len(a) == 20
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    said = [json.loads((run / f"said-{i}.json").read_text()) for run, i in ((one, 0), (two, 0), (two, 1))]
    assert said[0]["before"] == pytest.approx(said[1]["before"], abs=1e-6) and said[1] == said[2]
    assert said[0]["after"] == pytest.approx(said[1]["after"], abs=1e-5)
    assert len(checkpoint.checkpoints(two)) == 2 and not list(two.glob(".*.tmp"))
    left, right = (af.load(told["folder"]) for told in said[:2])
    for name, tensor in left.state_dict().items():
        torch.testing.assert_close(tensor, right.state_dict()[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("job", [JOBS[1], JOBS[3]], ids=title)
def test_processes_resume_bit_for_bit_and_one_goes_on_from_two(job, both, place, tmp_path):
    straight, again = both / "two" / title(job), both / "two" / f"{title(job)}-again"
    name = "step-000020/adapter_model.safetensors"
    ours, theirs = load_file(straight / name), load_file(again / name)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    whole = {**job, "model": str(place / job["model"]), "data": str(place / job["data"]), "save_every": 12}
    moved = {"resume": str(straight / "step-000012"), "keep_last": 9, "out": str(tmp_path / "moved"), "parallel": "ddp"}
    tuning_worker.job(**{**whole, **moved})
    one = log(both / "one" / title(job))
    np.testing.assert_allclose(
        [row["loss"] for row in log(tmp_path / "moved") if "loss" in row],
        [row["loss"] for row in one if "loss" in row][12:],
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.slow  # `train` under torchrun is in test_distributed.py
def test_the_command_runs_under_a_launcher_and_speaks_once(place, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "anyformer", "finetune"]
    command += [f"--model={place / 'gpt'}", f"--data={place / 'asked.jsonl'}", "--steps=4", "--out=run", "--batch=4"]
    run = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert [run.stdout.count(text) for text in ("writes to run", "parameters are trained", "model: ")] == [1, 1, 1]
    af.load(tmp_path / "run/model")
