"""A transformer designed for a budget: searched, measured, trained, stored. The work of `anyformer edge`.

    space ─ table of the device ─ teacher ─ shared weights ─ search ─ the best eight measured ─ a race ─ artefact

The page's own uniform models are among the first that the search looks at, and the largest that fits is always measured
and in the race: what a search finds has to be better than that, at equal time of learning.
Everything that took long is kept in the folder: a killed run goes on where it was, and several processes share one
search (`study.db`). The artefact, `model/`, appears whole or not at all.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from anyformer.core import pages
from anyformer.data import sources
from anyformer.edge import artefact, learn, shared
from anyformer.edge.device import Table
from anyformer.edge.heirs import MARK, Heirs, planned
from anyformer.edge.learn import Say
from anyformer.edge.medium import Texts
from anyformer.edge.running import reading
from anyformer.edge.shared import Shared
from anyformer.edge.space import Choice, Space, key, space
from anyformer.edge.targets.base import rounded
from anyformer.edge.task import read
from anyformer.edge.trial import trial
from anyformer.edge.wish import Wish
from anyformer.hub.formats.guard import atomic_write, claim, read_json

BEST = 8  # architectures that are measured
TEACHER = 0.4  # of the time, at most
PARTS = {"shared": 0.15, "search": 0.05, "race": 0.2}  # of the rest; what is left trains the chosen one
LED = {"shared": 0.05, "search": 0.02, "race": 0.2}  # the same, if an heir is ahead in the trial
POPULATION, TRIED = 20, 400
WORST = -1e3  # in the place of a metric that was not computed
PLAIN = 3  # uniform models among the first of the search
SPEC, STUDY = "spec.json", "study.db"


class Infeasible(Exception):
    """No model of the space fits. `nearest`: the two that miss the budget least, and by what."""

    def __init__(self, nearest: list[Point], wish: Wish):
        self.nearest = nearest[:2]
        lines = [f"no model that was tried has at most {wish.size:,} bytes and {wish.latency:g} ms; the nearest are"]
        super().__init__("\n".join([*lines, *(f"  {point.line(wish)}" for point in self.nearest)]))


@dataclass
class Point:
    """One architecture: predicted bytes and milliseconds, what was measured, `Task.measure` with shared weights."""

    choice: Choice
    size: int
    milliseconds: float
    flops: int = 0
    metric: float | None = None
    real_size: int | None = None
    real: list[list[float]] = field(default_factory=list)  # of each process: median, 95th percentile, bytes of memory

    @property
    def p50(self) -> float:
        """The largest median of the processes, or what the table says."""
        return max(r[0] for r in self.real) if self.real else self.milliseconds

    @property
    def goodness(self) -> float:
        """The metric, higher is better; below any if it was not computed."""
        return WORST if self.metric is None else self.metric

    def over(self, wish: Wish) -> float:
        """The share by which it misses the budget most; 0 if it fits."""
        shares = [(self.real_size or self.size) / wish.size, self.p50 / wish.latency]
        if wish.memory is not None and self.real:
            shares.append(max(r[2] for r in self.real) / wish.memory)
        return max(0.0, max(shares) - 1)

    def line(self, wish: Wish) -> str:
        """The point for people."""
        kind = "measured" if self.real else "predicted"
        miss = f", {self.over(wish):.0%} over" if self.over(wish) else ""
        return f"{(self.real_size or self.size):,} bytes, {self.p50:.3g} ms {kind}{miss}: {key(self.choice)}"


class Design:
    """One run in a folder.

    Args:
        teacher: the loaded model of `wish.teacher`.

    Raises:
        ValueError: for a wish, task, space or folder that does not fit. ImportError.
    """

    def __init__(self, wish: Wish, out: str | Path, teacher: Any = None, say: Say = print):
        wish.check()
        self.wish, self.out, self.teacher, self.say = wish, Path(out).expanduser(), teacher, say
        medium = reading(self._base(2), wish.tokens, wish.side, wish.seconds)
        if teacher is not None:
            learn.check_teacher(teacher, medium)
            assert isinstance(medium, Texts)
            medium.source = teacher.tokenizer
        self.task = read(wish.task, wish.metric, medium, wish.seed, wish.test)
        if medium.loss:
            say(medium.loss)
        base = medium.fitted(self._base(self.task.outputs))
        self.target = wish.runtime()
        self.space = self.target.fitted(space(base, wish.tokens, wish.values, medium.sizes()), tuple(wish.values or ()))
        self.heirs = self._heirs(base)
        self._claim()
        with FileLock(self.out / "shared.lock"):
            medium.learned(self.task.parts["learn"], self._vocabs(), self.out)
        self.table = Table(self.space, self.target)
        self.tried: dict[str, Any] = {}
        self.parts = PARTS
        self.seconds = wish.hours * 3600
        self.vectors: torch.Tensor | None = None
        self.left, self.taught = self.seconds, dict[str, Any]()
        self._sizes: dict[str, tuple[int, float]] = {}

    def _heirs(self, base: Any) -> tuple[Heirs, Table] | None:
        """The heirs of the teacher and their table; None without a teacher, or if it has none."""
        if self.teacher is None:
            return None
        try:
            heirs = Heirs(self.teacher, base, self.space)
        except ValueError as error:
            self.say(f"no student begins with the teacher's layers: {error}")
            return None
        return heirs, Table(heirs.space, self.target)

    def _vocabs(self) -> tuple[int | None, ...]:
        """The sizes of all tokenizers."""
        own = self.space.model.get("vocab", (None,))
        return own if self.heirs is None else tuple({*own, *self.heirs[0].space.model["vocab"]})

    def recipe(self, choice: Choice) -> Any:
        """The recipe of a choice, of the search or of an heir."""
        return self._of(choice)[0].recipe(choice)

    def _of(self, choice: Choice) -> tuple[Space | Heirs, Table]:
        if MARK in choice:
            assert self.heirs is not None
            return self.heirs
        return self.space, self.table

    def _base(self, outputs: int) -> Any:
        """The page's recipe: a decoder of texts as it is, else with a head of so many outputs."""
        bare = pages.recipe(self.wish.model, self.wish.of)
        language = not reading(bare, self.wish.tokens).labelled
        return bare if language else pages.recipe(self.wish.model, self.wish.of, task="classify", classes=outputs)

    def _claim(self) -> None:
        """The folder is this wish's: one that holds another is not touched."""
        claim(self.out, SPEC, {n: v for n, v in asdict(self.wish).items() if n != "trials"})

    def point(self, choice: Choice) -> Point:
        """The size and the time of a choice, by counting and by the table."""
        return Point(choice, self.size(choice), self._of(choice)[1].milliseconds(choice))

    def size(self, choice: Choice) -> int:
        """Bytes of the artefact of a choice: weights counted, nodes by the table, the tokenizer and the script."""
        return self._counted(choice)[0]

    def _counted(self, choice: Choice) -> tuple[int, float]:
        """The bytes, and the share of the numbers of matrices that can be in few bits."""
        if (known := key(choice)) not in self._sizes:
            model = pages.empty(self.recipe(choice))
            entries = planned(model, choice, self.target)
            total = self._of(choice)[1].graph(choice) + self.beside(choice) + self.target.weights(model, entries)
            self._sizes[known] = total, artefact.covered(model, entries)
        return self._sizes[known]

    def beside(self, choice: Choice) -> int:
        """Bytes of the files beside the graph."""
        medium, vocab = self.task.medium, choice.get("vocab")
        files = {**medium.files(vocab), **self.target.files(pages.empty(self.space.recipe(choice)), self.facts(vocab))}
        return len(self.target.script(medium)) + sum(map(len, files.values()))

    def facts(self, vocab: int | None) -> dict[str, Any]:
        """The facts that the script reads."""
        task = self.task
        made = {"classes": task.classes, "mean": task.mean, "deviation": task.deviation, "metric": self.wish.metric}
        return {**task.medium.facts(), **made, "vocab": vocab}

    def run(self) -> tuple[Shared, list[Point]]:
        """The shared weights, and the best models of the search, measured.

        Raises:
            Infeasible: if nothing fits.
        """
        torch.manual_seed(self.wish.seed)
        self.table.fill(self.say)
        self._possible()
        weights = self._prepared()
        self._search(weights)
        with FileLock(self.out / "finish.lock"):
            return weights, self._measured(weights)

    def _possible(self) -> None:
        """Raises Infeasible at once if no model that the table knows fits."""
        noise = random.Random(self.wish.seed)
        some = [self.space.end(False, noise) for _ in range(8)] + [self.space.drawn(noise) for _ in range(TRIED)]
        some += [
            {**self.space.end(False, noise), "bits": min(self.space.model.get("bits", (8,)))},
            *self.space.uniform(),
        ]
        points = sorted((self.point(c) for c in some), key=lambda p: p.over(self.wish))
        if points[0].over(self.wish):
            raise Infeasible(_distinct(points), self.wish)
        most = max(some, key=lambda c: self._counted(c)[1])
        if self.target.few_bits and self._counted(most)[1] < self.wish.coverage:
            model = pages.empty(self.space.recipe(most))
            artefact.check_covered(model, planned(model, most, self.target), self.wish.coverage)

    def _prepared(self) -> Shared:
        """The teacher's scores and the shared weights, made by one process while others wait."""
        with FileLock(self.out / "shared.lock"):
            self.left = self.seconds
            if self.teacher is not None:
                self.vectors = self.first()
                self._teach()
                self.tried = trial(self)
                self.left -= self.tried.get("seconds", 0)
                self.parts = LED if self.tried.get("ahead") else PARTS
            weights = Shared(self.space, self.wish.seed, self.vectors)
            seconds = self.parts["shared"] * self.left
            self.say(f"all models share their weights for {seconds:.0f} s")
            steps = shared.train(weights, self.task, seconds, self.out / "shared.pt", self.wish.seed, self.say)
            self.say(f"  {steps:,} steps")
        return weights.eval()

    def first(self) -> torch.Tensor | None:
        """The first vectors of the tokens, from the teacher's table."""
        medium = self.task.medium
        assert isinstance(medium, Texts)
        return learn.table_of(self.teacher, medium.tokenizers[self.space.largest], max(self.space.model["dim"]))

    def _teach(self) -> None:
        """The scores of the teacher: of this run, or of an earlier one of the same rows that had at least as much time.
        A teacher that cannot learn from all rows in its share of the time says nothing, and costs nothing."""
        file, learned, share = self.out / "soft.pt", self.task.parts["learn"], TEACHER * self.seconds
        kept = sources.cache() / "edge" / f"{self._lesson()}.pt"
        if not file.exists() and kept.exists():
            lesson = torch.load(kept, weights_only=True)
            if lesson["share"] >= share:
                self.say(f"the teacher's scores are those of an earlier run: {self.wish.metric} {lesson['choose']:.4f}")
                atomic_write(file, lambda to: torch.save({**lesson, "seconds": 0.0}, to))
        if not file.exists():
            began = learn.clock()
            taught = learn.teach(self.task, self.teacher, share, self.wish.more, self.out / "teacher", self.say)
            state: dict[str, Any] = {"share": share, "seconds": learn.clock() - began, "score": None}
            if taught is not None:
                state |= {"texts": learned.items, "soft": learned.soft, "choose": taught.choose, "score": taught.test}
                state["heir"] = self.inherited(taught.model)
                kept.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(kept, lambda to: torch.save(state, to))
            atomic_write(file, lambda to: torch.save(state, to))
        self.taught = torch.load(file, weights_only=True)
        if self.taught["score"] is not None:
            learned.items, learned.soft, learned.ids = self.taught["texts"], self.taught["soft"], {}
        self.left = self.seconds - self.taught["seconds"]

    def inherited(self, taught: Any = None) -> dict[str, torch.Tensor] | None:
        """The weights that heirs are cut from; None if there are none."""
        medium = self.task.medium
        assert isinstance(medium, Texts)
        return None if self.heirs is None else self.heirs[0].weights(medium.tokenizers[self.space.largest], taught)

    def standing(self, weights: Shared, choice: Choice) -> Any:
        """A model of a choice with weights of its own: those of the trial, else of all models."""
        known = self.tried.get("models", {}).get(key(choice))
        return weights.standing(choice) if known is None else known

    def _lesson(self) -> str:
        """A name for what a teacher learns and reads: the same rows, the same weights."""
        assert self.teacher is not None
        about = (self.wish.metric, self.wish.tokens, self.wish.seed, self.wish.more, self.space.largest)
        found = hashlib.sha256(repr(about).encode())
        for part in self.task.parts.values():
            found.update(repr((part.items, part.labels.tolist())).encode())
        for name, weight in self.teacher.state_dict().items():
            found.update(f"{name} {weight.double().sum():.17g} {weight.double().square().sum():.17g}".encode())
        return found.hexdigest()[:32]

    def _search(self, weights: Shared) -> None:
        """NSGA-II over metric, bytes and milliseconds, within the budget."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        seconds = self.parts["search"] * self.left
        self.say(f"searching for {seconds:.0f} s, at most {self.wish.trials} models")
        seed = self.wish.seed + len(self._trials())
        self.study.sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)

        def objective(trial: Any) -> tuple[float, int, float]:
            choice = self.space.make(trial.suggest_categorical)
            point = self.point(choice)
            trial.set_user_attr("choice", choice)
            trial.set_constraint("over", point.over(self.wish))
            metric = WORST if point.over(self.wish) else self.score(weights, choice)
            return metric, point.size, point.milliseconds

        for point in self.plain()[:PLAIN]:
            self.study.enqueue_trial(point.choice, skip_if_exists=True)
        ends = learn.clock() + seconds
        while learn.clock() < ends and len(self._trials()) < self.wish.trials:
            self.study.optimize(objective, n_trials=1)
        trials = self._trials()
        self.say(f"  {len(trials)} models, {sum(t.values[0] > WORST for t in trials)} within the budget")

    @functools.cached_property
    def study(self) -> Any:
        """The search, which several processes share by its file."""
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.create_study(
                storage=f"sqlite:///{self.out / STUDY}", study_name="edge", load_if_exists=True,
                directions=["maximize", "minimize", "minimize"],
            )  # fmt: skip

    def _trials(self) -> list[Any]:
        import optuna

        return self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))

    def score(self, weights: Shared, choice: Choice) -> float:
        """The metric of a choice with the shared weights, rounded, on the first rows that choose."""
        vocab, every = choice.get("vocab"), self.task.parts["choose"]
        self.task.medium.lengths(every, vocab)  # once for all choices
        some = every.first(self.task.medium.looked)
        return self.task.measure(self.task.answers(weights.run(choice, rounded=True), some, vocab), some)

    def points(self) -> list[Point]:
        """All models of the search, the best first; each once."""
        found: dict[str, Point] = {}
        for one in self._trials():
            choice = one.user_attrs["choice"]
            metric, size, time = one.values
            found[key(choice)] = Point(choice, int(size), time, metric=metric if metric > WORST else None)
        return sorted(found.values(), key=lambda p: (p.over(self.wish) > 0, p.over(self.wish), -p.goodness))

    def plain(self) -> list[Point]:
        """The uniform models of the page that fit, the largest first: shrinking without a search."""
        fitting = [p for c in self.space.uniform() if not (p := self.point(c)).over(self.wish)]
        alike = {"bits": 8} | {n: values[0] for n, values in self.space.model.items() if n == "patch"}
        return sorted(fitting, key=lambda p: (-self.size({**p.choice, **alike}), p.choice.get("patch", 0)))

    def _measured(self, weights: Shared) -> list[Point]:
        """The best models, exported and run in fresh processes.

        Raises:
            Infeasible: if none of them fits.
        """
        file = self.out / "measured.json"
        best = [Point(**p) for p in read_json(file)] if file.exists() else self._run_best(weights)
        atomic_write(file, json.dumps([vars(p) for p in best]).encode())
        if all(p.over(self.wish) for p in best):
            raise Infeasible(sorted(best, key=lambda p: p.over(self.wish)), self.wish)
        return best

    def _run_best(self, weights: Shared) -> list[Point]:
        best, plain = [*self.tried.get("heirs", []), *self.points()][:BEST], self.plain()[:1]
        if plain and all(key(p.choice) != key(plain[0].choice) for p in best):
            best = [*best[: BEST - 1], replace(plain[0], metric=self.score(weights, plain[0].choice))]
        self.say(f"the best {len(best)} are exported and measured")
        folder, target = self.out / "candidates", self.target
        for number, point in enumerate(best):
            model, path = self.standing(weights, point.choice), folder / f"{number}{Path(target.file).suffix}"
            model = rounded(model, planned(model, point.choice, target)).eval()
            target.write(model, path, whole=target.whole)
            point.real = target.measured(path, model)
            point.real_size = path.stat().st_size + self.beside(point.choice)
            path.unlink()
        folder.rmdir()
        return best


def _distinct(points: Sequence[Point]) -> list[Point]:
    """Points of which no two have the same predictions."""
    return list({(p.size, round(p.milliseconds, 4)): p for p in reversed(points)}.values())[::-1]
