"""`finetune`: a published model learns from examples, in one call. The same function is `anyformer finetune`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from anyformer.compress import nf4
from anyformer.core.options import takes
from anyformer.core.shown import Shown
from anyformer.data.boxes import BoxSet, holds_boxes
from anyformer.data.boxes import read as boxes_of
from anyformer.data.corpus import weights
from anyformer.generate.answering import known_answers
from anyformer.generate.paths import ctc_head
from anyformer.train import adapters, checkpoint, lora, model_setup, model_source
from anyformer.train.loop import Done
from anyformer.train.next_command import next_command
from anyformer.train.options import FinetuneOptions
from anyformer.train.session import Session, context_of, session
from anyformer.train.settings import Settings
from anyformer.train.tasks import boxes, composing, drawing, registry, retrieving, rows, splits, tables, whole_data
from anyformer.train.tasks.base import Task
from anyformer.train.tasks.encode import RowEncoder

LONGEST = 512  # tokens of an example by default, if the model can read more
MODEL = "model"  # the folder of the merged model, inside the run's


@dataclass(frozen=True)
class Tuned(Shown):
    """Result of `finetune`.

    Attributes:
        folder: a model directory that `af.load` and `transformers` read, adapters merged; None if stopped early.
        checkpoint: the last one: a model directory, or with adapters a folder that `peft` reads.
        steps: updates done. `kept`: the step whose weights `folder` has: the last one, with patience the best one.
        stopped: a signal came before the last one.
        loss: of the last step, in nats.
        before, after: on the examples held out, of the model as it came and of the one that is kept: nats a counted
            token or a pair, or the share of wrong labels.
        learned, parameters: how many parameters are traineded, of how many.
        classes: the labels by number.
        task: its name, see `tasks.registry`.
        model: the tuned model itself, adapters merged.
    """

    folder: Path | None
    checkpoint: Path
    steps: int
    kept: int
    stopped: bool
    loss: float
    before: float
    after: float | None
    learned: int
    parameters: int
    classes: tuple[str, ...]
    task: str
    model: Any = field(repr=False)


@takes(FinetuneOptions)
def finetune(options: FinetuneOptions) -> Tuned:
    """Fine-tunes a model on examples, and measures it before and after on held-out examples.

    Takes the fields of `FinetuneOptions` by name. A decoder learns to write: texts, or the answers of conversations
    (only the assistant's words are counted). An encoder-decoder learns the target of a source. An encoder of text
    learns to classify, with a new head, or to give similar vectors to texts that belong together (the other pairs of a
    batch are the negatives; pooled as in the model's files); an encoder of images learns to classify them. All files go
    to `out`: checkpoints, config.yaml, log.csv, log.jsonl, curves, and with adapters `model`, the merged model.

    Returns:
        Folders, measures before and after, and the model.

    Raises:
        ValueError: before the first step, for options that contradict each other, examples that do not fit the task or
            the model, a folder that holds another run.
        OSError: for a model or data that does not exist, a folder that cannot be written, a full disk.
        FloatingPointError: when the loss is not finite.

    Example:
        anyformer finetune --model minilm --data reviews.csv --out runs/reviews
    """
    model, batch = options.model, options.batch
    data = read_data(options)
    with session(options, f"{Path(model).stem}-{options.method}") as now:
        lm = model_source.pretrained(model, options.tokenizer, options.overrides, options.ignore)
        whole = registry.whole(options.task, lm)
        kind, names, context, columns = (whole, (), options.context, ()) if whole else kind_of(lm, data, options)
        registry.check_options(options, kind)
        if kind == "embed" and batch % now.world.size:
            raise ValueError(
                f"batch={batch} pairs cannot be shared by {now.world.size} processes without splitting one; use a "
                f"multiple of {now.world.size}"
            )
        lm, summary = ready(lm, kind, names, options)
        if whole:
            goal = whole_data(whole, options).task(lm, context)
        else:
            goal = goal_of(lm, kind, names, context, columns, data, options)
        settings = options.resolved(goal.size, now.run.checkpoint)
        resolved = replace(options, lr=settings.lr, warmup=settings.warmup, context=context)
        learned, parameters = numbers(lm)
        now.screen.message(
            f"{model}, {kind}: {learned:,} of {parameters:,} parameters are trained ({summary}); {goal.summary}; "
            f"{settings.steps} steps"
        )
        before = now.world.on_main(lambda: goal.measure(lm.eval(), batch))
        now.screen.message(f"before: held-out {_measured(before, goal)}")
        facts = {"model": model, "method": options.method, "trainable": options.trainable or [], **options.adapters()}
        facts |= {"overrides": options.overrides} if options.overrides else {}
        done = now.learn(lm, goal, settings, facts, resolved)[1]
        kept, after = best(done, settings)
        place = done.checkpoint.with_name(f"step-{kept:06d}") / ("ema" if options.ema else "")
        if now.world.size > 1 or kept != done.step or options.ema:  # it holds parts, or other weights
            lm = model_source.pretrained(model, options.tokenizer, options.overrides, options.ignore)
            lm = ready(lm, kind, names, options)[0]
            checkpoint.restore_weights(lm, place)
        now.conclude(done)
        folder = None if done.stopped else finish(lm, now, place)
        if folder and after is not None:
            now.screen.message(
                f"held-out: {_measured(before, goal)}, now {_measured(after, goal)}, at step {kept}\nmodel: {folder}\n"
                f"next: {next_command(kind, folder, lm, options.data, options.fields, index=options.index)}"
            )
    return Tuned(
        folder, done.checkpoint, done.step, kept, done.stopped, done.loss, before, after, learned, parameters,
        names, kind, lm.eval(),
    )  # fmt: skip


def read_data(options: FinetuneOptions) -> BoxSet | list[tables.Table]:
    """The pictures with boxes, or the tables of rows."""
    sources = list(weights(options.data))
    if len(sources) > 1 or not holds_boxes(sources[0]):
        return tables.read(options.data, options.fields)
    if options.fields:
        raise ValueError("fields rename columns of tables; COCO's and VOC's files have names of their own")
    return boxes_of(sources[0])


def kind_of(
    lm: Any, data: BoxSet | list[tables.Table], options: FinetuneOptions, least: int = 2
) -> tuple[str, tuple[str, ...], int | None, tuple[str, ...]]:
    """The task, the names of its classes (at least so many), the tokens of an example, and the columns of rows."""
    model, context = options.model, options.context
    columns: tuple[str, ...] = ()
    if isinstance(data, BoxSet):
        kind, names = registry.of_boxes(options.task, model, lm), data.names
    else:
        kind, columns = registry.infer(options.task, model, lm, data[0].columns())
        labelled = kind in (*model_setup.ENDS, "answer") or columns == ("image", "label")
        names = tables.classes(data, columns, least) if labelled else ()
        names = known_answers(lm, names) if kind == "answer" else names
    if kind in composing.TASKS:
        return kind, names, context, columns
    if columns not in (("image", "label"), ("sound", "text"), ()):
        context = context_of(lm, context, LONGEST, 8, "")
    elif context is not None:
        raise ValueError(f"context={context} is a number of tokens, and {model} reads {lm.takes}; leave it out")
    return kind, names, context, columns


def goal_of(
    lm: Any,
    kind: str,
    names: tuple[str, ...],
    context: int | None,
    columns: tuple[str, ...],
    data: BoxSet | list[tables.Table],
    options: FinetuneOptions,
    split: splits.Split | None = None,
) -> Task:
    """The rows that are learned from, and what is measured; without `split` as the options say."""
    parts = split or _held_out(options.held_out, options.fields, options.seed)
    if kind == "retrieve" and not isinstance(data, BoxSet):
        return retrieving.on_index(lm, data, retrieving.opened(options), parts, options)
    if isinstance(data, BoxSet):
        if not callable(parts):
            raise ValueError(f"held_out={options.held_out!r}: of pictures with boxes it is a share between 0 and 1")
        return boxes.on_boxes(data, next(iter(weights(options.data))), lm, parts, options.seed)
    limit = rows.limit_of(kind, lm, context)
    codec = composing.codec_at(options.codes) if kind == "stage" else None
    return rows.on_rows(
        RowEncoder(kind, columns, lm, names, limit, codec=codec), data, parts, options.seed, options.cache
    )


def _held_out(held_out: float | str, fields: dict[str, str] | None, seed: int) -> splits.Split | list[tables.Table]:
    """A split of the examples, or the held-out tables."""
    try:
        share = float(str(held_out))
    except ValueError:
        return tables.read(str(held_out), fields)
    if not 0 < share < 1:
        raise ValueError(f"held_out must be a share between 0 and 1, or a file; got {held_out}")
    return splits.random_share(share, seed)


def ready(
    lm: Any, kind: str, names: tuple[str, ...], options: FinetuneOptions, said: Iterable[str] | None = None
) -> tuple[Any, str]:
    """The model with a head of classes and adapters, where wanted, on its device; and a summary of what is trained.

    Args:
        said: texts with all letters of a new head of speech; by default those of the data.
    """
    fresh: list[str] = []
    lm = model_setup.with_processor(lm) if registry.KINDS[kind].media else lm
    if kind == "draw":
        drawing.with_coder(lm, drawing.coder_of(options.codes))
    if kind == "compose":
        composing.with_codec(lm, composing.codec_at(options.codes), ())
    if kind == "ctc" and ctc_head(lm) is None:
        said = letters(tables.read(options.data, options.fields)) if said is None else said
        lm, fresh = model_setup.with_letters(lm, said, options.seed)
    if kind == "detect":
        lm, fresh = model_setup.with_things(lm, names, options.seed)
    elif names and kind in model_setup.ENDS:
        lm, fresh = model_setup.with_classifier(lm, kind, names, options.seed)
    elif names:
        lm.origin = {**(lm.origin or {}), "classes": list(names)}
    torch.manual_seed(options.seed)
    summary = model_setup.add_adapters(lm, options.method, **options.adapters())
    full = options.method == "full"
    if options.trainable or not full:
        model_setup.set_trainable(lm, [*(options.trainable or []), *fresh], alone=full)
    if not full:
        adapters.contents(lm)  # raises for a model that a checkpoint of adapters could not hold
    return lm.to(options.device or ("cuda" if torch.cuda.is_available() else "cpu")), summary


def letters(data: Sequence[tables.Table]) -> Iterator[str]:
    """The transcripts of the sounds that are learned from."""
    return tables.words(data, ("sound", "text"))


def _measured(measured: float, goal: Task) -> str:
    """A measure with its unit, and the perplexity of texts."""
    more = f" (perplexity {math.exp(min(measured, 700)):.2f})" if goal.name in ("write", "seq2seq", "caption") else ""
    return f"{measured:.4f} {goal.unit}{more}"


def numbers(lm: Any) -> tuple[int, int]:
    """Number of trained parameters, and of all; a matrix in 4 bits counts in full."""
    packed = sum(math.prod(m.shape) for m in lm.modules() if isinstance(m, nf4.Nf4))
    learned = sum(p.numel() for p in lm.parameters() if p.requires_grad)
    return learned, packed + sum(p.numel() for p in lm.parameters())


def best(done: Done, settings: Settings) -> tuple[int, float | None]:
    """The step whose model is kept, and its measure: with patience the best one, else the last."""
    if settings.patience and done.best and not done.stopped:
        return done.best["step"], done.best["held_out"]
    return done.step, done.held_out


def finish(lm: Any, now: Session, place: Path) -> Path:
    """The model directory of a run; adapters are merged for it, matrices in 4 bits made full."""
    if not lora.adapters(lm):
        return place
    lora.merge(lm)
    nf4.dequantise(lm)
    folder = now.run.folder / MODEL
    now.world.on_main(lambda: lm.save(folder))
    return folder
