"""What a run shows and leaves: the panel, plain lines, curves, TensorBoard, energy; and what it foresees."""

import inspect
import io
import json
import re
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import anyformer as af
from anyformer.contract.subjects import first_of
from anyformer.data import text
from anyformer.skeletons import Skeleton
from anyformer.train import Settings, fit, memory, objectives, plots, progress, train
from anyformer.train.energy import Energy
from anyformer.train.loggers import Observer
from tests.later import later

torch.set_num_threads(1)
SMALL: dict[str, Any] = {
    "size": "tiny", "context": 32, "batch": 4, "steps": 12, "warmup": 2, "eval_every": 4, "vocab": 260,
}  # fmt: skip


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "book.txt"
    path.write_text(text.read()[:20_000], encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def ran(book, tmp_path_factory):
    """A run with everything that watches."""
    out = tmp_path_factory.mktemp("runs") / "a<b"
    options: dict[str, Any] = {
        **SMALL,
        "ema": 0.5,
        "label_smoothing": 0.1,
        "optimizer": "muon",
        "schedule": "wsd",
        "statistics_every": 6,
        "tensorboard": True,
    }
    return train("gpt", data=book, out=out, quiet=True, activation_checkpointing=["blocks.*"], **options), out


def test_curves_are_a_picture_and_one_page_that_needs_nothing_else(ran):
    _, out = ran
    png, page = (out / "curves.png").read_bytes(), (out / "curves.html").read_text()
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", png[16:24])[0] >= 1000
    assert "<svg" in page and "config.yaml" in page and "a&lt;b" in page and "a<b" not in page
    assert not re.search(r"(src|href)=.?https?:|<script|@import|url\(http", page)


def test_one_evaluation_is_seen_and_so_are_experts(tmp_path, monkeypatch):
    from matplotlib import image

    monkeypatch.setattr(plots, "_draw", inspect.unwrap(plots._draw))  # not a drawing of another run
    row = {"lr": 1e-3, "grad_norm": 1.0, "tokens": 8, "tokens_per_second": 9.0, "usage_least": 0.1}
    written = [{**row, "step": i, "loss": 3.0, "usage_greatest": 0.4} for i in (1, 2)]
    lines = [*written, {"step": 2, "held_out": 4.25}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plots.write(tmp_path, "bits per byte")
    pixels = image.imread(tmp_path / "curves.png")[..., :3]  # 6 panels, 3 rows of 2
    height, width = pixels.shape[0] // 3, pixels.shape[1] // 2

    def drawn(across, down, color):
        part = pixels[down * height : (down + 1) * height, across * width : (across + 1) * width]
        return int((abs(part - torch.tensor(color).numpy() / 255) < 0.02).all(-1).sum())

    blue, orange = (31, 119, 180), (255, 127, 14)
    assert all(drawn(across, down, blue) > 20 for across in range(2) for down in range(3))
    assert drawn(1, 2, orange) > 20 and not drawn(0, 2, orange)  # the greatest use of an expert


def test_tensorboard_has_the_numbers(ran):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, out = ran
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    held = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines() if "held_out" in line]
    assert [e.step for e in events.Scalars("held_out")] == [4, 8, 12]
    assert [e.value for e in events.Scalars("held_out")] == pytest.approx([row["held_out"] for row in held])
    assert {"loss", "lr", "grad_norm", "tokens", "tokens_per_second"} <= set(events.Tags()["scalars"])


def test_measured_is_the_mean_of_the_weights(ran, book):
    result, _ = ran
    mean = af.load(result.checkpoint / "ema")
    assert mean.tokenizer is not None and not torch.equal(mean.norm.weight, result.model.norm.weight)


def wandb_rows(file):
    """The history in a .wandb file: LevelDB's log format (blocks of 32 KiB, records in pieces) of protobuf records."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole, rows = file.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        place, whole = place + 7 + size, whole + data[place + 7 : place + 7 + size]
        if kind in (1, 4):  # whole, or its last piece
            record, whole = wandb_internal_pb2.Record.FromString(whole), b""  # type: ignore[attr-defined, unused-ignore]
            items = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item}
            rows += [items] if items else []
    return rows


def test_wandb_has_the_numbers(book, tmp_path, monkeypatch, capfd):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delitem(sys.modules, "openai", raising=False)  # where another test imported it, wandb advertises
    options = {**SMALL, "log_every": 2, "quiet": True, "wandb": True}
    train("mixtral", data=book, out=tmp_path / "run", **options)
    assert capfd.readouterr() == ("", "")
    (file,) = (tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb")
    written = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    told = {row["_step"]: row for row in wandb_rows(file)}
    assert list(told) == [2, 4, 6, 8, 10, 12] and all(row["tokens_per_second"] > 0 for row in told.values())
    for row in written:
        wanted = {name: value for name, value in row.items() if name not in ("step", "tokens_per_second")}
        assert row["step"] % 2 or wanted.items() <= told[row["step"]].items()
    assert {"usage_least", "aux_balance", "held_out"} <= told[4].keys()


def test_what_is_not_installed_is_named(book, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="pip install wandb"):
        train("gpt", data=book, out=tmp_path / "run", quiet=True, wandb=True, **SMALL)


def test_panel_and_plain_line_have_every_fact(monkeypatch):
    screen = progress.Screen()
    screen.flops, screen.peak, screen.memory = 5e6, 1e9, lambda: 2_500_000_000
    row = {"loss": 3.25, "lr": 1e-3, "grad_norm": 0.5, "tokens": 100}
    said: list[str] = []
    monkeypatch.setattr(screen, "message", said.append)
    for step in (10, 20):
        screen.on_steps({**row, "step": step}, 4000.0, 20)
    facts = "loss 3.250  lr 1.0e-03  grad 0.50  4,000 tokens/s  of peak 20 %  memory 2.50 GB"
    assert said == [f"step 10/20  {facts}", f"step 20/20  {facts}  0:00 left"]
    console = Console(width=110, force_terminal=True, record=True, file=io.StringIO())
    console.print(progress._panel(10, 20, {"loss": "3.250", "": "4,000 tokens/s"}))
    drawn = console.export_text()
    assert "step 10/20" in drawn and "loss 3.250   " in drawn and "4,000 tokens/s" in drawn and "╭" in drawn


def test_energy_is_counted_over_a_full_counter_or_refused(tmp_path):
    with pytest.raises(ValueError, match="energy cannot be measured here: there is no RAPL counter"):
        Energy(tmp_path)
    for name, value in (("intel-rapl:0", 900), ("intel-rapl:1", 100)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{value}000000\n")
        (tmp_path / name / "max_energy_range_uj").write_text("1000000000\n")
    counter = Energy(tmp_path)
    (tmp_path / "intel-rapl:0/energy_uj").write_text("50000000\n")  # it began again
    (tmp_path / "intel-rapl:1/energy_uj").write_text("130000000\n")
    assert counter.joules() == pytest.approx(150 + 30)


class Noted(Observer):
    """Keeps what it receives."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def message(self, text: str) -> None:
        self.calls.append(("message", text))

    def on_steps(self, row: dict[str, Any], speed: float, steps: int) -> None:
        assert speed > 0 and row.keys() >= {"step", "loss", "lr", "grad_norm", "tokens"}
        self.calls.append(("steps", row["step"], steps))

    def on_evaluation(self, step: int, held_out: float) -> None:
        self.calls.append(("evaluation", step, held_out))

    def close(self) -> None:
        self.calls.append(("close",))


@pytest.mark.parametrize("observer", [Noted(), Observer(), None], ids=["own", "silent", "none"])
def test_an_observer_receives_steps_evaluations_messages_and_the_end(observer: Observer | None, tmp_path: Path) -> None:
    settings = Settings(6, warmup=0, log_every=2, eval_every=3)
    ids = torch.arange(1, 17)[None]
    data = {"input_ids": ids, "labels": ids + 1}
    empty = {**data, "labels": torch.full_like(ids, objectives.IGNORE)}
    made = af.build("gpt", "tiny", seed=0)

    def batches(number: int) -> dict[str, torch.Tensor]:
        return empty if number == 4 else data

    fit(made, batches, objectives.causal_lm, settings, tmp_path / "a", measure=lambda _: 0.5, observer=observer)
    if isinstance(observer, Noted):
        assert [call for call in observer.calls if call[0] != "message"] == [
            ("steps", 2, 6), ("steps", 3, 6), ("evaluation", 3, 0.5), ("steps", 4, 6), ("steps", 6, 6),
            ("evaluation", 6, 0.5), ("close",),
        ]  # fmt: skip
        assert ("message", "step 5: every label is -100, so none counts; nothing is learned from it") in observer.calls


def test_the_observer_of_the_docs_prints_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs/tasks.md").read_text()
    exec(compile("\n".join(re.findall(r"```python\n(.*?)```", page, re.S)), "docs/tasks.md", "exec"), {})
    lines = re.findall(r"^step (\d+) of 30: loss (\d+\.\d+)$", capsys.readouterr().out, re.M)
    assert [int(step) for step, _ in lines] == [10, 20, 30] and float(lines[2][1]) < float(lines[0][1])


def test_an_exception_in_an_observer_ends_the_run(tmp_path: Path) -> None:
    class Broken(Observer):
        def on_steps(self, row: dict[str, Any], speed: float, steps: int) -> None:
            raise RuntimeError("a full disk elsewhere")

    made, ids = af.build("gpt", "tiny", seed=0), torch.arange(1, 17)[None]
    with pytest.raises(RuntimeError, match="a full disk elsewhere"):
        fit(made, lambda _: {"input_ids": ids, "labels": ids + 1}, objectives.causal_lm,
            Settings(2, warmup=0, log_every=1), tmp_path / "a", observer=Broken())  # fmt: skip


# --------------------------------------------------------------------------------------------------- prediction


def batch(rows=4, time=32, vocab=128):
    ids = torch.randint(1, vocab, (rows, time), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": objectives.next_tokens(ids)}


def test_prediction_counts_what_is_known():
    model = af.build("gpt", "tiny", seed=0)
    size = sum(p.nbytes for p in model.parameters())
    before, state = {n: p.clone() for n, p in model.named_parameters()}, torch.get_rng_state()
    said = memory.estimate(model, batch(), objectives.causal_lm, Settings(1))
    assert said.weights == said.gradients == size
    assert said.optimizer == pytest.approx(2 * size, rel=0.01)  # two moments and a count for each parameter
    with torch.autograd.graph.saved_tensors_hooks(seen := Kept(model), lambda t: t):
        objectives.causal_lm(model(batch()["input_ids"]), batch()["labels"], 1.0)
    assert said.activations == pytest.approx(seen.bytes, rel=0.15)
    assert said.peak > said.weights + said.optimizer + said.activations
    products = 2 * 3 * 4 * 32 * sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    head = 2 * 3 * 4 * 32 * 32 * 128
    attention = 3.5 * 4 * 4 * 2 * 32 * 32 * 32
    assert said.flops == pytest.approx(products + head + attention, rel=0.05)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)


class Kept:
    """Counts what is kept for backward, each memory once, without the weights."""

    def __init__(self, model):
        self.seen = {p.untyped_storage().data_ptr(): p for p in model.parameters()}
        self.bytes = 0

    def __call__(self, t):
        memory = t.untyped_storage()
        if memory.data_ptr() not in self.seen:
            self.seen[memory.data_ptr()] = t
            self.bytes += memory.nbytes()
        return t


def test_prediction_follows_settings():
    model = af.build("llama", "tiny", seed=0, depth=4)

    def said(rows=4, **settings):
        return memory.estimate(model, batch(rows), objectives.causal_lm, Settings(1, **settings))

    plain = said()
    assert said(activation_checkpointing=("blocks.*",)).activations < 0.6 * plain.activations
    assert said(rows=8).activations == pytest.approx(2 * plain.activations, rel=0.1)
    assert said(optimizer="muon").optimizer < plain.optimizer < said(ema=0.9).optimizer
    assert said(precision="bf16").activations < plain.activations
    assert said(accumulate=2).peak > plain.peak and said(accumulate=2).flops == 2 * plain.flops
    assert not any("forward" in vars(m) for m in model.modules())  # recompute was done to a copy


LOOSE = {  # the peak predicted without content, as shares of the one with it
    "omni": (
        1.0,
        1.2,
    ),  # the sizes of its pictures are content: one mask over all pairs of patches, in place of windows
    "alphafold2": (1.0, 1.3),  # attention over triangles takes all rows of pairs at once
    "esmfold": (1.0, 1.2),
    "encodec": (0.6, 1.0),  # sounds of different lengths are computed apart
}


FIRST = sorted({name.partition("/")[0] for name in first_of(Skeleton)})  # a page for each way that streams connect


@pytest.mark.parametrize("name", [*FIRST, *later(*(name for name in af.names() if name not in FIRST))])
def test_every_page_is_predicted(name, monkeypatch):
    model = af.build(name, "tiny", seed=0)
    inputs = model.complete(model.example(2, {}, torch.Generator().manual_seed(0)))
    inputs["labels"] = torch.zeros(2, dtype=torch.long)

    def objective(output, labels, count):
        return (output.hidden if output.logits is None else output.logits).float().square().sum() / count

    small = memory.estimate(model, inputs, objective, Settings(1))  # by a step with content
    assert small.peak > small.weights + small.optimizer and small.activations > 0 and small.flops > 0
    monkeypatch.setattr(memory, "SMALL", 0)
    unknown = any(path.endswith("router") for path, _ in model.named_modules())  # how many tokens an expert gets
    if unknown or name == "bigbird":  # how many blocks a row has
        with pytest.raises(memory.NotEstimable, match="cannot be predicted"):
            memory.estimate(model, inputs, objective, Settings(1))
        return
    predicted = memory.estimate(model, inputs, objective, Settings(1))
    if name in LOOSE:
        low, high = LOOSE[name]
        assert low * small.peak <= predicted.peak < high * small.peak
        return
    assert predicted == small


def test_what_does_not_fit_is_refused_with_what_to_change(book, tmp_path):
    with pytest.raises(ValueError, match=r"a step needs .* are free; none of these alone .*batch 2 and accumulate 2"):
        train("gpt", data=book, out=tmp_path / "run", quiet=True, memory=0.0, **{**SMALL, "size": "mini"})
    assert not list(tmp_path.glob("run/step-*"))
    model = af.build("gpt", "mini", seed=0)
    said = memory.estimate(model, batch(16, 128), objectives.causal_lm, Settings(1))
    _, told = memory.advice(model, batch(16, 128), objectives.causal_lm, Settings(1), said.peak - said.activations // 3)
    assert "that fits with activation_checkpointing" in told
    assert memory.advice(model, batch(), objectives.causal_lm, Settings(1), said.peak)[1] == ""


@pytest.mark.parametrize("settings", [{}, {"optimizer": "muon", "accumulate": 2}], ids=["adamw", "muon"])
def test_rehearsal_changes_nothing_and_knows_what_the_process_takes(settings):
    model = af.build("gpt", "tiny", seed=0, dropout=0.1, depth=2, dim=256, heads=4, context=128)
    before, state = {n: p.clone() for n, p in model.named_parameters()}, torch.get_rng_state()
    said = memory.estimate(model, batch(4, 128), objectives.causal_lm, Settings(1, **settings))
    done = memory.dry_run(model, batch(4, 128), objectives.causal_lm, Settings(1, **settings))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())
    assert done.seconds > 0
    assert done.bytes is None or done.bytes > said.peak


# ----------------------------------------------------------------------------------------------------- options


def test_mup_from_the_command_resumes(book, tmp_path):
    options = {**SMALL, "data": book, "quiet": True, "overrides": {"dim": 64}, "init": "mup", "base": {"dim": 32}}
    straight = train("gpt", out=tmp_path / "a", **options)
    train("gpt", out=tmp_path / "b", **{**options, "steps": 12, "save_every": 4})
    branch = train("gpt", out=tmp_path / "c", resume=str(tmp_path / "b/step-000008"), **{**options, "save_every": 4})
    assert branch.loss == straight.loss and branch.sample == straight.sample
    assert af.load(branch.checkpoint).recipe["head.scale"] == 0.5


@pytest.mark.parametrize(
    "options, said",
    [
        ({"init": "mup"}, "init=mup and base belong together"),
        ({"base": {"dim": 16}}, "init=mup and base belong together"),
        ({"init": "he"}, "init must be one of 'depth'"),
        ({"init": "mup", "base": {"dmi": 16}}, "no hyperparameter 'dmi'"),
        ({"patience": 1, "eval_every": 0}, "patience=1 counts evaluations"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1"),
        ({"schedule": "cos"}, "schedule must be one of"),
        ({"activation_checkpointing": ["layers.*"]}, "matches 'layers"),
        ({"lr_multipliers": {"blocks.9.*": 0.5}}, "no trained parameter matches"),
        ({"energy": True}, "energy cannot be measured here"),
    ],
    ids=str,
)
def test_mistakes_are_named_before_training(options, said, book, tmp_path):
    if "energy" in options and any(Path("/sys/class/powercap").glob("intel-rapl:?")):
        pytest.skip("this machine counts its energy")
    with pytest.raises(ValueError, match=said):
        train("gpt", data=book, out=tmp_path / "run", quiet=True, **{**SMALL, **options})
    assert not list(tmp_path.glob("run/step-*"))


def test_chars_are_a_tokenizer(book, tmp_path):
    result = train("gpt", data=book, out=tmp_path / "run", quiet=True, tokenizer="chars", **{**SMALL, "vocab": None})
    tokenizer = af.load(result.checkpoint).tokenizer
    said = text.read(book)[:500]
    assert tokenizer.decode(tokenizer.encode(said)) == said and tokenizer.vocab_size < 130
