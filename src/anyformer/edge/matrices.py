"""Matrices in few bits in the graph of an ONNX file, multiplied out or in whole numbers.

```
codes uint8 ─ unpack ─ Cast ─(-)─(x)─ Reshape ── W float32        constant: ONNX Runtime computes it at loading
              zero, scale float16 ┘   ┘
```
O outputs, I inputs, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from anyformer.parts.quantised import Grid

MOST, LEAST = 63, 1e-12  # of a whole number of seven bits; the least row of a matrix
NODES = {8: 461, 4: 808}  # bytes of the nodes that multiply out one matrix
WHOLE_NODES = 600  # of those that compute its whole numbers, and multiply them


class _Nodes:
    """New nodes of a graph, named `name`.1, `name`.2, …, and constants."""

    def __init__(self, graph: Any, name: str):
        self.graph, self.name, self.made = graph, name, list[Any]()

    def __call__(self, kind: str, *given: Any, **attributes: Any) -> Any:
        """The output of a new node."""
        import onnx_ir as ir

        self.made.append(ir.node(kind, list(given), attributes or None))
        self.made[-1].outputs[0].name = f"{self.name}.{len(self.made)}"
        return self.made[-1].outputs[0]

    def constant(self, value: np.ndarray, kind: str) -> Any:
        """A constant of a name, which several nodes can share."""
        import onnx_ir as ir

        if kind not in self.graph.initializers:
            tensor = ir.tensor(value, name=kind)
            shape, number = ir.Shape(value.shape), ir.TensorType(tensor.dtype)
            self.graph.register_initializer(ir.Value(name=kind, shape=shape, type=number, const_value=tensor))
        return self.graph.initializers[kind]


def multiplied_out(graph: Any, name: str, grid: Grid, number: int) -> None:
    """Puts codes, scales and zeros, and the nodes that multiply them out, in place of a matrix."""
    if grid.bits not in (4, 8):
        raise ValueError(f"{name}: an ONNX file stores 4 or 8 bits, and it has {grid.bits}")
    old = graph.initializers.get(name)
    if old is None:
        raise ValueError(f"{name} is in few bits, and the exported graph has no matrix of that name")
    node = _Nodes(graph, f"w{number}")
    constant = node.constant
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
    graph.insert_before(graph[0], node.made)
    for user, place in list(old.uses()):
        user.replace_input_with(place, w)
    del graph.initializers[name]


def in_whole_numbers(graph: Any, grids: Mapping[str, Grid]) -> set[str]:
    """Puts y = s_x s (x_q - z) q in place of y = x w^T, for each matrix that is only ever multiplied so; their names.

        x_q, s_x, z: x in whole numbers of 8 bits, from its least to its largest; q: w in 7 bits with a scale s a row.

    Seven bits, since two products of eight are above 16 bits, where AVX2 without VNNI cuts them off. Of a matrix of 8
    bits the file holds q and s; fewer bits stay as they are, and ONNX Runtime computes both at loading.
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
        short = f"m{len(done)}"
        q, s = _seven(graph, grid, short) if grid.bits == 8 else _sevened(graph, old, short)
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
                node.outputs[0].name = f"{short}.{number}.{i}"
            graph.insert_before(product, [sums, floats, factor, end])
            for user, place in list(y.uses()):
                user.replace_input_with(place, end.outputs[0])
            graph.remove(product, safe=True)
        for t in turned:
            graph.remove(t, safe=True)
        if not list(old.uses()):
            del graph.initializers[name]
        done.add(name)
    return done


def _seven(graph: Any, grid: Grid, name: str) -> list[Any]:
    """q and s of a matrix, kept in the file; `name`: of what is new."""
    w, node = grid.dequantised(), _Nodes(graph, name)
    scale = w.abs().amax(1).clamp(min=LEAST) / MOST
    q = (w / scale[:, None]).round().to(torch.int8).T.contiguous()
    return [node.constant(q.numpy(), f"{name}.q"), node.constant(scale.numpy(), f"{name}.s")]


def _sevened(graph: Any, matrix: Any, name: str) -> list[Any]:
    """q and s as nodes without inputs that compute them from a matrix; `name`: of what is new."""
    node = _Nodes(graph, name)
    w = node("Transpose", matrix, perm=[1, 0])  # (I, O)
    most = node("ReduceMax", node("Abs", w), node.constant(np.array([0]), "w.first"), keepdims=0)
    least = node.constant(np.array(LEAST, np.float32), "w.least")
    s = node("Div", node("Max", most, least), node.constant(np.array(MOST, np.float32), "w.most"))
    q = node("Cast", node("Round", node("Div", w, s)), to=3)
    graph.insert_before(graph[0], node.made)
    return [q, s]
