"""The time of an import, on top of that of PyTorch.

Both packages import their names on first use. So the bare import is measured, and the import with the names that a
program needs: here all public ones, of transformers those that load a model and its tokenizer. Every turn is a new
process, in which PyTorch is imported before the clock starts; the files are in the page cache.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

from benchmarks.contest import Contestant, afresh, ratio, spread
from benchmarks.report import Claim, Section, row, times

CONTESTANTS = {
    "ours": Contestant("`import anyformer`"),
    "hf": Contestant("`import transformers`", against="ours"),
    "ours_names": Contestant("`import anyformer`, every public name"),
    "hf_names": Contestant("`import transformers`, `AutoModelForCausalLM` and `AutoTokenizer`", against="ours_names"),
}
NAMES = ("AutoModelForCausalLM", "AutoTokenizer")


def build(name: str) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """No facts, and the function that imports once and returns the seconds."""
    import torch  # noqa: F401 (imported before the clock starts)

    def serve(request: dict[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        module = importlib.import_module("anyformer" if name.startswith("ours") else "transformers")
        if name.endswith("_names"):
            for public in module.__all__ if name.startswith("ours") else NAMES:
                getattr(module, public)
        return {"seconds": time.perf_counter() - start}

    return {}, serve


def run(rounds: int = 7) -> Section:
    """The section of the report."""
    notes: list[str] = []
    answers = afresh("imports", CONTESTANTS, rounds, {}, notes)
    seconds = {key: [answer["seconds"] for answer in rows] for key, rows in answers.items()}
    table, claims = [row("after `import torch`", "s", "time / ours")], []
    for key, taken in seconds.items():
        ours = CONTESTANTS[key].against
        table.append(row(CONTESTANTS[key].name, _figure(taken), times(ratio(taken, seconds[ours])) if ours else ""))
        if ours:
            what = CONTESTANTS[ours].name
            figures = (f"{_figure(seconds[ours])} s", f"{_figure(taken)} s")
            claims.append(Claim(what, CONTESTANTS[key].name, *figures, ratio(taken, seconds[ours]), rounds))
    reached = spread(seconds["ours_names"])[0] <= 0.3
    aim = f"Aim: every public name in at most 0.3 s: {'reached' if reached else 'missed'}."
    text = f"{(__doc__ or '').strip()}\n\nRounds: {rounds}; medians (quartiles). {aim}"
    return Section("Imports", text, table, claims, notes)


def _figure(seconds: list[float]) -> str:
    """A median with two significant digits, in seconds."""
    return f"{spread(seconds)[0]:.2g}"
