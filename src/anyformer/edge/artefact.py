"""A model as one ONNX file, small on the disk and fast: matrices in few bits are floats once it is loaded.

The graph is that of the model; only stored matrices are replaced, by their paths (`edge.matrices`). Names and sizes of
the classes are in the metadata of the file, so that a script needs nothing else.
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
from anyformer.edge import matrices
from anyformer.edge.export import _traced, inputs
from anyformer.generate.engine.graph import quiet
from anyformer.hub.formats.guard import atomic_write
from anyformer.parts.quantised import Grid, full

OPSET, IR = 21, 10
CLOSE = 1e-4  # |file - model| that is allowed, over the largest |logit|
COVERED = 0.9  # the least share of the numbers of matrices in few bits, unless asked for


def write(model: Any, path: Path, facts: Mapping[str, Any] | None = None, whole: bool = False) -> int:
    """Writes a model whose first head reads its main input, `example`'s, for any number of rows -> `logits` (B, C); of
    a language model (B, T, C).

    A text has any length; other media have the size that the recipe was made for.

    Args:
        model: in evaluation mode; its matrices can be in few bits (`parts.quantised`), of 4 or 8.
        facts: kept in the file, as JSON under the key `anyformer`.
        whole: matrices in few bits are multiplied in whole numbers, their inputs rounded to 8 bits as they come.

    Returns:
        The number of these matrices.

    Raises:
        ValueError: for a model that PyTorch cannot trace with open axes, with the part.
        OSError: if it cannot be written; nothing is left then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    made = _onnx(full(model).eval(), _logits)
    grids = grids_of(model)
    wholes = matrices.in_whole_numbers(made.graph, grids if whole else {})
    for number, (name, grid) in enumerate((n, g) for n, g in grids.items() if not (n in wholes and g.bits == 8)):
        matrices.multiplied_out(made.graph, name, grid, number)
    made.metadata_props["anyformer"] = json.dumps(dict(facts or {}))
    import onnx_ir as ir

    atomic_write(path, ir.serde.serialize_model(made).SerializeToString())
    return len(wholes)


def translated(model: Any, outputs: Callable[[Any], dict[str, Tensor]], grids: Mapping[str, Grid] | None = None) -> Any:
    """The graph of a model in floats as ONNX's own object, with the outputs that a function makes of the model's.

    Args:
        grids: matrices in few bits, by the name of their weight, that are multiplied in whole numbers.
    """
    import onnx_ir as ir

    made = _onnx(model, outputs)
    matrices.in_whole_numbers(made.graph, grids or {})
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
