"""A model as one ONNX file, small on the disk and fast: matrices in few bits are floats once it is loaded.

```
codes uint8 ─ unpack ─ Cast ─(-)─(x)─ Reshape ── W float32        constant: ONNX Runtime computes it at loading
              zero, scale float16 ┘   ┘
```
The graph is that of the model; only stored matrices are replaced, by their paths. Names and sizes of the classes are in
the metadata of the file, so that a script needs nothing else. O outputs, I inputs, G groups.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.compress.few import Entry
from anyformer.core.front import FrontEnd
from anyformer.edge.export import _traced, inputs
from anyformer.generate.engine.graph import quiet
from anyformer.hub.formats.guard import atomic_write
from anyformer.parts.quantised import Grid, full

OPSET, IR = 21, 10
MOST = 63  # of a whole number of seven bits
CLOSE = 1e-4  # |file - model| that is allowed, over the largest |logit|
COVERED = 0.9  # the least share of the numbers of matrices in few bits, unless asked for
NODES = {8: 461, 4: 808}  # bytes of the nodes that multiply out one matrix


def write(model: Any, path: Path, facts: Mapping[str, Any] | None = None, whole: bool = False) -> int:
    """Writes a model whose first head reads its main input, `example`'s, for any number of rows -> `logits` (B, C); of
    a language model (B, T, C).

    A text has any length; other media have the size that the recipe was made for.

    Args:
        model: in evaluation mode; its matrices can be in few bits (`parts.quantised`), of 4 or 8.
        facts: kept in the file, as JSON under the key `anyformer`.
        whole: matrices of 8 bits are multiplied in whole numbers, and their inputs are rounded to 8 bits as they come.

    Returns:
        The number of these matrices.

    Raises:
        ValueError: for a model that PyTorch cannot trace with open axes, with the part.
        OSError: if it cannot be written; nothing is left then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    made = _onnx(full(model).eval(), _logits)
    grids = grids_of(model)
    wholes = _whole(made.graph, {n: g for n, g in grids.items() if g.bits == 8} if whole else {})
    for number, (name, grid) in enumerate((n, g) for n, g in grids.items() if n not in wholes):
        _store(made.graph, name, grid, number)
    made.metadata_props["anyformer"] = json.dumps(dict(facts or {}))
    import onnx_ir as ir

    atomic_write(path, ir.serde.serialize_model(made).SerializeToString())
    return len(wholes)


def translated(model: Any, outputs: Callable[[Any], dict[str, Tensor]], grids: Mapping[str, Grid] | None = None) -> Any:
    """The graph of a model in floats as ONNX's own object, with the outputs that a function makes of the model's.

    Args:
        grids: matrices of 8 bits, by the name of their weight, that are multiplied in whole numbers.
    """
    import onnx_ir as ir

    made = _onnx(model, outputs)
    _whole(made.graph, grids or {})
    return ir.serde.serialize_model(made)


def _logits(output: Any) -> dict[str, Tensor]:
    return {"logits": output.logits}


def example(model: Any, tokens: int, rows: int = 1) -> dict[str, Tensor]:
    """Random inputs of a model's main front-end, nothing padded: texts of so many tokens, other media of their usual
    size. A model that continues texts gets no mask."""
    entrance, noise = model.entrances()[0], torch.Generator().manual_seed(0)
    made = entrance.front.example(rows, (tokens,) if model.reads_text else entrance.front.sizes()[0], noise)
    read = {entrance.prefix + n: t for n, t in made.items() if entrance.front.inputs()[n].required}
    if entrance.mask is not None and model.reads_text and not model.generates:
        read[entrance.mask] = torch.ones(rows, entrance.front.units(made), dtype=torch.long)
    return read


def traced(model: Any, outputs: Callable[[Any], dict[str, Tensor]], given: dict[str, Tensor] | None = None) -> Any:
    """The program of a model with the outputs that a function makes of the model's; lengths of texts are open.

    Args:
        given: the inputs that it is traced with; by default those of its main front-end.
    """
    closed: frozenset[str] = frozenset()
    if given is None and model.reads_text:
        given = {n: t for n, t in inputs(model, padding=True).items() if n in example(model, 1)}
    elif given is None:
        given = example(model, 1, rows=2)
        closed = frozenset(axis for name in given for axis in model.inputs()[name].axes)
    hook = model.register_forward_hook(lambda module, args, output: outputs(output))
    try:
        with torch.no_grad(), quiet():
            return _traced(model, given, closed)
    finally:
        hook.remove()


def _onnx(model: Any, outputs: Callable[[Any], dict[str, Tensor]], given: dict[str, Tensor] | None = None) -> Any:
    program = traced(model, outputs, given)
    names = list(program.call_spec.out_spec.unflatten([None] * program.call_spec.out_spec.num_leaves))
    with torch.no_grad(), quiet():
        made: Any = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, verbose=False, optimize=False, output_names=names
        )
    _strip(made.model)
    made.model.ir_version = IR
    return made.model


def _strip(model: Any) -> None:
    """Takes out what the exporter notes for its developers: half of a small file."""
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape = None  # ONNX Runtime infers it
    for value in (*model.graph.initializers.values(), *model.graph.inputs, *model.graph.outputs):
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for number, node in enumerate(model.graph):
        for place, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = f"{number}.{place}"
        node.name = str(number)


def grids_of(model: Any) -> dict[str, Grid]:
    """Matrices in few bits, by the name of their weight."""
    return {f"{path}.weight": m for path, m in model.named_modules() if isinstance(m, Grid)}


def _store(graph: Any, name: str, grid: Grid, number: int) -> None:
    """Puts codes, scales and zeros, and the nodes that multiply them out, in place of a matrix."""
    import onnx_ir as ir

    if grid.bits not in (4, 8):
        raise ValueError(f"{name}: an ONNX file stores 4 or 8 bits, and it has {grid.bits}")
    old = graph.initializers.get(name)
    if old is None:
        raise ValueError(f"{name} is in few bits, and the exported graph has no matrix of that name")
    nodes: list[Any] = []

    def constant(value: np.ndarray, kind: str) -> Any:
        if kind in graph.initializers:  # numbers that several matrices share
            return graph.initializers[kind]
        tensor = ir.tensor(value, name=kind)
        shape = ir.Shape(value.shape)
        made = ir.Value(name=kind, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.initializers[kind] = made
        return made

    def node(kind: str, *given: Any, **attributes: Any) -> Any:
        made = ir.node(kind, list(given), attributes or None)
        made.outputs[0].name = f"w{number}.{len(nodes)}"
        nodes.append(made)
        return made.outputs[0]

    q = constant(grid.codes.numpy(), f"w{number}.q")
    if grid.bits == 4:  # the low half of each byte comes first
        halves = [
            node("BitwiseAnd", q, constant(np.array(15, np.uint8), "w.low")),
            node("BitShift", q, constant(np.array(4, np.uint8), "w.shift"), direction="RIGHT"),
        ]
        q = node("Concat", *(node("Unsqueeze", half, constant(np.array([-1]), "w.last")) for half in halves), axis=-1)
    groups = grid.scale.shape[1]
    shape = (grid.rows, groups, grid.group)
    q = node("Reshape", node("Cast", q, to=1), constant(np.array(shape), f"w.{shape}"))
    scale, zero = (
        node("Cast", constant(t.view(torch.float16).unsqueeze(-1).numpy(), f"w{number}.{kind}"), to=1)
        for t, kind in ((grid.scale, "s"), (grid.zero, "z"))
    )
    w = node("Mul", node("Sub", q, zero), scale)
    wide = (grid.rows, groups * grid.group)
    w = node("Reshape", w, constant(np.array(wide), f"w.{wide}"))
    if wide[1] != grid.columns:
        w = node("Slice", w, *(constant(np.array([n]), f"w.[{n}]") for n in (0, grid.columns, 1)))
    graph.insert_before(graph[0], nodes)
    for user, place in list(old.uses()):
        user.replace_input_with(place, w)
    del graph.initializers[name]


def _whole(graph: Any, grids: Mapping[str, Grid]) -> set[str]:
    """Puts y = s_x s (x_q - z) q in place of y = x w^T, for each matrix that is only ever multiplied so; their names.

        x_q, s_x, z: x in whole numbers of 8 bits, from its least to its largest; q: w in 7 bits with a scale s a row.

    Seven bits, since two products of eight are above 16 bits, where AVX2 without VNNI cuts them off.
    """
    import onnx_ir as ir

    rounded, done = dict[Any, tuple[Any, ...]](), set[str]()
    for name, grid in grids.items():
        old = graph.initializers.get(name)
        turned = [] if old is None else [user for user, _ in old.uses()]
        products = [user for t in turned for user, _ in t.outputs[0].uses()]
        plain = {t.op_type for t in turned} == {"Transpose"} and {p.op_type for p in products} == {"MatMul"}
        if not plain or any(p.outputs[0].is_graph_output() for p in products):
            continue
        w = grid.dequantised()
        scale = w.abs().amax(1).clamp(min=1e-12) / MOST
        given = {"q": (w / scale[:, None]).round().to(torch.int8).T.contiguous().numpy(), "s": scale.numpy()}
        q, s = (ir.Value(name=f"{name}.{n}", const_value=ir.tensor(v, name=f"{name}.{n}")) for n, v in given.items())
        for value in (q, s):
            graph.register_initializer(value)
        for number, product in enumerate(products):
            x, y = product.inputs[0], product.outputs[0]
            if x not in rounded:
                quantised = ir.node("DynamicQuantizeLinear", [x], num_outputs=3)
                for i, value in enumerate(quantised.outputs):
                    value.name = f"{x.name}.{i}"
                graph.insert_before(product, [quantised])
                rounded[x] = tuple(quantised.outputs)
            x_q, s_x, z = rounded[x]
            sums = ir.node("MatMulInteger", [x_q, q, z])
            floats = ir.node("Cast", [sums.outputs[0]], {"to": 1})
            factor = ir.node("Mul", [s_x, s])
            end = ir.node("Mul", [floats.outputs[0], factor.outputs[0]])
            for i, node in enumerate((sums, floats, factor, end)):
                node.outputs[0].name = f"{name}.{number}.{i}"
            graph.insert_before(product, [sums, floats, factor, end])
            for user, place in list(y.uses()):
                user.replace_input_with(place, end.outputs[0])
            graph.remove(product, safe=True)
        for t in turned:
            graph.remove(t, safe=True)
        del graph.initializers[name]
        done.add(name)
    return done


def covered(model: Any, entries: Sequence[Entry]) -> float:
    """The share of the numbers of matrices that are in few bits; a front-end without a table of ids has none."""
    counted = _counted(model, entries)
    return sum(e.numbers for e in counted if e.bits is not None) / max(1, sum(e.numbers for e in counted))


def check_covered(model: Any, entries: Sequence[Entry], least: float) -> None:
    """Raises ValueError, with what is left and the option that allows it, if less of a model is in few bits."""
    if (share := covered(model, entries)) < least:
        left = "; ".join(f"{e.path} ({e.why})" for e in _counted(model, entries) if e.bits is None)
        raise ValueError(
            f"{share:.0%} of the matrices' numbers are in few bits, {least:.0%} is the least: {left}; "
            f"--coverage {int(share * 100) / 100:g} allows it"
        )


def _counted(model: Any, entries: Sequence[Entry]) -> list[Entry]:
    if model.reads_text:
        return list(entries)
    beside = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, FrontEnd))
    return [e for e in entries if not f"{e.path}.".startswith(beside)]


def opened(path: Path, threads: int = 1) -> Any:
    """The file as a function of its inputs by name -> logits, an array."""
    found = session(path, threads)
    return lambda **given: found.run(None, {name: np.asarray(value) for name, value in given.items()})[0]


def session(model: Path | bytes, threads: int) -> Any:
    """A file, or its content, in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


LOADED = (  # what a fresh process imports before its memory is looked at, and what makes `run` after it
    "import onnxruntime as ort",
    """o = ort.SessionOptions()
o.intra_op_num_threads, o.inter_op_num_threads, o.log_severity_level = int(threads), 1, 3
s = ort.InferenceSession(path, o, providers=["CPUExecutionProvider"])
run = lambda: s.run(None, feed)""",
)
TIMED = """
import io, sys, time, json
import numpy as np
feed = dict(np.load(io.BytesIO(sys.stdin.buffer.read())))
try:
    held = lambda: 4096 * int(open("/proc/self/statm").read().split()[1])
    held()
except OSError:
    held = lambda: 0
path, threads, seconds = sys.argv[1], *map(float, sys.argv[2:])
IMPORTS
before = held()
LOADS
for _ in range(5):
    run()
took, ends = [], time.perf_counter() + seconds
while time.perf_counter() < ends or len(took) < 20:
    began = time.perf_counter()
    run()
    took.append(time.perf_counter() - began)
took.sort()
print(json.dumps([took[len(took) // 2] * 1e3, took[int(len(took) * 0.95)] * 1e3, held() - before]))
"""


def measured(
    path: Path,
    feed: Mapping[str, Tensor],
    threads: int,
    processes: int = 3,
    seconds: float = 0.5,
    loaded: tuple[str, str] = LOADED,
) -> list[Any]:
    """The median and the 95th percentile of the milliseconds of one call, and the bytes of memory that the model added,
    in each of some fresh processes.

    Args:
        feed: the inputs, by name: those of one row. loaded: see `LOADED`.
    """
    code = TIMED.replace("IMPORTS", loaded[0]).replace("LOADS", loaded[1])
    made, packed = [], io.BytesIO()
    np.savez(packed, **{name: value.numpy() for name, value in feed.items()})  # type: ignore[arg-type]
    for _ in range(processes):
        call = [sys.executable, "-c", code, str(path), str(threads), str(seconds)]
        done = subprocess.run(call, input=packed.getvalue(), capture_output=True, check=False)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise ValueError(f"{path.name} does not run in a fresh process: {said}")
        made.append(json.loads(done.stdout))
    return made


def difference(run: Callable[..., Any], model: Any, batches: Sequence[dict[str, Tensor]]) -> float:
    """The largest |file's logits - model's| on real inputs, over the largest |logit| or 1.

    Args:
        run: the file, as `opened` makes it.
    """
    most, size = 0.0, 1.0
    for batch in batches:
        with torch.inference_mode():
            ours = model(**batch).logits
        theirs = torch.as_tensor(run(**batch))
        most, size = max(most, float((ours - theirs).abs().max())), max(size, float(ours.abs().max()))
    return most / size
