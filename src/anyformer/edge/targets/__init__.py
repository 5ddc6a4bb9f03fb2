"""The targets of a design, by name: `Onnx`, `Program` (torch), `Executorch`, `Gguf`. A new one is a class and a line
here."""

from __future__ import annotations

from anyformer.edge.targets.base import Target, Written
from anyformer.edge.targets.executorch import Executorch
from anyformer.edge.targets.gguf import Gguf
from anyformer.edge.targets.onnx import Onnx
from anyformer.edge.targets.program import Program

TARGETS: dict[str, type[Target]] = {t.name: t for t in (Onnx, Executorch, Program, Gguf)}


def find(name: str) -> type[Target]:
    """The target of a name.

    Raises:
        ValueError: if it is unknown, with those that there are.
    """
    if name not in TARGETS:
        raise ValueError(f"--target {name}: unknown; there is {', '.join(TARGETS)}")
    return TARGETS[name]


__all__ = ["TARGETS", "Executorch", "Gguf", "Onnx", "Program", "Target", "Written", "find"]
