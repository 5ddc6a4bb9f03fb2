"""The table of a device: what each layer of a space takes there, as the file that is deployed runs.

    time(model) = ends(dim, pool) + sum over layers of layer(dim, mixer) + layer(dim, hidden) - layer(dim, least hidden)

dim stands for the stream: its width, and the patch of a picture, which decides its length. Products of whole numbers
have rows of their own, and so have bits where they cost time.

The target says what is run for a row (`edge.targets`). The last two terms are of the page's own mixer: what a larger
hidden width adds. Rows are kept by processor, instruction set, threads, runtime, version and the size of a row in
`edge.json` of the cache (`$ANYFORMER_CACHE`): figures of another machine are never used. Deleting the file is safe.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from anyformer.core import pages
from anyformer.data import sources
from anyformer.edge.space import STREAM, Choice, Space
from anyformer.edge.targets import Target
from anyformer.edge.targets.base import HELD, WHOLE
from anyformer.hub.formats.guard import atomic_write, read_json

FILE = "edge.json"
SECONDS = 0.04  # that every probe runs in each round
LEAST = 1e-6  # milliseconds of a row: a difference of times can be below zero
Row = tuple[float, int]  # milliseconds, bytes of the graph without its weights


class Table:
    """Times of the layers of a space on this machine.

    Args:
        target: what runs the files.

    Attributes:
        rows: by the hash of what was run. took: seconds of the measurement; 0 if all rows were known.
    """

    def __init__(self, space: Space, target: Target):
        self.space, self.target = space, target
        self.key = f"{target.conditions()}, {space.words}"
        self.took, self._names = 0.0, dict[str, str]()
        self.rows: dict[str, Row] = {k: (float(v[0]), int(v[1])) for k, v in _kept().get(self.key, {}).items()}

    def milliseconds(self, choice: Choice) -> float:
        """The predicted time of one row."""
        return self._sum(choice, 0)

    def graph(self, choice: Choice) -> int:
        """The predicted bytes of the file besides its weights."""
        return round(self._sum(choice, 1))

    def _sum(self, choice: Choice, what: int) -> float:
        self.measure([choice])
        return sum(sign * self.rows[self._name(part)][what] for sign, part in self._signed(choice))

    def _signed(self, choice: Choice) -> list[tuple[int, Choice]]:
        """The parts whose rows are added up or taken away."""
        signed = [(1, _ends(choice))]
        for i in range(choice["depth"]):
            first, own, wide = _layers(self.space, choice, i)
            signed += [(1, first), (1, wide), (-1, own)]
        marks = self.target.marks(choice)
        return [(sign, {**part, **marks}) for sign, part in signed]

    def fill(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Measures every row that the space can ask for, about a minute; those known are not measured again."""
        bits = self.space.model.get("bits", (8,))
        self.measure([{**choice, "bits": b} for b in bits for choice in _every(self.space)], say)

    def measure(self, choices: Iterable[Choice], say: Callable[[str], None] = lambda _: None) -> None:
        """Measures the rows of some choices."""
        missing: dict[str, Choice] = {}
        for choice in choices:
            parts = [part for _, part in self._signed(choice)]
            missing |= {self._name(p): p for p in parts if self._name(p) not in self.rows}
        if not missing:
            return
        began = time.perf_counter()
        say(f"measuring {len(missing)} layers on {self.key}")
        with tempfile.TemporaryDirectory() as folder:
            self.rows |= self._timed(missing, Path(folder))
        self.took += time.perf_counter() - began
        try:
            file = sources.cache() / FILE
            file.parent.mkdir(parents=True, exist_ok=True)
            kept = _kept()
            atomic_write(file, json.dumps({**kept, self.key: {**kept.get(self.key, {}), **self.rows}}).encode())
        except OSError:  # measured again next time
            pass

    def _timed(self, missing: dict[str, Choice], folder: Path) -> dict[str, Row]:
        """The rows of some parts: sums of what the target runs for them."""
        runs, sums = self.target.probes(missing, _own(self.space), self._built, folder)
        times, made = (
            timed({name: run for name, (run, _) in runs.items()}, self.target.rounds, self.target.clock),
            dict[str, Row](),
        )
        for name, terms in sums.items():
            took = sum(factor * times[probe] for factor, probe in terms)
            made[name] = max(took, LEAST), round(sum(factor * runs[probe][1] for factor, probe in terms))
        return made

    def _built(self, part: Choice) -> Any:
        return pages.build(self._recipe(part), seed=0).eval()

    def _recipe(self, part: Choice) -> Any:
        """A recipe with a small table of tokens: its size does not change the time of a look-up."""
        small = {"vocab": min(self.space.model["vocab"])} if "vocab" in self.space.model else {}
        return self.space.recipe({**part, **small})

    def _name(self, part: Choice) -> str:
        known = json.dumps(part, sort_keys=True)
        if known not in self._names:
            recipe = self._recipe(part)
            content = recipe if part["depth"] == 0 else recipe["blocks.0"]
            size = [*_stream(part).values(), self.space.words if self.space.sizes else self.space.tokens]
            text = json.dumps([content.to_json(), *size], sort_keys=True)
            self._names[known] = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self._names[known]


def _stream(choice: Choice) -> Choice:
    """The choices that decide the size of the stream, and the marks of the target."""
    return {name: choice[name] for name in (*STREAM, WHOLE, HELD) if name in choice}


def _ends(choice: Choice) -> Choice:
    """The model without its layers."""
    return {**_stream(choice), **{n: v for n, v in choice.items() if n in ("pool", "tied")}, "depth": 0}


def _layers(space: Space, choice: Choice, i: int) -> tuple[Choice, Choice, Choice]:
    """As models of one layer: the mixer of layer i with the least hidden width, the page's own layer with that, and
    with the hidden width of layer i."""
    head: Choice = {**_stream(choice), "depth": 1}
    own = {n: v for n, v in _own(space).items() if n != "hidden.0"}
    mixer = {f"{n.partition('.')[0]}.0": v for n, v in choice.items() if n.partition(".")[2] == str(i)}
    if "hidden" not in space.layer:
        return {**head, **mixer}, {**head, **own}, {**head, **own}
    least = {"hidden.0": min(space.layer["hidden"])}
    return {**head, **mixer, **least}, {**head, **own, **least}, {**head, **own, "hidden.0": mixer["hidden.0"]}


def _own(space: Space) -> Choice:
    """The page's own layer with the least hidden width."""
    own = {f"{n}.0": values[0] for n, values in space.layer.items()}
    return {**own, **({"hidden.0": min(space.layer["hidden"])} if "hidden" in space.layer else {})}


def _every(space: Space) -> list[Choice]:
    """Choices whose rows are all that the space can ask for."""
    layers: list[Choice] = [{}]
    for name, values in space.layer.items():
        layers = [{**layer, f"{name}.0": value} for layer in layers for value in values]
    ends = [{}, *({"pool": p} for p in space.model.get("pool", ()))]
    ends = [{**e, **({"tied": t} if t is not None else {})} for e in ends for t in space.model.get("tied", (None,))]
    ends = [e for e in ends if "pool" in e or "pool" not in space.model]
    names = [name for name in STREAM if name in space.model]
    streams = [dict(zip(names, of, strict=True)) for of in itertools.product(*(space.model[name] for name in names))]
    return [
        space.full({**stream, "depth": 1, **end, **layer})
        for stream in streams for n, end in enumerate(ends) for layer in (layers if n == 0 else layers[:1])
    ]  # fmt: skip


def timed(
    runs: dict[str, Callable[[], Any]], rounds: int = 3, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Milliseconds of each: rounds over all of them, the least median of each, so that a busy moment hits all alike."""
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            took, ends = list[float](), time.perf_counter() + SECONDS
            run()
            while time.perf_counter() < ends or len(took) < 5:
                began = clock()
                run()
                took.append(clock() - began)
            least[name] = min(least[name], sorted(took)[len(took) // 2] * 1e3)
    return least


def _kept() -> dict[str, Any]:
    """The cache; a damaged one counts as empty."""
    try:
        content = read_json(sources.cache() / FILE)
    except (OSError, ValueError):
        return {}
    valid = isinstance(content, dict) and all(
        isinstance(rows, dict) and all(isinstance(r, list) and len(r) == 2 and r[0] > 0 for r in rows.values())
        for rows in content.values()
    )
    return content if valid else {}
