"""Item 19: first weights have the oracle's sizes."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from anyformer.contract.check import LeftOut, check
from anyformer.contract.oracle import as_theirs, build, oracle, written
from anyformer.contract.probe import expect
from anyformer.contract.subjects import Subject, apart_from_tiny
from anyformer.core.init import initialise
from anyformer.hub.formats.safetensors import open_weights
from anyformer.hub.tables.weights import Hub
from anyformer.parts.heads import Kept

SIGMAS = 6.0  # of the sampling error of a standard deviation, 1 / sqrt(2 n)
# transformers draws these into a copy, or by a rule that their class does not inherit (ESMFold's trunk and heads); ours
# are the paper's
LOST = (".parametrizations.weight.", "trunk.", "lddt_head.", "distogram_head.", "ptm_head.")
FEW = 32  # values: with fewer, chance decides the size


@check(19, "files", later=apart_from_tiny)
def initial_weights_match_the_oracle(subject: Subject, hub: Hub) -> float:
    """Every tensor of a new model has the standard deviation of the oracle's, within the sampling error; a constant is
    the same constant."""
    if hub.format == "diffusers":
        raise LeftOut("classes of diffusers have PyTorch's first weights, not their publishers'")
    side, schemes = oracle(subject, hub), ("depth", "normal")
    torch.manual_seed(0)
    theirs, made = new(subject, hub), {}
    for scheme in schemes:  # with and without GPT-2's rule for output projections, which ours takes everywhere
        model = subject.recipe.build()
        initialise(model, seed=0, scheme=scheme)
        kept = {f"{path}." for path, module in model.named_modules() if isinstance(module, Kept)}
        used = {n: t for n, t in model.state_dict().items() if not n.startswith(tuple(kept))}
        made[scheme] = as_theirs(side, hub, used)
    off = {
        s: {n: w for n, v in made[s].items() if n in theirs and not lost(n) and (w := differs(v, theirs[n]))}
        for s in schemes
    }
    wrong = min(off.values(), key=len)  # one scheme must hold for all tensors
    expect(bool(made["depth"].keys() & theirs.keys()), "no tensor has a name of theirs")
    expect(not wrong, "; ".join(f"{name}: {why}" for name, why in wrong.items()))
    return 0.0


def lost(name: str) -> bool:
    """True for a tensor whose first weights transformers draws by another rule than its publishers'."""
    return any(part in name for part in LOST)


def new(subject: Subject, hub: Hub) -> dict[str, Tensor]:
    """The tensors of a new model of theirs, by their names in files."""
    with tempfile.TemporaryDirectory() as folder:
        written(build(subject, hub), Path(folder), hub)
        file = open_weights(folder)
        return {name: file.get(name).clone() for name in file.names()}


def differs(actual: Tensor, expected: Tensor) -> str:
    """The difference in size of two first weights, as text; "" if there is none."""
    count = actual.numel()
    if count == 1 and float(expected) not in (0.0, 1.0):
        return ""  # a single value that was drawn
    a, b = (float(t.float().std(correction=0)) for t in (actual, expected))
    if b < 1e-9:
        same = a < 1e-9 and math.isclose(float(actual.float().mean()), float(expected.float().mean()), abs_tol=1e-6)
        return (
            "" if same else f"mean {actual.float().mean():.3g}, std {a:.3g}, expected all {expected.float().mean():.3g}"
        )
    if count < FEW:
        return ""
    off = abs(math.log(a / b)) if a > 0 else math.inf
    return "" if off <= SIGMAS / math.sqrt(count) else f"std {a:.4f}, expected {b:.4f}"
