"""Does a model that is asked for a return reach it? CartPole and Acrobot, from episodes of mixed quality, in minutes.

    python examples/decisions.py --out runs/decisions --into docs/decisions.md    # prints the table, writes it there

For each environment, controllers written here (a line of code each) act with a share of their actions taken blindly,
another share in each episode: from hopeless to good. Their episodes, seeded, are what is learned from. Then, with as
many steps of the same model each, five seeds:

- act: the Decision Transformer, asked for several returns;
- clone: behaviour cloning, the same model without returns, from all episodes;
- clone, best tenth: the same from the tenth of the episodes with the highest returns.

Actions are drawn as the models say them. Every number is the mean over the seeds of the mean of their episodes, with
the deviation between seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import documents
import gymnasium
import numpy as np
import torch

from anyformer.generate import rollout
from anyformer.train import train

BEGIN, END = "<!-- table -->", "<!-- end -->"
Controller = Callable[[np.ndarray], int]


def pole(state: np.ndarray) -> int:
    """Pushes the cart to the side to which the pole falls."""
    return int(state[2] + 0.3 * state[3] + 0.02 * state[0] + 0.05 * state[1] > 0)


def swing(state: np.ndarray) -> int:
    """Turns the joint the way in which the lower arm moves, which feeds energy into the swing."""
    return 2 if state[5] > 0 else 0


ENVIRONMENTS: dict[str, tuple[Controller, tuple[float, ...]]] = {  # with the returns that are asked for
    "CartPole-v1": (pole, (25.0, 50.0, 100.0, 200.0, 500.0)),
    "Acrobot-v1": (swing, (-400.0, -300.0, -200.0, -150.0, -100.0)),
}


def collect(name: str, control: Controller, episodes: int, path: Path) -> list[float]:
    """Episodes of mixed quality, one a line; their returns."""
    env: Any = gymnasium.make(name)
    rng, returns = np.random.default_rng(0), list[float]()
    with path.open("w", encoding="utf-8") as out:
        for number in range(episodes):
            blind = rng.uniform(0.0, 1.0)  # the share of actions that are drawn without looking
            state, _ = env.reset(seed=number)
            episode: dict[str, list[Any]] = {"states": [], "actions": [], "rewards": []}
            ended = False
            while not ended:
                action = int(rng.integers(env.action_space.n)) if rng.random() < blind else control(state)
                episode["states"].append([round(float(x), 6) for x in state])
                episode["actions"].append(action)
                state, reward, terminated, truncated, _ = env.step(action)
                episode["rewards"].append(float(reward))
                ended = terminated or truncated
            out.write(json.dumps(episode) + "\n")
            returns.append(sum(episode["rewards"]))
    env.close()
    return returns


def best(path: Path, returns: list[float], share: float = 0.1) -> Path:
    """The file with the episodes of the highest returns alone."""
    order = np.argsort(returns, kind="stable")[::-1][: round(share * len(returns))]
    lines, chosen = path.read_text("utf-8").splitlines(), path.with_name(f"best-{path.name}")
    chosen.write_text("".join(lines[i] + "\n" for i in sorted(order.tolist())), "utf-8")
    return chosen


def learned(task: str, data: Path, seed: int, args: argparse.Namespace) -> Any:
    """A model of a task; all have the same size and as many steps."""
    out = args.out / f"{data.stem}-{task}-{seed}"
    return train(
        "decision_transformer", overrides={"dim": args.dim}, task=task, data=data, out=out, steps=args.steps,
        batch=args.batch, context=args.context, lr=2e-3, seed=seed, eval_every=0, save_every=0, quiet=True,
        cache=str(args.out / "cache"),
    ).model  # fmt: skip


def reached(name: str, path: Path, top: Path, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """The mean return of every model of a seed, by its label in the table."""
    torch.set_num_threads(1)
    cloned = {"clone": learned("clone", path, seed, args), "clone, best tenth": learned("clone", top, seed, args)}
    act = learned("act", path, seed, args)
    runs: dict[str, tuple[Any, float | None]] = {label: (model, None) for label, model in cloned.items()}
    runs |= {f"act, asked for {target:g}": (act, target) for target in ENVIRONMENTS[name][1]}
    means = {}
    for label, (model, target) in runs.items():
        some = rollout(model, name, target, args.episodes, seed=10_000 + 1000 * seed)
        means[label] = statistics.fmean(e.reached for e in some)
    print(f"{name}, seed {seed}: " + "; ".join(f"{n} {v:.0f}" for n, v in means.items()), flush=True)
    return means


def measured(name: str, args: argparse.Namespace) -> list[str]:
    """The rows of an environment in the table."""
    path = args.out / f"{name}.jsonl"
    returns = collect(name, ENVIRONMENTS[name][0], args.collected, path)
    top = best(path, returns)
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        every = list(pool.map(partial(reached, name, path, top, args=args), range(args.seeds)))
    quarters = ", ".join(f"{q:.0f}" for q in np.quantile(returns, (0, 0.25, 0.5, 0.75, 0.9, 1)))
    first = "episodes of training: least, quarter, half, three quarters, nine tenths, most"
    rows = [f"| {name} | {label} | {summary([run[label] for run in every])} |" for label in every[0]]
    return [f"| {name} | {first} | {quarters} |", *rows]


def summary(values: list[float]) -> str:
    """Mean and deviation between seeds."""
    return f"{statistics.fmean(values):.1f} ± {statistics.pstdev(values):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/decisions"))
    parser.add_argument("--into", type=Path, help=f"a text whose table, between {BEGIN} and {END}, is written anew")
    parser.add_argument("--environments", nargs="+", default=list(ENVIRONMENTS))
    sizes = {"collected": 400, "steps": 500, "batch": 32, "context": 10, "dim": 48, "seeds": 5, "episodes": 15}
    for name, value in {**sizes, "processes": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    table = ["| environment | | reached |", "|---|---|---|"]
    for name in args.environments:
        table += measured(name, args)
    print("\n".join(table))
    if args.into is not None:
        documents.put(args.into, BEGIN, END, "\n".join(table))


if __name__ == "__main__":
    main()
