"""Two and four processes: the numbers of one, checkpoints of one layout in another, and what ends badly."""

import importlib.util
import json
import random
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.train import Settings, checkpoint, objectives
from anyformer.train.distributed import world
from tests.train import distributed_worker as worker
from tests.train.launched import ENVIRONMENT, WORKER, close, launch, ranks, rows, same, start

pytestmark = pytest.mark.usefixtures("forked")

EXPERTS = importlib.util.find_spec("anyformer.parts.moe") is not None
PAGES = ("gpt", "llama", "bert", "t5", "vit", "hybrid", *["mixture"] * EXPERTS)
TWO: list[dict[str, Any]] = [{"what": what, "parallel": kind} for what in PAGES for kind in ("ddp", "fsdp", "tp")]
TWO += [{"what": "uneven", "parallel": "ddp"}, {"what": "gpt", "parallel": "local", "communication": {"every": 1}}]
TWO += [{"what": "gpt", "parallel": "powersgd", "communication": {"rank": 1, "start": 2}}]
TWO += [{"what": "mixture", "parallel": "ep"}] * EXPERTS
TWO += [{"what": "llama", "parallel": "ddp", "mesh": {"context": 2}}]
TWO += [{"what": what, "parallel": "pipeline"} for what in ("gpt", "bert", "vit", "uneven")]
TWO += [{"what": "hybrid", "parallel": "pipeline", "chunked_loss": "on"}]
TWO += [{"what": what, "parallel": "fsdp", "mesh": {"context": 2}, "activation_checkpointing": ["blocks.*"]}
        for what in ("hybrid", "windows")]  # fmt: skip
EXACT: dict[str, dict[str, float]] = {
    "ddp": {},
    "fsdp": {},
    "tp": {},
    "diloco": {"every": 5, "lr": 0.7, "momentum": 0.9},
}
FOUR: list[dict[str, Any]] = [
    {"what": "gpt", "parallel": "ddp", "mesh": {"tensor": 2}},
    {"what": "t5", "parallel": "ddp", "mesh": {"data": 2, "tensor": 2}},
    {"what": "llama", "parallel": "fsdp", "mesh": {"tensor": 2}},
    {"what": "bert", "parallel": "fsdp"},
    {"what": "mamba", "parallel": "ddp", "mesh": {"context": 4}},
    {"what": "llama", "parallel": "fsdp", "mesh": {"context": 2}},
    {"what": "llama", "parallel": "pipeline", "mesh": {"data": 2}},
    {"what": "deep", "parallel": "pipeline", "communication": {"pieces": 2}},
    {"what": "gpt", "parallel": "ddp", "mesh": {"context": 2, "tensor": 2}},
    *[{"what": "mixture", "parallel": "ep", "mesh": {"tensor": 2}}] * EXPERTS,
]


QUICK = {"gpt-ddp", "gpt-fsdp", "gpt-tp", "t5-ddp", "vit-ddp", "llama-fsdp", "mixture-ep", "uneven-ddp", "gpt-local"}
QUICK |= {
    "gpt-powersgd",
    "ddp",
    "diloco",
    "llama-ddp-context2",
    "hybrid-fsdp-context2",
    "gpt-pipeline",
}  # what `make test` runs, in two processes; all else waits for `make test-all`


def name(job):
    return "-".join([job["what"], job["parallel"], *(f"{k}{v}" for k, v in job.get("mesh", {}).items())])


def marked(jobs, name=name):
    return [pytest.param(job, id=name(job), marks=[] if name(job) in QUICK else pytest.mark.slow) for job in jobs]


@pytest.fixture(scope="module")
def chosen(request):
    """Is a job run?"""
    quick = "not slow" in request.config.option.markexpr
    return lambda name: not quick or name in QUICK


@pytest.fixture(scope="module")
def alone(tmp_path_factory, chosen):
    """Each job in one process, here."""
    folder = tmp_path_factory.mktemp("alone")
    for what in {job["what"] for job in (*TWO, *FOUR) if chosen(name(job))}:
        worker.job(folder / what, what)
    return folder


def _moves(job):
    """Does another layout go on from its checkpoint?"""
    return job["what"] == "llama" or job["parallel"] == "pipeline"


@pytest.fixture(scope="module")
def two(tmp_path_factory, chosen):
    folder = tmp_path_factory.mktemp("two")
    jobs = [{**job, "out": str(folder / name(job)), "save_every": 8 * _moves(job)} for job in TWO]
    jobs = [job for job in jobs if chosen(name(job))]
    for kind, exchange in ((kind, exchange) for kind, exchange in EXACT.items() if chosen(kind)):
        straight: dict[str, Any] = {
            "what": "dropped",
            "parallel": kind,
            "communication": exchange,
            "steps": 12,
            "save_every": 8,
        }
        straight["out"] = str(folder / f"straight-{kind}")
        again = {**straight, "out": str(folder / f"again-{kind}"), "resume": f"{straight['out']}/step-000008"}
        jobs += [straight, again]
    moved = {"what": "llama", "parallel": "pipeline", "resume": str(folder / "llama-fsdp/step-000008")}
    launch(folder, 2, [*jobs, {**moved, "out": str(folder / "moved-pipeline")}])
    return folder


@pytest.fixture(scope="module")
def four(tmp_path_factory, two):
    folder = tmp_path_factory.mktemp("four")
    jobs = [{**job, "out": str(folder / name(job))} for job in FOUR]
    moved = str(two / "llama-fsdp/step-000008")
    for kind, tensor in (("fsdp", 1), ("ddp", 2)):
        out = str(folder / f"moved-{kind}{tensor}")
        jobs.append({"what": "llama", "parallel": kind, "mesh": {"tensor": tensor}, "resume": moved, "out": out})
    launch(folder, 4, jobs)
    return folder


@pytest.mark.parametrize("job", marked(TWO))
def test_two_processes_are_one(alone, two, job):
    if job["parallel"] in ("local", "powersgd"):  # close, and not the same
        a, b = ([row["loss"] for row in rows(run)] for run in (two / name(job), alone / job["what"]))
        assert abs(a[0] - b[0]) < 1e-5 < max(abs(x - y) for x, y in zip(a, b, strict=True)) < 0.1
    else:
        assert close(two / name(job), alone / job["what"])


@pytest.mark.parametrize("job", marked(FOUR))
def test_four_processes_are_one(alone, four, job):
    assert close(four / name(job), alone / job["what"])


@pytest.mark.slow
def test_zero_is_one_process(tmp_path, alone):
    pytest.importorskip("deepspeed", reason="parallel=zero is DeepSpeed's, which is not installed: the extra zero")
    jobs: list[dict[str, Any]] = [
        {"what": "gpt", "parallel": "zero", "communication": {"stage": s}, "save_every": 8} for s in (1, 2)
    ]
    jobs = [{**job, "out": str(tmp_path / f"stage{i}")} for i, job in enumerate(jobs, 1)]
    moved = {"what": "gpt", "resume": str(tmp_path / "stage2/step-000008")}
    launch(tmp_path, 2, [*jobs, {**moved, "parallel": "zero", "out": str(tmp_path / "again")}])
    worker.job(tmp_path / "moved", **moved)
    for folder in ("stage1", "stage2", "again", "moved"):
        assert close(tmp_path / folder, alone / "gpt")


@pytest.mark.parametrize("kind", marked(EXACT, str))
def test_straight_is_the_same_as_resumed_with_dropout_and_batches_that_draw(two, kind):
    assert same(two / f"again-{kind}", two / f"straight-{kind}")


def test_checkpoint_of_two_shards_goes_on_in_one_process(tmp_path, alone, two):
    worker.job(tmp_path / "moved", "llama", resume=two / "llama-fsdp/step-000008")
    assert len(rows(tmp_path / "moved")) == 4 and close(tmp_path / "moved", alone / "llama")


def test_checkpoints_go_into_stages_and_out_of_them(tmp_path, alone, two):
    worker.job(tmp_path / "moved", "gpt", resume=two / "gpt-pipeline/step-000008")
    for folder, what in ((tmp_path / "moved", "gpt"), (two / "moved-pipeline", "llama")):
        assert len(rows(folder)) == 4 and close(folder, alone / what)


@pytest.mark.slow
def test_checkpoint_of_two_shards_goes_on_in_four_processes(alone, four):
    for folder in (four / "moved-fsdp1", four / "moved-ddp2"):
        assert len(rows(folder)) == 4 and close(folder, alone / "llama")


def test_checkpoint_of_processes_with_weights_of_their_own_needs_as_many(tmp_path, two):
    with pytest.raises(ValueError, match="states of several processes"):
        worker.job(tmp_path / "moved", "dropped", resume=two / "straight-diloco/step-000008")


def test_what_they_save_is_a_model(two, chosen):
    for job in TWO:
        if job["what"] != "hybrid" and chosen(name(job)):  # the hybrid has a layer that no recipe knows
            af.load(two / name(job) / "step-000012")


# ------------------------------------------------------------------------------------------------ endings


def begun(folder, steps):
    """Two processes without a launcher that would end the one when the other dies."""
    job = {"out": str(folder), "what": "gpt", "steps": steps, "save_every": 5, "resume": "auto"}
    before = checkpoint.latest(folder)
    command = [str(WORKER), "-", json.dumps(job)]
    both = [start(rank, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for rank in ranks(2, command)]
    end = time.monotonic() + 120
    while checkpoint.latest(folder) == before:
        assert all(p.poll() is None for p in both) and time.monotonic() < end, [p.communicate() for p in both]
        time.sleep(0.01)
    return both


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX ones")
def test_sigterm_saves_once_and_the_death_of_one_ends_the_other(tmp_path):
    both = begun(tmp_path, 100_000)
    for process in both:
        process.send_signal(signal.SIGTERM)
    said = [p.communicate(timeout=60) for p in both]
    assert [p.returncode for p in both] == [0, 0] and [out.strip() for out, _ in said] == ["stopped"] * 2, said
    last = checkpoint.latest(tmp_path)
    assert last is not None and not list(tmp_path.glob(".step-*")) and rows(tmp_path)[-1]["step"] == int(last.name[5:])
    both = begun(tmp_path, 100_000)  # goes on
    both[1].kill()
    began = time.monotonic()
    _, error = both[0].communicate(timeout=60)
    assert both[0].returncode == 1 and "Error" in error and time.monotonic() - began < 60
    left = checkpoint.latest(tmp_path)
    assert left is not None and af.load(left) is not None


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("accelerate", marks=pytest.mark.slow)])
def test_the_command_runs_under_a_launcher_and_speaks_once(tmp_path, launcher):
    (tmp_path / "book.txt").write_text("All that glitters is not gold. Often have you heard that told.\n" * 200)
    module = {"torchrun": "torch.distributed.run", "accelerate": "accelerate.commands.launch"}[launcher]
    count = {"torchrun": ["--nproc-per-node=2"], "accelerate": ["--multi_gpu", "--num_processes=2"]}[launcher]
    command = [sys.executable, "-m", module, *count, "-m", "anyformer", "train", "--data=book.txt", "--size=tiny"]
    command += [
        "--steps=6",
        "--vocab=260",
        "--context=16",
        "--parallel=fsdp",
        "--mesh.data=2",
        "--out=run",
        "--batch=3",
    ]
    run = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("writes to run") == run.stdout.count("held-out: ") == 1
    assert "fsdp" in (tmp_path / "run/config.yaml").read_text() and len(rows(tmp_path / "run")) == 7
    af.load(tmp_path / "run/step-000006")


# ----------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "given, said",
    [({"parallel": "fdsp"}, r"one of ddp, fsdp.*did you mean fsdp"),
     ({"mesh": {"tensr": 2}}, "mesh has data, tensor, context, pipeline"),
     ({"mesh": {"data": 4}}, r"the launcher started 1 process; e.g. torchrun --nproc-per-node 4"),
     ({"parallel": "pipeline", "mesh": {"tensor": 2}}, "pipeline does not split by mesh.tensor"),
     ({"parallel": "fsdp", "mesh": {"pipeline": 2}}, "fsdp does not split by mesh.pipeline"),
     ({"parallel": "local", "mesh": {"context": 2}}, "the launcher started 1 process"),
     ({"parallel": "ddp", "communication": {"every": 3}}, "ddp has no such numbers"),
     ({"parallel": "diloco", "communication": {"evry": 3}}, "diloco has every, lr, momentum; got 'evry'"),
     ({"parallel": "powersgd", "communication": {"start": 1}}, "start=1 of powersgd is too small")],
)  # fmt: skip
def test_options_are_checked(given, said):
    with pytest.raises(ValueError, match=said):
        world(**given)


def test_what_cannot_be_cut_into_pieces_of_tokens_is_refused(group):
    from anyformer.train.distributed.context import Context
    from anyformer.train.step_loss import Loss

    def joined(page, objective=objectives.causal_lm, **settings):
        pieces = Context(None)
        pieces.join(Loss(af.build(page, "tiny"), objective, Settings(steps=1, **settings)))
        return pieces

    for page, said in (("bert", "Encoder is no decoder of text"), ("llava", "no decoder of text alone"),
                       ("transformerxl", "SegmentRecurrence cannot read a text in pieces with gradients")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            joined(page)
    with pytest.raises(ValueError, match="objective masked_lm reads more than one token's output"):
        joined("gpt", objectives.masked_lm)
    with pytest.raises(ValueError, match="a compiled step"):
        joined("gpt", compile=True)
    pieces, batch = joined("mamba"), worker.padded(0)
    with pytest.raises(ValueError, match=r"document_ids \(4, 10\) keep packed documents apart"):
        pieces.cut({**batch, "document_ids": batch["input_ids"]})
    with pytest.raises(ValueError, match=r"pixel_values \(4, 3\) have no entry for each token"):
        pieces.cut({**batch, "pixel_values": torch.zeros(4, 3)})
    batch["attention_mask"][0, :4] = torch.tensor([1, 0, 1, 1])
    with pytest.raises(ValueError, match="padding in the middle of a text"):
        pieces.cut(batch)


def test_what_cannot_be_cut_into_stages_is_refused(group):
    from anyformer.train.distributed.pipeline import Pipeline
    from anyformer.train.step_loss import Loss

    def wrapped(page, objective=objectives.causal_lm, **settings):
        line = Pipeline(1)
        line.stages = 3
        line.wrap(Loss(af.build(page, "tiny"), objective, Settings(steps=1, **settings)))

    for page, said in (("t5", "EncoderDecoder is no single row of blocks"), ("gpt", "2 blocks are fewer than stages")):
        with pytest.raises(ValueError, match=said):
            wrapped(page)
    for settings in ({"compile": True}, {"precision": "fp16"}):
        with pytest.raises(ValueError, match="for float32 and bf16, without compile"):
            wrapped("jamba", **settings)


@pytest.fixture
def group(monkeypatch):
    """A group of one process: what a single GPU under torchrun is."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    yield world
    torch.distributed.destroy_process_group()


def test_fsdp_in_a_group_of_one_is_one_process(tmp_path, alone, group):
    worker.job(tmp_path / "run", "gpt", parallel="fsdp")
    assert close(tmp_path / "run", alone / "gpt")


def test_random_numbers_of_a_step_are_shared_for_batches_and_own_for_dropout(group):
    processes = group()

    def draw(place, step, own):
        processes.place = place
        processes.reseed(3, step, own)
        return (float(torch.rand(())), float(np.random.rand()), random.random())

    assert draw(0, 1, False) == draw(1, 1, False) != draw(0, 2, False)
    assert len({draw(0, 1, False), draw(0, 1, True), draw(1, 1, True), draw(1, 2, True)}) == 4
    assert draw(1, 1, True) == draw(1, 1, True)


def test_split_layers_draw_masks_of_their_own_and_leave_the_generator_alike():
    from anyformer.parts import MLP
    from anyformer.train.distributed.tensor import own_dropout

    found = []
    for rank in (0, 1):
        part = MLP(8, bias=False, dropout=0.5)
        torch.nn.init.ones_(part.up.weight), torch.nn.init.ones_(part.down.weight)
        own_dropout(part, rank)
        torch.manual_seed(0)
        found.append((part(torch.ones(1, 9, 8), None), torch.rand(5)))
    assert not torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_batches_that_cannot_be_shared_are_refused(group):
    processes = group()
    processes.copies, processes.place = 4, 3
    with pytest.raises(ValueError, match="a batch of 3 rows cannot be shared by 4 processes"):
        processes.local_rows(worker.padded(0, rows=3))
    with pytest.raises(ValueError, match=r"'position_ids' of shape \(10,\) cannot be shared"):
        processes.local_rows({**worker.padded(0), "position_ids": torch.arange(10)})
    assert [len(v) for v in processes.local_rows(worker.padded(0, rows=6)).values()] == [1, 1, 1]


def test_heads_that_do_not_divide_and_models_without_matrices_to_split_are_refused(group, monkeypatch):
    from anyformer.train.distributed import expert, tensor

    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 3)
    with pytest.raises(ValueError, match=r"tensor=3: blocks.0.mixer has heads=4, which 3 processes cannot share"):
        tensor.split(af.build("gpt", "tiny"), None)
    with pytest.raises(ValueError, match="no attention or MLP that could be split"):
        tensor.split(af.build("mamba", "tiny"), None)
    with pytest.raises(ValueError, match="parallel=ep needs a mixture of experts"):
        expert.split(af.build("gpt", "tiny"), None)


def test_fsdp_can_replace_the_class_of_every_part(monkeypatch):
    """FSDP2 gives a module a class of its own; Python refuses it where a base before `nn.Module` has no `__dict__`."""
    from torch.distributed.fsdp import FSDPModule

    from anyformer.core.part import Part
    from anyformer.skeletons.base import Skeleton

    monkeypatch.setattr(Part, "kinds", dict(Part.kinds))  # what is made here is no part of ours
    classes, left = set(), [Part, Skeleton]
    while left:
        classes.add(cls := left.pop())
        left += cls.__subclasses__()
    for cls in (cls for cls in classes if not issubclass(cls, FSDPModule)):  # not those that another test made
        module = cls.__new__(cls)
        object.__setattr__(module, "__class__", type(f"Replaced{cls.__name__}", (FSDPModule, cls), {}))
        assert isinstance(module, FSDPModule)
