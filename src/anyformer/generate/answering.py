"""Answers to questions about the objects of a picture. N objects, F features of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from anyformer.generate.classifying import names_of, ranked
from anyformer.generate.decoding import evaluating, padded
from anyformer.generate.prompts import tokenizer_of
from anyformer.hub.text.reading import reading

COLUMNS = ("question", "features", "boxes")


@torch.inference_mode()
def answer(model: Any, rows: Sequence[Mapping[str, Any]], batch: int = 32) -> list[dict[str, float]]:
    """The probability of each answer to each question, the likeliest first.

    Args:
        model: LXMERT, or another model of a text and objects with a head of answers.
        rows: each with `question`, `features` (N, F) and `boxes` (N, 4) of the objects.
        batch: rows that go through the model at once.

    Raises:
        ValueError: with the number of the row, for what is no question or no object; for a model without answers or
            tokenizer.
    """
    if not rows:
        raise ValueError("there are no questions: the list is empty")
    check_answers(model)
    ranking: list[dict[str, float]] = []
    with evaluating(model):
        for at in range(0, len(rows), batch):
            some = [asked(model, row, at + i) for i, row in enumerate(rows[at : at + batch])]
            logits = model(**together(model, some)).logits
            names = names_of(model, logits.shape[-1])
            ranking += [ranked(names, row) for row in logits.float().softmax(-1).tolist()]
    return ranking


def check_answers(model: Any) -> None:
    """Raises ValueError for a model that answers no questions about objects."""
    what = getattr(model, "page", None) or type(model).__name__
    if "visual_feats" not in model.inputs() or "answer" not in getattr(model, "heads", {}):
        raise ValueError(
            f"{what} answers no questions about objects: it reads {', '.join(model.inputs())}; use LXMERT with "
            "task='answer'"
        )


def known_answers(model: Any, names: Sequence[str]) -> tuple[str, ...]:
    """The answers of a model, in their order; of a model whose files do not name them, `names`, if they are as many.

    Raises:
        ValueError: for a name that is none of them.
    """
    check_answers(model)
    count = model.recipe["heads"]["answer"]["answers"]
    known = tuple(names_of(model, count))
    unnamed = known == tuple(f"LABEL_{i}" for i in range(count))
    if missing := [name for name in names if name not in known] if not unnamed or len(names) != count else []:
        some = ", ".join(known[:8]) + (", …" if count > 8 else "")
        raise ValueError(
            f"the model has no answer {missing[0]!r}: its {count} are {some}. A model for other answers: `anyformer "
            "train --model lxmert`"
        )
    return tuple(names) if unnamed else known


def asked(model: Any, row: Mapping[str, Any], number: int, limit: int | None = None) -> dict[str, np.ndarray]:
    """The ids of a question and its objects, checked."""
    if missing := [name for name in COLUMNS if name not in row]:
        raise ValueError(f"row {number} lacks {', '.join(missing)}; it has {', '.join(row)}")
    ids = reading(tokenizer_of(model, "questions"), str(row["question"])).ids
    if not ids:
        raise ValueError(f"row {number}: the question {row['question']!r:.60} has no tokens")
    made = {"input_ids": np.array(ids[:limit])}
    for name, own, (_, width) in zip(COLUMNS[1:], ("visual_feats", "visual_pos"), widths(model).items(), strict=True):
        try:
            values = np.array(row[name], np.float32)
        except (TypeError, ValueError):
            values = np.empty(0, np.float32)
        if values.ndim != 2 or values.shape[1] != width or not len(values) or not np.isfinite(values).all():
            raise ValueError(
                f"row {number}: {name} must be a list of objects, {width} finite numbers each; got the shape "
                f"{values.shape}"
            )
        made[own] = values
    if len(made["visual_feats"]) != len(made["visual_pos"]):
        raise ValueError(
            f"row {number} has features of {len(made['visual_feats'])} objects and boxes of {len(made['visual_pos'])}"
        )
    return made


def widths(model: Any) -> dict[str, int]:
    """The numbers of an object, by the input's name: features and place."""
    return {f"visual_{name}": width for name, width in model.objects.sizes_of.items()}


def together(model: Any, examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Examples as one batch, with masks of their real tokens and objects."""
    like = next(model.parameters())
    ids, mask = padded([one["input_ids"].tolist() for one in examples], like.device)
    counts = [len(one["visual_feats"]) for one in examples]
    made = {"input_ids": ids, "attention_mask": torch.ones_like(ids) if mask is None else mask.long()}
    for name, width in widths(model).items():
        made[name] = torch.zeros(len(examples), max(counts), width, dtype=like.dtype, device=like.device)
        for row, one in zip(made[name], examples, strict=True):
            row[: len(one[name])] = torch.as_tensor(one[name]).to(like)
    made["visual_attention_mask"] = (torch.arange(max(counts)) < torch.tensor(counts)[:, None]).long().to(like.device)
    return made
