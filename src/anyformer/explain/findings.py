"""Heads and neurons as the report shows them: plain values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from anyformer.explain.attribution import named
from anyformer.explain.features import Explained
from anyformer.explain.labels import labels
from anyformer.explain.neurons import Neurons, neurons
from anyformer.explain.roles import WHAT, roles
from anyformer.explain.target import Target

FINDINGS = ("roles", "neurons")  # what `--method` shows beside shares of the input
READ = 256  # tokens of the texts whose maps are read for roles: each head that is measured is one more pass


def findings(
    model: Any, explained: Explained, kind: str, target: Target, texts: Sequence[str], at: int | None, head: str | None
) -> dict[str, Any]:
    """One section of the report: "roles" or "neurons" of the explained call, with more texts."""
    make: dict[str, Callable[[], dict[str, Any]]] = {
        "roles": lambda: _roles(model, explained, texts),
        "neurons": lambda: _neurons(model, neurons(model, explained.inputs, target, texts, at=at, head=head)),
    }
    return make[kind]()


def _roles(model: Any, explained: Explained, texts: Sequence[str]) -> dict[str, Any]:
    inputs, count = explained.inputs, max((v.shape[1] for v in explained.inputs.values() if v.ndim > 1), default=0)
    if texts:
        ids = model.tokenizer.encode("\n\n".join(texts))[:READ]
        inputs, count = named(model, ids), len(ids)
    made = roles(model, inputs)
    rows = [
        {
            "role": h.role, "what": WHAT[h.role] if not h.offset else f"{h.offset} positions back", "head": h.head,
            "path": h.path, "score": _short(h.score), "untrained": _short(h.untrained), "effect": _short(h.effect),
            "beside": [_short(v) for v in sorted(made.beside[h.role])],
        }
        for h in made.found
    ]  # fmt: skip
    maps = {name: [[round(float(v), 3) for v in layer] for layer in scores] for name, scores in made.scores.items()}
    unit = "nats a token" if any(v is not None for v in made.loss.values()) else "of the output"
    return {"rows": rows, "maps": maps, "layers": list(made.layers), "unit": unit, "read": count,
            "loss": {n: None if v is None else _short(v) for n, v in made.loss.items()}}  # fmt: skip


def _neurons(model: Any, made: Neurons) -> dict[str, Any]:
    rows = []
    for n in made.found:
        contexts = [
            {"words": labels(model.tokenizer, c.ids), "at": c.at, "active": _short(c.active)} for c in n.contexts
        ]
        rows.append(
            {
                "path": n.path,
                "unit": n.unit,
                "share": _short(n.share),
                "effect": _short(n.effect),
                "active": _short(n.active),
                "at": n.at,
                "contexts": contexts,
                "promotes": labels(model.tokenizer, [i for i, _ in n.promotes]),
                "suppresses": labels(model.tokenizer, [i for i, _ in n.suppresses]),
            }
        )
    return {"rows": rows, "score": _short(made.score), "silent": made.silent}


def _short(value: float) -> float:
    return float(f"{value:.4g}")
