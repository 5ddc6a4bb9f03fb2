"""Options of `train` and `finetune`: frozen dataclasses. They are the parameters of the functions, the options of the
command line and the keys of config.yaml, so that each option is written once.

```
CommonSettings ─┬─ Settings                        of the loop: stored with each checkpoint
                └─ RunOptions ─┬─ TrainOptions     parameters of `train`
                               └─ FinetuneOptions  parameters of `finetune`
```
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from anyformer.core.recipe import Recipe
from anyformer.data.corpus import Order
from anyformer.hub.formats.guard import read_json
from anyformer.train.model_setup import INSIDE
from anyformer.train.settings import CommonSettings, Settings

METHODS = {"full": 5e-5, "lora": 5e-4, "dora": 5e-4, "qlora": 5e-4}  # and their learning rates
ADAPTERS: dict[str, Any] = {"rank": 8, "alpha": 16.0, "dropout": 0.0, "targets": list(INSIDE)}
EPOCHS = 3.0


@dataclass(frozen=True, kw_only=True)
class RunOptions(CommonSettings):
    """The options that `train` and `finetune` share.

    Args:
        overrides: hyperparameters that differ from those of the size or the files, e.g. --overrides.depth 6; of a
            recipe: paths in it.
        ignore: keys of the files of a model directory that are read as if they were absent.
        fields: columns that have other names: --fields.text review --fields.label stars.
        out: the folder of the run; by default a new one, runs/NAME-1, runs/NAME-2, …
        batch: examples or windows in a batch.
        context: tokens in an example or a window; by default the context of the model, within limits.
        workers: threads that prepare batches ahead of time; the numbers are the same.
        warmup: steps until lr is reached; by default a tenth of all, at most 100.
        label_smoothing: share of the target that is spread over all tokens or classes; the measure stays plain.
        z_loss: factor of log^2 of the softmax's sum, added to the loss of tokens, e.g. 1e-4; the measure stays plain.
        cache: the folder of token ids and encoded examples; by default $ANYFORMER_TOKENS, else tokens in the user's
            cache.
        memory: GB that the run may use; by default the free memory. A run that needs more is refused before the first
            step.
        energy: show and log the energy that the processor uses, where it counts that.
        tensorboard: write tensorboard/ too.
        wandb: report to Weights & Biases too.
        look: path patterns of modules, e.g. "blocks.*": film.html shows entropy, sharpness and maps of their heads, and
            the norms of their gradients, over the run.
        resume: false; true: go on from the last checkpoint in out; auto: go on if there is one; or the path of a
            checkpoint.
        device: cpu, cuda …; by default a GPU if there is one.
        quiet: print nothing.
        parallel: how processes that a launcher started work together: ddp, fsdp, tp, ep, zero, powersgd, local or
            diloco; see docs/distributed.md.
        mesh: how many of them share a batch and a matrix, e.g. --mesh.data 2 --mesh.tensor 2.
        index: of the task retrieve: the folder of an index (`anyformer index`), whose passages are found and read.
        refresh: of the task retrieve: steps after which all passages are embedded again, by a model with an encoder of
            passages that learns (overrides.documents); 0 = never.
        codes: of the task draw a dVAE, of compose and stage a codec of sound: the folder of its run, or a model
            directory. It is saved with the model, but for stage.
        communication: numbers of zero, powersgd, local and diloco, e.g. --communication.every 50.
    """

    overrides: dict[str, Any] | None = None
    ignore: list[str] = field(default_factory=list)
    fields: dict[str, str] | None = None
    out: str | Path | None = None
    batch: int = 8
    context: int | None = None
    workers: int = 0
    warmup: int | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    cache: str | None = None
    memory: float | None = None
    energy: bool = False
    tensorboard: bool = False
    wandb: bool = False
    look: list[str] = field(default_factory=list)
    resume: bool | str = False
    device: str | None = None
    quiet: bool = False
    parallel: str = "ddp"
    mesh: dict[str, int] | None = None
    communication: dict[str, float] | None = None
    index: str | None = None
    refresh: int = 0
    codes: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "ignore", list(self.ignore or ()))
        object.__setattr__(self, "look", [self.look] if isinstance(self.look, str) else list(self.look or ()))
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing}")
        if not 0 <= self.z_loss < float("inf"):
            raise ValueError(f"z_loss must be at least 0 and finite, got {self.z_loss}")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions):
    """The options of `train`.

    Args:
        model: an architecture (gpt, llama, mamba, bert, t5, vit …), a recipe or a JSON file with one, or a model
            directory to start from.
        size: of an architecture, see `anyformer ls`; mini by default.
        task: causal (decoders), masked (BERT), span (T5), denoise (BART), seq2seq, classify, tag, images, match (CLIP),
            caption (LLaVA), paint (DiT), draw (DALL-E), compose (MusicGen), stage (MusicLM), reconstruct
            (dVAE, EnCodec), answer (LXMERT), act or clone, forecast (Informer), ctc, contrast or units (sound), graphs,
            fold; by default the first one that fits the model. Those from seq2seq on read rows, see
            `train.tasks.registry`; one row of each ten is held out, of series the last tenth.
        data: a text file or a folder of them (UTF-8), JSONL, CSV, Parquet, hub:owner/name, see `data.records`; or
            pydoc, the English reference inside every CPython. Several: a.txt=0.7,b.jsonl=0.3, or a mapping to weights.
        steps: updates of the weights.
        context: tokens in a window; by default the context of the model, at most 256. Of act and clone
            steps, 20; of forecast steps of the past, beside those that the lags reach.
        order: random: windows from anywhere, again and again; epochs: each window once in an epoch; packed: whole
            documents, each once in an epoch, which do not see each other.
        lr: the highest learning rate.
        init: first weights: depth (GPT-2's), normal, xavier, or mup, with which hyperparameters of a narrow model fit a
            wide one.
        base: for mup: the hyperparameters of the narrow model that differ, e.g. --base.dim 64.
        tokenizer: bpe or chars (trained on the text), bytes, or a folder with one; by default a start model's own, else
            bpe.
        vocab: tokens of the bpe that is trained; 1024 by default.
        units: of the task units: mfcc, or FOLDER:PATH, what a trained model has at a path, as in
            runs/one/step-000500:blocks.2.
        clusters: of these, of the task units.
        prompt: the text that the sample at the end continues.
    """

    model: str | Recipe = field(default="gpt", kw_only=False)
    size: str | None = field(default=None, kw_only=False)
    task: str | None = None
    data: str | Path | dict[str, float] = "pydoc"
    steps: int = 1000
    order: Order = "random"
    lr: float = 1.5e-3
    init: str = "depth"
    base: dict[str, Any] | None = None
    tokenizer: str | None = None
    vocab: int | None = None
    units: str = "mfcc"
    clusters: int = 100
    eval_every: int = 250
    save_every: int = 250
    prompt: str = "The "

    def __post_init__(self) -> None:
        super().__post_init__()
        self.settings(self.steps, self.lr, self.warmup or 0)  # checks the numbers
        if not self.prompt:
            raise ValueError("prompt is empty: the sample at the end continues a text")


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(RunOptions):
    """The options of `finetune`.

    Args:
        model: real weights by name (minilm, smollm2 …), a model directory, a .gguf file, or a hub id.
        data: a .jsonl, .csv or .parquet file, a folder of them, or hub:owner/name, with text and label; words and
            labels; prompt and response; source and target; messages; anchor and positive; or text; of images a folder
            CLASS/NAME.png, or rows with image and label; of a detector COCO's JSON, or a folder of VOC's XML; of a
            model of series, graphs, proteins or episodes what `train` reads. Several: a.jsonl=0.7,b.jsonl=0.3, or a
            mapping to weights.
        method: full: every weight is trained; lora, dora: low-rank adapters are; qlora: adapters on weights in 4 bits.
        task: see `train.tasks.encode`; auto: inferred from the columns of the examples.
        overrides: hyperparameters that differ from those of its files: --overrides.task none reads them without their
            head.
        targets: paths of the layers that get adapters, e.g. **.mixer.q; by default every layer of every block.
        rank: of the adapters, 8 by default.
        alpha: adapters are scaled by alpha / rank; 16 by default.
        dropout: on the input of the adapters, 0 by default.
        trainable: paths of parameters that are trained in full, e.g. heads.** blocks.-1.**; with method full nothing
            else is, with adapters they are trained beside these. A new head is always trained.
        held_out: share of the examples, or another file of them, to measure on and never to train on; series, graphs,
            proteins and episodes are held out as `train` does.
        epochs: passes over the examples, 3 by default.
        steps: updates of the weights, in place of epochs.
        context: tokens of an example (a source, a target); a longer one is cut; by default the context of the model, at
            most 512.
        lr: the highest learning rate; 5e-5 for full, 5e-4 for adapters.
        patience: evaluations without improvement after which the run ends; the model of the best evaluation is then
            kept. 0: never, and the last one is kept.
        tokenizer: a folder with one, where the model has none.
        seed: of a new head, adapters, the order of examples, the held-out examples, and dropout.
        eval_every: steps between evaluations; 0 = only before and after.
    """

    model: str = field(default="", kw_only=False)
    data: str | Path | dict[str, float] = field(default="", kw_only=False)
    method: Literal["full", "lora", "dora", "qlora"] = field(default="lora", kw_only=False)
    task: Literal[
        "auto",
        "write",
        "seq2seq",
        "classify",
        "tag",
        "embed",
        "images",
        "match",
        "caption",
        "paint",
        "draw",
        "compose",
        "stage",
        "detect",
        "answer",
        "reconstruct",
        "act",
        "clone",
        "forecast",
        "graphs",
        "fold",
    ] = "auto"
    targets: list[str] | None = None
    rank: int | None = None
    alpha: float | None = None
    dropout: float | None = None
    trainable: list[str] | None = None
    held_out: float | str = 0.1
    epochs: float | None = None
    steps: int | None = None
    batch: int = 16
    lr: float | None = None
    min_lr_ratio: float = 0.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("model", "data"):
            if not getattr(self, name) or not str(getattr(self, name)):
                raise ValueError(
                    f"{name} is missing; for example: anyformer finetune --model minilm --data reviews.csv"
                )
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"epochs={self.epochs} and steps={self.steps} contradict each other; set one of them")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        if self.epochs is not None and not self.epochs > 0:
            raise ValueError(f"epochs must be above 0, got {self.epochs}")
        chosen = [name for name in ADAPTERS if getattr(self, name) is not None]
        if self.method == "full" and chosen:
            raise ValueError(
                f"{chosen[0]}={getattr(self, chosen[0])!r} is for adapters, which method=full has not; use method=lora"
            )

    def adapters(self) -> dict[str, Any]:
        """Rank, alpha, dropout and targets of the adapters, with their defaults."""
        chosen = {name: getattr(self, name) for name in ADAPTERS}
        return {name: default if chosen[name] is None else chosen[name] for name, default in ADAPTERS.items()}

    def resolved(self, count: int, checkpoint: Path | None) -> Settings:
        """The settings of the loop for `count` examples."""
        epochs, steps = EPOCHS if self.epochs is None else self.epochs, self.steps
        steps = max(1, math.ceil(epochs * count / (self.batch * self.accumulate))) if steps is None else steps
        lr = METHODS[self.method] if self.lr is None else self.lr
        return self.settings(steps, lr, warmup_of(self.warmup, steps, checkpoint))


@dataclass(frozen=True, kw_only=True)
class AlignOptions(FinetuneOptions):
    """The options of `align`.

    Args:
        loss: dpo, ipo, simpo or kto, see `train.preferences`.
        model: real weights by name (smollm2 …), a model directory, a .gguf file, or a hub id, of a decoder of text.
        data: a .jsonl, .csv or .parquet file, a folder of them, or hub:owner/name, with prompt, chosen and rejected;
            for kto also with prompt, response and label.
        task: leave it out: the loss says what is learned.
        beta: of the loss; 0.1, for simpo 2.
        gamma: of simpo, the margin that is wanted; half of beta by default.
        context: tokens of a prompt with its answer; a longer one is cut at its end.
        batch: pairs (of kto answers) in a batch.
        lr: the highest learning rate; 5e-6 for full, 5e-5 for adapters.
    """

    loss: Literal["dpo", "ipo", "simpo", "kto"] = "dpo"
    beta: float | None = None
    gamma: float | None = None
    batch: int = 8
    epochs: float | None = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "epochs", None if self.steps is not None else self.epochs)
        super().__post_init__()
        if self.task != "auto":
            raise ValueError(f"task={self.task} is for finetune; align learns from preferences")
        if self.label_smoothing or self.z_loss:
            raise ValueError("label_smoothing and z_loss are for losses over tokens; leave them out")
        if self.gamma is not None and self.loss != "simpo":
            raise ValueError(f"gamma={self.gamma} is the margin of simpo; {self.loss} has none")
        for name in ("beta", "gamma"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {value}")
        if self.lr is None:
            object.__setattr__(self, "lr", METHODS[self.method] / 10)


def warmup_of(warmup: int | None, steps: int, checkpoint: Path | None) -> int:
    """The steps of warm-up: `warmup`; if None, those of the resumed run, else a tenth of all, at most 100."""
    if warmup is None and checkpoint is not None:
        return int(read_json(checkpoint / "training.json")["settings"]["warmup"])
    return min(100, steps // 10) if warmup is None else warmup
