"""From a model to files that ONNX Runtime reads: one trace, written once for each form of the matrices.

`torch.export` traces the step with the parts' own rules in place (`lower`), `torch.onnx` translates what has no rule,
and the matrices become nodes of a form.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyformer.generate.engine.lower import lowered
from anyformer.generate.engine.lower.weights import DOMAIN, LINEAR, Form, Matrices, Matrix
from anyformer.generate.engine.step import Plan, Step, Unsupported

OPSET, IR = 23, 10  # of the operators used; of the files: newer ones are refused by older packages
WEIGHTS = ".weights"  # the ending of the file beside a graph


class Trace:
    """A traced model: its graph, with a node for each product, and the matrices of these."""

    def __init__(self, model: Any, made: Plan):
        import onnx_ir

        self._ir, matrices = onnx_ir, Matrices()
        step = Step(model, made)
        example, axes = step.example()
        try:
            with torch.no_grad(), quiet(), lowered(model, matrices):
                program = torch.export.export(step, tuple(example), dynamic_shapes=(tuple(axes),), strict=False)
                translated = torch.onnx.export(
                    program, dynamo=True, opset_version=OPSET, verbose=False, optimize=False,
                    input_names=step.names, output_names=step.outputs,
                )  # fmt: skip
        except Exception as error:  # untraceable code of a part; the types of errors are not documented
            raise Unsupported(f"{_name(model)} cannot be traced: {_first_line(error)}") from error
        assert translated is not None
        self.model, self.matrices = translated.model, matrices.all
        for node in self.model.graph:  # sizes inside are those of the example: ONNX Runtime infers them from the inputs
            for value in node.outputs:
                if not value.is_graph_output():
                    value.shape = None
        self.model.ir_version = IR

    def write(self, path: Path, form: Form) -> None:
        """Writes the graph in a form: `path`, and its weights beside it."""
        ir, graph = self._ir, self.model.graph
        before, inputs = list(graph), list(graph.inputs)
        added: list[Any] = []
        try:
            for node in before:
                if node.domain == DOMAIN and node.op_type == LINEAR:
                    added.append(self._expand(node, form))
            self.model.opset_imports["com.microsoft"] = 1
            self.model.opset_imports.pop(DOMAIN, None)
            ir.save(self.model, path, external_data=path.name + WEIGHTS)
        finally:
            for undo in reversed(added):
                undo()
        assert list(graph.inputs) == inputs

    def _expand(self, node: Any, form: Form) -> Any:
        """Puts the nodes of a product in place of its node; returns the function that puts it back."""
        graph, matrix = self.model.graph, self.matrices[node.attributes["matrix"].as_int()]
        nodes = Nodes(self._ir, node.name or f"linear{id(node)}")
        y = form.write(nodes, node.inputs[0], matrix)
        outs = (
            [y]
            if len(matrix.sizes) == 1
            else nodes.node("Split", (y, nodes.constant(_sizes(matrix))), len(matrix.sizes), axis=-1)
        )
        graph.insert_before(node, nodes.made)
        for value in nodes.constants:
            graph.initializers[value.name] = value
        pairs = list(zip(node.outputs, outs, strict=True))
        _moved(graph, pairs)
        graph.remove(node)

        def undo() -> None:
            graph.insert_before(nodes.made[0], node)
            _moved(graph, [(new, old) for old, new in pairs])
            graph.remove(nodes.made, safe=False)
            for value in nodes.constants:
                del graph.initializers[value.name]

        return undo


class Nodes:
    """New nodes and constants of a graph: what a form writes to."""

    def __init__(self, ir: Any, name: str):
        self.ir, self.name = ir, name
        self.made: list[Any] = []
        self.constants: list[Any] = []

    def node(self, kind: str, inputs: Sequence[Any], outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        made = self.ir.node(kind, list(inputs), attributes or None, domain=domain, num_outputs=outputs)
        for number, value in enumerate(made.outputs):
            value.name = f"{self.name}.{len(self.made)}.{number}"
        self.made.append(made)
        return made.outputs[0] if outputs == 1 else made.outputs

    def constant(self, value: np.ndarray) -> Any:
        name = f"{self.name}.constant{len(self.constants)}"
        tensor = self.ir.tensor(value, name=name)
        made = self.ir.Value(name=name, shape=tensor.shape, type=self.ir.TensorType(tensor.dtype), const_value=tensor)
        self.constants.append(made)
        return made


def _sizes(matrix: Matrix) -> np.ndarray:
    return np.array(matrix.sizes, np.int64)


def _moved(graph: Any, pairs: Sequence[tuple[Any, Any]]) -> None:
    """Lets all that reads the first value of each pair read the second one."""
    for old, new in pairs:
        for user, place in list(old.uses()):
            user.replace_input_with(place, new)
        for number, value in enumerate(graph.outputs):
            if value is old:
                graph.outputs[number] = new
                new.shape, new.type = old.shape, old.type
                old.name, new.name = new.name, old.name


@contextmanager
def quiet() -> Iterator[None]:
    """A context without the notes of the exporter, which are for its developers."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [log.level for log in logs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for log in logs:
                log.setLevel(logging.ERROR)
            yield
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)


def _name(model: Any) -> str:
    return model.page or type(model).__name__


def _first_line(error: Exception) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0][:300]
