"""Counters and times of a server, as Prometheus reads them. No text of a user is in them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds
HELP = {
    "requests_total": ("counter", "answers by route and status"),
    "prompt_tokens_total": ("counter", "tokens of prompts that were read"),
    "generated_tokens_total": ("counter", "tokens that were written"),
    "steps_total": ("counter", "passes over a batch"),
    "prefix_tokens_total": ("counter", "tokens of prompts whose state was in the prefix cache"),
    "prefix_bytes": ("gauge", "memory of the prefix cache"),
    "running": ("gauge", "texts that are being written"),
    "waiting": ("gauge", "texts that wait for a place"),
    "state_bytes": ("gauge", "memory of keys, values and recurrent states"),
    "first_token_seconds": ("histogram", "from a request to its first token"),
}


class Metrics:
    """Numbers by name and labels; any thread may change them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, dict[tuple[tuple[str, str], ...], float]] = {name: {} for name in HELP}

    def add(self, name: str, value: float, **labels: str) -> None:
        """Adds to a counter."""
        with self._lock:
            entry = self._values[name]
            key = tuple(labels.items())
            entry[key] = entry.get(key, 0.0) + value

    def set(self, name: str, value: float, **labels: str) -> None:
        """Sets a gauge."""
        with self._lock:
            self._values[name][tuple(labels.items())] = value

    def first(self, born: float, model: str) -> None:
        """Counts the first token of a request that came at that time."""
        took, name = time.monotonic() - born, "first_token_seconds"
        for bound in (*BOUNDS, float("inf")):
            self.add(name, float(took <= bound), model=model, le="+Inf" if bound == float("inf") else f"{bound}")
        self.add(name, took, model=model)

    def text(self) -> str:
        """All of it in Prometheus's format."""
        with self._lock:
            values = {name: dict(entry) for name, entry in self._values.items()}
        return "\n".join(_lines(values)) + "\n"


def _lines(values: dict[str, dict[tuple[tuple[str, str], ...], float]]) -> Iterator[str]:
    for name, (kind, text) in HELP.items():
        full = f"anyformer_{name}"
        yield f"# HELP {full} {text}"
        yield f"# TYPE {full} {kind}"
        for labels, value in values[name].items():
            parts = ("_bucket" if any(k == "le" for k, _ in labels) else "_sum") if kind == "histogram" else ""
            shown = ",".join(f'{k}="{_escaped(v)}"' for k, v in labels)
            yield f"{full}{parts}{{{shown}}} {value:g}" if shown else f"{full}{parts} {value:g}"
            if labels[-1:] == (("le", "+Inf"),):
                yield f'{full}_count{{{labels[0][0]}="{_escaped(labels[0][1])}"}} {value:g}'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
