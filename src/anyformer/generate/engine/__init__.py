"""A second engine behind `generate`: the steps of a model as graphs for ONNX Runtime.

```
model ── plan ── trace ──┬─ few.onnx   1 to 3 rows   ──┐
   step.py  lower/  graph.py                            ├── Engined: the same calls, the same state
                         └─ many.onnx  prompts, batches ┘
```

step.py       one decoding step as a function of tensors; what the state of each mixer is in a graph
lower/        how parts become nodes, by their types; the forms of matrices
graph.py      the trace, and files written from it
program.py    a graph in ONNX Runtime, on memory of the caller
model.py      `Engined`, the model in front of programs
quality.py    programs compared with the model, on text
processor.py  what the flags of the processor allow
build.py      the cache: programs found or made

Needs the extra `anyformer[engine]`. Nothing here knows an architecture.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

ENGINES = ("auto", "torch", "onnx")

_made: weakref.WeakKeyDictionary[Any, dict[tuple[Any, ...], Any]] = weakref.WeakKeyDictionary()


def with_engine(model: Any, engine: str | None, precision: str = "auto") -> Any:
    """The model as an engine computes it; None leaves it as it is.

    "onnx" is ONNX Runtime; "auto" is ONNX Runtime if it is installed and computes the model, else PyTorch with the
    reason. The first use of a model builds its programs, which are cached; their quality is printed on stderr.

    Raises:
        ValueError: with "onnx", for a model that the engine does not compute, with the reason.
        ImportError: with "onnx", if a package is missing.
    """
    if engine is None:
        return model
    if engine == "torch":
        return getattr(model, "torch_model", model)
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(map(repr, ENGINES))}; got {engine!r}")
    if hasattr(model, "torch_model"):
        return model
    from anyformer.generate.engine.program import check_installed

    try:
        check_installed()
        return _engined(model, precision)
    except (ImportError, ValueError) as error:
        if engine == "onnx" or not isinstance(error, ImportError | _unsupported()):
            raise
        print(f"engine: torch, since {str(error).splitlines()[0]}", file=sys.stderr)
        return model


def _engined(model: Any, precision: str) -> Any:
    from anyformer.generate.engine.build import engined
    from anyformer.generate.engine.model import Engined

    now = (precision, tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters()))
    known = _made.setdefault(model, {})
    if now not in known:
        known.clear()  # of other weights
        try:
            made = engined(model, precision)
        except _unsupported() as error:
            known[now] = str(error)  # what took a minute to find out is not tried again
            raise
        known[now] = made.plan, made.programs, made.report
        print(made.report, file=sys.stderr)
    if isinstance(known[now], str):
        raise _unsupported()(known[now])
    return Engined(model, *known[now])


def _unsupported() -> type[Exception]:
    from anyformer.generate.engine.step import Unsupported

    return Unsupported
