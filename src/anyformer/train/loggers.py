"""Loggers: the interface `Observer`, TensorBoard, Weights & Biases, or several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from anyformer.data.batches import Batch


class Observer:
    """Observer of a run, for `fit(..., observer=...)`: override the methods that you need; each does nothing here.

    ```python
    class Losses(Observer):
        def on_steps(self, row, speed, steps):
            print(row["step"], row["loss"])
    ```
    It is called in the main process alone. An exception in it ends the run, as one in the loop would.
    """

    def message(self, text: str) -> None:
        """A note for the reader: a spike, a step that overflowed, how the learning rate goes on."""

    def on_steps(self, row: dict[str, Any], speed: float, steps: int) -> None:
        """Every `log_every` steps: the metrics of the last one.

        Args:
            row: step (from 1), loss, lr, grad_norm, tokens (counted labels), outside (the share of the time since the
                last call that neither the model nor the optimiser took), and metrics of the model's parts.
            speed: counted labels a second since the last call. steps: of the whole run.
        """

    def on_gradients(self, step: int, model: Any, batch: Batch, loss: Tensor) -> None:
        """In every step, before clipping and the update: the gradients of all parameters are in their `grad`.

        Args:
            step: from 1. model: that is trained, in training mode; leave it as it is. batch: the first one of the step.
            loss: of the step.
        """

    def on_evaluation(self, step: int, held_out: float) -> None:
        """After each evaluation: the value of `measure`."""

    def close(self) -> None:
        """After the last step of this call of `fit`, also where a signal or `patience` ended it."""


class Several(Observer):
    """Several observers as one."""

    def __init__(self, *observers: Observer):
        self.observers = observers

    def message(self, text: str) -> None:
        """See `Observer`."""
        for observer in self.observers:
            observer.message(text)

    def on_steps(self, row: dict[str, Any], speed: float, steps: int) -> None:
        """See `Observer`."""
        for observer in self.observers:
            observer.on_steps(row, speed, steps)

    def on_gradients(self, step: int, model: Any, batch: Batch, loss: Tensor) -> None:
        """See `Observer`."""
        for observer in self.observers:
            observer.on_gradients(step, model, batch, loss)

    def on_evaluation(self, step: int, held_out: float) -> None:
        """See `Observer`."""
        for observer in self.observers:
            observer.on_evaluation(step, held_out)

    def close(self) -> None:
        """See `Observer`."""
        for observer in self.observers:
            observer.close()


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

    def on_steps(self, row: dict[str, Any], speed: float, steps: int) -> None:
        """See `Observer`."""
        for name, value in numbers(row, speed).items():
            self._put(name, value, row["step"])

    def on_evaluation(self, step: int, held_out: float) -> None:
        """See `Observer`."""
        self._put("held_out", held_out, step)

    def close(self) -> None:
        """See `Observer`."""
        self.writer.close()  # type: ignore[no-untyped-call]

    def _put(self, name: str, value: float, step: int) -> None:
        self.writer.add_scalar(name, value, step)  # type: ignore[no-untyped-call]


class WandB(Observer):
    """Reports to Weights & Biases; its own variables (WANDB_MODE=offline) decide where, and whether at all.
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

    def on_steps(self, row: dict[str, Any], speed: float, steps: int) -> None:
        """See `Observer`."""
        self.run.log(numbers(row, speed), step=row["step"])

    def on_evaluation(self, step: int, held_out: float) -> None:
        """See `Observer`."""
        self.run.log({"held_out": held_out}, step=step)

    def close(self) -> None:
        """See `Observer`."""
        self.run.finish()


def numbers(row: dict[str, Any], speed: float) -> dict[str, float]:
    """The metrics of a step that are reported: its row, and counted tokens a second."""
    return {name: value for name, value in row.items() if name != "step"} | {"tokens_per_second": speed}


def observers(
    screen: Observer, folder: Path, config: dict[str, Any], tensorboard: bool, wandb: bool, *more: Observer
) -> Observer:
    """The display, the loggers that the options name, and others.

    Raises:
        ImportError: for a logger that is not installed.
    """
    plain = {name: value for name, value in config.items() if isinstance(value, str | int | float | list | dict)}
    others: list[Observer] = [TensorBoard(folder)] if tensorboard else []
    others += [WandB(folder, plain)] if wandb else []
    return Several(screen, *others, *more)
