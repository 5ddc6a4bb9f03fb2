"""A lower bound of epsilon, measured: canaries take part or not, by coins, and a guesser who sees every released model
says which (Steinke et al., 2023; arXiv:2305.08846). If it is right too often, the promise of the accountant is broken.

The canaries are clients of a real `Server`, so clipping, sampling, noise and denominator are those of a run. Their
updates are far longer than the clip. C canaries, P numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.federate.options import FederateOptions
from anyformer.federate.privacy import Privacy, clipped
from anyformer.federate.server import Server
from anyformer.federate.wire import Message

CONFIDENCE = 0.95


@dataclass
class Canaries:
    """Clients that send a direction of their own, or nothing at all: a `Transport`."""

    directions: np.ndarray  # (C, P), of length 1
    there: np.ndarray  # (C,), bool
    clip: float
    sent: int = 0
    received: int = 0

    def ask(self, messages: Mapping[str, Message]) -> dict[str, Any]:
        """See `processes.Transport`."""
        return {name: self._answer(int(name), m) for name, m in messages.items()}

    def broadcast(self, message: Message) -> None:
        """Nothing: they do not learn."""

    def allow(self, most: int) -> None:
        """Nothing: there are no lines."""

    def _answer(self, i: int, m: Message) -> Message:
        if m.kind == "introduce":
            return Message("ok", {"task": "canary", "columns": [], "context": None, "names": [], "said": []})
        if m.kind == "prepare":
            return Message("ok", {"layout": "canary", "examples": 1, "held_out": 1, "unit": "", "numbers": 0})
        update, cut = clipped((100 * self.clip * self.there[i] * self.directions[i]).astype("<f4"), self.clip)
        return Message("ok", {"loss": 0.0, "clipped": cut, "examples": 1}, {"update": update})


def audit(mechanism: Privacy, rounds: int, directions: np.ndarray, seed: int = 0) -> tuple[float, int]:
    """The lower bound of epsilon, at 95 % confidence, and how many of the canaries were guessed right.

    Args:
        mechanism: of the run; its clients are the canaries.
        directions: of the canaries' updates, (C, P), independent, of any length.
    """
    count = len(directions)
    assert count == mechanism.clients
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    transport = Canaries(unit, np.random.default_rng(seed).random(count) < 0.5, mechanism.clip)
    options = FederateOptions(
        "canary", clients=".", rounds=rounds, clip=mechanism.clip, epsilon=1.0, sample=mechanism.rate, blind=True
    )
    server = Server(options, transport, map(str, range(count)))
    server.introduce()
    server.prepare("canary", 0)
    server.privacy, server.weights = mechanism, np.zeros(unit.shape[1], np.float32)
    for number in range(1, rounds + 1):
        server.round(number)
    path = server.weights.astype(np.float64) * mechanism.denominator / mechanism.clip  # (P,)
    score = np.linalg.lstsq(unit.T, path, rcond=None)[0]  # of each canary: the rounds that it took part in, and noise
    right = int(((score > rounds * mechanism.rate / 2) == transport.there).sum())
    return lower_bound(right, count, mechanism.delta), right


def lower_bound(right: int, count: int, delta: float) -> float:
    """The largest epsilon at which `right` of `count` guesses have a probability of at most 1 - CONFIDENCE."""
    low, high = 0.0, 50.0
    if _probability(right, count, low, delta) > 1 - CONFIDENCE:
        return 0.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        surprising = _probability(right, count, middle, delta) <= 1 - CONFIDENCE
        low, high = (middle, high) if surprising else (low, middle)
    return low


def _probability(right: int, count: int, epsilon: float, delta: float) -> float:
    """A bound of P(at least `right` of `count` guesses) under (epsilon, delta): theorem 5.2 of the paper."""
    p = 1 / (1 + math.exp(-epsilon))
    mass = [math.comb(count, k) * p**k * (1 - p) ** (count - k) for k in range(count + 1)]
    below = np.cumsum(mass[:right][::-1]) / np.arange(1, right + 1)  # mean mass of the i values under `right`
    return sum(mass[right:]) + 2 * count * delta * max(below, default=0.0)


def gradients(model: Any, objective: Any, inputs: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """The gradient of each example by itself, (B, P): the update of a client that has it alone, in one step of SGD.

    Weights that are tied are one weight: their gradients are added. P trained numbers, in the order of their paths.
    """
    learned = {n: p.detach() for n, p in sorted(model.named_parameters()) if p.requires_grad}

    def loss(weights: dict[str, Tensor], some: dict[str, Tensor], label: Tensor) -> Tensor:
        one = {name: value[None] for name, value in some.items()}
        return objective(torch.func.functional_call(model, weights, (), one, tie_weights=True), label[None], 1.0)

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0), randomness="different")
    made = each(learned, dict(inputs), labels)
    return torch.cat([made[name].flatten(1) for name in learned], 1)
