"""Decoders of trajectories. B batch, T steps, P positions of a step, D width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from anyformer.core.front import Entrance, FrontEnd
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Head, Norm
from anyformer.core.state import State
from anyformer.skeletons.base import Output, embed_inputs
from anyformer.skeletons.decoder import CausalLM


class Actor(CausalLM):
    """A decoder with several positions per step, and heads that predict numbers for each step.

    ```
    states, actions, returns_to_go, timesteps (B, T, …) -> embed -> block x N -> norm -> hidden (B, P T, D)
                                                                     hidden -> head -> (B, T, …), for each head
    ```
    It continues from a state as a decoder of text does, step by step, but it writes no text.

    Args:
        dim: width of the stream.
        embed: front-end, e.g. `Trajectory.of(state=4, action=2)`.
        blocks: one recipe a layer.
        norm: after the last block, or None.
        heads: name to recipe; the first one's output is `logits`.
    """

    @property
    def decodes(self) -> bool:
        return True

    def __init__(
        self,
        dim: int,
        embed: Recipe[FrontEnd],
        blocks: Any,
        norm: Recipe[Norm] | None,
        heads: Mapping[str, Recipe[Head]],
    ):
        super().__init__(dim, embed, blocks, norm, head=None)
        self.heads = nn.ModuleDict({name: head.build(dim) for name, head in heads.items()})

    def forward(  # type: ignore[override]
        self,
        states: Tensor | None = None,
        actions: Tensor | None = None,
        returns_to_go: Tensor | None = None,
        timesteps: Tensor | None = None,
        attention_mask: Tensor | None = None,
        state: State | None = None,
        last: bool = False,
        **inputs: Tensor | None,
    ) -> Output:
        """Steps of episodes to an Output with one tensor (B, T, …) a head.

        Args:
            states: (B, T, S). `actions`: (B, T, A); a prediction of an action does not see it.
            returns_to_go: (B, T, 1), the wanted sum of later rewards, in the scale of training.
            timesteps: (B, T), the number of each step in its episode, from 0.
            attention_mask: (B, T), 1 or True = a real step; padding can be on either side.
            state: from `start`; this call continues after the last one.
            last: heads at the last step only, (B, 1, …).
            inputs: the front-end's other inputs, by name (`model.inputs()`).
        """
        named = {"states": states, "actions": actions, "returns_to_go": returns_to_go, "timesteps": timesteps}
        entrance = Entrance(self.embed)
        tensors, flow = self.begin(
            entrance, self.check_inputs({**named, "attention_mask": attention_mask, **inputs}), state=state, causal=True
        )
        x, flow = self.run(embed_inputs(self.embed, tensors, flow), flow)  # (B, P T, D)
        each = self.embed.length(tensors) // self.embed.units(tensors)
        heads = {name: head(x[:, -each:] if last else x, flow) for name, head in self.heads.items()}
        first, keep = next(iter(heads.values()), None), flow.keep_now(x.shape[1])
        return Output(x, first, heads, aux=flow.aux, keep=keep, figures=flow.figures)
