"""The optimiser: parameter groups for weight decay and learning-rate multipliers, and its state."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.front import FrontEnd
from anyformer.core.value import nearest
from anyformer.train.lora import LoraLinear
from anyformer.train.settings import Settings

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)


class Optimizer:
    """One or two of PyTorch's optimisers as one.

    Attributes:
        parts: the optimisers. `param_groups`: of all of them; each has a `factor` of the learning rate.
    """

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]

    def rate(self, lr: float) -> None:
        """Sets the learning rate of the next step; the decay, lr x weight_decay, does not shrink with a factor."""
        for group in self.param_groups:
            group["lr"] = lr * group["factor"]

    def step(self) -> None:
        """Updates the weights."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)


def make(model: nn.Module, s: Settings) -> Optimizer:
    """The optimiser that the settings name.

    adamw: AdamW (Loshchilov and Hutter, 2017; arXiv:1711.05101), as one kernel where PyTorch has one.

    muon: Muon (Jordan et al., 2024; arXiv:2502.16982) for the weights of linear maps between hidden layers: the
    momentum of a matrix is replaced by the nearest orthogonal matrix (five Newton-Schulz steps), times
    0.2 sqrt(max(rows, columns)), which makes its size that of an update of AdamW: one learning rate fits both. Tables,
    heads, convolutions, biases and norms are AdamW's.

    Raises:
        ValueError: if nothing is trainable, a pattern of `lr_multipliers` matches nothing, or this PyTorch has no Muon.
    """
    matrices = hidden(model) if s.optimizer == "muon" else set()
    if s.optimizer == "muon" and not matrices:
        raise ValueError("optimizer=muon is for linear maps between hidden layers, and this model has none; use adamw")
    every = groups(model, s.weight_decay, s.lr_multipliers)
    others = _only(every, lambda p: p not in matrices)
    fused = all(p.device.type in ("cpu", "cuda", "mps", "xpu") for p in model.parameters())
    parts: list[torch.optim.Optimizer] = []
    if others:
        parts.append(torch.optim.AdamW(others, lr=s.lr, betas=s.betas, fused=fused))
    if matrices:
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"optimizer=muon needs PyTorch 2.9 or newer; this is {torch.__version__}")
        parts.append(torch.optim.Muon(_only(every, lambda p: p in matrices), lr=s.lr, adjust_lr_fn="match_rms_adamw"))
    return Optimizer(*parts)


def _only(groups: list[dict[str, Any]], wanted: Callable[[nn.Parameter], bool]) -> list[dict[str, Any]]:
    chosen = [{**group, "params": [p for p in group["params"] if wanted(p)]} for group in groups]
    return [group for group in chosen if group["params"]]


def hidden(model: nn.Module) -> set[Tensor]:
    """The trainable weights of linear maps, but for heads and front-ends: the parameters of Muon."""
    entering = {m for front in model.modules() if isinstance(front, FrontEnd) for m in front.modules()}
    return {
        p for name, m in model.named_modules() if not {"head", "heads"} & {*name.split(".")} and m not in entering
        for p in _matrices(m) if p.requires_grad and not isinstance(m, CONVOLUTIONS)
    }  # fmt: skip


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    """The matrices of a linear map, of a convolution, or of the adapter beside one."""
    own = [module.lora_a, module.lora_b] if isinstance(module, LoraLinear) else []
    weight = [module.weight] if isinstance(module, (nn.Linear, LoraLinear, *CONVOLUTIONS)) else []
    return [p for p in (*own, *weight) if isinstance(p, nn.Parameter)]  # a matrix in 4 bits is none


def groups(model: nn.Module, weight_decay: float, multipliers: dict[str, float] | None = None) -> list[dict[str, Any]]:
    """The trainable parameters, by what decays and by factor of the learning rate.

    The rule: the `weight` of a linear map or a convolution decays, and the two thin matrices of an adapter. Nothing
    else does: no bias, no norm, no table that is looked up (tokens, places, segments, relative
    bias; a tied head is such a table), nothing that a part holds by itself (Mamba's A).

    Args:
        multipliers: factors by path pattern; the last one that matches counts.
    """
    decay = {id(p) for m in model.modules() for p in _matrices(m)}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("no parameter of the model is trainable (requires_grad is False everywhere)")
    factors = factor_of(list(trained), multipliers or {})
    grouped: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for name, p in trained.items():
        grouped[factors[name], id(p) in decay].append(p)
    ordered = sorted(grouped.items(), key=lambda item: (item[0][0], not item[0][1]))
    return [
        {"params": ps, "weight_decay": weight_decay / factor if decays else 0.0, "factor": factor}
        for (factor, decays), ps in ordered
    ]


def factor_of(names: list[str], multipliers: dict[str, float]) -> dict[str, float]:
    """The factor of each path: of the last pattern that matches (`*` is any text), else 1.

    Raises:
        ValueError: for a pattern that matches none, with the nearest paths.
    """
    factors = dict.fromkeys(names, 1.0)
    for pattern, factor in multipliers.items():
        hits = [pattern] if pattern in factors else fnmatch.filter(names, pattern)
        if not hits:
            raise ValueError(f"lr_multipliers: no trained parameter matches {pattern!r}{nearest(pattern, names)}")
        factors.update(dict.fromkeys(hits, factor))
    return factors


def moments(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state by the model's paths: `blocks.0.mixer.q.weight.exp_avg`."""
    state = {p: held for part in optimizer.parts for p, held in part.state.items()}
    named = ((name, state.get(p, {})) for name, p in model.named_parameters())
    return {f"{name}.{key}": value for name, held in named for key, value in held.items()}


def restore_moments(optimizer: Optimizer, model: nn.Module, saved: dict[str, Tensor]) -> None:
    """The inverse of `moments`. A parameter without saved state has had no gradient yet.

    Raises:
        ValueError: if the saved state is of other parameters.
    """
    named = dict(model.named_parameters())
    grouped = {p: part for part in optimizer.parts for group in part.param_groups for p in group["params"]}
    owner = grouped | {p: part for part in optimizer.parts for p in part.state}  # ZeRO's groups hold stretches
    for path, value in saved.items():
        name, _, key = path.rpartition(".")
        parameter = named.get(name)
        if parameter is None or parameter not in owner or value.shape not in (parameter.shape, ()):
            raise ValueError(f"the checkpoint holds optimiser state for {path!r}, which does not match this model")
        kind = torch.promote_types(value.dtype, torch.float32) if value.is_floating_point() else value.dtype
        owner[parameter].state[parameter][key] = value.clone().to(parameter.device, kind)
