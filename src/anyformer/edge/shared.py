"""One set of weights for every model of a space: a smaller one reads the first rows and columns of the largest.

    w(small) = w(large)[:o, :i]        of a matrix whose rows are k times the width, the first of each of its k parts

In the first half of the time the largest models learn alone, whatever their mixers (progressive shrinking: Cai et al.,
2020; arXiv:1908.09791). Then each step trains the largest model, the smallest and two drawn ones (the sandwich rule: Yu
and Huang, 2019; arXiv:1903.05134); all but the largest learn what that says (in-place distillation). Weights are found
by their paths: no part knows of it. Mixers have weights of their own at each layer; a window has those of the page's
own mixer. Each patch has a front-end of its own, and so has a head that is the token table.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from anyformer.compress import rounding
from anyformer.compress.distil import divergence
from anyformer.compress.few import FINE
from anyformer.core import pages
from anyformer.edge.learn import RATE, SIZE, Say, clock, loss, rate, step
from anyformer.edge.medium import Part
from anyformer.edge.space import Choice, Space, key
from anyformer.edge.task import SCORES, Task
from anyformer.hub.formats.guard import atomic_write

ALIKE = {"window": "own"}  # mixers with the weights of another
DRAWN = 2  # models of a step beside the largest and the smallest
ALONE = 0.5  # the share of the time in which the largest learns alone
KEPT = 48  # built models
SAVED = 30.0  # seconds between two checkpoints
GROUP = 32  # inputs that share a scale


class Shared(nn.Module):
    """The weights of all models of a space.

    Args:
        table: first vectors of the tokens, (V, D), of the largest model.
    """

    def __init__(self, space: Space, seed: int = 0, table: Tensor | None = None):
        super().__init__()
        self.space, self.wide = space, max(space.model["dim"])
        self.names: dict[str, str] = {}
        self.weights = nn.ParameterList()
        noise = random.Random(seed)
        for n, mixer in enumerate(space.layer.get("mixer", ("own",))):
            for apart in _apart(space):
                choice = {**space.end(True, noise), **apart}
                layer = {"mixer": mixer, "heads": max(space.layer.get("heads", (0,)))}
                layer["kv_heads"] = space.most_kv_heads
                choice |= {f"{n}.{i}": v for i in range(choice["depth"]) for n, v in layer.items() if n in space.layer}
                made: Any = pages.build(space.recipe(choice), seed=seed + n)
                for name, weight in made.named_parameters():
                    if (stored := self._stored(name, choice)) not in self.names:
                        self.names[stored] = str(len(self.weights))
                        self.weights.append(nn.Parameter(weight.detach().clone()))
        if table is not None:
            with torch.no_grad():
                own = self._weight("embed.tokens.weight", {})
                own[: len(table)] = table
        self.built: dict[str, Any] = {}

    def _stored(self, name: str, choice: Choice) -> str:
        """The name of a parameter of a model among those of all."""
        steps = name.split(".")
        if steps[0] == "pool":
            return f"{choice.get('pool', 'own')}|{name}"
        if steps[0] in ("embed", "head") and "tied" in choice:  # a table that is the head learns something else
            return f"tied {choice['tied']}|{name}"
        if steps[0] == "embed" and "patch" in choice:
            return f"{choice['patch']}|{name}"
        if steps[0] == "blocks" and steps[2] == "mixer":
            mixer = choice.get(f"mixer.{steps[1]}", "own")
            return f"{ALIKE.get(mixer, mixer)}|{name}"
        return name

    def _weight(self, name: str, choice: Choice) -> Tensor:
        return self.weights[int(self.names[self._stored(name, choice)])]

    def model(self, choice: Choice) -> Any:
        """The modules of a choice; their own weights are not used."""
        known = key({n: v for n, v in choice.items() if n != "bits"})
        if known not in self.built:
            if len(self.built) >= KEPT:
                self.built.pop(next(iter(self.built)))
            self.built[known] = self.space.recipe(choice).build()
        return self.built[known]

    def slices(self, choice: Choice) -> dict[str, Tensor]:
        """The weights of a choice, by the names of its model."""
        dim = choice["dim"]
        return {
            name: sliced(self._weight(name, choice), own.shape, self.wide, dim, name.startswith("blocks."))
            for name, own in self.model(choice).named_parameters()
        }

    def run(self, choice: Choice, rounded: bool = False) -> Callable[..., Tensor]:
        """The logits of a choice as a function of its inputs. `rounded`: its matrices as they are in few bits."""
        model, weights = self.model(choice), self.slices(choice)
        if rounded:
            linear = {f"{p}.weight" for p, m in model.named_modules() if type(m) is nn.Linear}
            for name in linear:
                weights[name] = rounding.rtn(weights[name].detach(), choice.get("bits", FINE), GROUP).matrix()

        def logits(**inputs: Tensor) -> Tensor:
            made: Tensor = functional_call(model, weights, kwargs=inputs).logits
            return made

        return logits

    @torch.no_grad()
    def standing(self, choice: Choice) -> Any:
        """A model of a choice with weights of its own."""
        made: Any = pages.build(self.space.recipe(choice), seed=0)
        for name, weight in self.slices(choice).items():
            made.get_parameter(name).copy_(weight)
        return made


def _apart(space: Space) -> list[Choice]:
    """The choices whose values have weights of their own, each with each."""
    names = [name for name in ("pool", "patch", "tied") if name in space.model]
    return [dict(zip(names, v, strict=True)) for v in itertools.product(*(space.model[name] for name in names))]


def sliced(weight: Tensor, shape: torch.Size, wide: int, dim: int, parts: bool) -> Tensor:
    """The part of a weight that a smaller model reads. `parts`: an axis of k widths is k parts, each cut to `dim`."""
    for axis, size in enumerate(shape):
        k = weight.shape[axis] // wide
        if parts and k > 1 and weight.shape[axis] == k * wide and size == k * dim:
            weight = weight.unflatten(axis, (k, wide)).narrow(axis + 1, 0, dim).flatten(axis, axis + 1)
        else:
            weight = weight.narrow(axis, 0, size)
    return weight


def train(shared: Shared, task: Task, seconds: float, file: Path, seed: int = 0, say: Say = print) -> int:
    """Trains the weights of all models for so long; what a killed process had done is continued from `file`.

    Returns:
        The number of steps.
    """
    space, learn, noise = shared.space, task.parts["learn"], random.Random(seed)
    optimizer = torch.optim.AdamW(shared.parameters(), RATE, weight_decay=0.01, fused=True)
    spent, steps = 0.0, 0
    if file.exists():
        kept = torch.load(file, weights_only=True)
        shared.load_state_dict(kept["weights"])
        optimizer.load_state_dict(kept["optimizer"])
        spent, steps = kept["spent"], kept["steps"]
        noise.seed(seed + steps)
        say(f"going on with {file.name}: step {steps:,}, {spent:.0f} of {seconds:.0f} s")
    began = saved = clock()
    spent_before, batches = spent, task.draws(learn, space.largest, SIZE, noise)
    while spent < seconds:
        rows = next(batches)
        value = sandwich(shared, task, learn, rows, noise, alone=spent < ALONE * seconds)
        step(shared.train(), optimizer, value, rate(spent / seconds, RATE))
        steps, now = steps + 1, clock()
        spent = spent_before + now - began
        if now - saved > SAVED or spent >= seconds:
            state = {
                "weights": shared.state_dict(),
                "optimizer": optimizer.state_dict(),
                "spent": spent,
                "steps": steps,
            }
            atomic_write(file, lambda to, state=state: torch.save(state, to))  # type: ignore[misc]
            saved = now
    shared.eval()
    return steps


def sandwich(
    shared: Shared, task: Task, part: Part, rows: list[int], noise: random.Random, alone: bool = False
) -> Tensor:
    """The loss of one step: the largest model's, and how far the others are from it. `alone`: there are no others."""
    space = shared.space
    models = [space.end(True, noise)]
    if not alone:
        models += [space.end(False, noise), *(space.drawn(noise) for _ in range(DRAWN))]
    first, total = None, torch.zeros(())
    for choice in models:
        logits = shared.run(choice)(**task.medium.batch(part, choice.get("vocab"), rows))
        if first is None:
            first, total = logits.detach(), loss(task, part, rows, logits)
        elif task.metric in SCORES:
            total = total + (logits - first).square().mean()
        else:
            total = total + divergence(logits, first)
    return total / len(models)
