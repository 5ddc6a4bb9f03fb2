"""Item 18: half precision stays close to float32, and files with several types name the right one."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.contract.check import LeftOut, check
from anyformer.contract.oracle import fresh
from anyformer.contract.probe import draw, expect, run
from anyformer.contract.subjects import Subject, apart_from_tiny, of_page
from anyformer.core.part import Part
from anyformer.core.recipe import Recipe
from anyformer.hub import load, save
from anyformer.hub.choose import of_diffusers
from anyformer.hub.load import NATIVE
from anyformer.parts import AutoCorrelation, ExpertChoice, ProbSparse
from anyformer.parts.codes import Codes
from anyformer.parts.sound.books import Books

HALF = torch.bfloat16
EPS = 2.0**-8  # half the distance of two numbers of bfloat16 near 1
ROUNDINGS = 3  # of a norm: the input of the product, the product, the shift, the output
WIDE = 4.0  # times the error of a float32 model whose every module's output is rounded


def rounded(model: nn.Module, batch: Any, dtype: torch.dtype = HALF) -> dict[str, Tensor]:
    """Outputs in float32 with the output of every module rounded to a type: the unavoidable error."""

    def round_it(module: nn.Module, inputs: Any, output: Any) -> Any:
        return output.to(dtype).float() if isinstance(output, Tensor) and output.dtype == torch.float32 else output

    hooks = [m.register_forward_hook(round_it) for m in model.modules() if m is not model]
    try:
        return run(model, batch)
    finally:
        for hook in hooks:
            hook.remove()


def both(subject: Subject) -> tuple[Any, Any]:
    """The model in bfloat16, and the same weights in float32."""
    half = fresh(subject.model).to(HALF)
    return half, fresh(half).float()


@check(18, "model", later=apart_from_tiny)
def norms_in_half_precision_match_float32(subject: Subject) -> float:
    """For the same input, a norm in bfloat16 gives the result of float32, up to a few roundings."""
    half, whole = both(subject)
    pairs, worst, hooks = dict(whole.named_modules()), [0.0], []
    paths = [path for path, module in half.named_modules() if "norm" in type(module).__name__.lower()
             and isinstance(module, Part) and not list(module.children())]  # fmt: skip
    if not paths:
        raise LeftOut("it has no norm")

    def compare(path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            wide = [x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
            with torch.no_grad():
                expected = pairs[path](*wide)
            size = expected.abs().amax(-1, keepdim=True).clamp(min=1e-3)
            off = float(((output.float() - expected).abs() / size).max())
            expect(off <= ROUNDINGS * EPS, f"{path}: off by {off / EPS:.1f} roundings of bfloat16")
            worst[0] = max(worst[0], off)

        return hook

    hooks = [half.get_submodule(path).register_forward_hook(compare(path)) for path in paths]
    try:
        run(half, draw(subject, random.Random(56), [9, 5], "left").to(HALF))
    finally:
        for hook in hooks:
            hook.remove()
    return worst[0]


def steady(subject: Subject) -> None:
    """Raises LeftOut for a model whose outputs jump where rounding changes a choice."""
    if subject.holds(ExpertChoice):
        raise LeftOut("rounding can change the tokens that an expert chooses")
    if subject.holds(ProbSparse) or subject.holds(AutoCorrelation):
        raise LeftOut("rounding can change the queries that attend, or the delays")
    if subject.holds(Books):
        raise LeftOut("rounding can change the code of a frame")
    if any(isinstance(v, Recipe) and v.part is Codes and v.draws != "soft" for _, v in subject.recipe.walk()):
        raise LeftOut("rounding can change the code of a cell")


@check(18, "model", later=apart_from_tiny)
def half_precision_stays_close_to_float32(subject: Subject) -> float:
    """In bfloat16, outputs are of that type, finite, and off by at most a few times the error of rounding each step."""
    steady(subject)
    half, whole = both(subject)
    batch = draw(subject, random.Random(57), [9, 9])
    return compared(run(half, batch.to(HALF)), run(whole, batch), rounded(whole, batch), HALF)


def stored_dtype_is_close_to_float32(subject: Subject) -> float:
    """In the default type of `load`, a file's model gives the outputs of float32, up to roundings of that type."""
    loaded = load(str(subject.path), **subject.options)
    types = {t.dtype for t in loaded.parameters() if t.is_floating_point()}
    expect(len(types) == 1, f"its weights have several dtypes: {', '.join(sorted(map(str, types)))}")
    steady(subject)
    dtype, batch = types.pop(), draw(subject, random.Random(58), [9, 9])
    if dtype == torch.float32:
        return max(
            float((stored - subject.model.state_dict()[n]).abs().max()) for n, stored in loaded.state_dict().items()
        )
    whole = subject.model
    return compared(run(loaded, batch.to(dtype)), run(whole, batch), rounded(whole, batch, dtype), dtype)


def compared(
    actual: dict[str, Tensor], expected: dict[str, Tensor], least: dict[str, Tensor], dtype: torch.dtype
) -> float:
    """The largest relative error of outputs in a type; at most a few times that of `least`, and never infinite."""
    worst = 0.0
    for name in (n for n in expected if not n.startswith("aux.")):
        wide = name.startswith("beside.") and actual[name].dtype == torch.float32  # places of atoms are never rounded
        expect(wide or actual[name].dtype == dtype, f"{name} is {actual[name].dtype}")
        expect(bool(actual[name].isfinite().all()), f"{name} is not finite")
        size = float(expected[name].square().mean().sqrt()) or 1.0  # of a single passage the log weight is 0
        off = float((actual[name].float() - expected[name]).square().mean().sqrt()) / size
        least_off = float((least[name] - expected[name]).square().mean().sqrt()) / size
        expect(off <= WIDE * (least_off + EPS), f"{name}: off by {off:.3f}, rounding alone by {least_off:.3f}")
        worst = max(worst, off)
    return worst


@check(18, "model", later=apart_from_tiny, needs=lambda s: None if of_page(s) else "its files do not name their dtype")
def stored_dtype_is_that_of_most_weights(subject: Subject) -> float:
    """If the first tensor alone has another type, the config names the type of the others."""
    model = fresh(subject.model).to(HALF)
    state = model.state_dict()
    first = next(iter(state))
    with tempfile.TemporaryDirectory() as folder:
        kind = save(model, folder, weights=state | {first: state[first].float()})
        config = json.loads((Path(folder) / "config.json").read_text())
        if kind == NATIVE or of_diffusers(config):
            raise LeftOut("its files do not name their dtype")
        names = {config[k] for k in ("dtype", "torch_dtype") if k in config}
        expect(names == {"bfloat16"}, f"the config names {names}; only {first} is float32")
    return 0.0
