"""Fewer heads, hidden units, layers or weights, for any model, by path.

| rule | removes | those with the least |
|---|---|---|
| heads=25% | groups of a key/value head with its query heads; of one group, query heads | energy in the output |
| ffn=50% | hidden units of feed-forward parts | energy in the output |
| depth=2 | blocks between the first and the last | influence, 1 - cos(input, output) (arXiv:2403.03853) |
| weights=50% | single weights of each row, set to 0 | weight x input (Sun et al., 2023; arXiv:2306.11695) |
| 2:4 | two of four neighbours, set to 0 | the same |

The first three take rows and columns out for real: the recipe changes with them, and parameters, operations and time
become fewer. The last two leave every size as it is.

H heads, G key/value heads, K width of a head, F hidden units, I inputs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.compress.calibrate import Seen, calibrate, check
from anyformer.compress.held import Inputs
from anyformer.core import pages
from anyformer.core.part import Part
from anyformer.core.rewrite import replace, select
from anyformer.parts.attention.attention import Attention
from anyformer.parts.factored import Factored, factors
from anyformer.parts.ffn import MLP, GatedMLP
from anyformer.parts.moe import Router
from anyformer.parts.positions import RelativeBias

RULE = re.compile(r"(heads|ffn|weights)=(\d+(?:\.\d+)?)%|(depth)=(\d+)|(2:4)")


@dataclass
class Cut:
    """The result of a rule. `changed`: path -> what became of it; `left`: path -> why not."""

    rule: str
    changed: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    zeros: dict[str, float] = field(default_factory=dict)  # the share of zeros, of rules that leave sizes


@torch.no_grad()
def prune(model: Any, rule: str, batches: Sequence[Inputs]) -> Cut:
    """Applies one rule to a model, in place.

    Args:
        rule: see above. batches: real inputs, which say what matters.

    Raises:
        ValueError: for an unknown rule, a share that leaves nothing or removes nothing, or a model without such parts.
    """
    match = RULE.fullmatch(rule)
    if match is None:
        raise ValueError(f"--prune {rule!r}: expected heads=25%, ffn=50%, depth=2, weights=50% or 2:4")
    cut = Cut(rule)
    if match[1] and not 0 < float(match[2]) < 100:
        raise ValueError(f"--prune {rule!r}: the share must be above 0 % and below 100 %")
    if match[1] == "heads":
        _heads(model, float(match[2]) / 100, batches, cut)
    elif match[1] == "ffn":
        _hidden(model, float(match[2]) / 100, batches, cut)
    elif match[3]:
        _depth(model, int(match[4]), batches, cut)
    else:
        _weights(model, float(match[2]) / 100 if match[1] else None, batches, cut)
    if not cut.changed:
        why = "; ".join(f"{path}: {reason}" for path, reason in list(cut.left.items())[:3]) or "the model has none"
        raise ValueError(f"--prune {rule}: nothing can be removed ({why})")
    if not cut.zeros:
        _check_recipe(model, cut)
        model.page, model.config = None, None
    return cut


@torch.no_grad()
def factor(model: Any, rank: int, batches: Sequence[Inputs], keep: Sequence[str] = ()) -> Cut:
    """Replaces linear layers by products of two thin ones, where these have fewer numbers, in place.

    Args:
        rank: of each product. batches: real inputs: the error of the outputs is least. keep: path patterns.

    Raises:
        ValueError: for a rank below 1, or one at which no layer becomes smaller.
    """
    if rank < 1:
        raise ValueError(f"--factor: the rank must be at least 1, got {rank}")
    cut = Cut(f"rank={rank}")
    kept = {id(m) for part in (select(model, *keep, kind=nn.Module).values() if keep else ()) for m in part.modules()}
    routers = {id(m) for router in model.modules() if isinstance(router, Router) for m in router.modules()}
    chosen: dict[str, nn.Linear] = {}
    for path, module in model.named_modules():
        if type(module) is not nn.Linear:
            continue
        if id(module) in routers or id(module) in kept:
            cut.left[path] = "kept, as asked" if id(module) in kept else "a router: close scores choose the expert"
        elif rank * sum(module.weight.shape) >= module.weight.numel():
            cut.left[path] = f"no smaller with rank {rank}"
        else:
            chosen[path] = module
    if not chosen:
        raise ValueError(f"--factor {rank}: no linear layer becomes smaller; choose a smaller rank")
    seen = _seen(model, chosen, batches)
    for path, linear in chosen.items():
        made = Factored(linear, rank)
        made.A.data, made.B.data = factors(linear.weight, rank, seen[path].mean if seen[path].rows else None)
        replace(model, path, made)
        cut.changed[path] = f"{' x '.join(map(str, linear.weight.shape))} as rank {rank}"
    return cut


def _seen(model: Any, linears: dict[str, nn.Linear], batches: Sequence[Inputs]) -> dict[str, Seen]:
    seen = calibrate(model, linears, batches)
    check(seen, {p for p in seen if ".experts." in p}, len(batches))
    return seen


def _energy(linear: nn.Linear, seen: Seen, width: int) -> Tensor:
    """The energy that each run of `width` inputs brings to the output: sum of (W_b H_bb) * W_b, (I / width,)."""
    w = linear.weight.float().unflatten(1, (-1, width)).transpose(0, 1)  # (runs, O, width)
    runs = torch.arange(w.shape[0])
    blocks = seen.mean.unflatten(0, (-1, width)).unflatten(2, (-1, width))[runs, :, runs]  # (runs, width, width)
    return ((w @ blocks) * w).sum((1, 2))


def _heads(model: Any, share: float, batches: Sequence[Inputs], cut: Cut) -> None:
    every = {p: m for p, m in model.named_modules() if isinstance(m, Attention)}
    biased = any(isinstance(m, RelativeBias) for m in model.modules())
    chosen: dict[str, Any] = {}
    for path, part in every.items():
        if type(part) is not Attention or any(type(getattr(part, n)) is not nn.Linear for n in "qkvo"):
            cut.left[path] = f"a {type(part).__name__} with a form of its own"
        elif part.scores is not None or biased:
            cut.left[path] = "its scores have numbers for each head"
        elif round((part.heads if part.kv_heads == 1 else part.kv_heads) * share) < 1:
            cut.left[path] = f"{share:.0%} of its {part.kv_heads} groups are less than one"
        else:
            chosen[path] = part
    seen = _seen(model, {f"{p}.o": m.o for p, m in chosen.items()}, batches)
    for path, part in chosen.items():
        each = _energy(part.o, seen[f"{path}.o"], part.head_dim)  # (H,)
        single, per = part.kv_heads == 1, part.heads // part.kv_heads
        groups = each if single else each.unflatten(0, (-1, per)).sum(1)
        count = max(1, len(groups) - round(len(groups) * share))
        keep = groups.topk(count).indices.sort().values
        queries = keep if single else (keep[:, None] * per + torch.arange(per)).flatten()
        before = part.heads
        _take(part.q, 0, queries, part.head_dim)
        _take(part.o, 1, queries, part.head_dim)
        for name in () if single else ("k", "v"):
            _take(getattr(part, name), 0, keep, part.head_dim)
        part.heads, part.kv_heads = len(queries), 1 if single else count
        sizes = {"heads": part.heads, "kv_heads": part.kv_heads, "head_dim": part.head_dim}
        _said(model, path, part, sizes)
        part._shared = None if part._shared is None else (part._shared[0], part.heads)
        cut.changed[path] = f"{before} -> {part.heads} heads"
    generation = (model.origin or {}).get("generation", {})
    if cut.changed and generation.pop("alignment_heads", None) is not None:
        cut.left["alignment_heads"] = "the numbers of heads that time words have changed: the key was taken out"


def _hidden(model: Any, share: float, batches: Sequence[Inputs], cut: Cut) -> None:
    chosen: dict[str, Any] = {}
    for path, part in model.named_modules():
        if not isinstance(part, MLP | GatedMLP):
            continue
        if type(part) not in (MLP, GatedMLP) or type(part.down) is not nn.Linear or part.recipe is None:
            cut.left[path] = f"a {type(part).__name__} with a form of its own"
        elif round(part.down.in_features * share) < 1:
            cut.left[path] = f"{share:.0%} of its {part.down.in_features} units are less than one"
        else:
            chosen[path] = part
    seen = _seen(model, {f"{p}.down": m.down for p, m in chosen.items()}, batches)
    for path, part in chosen.items():
        each = _energy(part.down, seen[f"{path}.down"], 1)  # (F,)
        if not seen[f"{path}.down"].rows:  # an expert that met no token
            each = part.down.weight.float().square().sum(0)
        count = max(1, len(each) - round(len(each) * share))
        keep = each.topk(count).indices.sort().values
        for name in ("up", "gate") if isinstance(part, GatedMLP) else ("up",):
            _take(getattr(part, name), 0, keep, 1)
        _take(part.down, 1, keep, 1)
        _said(model, path, part, {"hidden": count})
        cut.changed[path] = f"{len(each)} -> {count} hidden units"


def _depth(model: Any, count: int, batches: Sequence[Inputs], cut: Cut) -> None:
    if count < 1:
        raise ValueError("--prune depth: the number of blocks to remove must be at least 1")
    stacks = {
        path: blocks for path, blocks in model.named_modules()
        if isinstance(blocks, nn.ModuleList) and path.split(".")[-1] == "blocks" and _recipe_has(model, path,
        len(blocks))
    }  # fmt: skip
    moved = _influence({f"{p}.{i}": b for p, blocks in stacks.items() for i, b in enumerate(blocks)}, model, batches)
    ends = {f"{p}.{i}" for p, blocks in stacks.items() for i in (0, len(blocks) - 1)}
    inner = sorted((value, path) for path, value in moved.items() if path not in ends)
    if len(inner) < count:
        raise ValueError(
            f"--prune depth={count}: {len(inner)} blocks are between the first and the last ones of their stacks"
        )
    gone = {path for _, path in inner[:count]}
    for path, blocks in stacks.items():
        left = [i for i in range(len(blocks)) if f"{path}.{i}" not in gone]
        if len(left) == len(blocks):
            continue
        before = len(blocks)
        owner = model.get_submodule(path.rpartition(".")[0])
        owner.blocks = nn.ModuleList(blocks[i] for i in left)
        model.recipe = model.recipe.but({path: tuple(model.recipe[path][i] for i in left)})
        cut.changed[path] = (
            f"{before} -> {len(left)} blocks, without {', '.join(str(i) for i in range(before) if i not in left)}"
        )


def _recipe_has(model: Any, path: str, count: int) -> bool:
    try:
        value = model.recipe[path]
    except ValueError:
        return False
    return isinstance(value, tuple) and len(value) == count


def _influence(blocks: dict[str, nn.Module], model: Any, batches: Sequence[Inputs]) -> dict[str, float]:
    """1 - the mean cosine of a block's input and output, of those that are one tensor each."""
    apart: dict[str, list[float]] = {}

    def hook_of(path: str) -> Any:
        def hook(_: Any, args: Any, out: Any) -> None:
            if isinstance(out, Tensor) and args and isinstance(args[0], Tensor) and out.shape == args[0].shape:
                cosine = nn.functional.cosine_similarity(args[0].float(), out.float(), dim=-1)
                apart.setdefault(path, []).append(1 - float(cosine.mean()))

        return hook

    hooks = [block.register_forward_hook(hook_of(path)) for path, block in blocks.items()]
    for inputs in batches:
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return {path: sum(values) / len(values) for path, values in apart.items()}


def _weights(model: Any, share: float | None, batches: Sequence[Inputs], cut: Cut) -> None:
    routers = {id(m) for router in model.modules() if isinstance(router, Router) for m in router.modules()}
    chosen: dict[str, nn.Linear] = {}
    for path, module in model.named_modules():
        if type(module) is not nn.Linear:
            continue
        if id(module) in routers:
            cut.left[path] = "a router: close scores choose the expert"
        elif share is None and module.in_features % 4:
            cut.left[path] = f"its {module.in_features} inputs are no multiple of 4"
        else:
            chosen[path] = module
    seen = _seen(model, chosen, batches)
    for path, linear in chosen.items():
        rms = seen[path].mean.diagonal().sqrt() if seen[path].rows else torch.ones(linear.in_features)
        score = linear.weight.float().abs() * rms  # (O, I)
        if share is None:
            fours = score.unflatten(1, (-1, 4))
            keep = torch.zeros_like(fours, dtype=torch.bool).scatter(-1, fours.topk(2, -1).indices, True).flatten(1)
        else:
            count = linear.in_features - round(linear.in_features * share)
            keep = torch.zeros_like(score, dtype=torch.bool).scatter(1, score.topk(count, 1).indices, True)
        linear.weight.mul_(keep)
        cut.zeros[path] = 1 - float(keep.float().mean())
        cut.changed[path] = f"{cut.zeros[path]:.0%} of its weights are 0"


def _take(linear: Any, axis: int, index: Tensor, width: int) -> None:
    """Keeps some runs of `width` rows (axis 0, with the bias) or columns of a linear layer."""
    places = (index[:, None] * width + torch.arange(width)).flatten()
    linear.weight = nn.Parameter(linear.weight.detach().index_select(axis, places).clone(), linear.weight.requires_grad)
    if axis == 0:
        linear.out_features = len(places)
        if linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias.detach()[places].clone(), linear.bias.requires_grad)
    else:
        linear.in_features = len(places)


def _said(model: Any, path: str, part: Part, sizes: dict[str, Any]) -> None:
    """The new sizes in the recipes of the part and of the model; all experts of a mixture have one recipe."""
    assert part.recipe is not None
    part.recipe = part.recipe.but(sizes)
    where = re.sub(r"\.experts\.\d+", ".expert", path)
    if any(known == where for known, _ in model.recipe.walk()):  # else it shares the recipe of another part
        model.recipe = model.recipe.but({f"{where}.{name}": value for name, value in sizes.items()})


def _check_recipe(model: Any, cut: Cut) -> None:
    """Raises ValueError, naming the parameter, if the recipe would build another model than the pruned one."""
    built = {n: tuple(p.shape) for n, p in pages.empty(model.recipe).named_parameters()}
    for name, parameter in model.named_parameters():
        if built.get(name) != tuple(parameter.shape):
            raise ValueError(
                f"--prune {cut.rule}: {name} is {tuple(parameter.shape)} now, and its recipe, which another part "
                f"shares, says {built.get(name)}: this model cannot be pruned so"
            )
