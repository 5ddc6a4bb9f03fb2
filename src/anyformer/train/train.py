"""`train`: a language model from text, in one call. The same function is the command `anyformer train`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import torch

from anyformer.core.recipe import Recipe
from anyformer.data.corpus import Order
from anyformer.hub import load
from anyformer.train.loop import Done
from anyformer.train.model_setup import with_processor
from anyformer.train.model_source import initialised, model_source
from anyformer.train.next_command import next_command
from anyformer.train.session import Session, context_of, session
from anyformer.train.settings import Settings, warmup_of
from anyformer.train.tasks import training_data
from anyformer.train.tasks.base import Task
from anyformer.train.tasks.registry import PICTURED

SAMPLE = 150  # tokens that are written at the end


@dataclass(frozen=True)
class Result:
    """What `train` leaves.

    Attributes:
        checkpoint: the last one, a model directory that `af.load` and `transformers` read.
        steps: updates done. `stopped`: a signal came before the last one.
        loss: of the last step, in nats a token.
        bits_per_byte: of the held-out text, by the model. `bigram_bits_per_byte`: by a table of byte pairs.
        sample: text that the model wrote.
        model: the trained model itself.
        task: what it learned. Where bits per byte are not measured (tasks other than causal, a tokenizer that loses a
            part of the text), `held_out` is the loss in nats a label, or the share of labels that are wrong; `baseline`
            the same of a guess that looks at nothing.
    """

    checkpoint: Path
    steps: int
    stopped: bool
    loss: float
    bits_per_byte: float | None
    bigram_bits_per_byte: float | None
    sample: str
    model: Any = field(repr=False)
    task: str = "causal"
    held_out: float | None = None
    baseline: float | None = None


def train(
    model: str | Recipe = "gpt",
    size: str | None = None,
    changes: dict[str, Any] | None = None,
    task: str | None = None,
    data: str | Path | dict[str, float] = "pydoc",
    fields: dict[str, str] | None = None,
    out: str | Path | None = None,
    steps: int = 1000,
    batch: int = 8,
    context: int | None = None,
    rows: Order = "drawn",
    workers: int = 0,
    accumulate: int = 1,
    lr: float = 1.5e-3,
    warmup: int | None = None,
    final_lr: float = 0.1,
    schedule: str = "cosine",
    optimizer: str = "adamw",
    rates: dict[str, float] | None = None,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    clip: float = 1.0,
    precision: str = "fp32",
    recompute: list[str] | None = None,
    compile: bool = False,
    init: str = "depth",
    base: dict[str, Any] | None = None,
    label_smoothing: float = 0.0,
    ema: float = 0.0,
    patience: int = 0,
    tokenizer: str | None = None,
    vocab: int | None = None,
    cache: str | None = None,
    seed: int = 0,
    eval_every: int = 250,
    save_every: int = 250,
    keep_last: int = 2,
    log_every: int = 10,
    statistics_every: int = 0,
    memory: float | None = None,
    energy: bool = False,
    tensorboard: bool = False,
    wandb: bool = False,
    resume: bool | str = False,
    prompt: str = "The ",
    device: str | None = None,
    quiet: bool = False,
    parallel: str = "ddp",
    mesh: dict[str, int] | None = None,
    exchange: dict[str, float] | None = None,
    ignore: list[str] | None = None,
) -> Result:
    """Trains a model, and says how good it is on what it has not seen; by default a language model, on text.

    The last tenth of the text is held out. The measure is bits per byte, which does not depend on the tokenizer, and
    a bigram is measured beside it; for other measures see `task`. All goes to `out`: checkpoints (model directories),
    config.yaml, log.csv, log.jsonl.

    Args:
        model: an architecture (gpt, llama, mamba, bert, t5, vit …), a recipe or a JSON file with one, or a model
            directory to start from.
        size: of an architecture, see `anyformer ls`; mini by default.
        changes: hyperparameters that differ from that size, e.g. --changes.depth 6; of a recipe: paths in it.
        ignore: keys of the files of a model directory that are read as if they were not there.
        task: causal (decoders), masked (BERT), span (T5), denoise (BART), seq2seq, classify, tag, images, match (CLIP),
            act or clone; by default the first one that fits the model. Those from seq2seq on read rows (see
            `train.tasks.registry`), every tenth is held out.
        data: a text file or a folder of them (UTF-8), JSONL, CSV, Parquet, hub:owner/name, see `data.records`; or
            pydoc, the English reference inside every CPython. Several: a.txt=0.7,b.jsonl=0.3, or a mapping to weights.
        fields: the column that holds the text, where it has another name: --fields.text content.
        out: the folder of the run; by default a new one, runs/MODEL-1, runs/MODEL-2, …
        steps: updates of the weights.
        batch: windows in a batch.
        context: tokens in a window; by default what the model can read, at most 256. Of act and clone steps; 20.
        rows: drawn: windows from anywhere, again and again; epochs: each window once in an epoch; packed: whole
            documents, each once in an epoch, that do not see each other.
        workers: threads that make batches ahead of time; the numbers are the same.
        accumulate: batches that make one step.
        lr: the highest learning rate.
        warmup: steps until it is reached, a tenth of all (at most 100) by default; the schedule leads down from there.
        final_lr: where the schedule ends, as a share of lr.
        schedule: cosine, linear, wsd, inverse_sqrt or constant.
        optimizer: adamw, or muon: Muon for the matrices inside the model, AdamW for all else.
        rates: factors of the learning rate by path pattern of parameters, e.g. {"embed.*": 0.1}.
        weight_decay: of matrices; biases, norms and embeddings do not decay.
        betas: of AdamW.
        clip: longest gradient, as a norm over all parameters; inf switches clipping off.
        precision: fp32; bf16 or fp16 (with a scaled loss): products in half precision, weights in float32.
        recompute: path patterns of what is computed again in backward instead of kept, e.g. blocks.*
        compile: run through torch.compile.
        init: first weights: depth (GPT-2's), normal, xavier, or mup, which makes hyperparameters of a narrow model
            serve a wide one.
        base: for mup: the hyperparameters that the narrow model has instead, e.g. --base.dim 64.
        label_smoothing: share of the target that is spread over all tokens; what is measured stays plain.
        ema: share of the old value in a running mean of the weights, which is then measured, and saved in ema/.
        patience: evaluations without a better one after which the run ends; 0: never.
        tokenizer: bpe or chars (made from the training text), bytes, or a folder with one; by default a start model's
            own, else bpe.
        vocab: tokens of the bpe that is made; 1024 by default.
        cache: the folder of token ids; by default $ANYFORMER_TOKENS, else tokens in the user's cache.
        seed: of first weights, windows and dropout.
        eval_every: steps between evaluations; 0 = only at the end.
        save_every: steps between checkpoints; 0 = only at the end.
        keep_last: checkpoints that are kept, beside the best one.
        log_every: steps between updates of the screen; the log files have every step.
        statistics_every: steps between rows of statistics.jsonl: sizes of activations and gradients; 0 = none.
        memory: GB that the run may use; by default what is free. More is refused before the first step.
        energy: show and log what the processor uses, where it counts that.
        tensorboard: write tensorboard/ too.
        wandb: report to Weights & Biases too.
        resume: false; true: go on from the last checkpoint in out; auto: go on if there is one; or the path of a
            checkpoint.
        prompt: the text that the sample at the end continues.
        device: cpu, cuda …; by default a GPU if there is one.
        quiet: print nothing.
        parallel: how processes that a launcher started work together: ddp, fsdp, tp, ep, zero, powersgd,
            local or diloco; see docs/distributed.md.
        mesh: how many of them share a batch and a matrix, e.g. --mesh.data 2 --mesh.tensor 2.
        exchange: numbers of zero, powersgd, local and diloco, e.g. --exchange.every 50.

    Returns:
        The last checkpoint, bits per byte of model and bigram, a sample, the model.

    Raises:
        ValueError: for an unknown architecture, size or hyperparameter, text that is not UTF-8 or too short, a context
            longer than the model's, a folder that holds another run.
        OSError: for text that is not there, a folder that cannot be written, a full disk.
        FloatingPointError: when the loss is not finite.

    Example:
        anyformer train --data book.txt --out runs/book --changes.depth 6
    """
    given = dict(locals())
    given |= {"rates": rates or {}, "recompute": list(recompute or []), "ignore": list(ignore or [])}
    own = {"recompute": tuple(given["recompute"]), "warmup": warmup_of(warmup, steps, None)}
    settings = Settings(**{f.name: given[f.name] for f in fields_of(Settings)} | own)
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}")
    if not prompt:
        raise ValueError("prompt is empty: the sample at the end needs text to continue")
    source = model_source(model, size, changes, task, given["ignore"])
    taught = training_data(source.task, given)
    if taught.implied and isinstance(model, str) and source.make is not None:
        source = model_source(model, size, {**taught.implied, **(changes or {})}, task, given["ignore"])
    with session(given, source.name) as now:
        if now.run.checkpoint is None:
            lm = source.model(tokenizer, vocab, taught.words(), seed, taught.classes)
        else:
            lm = load(now.run.checkpoint)
            lm = with_processor(lm) if source.task in PICTURED else lm
        lm, factors = initialised(source, lm, given, new=now.run.checkpoint is None)
        given |= {"task": source.task, "warmup": warmup_of(warmup, steps, now.run.checkpoint)}  # for config.yaml, too
        settings = replace(settings, rates={**factors, **settings.rates}, warmup=given["warmup"])
        lm.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if taught.longest:
            given["context"] = context_of(lm, context, taught.longest, 1, _HINT.format(context))
        goal = taught.task(lm)
        baseline = goal.baseline(batch)
        _introduce(now, lm, goal, baseline)
        facts = {**source.facts, "tokenizer": tokenizer, "vocab": vocab}
        _, done = now.learn(lm, goal, settings, facts)
        lm = whole(lm, done, now).eval()
        sample = ""
        if source.task == "causal" and not done.stopped:
            writer = load(done.checkpoint / "ema").to(next(lm.parameters()).device) if ema else lm  # what was measured
            sample = now.world.on_main(lambda: _sample(writer, prompt, seed))
        _conclude(now, done, goal, baseline, sample)
        if not done.stopped:
            place = done.checkpoint / "ema" if ema else done.checkpoint
            now.screen.say(f"next: {next_command(source.task, place, lm, data, fields, prompt)}")
    bits, others = ((done.held_out, baseline), (None, None))[:: 1 if goal.guess is not None else -1]
    return Result(
        done.checkpoint, done.step, done.stopped, done.loss, bits[0], bits[1], sample, lm, source.task, others[0],
        others[1],
    )  # fmt: skip


_HINT = "; for a longer one build it longer, e.g. --changes.context {}"


def whole(model: Any, done: Done, now: Session) -> Any:
    """The trained model; that of the checkpoint where there are several processes, which may hold parts of it."""
    return model if now.world.size == 1 else load(done.checkpoint).to(next(model.parameters()).device)


def _introduce(now: Session, model: Any, task: Task, baseline: float) -> None:
    count = sum(p.numel() for p in model.parameters())
    guess = "a guess that looks at nothing" if task.guess is None else "a bigram"
    now.screen.say(
        f"{model.page or 'recipe'}, {task.name}: {count / 1e6:.2f} M parameters; {task.told}, for which {guess} is at "
        f"{baseline:.3f} {task.unit}"
    )


def _sample(model: Any, prompt: str, seed: int) -> str:
    """The prompt and what the model writes after it, within what the model can read."""
    from anyformer.generate import generate

    most = model.context or 2 * SAMPLE
    ids = model.tokenizer.encode(prompt)[-(most // 2 or 1) :]
    count, cache = min(SAMPLE, most - len(ids)), True
    try:
        model.start(1, len(ids) + count)
    except ValueError:  # no state holds a text of this length (LSHAttention)
        cache = False
    new = generate(model, ids, max_new_tokens=count, temperature=0.8, top_p=0.95, seed=seed, cache=cache)
    return model.tokenizer.decode(ids + new)


def _conclude(now: Session, done: Done, task: Task, baseline: float, sample: str) -> None:
    now.conclude(done)
    if not done.stopped:
        now.screen.say(f"\n{sample}\n" if sample else "")
        guess = "guess" if task.guess is None else "bigram"
        now.screen.say(f"held-out: {done.held_out:.3f} {task.unit} ({guess}: {baseline:.3f})\nmodel: {done.checkpoint}")
