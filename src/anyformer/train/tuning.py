"""`finetune`: a published model learns from examples, in one call. The same function is `anyformer finetune`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from anyformer.compress import nf4
from anyformer.core.skeletons import CausalLM
from anyformer.hub.guard import atomic_write
from anyformer.hub.pooling import meaning
from anyformer.train import adapters, examples, lora, objectives, start
from anyformer.train.checkpoint import Run
from anyformer.train.examples import Examples
from anyformer.train.loop import Loop
from anyformer.train.settings import Settings
from anyformer.train.show import Screen

Task = Literal["write", "classify", "embed"]
LONGEST = 512  # tokens of an example, where nothing is said and the model could read more
RATES = {"full": 5e-5, "lora": 5e-4, "dora": 5e-4, "qlora": 5e-4}
ADAPTERS = {"rank": 8, "alpha": 16.0, "dropout": 0.0, "targets": list(start.INSIDE)}
MODEL = "model"  # the folder of the merged model, inside the run's
UNITS = {"write": "nats a token", "classify": "of the labels wrong", "embed": "nats a pair"}
TASKS: dict[str, Task] = {"label": "classify", "anchor": "embed"}  # by the columns of examples; others: write


@dataclass(frozen=True)
class Tuned:
    """What `finetune` leaves.

    Attributes:
        folder: a model directory that `af.load` and `transformers` read, adapters merged; None if stopped early.
        checkpoint: the last one: a model directory, or with adapters a folder that `peft` reads.
        steps: updates done. `stopped`: a signal came before the last one.
        loss: of the last step, in nats.
        before, after: on the examples held out: nats a counted token, or the share of wrong labels.
        learned, parameters: how many numbers learned, of how many.
        classes: the labels by number.
        model: the tuned model itself.
    """

    folder: Path | None
    checkpoint: Path
    steps: int
    stopped: bool
    loss: float
    before: float
    after: float | None
    learned: int
    parameters: int
    classes: tuple[str, ...]
    model: Any = field(repr=False)


def finetune(
    model: str = "",
    data: str | Path = "",
    method: Literal["full", "lora", "dora", "qlora"] = "lora",
    task: Literal["auto", "write", "classify", "embed"] = "auto",
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
    lr: float | None = None,
    warmup: int | None = None,
    final_lr: float = 0.0,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    tokenizer: str | None = None,
    seed: int = 0,
    eval_every: int = 0,
    save_every: int = 0,
    keep_last: int = 2,
    log_every: int = 10,
    resume: bool | str = False,
    device: str | None = None,
    quiet: bool = False,
) -> Tuned:
    """Fine-tunes a model on examples, and says how good it is on examples that it has not seen, before and after.

    A decoder learns to write: texts, or the answers of conversations (only what the assistant says is counted). An
    encoder of text learns to classify, with a new head, or to give alike vectors to texts that belong together (the
    other pairs of a batch are the wrong answers; pooled as the model's files say). All goes to `out`: checkpoints,
    config.yaml, log.csv, log.jsonl, and with adapters `model`, the merged model.

    Args:
        model: real weights by name (minilm, smollm2 …), a model directory, a .gguf file, or a hub id.
        data: a .jsonl, .csv or .parquet file, a folder, or hub:owner/name, with text and label; prompt and response;
            messages; anchor and positive; or text.
        method: full: every weight learns; lora, dora: thin adapters do; qlora: adapters on weights in 4 bits.
        task: what is learned; auto: what the examples' columns say.
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
        accumulate: batches that make one step.
        context: tokens of an example, what is longer is cut; by default what the model can read, at most 512.
        lr: the highest learning rate; 5e-5 for full, 5e-4 for adapters.
        warmup: steps until it is reached, a tenth of all (at most 100) by default; a cosine leads down from there.
        final_lr: where the cosine ends, as a share of lr.
        weight_decay: of matrices; adapters, biases, norms and embeddings do not decay.
        clip: longest gradient, as a norm over all parameters; inf switches clipping off.
        tokenizer: a folder with one, where the model has none.
        seed: of a new head, adapters, the order of examples, what is held out, and dropout.
        eval_every: steps between evaluations; 0 = only before and after.
        save_every: steps between checkpoints; 0 = only at the end.
        keep_last: checkpoints that are kept, beside the best one.
        log_every: steps between updates of the screen; the log files have every step.
        resume: false; true: go on from the last checkpoint in out; auto: go on if there is one; or the path of a
            checkpoint.
        device: cpu, cuda …; by default a GPU if there is one.
        quiet: print nothing.

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
    options = _options(given)
    rows, test, which = _rows(data, held_out, seed)
    task = _task(task, which)
    with Run(_folder(out, model, method, resume), resume) as run, _Screen(quiet, UNITS[task]) as screen:
        lm = start.base(model, tokenizer)
        fresh: list[str] = []
        classes: list[str] = []
        if task == "classify":
            classes = sorted({str(row["label"]) for row in rows})
            if len(classes) < 2:
                raise ValueError(
                    f"every example to learn from has the label {classes[0]!r}; there is nothing to tell apart"
                )
            lm, fresh = start.classifier(lm, classes, seed)
        elif task == "write" and not isinstance(lm, CausalLM):
            raise ValueError(
                f"{model} does not write: it is a {type(lm).__name__}. Examples with text and label tune it"
            )
        limit = _context(lm, context)
        sets = [examples.encoded(part, which, lm, classes, limit, batch, seed, screen.say) for part in (rows, test)]
        torch.manual_seed(seed)
        done = start.adapt(lm, method, options["targets"], options["rank"], options["alpha"], options["dropout"])
        if learn or method != "full":
            start.let_learn(lm, [*(learn or []), *fresh], alone=method == "full")
        if method != "full":
            adapters.contents(lm)  # raises for what a checkpoint could not say
        lm.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        settings = _settings(given, len(rows))
        _write_config(run.folder, given)
        learned, parameters = _numbers(lm)
        screen.say(
            f"{model}: {learned:,} of {parameters:,} numbers learn ({done}); {len(rows)} examples, {len(test)} held "
            f"out, {settings.steps} steps"
        )
        screen.say(f"{'resumes ' + str(run.checkpoint) if run.checkpoint else 'writes'} to {run.folder}")
        facts = {"model": model, "task": task, "method": method, "learn": learn or [], **options, "context": limit}
        facts |= {"batch": batch, "examples": sets[0].fingerprint(), "held_out_examples": sets[1].fingerprint()}
        objective = _objective(lm, task)
        measure = _Measure(sets[1], task, objective)
        before = measure(lm.eval())
        screen.evaluated(0, before)
        ended = Loop(lm, sets[0], objective, settings, run, measure, facts, screen).run()
        folder = None if ended.stopped else _finish(lm, run.folder, ended.checkpoint)
        screen.say(
            f"model: {folder}" if folder else f"stopped after step {ended.step}; --resume true goes on from there"
        )
    return Tuned(
        folder, ended.checkpoint, ended.step, ended.stopped, ended.loss, before, ended.held_out, learned, parameters,
        tuple(classes), lm.eval(),
    )  # fmt: skip


class _Screen(Screen):
    """Says what the measure means."""

    def __init__(self, quiet: bool, unit: str):
        super().__init__(quiet)
        self.unit = unit

    def evaluated(self, step: int, held_out: float) -> None:
        more = f" (perplexity {math.exp(min(held_out, 700)):.2f})" if self.unit == UNITS["write"] else ""
        self.say(f"step {step}: held out: {held_out:.4f} {self.unit}{more}")


@dataclass(frozen=True)
class _Measure:
    """Nats a counted token or pair, or the share of wrong labels, over all examples that are held out."""

    examples: Examples
    task: str
    objective: Any

    @torch.no_grad()
    def __call__(self, model: Any) -> float:
        device, total, count = next(model.parameters()).device, 0.0, 0
        for rows in self.examples.in_order():
            inputs = {name: value.to(device) for name, value in rows.items()}
            labels = inputs.pop("labels")
            output = model(**inputs)
            if self.task == "classify":
                total += int((output.logits.argmax(-1) != labels).sum())
            else:
                total += float(self.objective(output, labels, 1.0))
            count += int(getattr(self.objective, "counted", objectives.counted)(labels))
        return total / count


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """The options of adapters with their defaults; checks what contradicts each other."""
    for name in ("model", "data"):
        if not str(given[name]):
            raise ValueError(f"{name} is missing; for example: anyformer finetune --model minilm --data reviews.csv")
    if given["epochs"] is not None and given["steps"] is not None:
        raise ValueError(f"epochs={given['epochs']} and steps={given['steps']} contradict each other; give one of them")
    if given["batch"] < 1:
        raise ValueError(f"batch must be at least 1, got {given['batch']}")
    if given["epochs"] is not None and not given["epochs"] > 0:
        raise ValueError(f"epochs must be above 0, got {given['epochs']}")
    if isinstance(given["held_out"], float | int) and not 0 < given["held_out"] < 1:
        raise ValueError(f"held_out must be a share between 0 and 1, or a file; got {given['held_out']}")
    said = [name for name in ADAPTERS if given[name] is not None]
    if given["method"] == "full" and said:
        raise ValueError(f"{said[0]}={given[said[0]]!r} is for adapters, and method=full has none; try method=lora")
    return {name: default if given[name] is None else given[name] for name, default in ADAPTERS.items()}


def _rows(data: str | Path, held_out: float | str, seed: int) -> tuple[list[Any], list[Any], str]:
    """Examples to learn from, examples to hold out, and what columns they have."""
    rows = examples.read(data)
    which = examples.kind(rows, data)
    try:
        share = float(str(held_out))
    except ValueError:
        test = examples.read(str(held_out))
        if (other := examples.kind(test, str(held_out))) != which:
            raise ValueError(f"{data} has {which!r} and {held_out} has {other!r}; both must be alike") from None
        return rows, test, which
    if len(rows) < 2:
        raise ValueError(f"{data} holds one example; to learn from some and hold out others there must be two")
    some, others = examples.split(len(rows), share, seed)
    return [rows[i] for i in some], [rows[i] for i in others], which


def _task(task: str, which: str) -> Task:
    found = TASKS.get(which, "write")
    if task not in ("auto", found):
        raise ValueError(f"task={task} does not go with these examples: their columns are for {found}")
    return found


def _objective(lm: Any, task: Task) -> Any:
    if task == "embed":
        return objectives.Contrastive(pooling=meaning((lm.origin or {}).get("pooling", {})).mode)
    return objectives.classification if task == "classify" else objectives.causal_lm


def _context(lm: Any, context: int | None) -> int:
    most = lm.context
    if context is None:
        return min(LONGEST, most or LONGEST)
    if context < 8 or (most is not None and context > most):
        raise ValueError(f"context={context} must be from 8 to what the model reads, {most}")
    return context


def _settings(given: dict[str, Any], count: int) -> Settings:
    epochs = 3.0 if given["epochs"] is None else given["epochs"]
    steps = given["steps"]
    steps = max(1, math.ceil(epochs * count / (given["batch"] * given["accumulate"]))) if steps is None else steps
    same = (
        "final_lr",
        "weight_decay",
        "clip",
        "accumulate",
        "seed",
        "save_every",
        "eval_every",
        "log_every",
        "keep_last",
    )
    return Settings(
        steps=steps,
        lr=RATES[given["method"]] if given["lr"] is None else given["lr"],
        warmup=min(100, steps // 10) if given["warmup"] is None else given["warmup"],
        betas=(0.9, 0.999),
        **{name: given[name] for name in same},
    )


def _folder(out: str | Path | None, model: str, method: str, resume: bool | str) -> Path:
    from anyformer.train.command import _folder as new

    return new(out, f"{Path(model).stem}-{method}", resume)


def _write_config(folder: Path, given: dict[str, Any]) -> None:
    """config.yaml: every option with its value, so that `--config` repeats the run."""
    import yaml

    given = {**given, "out": str(folder), "data": str(given["data"]), "resume": False}
    atomic_write(folder / "config.yaml", yaml.safe_dump(given, sort_keys=False, allow_unicode=True).encode())


def _numbers(lm: Any) -> tuple[int, int]:
    """How many numbers learn, and of how many; a matrix in 4 bits counts as what it stands for."""
    packed = sum(math.prod(m.shape) for m in lm.modules() if isinstance(m, nf4.Nf4))
    learned = sum(p.numel() for p in lm.parameters() if p.requires_grad)
    return learned, packed + sum(p.numel() for p in lm.parameters())


def _finish(lm: Any, folder: Path, checkpoint: Path) -> Path:
    """The model directory of a run; adapters are merged for it, matrices in 4 bits made full."""
    if not lora.adapters(lm):
        return checkpoint
    lora.merge(lm)
    nf4.dequantise(lm)
    lm.save(folder / MODEL)
    return folder / MODEL
