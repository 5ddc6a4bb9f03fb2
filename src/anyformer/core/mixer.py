"""Parts that work over time, and their decoding state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.part import Part
from anyformer.core.state import Slot, State


class OverTime(Part):
    """Base of parts in which the positions of a sequence act on each other: mixers, routers of experts, forgetting.

    A part that can decode step by step overrides `start`.

    Attributes:
        packs: True if it separates packed documents (`flow.documents`); a part without it raises an error for them.
    """

    packs: ClassVar[bool] = False

    def skips_gaps(self) -> bool:
        return False

    def start(self, batch: int, length: int, like: Tensor) -> Slot:
        """Empty decoding state for `batch` sequences of up to `length` tokens (a hint), on the device and in the
        type of `like`."""
        raise ValueError(f"{type(self).__name__} cannot decode step by step; generate without a cache: cache=False")

    def needs_both_ways(self, flow: Flow) -> None:
        """Raises ValueError in a decoder: for mixers that are not causal."""
        if flow.causal:
            raise ValueError(
                f"{type(self).__name__} mixes every token with all others, future ones included: it fits an Encoder; "
                "in a decoder use a causal mixer (Attention, LinearAttention, Mamba …)"
            )

    def needs_causal(self, flow: Flow) -> None:
        """Raises ValueError in an encoder: for mixers that run from the first token to the last one."""
        if not flow.causal:
            raise ValueError(
                f"{type(self).__name__} sees only earlier tokens: it fits a decoder; in an Encoder use a mixer that "
                "sees both ways (Attention, LinearAttention, Linformer …)"
            )


class Mixer(OverTime):
    """A part that mixes over time: `forward(x, flow)`, the `mixer` of a block.

    Attributes:
        maps: True if it offers the `weights` that it implies without being attention.
    """

    maps: ClassVar[bool] = False


def start_state(modules: Iterable[nn.Module], batch: int, length: int = 0) -> State:
    """An empty decoding state for all mixers in these modules; `length` is a hint of the rows' final length."""
    inside = [m for module in modules for m in module.modules()]
    like = next(p for m in inside for p in m.parameters())
    return State(batch, {m: m.start(batch, length, like) for m in inside if isinstance(m, OverTime)})
