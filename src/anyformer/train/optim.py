"""The optimiser, and which parameters decay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d)


def groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters in two groups: those that decay and those that do not.

    The rule: the `weight` of a linear map or a convolution decays. Nothing else does: no bias, no norm, no table that
    is looked up (tokens, places, segments, relative bias; a tied head is such a table), nothing that a part holds by
    itself (Mamba's A).
    """
    decay = {id(m.weight) for m in model.modules() if isinstance(m, MATRICES)}
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("no parameter of the model is trainable (requires_grad is False everywhere)")
    return [
        {"params": [p for p in parameters if id(p) in decay], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) not in decay], "weight_decay": 0.0},
    ]


def adamw(model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2017; arXiv:1711.05101), as one kernel where PyTorch has one."""
    fused = all(p.device.type in ("cpu", "cuda", "mps", "xpu") for p in model.parameters())
    return torch.optim.AdamW(groups(model, weight_decay), lr=lr, betas=betas, fused=fused)


def moments(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state by the model's paths: `blocks.0.mixer.q.weight.exp_avg`."""
    named = ((name, optimizer.state.get(p, {})) for name, p in model.named_parameters())
    return {f"{name}.{key}": value for name, state in named for key, value in state.items()}


def restore_moments(optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, Tensor]) -> None:
    """The inverse of `moments`. A parameter without saved state has had no gradient yet.

    Raises:
        ValueError: if the saved state is of other parameters.
    """
    named = dict(model.named_parameters())
    for path, value in saved.items():
        name, _, key = path.rpartition(".")
        if name not in named or value.shape not in (named[name].shape, ()):
            raise ValueError(f"the checkpoint holds optimiser state for {path!r}, which does not fit this model")
        optimizer.state[named[name]][key] = value.clone().to(named[name].device)
