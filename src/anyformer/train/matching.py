"""What two towers learn: which picture belongs to which text. B rows of a batch, N rows of all processes, E width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from anyformer.skeletons.base import Output
from anyformer.train.objectives import IGNORE, as_right, counted, find_own, gathered


@dataclass(frozen=True)
class Matching:
    """CLIP's loss (Radford et al., 2021; arXiv:2103.00020): of all texts find the picture's, and the other way round.

    ```
    s_ij = scale * image_i . text_j
    loss = -(sum_i log softmax_j(s_ij)[i] + sum_j log softmax_i(s_ij)[j]) / (2 count)
    ```
    Labels (B,) are numbers of the texts: rows of one number are no wrong answers for each other, a row of -100 only
    serves as a wrong answer. With labels that all differ it is the loss of the published code.

    The wrong answers are the rows of one *batch*, on all processes, which exchange their vectors with gradients: how
    many processes there are changes nothing. Accumulated batches would not see each other, so they are refused.
    """

    across: ClassVar[bool] = True  # a step's rows must be one batch

    def __call__(self, output: Output, labels: Tensor, count: Tensor | float) -> Tensor:
        image, text, scale = (output.heads[name] for name in ("image", "text", "scale"))
        both, numbers, first = gathered(torch.cat((image, text), -1), labels)  # (N, 2 E)
        images, texts = both.chunk(2, -1)
        found = find_own((scale * image @ texts.mT).float(), labels, numbers, first)
        return (found + find_own((scale * text @ images.mT).float(), labels, numbers, first)) / (2 * count)

    def counted(self, labels: Tensor) -> Tensor:
        """The number of rows that count."""
        return counted(labels)

    def guess(self, labels: Tensor) -> float:
        """The sum of the losses of a guess that takes every allowed answer for as likely."""
        allowed = (as_right(labels, labels, 0).logical_not()).sum(1)  # (B,)
        return float(allowed[labels != IGNORE].log().sum())
