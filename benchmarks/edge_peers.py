"""One float32 model in the small forms of several tools: bytes, time, metric and divergence in one run on one machine.

The model is the page's own with layers all alike, trained on a task's rows. Beside its file stand ours in 8 and in 4
bits, with products of floats and of whole numbers (`--products int8`); ONNX Runtime's dynamic int8; the packages hqq
and auto-round on the same matrices, in our layout; NNCF with OpenVINO; and a student of half the layers, each second
one of the model's at first, that learns from labels and from the model for as long as the model had (Sanh et al., 2019;
arXiv:1910.01108). A tool that is not there is a row with the reason.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyformer.compress import few
from anyformer.core import pages
from anyformer.core.rewrite import replace
from anyformer.edge import artefact, finish, learn
from anyformer.edge.design import Design
from anyformer.edge.device import timed
from anyformer.edge.medium import Texts
from anyformer.edge.shared import GROUP
from anyformer.edge.space import Choice
from anyformer.edge.targets import Onnx
from anyformer.edge.wish import Wish
from anyformer.parts.quantised import grid_of
from benchmarks import rounders

SPACE: dict[str, Any] = {
    "dim": [128], "depth": [2, 4], "vocab": [8192], "pool": ["additive"], "bits": [8, 4], "mixer": ["own"],
    "heads": [4], "kv_heads": [0], "hidden": [4],
}  # fmt: skip
ROUNDS = 5  # of `device.timed`, over all forms
CALIBRATED = 128  # rows from which auto-round learns


@dataclass
class Form:
    """A form of the model. `run`: its inputs by name to logits. `note`: what a reader must know."""

    bytes: int
    run: Callable[..., Any]
    note: str = ""


def table(task: str, metric: str, seconds: float, seed: int = 0) -> str:
    """The table of all forms."""
    with tempfile.TemporaryDirectory() as folder:
        wish = Wish(task, metric, 10**9, 1e9, values=SPACE, seed=seed)
        design = Design(wish, Path(folder) / "design", say=print)
        every = list(design.space.uniform())
        large, small = (next(c for c in every if c["depth"] == depth) for depth in (4, 2))
        model = _trained(design, large, seconds)
        forms, missing = _forms(design, model, {"large": large, "small": small}, seconds, Path(folder))
        about = f"The model: {design.space.recipe(large)!r}; {seconds:.0f} s of learning, seed {seed}"
        return _table(design, forms, missing, about)


def _trained(design: Design, choice: Choice, seconds: float, first: Any = None) -> Any:
    """A model of a choice after so long; `first`: a model whose weights it begins with, by name."""
    made: Any = pages.build(design.space.recipe(choice), seed=design.wish.seed)
    if first is not None:
        step, own = len(first.blocks) // len(made.blocks), first.state_dict()
        for name, weight in made.state_dict().items():
            head, *rest = name.split(".")
            taken = f"blocks.{int(rest[0]) * step}.{'.'.join(rest[1:])}" if head == "blocks" else name
            weight.copy_(own[taken])
    learn.fit(made, design.task, choice["vocab"], seconds, seed=design.wish.seed)
    return made.eval()


def _forms(
    design: Design, model: Any, choices: dict[str, Choice], seconds: float, folder: Path
) -> tuple[dict[str, Form], dict[str, str]]:
    """The forms, and those that there are not, with the reason."""
    task, large = design.task, choices["large"]

    def student() -> Any:
        part = task.parts["learn"]
        part.soft = task.answers(learn.logits_of(model), part, large["vocab"])
        try:
            return _trained(design, choices["small"], seconds, model)
        finally:
            part.soft = None

    def ours(one: Any, bits: int) -> Any:
        return finish.stored(one, task, {**large, "bits": bits}, 0)[0]

    def rows() -> list[Tensor]:
        """Ids of rows that teach, of one length, one behind the other."""
        assert isinstance(task.medium, Texts)
        ids = [i for row in task.medium.ids(task.parts["learn"], large["vocab"]) for i in row]
        tokens = design.wish.tokens
        return [torch.tensor([ids[at : at + tokens]]) for at in range(0, CALIBRATED * tokens, tokens)]

    task.medium.attach(model, large["vocab"])
    halved = student()
    base, ready = folder / "float32.onnx", folder / "ready.onnx"
    ways: dict[str, Callable[[Path], Form]] = {
        "float32": lambda file: _file(model, base),
        "8 bits": lambda file: _file(ours(model, 8), file),
        "8 bits, int8 products": lambda file: _file(ours(model, 8), file, whole=True),
        "4 bits, tables in 8": lambda file: _file(ours(model, 4), file),
        "4 bits, tables in 8, int8 products": lambda file: _file(ours(model, 4), file, whole=True),
        "ONNX Runtime, dynamic int8": lambda file: dynamic(_ready(base, ready), file),
        "HQQ's package, 4 bits, tables in 8": lambda file: _file(of_package(model, None), file),
        "auto-round's package, 4 bits, tables in 8": lambda file: _file(of_package(model, rows()), file),
        "NNCF, int8 weights, OpenVINO": lambda file: openvino(_ready(base, ready), file, "INT8_ASYM"),
        "NNCF, int4 weights, OpenVINO": lambda file: openvino(_ready(base, ready), file, "INT4_ASYM"),
        "half the layers, float32": lambda file: _file(halved, file),
        "half the layers, 8 bits": lambda file: _file(ours(halved, 8), file),
    }
    forms, missing = dict[str, Form](), dict[str, str]()
    for number, (name, way) in enumerate(ways.items()):
        try:
            forms[name] = way(folder / f"{number}.onnx")
        except Exception as error:  # of other tools; their types are not known
            missing[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
        print(name, missing.get(name, "written"), flush=True)
    return forms, missing


def _file(model: Any, path: Path, whole: bool = False) -> Form:
    artefact.write(model, path, whole=whole)
    return Form(path.stat().st_size, artefact.opened(path))


def _ready(base: Path, path: Path) -> Path:
    """The file with its constants computed, as these tools want it: a transposed matrix is a matrix."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if not path.exists():
        quant_pre_process(str(base), str(path), skip_symbolic_shape=True)
    return path


def dynamic(base: Path, path: Path) -> Form:
    """Matrices and tables in int8, and what meets a matrix rounded to int8 as it runs (`quantize_dynamic`)."""
    import onnx
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(base), str(path), weight_type=QuantType.QInt8)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    left = sum(kind in ("MatMul", "Gemm") for kind in kinds)
    note = f"{kinds.count('MatMulInteger')} products in int8, {left} are not; onnxruntime {onnxruntime.__version__}"
    return Form(path.stat().st_size, artefact.opened(path), note)


def of_package(model: Any, rows: list[Tensor] | None) -> Any:
    """The matrices of our plan as a package rounds them, stored as ours are: hqq, or auto-round, which learns those of
    the blocks from some rows of ids; the others are rounded to the nearest."""
    made = copy.deepcopy(model)
    learned = {} if rows is None else rounders.auto_round(_published(model), rows, 4, GROUP)
    entries = [e for e in few.plan(made, 4, GROUP) if e.bits is not None]
    for path, bits in [(e.path, e.bits or 0) for e in entries if rows is None or e.path in learned]:
        base: Any = made.get_submodule(path)
        grid = grid_of(base, bits, GROUP)
        _put(grid, rounders.hqq(base.weight, bits, GROUP) if rows is None else learned[path])
        replace(made, path, grid)
    if rows is not None:
        few.quantise(made, few.Work("rtn", GROUP, [e for e in entries if e.path not in learned]))
    return made


def _put(grid: Any, found: rounders.Rounded) -> None:
    scale, zero = (t.repeat_interleave(GROUP, 1)[:, : found.weight.shape[1]] for t in found[1:])
    grid.put((found.weight / scale + zero).round(), found.scale, found.zero)


def _published(model: Any) -> Any:
    """The page's model of these weights without pool and head, as others read it."""
    r = dict(model.recipe.walk())
    sizes = {
        "dim": r["dim"], "depth": len(model.blocks), "heads": r["blocks.0.mixer.heads"], "vocab": r["embed.vocab"],
        "hidden": r["blocks.0.ffn.hidden"], "context": r["context"], "task": "none",
    }  # fmt: skip
    made: Any = pages.build("bert", overrides=sizes)
    own = {n: t for n, t in model.state_dict().items() if not n.startswith(("pool.", "heads."))}
    made.load_state_dict(own, strict=False)  # the published one has a pooler
    made.tokenizer = model.tokenizer
    return made.eval()


def openvino(base: Path, path: Path, mode: str) -> Form:
    """Weights rounded by NNCF, run by OpenVINO on one thread in float32."""
    import nncf
    import openvino as ov

    kind = getattr(nncf.CompressWeightsMode, mode)
    groups = {} if mode.startswith("INT8") else {"group_size": GROUP, "ratio": 1.0}
    small = nncf.compress_weights(ov.convert_model(str(base)), mode=kind, **groups)
    file = path.with_suffix(".xml")
    ov.save_model(small, str(file), compress_to_fp16=False)
    config = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    made = ov.Core().compile_model(str(file), "CPU", config)
    size = file.stat().st_size + file.with_suffix(".bin").stat().st_size
    note = f"nncf {nncf.__version__}, openvino {ov.__version__.partition('-')[0]}"
    return Form(size, lambda **given: made({n: t.numpy() for n, t in given.items()})[0], note)


def _table(design: Design, forms: dict[str, Form], missing: dict[str, str], about: str) -> str:
    task, test = design.task, design.task.parts["test"]
    (vocab,) = design.space.model["vocab"]
    row = design.task.medium.batch(test, vocab, [0])
    noise = torch.Generator().manual_seed(0)
    row = {n: torch.ones(1, design.wish.tokens, dtype=t.dtype) for n, t in row.items()}
    row["input_ids"] = torch.randint(0, vocab, (1, design.wish.tokens), generator=noise)
    runs: dict[str, Callable[[], Any]] = {n: (lambda f=f: f.run(**row)) for n, f in forms.items()}  # type: ignore[misc]
    turns = [timed(runs) for _ in range(ROUNDS)]

    def answers(form: Form) -> Tensor:
        return task.answers(lambda **given: torch.as_tensor(form.run(**given)), test, vocab)

    said = {name: answers(form) for name, form in forms.items()}
    first = next(iter(said.values()))
    what = "squared difference" if task.outputs == 1 else "nats"
    lines = [
        f"| | bytes | {design.wish.tokens} tokens | {design.wish.metric} | {what} from float32 |",
        "|---|---|---|---|---|",
    ]
    for name, form in forms.items():
        low, high = task.interval(said[name], test)
        value = f"{task.measure(said[name], test):.4f} ({low:.4f} to {high:.4f})"
        ms, off = min(t[name] for t in turns), finish.moved(task, said[name], first)
        lines.append(f"| {name} | {form.bytes:,} | {ms:.2f} ms | {value} | {off:.1e} |")
    lines += [f"| {name} | not run: {why} | | | |" for name, why in missing.items()]
    notes = [f"{name}: {form.note}" for name, form in forms.items() if form.note]
    sizes = (
        f"{len(test.labels):,} rows not seen before, in brackets 95 %; the least median of {3 * ROUNDS} rounds in turn"
    )
    return "\n".join([*lines, "", f"{about}. {sizes}. {'; '.join(notes)}. {Onnx().conditions()}."])
