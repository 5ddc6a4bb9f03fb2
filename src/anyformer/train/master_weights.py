"""Master weights in float32, whatever type their file has (Micikevicius et al., 2017; arXiv:1710.03740).

```
file, bfloat16 ──> float32 while it learns ──> file, bfloat16        an update of 1e-5 is lost in a weight of 8 bits
                   (checkpoints hold it, too: a run goes on bit for bit)
```
A base that is frozen below adapters keeps its type, as nothing is added to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.train import lora

KEPT = {"fp32": torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16}  # types of a frozen base, by precision:
# gradients pass through it, and those of float16 vanish unless the loss is scaled


@torch.no_grad()
def to_float32(model: nn.Module, precision: str = "fp32") -> dict[str, torch.dtype]:
    """Converts shorter floats to float32: all, or only the adapters if nothing else is trained.

    Args:
        precision: of the run. A frozen base stays in bfloat16, or with fp16 in float16.

    Returns:
        The type that each changed tensor had, by path.
    """
    short = {path: t for path, t in _tensors(model) if t.is_floating_point() and t.itemsize < 4}
    if _adapters_alone(model) and {t.dtype for t in short.values() if not t.requires_grad} <= {KEPT[precision]}:
        short = {path: t for path, t in short.items() if t.requires_grad}
    types = {path: t.dtype for path, t in short.items()}
    for tensor in short.values():
        tensor.grad = None
        tensor.data = tensor.data.float()
    return types


@torch.no_grad()
def restore_types(model: nn.Module, types: Mapping[str, torch.dtype]) -> None:
    """The inverse of `to_float32`: the types of the file again, rounded."""
    for path, tensor in list(_tensors(model)):
        if path in types:
            tensor.grad = None
            tensor.data = tensor.data.to(types[path])


def stored(tensors: Mapping[str, Tensor], types: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    """Tensors by path in the types of the file."""
    return {path: t.to(types.get(path, t.dtype)) for path, t in tensors.items()}


def summary(model: nn.Module, types: Mapping[str, torch.dtype]) -> str:
    """The types in file and training, in a line; "" if all are float32 or better."""
    names = _names(types.values())
    learn = {id(p) for p in model.parameters() if p.requires_grad}
    frozen = [t.dtype for _, t in _tensors(model) if t.is_floating_point() and t.itemsize < 4 and id(t) not in learn]
    if names and lora.adapters(model):
        return f"weights: {names} in the file, float32 while adapters and other modules learn, merged as {names}"
    if names:
        return f"weights: {names} in the file, float32 while they learn, written as {names}"
    return f"weights: {_names(frozen)}, frozen; adapters: float32" if frozen and lora.adapters(model) else ""


def _names(types: Any) -> str:
    return " and ".join(sorted({str(t)[6:] for t in types}))


def _adapters_alone(model: nn.Module) -> bool:
    learn = [name for name, p in model.named_parameters() if p.requires_grad]
    return bool(learn) and all(name.rpartition(".")[2] in lora.OWN for name in learn)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
