"""Export: a model as one `.pt2` file that runs without anyformer, for any batch and any length.

    report = export(model, "model.pt2")
    program = torch.export.load("model.pt2").module()
    program(input_ids=ids)["logits"]

The file is read back and compared with the model on other sizes before it appears at its path. C channels, B batch.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from anyformer.core.value import nearest
from anyformer.hub.formats.guard import atomic_write
from anyformer.skeletons.base import Output

TRACED = (2, 9, 7)  # batch, time, source time: the example
CHECKED = ((1, 1, 1), (3, 17, 5), (2, 40, 23))  # sizes on which the written file is compared


@dataclass(frozen=True)
class Exported:
    """The report of `export`. `inputs`: allowed sizes of each axis: `1…` is any, `1…64` is bounded, `3` is fixed."""

    path: Path
    bytes: int
    inputs: dict[str, tuple[str, ...]]
    outputs: tuple[str, ...]
    checked: tuple[tuple[int, int, int], ...]  # batch, time, source time (images: rows and columns of patches)
    difference: float  # the largest |file's output - model's|

    def __str__(self) -> str:
        shapes = ", ".join(f"{name} ({', '.join(axes)})" for name, axes in self.inputs.items())
        return (
            f"{self.path}: {self.bytes / 1e6:.1f} MB, {shapes} -> {', '.join(self.outputs)}; "
            f"largest difference {self.difference:.1e} on {len(self.checked)} other sizes"
        )


def export(model: Any, path: str | os.PathLike, example: Mapping[str, Tensor] | None = None) -> Exported:
    """Writes the model as a PyTorch 2 program (`torch.export`) with open sizes.

    Every axis is open: batch, time, both lengths of an encoder-decoder, height and width of an image. The bounds are
    the context of the model; for images, whole patches, at least 2 in each direction; for Mamba,
    `anyformer.parts.recurrent.mamba.OPEN` tokens. Channels are fixed, and height and width where a model rounds them
    again and again (Swin, ViT hybrid): the trained size, or that of `example`. Attention over a window computes all
    pairs in the exported program (the eager model's choice of kernel depends on the length, which is open here).

    Args:
        model: traced in evaluation mode; it is not changed.
        path: of the new file, `model.pt2`.
        example: the inputs of the program, by name; `inputs(model)` by default. With padding:
            `inputs(model, padding=True)`, or tensors of your own; none of their axes can have the size 1.

    Returns:
        A report of the file and its difference from the model. The program takes its inputs by name, and returns a
        dictionary of `hidden`, `logits`, `pooled`, `memory`, `heads.<name>`, as far as the model has them.

    Raises:
        ValueError: if `path` does not end in .pt2, the model lacks an input of that name, PyTorch cannot trace it with
            open axes (with its reason), or the file read back differs from the model by more than sqrt(eps) of the
            largest output. `path` is then unchanged.
        OSError: if the disk is full or the folder cannot be written; an old file is intact.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ValueError(f"PyTorch reads exported programs from files that end in .pt2; got {path}")
    example = inputs(model) if example is None else dict(example)
    _check(model, example)
    training = model.training
    hook = model.eval().register_forward_hook(lambda module, args, output: _named(output))
    try:
        with torch.no_grad():
            program = _traced(model, example)
            difference = [0.0]

            def write(file: BinaryIO) -> None:
                torch.export.save(program, file)
                file.flush()
                with open(file.name, "rb") as again:
                    difference[0] = _compared(model, torch.export.load(again), example)

            atomic_write(path, write)  # an error in `write` leaves nothing
            outputs = tuple(model(**example))
    finally:
        hook.remove()
        model.train(training)
    return Exported(path, path.stat().st_size, _axes(program), outputs, CHECKED, difference[0])


def inputs(
    model: Any, batch: int = TRACED[0], time: int = TRACED[1], source: int = TRACED[2], padding: bool = False
) -> dict[str, Tensor]:
    """Random inputs of a size: `export`'s example.

    Args:
        time: tokens of the text, or of the target; rows of patches of an image (at least 2).
        source: tokens of the source; columns of patches of an image (at least 2).
        padding: also attention masks, with padding on the left in one row and on the right in another.
    """
    masks = {entrance.mask for entrance in model.entrances()} if padding else set()
    names = {name for name, read in model.inputs().items() if read.required or name in masks}
    return _every(model, batch, time, source, names)


def _every(model: Any, batch: int, time: int, source: int, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Random values for inputs of the model, by default for all."""
    noise, like = torch.Generator().manual_seed(time), next(model.parameters())
    made, static = dict[str, Tensor](), static_axes(model)
    for entrance in model.entrances():
        front, reads = entrance.front, entrance.inputs()
        first, second = (source, time) if model.reads_source and entrance.prefix != model.target else (time, source)
        if static or (entrance.mask is None and not any(model.inputs()[name].required for name in reads)):
            first, second = (*front.sizes()[0], 1)[:2]
        elif entrance.mask is None:
            first, second = max(2, first), max(2, second)
        else:
            first = min(first, model.context or first)
            if front.least(1) > 1:  # several units a position, and torch.export would close a single one
                first = front.least(max(2, first))
        inputs = {entrance.prefix + n: t for n, t in front.example(batch, (first, second), noise).items()}
        if entrance.mask is not None:
            length = front.units(front.example(batch, (first, second), noise))
            keep = torch.ones(batch, length, dtype=torch.long)
            keep[0, : 0 if front.right else length // 3] = 0
            keep[-1, length - length // 4 :] = 0
            inputs[entrance.mask] = keep
        made |= {name: t.to(like.device if reads[name].ids else like) for name, t in inputs.items()}
    return model.complete({name: tensor for name, tensor in made.items() if names is None or name in names})


def static_axes(model: Any) -> frozenset[str]:
    """The axes of inputs that a program fixes."""
    return frozenset[str]().union(model.static, *(entrance.front.static for entrance in model.entrances()))


def _check(model: Any, example: Mapping[str, Tensor]) -> None:
    known = _every(model, *TRACED)
    for name, tensor in example.items():
        if name not in known:
            raise ValueError(f"{name!r} cannot be an input{nearest(name, list(known))}; there is {', '.join(known)}")
        read = model.inputs()[name]
        if 1 in [n for n, axis in zip(tensor.shape, ("batch", *read.axes), strict=False) if axis not in read.fixed]:
            shape = tuple(tensor.shape)
            raise ValueError(
                f"the example's {name!r} is {shape}: torch.export would close an axis of size 1; use 2 or more"
            )


def _named(output: Output) -> dict[str, Tensor]:
    """The outputs of the program, by plain names: loading it needs no class of ours."""
    single = {n: getattr(output, n) for n in ("hidden", "logits", "pooled", "memory")}
    several = {f"heads.{n}": t for n, t in output.heads.items()} | {f"beside.{n}": t for n, t in output.beside.items()}
    return {n: t for n, t in (single | several).items() if t is not None}


@contextlib.contextmanager
def _named_inputs(model: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """A context with `forward` of these named arguments: torch.export opens no axes of inputs behind `**inputs`."""
    plain = model.forward

    def forward(**inputs: Tensor) -> Any:
        return plain(**inputs)

    written = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    forward.__signature__ = inspect.Signature(written)  # type: ignore[attr-defined]
    model.forward = forward
    try:
        yield
    finally:
        del model.forward


def _traced(model: Any, example: dict[str, Tensor], closed: frozenset[str] = frozenset()) -> ExportedProgram:
    """The program, every axis open but those that the model fixes (the channels of an image) and the closed ones."""
    axes, static = dict[str, Any](), static_axes(model) | closed
    for name in example:
        read = model.inputs()[name]
        named = enumerate(("batch", *read.axes))
        axes[name] = {i: Dim.STATIC if axis in {*read.fixed, *static} else Dim.DYNAMIC for i, axis in named}
    try:
        with _named_inputs(model, tuple(example)):
            return torch.export.export(model, (), example, dynamic_shapes=axes, strict=False)
    except Exception as error:  # untraceable code of a part; the types of errors are not documented
        raise ValueError(f"{model.recipe.part.__name__} cannot be exported with open sizes: {error}") from error


def _compared(model: Any, program: ExportedProgram, example: dict[str, Tensor]) -> float:
    """The largest difference between the model and the file read back, on sizes that were not traced."""
    run, most = program.module(), 0.0
    for size in CHECKED:
        every = _every(model, *size, names=example.keys())
        if static_axes(model):
            rows = {n: t[:1].repeat(size[0], *[1] * (t.ndim - 1)) for n, t in example.items()}
            every = {n: torch.randn_like(t) if t.is_floating_point() else t for n, t in rows.items()}
        if not example.keys() <= every.keys():
            continue  # a text too short for the media in it
        inputs = {name: every[name] for name in example}
        ours, theirs = model(**inputs), run(**inputs)
        for name, tensor in ours.items():
            differs = float((tensor.double() - theirs[name].double()).abs().max())
            eps = torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0
            allowed = math.sqrt(eps) * max(1.0, float(tensor.abs().max()))
            if not differs <= allowed:  # also when it is NaN
                shapes = {n: tuple(t.shape) for n, t in inputs.items()}
                off = f"{differs:.2e} from the model's; allowed: {allowed:.1e}"
                raise ValueError(f"the exported {name!r} is {off}, on {shapes}; nothing was written")
            most = max(most, differs)
    return most


def _axes(program: ExportedProgram) -> dict[str, tuple[str, ...]]:
    """The allowed sizes of each input's axes."""

    def sizes(axis: Any) -> str:
        if isinstance(axis, int) or axis.node.expr.is_Integer:
            return str(axis)
        limits = program.range_constraints[axis.node.expr]
        low = 1 if limits.lower == 2 else limits.lower  # 2 stands for 'not a special case of 1': 1 runs, and is checked
        return f"{low}…" + (str(limits.upper) if limits.upper.is_Integer else "")

    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    return {
        name: tuple(sizes(axis) for axis in nodes[name].meta["val"].shape)
        for name in program.graph_signature.user_inputs
    }
