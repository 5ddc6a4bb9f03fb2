"""Trajectories: the front-end and the heads for states, actions and returns to go.

B batch, T steps, D width, S numbers of a state, A numbers of an action.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.front import FrontEnd, Input, Inputs
from anyformer.core.part import check_option, drop
from anyformer.core.slots import Head
from anyformer.parts.embeddings import Learned, Table
from anyformer.parts.norms import LayerNorm

PLACES = ("return", "state", "action")  # of one step, in the order of the stream


class Trajectory(FrontEnd):
    """Steps of an episode, each three positions of the stream: return to go, state, action (Chen et al., 2021;
    arXiv:2106.01345).

    ```
    R_0 s_0 a_0 R_1 s_1 a_1 … -> norm(W x + b + time[timestep]) + first row of `places`
    ```
    Published files look up every position of the stream in a table of positions at row 0: a learned constant. They also
    hold an unused table of tokens. Both are kept and written back.

    Args:
        state: S, the numbers of a state.
        action: A, the numbers of an action; for discrete actions one per possible action, 1 at the chosen one.
        steps: steps of the longest episode, each with a vector of its own.
        places: rows of the table of positions.
        unread: rows of the unused table.
        dropout: at the end.

    Shape: (B, T, S), (B, T, A), (B, T, 1), (B, T) -> (B, 3 T, D).
    """

    main, mask = "states", "attention_mask"

    def __init__(
        self,
        dim: int,
        state: int,
        action: int,
        steps: int = 4096,
        places: int = 1024,
        unread: int = 1,
        dropout: float = 0.0,
    ):
        super().__init__()
        if min(state, action, steps, places) < 1 or unread < 0:
            raise ValueError(
                f"Trajectory: state={state}, action={action}, steps={steps} and places={places} must be at least 1, "
                f"unread={unread} at least 0"
            )
        self.sizes_of = {"states": state, "actions": action, "returns_to_go": 1}
        self.steps, self.dropout = steps, dropout
        self.returns, self.state, self.action = nn.Linear(1, dim), nn.Linear(state, dim), nn.Linear(action, dim)
        self.time, self.norm, self.places = Table(steps, dim), LayerNorm(dim), Learned(dim, context=places)
        self.unread: Tensor
        self.register_buffer("unread", torch.zeros(unread, dim))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.unread, std=0.02)

    def inputs(self) -> dict[str, Input]:
        named = {"states": "state", "actions": "action", "returns_to_go": "return"}
        declared = {n: Input(("time", axis), ("time",), fixed=(axis,)) for n, axis in named.items()}
        return {**declared, "timesteps": Input(("time",), ("time",), ids=True)}

    def units(self, inputs: Inputs) -> int:
        """The number of steps."""
        return self.length(inputs) // len(PLACES)

    def length(self, inputs: Inputs) -> int:
        shape = inputs["states"].shape[:2]
        for name, size in self.sizes_of.items():
            value = inputs[name]
            if value.ndim != 3 or value.shape[2] != size or value.shape[:2] != shape:
                wanted = f"({', '.join(map(str, (*shape, size)))})" if len(shape) == 2 else f"(batch, steps, {size})"
                raise ValueError(f"{name} must be {wanted}, got {tuple(value.shape)}")
        if inputs["timesteps"].shape != shape:
            raise ValueError(f"timesteps must be {tuple(shape)}, got {tuple(inputs['timesteps'].shape)}")
        return len(PLACES) * shape[1]

    def keep(self, mask: Tensor, inputs: Inputs) -> Tensor:
        return mask.repeat_interleave(len(PLACES), 1)

    def example(self, rows: int, size: tuple[int, ...], noise: torch.Generator) -> dict[str, Tensor]:
        made = {n: torch.randn(rows, size[0], width, generator=noise) for n, width in self.sizes_of.items()}
        return {**made, "timesteps": torch.randint(0, self.steps, (rows, size[0]), generator=noise)}

    def sizes(self) -> list[tuple[int, ...]]:
        return [(8,)]

    def check_ids(self, inputs: Inputs) -> None:
        times = inputs["timesteps"]
        bad = times[(times < 0) | (times >= self.steps)]
        if len(bad):
            raise ValueError(
                f"timestep {int(bad[0])} in timesteps is beyond the longest episode: they go from 0 to {self.steps - 1}"
            )

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        keep = flow.keep_now(self.length(inputs))
        if keep is not None:  # no value at padding passes: NaN times a gradient of 0 would be NaN
            gaps = ~keep[:, :: len(PLACES)]  # (B, T)
            wide = {n: gaps[(...,) + (None,) * (inputs[n].ndim - 2)] for n in self.inputs()}
            inputs = {n: inputs[n].masked_fill(where, 0) for n, where in wide.items()}
        R, s, a = (inputs[n].to(self.norm.weight.dtype) for n in ("returns_to_go", "states", "actions"))
        x = torch.stack((self.returns(R), self.state(s), self.action(a)), 2)  # (B, T, 3, D)
        x = x + self.time(inputs["timesteps"])[:, :, None]
        return drop(self, self.norm(x.flatten(1, 2)) + self.places.weight[0])  # (B, 3 T, D)


class EachStep(Head):
    """Numbers from one position of each step: y = W x + b, or its tanh.

    Args:
        size: their number.
        place: the position of the step: return, state or action. Its input is everything up to this position; an
            action is predicted at its state.
        tanh: for numbers between -1 and 1.

    Shape: (B, 3 T, D) -> (B, T, size).
    """

    def __init__(self, dim: int, size: int, place: str, tanh: bool = False):
        super().__init__()
        check_option("EachStep", "place", place, PLACES)
        self.proj, self.place, self.tanh = nn.Linear(dim, size), PLACES.index(place), tanh

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        y = self.proj(x[:, self.place :: len(PLACES)])
        return y.tanh() if self.tanh else y
