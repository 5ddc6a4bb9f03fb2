"""A run elsewhere: TensorBoard, Weights & Biases, or several at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Observer:
    """Listens to a run; this one says nothing. `train.progress.Screen` shows it."""

    def say(self, text: str) -> None:
        """Something that a reader should know: a spike, a step that overflowed."""

    def steps(self, row: dict[str, Any], speed: float, steps: int) -> None:
        """Some steps are done: the last one's numbers, counted tokens a second, steps in all."""

    def evaluated(self, step: int, held_out: float) -> None:
        """The model was measured."""

    def finish(self) -> None:
        """The run is over."""


class Several(Observer):
    """Tells all of them."""

    def __init__(self, *watches: Observer):
        self.watches = watches

    def say(self, text: str) -> None:
        """See `Observer`."""
        for watch in self.watches:
            watch.say(text)

    def steps(self, row: dict[str, Any], speed: float, steps: int) -> None:
        """See `Observer`."""
        for watch in self.watches:
            watch.steps(row, speed, steps)

    def evaluated(self, step: int, held_out: float) -> None:
        """See `Observer`."""
        for watch in self.watches:
            watch.evaluated(step, held_out)

    def finish(self) -> None:
        """See `Observer`."""
        for watch in self.watches:
            watch.finish()


class TensorBoard(Observer):
    """Writes `tensorboard/` in the folder of the run.

    Raises:
        ImportError: if tensorboard is not installed.
    """

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError("tensorboard=true needs tensorboard: pip install tensorboard") from None
        self.writer = SummaryWriter(str(folder / "tensorboard"))  # type: ignore[no-untyped-call]

    def steps(self, row: dict[str, Any], speed: float, steps: int) -> None:
        """See `Observer`."""
        for name, value in numbers(row, speed).items():
            self._put(name, value, row["step"])

    def evaluated(self, step: int, held_out: float) -> None:
        """See `Observer`."""
        self._put("held_out", held_out, step)

    def finish(self) -> None:
        """See `Observer`."""
        self.writer.close()  # type: ignore[no-untyped-call]

    def _put(self, name: str, value: float, step: int) -> None:
        self.writer.add_scalar(name, value, step)  # type: ignore[no-untyped-call]


class WandB(Observer):
    """Reports to Weights & Biases; where to, and whether at all, is said by its own variables (WANDB_MODE=offline).
    Its files lie in `wandb/` in the folder of the run.

    Raises:
        ImportError: if wandb is not installed.
    """

    def __init__(self, folder: Path, config: dict[str, Any]):
        try:
            import wandb
        except ImportError:
            raise ImportError("wandb=true needs Weights & Biases: pip install wandb") from None
        silent = wandb.Settings(silent=config.get("quiet", False))
        self.run = wandb.init(project="anyformer", name=folder.name, dir=str(folder), config=config, settings=silent)

    def steps(self, row: dict[str, Any], speed: float, steps: int) -> None:
        """See `Observer`."""
        self.run.log(numbers(row, speed), step=row["step"])

    def evaluated(self, step: int, held_out: float) -> None:
        """See `Observer`."""
        self.run.log({"held_out": held_out}, step=step)

    def finish(self) -> None:
        """See `Observer`."""
        self.run.finish()


def numbers(row: dict[str, Any], speed: float) -> dict[str, float]:
    """What is reported of a step: its row, with what the model's parts say, and counted tokens a second."""
    return {name: value for name, value in row.items() if name != "step"} | {"tokens_per_second": speed}


def observers(screen: Observer, folder: Path, config: dict[str, Any], tensorboard: bool, wandb: bool) -> Observer:
    """The screen, and what else is asked for.

    Raises:
        ImportError: for what is not installed.
    """
    plain = {name: value for name, value in config.items() if isinstance(value, str | int | float | list | dict)}
    others = [TensorBoard(folder)] if tensorboard else []
    more = [WandB(folder, plain)] if wandb else []
    return Several(screen, *others, *more)
