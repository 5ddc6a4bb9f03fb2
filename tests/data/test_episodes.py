"""Episodes: what is none is refused by its number; a window begins at every step; stores keep numbers to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyformer.data import store
from anyformer.data.episodes import Episodes, examples, returns_to_go

GOOD: dict[str, Any] = {"states": [[0.1, 1], [0.2, 2], [0.3, 3]], "actions": [1, 0, 2], "rewards": [1, 0.5, -1.0]}
WRONG = {
    "a last state": ({"states": [[0, 1]] * 4}, "got 4 states, 3 actions, 3 rewards; drop a last state"),
    "fewer rewards": ({"rewards": [1.0]}, "got 3 states, 3 actions, 1 rewards"),
    "ragged states": ({"states": [[0, 1], [0], [0, 1]]}, "states must be numbers, or lists of as many numbers"),
    "text": ({"actions": ["left"] * 3}, "actions must be numbers"),
    "nothing": ({"states": []}, "states must be numbers"),
    "NaN": ({"states": [[0, float("nan")]] * 3}, "states hold NaN"),
    "flat states": ({"states": [1, 2, 3]}, r"expected \(T, S\)"),
    "half a choice": ({"actions": [0.5, 1.0, 0.0]}, "not choices from 0 on"),
    "a choice below 0": ({"actions": [0, -1, 0]}, "not choices from 0 on"),
    "the mark": ({"actions": [[-100.0], [1.0], [1.0]]}, "marks steps without loss"),
    "another width": ({"states": [[1, 2, 3]] * 3}, "have states of 3 numbers with choices; those of the first"),
    "another kind": ({"actions": [[0.5, 1]] * 3}, "with actions of 2 numbers; those of the first"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), WRONG.values(), ids=WRONG)
def test_what_is_no_episode_is_refused_by_its_number(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"file, episode 2: .*{said}"):
        list(examples([GOOD, {**GOOD, **changes}], "file"))


def episodes(tmp_path: Path, action: bool = False) -> tuple[Episodes, list[dict[str, np.ndarray]]]:
    rng, rows = np.random.default_rng(0), []
    for length in (3, 1, 7):
        acts = rng.normal(size=(length, 2)).astype(np.float32) if action else rng.integers(0, 3, length)
        states = rng.normal(size=(length, 2)).astype(np.float32)
        rows.append({"states": states, "actions": acts, "rewards": rng.normal(size=length).astype(np.float32)})
    plain = [{name: value.tolist() for name, value in row.items()} for row in rows]
    kept = store.stored(lambda: examples(plain, "x"), f"x {action}", tmp_path)
    return Episodes(kept, np.array([2, 0, 1])), [rows[i] for i in (2, 0, 1)]


@pytest.mark.parametrize("action", [False, True])
def test_a_window_begins_at_every_step(tmp_path: Path, action: bool) -> None:
    found, rows = episodes(tmp_path, action)
    number = 0
    for row in rows:
        left = [float(sum(row["rewards"][i:].astype(np.float64))) for i in range(len(row["rewards"]))]
        for first in range(len(left)):
            window, part = found.window(number, 4), slice(first, first + 4)
            assert np.array_equal(window.states, row["states"][part]) and window.first == first
            assert np.array_equal(window.actions, row["actions"][part])
            np.testing.assert_allclose(window.to_go, left[part], atol=1e-12)
            number += 1
    assert number == found.steps


def test_windows_side_by_side_hold_every_step_once(tmp_path: Path) -> None:
    found, rows = episodes(tmp_path)
    states = np.concatenate([window.states for window in found.in_order(3)])
    assert np.array_equal(states, np.concatenate([row["states"] for row in rows]))


def test_returns_to_go_end_with_the_last_reward() -> None:
    assert returns_to_go(np.array([1.0, 2.0, 3.0])).tolist() == [6.0, 5.0, 3.0]


def test_numbers_of_two_types_under_one_name_are_no_store(tmp_path: Path) -> None:
    mixed = [{"x": np.array([1, 2])}, {"x": np.array([0.5])}]
    with pytest.raises(ValueError, match="x are float32, and those before it int32"):
        store.stored(lambda: mixed, "mixed", tmp_path)
