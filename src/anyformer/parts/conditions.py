"""Conditions: front-ends that make one vector of a whole row, for adaptive norms; and texts of other models.

B batch, S positions of a text, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.front import MASK, FrontEnd, Input, Inputs

PERIODS = 10000.0  # the longest wave of a time, over the shortest


class States(FrontEnd):
    """A text as the states that another model made of it, for the second stream of a Denoiser: x = W states + b.

    Padding is seen like text unless `attention_mask` marks it: the published models were trained so, and a text padded
    to another length gives another picture.

    Args:
        width: of the states.

    Shape: hidden_states (B, S, width) -> (B, S, D).
    """

    main = "hidden_states"

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.width, self.project = width, nn.Linear(width, dim)

    def inputs(self) -> dict[str, Input]:
        states = Input(("time", "channels"), ("time",), fixed=("channels",))
        return {"hidden_states": states, "attention_mask": MASK}

    def length(self, inputs: Inputs) -> int:
        states, wanted = inputs["hidden_states"], self.width
        if states.ndim != 3 or states.shape[2] != wanted:
            raise ValueError(f"hidden_states of a text must be (batch, time, {wanted}), got {tuple(states.shape)}")
        return states.shape[1]

    def sizes(self) -> list[tuple[int, ...]]:
        return [(7,)]

    def example(self, rows: int, size: tuple[int, ...], noise: torch.Generator) -> dict[str, Tensor]:
        return {"hidden_states": torch.randn(rows, size[0], self.width, generator=noise)}

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        return self.project(inputs["hidden_states"])


class Condition(FrontEnd):
    """Base of the conditions of a `Denoiser`: one position of the stream, (B, 1, D), which stands in no stream; the sum
    of all conditions is what adaptive norms are told."""

    def length(self, inputs: Inputs) -> int:
        value, read = inputs[self.main], self.inputs()[self.main]
        if value.ndim != 1 + len(read.axes):
            raise ValueError(f"{self.main} must be {read}, got {tuple(value.shape)}")
        return 1

    def sizes(self) -> list[tuple[int, ...]]:
        return [(1,)]


class Time(Condition):
    """The time of a row, as in DDPM (Ho et al., 2020; arXiv:2006.11239): down(silu(up(waves(t)))).

    ```
    waves(t) = [cos(t f_0) … cos(t f_n-1), sin(t f_0) … sin(t f_n-1)],  f_i = 10000^(-i / m),  n = width / 2
    ```
    Args:
        width: of the waves.
        last: m = n - 1, so that the last frequency is 1 / 10000 (DiT in diffusers); else m = n (SD3, the authors' DiT).

    Shape: timestep (B,), whole or fractional numbers -> (B, 1, D).
    """

    main = "timestep"

    def __init__(self, dim: int, width: int = 256, last: bool = False):
        super().__init__()
        if width < 4 or width % 2:
            raise ValueError(f"Time: width is an even number of waves, at least 4; got {width}")
        self.width, self.last = width, last
        self.up, self.down = nn.Linear(width, dim), nn.Linear(dim, dim)

    def inputs(self) -> dict[str, Input]:
        return {"timestep": Input(())}

    def example(self, rows: int, size: tuple[int, ...], noise: torch.Generator) -> dict[str, Tensor]:
        halves, turns = torch.randint(-2, 3, (rows,), generator=noise), torch.randint(0, 256, (rows,), generator=noise)
        return {"timestep": turns * 2.0**halves}  # 0 to 1020, some with fractions; 8 bits hold each of them

    def waves(self, times: Tensor) -> Tensor:
        """(B,) -> (B, width), in float32, in which the published models were trained."""
        count = self.width // 2
        steps = torch.arange(count, dtype=torch.float32, device=times.device)
        frequencies = torch.exp(-math.log(PERIODS) * steps / (count - self.last))  # (n,)
        angles = times[:, None].float() * frequencies
        return torch.cat((angles.cos(), angles.sin()), -1)

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        self.length(inputs)
        waves = self.waves(inputs["timestep"]).to(self.up.bias.dtype)  # an int8 weight is no type to compute in
        return self.down(F.silu(self.up(waves)))[:, None]


class Label(Condition):
    """The class of a row: a learned vector each, and one more, `nothing`, for a row without a class (Ho and Salimans,
    2022, "Classifier-Free Diffusion Guidance"; arXiv:2207.12598).

    Args:
        classes: C; the number C itself means nothing.

    Shape: class_labels (B,) -> (B, 1, D).
    """

    main = "class_labels"

    def __init__(self, dim: int, classes: int):
        super().__init__()
        if classes < 1:
            raise ValueError(f"Label: classes must be at least 1, got {classes}")
        self.nothing = classes
        self.table = nn.Embedding(classes + 1, dim)

    def inputs(self) -> dict[str, Input]:
        return {"class_labels": Input((), ids=True)}

    def example(self, rows: int, size: tuple[int, ...], noise: torch.Generator) -> dict[str, Tensor]:
        return {"class_labels": torch.randint(0, self.nothing + 1, (rows,), generator=noise)}

    def check_ids(self, inputs: Inputs) -> None:
        labels = inputs["class_labels"]
        bad = labels[(labels < 0) | (labels > self.nothing)]
        if len(bad):
            raise ValueError(
                f"class_labels has {int(bad[0])}; classes go from 0 to {self.nothing - 1}, and {self.nothing} means "
                "no class"
            )

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        self.length(inputs)
        return self.table(inputs["class_labels"])[:, None]


class Vector(Condition):
    """A vector of the row, such as that of its text: down(silu(up(x))).

    Args:
        width: of the vector.

    Shape: pooled_projections (B, width) -> (B, 1, D).
    """

    main = "pooled_projections"

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.width = width
        self.up, self.down = nn.Linear(width, dim), nn.Linear(dim, dim)

    def inputs(self) -> dict[str, Input]:
        return {"pooled_projections": Input(("channels",), fixed=("channels",))}

    def example(self, rows: int, size: tuple[int, ...], noise: torch.Generator) -> dict[str, Tensor]:
        return {"pooled_projections": torch.randn(rows, self.width, generator=noise)}

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        self.length(inputs)
        return self.down(F.silu(self.up(inputs["pooled_projections"])))[:, None]
