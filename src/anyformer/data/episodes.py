"""Episodes of an environment: rows of `states`, `actions` and `rewards`, checked; and windows of them by number.

```
{"states": [[0.1, 0.2], [0.3, 0.1], …], "actions": [1, 0, …], "rewards": [1.0, 1.0, …]}     one episode a row
```
A step is a state, the action taken there, and its reward. An action is the number of a choice, or a
list of numbers. Rows come from any source of `data.records`. T steps, N episodes, S numbers of a state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from anyformer.data.labels import IGNORE
from anyformer.data.records import Row
from anyformer.data.store import Example, Store
from anyformer.hub.processors import Steps

COLUMNS = ("states", "actions", "rewards")


def returns_to_go(rewards: np.ndarray) -> np.ndarray:
    """The return-to-go of each step: the sum of the rewards from it to the last one, (T,) -> (T,)."""
    return np.cumsum(rewards[::-1], dtype=np.float64)[::-1]


def examples(rows: Iterable[Row], where: str) -> Iterator[Example]:
    """Rows as episodes, for a store.

    Raises:
        ValueError: for a row that is no episode, or an episode of another kind than the first, with its number.
    """
    first = None
    for number, row in enumerate(rows, 1):
        try:
            episode = _episode(row)
            kind = episode["states"].shape[1:], episode["actions"].shape[1:], episode["actions"].dtype.kind
            first = first or kind
            if kind != first:
                raise ValueError(f"its steps have {_told(*kind)}; those of the first episode have {_told(*first)}")
        except ValueError as error:
            raise ValueError(f"{where}, episode {number}: {error}") from None
        yield {name: value.reshape(-1) for name, value in episode.items()}


def _episode(row: Row) -> Example:
    states, actions, rewards = (_array(name, row[name]) for name in COLUMNS)
    lengths = {name: len(value) for name, value in zip(COLUMNS, (states, actions, rewards), strict=True)}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise ValueError(f"every step needs a state, an action and a reward; got {counts}; drop a last state")
    if states.ndim != 2 or rewards.ndim != 1 or actions.ndim > 2:
        shapes = f"{states.shape}, {actions.shape} and {rewards.shape}"
        raise ValueError(f"states, actions and rewards are {shapes}; expected (T, S), (T,) or (T, A), and (T,)")
    if actions.ndim == 1 and (actions.dtype.kind != "i" or actions.min() < 0):
        raise ValueError(
            "actions are single numbers, but not choices from 0 on; write a number as a list of one: [0.5]"
        )
    if actions.ndim == 2 and (actions == IGNORE).any():
        raise ValueError(f"an action is {IGNORE}, which marks steps without loss; scale the actions")
    numbers = actions.astype(np.int64 if actions.ndim == 1 else np.float32)
    return {"states": states.astype(np.float32), "actions": numbers, "rewards": rewards.astype(np.float32)}


def _array(name: str, value: Any) -> np.ndarray:
    """A list of numbers, or of lists of as many numbers."""
    try:
        array = np.array(value)
    except ValueError:
        array = np.array(None)
    if array.dtype.kind not in "if" or not array.ndim or not array.size:
        raise ValueError(f"{name} must be numbers, or lists of as many numbers, one for each step; got {value!r:.60}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} hold NaN or infinity")
    return array


def _told(state: tuple[int, ...], action: tuple[int, ...], kind: str) -> str:
    return f"states of {state[0]} numbers with {'choices' if kind == 'i' else f'actions of {action[0]} numbers'}"


@dataclass(frozen=True, eq=False)
class Episodes:
    """Some episodes of a store, and all windows of K steps in them by number: one begins at every step.

    Args:
        store: of `examples`.
        numbers: (N,) of its episodes.
    """

    store: Store
    numbers: np.ndarray

    @cached_property
    def ends(self) -> np.ndarray:
        """The number of steps up to the end of each episode, (N,)."""
        return np.cumsum(self.store.fields["rewards"].lengths(self.numbers))

    @property
    def steps(self) -> int:
        """The number of all steps."""
        return int(self.ends[-1])

    def __iter__(self) -> Iterator[Steps]:
        return (self.whole(i) for i in range(len(self.numbers)))

    def whole(self, episode: int) -> Steps:
        """An episode from its first step to its last."""
        stored = self.store[int(self.numbers[episode])]
        count = len(stored["rewards"])
        states, actions = stored["states"].reshape(count, -1), stored["actions"]
        actions = actions if actions.dtype.kind == "i" else actions.reshape(count, -1)
        return Steps(states, actions, returns_to_go(stored["rewards"]))

    def window(self, number: int, length: int) -> Steps:
        """Up to `length` steps of an episode, from step `number` of all steps."""
        episode = int(np.searchsorted(self.ends, number, "right"))
        whole = self.whole(episode)
        first = number - (int(self.ends[episode - 1]) if episode else 0)
        part = slice(first, first + length)
        return Steps(whole.states[part], whole.actions[part], whole.to_go[part], first)

    def in_order(self, length: int) -> Iterator[Steps]:
        """Windows of `length` steps side by side: every step once."""
        begin = 0
        for end in self.ends.tolist():
            yield from (self.window(first, length) for first in range(begin, end, length))
            begin = end
