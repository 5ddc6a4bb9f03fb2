"""Front-ends: parts that declare the inputs of a model. B batch, T positions of the stream, D width."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from anyformer.core.documents import counted
from anyformer.core.flow import Flow
from anyformer.core.part import Part

Inputs = Mapping[str, Tensor]  # the tensors of one call, by name


@dataclass(frozen=True)
class Input:
    """The declaration of one tensor that a model reads.

    Args:
        axes: the name of each axis after the batch, e.g. ("channels", "height", "width").
        counted: the axes that the padding mask covers: rows of a batch can differ there, and are padded.
        fixed: the axes whose size the model decides; all others are open.
        required: True if a call without it is an error.
        ids: True for whole numbers, False for numbers in the type of the weights.
        positions: True if its first axis counts positions of the stream, where a unit of the main input is not one.
    """

    axes: tuple[str, ...]
    counted: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    required: bool = True
    ids: bool = False
    positions: bool = False

    def counts(self) -> tuple[int, ...]:
        """The indices of the counted axes in the tensor, whose axis 0 is the batch."""
        return tuple(1 + self.axes.index(name) for name in self.counted)

    def __str__(self) -> str:
        return f"(batch, {', '.join(self.axes)})"


MASK = Input(("time",), ("time",), required=False, ids=True)  # a padding mask: 1 or True = real


class FrontEnd(Part):
    """Base of the parts at the input of the stream: `forward(inputs, flow)`, (B, T, D).

    Checks, batching, padding, export, explanation and the contract use a front-end's declaration, never the model's
    class.

    Attributes:
        main: the name of its main input.
        mask: the name of its padding mask, or None if its input has no padding.
        right: padding is on the right only, since units on both sides of a gap would share a position.
        static: axes of its inputs whose sizes are rounded again and again, which `torch.export` cannot follow: it fixes
            them.
        vocab: the number of ids, if it reads ids.
        unembed: the scores of all ids by the same table, for tied heads; None without a table.
    """

    main: ClassVar[str]
    mask: ClassVar[str | None] = None
    right: ClassVar[bool] = False
    static: ClassVar[frozenset[str]] = frozenset()
    vocab: int | None = None
    unembed: Any = None

    @abstractmethod
    def inputs(self) -> dict[str, Input]:
        """The tensors that it reads, by name, the main one first."""

    @abstractmethod
    def length(self, inputs: Inputs) -> int:
        """The number of positions of the input.

        Raises:
            ValueError: if a tensor has the wrong shape, with its name.
        """

    @abstractmethod
    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        """(B, T, D)"""

    @abstractmethod
    def example(self, rows: int, size: tuple[int, ...], noise: torch.Generator) -> dict[str, Tensor]:
        """Random valid inputs.

        Args:
            size: one of `sizes`; surplus numbers are ignored.
        """

    @abstractmethod
    def sizes(self) -> list[tuple[int, ...]]:
        """Sizes of inputs worth comparing, the usual one first: the number of tokens, rows and columns of patches."""

    def units(self, inputs: Inputs) -> int:
        """The number of units that the padding mask counts: by default the positions."""
        return self.length(inputs)

    def least(self, count: int) -> int:
        """The fewest units that make `count` positions; `count` where a unit makes one position or several."""
        return count

    def keep(self, mask: Tensor, inputs: Inputs) -> Tensor:
        """The padding mask of the positions, (B, T), from the mask of the input, (B, units); by default the same."""
        return mask

    def locate(self, keep: Tensor | None, first: int, count: int, device: torch.device) -> Tensor:
        """The positions of the tokens, (T,) or (B, T), padding not counted.

        Args:
            keep: (B, first + count) padding mask of all tokens seen, or None.
            first: tokens seen before this call.
        """
        if keep is None:
            return torch.arange(first, first + count, device=device)
        return counted(keep)[:, first:]

    def cells(self, inputs: Inputs) -> tuple[int, int] | None:
        """Rows and columns of a picture's positions, the last ones of the stream; None without a grid."""
        return None

    def check_ids(self, inputs: Inputs) -> None:
        """Raises ValueError for an id outside every table of this front-end; called after a failed look-up."""


@dataclass(frozen=True)
class Entrance:
    """A front-end of a model, and the prefix of its inputs' names: `decoder_` for the target of an encoder-decoder."""

    front: FrontEnd
    prefix: str = ""

    @property
    def mask(self) -> str | None:
        """The name of its padding mask, or None."""
        return None if self.front.mask is None else self.prefix + self.front.mask

    def inputs(self) -> dict[str, Input]:
        """The tensors that it reads, its mask included, by name."""
        declared = {self.prefix + name: read for name, read in self.front.inputs().items()}
        return declared if self.mask is None else {**declared, self.mask: MASK}

    def given(self, inputs: Inputs) -> dict[str, Tensor]:
        """Its own tensors among those of a call, under the names of the front-end.

        Raises:
            ValueError: if one is missing.
        """
        values = {}
        for name, read in self.front.inputs().items():
            value = inputs.get(self.prefix + name)
            if value is not None:
                values[name] = value
            elif read.required:
                name = self.prefix + name
                raise ValueError(f"this model reads {name} of shape {read}; call model({name}=…)")
        if self.front.mask is not None and (mask := inputs.get(self.prefix + self.front.mask)) is not None:
            values[self.front.mask] = mask
        return values
