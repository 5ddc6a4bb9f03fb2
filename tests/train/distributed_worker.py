"""What the tests of several processes run in each of them, and alone: `fit` on tiny models, one job after another."""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import anyformer as af
from anyformer.parts import Mamba
from anyformer.train import Settings, checkpoint, fit, loop, objectives, train
from anyformer.train.distributed import world
from anyformer.train.loggers import Observer

torch.set_num_threads(1)


def padded(number, rows=4, time=10):
    """Rows of unequal length, such that each process counts another number of tokens."""
    draw = torch.Generator().manual_seed(number)
    ids = torch.randint(1, 101, (rows, time), generator=draw)
    lengths = torch.randint(2, time + 1, (rows, 1), generator=draw)
    mask = (torch.arange(time) < lengths).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": objectives.next_tokens(ids, mask)}


def uneven(number):
    """Five rows: no number of processes but 1 and 5 shares them evenly."""
    return padded(number, rows=5)


def hidden(number):
    batch = padded(number)
    dark = torch.rand(batch["labels"].shape, generator=torch.Generator().manual_seed(number)) < 0.3
    labels = batch["input_ids"].masked_fill(~dark | (batch["attention_mask"] == 0), -100)
    return {**batch, "input_ids": batch["input_ids"].masked_fill(dark, 1), "labels": labels}


def translated(number):
    source, target = padded(number), padded(number + 7, time=6)
    given = {"input_ids": source["input_ids"], "attention_mask": source["attention_mask"]}
    return {**given, "decoder_input_ids": target["input_ids"], "labels": target["labels"]}


def pictures(number):
    draw = torch.Generator().manual_seed(number)
    return {"pixel_values": torch.randn(4, 3, 16, 16, generator=draw), "labels": torch.arange(4) % 3}


def steep(number):
    """In batch 9 one token of the last row, which the last process has, has label 102: see `mined`."""
    batch = padded(number)
    if number == 9:
        batch["labels"][3, 0] = 102
    return batch


def mined(output, labels, count):
    """The causal loss, with a slope at label 102 that fp16 cannot hold: a product overflows, the loss does not."""
    slope = 1e6 * (output.logits.float() * (labels == 102)[..., None]).sum() / count
    return objectives.causal_lm(output, labels, count) + slope


def drawn(number):
    """What a careless data set does: it draws from the process's own generator."""
    return {**padded(number), "input_ids": torch.randint(1, 101, (4, 10))}


def mixture(seed):
    """Four experts, of which each token meets two, and one that all meet."""
    from anyformer.parts import GatedMLP
    from anyformer.parts.moe import MoE, TopK

    experts = MoE.of(
        router=TopK.of(experts=4, top=2, balance=0.0), expert=GatedMLP.of(hidden=24), shared=GatedMLP.of(hidden=16)
    )
    return af.build(af.recipe("llama", "tiny").but({"blocks.*.ffn": experts}), seed=seed)


def hybrid(seed):
    """A decoder of attention and Mamba, with parameters that no loss reads."""
    model = af.build(af.recipe("llama", "tiny").but({"blocks.1.mixer": Mamba.of(state=4)}), seed=seed)
    model.never = torch.nn.Linear(3, 3)
    return model


JOBS = {
    "gpt": (lambda seed: af.build("gpt", "tiny", seed=seed), padded, objectives.causal_lm),
    "dropped": (
        lambda seed: af.build("gpt", "tiny", seed=seed, dropout=0.2, attention_dropout=0.2), drawn, objectives.causal_lm
    ),
    "steep": (lambda seed: af.build("gpt", "tiny", seed=seed), steep, mined),
    "uneven": (lambda seed: af.build("gpt", "tiny", seed=seed), uneven, objectives.causal_lm),
    "llama": (lambda seed: af.build("llama", "tiny", seed=seed), padded, objectives.causal_lm),
    "hybrid": (hybrid, padded, objectives.causal_lm),
    "deep": (lambda seed: af.build("gpt", "tiny", seed=seed, depth=5), padded, objectives.causal_lm),
    "mamba": (lambda seed: af.build("mamba2", "tiny", seed=seed), padded, objectives.causal_lm),
    "windows": (lambda seed: af.build("gemma3", "tiny", seed=seed), padded, objectives.causal_lm),
    "mixture": (mixture, padded, objectives.causal_lm),
    "bert": (lambda seed: af.build("bert", "tiny", seed=seed), hidden, objectives.masked_lm),
    "t5": (lambda seed: af.build("t5", "tiny", seed=seed), translated, objectives.causal_lm),
    "vit": (lambda seed: af.build("vit", "tiny", seed=seed), pictures, objectives.classification),
}  # fmt: skip


def job(out, what, parallel="ddp", mesh=None, communication=None, resume=False, steps=12, **settings):
    """One run. Each process builds a model with other weights; those of the main one count."""
    make, batches, objective = JOBS[what]
    s = Settings(**{"lr": 3e-3, "warmup": 2, "accumulate": 2, "grad_clip": 0.5, "keep_last": 9, **settings},
                 steps=steps)  # fmt: skip
    processes = world(parallel, mesh, communication)
    return fit(make(processes.rank), batches, objective, s, out, resume=resume, world=processes)


class Noting(Observer):
    """Keeps what a run says."""

    def __init__(self):
        self.said = []

    def message(self, text):
        self.said.append(text)


def heard(out, what, parallel="ddp", **settings):
    """As `job`; what each process is told goes to said-RANK.json in a folder beside it."""
    make, batches, objective = JOBS[what]
    s, watch = Settings(**{"steps": 12, "lr": 3e-3, "warmup": 2, "accumulate": 2, **settings}), Noting()
    with world(parallel) as processes, checkpoint.Run(out, False, processes) as run:
        loop.Loop(make(processes.rank), batches, objective, s, run, None, {}, watch, processes).run()
    place = Path(f"{out}-said")
    place.mkdir(exist_ok=True)
    (place / f"{processes.rank}.json").write_text(json.dumps(watch.said))


def command(out, refused=False, **options):
    """`train` itself. What it says it found goes to result.json in a folder beside it, or why it refused."""
    place, found = Path(f"{out}-said"), {}
    try:
        result = train(out=out, quiet=True, **options)
        found = {"step": result.steps, "bits": result.bits_per_byte, "sample": result.sample}
    except ValueError as error:
        if not refused:
            raise
        found = {"refused": str(error)}
    place.mkdir(exist_ok=True)
    (place / f"{os.environ.get('RANK', 0)}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("default", module="deepspeed")  # old names of PyTorch's
    warnings.filterwarnings("default", "`torch.jit.", DeprecationWarning)  # in a module of PyTorch's that it imports
    warnings.filterwarnings("ignore", "written in anyformer.s own format")
    warnings.filterwarnings("default", "`torch.distributed.[a-z_]*_tensor` is deprecated", FutureWarning)
    warnings.filterwarnings("ignore", "not split: each process")
    if len(sys.argv) > 2:  # a job of its own, with its own group
        print("stopped" if job(**json.loads(sys.argv[2])).stopped else "done")
        sys.exit()
    dist.init_process_group("gloo")  # once for all jobs: a group that is there is used
    for line in json.loads(Path(sys.argv[1]).read_text()):
        run: Any = {"heard": heard, "command": command}.get(line.pop("by", ""), job)
        run(**line)
    dist.destroy_process_group()
