"""ONNX: one file for ONNX Runtime, in which matrices in few bits are floats once it is loaded (`edge.artefact`).

The graph can be cut: all layers of a stream are exported as one stack, and the graph between two of its layers, run
alone, is a row of the table; the ends are a model without layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from anyformer.compress import few
from anyformer.edge import artefact, matrices
from anyformer.edge.shared import GROUP
from anyformer.edge.space import STREAM, Choice, key
from anyformer.edge.targets.base import WHOLE, Probe, Sums, Target, Written, rounded


class Onnx(Target):
    """ONNX Runtime."""

    name, file, packages = "onnx", "model.onnx", ("onnx", "onnxscript", "onnxruntime")
    install = 'pip install "anyformer[engine]"'
    kinds, rounds = ("float32", "int8"), 3
    needs, imports = "onnxruntime", "import onnxruntime"
    opens = """\
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
facts = json.loads(session.get_modelmeta().custom_metadata_map["anyformer"])"""
    calls = "session.run(None, ", ")[0]"

    @property
    def nodes(self) -> Mapping[int, int]:  # type: ignore[override]
        return {8: matrices.NODES[8], 4: matrices.NODES[4] + self.whole * matrices.WHOLE_NODES}

    @property
    def clock(self) -> Callable[[], float]:
        return time.perf_counter

    def runtime(self) -> str:
        import onnxruntime

        return f"ONNX Runtime {onnxruntime.__version__}"

    def write(self, model: Any, path: Path, facts: Mapping[str, Any] | None = None, whole: bool = False) -> Written:
        return Written(artefact.write(model, path, facts, whole))

    def opened(self, path: Path) -> Any:
        return artefact.opened(path, self.threads)

    def measured(self, path: Path, model: Any) -> list[list[float]]:
        return artefact.measured(path, self.example(model), self.threads)

    def files(self, model: Any, facts: Mapping[str, Any]) -> dict[str, bytes]:
        """None: the facts are in the file."""
        return {}

    def fitted(self, space: Any, asked: Any = ()) -> Any:
        """The space: the table exports each layer of it."""
        return space

    def probes(
        self, parts: Mapping[str, Choice], own: Choice, build: Callable[[Choice], Any], folder: Path
    ) -> tuple[dict[str, Probe], Sums]:
        runs, stacks = dict[str, Probe](), dict[str, dict[str, Choice]]()
        for name, part in parts.items():
            if part["depth"] == 0:
                runs[name] = self._end(build(part), WHOLE in part, folder / f"{name}.onnx")
            else:
                stream = {n: part[n] for n in (*STREAM, WHOLE) if n in part}
                stacks.setdefault(key(stream), {})[name] = part
        for some in stacks.values():
            first = next(iter(some.values()))
            choice: Choice = {n: v for n, v in first.items() if "." not in n} | {"depth": len(some)}
            for i, part in enumerate(some.values()):
                choice |= {f"{n[:-2]}.{i}": v for n, v in part.items() if n.endswith(".0")}
            model = build(choice)
            grids = artefact.grids_of(in_8_bits(model)) if WHOLE in choice else {}
            runs |= zip(some, stack(model, self.example(model), self.threads, grids), strict=True)
        return runs, {name: [(1, name)] for name in runs}

    def _end(self, model: Any, whole: bool, path: Path) -> Probe:
        artefact.write(model, path)
        size = path.stat().st_size - sum(t.nbytes for t in model.state_dict().values())
        if whole:
            artefact.write(in_8_bits(model), path, whole=True)
        run, row = self.opened(path), self.example(model)
        return lambda: run(**row), size


def in_8_bits(model: Any) -> Any:
    """A copy in 8 bits, rounded to the nearest."""
    return rounded(model, few.plan(model, 8, GROUP))


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
