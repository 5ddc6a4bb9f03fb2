"""Steps of an environment to a model's inputs. T steps, S numbers of a state, A numbers of an action."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from anyformer.hub.processors.base import Origin, Processor
from anyformer.hub.processors.keys import CLASS
from anyformer.hub.tables.config import key, must, quiet

KIND = "TrajectoryProcessor"


@dataclass(frozen=True, eq=False)
class Steps:
    """Consecutive steps of an episode.

    Args:
        states: (T, S). `actions`: (T,) numbers of choices, or (T, A).
        to_go: (T,) returns-to-go: reached in training, desired in use.
        first: the index of the first of these steps in its episode.
    """

    states: np.ndarray
    actions: np.ndarray
    to_go: np.ndarray
    first: int = 0


ENTRIES = (
    must("feature_extractor_type", KIND, absent=False),
    *(key(name, name) for name in ("state_mean", "state_std", "actions", "choices")),
    key("return_scale", "return_scale", default=None),
    *(key(name, name) for name in ("lowest_return", "best_return", "window", "longest")),
    quiet("processor_class", why=CLASS),
)


@dataclass(frozen=True)
class TrajectoryProcessor(Processor):
    """Steps of an environment to `states`, `actions`, `returns_to_go` and `timesteps`, normalised as in training.

    Args:
        state_mean, state_std: of each number of a state, over the episodes of training.
        actions: numbers of an action, or how many choices there are.
        choices: an action is one of several.
        return_scale: divisor of returns; None: the model was trained without returns, and reads 0.
        lowest_return, best_return: of the episodes of training.
        window: steps that the model sees at once.
        longest: steps of the longest episode of training; later steps were never trained.
        origin: the file that it was read from.

    Raises:
        ValueError: naming the argument at fault.
    """

    takes = ("states", "actions", "returns_to_go", "timesteps")
    slot = "trajectory_processor"
    entries = ENTRIES

    state_mean: tuple[float, ...]
    state_std: tuple[float, ...]
    actions: int
    choices: bool
    return_scale: float | None
    lowest_return: float
    best_return: float
    window: int
    longest: int
    origin: Origin = field(default=Origin(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.state_mean) != len(self.state_std) or not self.state_mean:
            counts = f"{len(self.state_mean)} and {len(self.state_std)}"
            raise ValueError(f"state_mean and state_std have {counts} numbers; expected one each for every number")
        if not all(s > 0 for s in self.state_std):
            raise ValueError(f"state_std is {self.state_std}; expected numbers above 0, since states are divided by it")
        if self.return_scale is not None and not self.return_scale > 0:
            raise ValueError(f"return_scale is {self.return_scale}; expected a number above 0, or null without returns")
        for name in ("actions", "window", "longest"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")

    def __call__(self, media: Sequence[Steps]) -> dict[str, Tensor]:
        """Some steps of several episodes as a batch, padded on the right, with its attention_mask.

        Raises:
            ValueError: for states or actions of another width, or no such choice.
        """
        longest, rows = max(len(steps.states) for steps in media), len(media)
        states = np.zeros((rows, longest, len(self.state_mean)), np.float32)
        actions = np.zeros((rows, longest, self.actions), np.float32)
        to_go = np.zeros((rows, longest, 1), np.float32)
        times, mask = np.zeros((2, rows, longest), np.int64)
        for row, steps in enumerate(media):
            count = len(steps.states)
            states[row, :count] = self.normal(steps.states)
            actions[row, :count] = self.vectors(steps.actions)
            if self.return_scale is not None:
                to_go[row, :count, 0] = steps.to_go / self.return_scale
            times[row, :count] = np.arange(steps.first, steps.first + count)
            mask[row, :count] = 1
        arrays = zip((*self.takes, "attention_mask"), (states, actions, to_go, times, mask), strict=True)
        return {name: torch.from_numpy(array) for name, array in arrays}

    def normal(self, states: np.ndarray) -> np.ndarray:
        """States normalised for the model, (T, S)."""
        if states.ndim != 2 or states.shape[1] != len(self.state_mean):
            raise ValueError(
                f"states must be (steps, {len(self.state_mean)}), as in training; got {tuple(states.shape)}"
            )
        return (states - np.array(self.state_mean)) / np.array(self.state_std)

    def vectors(self, actions: np.ndarray) -> np.ndarray:
        """Actions as vectors, (T, A): numbers unchanged, choices one-hot."""
        if self.choices != (actions.ndim == 1):
            kind = "numbers of choices, (steps,)" if self.choices else f"vectors, (steps, {self.actions})"
            raise ValueError(f"actions are {kind}, as in training; got {tuple(actions.shape)}")
        if not self.choices:
            if actions.shape[1] != self.actions:
                raise ValueError(f"actions must have {self.actions} numbers, as in training; got {actions.shape[1]}")
            return actions
        if len(actions) and not 0 <= actions.min() <= actions.max() < self.actions:
            bad = actions[(actions < 0) | (actions >= self.actions)][0]
            raise ValueError(f"there is no action {bad}: they go from 0 to {self.actions - 1}")
        return np.eye(self.actions, dtype=np.float32)[actions]

    def __str__(self) -> str:
        what = f"one of {self.actions} actions" if self.choices else f"actions of {self.actions} numbers"
        asks = "no returns" if self.return_scale is None else (
            f"returns over {self.return_scale:g}, in training from {self.lowest_return:g} to {self.best_return:g}"
        )  # fmt: skip
        return f"states of {len(self.state_mean)} numbers, normalised; {what}; {asks}; windows of {self.window} steps"
