"""Acting: a model of trajectories in an environment, for a desired return. B episodes, T steps so far.

    rollout(model, "CartPole-v1", target=200, episodes=10, seed=0)

An environment is one of gymnasium (`pip install 'anyformer[act]'`), or any object with its `reset` and `step`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.core.value import nearest
from anyformer.hub.processors import Steps, TrajectoryProcessor


@dataclass
class Episode:
    """One episode: its steps and its target.

    Attributes:
        states, actions, rewards: of each step.
        asked: the desired return, or None. `cut`: it was truncated at the longest episode of training.
    """

    asked: float | None
    states: list[np.ndarray] = field(default_factory=list)
    actions: list[Any] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    cut: bool = False

    @property
    def reached(self) -> float:
        """The return: the sum of its rewards."""
        return float(sum(self.rewards))

    def steps(self, window: int, empty: Any) -> Steps:
        """The last steps as the model reads them; the last one has no action yet, and gets the `empty` one.

        The return-to-go of a step is the target minus the rewards before it, as in `data.episodes`, where the target is
        the reached return.
        """
        before = np.cumsum([0.0, *self.rewards])  # (T,)
        to_go = np.zeros_like(before) if self.asked is None else self.asked - before
        first = max(0, len(self.states) - window)
        actions = np.array([*self.actions[first:], empty])
        return Steps(np.array(self.states[first:]), actions, to_go[first:], first)


@torch.no_grad()
def rollout(
    model: Any,
    env: str | Callable[[], Any],
    target: float | None = None,
    episodes: int = 10,
    seed: int = 0,
    temperature: float = 1.0,
) -> list[Episode]:
    """Episodes in which a model acts, run side by side; each is the same whatever the number of others.

    At every step the model reads the last steps, as many as in training, with the return-to-go: the target minus the
    rewards so far. A decoding cache would still depend on steps that have left this window; so the window is read anew
    each time, as in training.

    Args:
        model: a model of trajectories with its processor (`anyformer train --task act`, or clone).
        env: the name of an environment of gymnasium, or a function that makes one.
        target: the desired return; by default the best one of training. None for a model without returns.
        episodes: their number. `seed`: of the first one's start and choices; the next one has the next number.
        temperature: of choices: 1 draws from the model's distribution, 0 takes the likeliest. Numbers are not drawn.

    Raises:
        ValueError: for a model that cannot act, or an environment that does not fit it or does not exist.
        ImportError: if gymnasium is needed and not installed.
    """
    processor = checked(model)
    if temperature < 0 or episodes < 1:
        raise ValueError(f"temperature={temperature} must be at least 0, episodes={episodes} at least 1")
    if processor.return_scale is None and target is not None:
        raise ValueError(f"the model was trained without returns, so it takes no target; got target={target}")
    if processor.return_scale is not None and target is None:
        target = processor.best_return
    was, make = model.training, named(env) if isinstance(env, str) else env
    envs = [make() for _ in range(episodes)]
    try:
        fits(envs[0], processor)
        acts = [Acting(one, Episode(target), processor, temperature, seed + i) for i, one in enumerate(envs)]
        alive, device = acts, next(model.eval().parameters()).device
        while alive:
            inputs = processor([act.steps() for act in alive])
            outputs = model(**{n: t.to(device) for n, t in inputs.items()}, last=True).logits[:, -1].cpu()  # (B, A)
            alive = [act for act, answer in zip(alive, outputs, strict=True) if act.goes_on(answer)]
    finally:
        model.train(was)
        for one in envs:
            one.close()
    return [act.episode for act in acts]


class Acting:
    """One running episode: its environment, its steps, and its random generator."""

    def __init__(self, env: Any, episode: Episode, processor: TrajectoryProcessor, temperature: float, seed: int):
        self.env, self.episode, self.processor, self.temperature = env, episode, processor, temperature
        self.noise = torch.Generator().manual_seed(seed)
        self._see(env.reset(seed=seed)[0])

    def steps(self) -> Steps:
        """The current window of the model."""
        empty = 0 if self.processor.choices else np.zeros(self.processor.actions)
        return self.episode.steps(self.processor.window, empty)

    def goes_on(self, output: Tensor) -> bool:
        """Takes the action that the model's output (A,) selects; True if there is another step."""
        if not bool(output.isfinite().all()):
            raise ValueError("the model's action is not finite; check its weights and the states")
        episode = self.episode
        action: Any = output.numpy()
        if self.processor.choices and self.temperature:
            odds = (output.double() / self.temperature).softmax(-1)
            action = int(torch.multinomial(odds, 1, generator=self.noise))
        elif self.processor.choices:
            action = int(output.argmax())
        observation, reward, terminated, truncated, _ = self.env.step(action)
        episode.actions.append(action)
        episode.rewards.append(float(reward))
        ends = terminated or truncated
        episode.cut = not ends and len(episode.rewards) == self.processor.longest
        if ends or episode.cut:
            return False
        self._see(observation)
        return True

    def _see(self, observation: Any) -> None:
        state = np.asarray(observation, dtype=np.float64)
        self.processor.normal(state.reshape(1, -1) if state.ndim == 1 else state)
        self.episode.states.append(state)


def checked(model: Any) -> TrajectoryProcessor:
    """The processor of a model that can act.

    Raises:
        ValueError: if it cannot, or lacks the statistics of its training states.
    """
    if model.takes != "states":
        raise ValueError(
            f"the model reads {model.takes} and does not act; `anyformer train --task act` trains one that does"
        )
    if model.processor is None:
        raise ValueError(
            "the model has no processor: published files lack the means of states and the scale of returns. Set "
            "model.processor = anyformer.hub.processors.TrajectoryProcessor(…) with those that it was trained with"
        )
    return model.processor


def named(name: str) -> Callable[[], Any]:
    """The function that makes an environment of gymnasium.

    Raises:
        ImportError: without gymnasium. ValueError: for an unknown name, with the nearest ones.
    """
    try:
        import gymnasium
    except ImportError:
        raise ImportError(f"the environment {name!r} needs gymnasium: pip install 'anyformer[act]'") from None
    try:
        spec = gymnasium.spec(name)
        gymnasium.make(spec).close()
    except gymnasium.error.Error as error:
        raise ValueError(
            f"no environment {name!r}{nearest(name, list(gymnasium.registry))}: {str(error).splitlines()[0]}"
        ) from None
    return lambda: gymnasium.make(spec)


def fits(env: Any, processor: TrajectoryProcessor) -> None:
    """Raises ValueError for an environment with other actions than the model's."""
    space = getattr(env, "action_space", None)
    there = getattr(space, "n", None) if processor.choices else getattr(space, "shape", None)
    ours = processor.actions if processor.choices else (processor.actions,)
    if space is not None and there != ours:
        kind = "choices" if processor.choices else "numbers"
        raise ValueError(f"the environment takes actions of {space}, and the model returns {processor.actions} {kind}")
