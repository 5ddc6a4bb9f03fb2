"""Losses over preferences: which of two answers is better, or whether one is good. B rows, T time, P pairs.

With r(y) = log p(y | prompt) - log q(y | prompt), p the model, q the reference (the model as it came), both sums over
the answer's tokens, and |y| their number:

```
dpo    a pair      -log sigmoid(beta (r(good) - r(bad)))                                     Rafailov et al., 2023
ipo    a pair      (r(good) / |good| - r(bad) / |bad| - 1 / (2 beta))^2                      Azar et al., 2023
simpo  a pair      -log sigmoid(beta (log p(good) / |good| - log p(bad) / |bad|) - gamma)    Meng et al., 2024
kto    an answer   good: 1 - sigmoid(beta (r(y) - k)), bad: 1 - sigmoid(beta (k - r(y)))     Ethayarajh et al., 2024
```
(arXiv:2305.18290, 2310.12036, 2405.14734, 2402.01306.)
k = max(0, mean of r over answers to other prompts), without a gradient. With p = q the loss of dpo is log 2, of kto
1/2, of ipo 1 / (4 beta^2). The averages over tokens in ipo are those of its authors' code and of TRL.

Rows come in twos: a good and a bad answer; for kto an answer, and one to another prompt. The labels of a row are its
reference log-probability (the 64 bits of a float), its kind, and the next tokens where they belong to the answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer.data.labels import IGNORE
from anyformer.parts.unscored import Unscored, places, rows
from anyformer.skeletons.base import Output

Kind = Literal["dpo", "ipo", "simpo", "kto"]
BETAS: dict[str, float] = {"dpo": 0.1, "ipo": 0.1, "simpo": 2.0, "kto": 0.1}
BAD, GOOD, OTHER = 0, 1, 2  # kinds of rows; other: the answer to another prompt
AHEAD = 2  # numbers in front of the labels of tokens


def log_probs(logits: Tensor | Unscored, labels: Tensor) -> Tensor:
    """log p of each label, 0 where none counts, in float32 or better. Shapes: (B, T, V), (B, T) -> (B, T)."""
    at = places(labels != IGNORE)
    x, own = rows(logits, at), labels.flatten()[at]  # (N, V), (N,): of answers alone, prompts are half of the tokens
    each = -F.cross_entropy(x.to(torch.promote_types(x.dtype, torch.float32)), own, reduction="none")
    return each.new_zeros(labels.numel()).index_put((at,), each).view_as(labels)


def marked(reference: float, kind: int, labels: Sequence[int]) -> list[int]:
    """The labels of a row: its reference, its kind, its tokens."""
    bits = int(torch.tensor([reference], dtype=torch.float64).view(torch.int64))
    return [bits, kind, *labels]


def references(labels: Tensor) -> Tensor:
    """The reference log-probabilities of rows, (B,), float64."""
    return labels[:, 0].contiguous().view(torch.float64)


@dataclass(eq=False)
class Preference:
    """The objective over preferences.

    Args:
        beta: how strongly the reference holds (dpo, ipo, kto); of simpo the scale. gamma: of simpo, the wanted margin.

    Attributes:
        metrics: of the last batch, for the log: the log-probabilities of good and bad answers, and the margin
            beta (r(good) - r(bad)) (simpo: beta times the difference of the means).
    """

    kind: Kind
    beta: float
    gamma: float = 0.0
    metrics: dict[str, Tensor] = field(default_factory=dict)

    def counted(self, labels: Tensor) -> Tensor:
        """The pairs, or for kto the answers, of a batch."""
        return torch.tensor(len(labels) // 2, device=labels.device)

    def check(self, labels: Tensor) -> None:
        """Raises ValueError for a row without a token of its answer."""
        empty = (labels[:, AHEAD:] != IGNORE).sum(1) == 0
        if bool(empty.any()):
            raise ValueError(f"row {int(empty.int().argmax())} of the batch has no token of an answer")

    def __call__(self, output: Output, labels: Tensor, count: Tensor | float) -> Tensor:
        """The sum of the losses / count. Shapes: logits (B, T, V), labels (B, 2 + T) -> a number."""
        if output.logits is None or output.logits.shape[:-1] != labels[:, AHEAD:].shape:
            raise ValueError(f"preferences need the logits of {tuple(labels[:, AHEAD:].shape)} tokens")
        tokens = labels[:, AHEAD:]
        own = log_probs(output.logits, tokens).sum(1)  # (B,)
        reference, lengths = references(labels).to(own.dtype), (tokens != IGNORE).sum(1)
        each = self.losses(own, reference, lengths, labels[:, 1])
        return each.sum() / count

    def losses(self, own: Tensor, reference: Tensor, lengths: Tensor, kinds: Tensor) -> Tensor:
        """The loss of each pair, or of each answer, from log-probabilities. Shapes: (2 P,) each -> (P,)."""
        first, second = own[0::2], own[1::2]
        ratios = own - reference
        if self.kind == "kto":
            good = kinds[0::2] == GOOD
            middle = ratios[1::2].mean().clamp(min=0).detach()
            signed = torch.where(good, ratios[0::2] - middle, middle - ratios[0::2])
            value = self.beta * ratios[0::2]
            self._note(first[good], first[~good], value[good].mean() - value[~good].mean())
            return 1 - torch.sigmoid(self.beta * signed)
        if self.kind == "simpo":
            means = own / lengths
            margin = self.beta * (means[0::2] - means[1::2])
            self._note(first, second, margin.mean())
            return -F.logsigmoid(margin - self.gamma)
        if self.kind == "ipo":
            means = ratios / lengths
            self._note(first, second, self.beta * (ratios[0::2] - ratios[1::2]).mean())
            return (means[0::2] - means[1::2] - 1 / (2 * self.beta)).square()
        margin = self.beta * (ratios[0::2] - ratios[1::2])
        self._note(first, second, margin.mean())
        return -F.logsigmoid(margin)

    def _note(self, good: Tensor, bad: Tensor, margin: Tensor) -> None:
        named = {"good": good.mean(), "bad": bad.mean(), "margin": margin}
        self.metrics = {name: value.detach() for name, value in named.items()}


def at_start(kind: Kind, beta: float) -> float | None:
    """The loss of the reference itself; None where it depends on the model."""
    return {"dpo": math.log(2), "kto": 0.5, "ipo": 1 / (4 * beta**2)}.get(kind)
