"""Patching of a text that is being continued, and along single paths.

B batch, T positions, D width, N patched positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from anyformer.core.mixer import Mixer
from anyformer.core.slots import FeedForward
from anyformer.explain.attribution import named
from anyformer.explain.features import Explained
from anyformer.explain.linearised import outermost
from anyformer.explain.patching import Patched, _masks, changed, check_shapes, found, patched, recorded
from anyformer.explain.target import Target, goal
from anyformer.generate.steering import Changed

DIRECT = "direct"  # the way from a place to the score without any branch between


class Patching(Changed):
    """A model that has given values at some positions of some places, also of a text that it continues: at a step with
    a cache, which passes one token, it is the value of that token's position.

    ```python
    with recorded(model, ["blocks.3"]) as clean:
        model(torch.tensor([ids]))
    generate(Patching(model, clean, at=[4]), corrupt)    # position 4 of the stream behind block 3 is the clean one
    ```
    Args:
        model: any model that writes. values: by path, as of `patch`, (1, T, D) or (B, T, D), from position 0 on.
        at: the positions that are patched, from 0, the prompt's included; of an encoder those of the source.

    Raises:
        ValueError: for a path that is none, a position that a value does not have.
    """

    def __init__(self, model: Any, values: Mapping[str, Tensor], at: Sequence[int]):
        super().__init__(model)
        self.values, self.at = dict(values), sorted(set(at))
        for path, value in self.values.items():
            found(model, [path])
            if not self.at or not 0 <= self.at[0] <= self.at[-1] < value.shape[1]:
                raise ValueError(f"{path}: the value has the positions 0 to {value.shape[1] - 1}; got at={list(at)}")

    def hooks(self, inputs: Mapping[str, Any]) -> list[Any]:
        """See `Changed`: the pass begins behind the tokens that its state holds."""
        state, ids = inputs.get("state"), inputs.get(f"{self.model.target}input_ids")
        begin, count = 0 if state is None else state.length, 0 if ids is None else ids.shape[1]
        stack = ExitStack()
        for path, value in self.values.items():

            def put(own: Tensor, value: Tensor = value) -> Tensor | None:
                first = begin + count - 1 if own.shape[1] == 1 < count else begin  # a head that reads the last alone
                here = [p for p in self.at if first <= p < first + own.shape[1]]
                if not here:
                    return None
                own = own.clone()
                own[:, [p - first for p in here]] = value[:, here].to(own)
                return own

            stack.enter_context(changed(self.model, path, put))
        return [_Closing(stack)]


class _Closing:
    """A stack of hooks that is removed like one."""

    def __init__(self, stack: ExitStack):
        self.remove = stack.close


def branches(model: Any) -> list[str]:
    """The paths of the mixers and feed-forward parts of all layers, in the order of the model."""
    layers = outermost(model)
    inside = [(name, m) for name, m in model.named_modules() if isinstance(m, Mixer | FeedForward)]
    paths = {m: name for name, m in model.named_modules()}
    above = tuple(f"{paths[layer]}." for layer in layers)
    names = [name for name, _ in inside if name.startswith(above)]
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


@torch.no_grad()
def patch_path(
    model: Any,
    clean: Any,
    corrupt: Any,
    sender: str,
    receivers: str | Sequence[str],
    target: Target = None,
    *,
    number: int | None = None,
    at: int | None = None,
    head: str | None = None,
) -> Patched:
    """The score of a corrupt input when a sender has its clean value for one receiver alone (path patching; Wang et
    al., 2022, arXiv:2211.00593; Goldowsky-Dill et al., 2023, arXiv:2304.05969).

    ```
    1. the sender is clean, every other branch but the receiver is held at its corrupt value: the receiver's value
    2. that value alone in the corrupt pass, all else made anew: the score
    direct   the sender is clean, every other branch is held: what reaches the head without any of them
    ```
    Args:
        model, clean, corrupt, target, at, head: as of `patch`.
        sender: the path of a mixer, a feed-forward part, or the heads of an attention.
        receivers: paths of mixers and feed-forward parts; "direct" is the head.
        number: of a sender `blocks.3.mixer.heads`, one of its heads.

    Returns:
        `scores` by receiver, (B,); `first_order` is empty.

    Raises:
        ValueError: as of `patch`; for a receiver that is no branch of a layer.
    """
    one, two = (Explained(model, named(model, inputs)) for inputs in (clean, corrupt))
    check_shapes(one, two)
    (sender,), every = found(model, [sender]), branches(model)
    wanted = [receivers] if isinstance(receivers, str) else list(receivers)
    for name in wanted:
        if name not in every and name != DIRECT:
            raise ValueError(f"{name!r} is no branch of a layer; receivers are {DIRECT} and {', '.join(every)}")
    own = sender.removesuffix(".heads")
    with recorded(model, [*every, sender]) as values:
        out = one.run()
        aim = goal(model, out, target, at, head, one.inputs)
        best, sent = aim(out).double(), values[sender]
    heads = _masks(model, sender, sent, False)
    if number is not None and not 0 <= number < len(heads):
        raise ValueError(f"number={number}: {sender} has {len(heads)} parts, counted from 0; heads are at {own}.heads")
    mask = {sender: None if number is None else heads[number]}
    with recorded(model, every) as values:
        worst, held = aim(two.run()).double(), {path: v for path, v in values.items() if path != own}
    scores = {}
    for name in wanted:
        fixed = {path: value for path, value in held.items() if path != name}
        with recorded(model, [] if name == DIRECT else [name]) as received:
            out = patched(two, {**fixed, sender: sent}, mask)
        scores[name] = aim(out if name == DIRECT else patched(two, {name: received[name]})).double()
    return Patched(scores, {}, best, worst, aim.name)
