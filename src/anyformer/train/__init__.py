"""Training: `train`, `finetune` and `align`, which are the commands too, and `fit` for your own batches.

entry points
    train.py           `train`: a model from scratch, or further
    finetune.py        `finetune`: a published model on examples, in full or by adapters
    align.py           `align`: a published model on preferences
    loop.py            `fit`: the training loop
    session.py         shared by `train` and `finetune`: processes, folder and display of a run
    settings.py        `Settings`: the hyperparameters of a run
the model
    model_source.py    the model to train: an architecture, a recipe, a directory, a published one
    model_setup.py     a head of classes, an image processor, adapters, the trainable parameters
    lora.py  upcycle.py  mup.py            rewrites: LoRA and DoRA, dense to experts, muP
    adapters.py  adapter_config.py         adapters in PEFT's files
the task
    tasks/             examples, objective and measure of each task
    measured.py        the measure of a task, of models that do not learn from its examples
    preferences.py     losses over preferences; alignment_report.py: what they did
    objectives.py      losses over counted labels; set_prediction.py: of sets of boxes
    average_precision.py                   how well boxes are found
a step
    step_loss.py       model and objective as one module, auxiliary losses, metrics of parts
    batch_checks.py    checks of the first batch
    optim.py  schedule.py                  optimiser, parameter groups, learning rate
    precision.py  master_weights.py        half precision, compilation, float32 weights
    ema.py             running mean of the weights
    distributed/       DDP, FSDP2, tensor and expert parallelism, ZeRO, PowerSGD, local SGD, DiLoCo
safety
    checkpoint.py      complete or absent checkpoints; the folder of a run
    resume.py          the state of a loop to a checkpoint and back
    random_state.py    random generators: seed, read, restore
    interrupts.py      SIGINT and SIGTERM end a run after the current step
    memory.py          memory and time of a step, before the first one
    diagnostics.py     where a NaN or a spike starts
observation
    loggers.py         `Observer`; TensorBoard, Weights & Biases
    progress.py        the display on a terminal
    log.py  plots.py   log.csv, log.jsonl, statistics.jsonl; curves
    environment.py  energy.py              versions and machine; electricity
    next_command.py    the command that uses the model, printed at the end
"""

from anyformer.train.align import Aligned, align
from anyformer.train.finetune import Tuned, finetune
from anyformer.train.loop import Done, fit
from anyformer.train.settings import Settings
from anyformer.train.train import Result, train

__all__ = ["Aligned", "Done", "Result", "Settings", "Tuned", "align", "finetune", "fit", "train"]
