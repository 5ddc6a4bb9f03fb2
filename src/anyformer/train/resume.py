"""The state of a loop to a checkpoint and back. Each file of a checkpoint is read once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anyformer.core.options import current
from anyformer.data.batches import Numbered
from anyformer.train import checkpoint, optim, random_state, renamed
from anyformer.train.schedule import ENDING
from anyformer.train.settings import FREE, Settings

if TYPE_CHECKING:
    from anyformer.train.loop import Loop


class Held:
    """The content of `training.json` and `training.safetensors` of a checkpoint.

    Attributes:
        folder: of the checkpoint. `facts`: of training.json.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.facts, self._tensors = checkpoint.read(folder)

    def tensors(self, kind: str) -> dict[str, Tensor]:
        """The tensors of a kind: optimizer, random, world, master or mean."""
        return {k.removeprefix(f"{kind}."): v for k, v in self._tensors.items() if k.startswith(f"{kind}.")}

    def compare(self, settings: Settings, facts: dict[str, Any]) -> None:
        """Raises ValueError for settings or facts that differ from those of the checkpoint, except for `FREE`."""
        ours = json.loads(json.dumps({**dataclasses.asdict(settings), **facts}))
        missing = dataclasses.asdict(Settings(1))  # settings that came later are at their defaults in older runs
        saved = current({**self.facts["settings"], **self.facts["facts"]}, renamed.RENAMED, renamed.VALUES)
        theirs = {**json.loads(json.dumps(missing)), **saved}
        differs = [k for k in {**theirs, **ours} if theirs.get(k) != ours.get(k) and k not in FREE]
        if differs:
            listed = "; ".join(f"{k} was {theirs.get(k)!r} and is now {ours.get(k)!r}" for k in differs[:4])
            raise ValueError(
                f"cannot resume from {self.folder}: {listed}. A command repeats a run's options with --config "
                "…/config.yaml"
            )


def save(loop: Loop) -> None:
    """Writes a checkpoint of the step."""
    world, model = loop.world, loop.model
    weights = world.gather(model.state_dict())
    moments = optim.moments(loop.optimizer, model)
    tensors = {f"optimizer.{k}": v for k, v in world.gather(moments).items()}
    tensors |= {f"random.{k}": v for k, v in random_state.random_states().items()}
    tensors |= {f"world.{k}": v for k, v in world.local_state(moments).items()}
    settings = dataclasses.asdict(loop.settings)
    facts = {"settings": settings, "facts": loop.facts, "best": loop.best, "torch": torch.__version__}
    facts["scale"] = loop.scale.state() if loop.scale else None
    facts["batches"] = loop.batches.sums() if isinstance(loop.batches, Numbered) else None
    best = loop.best["step"] if loop.best else None
    keep, ema = loop.settings.keep_last, None
    if loop.average:
        with loop.average.swapped():
            ema = {name: value.clone() for name, value in world.gather(model.state_dict()).items()}
    content = (loop.step, model, weights, tensors, facts, keep, best, ema, loop.types)
    world.on_main(lambda: loop.folder.save(*content))
    loop.saved = loop.step


def restore(loop: Loop, held: Held) -> None:
    """Sets all but the weights, which the model has already: optimiser, mean of the weights, random states, step."""
    facts, world, model = held.facts, loop.world, loop.model
    if isinstance(loop.batches, Numbered) and facts.get("batches"):
        loop.batches.go_on(facts["step"] * loop.settings.accumulate, facts["batches"])
    was, now, schedule = facts["settings"]["steps"], loop.settings.steps, loop.settings.schedule
    if was != now and schedule in ENDING:
        loop.observer.message(
            f"steps was {was} and is now {now}: the learning rate is that of a run of {now} ({schedule})"
        )
    if loop.average:
        with loop.average.swapped():  # puts the weights back
            checkpoint.restore_weights(model, held.folder / "ema", world, held.tensors("mean"))
            loop.average.take()
    if loop.scale:
        loop.scale.restore(facts["scale"])
    moments = world.shard(held.tensors("optimizer"), dict(model.named_parameters()))
    optim.restore_moments(loop.optimizer, model, moments)
    random_state.restore_random(held.tensors("random"))
    world.load_local_state(held.tensors("world"), optim.moments(loop.optimizer, model))
    loop.step, loop.best = facts["step"], facts["best"]
    loop.saved = loop.step if held.folder.parent.resolve() == loop.folder.folder.resolve() else -1
