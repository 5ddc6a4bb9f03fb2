"""Training: objectives, the loop, checkpoints that survive, and `train`, which is the command too."""

from anyformer.train.command import Result, train
from anyformer.train.loop import Done, Settings, fit

__all__ = ["Done", "Result", "Settings", "fit", "train"]
