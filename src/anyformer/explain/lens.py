"""The lens: what the head reads in the stream behind each block.

B batch, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.explain.attribution import named
from anyformer.explain.features import Explained
from anyformer.explain.target import Target, goal
from anyformer.skeletons.base import Output
from anyformer.skeletons.forecaster import Forecaster
from anyformer.skeletons.stack import Blocks


@dataclass(frozen=True)
class Lens:
    """The answer of the head behind each block.

    Args:
        layers: the paths, "embed" first: the stream before the first block.
        top: (L, B, T, k) the ids of the highest scores. `shares`: their probabilities.
        score: (L, B) the score of the target behind each block. `target`: its name.
        rank: (L, B) the place of the target among all scores, 1 = the highest; of a contrast or a function None.
        last: the output of the model itself, whose logits are those of the last layer.
    """

    layers: tuple[str, ...]
    top: Tensor
    shares: Tensor
    score: Tensor
    target: str
    rank: Tensor | None
    last: Output


def stack_of(model: Any) -> tuple[str, Any]:
    """The path and the blocks whose stream the head reads.

    Raises:
        ValueError: for a model without such a stack.
    """
    for path in ("", "decoder"):
        stack = model if not path else getattr(model, path, None)
        if isinstance(stack, Blocks) and len(list(stack.layers())):
            return path, stack
    raise ValueError(
        f"{type(model).__name__} has no row of blocks with a head behind it; the lens reads decoders, encoders and the "
        "decoder of an encoder-decoder"
    )


@torch.no_grad()
def lens(
    model: Any, inputs: Any, target: Target = None, *, top: int = 5, at: int | None = None, head: str | None = None
) -> Lens:
    """The scores of the head behind each block (nostalgebraist, 2020): the stream there takes the place of the last
    one, and the model's own norm, pool and head read it. So the norm is made anew for each layer, and the last layer's
    scores are the model's, bit for bit.

    Args:
        model, inputs, target, at, head: as of `attribute`.
        top: the highest scores that are kept at each position.

    Raises:
        ValueError: for a model without such blocks, blocks that change the length of the stream, or a wrong target.
    """
    if isinstance(model, Forecaster):
        raise ValueError(
            "a forecast is numbers, no token or class is the likeliest behind a layer; use attribute or patch"
        )
    explained = Explained(model, named(model, inputs))
    aim, kept = None, []
    with behind_each(explained) as (names, outs, final):
        aim = goal(model, final, target, at, head, explained.inputs)
        for out in (*outs, final):
            logits = out.logits if head is None else out.heads[head]
            if logits is None:
                raise ValueError(
                    f"{type(model).__name__} has no head here, so a lens reads nothing; load it with a task"
                )
            best = logits.float().softmax(-1).topk(min(top, logits.shape[-1]), -1)
            kept.append((best.indices, best.values, aim(out), _rank(aim, logits)))
    columns = list(zip(*kept, strict=True))
    ranks = None if columns[3][0] is None else torch.stack(columns[3])
    shown = [torch.stack(c) for c in columns[:3]]
    return Lens(tuple(names), shown[0], shown[1], shown[2], aim.name, ranks, final)


def _rank(aim: Any, logits: Tensor) -> Tensor | None:
    """The place of the target among the scores of its position, (B,)."""
    if not aim.ids or len(aim.ids[0]) != 1:
        return None
    rows = torch.arange(len(logits), device=logits.device)
    if aim.at is not None:
        logits = logits[rows, torch.tensor(aim.at, device=logits.device)]  # (B, V)
    own = logits[rows, torch.tensor([i for (i,) in aim.ids], device=logits.device)]
    return (logits > own[:, None]).sum(1) + 1


@contextmanager
def behind_each(explained: Explained) -> Iterator[tuple[list[str], Iterator[Output], Output]]:
    """The names of the layers; the output that the stream behind each would give, all but the last one's; and that of
    the model itself."""
    stack = stack_of(explained.model)[1]
    layers = list(stack.layers())
    paths = {module: name for name, module in explained.model.named_modules()}
    streams: list[Tensor] = []
    hooks = [layers[0].register_forward_pre_hook(lambda module, args: streams.append(args[0]))]
    hooks += [layer.register_forward_hook(lambda module, args, out: streams.append(out)) for layer in layers]
    try:
        last = explained.run()
    finally:
        for hook in hooks:
            hook.remove()
    for layer, stream in zip(layers, streams[1:], strict=True):
        if not isinstance(stream, Tensor):
            raise ValueError(
                f"{paths[layer]} ({type(layer).__name__}) returns more than one stream; the lens reads one"
            )
        if stream.shape != streams[0].shape:
            raise ValueError(f"{paths[layer]} changes the length of the stream, so earlier ones do not fit the head")

    def outputs() -> Iterator[Output]:
        skip = _only_pass(explained, layers, streams[-1], last)
        for stream in streams[:-1]:
            with passed(layers, stream) if skip else replaced(layers[-1], stream):
                yield explained.run()

    yield ["embed", *(paths[layer] for layer in layers)], outputs(), last


def _only_pass(explained: Explained, layers: Sequence[nn.Module], stream: Tensor, last: Output) -> bool:
    """True if the head needs nothing of the blocks but their stream: then they need not run for each layer."""
    with passed(layers, stream):
        again = explained.run()
    pairs = [(last.hidden, again.hidden), *((value, again.heads[name]) for name, value in last.heads.items())]
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)


@contextmanager
def passed(layers: Sequence[nn.Module], value: Tensor) -> Iterator[None]:
    """Blocks that compute nothing, the last of which returns this value, inside the block."""
    before = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = lambda x, *args, **kwargs: x
        layers[-1].forward = lambda *args, **kwargs: value
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


@contextmanager
def replaced(module: nn.Module, value: Tensor) -> Iterator[None]:
    """A module that returns this value inside the block."""
    hook = module.register_forward_hook(lambda module, args, out: value)
    try:
        yield
    finally:
        hook.remove()
