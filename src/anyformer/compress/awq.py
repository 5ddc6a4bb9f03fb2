"""Activation-aware scales (Lin et al., 2023; arXiv:2306.00978): inputs with large values get finer steps.

    W x = (W diag(s)) (diag(1 / s) x)        s_i = rms(x_i)^a / sqrt(max s min s)        a of 0, 0.05 … 0.95

diag(1 / s) is folded into the part before, so that nothing is computed more: into a norm whose output only these
matrices read, into the values of an attention for `o`, into `up` of a gated MLP for `down`. Where the paths alone do
not tell whether a fold changes the function (a residual that also reads the norm), the model is asked: a fold that
moves its outputs is undone, and its matrices are rounded without scales.

I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.compress.calibrate import Seen
from anyformer.compress.held import Inputs
from anyformer.compress.rounding import output_error, rtn
from anyformer.core.slots import Norm
from anyformer.parts.attention.attention import Attention
from anyformer.parts.ffn import GatedMLP

POWERS = tuple(n / 20 for n in range(20))
SAME = 1e-3  # of the largest output: more than rounding, less than a fold that goes wrong


@dataclass(frozen=True)
class Fold:
    """Matrices that read one vector, and the part before that can be divided. `groups`: neighbours that share a scale,
    (heads of a key/value head, width), or None."""

    into: str
    readers: tuple[str, ...]
    rows: nn.Module
    groups: tuple[int, int, int] | None = None


@torch.no_grad()
def fold(
    model: Any, linears: Mapping[str, nn.Linear], seen: Mapping[str, Seen], inputs: Inputs, bits: int, group: int
) -> dict[str, str]:
    """Scales the matrices of a model and divides the parts before, in place; `seen` follows.

    Returns:
        For each matrix that was scaled, the part that was divided.
    """
    done: dict[str, str] = {}
    before = _outputs(model, inputs)
    for one in folds(model, linears, inputs):
        if any(path in done or not seen[path].rows for path in one.readers):
            continue
        scale = _best(one, linears, seen, bits, group)
        if scale is None:
            continue
        _apply(one, linears, scale)
        if _moved(before, _outputs(model, inputs)):
            _apply(one, linears, 1 / scale)
            continue
        for path in one.readers:
            seen[path].products /= scale[:, None] * scale
            done[path] = one.into
    return done


def folds(model: Any, linears: Mapping[str, nn.Linear], inputs: Inputs) -> list[Fold]:
    """The folds that the model's paths offer, not yet tried."""
    made, read = dict[int, str](), dict[str, list[str]]()
    kept: list[Tensor] = []  # so that no other tensor gets its number
    modules = dict(model.named_modules())
    hooks = []

    def norm_of(path: str) -> Callable[..., None]:
        def hook(_: Any, args: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                kept.append(out)
                made[id(out)] = path

        return hook

    def reader_of(path: str) -> Callable[..., None]:
        def hook(_: Any, args: Any) -> None:
            if (owner := made.get(id(args[0]))) is not None and path not in read.setdefault(owner, []):
                read[owner].append(path)

        return hook

    for path, module in modules.items():
        if isinstance(module, Norm) and getattr(module, "weight", None) is not None:
            hooks.append(module.register_forward_hook(norm_of(path)))
        elif path in linears:
            hooks.append(module.register_forward_pre_hook(reader_of(path)))
    model(**inputs)
    for hook in hooks:
        hook.remove()
    found = [Fold(norm, tuple(paths), modules[norm]) for norm, paths in read.items()]
    for path, module in modules.items():
        if isinstance(module, Attention) and {f"{path}.o", f"{path}.v"} <= linears.keys():
            groups = module.kv_heads, module.heads // module.kv_heads, module.head_dim
            found.append(Fold(f"{path}.v", (f"{path}.o",), module.v, groups))
        if isinstance(module, GatedMLP) and {f"{path}.down", f"{path}.up"} <= linears.keys():
            found.append(Fold(f"{path}.up", (f"{path}.down",), module.up))
    return found


def _best(
    one: Fold, linears: Mapping[str, nn.Linear], seen: Mapping[str, Seen], bits: int, group: int
) -> Tensor | None:
    """The scales with the smallest error of the outputs, (I,); None if none is better than 1."""
    size = seen[one.readers[0]].mean.diagonal().sqrt().clamp(min=1e-8)  # (I,) rms of each input
    size = size / size.mean()
    if one.groups is not None:  # the heads of a key/value head share it
        size = size.unflatten(0, one.groups).mean(1, keepdim=True).expand(one.groups).flatten()
    best, chosen = float("inf"), None
    for power in POWERS:
        scale = size**power
        scale = (scale / (scale.max() * scale.min()).sqrt()).clamp(1e-3, 1e3)
        error = 0.0
        for path in one.readers:
            weight = linears[path].weight.float()
            error += output_error(weight, rtn(weight * scale, bits, group).matrix() / scale, seen[path].mean)
        if error < best:
            best, chosen = error, (scale if power else None)
    return chosen


def _apply(one: Fold, linears: Mapping[str, nn.Linear], scale: Tensor) -> None:
    for path in one.readers:
        linears[path].weight.mul_(scale.to(linears[path].weight.dtype))
    if one.groups is not None:
        scale = scale.unflatten(0, one.groups)[:, 0].flatten()
    for name, parameter in one.rows.named_parameters(recurse=False):
        if name in ("weight", "bias"):
            parameter.div_((scale[:, None] if parameter.ndim == 2 else scale).to(parameter.dtype))


def _outputs(model: Any, inputs: Inputs) -> list[Tensor]:
    out = model(**inputs)
    return [t.float() for t in (out.hidden, out.logits, out.memory) if t is not None]


def _moved(before: list[Tensor], after: list[Tensor]) -> bool:
    """True if any output is another one, beyond rounding."""
    pairs = zip(before, after, strict=True)
    return any(float((b - a).abs().max()) > SAME * float(b.abs().max()) for b, a in pairs)
