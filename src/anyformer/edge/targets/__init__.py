"""The targets of a design, by name: `Onnx`, `Program` (torch), `Executorch`. A new one is a class and a line here."""

from __future__ import annotations

from anyformer.edge.targets.base import Target, Written
from anyformer.edge.targets.executorch import Executorch
from anyformer.edge.targets.onnx import Onnx
from anyformer.edge.targets.program import Program

TARGETS: dict[str, type[Target]] = {t.name: t for t in (Onnx, Executorch, Program)}
REFUSED = {
    "gguf": "llama.cpp runs no encoder with a head of classes, and its time for a byte decoder is not measured here; "
    "`anyformer convert` writes a GGUF file of a language model"
}


def find(name: str) -> type[Target]:
    """The target of a name.

    Raises:
        ValueError: if it is unknown, with the reason where there is one.
    """
    if name not in TARGETS:
        raise ValueError(f"--target {name}: {REFUSED.get(name, 'unknown')}; there is {', '.join(TARGETS)}")
    return TARGETS[name]


__all__ = ["TARGETS", "Executorch", "Onnx", "Program", "Target", "Written", "find"]
