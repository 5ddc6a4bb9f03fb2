"""The target of a design: what runs the file, how one is written, and how its time is foreseen.

    write(model, file) ── measured(file): three fresh processes ── difference(file, model): real inputs, odd lengths
    probes(rows of the table) ── script(medium), files(facts): what lies beside the file

A search knows nothing else of a target. Times of layers are differences of whole files, where a file cannot be cut:

    layer = (time(own, layer, layer) - time(own)) / 2        own: the page's own least layer of that stream
    ends  = time(ends, own) - own layer

and bytes likewise. Two layers more, so that what a file computes once is in the ends.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, ClassVar

import torch
from torch import Tensor

from anyformer.compress import few
from anyformer.core import pages
from anyformer.core.machine import processor
from anyformer.core.part import check_option
from anyformer.edge import artefact
from anyformer.edge.shared import GROUP
from anyformer.edge.space import PATHS, Choice, Space, fitting, key
from anyformer.generate.engine.processor import EXACT, flags

Run = Callable[..., Any]  # inputs by name -> logits, an array or a tensor
Probe = tuple[Callable[[], Any], int]  # what is timed; bytes beside its weights
Sums = dict[str, list[tuple[float, str]]]  # a row of the table as factors of probes
WHOLE, HELD = "whole", "held"  # of a part of the table: products in whole numbers; bits of its matrices
LENGTHS = (1, 3, 17)  # tokens of the inputs on which a mixer is tried


@dataclass(frozen=True)
class Written:
    """The report of a file. `whole`: matrices that are multiplied in whole numbers. `delegated`, `nodes`: products, and
    nodes, that the runtime's fast kernels take, of how many; None where there is no such choice."""

    whole: int = 0
    delegated: tuple[int, int] | None = None
    nodes: tuple[int, int] | None = None


class Target(ABC):
    """Base of the targets.

    Args:
        threads: of the runtime. tokens: of the longest text. products: of numbers in float32, or rounded to int8.
        coverage: the least share of what the target counts: numbers of matrices in few bits, or delegated products.

    Attributes:
        name, file: of the target, and of its file. packages, install: modules that it needs, and the command that
            gets them. kinds: values of `products`. needs, imports, opens, calls: parts of the script.
        few_bits: matrices are in few bits, and `coverage` is their share. nodes: bytes of what multiplies out one, by
            its bits, beside what the table says. beside: bytes of a group's scale and zero. rounds: of the table;
            differences of times need more. exact: products are those of the model's numbers; of other targets the
            answers are the file's. alone: the one metric that it can be asked for, and why.
    """

    name: ClassVar[str]
    file: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    install: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]] = ("float32",)
    needs: ClassVar[str]
    imports: ClassVar[str]
    opens: ClassVar[str]
    calls: ClassVar[tuple[str, str]]
    few_bits: ClassVar[bool] = True
    nodes: ClassVar[Mapping[int, int]] = {4: 0, 8: 0}
    beside: ClassVar[int] = 4
    rounds: ClassVar[int] = 12
    exact: ClassVar[bool] = True
    alone: ClassVar[tuple[str, str] | None] = None

    def __init__(
        self, threads: int = 1, tokens: int = 64, products: str = "float32", coverage: float = artefact.COVERED
    ):
        self.threads, self.tokens, self.products, self.coverage = threads, tokens, products, coverage

    @classmethod
    def check(cls, products: str = "float32") -> None:
        """Raises ImportError with the command that helps if a package is missing, ValueError for products that the
        target does not have."""
        check_option(f"--target {cls.name}", "products", products, cls.kinds)
        for name in cls.packages:
            try:
                __import__(name)
            except ImportError as error:
                raise ImportError(f"--target {cls.name} needs {name} ({error}): {cls.install}") from error

    @property
    def clock(self) -> Callable[[], float]:
        """The seconds that a row of the table is taken from: what the thread computed, if it is one. Differences of
        the time that passed say nothing on a busy machine."""
        return time.thread_time if self.threads == 1 else time.perf_counter

    @abstractmethod
    def runtime(self) -> str:
        """The runtime and its version."""

    def conditions(self) -> str:
        """The machine and the versions that times belong to: those of others cannot be compared."""
        isa = [torch.backends.cpu.get_cpu_capability(), *sorted({*EXACT} & flags())]
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{processor()}, {' '.join(isa)}, {threads}, {self.runtime()}"

    @abstractmethod
    def write(self, model: Any, path: Path, facts: Mapping[str, Any] | None = None, whole: bool = False) -> Written:
        """Writes a model whose first head reads its main input -> `logits`; nothing is left of a file that fails.

        Args:
            model: in evaluation mode; its matrices can be in few bits. facts: that the script needs.
            whole: matrices in few bits are multiplied in whole numbers.

        Raises:
            ValueError: for a model that the target cannot hold, with the reason. OSError.
        """

    @abstractmethod
    def opened(self, path: Path) -> Run:
        """The file as a function of its inputs by name -> logits, of any number of rows."""

    @abstractmethod
    def measured(self, path: Path, model: Any) -> list[list[float]]:
        """The median and the 95th percentile of the milliseconds of one row, and the bytes of memory that the model
        added, in each of three fresh processes."""

    def difference(self, path: Path, model: Any, batches: Sequence[dict[str, Tensor]]) -> float:
        """The largest |file's logits - model's| on real inputs, over the largest |logit| or 1."""
        return artefact.difference(self.opened(path), model, batches)

    def example(self, model: Any) -> dict[str, Tensor]:
        """The inputs of one row, as long as the longest text."""
        return artefact.example(model, self.tokens)

    def plan(self, model: Any, bits: int) -> list[few.Entry]:
        """Every matrix of a model: its bits in the file, or None and why."""
        return few.plan(model, bits, GROUP)

    @property
    def whole(self) -> bool:
        """True if products are of whole numbers."""
        return self.products == "int8"

    def marks(self, choice: Choice) -> Choice:
        """The part of a choice that decides the time of its layers besides their sizes."""
        return {WHOLE: 1} if self.whole else {}

    def weights(self, model: Any, entries: Sequence[few.Entry]) -> int:
        """Bytes of the weights of a model in floats, as a plan has them in the file."""
        bits, kept, total = {e.path: e.bits for e in entries if e.bits}, model.state_dict(), 0
        stored = [(n, t) for n, t in model.named_buffers() if n in kept]
        for name, weight in (*model.named_parameters(), *stored):
            b = bits.get(name.removesuffix(".weight"))
            if b is None:
                total += weight.nbytes
            else:
                groups = -(-weight.shape[1] // GROUP)
                total += weight.shape[0] * groups * (GROUP * b // 8 + self.beside) + self.nodes[b]
        return total

    def script(self, medium: Any) -> bytes:
        """The script that runs the file, of at most 40 lines."""
        text = Template(medium.script.read_text(encoding="utf-8"))
        run, made = self.calls
        return text.substitute(needs=self.needs, imports=self.imports, open=self.opens, run=run, made=made).encode()

    def files(self, model: Any, facts: Mapping[str, Any]) -> dict[str, bytes]:
        """The files of the target beside its own: the facts that the script reads."""
        return {"facts.json": json.dumps(dict(facts)).encode()}

    def probes(
        self, parts: Mapping[str, Choice], own: Choice, build: Callable[[Choice], Any], folder: Path
    ) -> tuple[dict[str, Probe], Sums]:
        """The measurements for some rows of the table, and the rows as sums of them.

        Args:
            parts: models of one layer, or of none, by the name of their row. own: the page's own least layer.
            build: a model in floats of a choice.
        """
        runs, sums = dict[str, Probe](), Sums()
        probe = self._prober(runs, build, folder)
        for name, part in parts.items():
            stream = {n: v for n, v in part.items() if "." not in n and n not in ("pool", "tied")}
            one = probe({**stream, "depth": 1, **own})
            layer = own if part["depth"] == 0 else {n: v for n, v in part.items() if "." in n}
            deep = {f"{n[:-2]}.{i}": v for i in (1, 2) for n, v in layer.items()}
            sums[name] = [(0.5, probe({**stream, "depth": 3, **own, **deep})), (-0.5, one)]
            if part["depth"] == 0:
                sums[name] = [(1, probe({**part, "depth": 1, **own})), *((-f, n) for f, n in sums[name])]
        return runs, sums

    def _prober(self, runs: dict[str, Probe], build: Callable[[Choice], Any], folder: Path) -> Callable[[Choice], str]:
        """The function that writes the file of a choice once, adds its probe to `runs`, and gives its name there."""

        def probe(choice: Choice) -> str:
            name = key(choice)
            if name not in runs:
                path = folder / f"{len(runs)}{Path(self.file).suffix}"
                runs[name] = self._probe(build(choice), choice, path)
            return name

        return probe

    def _probe(self, model: Any, choice: Choice, path: Path) -> Probe:
        """A whole file of a model as it would be deployed."""
        entries = self.plan(model, choice.get(HELD, 8))
        counted, row = self.weights(model, entries), self.example(model)
        self.write(rounded(model, entries), path, whole=WHOLE in choice)
        run = self.opened(path)
        return lambda: run(**row), path.stat().st_size - counted

    def fitted(self, space: Space, asked: Sequence[str] = ()) -> Space:
        """The space without what the target cannot hold, each with its reason; a model of one such layer is written,
        run, and compared.

        Args:
            asked: choices whose values somebody asked for: they are not left out.

        Raises:
            ValueError: naming the path, for one of these, or if no value is left.
        """

        def misfit(made: Space, name: str, value: Any) -> str:
            if name == "pool" and value == first:
                return ""
            if (why := self._refused(made, name, value)) and name in asked:
                raise ValueError(f"--target {self.name}: {PATHS[name]} = {value}: {why}")
            return why

        first = next(iter(space.model.get("pool", ("",))))  # with it each mixer is tried
        for name in ("mixer", "pool"):
            space = fitting(space, name, misfit)
        return space

    def _refused(self, space: Space, name: str, value: Any) -> str:
        """The reason why a model with this mixer or pool cannot be held, or ""."""
        small = {
            n: v[0] if n in ("mixer", "pool", "tied") else min(v) for n, v in {**space.model, **space.layer}.items()
        }
        small |= {"depth": 1, "kv_heads": 0, name: value}
        choice = {n: v for n, v in small.items() if n in space.model}
        choice |= {f"{n}.0": v for n, v in small.items() if n in space.layer}
        model = pages.build(space.recipe(space.full(choice)), seed=0).eval()
        sizes = [n for n in LENGTHS if n <= self.tokens]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.file
            try:
                self.write(model, path)
                off = self.difference(path, model, [artefact.example(model, n, rows=2) for n in sizes])
            except (ValueError, RuntimeError) as error:
                return str(error).strip().replace("\n", " ")[:300]
        return "" if off <= artefact.CLOSE else f"the file differs from the model by {off:.1e}"


def rounded(model: Any, entries: Sequence[few.Entry]) -> Any:
    """A copy with its matrices in few bits, rounded to the nearest."""
    made = copy.deepcopy(model)
    few.quantise(made, few.Work("rtn", GROUP, list(entries)))
    return made
