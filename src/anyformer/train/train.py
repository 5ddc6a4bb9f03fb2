"""`train`: a language model from text, in one call. The same function is the command `anyformer train`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from anyformer.core.options import takes
from anyformer.core.shown import Shown
from anyformer.hub import load
from anyformer.train.checkpoint import resumed
from anyformer.train.loop import Done
from anyformer.train.model_setup import with_processor
from anyformer.train.model_source import initialised, model_source
from anyformer.train.next_command import next_command
from anyformer.train.options import TrainOptions, warmup_of
from anyformer.train.session import Session, context_of, session
from anyformer.train.tasks import training_data
from anyformer.train.tasks.base import Task
from anyformer.train.tasks.registry import KINDS, check_options

SAMPLE = 150  # tokens that are written at the end


@dataclass(frozen=True)
class Result(Shown):
    """Result of `train`.

    Attributes:
        checkpoint: the last one, a model directory that `af.load` and `transformers` read.
        steps: updates done. `stopped`: a signal came before the last one.
        loss: of the last step, in nats a token.
        bits_per_byte: of the held-out text, by the model. `bigram_bits_per_byte`: by a table of byte pairs.
        sample: text that the model wrote.
        model: the trained model itself.
        task: what it learned. Where bits per byte are not measured (tasks other than causal, a tokenizer that loses a
            part of the text), `held_out` is the loss in nats a label, or the share of labels that are wrong; `baseline`
            the same of a constant guess.
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


@takes(TrainOptions)
def train(options: TrainOptions) -> Result:
    """Trains a model and measures it on held-out data; by default a language model, on text.

    Takes the fields of `TrainOptions` by name. The last tenth of a text is held out. The measure is bits per byte,
    which does not depend on the tokenizer, beside that of a bigram; for other measures see `task`. All files go to
    `out`: checkpoints (model directories), config.yaml, log.csv, log.jsonl.

    Returns:
        The last checkpoint, bits per byte of model and bigram, a sample, the model.

    Raises:
        ValueError: for an unknown architecture, size or hyperparameter, text that is not UTF-8 or too short, a context
            longer than the model's, a folder that holds another run.
        OSError: for text that does not exist, a folder that cannot be written, a full disk.
        FloatingPointError: when the loss is not finite.

    Example:
        anyformer train --data book.txt --out runs/book --overrides.depth 6
    """
    model, overrides, task, ignore = options.model, options.overrides or {}, options.task, options.ignore
    checkpoint = resumed(options.out, options.resume)
    source = model_source(model, options.size, overrides, task, ignore, checkpoint)
    check_options(options, source.task)
    data = training_data(source.task, options)
    if data.implied and isinstance(model, str) and source.make is not None:
        source = model_source(model, options.size, {**data.implied, **overrides}, task, ignore, checkpoint)
    with session(options, source.name) as now:
        start = now.run.checkpoint
        if start is None:
            lm = source.model(options.tokenizer, options.vocab, data.words(), options.seed, data.classes)
        else:
            lm = now.run.model(source.given if start == checkpoint else None)
            lm = with_processor(lm) if KINDS[source.task].media else lm
        lm, factors = initialised(source, lm, options, new=start is None)
        lm.to(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        context = options.context
        if data.longest:
            context = context_of(lm, context, data.longest, 1, _HINT.format(context))
        warmup = warmup_of(options.warmup, options.steps, start)
        resolved = replace(options, task=source.task, warmup=warmup, context=context)
        goal = data.task(lm, context)
        baseline = goal.baseline(options.batch)
        _introduce(now, lm, goal, baseline)
        facts = {**source.facts, "tokenizer": options.tokenizer, "vocab": options.vocab}
        settings = options.settings(options.steps, options.lr, warmup, factors)
        _, done = now.learn(lm, goal, settings, facts, resolved)
        lm = whole(lm, done, now).eval()
        sample = ""
        if source.task == "causal" and not done.stopped:
            measured = load(done.checkpoint / "ema").to(next(lm.parameters()).device) if options.ema else lm
            sample = now.world.on_main(lambda: _sample(measured, options.prompt, options.seed))
        _conclude(now, done, goal, baseline, sample)
        if not done.stopped:
            place = done.checkpoint / "ema" if options.ema else done.checkpoint
            command = next_command(source.task, place, lm, options.data, options.fields, options.prompt, options.index)
            now.screen.message(f"next: {command}")
    bits, others = ((done.held_out, baseline), (None, None))[:: 1 if goal.guess is not None else -1]
    return Result(
        done.checkpoint, done.step, done.stopped, done.loss, bits[0], bits[1], sample, lm, source.task, others[0],
        others[1],
    )  # fmt: skip


_HINT = "; for a longer one build it longer, e.g. --overrides.context {}"


def whole(model: Any, done: Done, now: Session) -> Any:
    """The trained model; that of the checkpoint where there are several processes, which may hold parts of it."""
    return model if now.world.size == 1 else load(done.checkpoint).to(next(model.parameters()).device)


def _introduce(now: Session, model: Any, task: Task, baseline: float) -> None:
    count = sum(p.numel() for p in model.parameters())
    guess = "a constant guess" if task.guess is None else "a bigram"
    now.screen.message(
        f"{model.page or 'recipe'}, {task.name}: {count / 1e6:.2f} M parameters; {task.summary}, for which {guess} is "
        f"at {baseline:.3f} {task.unit}"
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
        now.screen.message(f"\n{sample}\n" if sample else "")
        guess = "guess" if task.guess is None else "bigram"
        measured = f"{done.held_out:.3f} {task.unit} ({guess}: {baseline:.3f})"
        now.screen.message(f"held-out: {measured}\nmodel: {done.checkpoint}")
