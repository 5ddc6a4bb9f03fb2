"""`finetune`: a published model learns from examples, in one call. The same function is `anyformer finetune`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any, Literal

import torch

from anyformer.compress import nf4
from anyformer.train import adapters, checkpoint, lora, model_setup, model_source
from anyformer.train.loop import Done
from anyformer.train.next_command import next_command
from anyformer.train.session import Session, context_of, session
from anyformer.train.settings import Settings, warmup_of
from anyformer.train.tasks import registry, rows, splits, tables
from anyformer.train.tasks.base import Task
from anyformer.train.tasks.encode import RowEncoder

LONGEST = 512  # tokens of an example, where nothing is said and the model could read more
RATES = {"full": 5e-5, "lora": 5e-4, "dora": 5e-4, "qlora": 5e-4}
ADAPTERS = {"rank": 8, "alpha": 16.0, "dropout": 0.0, "targets": list(model_setup.INSIDE)}
MODEL = "model"  # the folder of the merged model, inside the run's


@dataclass(frozen=True)
class Tuned:
    """What `finetune` leaves.

    Attributes:
        folder: a model directory that `af.load` and `transformers` read, adapters merged; None if stopped early.
        checkpoint: the last one: a model directory, or with adapters a folder that `peft` reads.
        steps: updates done. `kept`: the step whose weights `folder` has: the last one, with patience the best one.
        stopped: a signal came before the last one.
        loss: of the last step, in nats.
        before, after: on the examples held out, of the model as it came and of the one that is kept: nats a counted
            token or a pair, or the share of wrong labels.
        learned, parameters: how many numbers learned, of how many.
        classes: the labels by number.
        task: what it learned.
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


def finetune(
    model: str = "",
    data: str | Path | dict[str, float] = "",
    method: Literal["full", "lora", "dora", "qlora"] = "lora",
    task: Literal["auto", "write", "seq2seq", "classify", "tag", "embed", "images", "match"] = "auto",
    fields: dict[str, str] | None = None,
    out: str | Path | None = None,
    targets: list[str] | None = None,
    rank: int | None = None,
    alpha: float | None = None,
    dropout: float | None = None,
    learn: list[str] | None = None,
    held_out: float | str = 0.1,
    epochs: float | None = None,
    steps: int | None = None,
    batch: int = 16,
    accumulate: int = 1,
    context: int | None = None,
    workers: int = 0,
    lr: float | None = None,
    warmup: int | None = None,
    final_lr: float = 0.0,
    schedule: str = "cosine",
    optimizer: str = "adamw",
    rates: dict[str, float] | None = None,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    clip: float = 1.0,
    precision: str = "fp32",
    recompute: list[str] | None = None,
    compile: bool = False,
    label_smoothing: float = 0.0,
    ema: float = 0.0,
    patience: int = 0,
    tokenizer: str | None = None,
    cache: str | None = None,
    seed: int = 0,
    eval_every: int = 0,
    save_every: int = 0,
    keep_last: int = 2,
    log_every: int = 10,
    statistics_every: int = 0,
    memory: float | None = None,
    energy: bool = False,
    tensorboard: bool = False,
    wandb: bool = False,
    resume: bool | str = False,
    device: str | None = None,
    quiet: bool = False,
    parallel: str = "ddp",
    mesh: dict[str, int] | None = None,
    exchange: dict[str, float] | None = None,
    changes: dict[str, Any] | None = None,
    ignore: list[str] | None = None,
) -> Tuned:
    """Fine-tunes a model on examples, and says how good it is on examples that it has not seen, before and after.

    A decoder learns to write: texts, or the answers of conversations (only what the assistant says is counted). An
    encoder-decoder learns to say the target of a source. An encoder of text learns to classify, with a new head, or to
    give alike vectors to texts that belong together (the other pairs of a batch are the wrong answers; pooled as the
    model's files say); an encoder of images learns to classify these. All goes to `out`: checkpoints, config.yaml,
    log.csv, log.jsonl, curves, and with adapters `model`, the merged model. What is not explained here is as in
    `train.train`.

    Args:
        model: real weights by name (minilm, smollm2 …), a model directory, a .gguf file, or a hub id.
        changes: hyperparameters that differ from those of its files: --changes.task none reads them without their head.
        ignore: keys of its files that are read as if they were not there.
        data: a .jsonl, .csv or .parquet file, a folder of them, or hub:owner/name, with text and label; words and
            labels; prompt and response; source and target; messages; anchor and positive; or text; of images a folder
            CLASS/NAME.png, or rows with image and label. Several: a.jsonl=0.7,b.jsonl=0.3, or a mapping to weights.
        method: full: every weight learns; lora, dora: thin adapters do; qlora: adapters on weights in 4 bits.
        task: what is learned, see `train.tasks.encode`; auto: what the examples' columns say.
        fields: columns that have other names: --fields.text review --fields.label stars.
        out: the folder of the run; by default a new one, runs/MODEL-METHOD-1, …
        targets: paths of the layers that get adapters, e.g. **.mixer.q; by default every layer of every block.
        rank: of the adapters, 8 by default.
        alpha: they are scaled by alpha / rank; 16 by default.
        dropout: on what enters the adapters, 0 by default.
        learn: paths of what learns in full, e.g. heads.** blocks.-1.**; with full nothing else does, with adapters it
            does beside them. A new head always learns.
        held_out: share of the examples, or another file of them, to measure on and never to learn from.
        epochs: how often each example is seen, 3 by default.
        steps: updates of the weights, in place of epochs.
        batch: examples in a batch.
        context: tokens of an example (a source, a target), what is longer is cut; by default what the model can read,
            at most 512.
        lr: the highest learning rate; 5e-5 for full, 5e-4 for adapters.
        warmup: steps until it is reached, a tenth of all (at most 100) by default; the schedule leads down from there.
        patience: evaluations without a better one after which the run ends; the model that is kept is then that of the
            best one. 0: never, and the last one is kept.
        tokenizer: a folder with one, where the model has none.
        cache: the folder of encoded examples; by default $ANYFORMER_TOKENS, else tokens in the user's cache.
        seed: of a new head, adapters, the order of examples, what is held out, and dropout.
        eval_every: steps between evaluations; 0 = only before and after.
        save_every: steps between checkpoints; 0 = only at the end.

    Returns:
        Folders, measures before and after, and the model.

    Raises:
        ValueError: before the first step, for options that contradict each other, examples that do not fit the task or
            the model, a folder that holds another run.
        OSError: for a model or data that is not there, a folder that cannot be written, a full disk.
        FloatingPointError: when the loss is not finite.

    Example:
        anyformer finetune --model minilm --data reviews.csv --out runs/reviews
    """
    given = dict(locals())
    given |= {"rates": rates or {}, "recompute": list(recompute or []), "ignore": list(ignore or [])}
    options = _options(given)
    sources = tables.read(data, fields)
    columns = sources[0].columns()
    measured = _held_out(held_out, fields, seed)
    with session(given, f"{Path(model).stem}-{method}") as now:
        lm = model_source.pretrained(model, tokenizer, changes, given["ignore"])
        kind, columns = registry.infer(task, model, lm, columns)
        names = tables.classes(sources, columns) if kind in model_setup.ENDS else ()
        if kind != "images":
            given["context"] = context_of(lm, context, LONGEST, 8, "")
        elif context is not None:
            raise ValueError(f"context={context} is a number of tokens, and {model} reads images; leave it out")
        if kind == "embed" and batch % now.world.size:
            raise ValueError(
                f"batch={batch} pairs cannot be shared by {now.world.size} processes without cutting one; give a "
                f"multiple of {now.world.size}"
            )
        lm, told = _ready(lm, kind, names, given, options)
        encoder = RowEncoder(kind, columns, lm, names, given["context"] or 0)
        goal = rows.on_rows(encoder, sources, measured, seed, cache)
        settings = _settings(given, goal.size, now.run.checkpoint)
        given |= {"lr": settings.lr, "warmup": settings.warmup}  # as resolved, for config.yaml
        learned, parameters = _numbers(lm)
        now.screen.say(
            f"{model}, {kind}: {learned:,} of {parameters:,} numbers learn ({told}); {goal.told}; "
            f"{settings.steps} steps"
        )
        before = now.world.on_main(lambda: goal.measure(lm.eval(), batch))
        now.screen.say(f"before: held-out {_said(before, goal)}")
        facts = {"model": model, "method": method, "learn": learn or [], **options}
        facts |= {"changes": changes} if changes else {}
        done = now.learn(lm, goal, settings, facts)[1]
        kept, after = _best(done, settings)
        place = done.checkpoint.with_name(f"step-{kept:06d}") / ("ema" if ema else "")
        if now.world.size > 1 or kept != done.step or ema:  # it holds parts, or other weights
            lm = _ready(
                model_source.pretrained(model, tokenizer, changes, given["ignore"]), kind, names, given, options
            )[0]
            checkpoint.restore_weights(lm, place)
        now.conclude(done)
        folder = None if done.stopped else _finish(lm, now, place)
        if folder and after is not None:
            now.screen.say(
                f"held-out: {_said(before, goal)}, now {_said(after, goal)}, at step {kept}\nmodel: {folder}\n"
                f"next: {next_command(kind, folder, lm, data, fields)}"
            )
    return Tuned(
        folder, done.checkpoint, done.step, kept, done.stopped, done.loss, before, after, learned, parameters,
        names, kind, lm.eval(),
    )  # fmt: skip


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """The options of adapters with their defaults; checks what contradicts each other."""
    for name in ("model", "data"):
        if not given[name] or not str(given[name]):
            raise ValueError(f"{name} is missing; for example: anyformer finetune --model minilm --data reviews.csv")
    if given["epochs"] is not None and given["steps"] is not None:
        raise ValueError(f"epochs={given['epochs']} and steps={given['steps']} contradict each other; give one of them")
    if given["batch"] < 1:
        raise ValueError(f"batch must be at least 1, got {given['batch']}")
    if given["epochs"] is not None and not given["epochs"] > 0:
        raise ValueError(f"epochs must be above 0, got {given['epochs']}")
    said = [name for name in ADAPTERS if given[name] is not None]
    if given["method"] == "full" and said:
        raise ValueError(f"{said[0]}={given[said[0]]!r} is for adapters, and method=full has none; try method=lora")
    return {name: default if given[name] is None else given[name] for name, default in ADAPTERS.items()}


def _held_out(held_out: float | str, fields: dict[str, str] | None, seed: int) -> splits.Split | list[tables.Table]:
    """How to hold some of the examples out, or the tables that are."""
    try:
        share = float(str(held_out))
    except ValueError:
        return tables.read(str(held_out), fields)
    if not 0 < share < 1:
        raise ValueError(f"held_out must be a share between 0 and 1, or a file; got {held_out}")
    return splits.random_share(share, seed)


def _ready(
    lm: Any, kind: str, names: tuple[str, ...], given: dict[str, Any], options: dict[str, Any]
) -> tuple[Any, str]:
    """The model with a head of classes and adapters, where wanted, on its device; and in words what learns."""
    fresh: list[str] = []
    lm = model_setup.with_processor(lm) if kind in registry.PICTURED else lm
    if names:
        lm, fresh = model_setup.with_classifier(lm, kind, names, given["seed"])
    torch.manual_seed(given["seed"])
    told = model_setup.add_adapters(
        lm, given["method"], options["targets"], options["rank"], options["alpha"], options["dropout"]
    )
    if given["learn"] or given["method"] != "full":
        model_setup.set_trainable(lm, [*(given["learn"] or []), *fresh], alone=given["method"] == "full")
    if given["method"] != "full":
        adapters.contents(lm)  # raises for what a checkpoint could not say
    return lm.to(given["device"] or ("cuda" if torch.cuda.is_available() else "cpu")), told


def _settings(given: dict[str, Any], count: int, checkpoint: Path | None) -> Settings:
    epochs = 3.0 if given["epochs"] is None else given["epochs"]
    steps = given["steps"]
    steps = max(1, math.ceil(epochs * count / (given["batch"] * given["accumulate"]))) if steps is None else steps
    own = {
        "steps": steps,
        "lr": RATES[given["method"]] if given["lr"] is None else given["lr"],
        "warmup": warmup_of(given["warmup"], steps, checkpoint),
        "recompute": tuple(given["recompute"]),
    }
    return Settings(**{f.name: given[f.name] for f in fields_of(Settings)} | own)


def _said(measured: float, goal: Task) -> str:
    """A measure with its unit, and the perplexity of texts."""
    more = f" (perplexity {math.exp(min(measured, 700)):.2f})" if goal.name in ("write", "seq2seq") else ""
    return f"{measured:.4f} {goal.unit}{more}"


def _numbers(lm: Any) -> tuple[int, int]:
    """How many numbers learn, and of how many; a matrix in 4 bits counts as what it stands for."""
    packed = sum(math.prod(m.shape) for m in lm.modules() if isinstance(m, nf4.Nf4))
    learned = sum(p.numel() for p in lm.parameters() if p.requires_grad)
    return learned, packed + sum(p.numel() for p in lm.parameters())


def _best(done: Done, settings: Settings) -> tuple[int, float | None]:
    """The step whose model is kept, and its measure: with patience the best one, else the last."""
    if settings.patience and done.best and not done.stopped:
        return done.best["step"], done.best["held_out"]
    return done.step, done.held_out


def _finish(lm: Any, now: Session, place: Path) -> Path:
    """The model directory of a run; adapters are merged for it, matrices in 4 bits made full."""
    if not lora.adapters(lm):
        return place
    lora.merge(lm)
    nf4.dequantise(lm)
    folder = now.run.folder / MODEL
    now.world.on_main(lambda: lm.save(folder))
    return folder
