"""A trial at the beginning of a design: an heir of the teacher and the largest uniform model learn alone for one time.

What they learn is not lost: both go on from it in the race, also an heir that is behind, since it learns late. If it is
ahead, models that begin anew get less of the time that is left.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from anyformer.core import pages
from anyformer.edge import learn
from anyformer.edge.heirs import MARK, RATE, Heirs
from anyformer.edge.space import Choice, key
from anyformer.generate.engine.processor import flags
from anyformer.hub.formats.guard import atomic_write

TRIAL = 0.1  # of the time, of each of the two
STEPS = 400  # that an heir needs before it says anything: with fewer it was behind what it passed later


def trial(design: Any) -> dict[str, Any]:
    """The state that both have come to, and the seconds that it took; {} without an heir or a uniform model that fits.
    A killed run reads it again."""
    if (heir := _largest(design)) is None or not (rivals := design.plain()[:1]):
        return {}
    file, seconds = design.out / "trial.pt", TRIAL * design.left
    if not file.exists():
        began = learn.clock()
        points = [heir, rivals[0]]
        models = [_heir(design, heir.choice), _anew(design, rivals[0].choice)]
        if (needed := STEPS * learn.pace(models[0], design.task, heir.choice.get("vocab"), _half())) > seconds:
            design.say(f"no heir of the teacher: {STEPS} steps of it take {needed:.0f} s, and it has {seconds:.0f} s")
            atomic_write(file, lambda to: torch.save({}, to))  # another call decides the same
            return {}
        design.say(
            f"an heir of the teacher and the uniform model learn for {seconds:.1f} s each: {heir.line(design.wish)}"
        )
        found = [learned(design, m, p.choice, seconds) for m, p in zip(models, points, strict=True)]
        state: dict[str, Any] = {"found": found, "choices": [p.choice for p in points]}
        state |= {"models": [m.state_dict() for m in models], "seconds": learn.clock() - began}
        atomic_write(file, lambda to: torch.save(state, to))
    kept: dict[str, Any] = torch.load(file, weights_only=True)
    if not kept:
        return {}
    design.say(f"  {kept['found'][0]:.4f} and {kept['found'][1]:.4f}")
    made = {}
    for choice, weights in zip(kept["choices"], kept["models"], strict=True):
        made[key(choice)] = pages.build(design.recipe(choice), seed=0)
        made[key(choice)].load_state_dict(weights)
    ahead = kept["found"][0] > kept["found"][1]
    point = replace(heir, metric=kept["found"][0])
    return {"models": made, "seconds": kept["seconds"], "heirs": [point], "ahead": ahead}


def learned(design: Any, model: Any, choice: Choice, seconds: float, seed: int = 0, say: Any = None) -> float:
    """The metric of a model on the rows that choose, after it has learned for so long; an heir as a teacher does, only
    faster. `seed`: in addition to the design's."""
    how: dict[str, Any] = {"most": RATE, "half": _half()} if MARK in choice else {}
    quiet = say or (lambda _: None)
    return learn.fit(model, design.task, choice.get("vocab"), seconds, seed=design.wish.seed + seed, say=quiet, **how)


def _half() -> bool:
    return bool(learn.HALVES & flags())


def _largest(design: Any) -> Any:
    """The first heir that fits; None without one."""
    if design.heirs is None:
        return None
    heirs: Heirs = design.heirs[0]
    design.heirs[1].fill(design.say)
    fitting = (p for choice in heirs.choices() if not (p := design.point(choice)).over(design.wish))
    return next(fitting, None)


def _heir(design: Any, choice: Choice) -> Any:
    heirs: Heirs = design.heirs[0]
    whole = design.taught.get("heir") or design.inherited()
    return heirs.standing(choice, whole)


def _anew(design: Any, choice: Choice) -> Any:
    """A model of the search that begins anew, with the first vectors."""
    model: Any = pages.build(design.recipe(choice), seed=design.wish.seed)
    if design.vectors is not None:
        with torch.no_grad():
            first = design.vectors[: choice["vocab"], : choice["dim"]]
            model.get_parameter("embed.tokens.weight")[: len(first)] = first
    return model
