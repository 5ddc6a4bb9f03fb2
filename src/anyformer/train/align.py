"""`align`: a published model learns which answers are better. The same function is `anyformer align`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anyformer.core.options import takes
from anyformer.core.shown import Shown
from anyformer.skeletons.decoder import CausalLM
from anyformer.train import alignment_report, model_source
from anyformer.train.alignment_report import Report
from anyformer.train.checkpoint import restore_weights
from anyformer.train.finetune import LONGEST, best, finish, numbers, ready
from anyformer.train.options import AlignOptions
from anyformer.train.preferences import BETAS, Preference
from anyformer.train.session import context_of, session
from anyformer.train.tasks import preferring, tables
from anyformer.train.tasks.preferring import Pair


@dataclass(frozen=True)
class Aligned(Shown):
    """Result of `align`.

    Attributes:
        folder: a model directory that `af.load` and `transformers` read, adapters merged; None if stopped early.
        checkpoint: the last one. steps: updates done. stopped: a signal came before the last one.
        loss: of the last step.
        before, after: figures on the pairs held out; after is None if stopped early.
        warning: chosen answers became unlikelier while answers grew; empty if not.
        learned, parameters: how many parameters are trained, of how many.
        model: the aligned model itself, adapters merged.
    """

    folder: Path | None
    checkpoint: Path
    steps: int
    stopped: bool
    loss: float
    before: Report
    after: Report | None
    warning: str
    learned: int
    parameters: int
    model: Any = field(repr=False)


@takes(AlignOptions)
def align(options: AlignOptions) -> Aligned:
    """Trains a model on preferences, and measures it before and after on held-out ones.

    Takes the fields of `AlignOptions` by name. The reference is the model as it came: its log-probabilities are
    computed once, before the first step. All files go to `out`: checkpoints, config.yaml, log.csv with margins and
    log-probabilities of each step, report.json, and with adapters `model`, the merged model.

    Returns:
        Folders, figures before and after, and the model.

    Raises:
        ValueError: before the first step, for options that contradict each other, rows without an answer or with equal
            answers, a model that is no decoder of text, a folder that holds another run.
        OSError: for a model or data that does not exist, a folder that cannot be written, a full disk.
        FloatingPointError: when the loss is not finite.

    Example:
        anyformer align dpo smollm2 --data preferences.jsonl --out runs/polite
    """
    sources = tables.read(options.data, options.fields)
    with session(options, f"{Path(options.model).stem}-{options.loss}") as now:
        if options.batch % now.world.size:
            raise ValueError(f"batch={options.batch} pairs cannot be shared by {now.world.size} processes")
        lm = _decoder(options)
        context = context_of(lm, options.context, LONGEST, 8, "")
        every = preferring.pairs(sources, options.loss, lm.tokenizer, context)
        learn, held = _split(every, options, lm.tokenizer, context)
        lm, summary = ready(lm, "write", (), options)
        pad = lm.tokenizer.pad_id
        learn, held = (preferring.scored(lm, part, options.batch, pad) for part in (learn, held))
        beta = options.beta or BETAS[options.loss]
        gamma = (options.gamma or beta / 2) if options.loss == "simpo" else 0.0
        goal = preferring.task(Preference(options.loss, beta, gamma), learn, held, options.seed, pad)
        settings = options.resolved(goal.size, now.run.checkpoint)
        resolved = replace(options, beta=beta, gamma=gamma or None, warmup=settings.warmup, context=context)
        learned, parameters = numbers(lm)
        now.screen.message(
            f"{options.model}, {options.loss}: {learned:,} of {parameters:,} parameters are trained ({summary}); "
            f"{goal.summary}; {settings.steps} steps"
        )
        before = alignment_report.report(lm, None, held, beta, options.batch, pad)
        facts = {"model": options.model, "method": options.method, "trainable": options.trainable or []}
        done = now.learn(lm, goal, settings, {**facts, **options.adapters()}, resolved)[1]
        kept = best(done, settings)[0]
        place = done.checkpoint.with_name(f"step-{kept:06d}") / ("ema" if options.ema else "")
        if now.world.size > 1 or kept != done.step or options.ema:  # it holds parts, or other weights
            lm = ready(_decoder(options), "write", (), options)[0]
            restore_weights(lm, place)
        now.conclude(done)
        folder = None if done.stopped else finish(lm, now, place)
        after, warning = None, ""
        if folder is not None:
            reference = _decoder(options).to(next(lm.parameters()).device)
            after = alignment_report.report(lm.eval(), reference, held, beta, options.batch, pad)
            warning = alignment_report.warning(before, after)
            now.world.on_main(lambda: alignment_report.write(now.run.folder, before, after))
            said = f'{alignment_report.table(before, after)}\nmodel: {folder}\nnext: anyformer chat {folder} "…"'
            now.screen.message(f"{said}\nwarning: {warning}" if warning else said)
    return Aligned(
        folder, done.checkpoint, done.step, done.stopped, done.loss, before, after, warning, learned, parameters,
        lm.eval(),
    )  # fmt: skip


def _decoder(options: AlignOptions) -> Any:
    """The model as it came.

    Raises:
        ValueError: for one that does not continue texts.
    """
    lm = model_source.pretrained(options.model, options.tokenizer, options.overrides, options.ignore)
    if not isinstance(lm, CausalLM) or lm.takes != "input_ids":
        raise ValueError(f"{options.model} ({type(lm).__name__}) continues no texts; align is for decoders of text")
    if not lm.generates:
        raise ValueError(f"{options.model} was read without its head, so it has no probabilities of answers")
    return lm


def _split(every: Sequence[Pair], options: AlignOptions, tokenizer: Any, context: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs to learn from, and pairs held out: the same prompt is never in both."""
    try:
        share = float(str(options.held_out))
    except ValueError:
        other = tables.read(str(options.held_out), options.fields)
        return list(every), preferring.pairs(other, options.loss, tokenizer, context)
    if not 0 < share < 1:
        raise ValueError(f"held_out must be a share between 0 and 1, or a file; got {share}")
    prompts = sorted({pair[0].prompt for pair in every}, key=lambda p: place(p, options.seed))
    count = max(1, round(share * len(prompts)))
    if count >= len(prompts):
        raise ValueError(f"{len(prompts)} prompt(s) are too few: some are learned from, and some are held out")
    held = set(prompts[:count])
    parts = ([p for p in every if p[0].prompt not in held], [p for p in every if p[0].prompt in held])
    if options.loss == "kto":
        for part, name in zip(parts, ("to learn from", "held out"), strict=True):
            if len({pair[0].kind for pair in part}) < 2:
                raise ValueError(
                    f"the answers {name} are all good or all bad; kto needs both: more rows, or another --seed"
                )
    return parts


def place(prompt: str, seed: int) -> str:
    """A key that orders prompts by the seed, whatever their order in the file is."""
    return hashlib.sha256(f"{seed} {prompt}".encode()).hexdigest()
