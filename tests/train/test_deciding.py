"""The tasks act and clone, from files to returns that were asked for; a small environment stands in for gymnasium's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.generate import rollout
from anyformer.hub.processors import TrajectoryProcessor
from anyformer.train import train

LENGTH = 6


class Lamps:
    """Six steps; a reward of 1 for each action 1 (or of the number itself). The state is noise, and a number that
    never changes."""

    def __init__(self, numbers: bool = False, width: int = 3):
        self.numbers, self.width, self.closed = numbers, width, False

    def reset(self, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        self.rng, self.at = np.random.default_rng(seed), 0
        return self._state(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.at += 1
        reward = float(action[0]) if self.numbers else float(action)
        return self._state(), reward, False, self.at == LENGTH, {}

    def close(self) -> None:
        self.closed = True

    def _state(self) -> np.ndarray:
        return np.append(self.rng.normal(size=self.width - 1), 7.0)


def file(path: Path, numbers: bool = False, count: int = 60) -> Path:
    """Episodes in which all actions are alike: their return is 0 or 6 (or -3 and 3)."""
    with path.open("w") as out:
        for number in range(count):
            env, on = Lamps(numbers), number % 2
            state, _ = env.reset(number)
            row: dict[str, Any] = {"states": [], "actions": [], "rewards": []}
            for _ in range(LENGTH):
                action: Any = [on - 0.5] if numbers else on
                row["states"].append(state.tolist())
                row["actions"].append(action)
                state, reward, *_ = env.step(action)
                row["rewards"].append(reward)
            out.write(json.dumps(row) + "\n")
    return path


def learned(tmp_path: Path, data: Path, **options: Any) -> Any:
    small = {"steps": 60, "batch": 16, "context": 4, "lr": 1e-2, "eval_every": 0, "save_every": 0, "quiet": True}
    own = {"size": "tiny", "data": data, "out": tmp_path / "run", "cache": str(tmp_path / "cache")}
    return train("decision_transformer", **{**small, **own, **options})


def returns(model: Any, target: float | None, numbers: bool = False, **options: Any) -> list[float]:
    return [e.reached for e in rollout(model, lambda: Lamps(numbers), target, 4, **options)]


def test_a_model_does_what_is_asked_and_says_it_after_loading(tmp_path: Path) -> None:
    done = learned(tmp_path, file(tmp_path / "a.jsonl"))
    assert done.task == "act" and done.held_out < 0.5 * done.baseline
    again = af.load(done.checkpoint)
    said = again.processor
    assert again.processor == done.model.processor and said.choices and said.return_scale == said.best_return == LENGTH
    assert (said.window, said.longest, said.actions) == (4, LENGTH, 2) and said.state_std[-1] == 1.0
    assert abs(said.state_mean[-1] - 7.0) < 1e-6 and abs(said.state_std[0] - 1.0) < 0.2
    for model in (done.model, again):
        assert returns(model, 0.0) == [0.0] * 4 and returns(model, LENGTH) == [LENGTH] * 4 == returns(model, None)
    again.save(tmp_path / "saved")
    assert af.load(tmp_path / "saved").processor == said
    told = again.ledger.files["preprocessor_config.json"]
    assert {line.key for line in told} >= {"state_mean", "return_scale", "window"}


def test_numbers_are_acted_as_well(tmp_path: Path) -> None:
    done = learned(tmp_path, file(tmp_path / "a.jsonl", numbers=True))
    assert not done.model.processor.choices and done.model.config.tanh and done.held_out < 0.2 * done.baseline
    low, high = (np.mean(returns(done.model, target, numbers=True)) for target in (-3.0, 3.0))
    assert low < -2 and high > 2


def test_a_clone_takes_no_return(tmp_path: Path) -> None:
    model = learned(tmp_path, file(tmp_path / "a.jsonl"), task="clone").model
    assert model.processor.return_scale is None
    assert 0 < np.mean([e.actions[0] for e in rollout(model, Lamps, None, 24)]) < 1  # it has seen both
    with pytest.raises(ValueError, match="trained without returns, so it takes no target; got target=3"):
        returns(model, 3.0)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    data = file(tmp_path / "a.jsonl")
    whole = learned(tmp_path, data, steps=6, out=tmp_path / "whole")
    learned(tmp_path, data, steps=6, out=tmp_path / "parts", save_every=4)
    goes_on = {"out": tmp_path / "more", "resume": str(tmp_path / "parts" / "step-000004")}
    parts = learned(tmp_path, data, steps=6, **goes_on)
    one, two = whole.model.state_dict(), parts.model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_episode_is_what_it_is_beside_others_and_by_its_seed(tmp_path: Path) -> None:
    model = learned(tmp_path, file(tmp_path / "a.jsonl"), steps=3).model
    together = rollout(model, Lamps, 3.0, 3, seed=5)
    for i, one in enumerate(together):
        alone = rollout(model, Lamps, 3.0, 1, seed=5 + i)[0]
        assert alone.actions == one.actions and np.array_equal(alone.states, one.states)
    others = rollout(model, Lamps, 3.0, 12, seed=50)
    assert len({tuple(e.actions) for e in others}) > 1  # actions are drawn
    sure = rollout(model, Lamps, 3.0, 1, seed=5, temperature=0.0)[0]
    assert sure.actions == rollout(model, Lamps, 3.0, 1, seed=5, temperature=0.0)[0].actions


def test_what_the_model_reads_in_use_is_what_it_read_in_training(tmp_path: Path) -> None:
    """An episode that is acted again with its own return as target: the same inputs, window by window."""
    from anyformer.data.episodes import Episodes, examples
    from anyformer.data.store import stored

    model = learned(tmp_path, file(tmp_path / "a.jsonl"), steps=3).model
    one = rollout(model, Lamps, 3.0, 1, seed=5)[0]
    row = {"states": [s.tolist() for s in one.states], "actions": one.actions, "rewards": one.rewards}
    kept = Episodes(stored(lambda: examples([row], "x"), "x", tmp_path / "other"), np.array([0]))
    for count in range(1, LENGTH + 1):
        first = max(0, count - 4)
        past = dataclasses.replace(
            one, asked=one.reached, states=one.states[:count], actions=one.actions[: count - 1],
            rewards=one.rewards[: count - 1],
        )  # fmt: skip
        used, taught = past.steps(4, 0), kept.window(first, count - first)
        assert used.first == taught.first
        np.testing.assert_allclose(used.states, taught.states, rtol=1e-6)
        np.testing.assert_allclose(used.to_go, taught.to_go)
        assert used.actions[:-1].tolist() == taught.actions[:-1].tolist()


def test_an_episode_ends_after_the_longest_of_training(tmp_path: Path) -> None:
    model = learned(tmp_path, file(tmp_path / "a.jsonl"), steps=3).model
    model.processor = dataclasses.replace(model.processor, longest=4)
    found = rollout(model, Lamps, 3.0, 2)
    assert [(len(e.rewards), e.cut) for e in found] == [(4, True)] * 2
    model.processor = dataclasses.replace(model.processor, longest=LENGTH)
    assert not any(e.cut for e in rollout(model, Lamps, 3.0, 2))


def test_what_cannot_act_is_refused(tmp_path: Path) -> None:
    model = learned(tmp_path, file(tmp_path / "a.jsonl"), steps=3).model
    with pytest.raises(ValueError, match="reads input_ids and does not act"):
        rollout(af.build("gpt", "tiny"), Lamps)
    with pytest.raises(ValueError, match="has no processor"):
        rollout(af.build("decision_transformer", "tiny"), Lamps)
    with pytest.raises(ValueError, match=r"states must be \(steps, 3\), as in training; got \(1, 4\)"):
        rollout(model, lambda: Lamps(width=4), 3.0)
    with pytest.raises(ValueError, match="temperature=-1"):
        rollout(model, Lamps, 3.0, temperature=-1)
    gymnasium = pytest.importorskip("gymnasium")
    with pytest.raises(ValueError, match=r"no environment 'CartPool-v1' .*did you mean CartPole-v1"):
        rollout(model, "CartPool-v1")
    with pytest.raises(ValueError, match=r"takes actions of Discrete\(3\), and the model returns 2 choices"):
        rollout(model, lambda: gymnasium.make("MountainCar-v0"))


REFUSED = {
    "fewer steps": ({"overrides": {"steps": 5}}, "an episode has 6 steps, and the model has 5; build it with more"),
    "another width": ({"overrides": {"state": 4}}, "the states have 3 numbers, the model reads 4"),
    "fewer actions": ({"overrides": {"action": 1}}, "there is no action 1: they go from 0 to 0"),
    "packed": ({"order": "packed"}, "order=packed is for text"),
    "another task": ({"task": "causal"}, "cannot be trained on the task 'causal'; it can on act, clone"),
}


@pytest.mark.parametrize(("options", "said"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        learned(tmp_path, file(tmp_path / "a.jsonl"), **options)


def test_rows_that_are_no_episodes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"states": [[1, 2]], "actions": [1]}\n')
    with pytest.raises(ValueError, match="no column 'rewards'"):
        learned(tmp_path, tmp_path / "a.jsonl")


SAID = {
    "state_mean": [0.0, 1.0], "state_std": [1.0, 2.0], "actions": 2, "choices": True, "return_scale": 5.0, "longest": 9,
    "lowest_return": 0.0, "best_return": 5.0, "window": 4, "feature_extractor_type": "TrajectoryProcessor",
}  # fmt: skip
BAD = {
    "unknown key": ({"mean": 1}, "unknown config keys: mean=1"),
    "missing key": ({"state_std": None}, "lacks 'state_std'"),
    "another type": ({"feature_extractor_type": "ViTFeatureExtractor"}, "'feature_extractor_type' is 'ViTFeature"),
    "no deviation": ({"state_std": [1.0, 0.0]}, "expected numbers above 0"),
    "one deviation": ({"state_std": [1.0]}, "2 and 1 numbers"),
    "no scale": ({"return_scale": 0.0}, "return_scale is 0.0"),
    "no window": ({"window": 0}, "window is 0"),
    "text": ({"longest": "many"}, "longest"),
}


@pytest.mark.parametrize(("changes", "said"), BAD.values(), ids=BAD)
def test_a_processor_is_read_strictly(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    af.build("decision_transformer", "tiny", seed=0).save(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SAID))
    assert isinstance(af.load(tmp_path).processor, TrajectoryProcessor)
    changed = {name: value for name, value in {**SAID, **changes}.items() if value is not None}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json: .*{said}"):
        af.load(tmp_path)
