"""Any model with matrices in few bits as an ONNX file that computes with them: ONNX Runtime's `MatMulNBits`.

```
codes uint8 ───────┐
zeros, whole uint8 ├─ MatMulNBits ── y = x W^T        float32 of a block at a time, or x in 8 bits a block (level 4)
scales float32 ────┘
```
Products with a linear layer in few bits become that node, by their paths; tables of tokens are multiplied out when the
file is loaded (`edge.artefact`). The level is the fastest one whose outputs stay near the model's, measured here.
O outputs, I inputs, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.edge import artefact, matrices
from anyformer.edge.export import CHECKED, _every, _named, inputs
from anyformer.hub.formats.guard import atomic_write
from anyformer.parts.quantised import Grid, GridTable, full, packed

BLOCKS = (16, 32, 64, 128, 256)  # inputs of a group that the kernel takes
LEVELS = {4: 0.02, 1: 1e-3}  # accuracy level -> the largest difference, over the largest output, that is allowed


@dataclass(frozen=True)
class Written:
    """The report of a file: products in few bits, of how many; the level; its difference from the model's outputs."""

    products: int
    matrices: int
    level: int
    difference: float

    def __str__(self) -> str:
        return (
            f"{self.products} of {self.matrices} matrices in few bits are MatMulNBits, accuracy level {self.level}; "
            f"largest difference {self.difference:.1e} on {len(CHECKED)} other sizes"
        )


def write(model: Any, path: Path) -> Written:
    """Writes a model with open sizes; its inputs and outputs have the names of `edge.export`.

    Args:
        model: as `anyformer compress --zeros whole` makes it, in 8 or 4 bits and groups of 16 to 256.

    Raises:
        ValueError: naming the path, for a matrix that the kernel cannot take; for a model without one, that PyTorch
            cannot trace, or whose file differs from it. Nothing is written then.
        OSError: if it cannot be written.
    """
    model = model.eval()
    grids = artefact.grids_of(model)
    for name, grid in grids.items():
        _check(name.removesuffix(".weight"), grid)
    if not any(not isinstance(g, GridTable) for g in grids.values()):
        raise ValueError("the model has no linear layer in few bits: anyformer compress --to int4 --zeros whole first")
    example, path = inputs(model), Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = artefact._onnx(full(model).eval(), once, example)
    nodes = [node for i, (name, grid) in enumerate(grids.items()) for node in _put(made.graph, name, grid, i)]
    made.opset_imports["com.microsoft"] = 1
    import onnx_ir as ir

    found = {}
    for level, allowed in LEVELS.items():
        for node in nodes:
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", level)
        content = ir.serde.serialize_model(made).SerializeToString()
        found[level] = _difference(content, model, example)
        if found[level] <= allowed:
            atomic_write(path, content)
            return Written(len(nodes), len(grids), level, found[level])
    raise ValueError(f"the file would differ from the model by {found}, allowed are {LEVELS}; nothing was written")


def _check(path: str, grid: Grid) -> None:
    if isinstance(grid, GridTable):
        return
    if grid.bits not in (4, 8) or grid.group not in BLOCKS:
        raise ValueError(
            f"{path} has {grid.bits} bits in groups of {grid.group}; the kernel takes 4 or 8 in groups of "
            f"{', '.join(map(str, BLOCKS))}"
        )
    if not grid.whole:
        raise ValueError(f"{path} has zeros that are no whole numbers: anyformer compress --zeros whole makes them so")


def _put(graph: Any, name: str, grid: Grid, number: int) -> list[Any]:
    """Puts the kernel's node for each product with a matrix, whose other uses are multiplied out; the new nodes."""
    weight = graph.initializers.get(name)
    made = [] if isinstance(grid, GridTable) or weight is None else _products(graph, weight, grid, number)
    if weight is not None and list(weight.uses()):
        matrices.multiplied_out(graph, name, grid, number)
    elif weight is not None:
        del graph.initializers[name]
    return made


def _products(graph: Any, weight: Any, grid: Grid, number: int) -> list[Any]:
    import onnx_ir as ir

    def constant(value: np.ndarray, kind: str) -> Any:
        tensor, label = ir.tensor(value, name=f"n{number}.{kind}"), f"n{number}.{kind}"
        if label not in graph.initializers:
            shape = ir.Shape(value.shape)
            graph.initializers[label] = ir.Value(
                name=label, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor
            )
        return graph.initializers[label]

    made: list[Any] = []
    sizes = {"K": grid.columns, "N": grid.rows, "bits": grid.bits, "block_size": grid.group}

    def put(product: Any) -> None:
        parts = [constant(value, kind) for kind, value in _arrays(grid).items()]
        node = ir.node("MatMulNBits", [product.inputs[0], *parts], sizes, domain="com.microsoft")
        node.outputs[0].name = f"n{number}.y{len(made)}"
        last = [node]
        if product.op_type == "Gemm" and len(product.inputs) > 2:
            last.append(ir.node("Add", [node.outputs[0], product.inputs[2]]))
        old, new = product.outputs[0], last[-1].outputs[0]
        new.shape, new.type = old.shape, old.type
        old.name, new.name = f"n{number}.o{len(made)}", old.name  # an output of the graph keeps its name
        graph.insert_before(product, last)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        graph.remove(product, safe=True)
        made.append(node)

    for user, place in list(weight.uses()):
        if user.op_type == "Gemm" and place == 1:
            put(user)
        elif user.op_type == "Transpose":
            for product, side in list(user.outputs[0].uses()):
                if product.op_type == "MatMul" and side == 1:
                    put(product)
            if not list(user.outputs[0].uses()):
                graph.remove(user, safe=True)
    return made


def _arrays(grid: Grid) -> dict[str, np.ndarray]:
    """The kernel's arrays: codes (O, G, bytes), scales (O, G), zeros (O, bytes), the first of two numbers low."""
    zeros = grid.zero.view(torch.float16).to(torch.uint8)  # (O, G)
    zeros = torch.nn.functional.pad(zeros, (0, -zeros.shape[1] % 8))
    width = grid.scale.shape[1] * grid.bits // 8 + bool(grid.scale.shape[1] * grid.bits % 8)
    return {
        "q": grid.codes.unflatten(1, (-1, grid.group * grid.bits // 8)).contiguous().numpy(),
        "s": grid.scale.view(torch.float16).float().numpy(),
        "z": packed(zeros, grid.bits)[:, :width].contiguous().numpy(),
    }


def once(output: Any) -> dict[str, Tensor]:
    """Outputs by name; one with two names, e.g. the first head's scores, is `logits` alone."""
    named = _named(output)
    return {n: t for n, t in named.items() if n == "logits" or t is not named.get("logits")}


def _difference(content: bytes, model: Any, example: Mapping[str, Tensor]) -> float:
    """The largest |output of the file - model's|, over the largest |output|, on sizes that were not traced."""
    run, most = artefact.session(content, 1), 0.0
    names = [output.name for output in run.get_outputs()]
    for size in CHECKED:
        some = _every(model, *size, names=example.keys())
        with torch.inference_mode():
            ours = once(model(**some))
        theirs = dict(zip(names, run.run(None, {n: t.numpy() for n, t in some.items()}), strict=True))
        for name, value in ours.items():
            off = (value.float() - torch.as_tensor(theirs[name]).float()).abs().max()
            most = max(most, float(off / value.float().abs().max().clamp(min=1e-6)))
    return most
