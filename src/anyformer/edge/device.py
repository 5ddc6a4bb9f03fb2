"""The table of a device: what each layer of a space takes there, as the file that is deployed runs.

    time(model) = ends(dim, pool) + sum over layers of layer(dim, mixer) + layer(dim, hidden) - layer(dim, least hidden)

dim stands for the stream: its width, and the patch of a picture, which decides its length. Products of whole numbers
have rows of their own.

All layers of a width are exported as one stack. The graph between two of its layers, run alone, is a row;
`ends` is a model without layers. The last two terms are of the page's own mixer: what a larger hidden width adds. Rows
are kept by processor, instruction set, threads, version and the size of a row in `edge.json` of the cache
(`$ANYFORMER_CACHE`): figures of another machine are never used. Deleting the file is safe.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from anyformer.compress import few
from anyformer.core import pages
from anyformer.core.machine import processor
from anyformer.data import sources
from anyformer.edge import artefact
from anyformer.edge.shared import GROUP
from anyformer.edge.space import STREAM, Choice, Space, key
from anyformer.generate.engine.processor import EXACT, flags
from anyformer.hub.formats.guard import atomic_write, read_json

FILE, WHOLE = "edge.json", "whole"
ROUNDS, SECONDS = 3, 0.04  # in each of which every probe runs so long; the least median counts
Row = tuple[float, int]  # milliseconds, bytes of the graph without its weights


def conditions(threads: int) -> str:
    """The machine and the versions that times belong to: those of others cannot be compared."""
    import onnxruntime

    isa = [torch.backends.cpu.get_cpu_capability(), *sorted({*EXACT} & flags())]
    return (
        f"{processor()}, {' '.join(isa)}, {threads} thread{'s' * (threads > 1)}, ONNX Runtime {onnxruntime.__version__}"
    )


class Table:
    """Times of the layers of a space on this machine.

    Args:
        threads: of the runtime. products: float32, or int8 for models in 8 bits.

    Attributes:
        rows: by the hash of what was run. took: seconds of the measurement; 0 if all rows were known.
    """

    def __init__(self, space: Space, threads: int = 1, products: str = "float32"):
        self.space, self.threads, self.products = space, threads, products
        self.key = f"{conditions(threads)}, {space.words}"
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

    def whole(self, choice: Choice) -> bool:
        """True if the products of a choice are of whole numbers."""
        return self.products == "int8" and choice.get("bits", 8) == 8

    def _signed(self, choice: Choice) -> list[tuple[int, Choice]]:
        """The parts whose rows are added up or taken away."""
        signed = [(1, _ends(choice))]
        for i in range(choice["depth"]):
            first, own, wide = _layers(self.space, choice, i)
            signed += [(1, first), (1, wide), (-1, own)]
        return [(sign, {**part, WHOLE: 1}) for sign, part in signed] if self.whole(choice) else signed

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
        """The rows of some parts: ends are models without layers; layers of one stream are one stack."""
        runs: dict[str, Callable[[], Any]] = {}
        sizes: dict[str, int] = {}
        stacks: dict[str, dict[str, Choice]] = {}
        for name, part in missing.items():
            if part["depth"] == 0:
                runs[name], sizes[name] = self._end(part, folder / f"{name}.onnx")
            else:
                stacks.setdefault(key(_stream(part)), {})[name] = part
        for parts in stacks.values():
            choice: Choice = {**_stream(next(iter(parts.values()))), "depth": len(parts)}
            for i, part in enumerate(parts.values()):
                choice |= {f"{n[:-2]}.{i}": v for n, v in part.items() if n.endswith(".0")}
            model = pages.build(self._recipe(choice), seed=0).eval()
            row = artefact.example(model, self.space.tokens)
            grids = artefact.grids_of(_in_8_bits(model)) if WHOLE in choice else {}
            for name, (run, size) in zip(parts, stack(model, row, self.threads, grids), strict=True):
                runs[name], sizes[name] = run, size
        times = timed(runs)
        return {name: (times[name], sizes[name]) for name in runs}

    def _end(self, part: Choice, path: Path) -> tuple[Callable[[], Any], int]:
        model = pages.build(self._recipe(part), seed=0).eval()
        artefact.write(model, path)
        size = path.stat().st_size - sum(t.nbytes for t in model.state_dict().values())
        if WHOLE in part:
            artefact.write(_in_8_bits(model), path, whole=True)
        run, row = artefact.opened(path, self.threads), artefact.example(model, self.space.tokens)
        return lambda: run(**row), size

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
    """The choices that decide the size of the stream, and the mark of whole numbers."""
    return {name: choice[name] for name in (*STREAM, WHOLE) if name in choice}


def _ends(choice: Choice) -> Choice:
    """The model without its layers."""
    return {**_stream(choice), **{n: v for n, v in choice.items() if n in ("pool", "tied")}, "depth": 0}


def _layers(space: Space, choice: Choice, i: int) -> tuple[Choice, Choice, Choice]:
    """As models of one layer: the mixer of layer i with the least hidden width, the page's own layer with that, and
    with the hidden width of layer i."""
    head: Choice = {**_stream(choice), "depth": 1}
    own = {f"{n}.0": values[0] for n, values in space.layer.items() if n != "hidden"}
    mixer = {f"{n.partition('.')[0]}.0": v for n, v in choice.items() if n.partition(".")[2] == str(i)}
    if "hidden" not in space.layer:
        return {**head, **mixer}, {**head, **own}, {**head, **own}
    least = {"hidden.0": min(space.layer["hidden"])}
    return {**head, **mixer, **least}, {**head, **own, **least}, {**head, **own, "hidden.0": mixer["hidden.0"]}


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


def _in_8_bits(model: Any) -> Any:
    """A copy in 8 bits, rounded to the nearest."""
    made = copy.deepcopy(model)
    few.quantise(made, few.Work("rtn", GROUP, few.plan(made, 8, GROUP)))
    return made


def stack(
    model: Any, row: Mapping[str, torch.Tensor], threads: int, grids: Mapping[str, Any] | None = None
) -> list[tuple[Callable[[], Any], int]]:
    """Each layer of a model's stack, exported and alone: a function that runs it, and the bytes of its graph.

    Args:
        row: the model's inputs. grids: matrices that are multiplied in whole numbers, by the name of their weight.
    """
    seen: list[torch.Tensor] = []
    hooks = [model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))]
    hooks += [block.register_forward_hook(lambda _, args, out: seen.append(out)) for block in model.blocks]
    try:
        with torch.no_grad():
            model(**row)
            if not all(isinstance(x, torch.Tensor) and x.shape == seen[0].shape for x in seen):
                raise ValueError("its layers do not hand one stream from one to the next: a table needs such a stack")
            values = [x.clone() for x in seen]
            seen.clear()
            made = artefact.translated(model, lambda output: {f"h{i}": x for i, x in enumerate(seen)}, grids)
    finally:
        for hook in hooks:
            hook.remove()
    return [_between(made, f"h{i}", f"h{i + 1}", values[i], row, threads) for i in range(len(model.blocks))]


def _between(
    model: Any, start: str, end: str, value: torch.Tensor, row: Mapping[str, torch.Tensor], threads: int
) -> tuple[Callable[[], Any], int]:
    """The graph that computes one value from another, as a session; what it needs of the inputs is computed in it."""
    import onnx

    graph, makers = model.graph, dict[str, Any]()
    for node in graph.node:
        makers |= dict.fromkeys(node.output, node)
    wanted, used, kept = [end], {start}, []
    while wanted:
        name = wanted.pop()
        if name in used:
            continue
        used.add(name)
        if name in makers and makers[name] not in kept:
            kept.append(makers[name])
            wanted += [n for n in makers[name].input if n]
            used |= set(makers[name].output)
    place = {id(node): i for i, node in enumerate(graph.node)}
    nodes = sorted(kept, key=lambda node: place[id(node)])
    stream = onnx.helper.make_tensor_value_info(start, onnx.TensorProto.FLOAT, [1, None, value.shape[-1]])
    inputs = [stream, *(i for i in graph.input if i.name in used)]
    outputs = [onnx.helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, None)]
    weights = [w for w in graph.initializer if w.name in used]
    alone = onnx.helper.make_graph(nodes, "layer", inputs, outputs, weights)
    whole = onnx.helper.make_model(alone, opset_imports=model.opset_import, ir_version=model.ir_version)
    session = artefact.session(whole.SerializeToString(), threads)
    feed = {i.name: (value if i.name == start else row[i.name]).numpy() for i in inputs}
    return lambda: session.run(None, feed), sum(n.ByteSize() for n in nodes) + sum(len(w.name) + 8 for w in weights)


def timed(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Milliseconds of each: rounds over all of them, the least median of each, so that a busy moment hits all alike."""
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(ROUNDS):
        for name, run in runs.items():
            took, ends = list[float](), time.perf_counter() + SECONDS
            run()
            while time.perf_counter() < ends or len(took) < 5:
                began = time.perf_counter()
                run()
                took.append(time.perf_counter() - began)
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
