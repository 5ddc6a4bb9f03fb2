"""The attention of one token as numbers: where every head of every layer looked when the token was written.

H heads, S keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anyformer.explain.attention import kinds
from anyformer.explain.blocks import InBlocks
from anyformer.explain.labels import labels


@dataclass(frozen=True)
class Row:
    """The weights of one layer.

    Attributes:
        layer: its number. cross: true = the keys are the source of an encoder-decoder.
        weights: (H, S), each head's sum 1.
    """

    layer: int
    cross: bool
    weights: Tensor


@dataclass(frozen=True)
class Looked:
    """The attention of a model that wrote a token.

    Attributes:
        tokens: of the text as labels: the prompt and the answer; of an encoder-decoder the target alone.
        source: the labels of the source; none of a decoder.
        first: the number of the answer's first token. token: that of the token. query: that of the token that looked,
            which stands before it.
    """

    tokens: list[str]
    source: list[str]
    first: int
    token: int
    query: int
    rows: list[Row]


def attention_row(model: Any, prompt: list[int], answer: list[int], token: int = -1) -> Looked:
    """The attention behind one token of an answer, in one pass of the model, which it does not change.

    Args:
        prompt: the ids that the model continued, or of an encoder-decoder the source.
        answer: the ids that it wrote. token: the number of one of them, from the end below 0.

    Raises:
        ValueError: without attention, or such a token.
    """
    if not -len(answer) <= token < len(answer):
        raise ValueError(f"there is no token {token} in an answer of {len(answer)}")
    token %= len(answer)
    paths = [(number, kind, path) for kind, layers in kinds(model).items() for number, path in layers.items()
             if not kind.startswith("encoder.")]  # fmt: skip
    if not paths:
        raise ValueError("this model has no attention; `anyformer explain` draws the maps that its mixers imply")
    first, before = (1, [model.begin_id]) if model.reads_source else (len(prompt), prompt)
    read = [*before, *answer][: first + token]  # what stood there when the token was written
    device = next(model.parameters()).device
    inputs = {f"{model.target}input_ids": torch.tensor([read], device=device)}
    if model.reads_source:
        inputs["input_ids"] = torch.tensor([prompt], device=device)
    with torch.no_grad(), InBlocks(model, [path for *_, path in paths]) as taps:
        model(**inputs)
    rows = []
    for number, kind, path in paths:
        weights, cross = taps.maps[path], kind.endswith("cross")
        if weights.shape[2:] == (len(read), len(prompt) if cross else len(read)):  # not of a window apart
            rows.append(Row(number, cross, weights.row(len(read) - 1)[0].float().cpu()))
    if not rows:
        raise ValueError("the attention of this model is in windows or summaries, not from token to token")
    every = [*before, *answer]
    source = labels(model.tokenizer, prompt) if model.reads_source else []
    return Looked(labels(model.tokenizer, every), source, first, first + token, first + token - 1, rows)
