"""Times of ONNX Runtime's operators in our programs, and the bytes that a token reads."""

from __future__ import annotations

import itertools
import json
import math
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOOKED_UP = ("Gather", "GatherBlockQuantized")  # they read a row of their table


def weights_read(path: Path) -> int:
    """The bytes of weights that a run of the graph reads whole: all but the tables that rows are looked up in."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    read = {name for node in graph.node for at, name in enumerate(node.input) if at or node.op_type not in LOOKED_UP}
    kinds = onnx.helper.tensor_dtype_to_np_dtype
    return sum(math.prod(t.dims) * kinds(t.data_type).itemsize for t in graph.initializer if t.name in read)


def profiled(engine: Any, work: Callable[[], list[float]]) -> dict[str, Any]:
    """Milliseconds a token by kind of operator of the program that writes one text, and the bytes that it reads.

    Args:
        engine: a model on ONNX Runtime; its program stays one that measures.
        work: writes a text, and returns when each token was there, in seconds.
    """
    import onnxruntime

    _, program = engine.programs[0]
    path = program.session._model_path
    with tempfile.TemporaryDirectory() as folder:
        options = program.session.get_session_options()
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/of"
        program.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        program._binding, program._bound = program.session.io_binding(), {}
        clock = work()
        events = json.loads(Path(program.session.end_profiling()).read_text(encoding="utf-8"))
    runs, spent = sum(event["name"] == "model_run" for event in events), Counter[str]()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    kinds = {kind: micros / 1e3 / runs for kind, micros in spent.most_common()}
    whole = statistics.median(b - a for a, b in itertools.pairwise(clock[1:]))
    return {"kinds": kinds, "whole": 1e3 * whole, "read": weights_read(Path(path))}


def sentence(found: dict[str, Any], rate: float, first: int = 4) -> str:
    """A profile in a sentence.

    Args:
        rate: bytes a second that the machine reads.
    """
    least = 1e3 * found["read"] / rate
    kinds = list(found["kinds"].items())
    rest = found["whole"] - sum(ms for _, ms in kinds[:first])
    parts = ", ".join(f"{kind} {ms:.2f}" for kind, ms in kinds[:first])
    return (
        f"a token that is written alone reads {found['read'] / 1e6:.0f} MB of weights, at {rate / 1e9:.1f} GB/s "
        f"{least:.1f} ms; under ONNX Runtime's profiler it takes {found['whole']:.1f} ms: {parts}, all else {rest:.2f}"
    )
