"""A model as one `.pte` file, which ExecuTorch runs on phones: fixed sizes, products by XNNPACK, float32.

ExecuTorch plans all memory before it runs, so batch and lengths are those of the example; a shorter text is padded, and
its mask says so. XNNPACK takes the products, sums and activations; look-ups, masks and norms stay with ExecuTorch's own
kernels. The package is `executorch` (1.5 goes with PyTorch 2.13); nothing else here needs it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyformer.edge.export import _named_inputs, inputs
from anyformer.edge.nbits import once
from anyformer.hub.formats.guard import atomic_write
from anyformer.parts.quantised import Grid, full

PRODUCTS = ("linear", "addmm", "mm", "bmm", "convolution")  # names of operators
CLOSE = 1e-4  # |file - model| that is allowed, over the largest output
DELEGATED = 0.9  # the least share of the products that XNNPACK takes


@dataclass(frozen=True)
class Lowered:
    """The report of a file: bytes; products of XNNPACK, of how many; nodes likewise; inputs; the difference; products
    of whole numbers."""

    bytes: int
    products: tuple[int, int]
    nodes: tuple[int, int]
    inputs: dict[str, tuple[int, ...]]
    difference: float
    whole: int = 0

    def __str__(self) -> str:
        shapes = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in self.inputs.items())
        return (
            f"XNNPACK takes {self.products[0]} of {self.products[1]} products and {self.nodes[0]} of {self.nodes[1]} "
            f"nodes; sizes are fixed: {shapes}; largest difference {self.difference:.1e}"
        )


def check() -> None:
    """Raises ImportError with the command that helps if executorch is missing."""
    try:
        import executorch.backends.xnnpack.partition.xnnpack_partitioner
        import executorch.runtime  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"a .pte file needs executorch ({error}): pip install executorch==1.5.1 (docs/edge.md, Phones and "
            "microcontrollers)"
        ) from error


def write(model: Any, path: Path, tokens: int = 64) -> Lowered:
    """Writes a model for one row of so many tokens (of a picture: patches a side), and runs the file once.

    Raises:
        ImportError: if executorch is missing, with the command that helps. ValueError: for a model that it cannot
            lower, of which XNNPACK takes too little, or whose file differs from it; nothing is written then. OSError.
    """
    check()
    made: Any = (full(model) if any(isinstance(m, Grid) for m in model.modules()) else model).eval()
    content, report = lowered(made, inputs(made, 1, tokens, tokens, padding=True), once, DELEGATED)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, content)
    return report


def lowered(
    made: Any,
    example: dict[str, Tensor],
    outputs: Callable[[Any], dict[str, Tensor]],
    least: float,
    whole: bool = False,
) -> tuple[bytes, Lowered]:
    """The file of a model in floats, and its report.

    Args:
        example: its inputs, whose sizes are fixed. outputs: of the file, of the model's. least: share of the products
            that XNNPACK takes. whole: linear layers are in 8 bits, and their inputs are rounded to 8 bits as they come.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    hook = made.register_forward_hook(lambda module, args, output: tuple(outputs(output).values()))
    try:
        with torch.no_grad(), _named_inputs(made, tuple(example)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own parts
            wanted: tuple[Tensor, ...] = made(**example)
            program = torch.export.export(made, (), example, strict=False)
            if whole:
                program = _whole(program, example)
            count = sum("dequantize_per_channel" in str(node.target) for node in program.graph.nodes)
            total = _products(program.graph_module)
            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            content = bytes(edge.to_executorch().buffer)
    except Exception as error:  # of the exporter or a part; the types of errors are not documented
        raise ValueError(f"{made.recipe.part.__name__} cannot be lowered: {str(error).strip()[:300]}") from error
    finally:
        hook.remove()
    graph = edge.exported_program().graph_module
    left = _products(graph)
    if total - left < least * total:
        raise ValueError(f"XNNPACK takes {total - left} of {total} products, {least:.0%} is the least")
    found = Runtime.get().load_program(content).load_method("forward").execute(list(example.values()))
    pairs = [(a.float(), b.float()) for a, b in zip(wanted, found, strict=True)]
    off = max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-6)) for a, b in pairs)
    if not whole and not off <= CLOSE:
        raise ValueError(f"the file would differ from the model by {off:.1e} of its largest output; allowed: {CLOSE:g}")
    sizes = {n: tuple(t.shape) for n, t in example.items()}
    return content, Lowered(len(content), (total - left, total), _nodes(graph), sizes, off, count)


def _whole(program: Any, example: dict[str, Tensor]) -> Any:
    """A program with linear layers in 8 bits, a scale an output, by PyTorch's `pt2e`."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    made = prepare_pt2e(program.module(), XNNPACKQuantizer().set_global(config))
    made(**example)
    return torch.export.export(convert_pt2e(made), (), example, strict=False)


def _products(graph: Any) -> int:
    """The products in a graph that are no part of a delegate."""
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    return sum(any(f"aten.{kind}." in name for kind in PRODUCTS) for name in names)


def _nodes(graph: Any) -> tuple[int, int]:
    """Nodes inside the delegates, and all of them."""
    from executorch.devtools.backend_debug import get_delegation_info

    found = get_delegation_info(graph)
    return found.num_delegated_nodes, found.num_delegated_nodes + found.num_non_delegated_nodes
