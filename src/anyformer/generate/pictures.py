"""Pictures between the tokens of a prompt, as inputs of a model. B rows, N pictures of the longest row, C channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

PIXELS, WHICH = "pixel_values", "image_mask"


def picture_inputs(model: Any, images: Any, rows: list[list[int]]) -> dict[str, Tensor]:
    """`pixel_values` (B, N, C, height, width), and `image_mask` where rows have fewer than N pictures.

    Args:
        images: of each row, a list of pictures; of a single row, also its list alone; or None: no pictures.
        rows: the prompts.

    Raises:
        ValueError: for a model that reads no pictures between its tokens, has no processor, or for another number of
            lists than of rows.
    """
    if images is None:
        return {}
    read = model.inputs().get(PIXELS)
    if read is None or "images" not in read.axes:
        what = model.page or type(model).__name__
        reads = ", ".join(model.inputs())
        raise ValueError(f"images: {what} reads no pictures between its tokens; it reads {reads}")
    if model.processor is None:
        raise ValueError(
            "images need a processor, which this model does not have: set one, model.processor = "
            "anyformer.hub.processors.ImageProcessor(...), or pass pixel_values to the model itself"
        )
    each = list(images) if isinstance(images, Sequence) and not isinstance(images, str | bytes) else [images]
    if not any(isinstance(one, list | tuple) for one in each) and len(rows) == 1:
        each = [each]
    if len(each) != len(rows) or not all(isinstance(one, list | tuple) for one in each):
        raise ValueError(f"images must be {len(rows)} lists of pictures, one for each prompt; got {len(each)} entries")
    made = [[model.processor.values(one) for one in some] for some in each]
    count, first = max(map(len, made)), next((values for some in made for values in some), None)
    if first is None:
        return {}
    shapes = {values.shape for some in made for values in some}
    if len(shapes) > 1:
        raise ValueError(f"the processed pictures have different shapes: {', '.join(map(str, sorted(shapes)))}")
    like = next(model.parameters())
    filled = [np.stack([*some, *[np.zeros_like(first)] * (count - len(some))]) for some in made]
    inputs = {PIXELS: torch.from_numpy(np.stack(filled)).to(like)}
    if any(len(some) < count for some in made):
        counts = torch.tensor([len(some) for some in made], device=like.device)
        inputs[WHICH] = (torch.arange(count, device=like.device) < counts[:, None]).long()
    return inputs
