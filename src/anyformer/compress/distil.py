"""A model that learns from another: the scores of each place, or the hidden states, of a teacher.

    L = T^2 mean over places of KL(softmax(z / T) of the teacher, of the student)        T = 2

(Hinton et al., 2015; arXiv:1503.02531). The mean is over the real places of the text, never over padding. Without
scores: the mean squared error of the hidden states, over the teacher's mean square. N places, V classes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anyformer.compress.held import Held, Inputs

TEMPERATURE = 2.0
RATE, WARM, CLIP = 3e-4, 0.1, 1.0  # of AdamW; the share of steps until the full rate; the largest gradient


@dataclass(frozen=True)
class Healed:
    """Training by a teacher: steps, and the loss of the first and of the last tenth of them."""

    steps: int
    first: float
    last: float

    def __str__(self) -> str:
        return f"{self.steps} steps, loss {self.first:.4g} -> {self.last:.4g}"


def divergence(
    student: Tensor, teacher: Tensor, keep: Tensor | None = None, temperature: float = TEMPERATURE
) -> Tensor:
    """T^2 KL of two scores (..., V), the mean over all places, or over those where `keep` (...) is True."""
    p, q = (z.float() / temperature for z in (teacher, student))
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    each = (p.exp() * (p - q)).sum(-1)
    mean = each.mean() if keep is None else (each * keep).sum() / keep.sum().clamp(min=1)
    return temperature**2 * mean


def check_pair(student: Any, teacher: Any) -> None:
    """Raises ValueError unless both read the same tokens."""
    if student.vocab != teacher.vocab:
        raise ValueError(
            f"the teacher has {teacher.vocab} tokens and the student {student.vocab}: their scores are of "
            "different things"
        )
    words: list[Any] = [getattr(m.tokenizer, "core", None) for m in (student, teacher)]
    if all(w is not None for w in words) and words[0].get_vocab() != words[1].get_vocab():
        raise ValueError("teacher and student number different tokens: their scores are of different things")


def heal(
    student: Any,
    teacher: Any,
    held: Held,
    steps: int,
    masks: Mapping[str, Tensor] | None = None,
    rate: float = RATE,
    seed: int = 0,
) -> Healed:
    """Trains a student on the calibration half, in place.

    Args:
        steps: of AdamW, each over a batch of windows that are drawn from the text.
        masks: by name of a parameter, where its weights stay 0 (False).

    Raises:
        ValueError: for fewer than one step, another vocabulary, or hidden states of another width.
        FloatingPointError: if the loss is no longer finite.
    """
    if steps < 1:
        raise ValueError(f"--heal needs at least 1 step, got {steps}")
    check_pair(student, teacher)
    before = copy.deepcopy(student.state_dict())
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, rate, weight_decay=0.0)
    losses = []
    for step, inputs in zip(range(steps), held.draws(seed), strict=False):
        share = min(1.0, (step + 1) / max(1.0, WARM * steps)) * (1 - step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        loss = _loss(student, teacher, inputs)
        if not bool(loss.isfinite()):
            student.load_state_dict(before)
            raise FloatingPointError(f"the loss of step {step + 1} is not finite; the student is as it was")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        with torch.no_grad():
            for name, mask in (masks or {}).items():
                student.get_parameter(name).mul_(mask)
        losses.append(float(loss.detach()))
    part = max(1, len(losses) // 10)
    return Healed(len(losses), sum(losses[:part]) / part, sum(losses[-part:]) / part)


def _loss(student: Any, teacher: Any, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        wanted = teacher(**inputs)
    out = student(**inputs)
    if wanted.logits is not None and out.logits is not None:
        return divergence(out.logits, wanted.logits)
    if out.hidden.shape != wanted.hidden.shape:
        raise ValueError(
            f"without scores the hidden states are compared: the teacher's have {wanted.hidden.shape[-1]} numbers, the "
            f"student's {out.hidden.shape[-1]}"
        )
    return (out.hidden - wanted.hidden).float().square().mean() / wanted.hidden.float().square().mean()
