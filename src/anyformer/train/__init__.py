"""Training: objectives, the loop, checkpoints that survive; `train` and `finetune`, which are the commands too."""

from anyformer.train.command import Result, train
from anyformer.train.loop import Done, fit
from anyformer.train.settings import Settings
from anyformer.train.tuning import Tuned, finetune

__all__ = ["Done", "Result", "Settings", "Tuned", "finetune", "fit", "train"]
