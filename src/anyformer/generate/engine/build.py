"""Programs of a model: found in the cache, or made, compared with the model, timed, and stored.

A program is stored under the hash of the recipe, of the weights, and of what else decides its content. Its folder:

    few.onnx    few.onnx.weights      at most 3 rows: a text that is written alone, in blocks of 4 bits
    many.onnx   many.onnx.weights     all else: prompts, batches, guesses
    report.json                       forms, quality, threads

$ANYFORMER_CACHE moves the cache; deleting it is always safe.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from anyformer.generate.engine import processor
from anyformer.generate.engine.graph import Trace
from anyformer.generate.engine.lower.weights import Blocks, Float32, Form, Rows, is_affine
from anyformer.generate.engine.model import MANY, Engined
from anyformer.generate.engine.program import Program
from anyformer.generate.engine.quality import Quality, compare, opened, sample
from anyformer.generate.engine.step import Plan, Unsupported, plan

MAKING, STALE = ".making-", 86_400  # the names of unfinished folders; seconds after which they are abandoned
VERSION = 1  # of what this code makes of a model
FEW = 3  # rows up to which blocks are faster than rows of 8 bits (research: flat up to 16 rows, not so blocks)
WINDOWS = 8  # of 512 tokens, on which the quality is measured: a standard error of about 0.001
PRECISIONS = ("auto", "float32", "int8", "int4")


@dataclass(frozen=True)
class Choice:
    """A program to be made: its name, the most rows that it computes, the form of its matrices, and the form's kind."""

    name: str
    most: int
    form: Form
    kind: str


@dataclass
class Report:
    """The programs of a model and their quality."""

    precision: str
    threads: int
    built: float  # seconds
    programs: list[dict[str, Any]] = field(default_factory=list)  # name, most, kind
    quality: dict[str, dict[str, Any]] = field(default_factory=dict)  # by name
    note: str = ""

    def __str__(self) -> str:
        kinds = {"int4": "4-bit blocks", "int8": "8-bit rows", "float32": "float32"}
        lines = [f"onnx: {self.threads} threads, built in {self.built:.0f} s" + (f"; {self.note}" if self.note else "")]
        for program in self.programs:
            rows = "" if program["most"] == MANY else f" up to {program['most']} rows"
            lines.append(f"  {kinds[program['kind']]}{rows}: {Quality(**self.quality[program['name']])}")
        return "\n".join(lines)


def engined(model: Any, precision: str = "auto", known: frozenset[str] | None = None) -> Engined:
    """The model with its steps computed by ONNX Runtime, from the cache or made now.

    Args:
        precision: "float32"; "int8"; "int4"; "auto": 4 bits where the weights come from a file of 4 bits, else 8.
        known: the flags of the processor; its own by default.

    Raises:
        Unsupported: for a model that the engine does not compute, or whose quality is out of bounds, with the reason.
        ImportError: if the packages are missing.
    """
    made = fitting(model)
    choices, note = _choices(model, precision, processor.flags() if known is None else known)
    folder = store() / key(model, [precision, note, *(f"{c.name} {c.most} {c.kind}" for c in choices)])
    if not (folder / "report.json").is_file():
        _build(model, made, choices, folder, precision, note)
    report = Report(**json.loads((folder / "report.json").read_text(encoding="utf-8")))
    programs = [(p["most"], Program(folder / f"{p['name']}.onnx", report.threads)) for p in report.programs]
    return Engined(model, made, programs, report)


def fitting(model: Any) -> Plan:
    """The plan of a model.

    Raises:
        Unsupported: for one that the engine does not compute.
    """
    like = next(model.parameters())
    if like.device.type != "cpu" or any(p.dtype != torch.float32 for p in model.parameters()):
        raise Unsupported(f"the engine reads float32 weights on the CPU; these are {like.dtype} on {like.device.type}")
    return plan(model)


def store() -> Path:
    """The folder of all programs."""
    own, shared = os.environ.get("ANYFORMER_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own or Path(shared or "~/.cache") / "anyformer").expanduser() / "engine"


def key(model: Any, more: Sequence[str]) -> str:
    """The hash of a model's recipe and weights, and of other texts."""
    import onnxruntime

    sums = hashlib.sha256()
    texts = [str(VERSION), torch.__version__, onnxruntime.__version__, json.dumps(model.recipe.to_json()), *more]
    for text in texts:
        sums.update(text.encode() + b"\0")
    for name, tensor in model.state_dict().items():
        sums.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sums.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sums.hexdigest()[:32]


def _choices(model: Any, precision: str, known: frozenset[str]) -> tuple[list[Choice], str]:
    """The programs of a precision on a processor, and what to say about them."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}; got {precision!r}")
    exact, note = processor.exact_products(known), ""
    if precision == "auto":
        four = any(_four(m) for m in model.modules())
        precision = "four" if four else "int8" if exact else "float32"
    many = Choice("many", MANY, Rows(), "int8") if exact else Choice("many", MANY, Float32(), "float32")
    if not exact:
        note = "this processor sums 8-bit products in 16 bits (no VNNI), so many rows are float32"
    if precision == "float32":
        return [Choice("many", MANY, Float32(), "float32")], ""
    if precision == "int8":
        if not exact:
            raise Unsupported(f"precision='int8': {note}; use 'float32', 'int4' or 'auto'")
        return [many], note
    return [Choice("few", FEW, Blocks(4 if precision == "int4" else 0), "int4"), many], note


def _four(module: Any) -> bool:
    """True for a large matrix whose weights are those of 4 bits."""
    weight = module.weight if type(module) is torch.nn.Linear else None
    return weight is not None and weight.shape[1] % 32 == 0 and is_affine(weight.detach()[:16])  # some rows tell


def _build(model: Any, made: Plan, choices: list[Choice], folder: Path, precision: str, note: str) -> None:
    began = time.perf_counter()
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f"{MAKING}*"):  # of a process that was killed
        if time.time() - left.stat().st_mtime > STALE:
            shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=MAKING))
    training = model.training
    try:
        model.eval()
        trace = Trace(model, made)
        report = Report(precision, 1, 0.0, note=note)
        for choice in choices:
            trace.write(temporary / f"{choice.name}.onnx", choice.form)
        for choice, quality in zip(choices, _compared(model, made, choices, temporary), strict=True):
            if not quality.good:
                raise Unsupported(
                    f"{choice.kind} changes this model too much: {quality}; use precision='float32', or another one"
                )
            report.programs.append({"name": choice.name, "most": choice.most, "kind": choice.kind})
            report.quality[choice.name] = asdict(quality)
        report.threads = _threads(model, made, temporary / f"{choices[0].name}.onnx")
        report.built = time.perf_counter() - began
        (temporary / "report.json").write_text(json.dumps(asdict(report), indent=2), encoding="utf-8")
        try:
            os.replace(temporary, folder)
        except OSError:  # another process was quicker
            if not (folder / "report.json").is_file():
                raise
    finally:
        model.train(training)
        shutil.rmtree(temporary, ignore_errors=True)


def _compared(model: Any, made: Plan, choices: list[Choice], folder: Path) -> list[Quality]:
    threads = torch.get_num_threads()
    try:
        programs = [Program(folder / f"{choice.name}.onnx", threads) for choice in choices]
        pairs = [(Engined(model, made, [(MANY, p)]), c.kind) for p, c in zip(programs, choices, strict=True)]
        return compare(model, pairs, sample(model, WINDOWS))
    except (ValueError, RuntimeError) as error:  # a state of limited length; a graph that ONNX Runtime cannot run
        raise Unsupported(f"{model.page or type(model).__name__}: {str(error).splitlines()[0][:300]}") from error


def _threads(model: Any, made: Plan, path: Path) -> int:
    """The number of threads with which a text is written fastest."""
    most = torch.get_num_threads()
    candidates = sorted({1, max(1, most // 2), most})
    if len(candidates) == 1:
        return most
    took = {n: _step_time(model, Engined(model, made, [(MANY, Program(path, n))])) for n in candidates}
    return min(took, key=lambda n: took[n])


@torch.inference_mode()
def _step_time(model: Any, engine: Engined) -> float:
    """The median time of a token, in seconds."""
    name = model.target + engine._entrance.front.main
    state, ids, took = model.start(1, 32), torch.zeros(1, 1, dtype=torch.long), []
    opened(model, state, ids)
    for _ in range(16):
        began = time.perf_counter()
        engine(**{name: ids}, state=state, last=True)
        took.append(time.perf_counter() - began)
    return sorted(took[2:])[7]
