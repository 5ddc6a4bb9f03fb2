"""Checks of a model's inputs, once a call: masks and positions have several conventions.

Contents are not checked while a model is compiled, exported or run for its shapes only, and a mask of `bool` needs no
check. B batch, T tokens of this call, S tokens so far.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def attention_mask(mask: Tensor, batch: int, lengths: Sequence[int], name: str = "attention_mask") -> Tensor:
    """The padding mask as `bool`, True = a real token.

    Args:
        mask: (B, T) of True and False, or of 1 and 0. `lengths`: the allowed T. `name`: of the input, for errors.

    Raises:
        ValueError: for another shape; for masks that are added to scores (0 and -inf), that number the texts of a row
            (1 1 2 2), or hold NaN. The error names the right input.
    """
    if mask.ndim != 2 or mask.shape[0] != batch or mask.shape[1] not in lengths:
        raise ValueError(f"{name} must be (batch, tokens) = ({batch}, {lengths[0]}), got {tuple(mask.shape)}")
    if mask.dtype == torch.bool or not readable(mask):
        return mask.bool()
    if bool(((mask == 0) | (mask == 1)).all()) and not (mask.is_floating_point() and not bool(mask.any())):
        return mask.bool()
    meaning = f"in {name} 1 is a real token and 0 is padding"
    if bool((mask < 0).any()) or (mask.is_floating_point() and not bool(mask.any())):
        raise ValueError(f"{meaning}; got an additive mask (0 = visible, below = hidden): pass mask == 0")
    if bool((mask > 1).any()) and not mask.is_floating_point():
        raise ValueError(
            f"{meaning}; got numbers up to {int(mask.max())}: to separate several texts of a row, pass document_ids, 0 "
            "for the first text, 1 for the second …, -1 at padding, in place of attention_mask"
        )
    return flags(name, mask)


def flags(name: str, mask: Tensor) -> Tensor:
    """A mask of 1 and 0, or True and False, as `bool`.

    Raises:
        ValueError: if it holds anything else.
    """
    if mask.dtype != torch.bool and readable(mask):
        odd = mask[(mask != 0) & (mask != 1)]
        if len(odd):
            raise ValueError(f"{name} must hold only 1 and 0, or True and False; got {odd[0].item()}")
    return mask.bool()


def position_ids(positions: Tensor, batch: int, count: int, keep: Tensor | None = None) -> Tensor:
    """The positions of the tokens of this call, (T,) or (B, T).

    Args:
        keep: (B, T) padding mask, True = a real token; positions of padding are not checked.

    Raises:
        ValueError: for another shape or type; for positions that decrease, as those of several texts in a row do.
    """
    if positions.is_floating_point() or positions.is_complex() or positions.dtype == torch.bool:
        raise ValueError(f"position_ids must be whole numbers, got {positions.dtype}")
    if tuple(positions.shape) not in ((count,), (1, count), (batch, count)):
        raise ValueError(
            f"position_ids must be (tokens,) = ({count},) or (batch, tokens) = ({batch}, {count}), got "
            f"{tuple(positions.shape)}"
        )
    if not readable(positions) or count < 2:
        return positions
    rows = positions.expand(batch, count)  # (B, T)
    real = torch.ones_like(rows, dtype=torch.bool) if keep is None else keep
    highest = rows.masked_fill(~real, -1).cummax(1).values  # (B, T) highest position of the real tokens up to each one
    back = real[:, 1:] & (rows[:, 1:] < highest[:, :-1])
    if bool(back.any()):
        row, place = (int(i) for i in back.nonzero()[0])
        raise ValueError(
            f"position_ids go back in row {row}, from {int(highest[row, place])} to {int(rows[row, place + 1])}: "
            "document_ids (0 for the first text of a row, 1 for the second …) separate texts and set their positions; "
            "leave position_ids out"
        )
    return positions


def readable(tensor: Tensor) -> bool:
    """True if the tensor has content and the model is not being compiled or exported."""
    return not (traced() or shapeless(tensor))


def traced() -> bool:
    """True while the model is being compiled, exported or traced: its steps may not depend on an input."""
    compiled = torch.compiler.is_compiling() or torch.compiler.is_exporting()
    return compiled or torch.jit.is_tracing()  # type: ignore[attr-defined, unused-ignore]


def shapeless(tensor: Tensor) -> bool:
    """True if the tensor has a shape and no content: on the meta device, or one of PyTorch's fake tensors."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)
