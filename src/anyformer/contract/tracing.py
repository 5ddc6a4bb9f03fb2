"""What a model computes on the way: its stream behind each block, beside the oracle's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from anyformer.contract.probe import Batch, Failed, outputs
from anyformer.skeletons.cross_encoder import CrossEncoder
from anyformer.skeletons.pyramid import Pyramid
from anyformer.skeletons.reversible import Reversible
from anyformer.skeletons.stack import Blocks

SEED = 0  # of both sides' passes: what they draw is then the same


def trace(model: Any, batch: Batch) -> dict[str, Tensor]:
    """Our outputs, and the stream as `0`, `1`, …: the input of the blocks, the output of each, the output of the norm.

    In an encoder-decoder these names begin with `encoder.` and `decoder.`. Of two streams, the second one is taken. Of
    a pyramid it is `stages.0`, …: the input of each stage, the output of the last one.
    """
    traced: dict[str, Tensor] = {}
    hooks = []
    torch.manual_seed(SEED)

    def keep(name: str, after: bool, halves: int, side: int = 0) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any = None) -> None:
            value = output if after else inputs[0]
            traced[name] = (value[side] if isinstance(value, tuple) else value).chunk(halves, -1)[-1]

        return hook

    for path, stack in model.named_modules():
        if isinstance(stack, Pyramid):
            hooks += [m.register_forward_pre_hook(keep(f"stages.{i}", False, 1)) for i, m in enumerate(stack.stages)]
            hooks.append(stack.stages[-1].register_forward_hook(keep(f"stages.{len(stack.stages)}", True, 1)))
        elif isinstance(stack, CrossEncoder):
            layers: Any = stack.cross
            for i, layer in enumerate(layers, 1):
                for side, name in enumerate(("language", "vision")):
                    place = len(getattr(stack, name).blocks) + i
                    hooks.append(layer.register_forward_hook(keep(f"{name}.{place}", True, 1, side)))
        elif isinstance(stack, Blocks):
            prefix, halves = f"{path}." if path else "", 2 if isinstance(stack, Reversible) else 1
            hooks.append(stack.blocks[0].register_forward_pre_hook(keep(f"{prefix}0", False, halves)))
            after = [*stack.blocks, *([] if stack.norm is None else [stack.norm])]
            hooks += [m.register_forward_hook(keep(f"{prefix}{i}", True, halves)) for i, m in enumerate(after, 1)]
    try:
        return traced | outputs(model(**batch.inputs))
    finally:
        for hook in hooks:
            hook.remove()


def aligned(ours: dict[str, Tensor], theirs: dict[str, Tensor], batch: Batch) -> dict[str, str]:
    """Their hidden states -> ours: they return some of ours, in order, and classes differ in the choice."""
    pairs: dict[str, str] = {}
    for name, value in theirs.items():
        stack, _, place = name.rpartition(".")
        if not place.isdigit():
            pairs[name] = name
            continue
        prefix = f"{stack}." if stack else ""
        before = pairs.get(f"{prefix}{int(place) - 1}")
        first = 0 if before is None else int(before.rpartition(".")[2]) + 1
        numbers = {n: int(n[len(prefix) :]) for n in ours if n.startswith(prefix) and n[len(prefix) :].isdigit()}
        later = [n for n, number in numbers.items() if number >= first and ours[n].shape == value.shape]
        if not later:
            raise Failed(f"{name}: ours has no further hidden state")
        far = {n: max(float((batch.real(over(n), ours[n], i) - batch.real(over(n), value, i)).abs().max())
                      for i in range(len(batch))) for n in later}  # fmt: skip
        pairs[name] = min(later, key=far.__getitem__)
    return pairs


def over(name: str) -> str:
    """The output with the same padding as `name`."""
    return "memory" if name.startswith("encoder.") else name
