"""How parts become nodes of a graph: rules by the type of the part, beside the parts and free of architectures.

attention.py   self-attention whose keys and values are bound buffers
plain.py       norms, feed-forward parts, linear layers, tied heads
weights.py     matrices: collected while a model is traced; their forms, float32, blocks of 4 or 8 bits, rows of 8 bits

A rule takes a part and the collection of matrices, and returns what replaces attributes of the part while the model is
traced: its `forward`, an option; nothing, if the part stays as it is. A part without a rule is traced as it is written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from anyformer.generate.engine.lower.weights import Matrices

Rule = Callable[[Any, Matrices], Mapping[str, Any]]
MISSING = object()
RULES: dict[type, Rule] = {}  # by type, exactly: a subclass may compute something else


def lowers(kind: type) -> Callable[[Rule], Rule]:
    """Registers the rule of a type of parts."""

    def register(rule: Rule) -> Rule:
        assert kind not in RULES
        RULES[kind] = rule
        return rule

    return register


@contextlib.contextmanager
def lowered(model: nn.Module, to: Matrices) -> Iterator[None]:
    """A context in which the parts of a model compute by their rules."""
    from anyformer.generate.engine.lower import attention, plain  # noqa: F401  # they register their rules

    replaced: list[tuple[nn.Module, str, Any]] = []
    try:
        for part in model.modules():
            rule = RULES.get(type(part))
            for name, made in ({} if rule is None else rule(part, to)).items():
                replaced.append((part, name, part.__dict__.get(name, MISSING)))
                part.__dict__[name] = made
        yield
    finally:
        for part, name, before in reversed(replaced):
            if before is MISSING:
                del part.__dict__[name]
            else:
                part.__dict__[name] = before
