"""act in an environment, for the returns that are asked for."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer act runs/cartpole --env CartPole-v1 --target 50 200 --episodes 10"


def act(
    model: str,
    *,
    env: str = "",
    target: list[str] | None = None,
    episodes: int = 10,
    seed: int = 0,
    temperature: float = 1.0,
    json: bool = False,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Prints, for each return that is asked for, what the episodes reached.

    Args:
        model: a directory, of a model that `anyformer train --task act` or clone made.
        env: the name of an environment of gymnasium.
        target: the returns that are asked for, one after another; by default the best one of training.
        episodes: for each.
        seed: of the first episode; the next one has the next number.
        temperature: 1 draws actions as the model says, 0 takes the likeliest.
        json: print the returns of all episodes as JSON.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.
    """
    from anyformer.generate import rollout

    if not env:
        raise ValueError("--env names the environment, e.g. --env CartPole-v1")
    wanted = [number(text) for text in target] if target else [None]
    loaded = models.load(model, text=False, task=task, ignore=ignore)
    runs = [rollout(loaded, env, one, episodes, seed, temperature) for one in wanted]
    if json:
        results = ((some[0].asked, [e.reached for e in some], [e.cut for e in some]) for some in runs)
        print(plain.dump([dict(zip(("asked", "reached", "cut"), one, strict=True)) for one in results]))
        return
    rows: list[tuple[str, ...]] = [("asked", "reached", "deviation", "least", "most", "steps")]
    for some in runs:
        reached = [e.reached for e in some]
        numbers = statistics.fmean(reached), statistics.pstdev(reached), min(reached), max(reached)
        steps = statistics.fmean(len(e.rewards) for e in some)
        asked = "nothing" if some[0].asked is None else f"{some[0].asked:g}"
        rows.append((asked, *(f"{n:.1f}" for n in (*numbers, steps))))
    print(plain.table(rows, right=range(6)))
    if cut := sum(e.cut for some in runs for e in some):
        longest = loaded.processor.longest
        print(f"{cut} episodes were cut after {longest} steps, the length of the longest training episode")


def number(text: str) -> float | None:
    """A return that is asked for."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--target takes numbers, got {text!r}") from None


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(act)


def run(args: Any) -> None:
    """Does it."""
    act(**pick(args, act))
