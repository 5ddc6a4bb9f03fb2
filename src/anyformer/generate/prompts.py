"""Prompts (a text, texts, token ids, tensors) as rows of ids, checked; results go back in the same form."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anyformer.hub.generation import check_rule
from anyformer.hub.text.reading import reading


class Prompts:
    """The prompts of one call.

    Args:
        prompts: a text, a list of texts, ids (a list, a 1-D tensor), or several rows of ids (lists, a 2-D tensor).

    Attributes:
        rows: the token ids of each.
        text: True if they are text; then the results are, too.

    Raises:
        ValueError: for anything else, an empty prompt, an id outside the vocabulary, text without a tokenizer.
    """

    def __init__(self, model: Any, prompts: Any):
        check_generates(model)
        self.model, self.prompts = model, prompts
        self.text = isinstance(prompts, str) or (_is_list(prompts) and len(prompts) > 0 and isinstance(prompts[0], str))
        items = (
            [prompts]
            if _is_one(prompts)
            else list(prompts)
            if _is_list(prompts) or isinstance(prompts, Tensor)
            else None
        )
        if items is None:
            raise ValueError(f"prompts must be a text, token ids, or several of them; got {type(prompts).__name__}")
        if not items:
            raise ValueError("prompts is an empty list; pass at least one prompt")
        tokenizer = tokenizer_of(model, "text prompts") if self.text else None
        source = model.reads_source  # read as in training: with the closing tokens of a source
        self.rows = [_ids(item, i, tokenizer, source) for i, item in enumerate(items)]
        for i, row in enumerate(self.rows):
            check_ids(model, row, "" if len(self.rows) == 1 else f" {i}")

    def heal(self) -> tuple[str, ...]:
        """Takes off the last token of each prompt, and returns their texts: a prompt may end inside a word that the
        model knows as one token. A prompt of one token, or that ends with a special one, stays: "" for it.

        Raises:
            ValueError: for prompts of ids, and for a model that reads a prompt as a source.
        """
        if not self.text or self.model.reads_source:
            what = "the model writes apart from its source" if self.text else "the prompts are token ids"
            raise ValueError(f"heal writes the last token of a text again, and {what}")
        return tuple(_taken(row, self.model.tokenizer) for row in self.rows)

    def back(self, results: list[Any], fill: int) -> Any:
        """Results, one a row, in the form in which the prompts came. A 2-D tensor is padded with `fill`."""
        if isinstance(self.prompts, Tensor):
            width = max(map(len, results))
            rows = [row + [fill] * (width - len(row)) for row in results]
            made = torch.tensor(rows, dtype=torch.long, device=self.prompts.device)  # (B, N)
            return made if self.prompts.ndim == 2 else made[0]
        return results[0] if _is_one(self.prompts) else results


def _taken(row: list[int], tokenizer: Any) -> str:
    """Takes off the last token and returns its text; "" where it stays."""
    stream = tokenizer.stream()
    pieces = [stream.put(token) for token in row]
    if len(row) < 2 or not pieces[-1] or "\ufffd" in tokenizer.decode(row[-1:]):  # special, or a part of a character
        return ""
    row.pop()
    return str(pieces[-1])


def check_generates(model: Any) -> None:
    """Raises ValueError for a model that cannot continue anything."""
    if not getattr(model, "generates", False):
        what = getattr(model, "page", None) or type(model).__name__
        if getattr(model, "reads_source", False) and model.reads_text:
            raise ValueError(
                f"{what} reads more than a text: {', '.join(n for n, r in model.inputs().items() if r.required)}; with "
                "an index of passages: `anyformer ask INDEX QUESTION --model MODEL`, or know.reader.Reader"
            )
        if getattr(model, "reads_source", False):
            raise ValueError(
                f"{what} writes about {model.takes}, not about a text: anyformer.generate.transcribe(model, sound) or "
                "`anyformer transcribe`"
            )
        raise ValueError(
            f"{what} cannot generate: it sees its whole input at once and predicts no next token; use a decoder"
        )


def check_ids(model: Any, row: list[int], which: str = "") -> None:
    """Raises ValueError if a prompt is empty or has an id outside the vocabulary."""
    if not row:
        raise ValueError(f"prompt{which} is empty; pass at least one token, e.g. the one that begins texts")
    vocab = model.vocab
    for token in row:
        if not 0 <= token < vocab and token not in model.placeholders:
            raise ValueError(f"prompt{which}: token id {token} is outside the vocabulary: ids go from 0 to {vocab - 1}")


def check_room(model: Any, rows: list[list[int]], max_new_tokens: int) -> None:
    """Raises ValueError if a prompt, or a prompt and its new tokens, are longer than the context."""
    context = model.context
    if context is None:
        return
    apart = model.reads_source  # the encoder reads the prompt; the target begins with one token
    for i, row in enumerate(rows):
        which = "the prompt" if len(rows) == 1 else f"prompt {i}"
        if len(row) > context:
            raise ValueError(
                f"{which} has {len(row)} tokens, and the context of this model is {context}; shorten it, "
                f"or read the model with a longer one: load(..., context={len(row) + max_new_tokens})"
            )
        start = 1 if apart else len(row)
        if start + max_new_tokens > context:
            raise ValueError(
                f"{which} has {len(row)} tokens; with max_new_tokens={max_new_tokens} the text grows to "
                f"{start + max_new_tokens}, and the context of this model is {context}: "
                f"give max_new_tokens={context - start} or less"
            )


def tokenizer_of(model: Any, why: str) -> Any:
    """The model's tokenizer.

    Raises:
        ValueError: with advice, if it has none.
    """
    if getattr(model, "tokenizer", None) is None:
        raise ValueError(
            f"{why} need a tokenizer, and this model has none: pass token ids, or set one: "
            "model.tokenizer = anyformer.hub.text.tokenizer.Tokenizer.load(folder)"
        )
    return model.tokenizer


def end_ids(model: Any) -> set[int]:
    """The tokens that end a text: those of the tokenizer, the generation config and the config together.

    Raises:
        ValueError: naming the key, if a file holds anything but token ids.
    """
    ends = set() if model.tokenizer is None else set(model.tokenizer.eos_ids)
    origin = model.origin or {}
    for file in ("generation", "config"):
        ids = origin.get(file, {}).get("eos_token_id")
        check_rule(file, "eos_token_id", ids)
        ends.update([] if ids is None else ids if isinstance(ids, list) else [ids])
    return ends


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_one(value: Any) -> bool:
    """True for one prompt, false for several."""
    if isinstance(value, Tensor):
        return value.ndim == 1
    return isinstance(value, str) or (
        _is_list(value) and len(value) > 0 and not _is_list(value[0]) and not isinstance(value[0], str | Tensor)
    )


def _ids(item: Any, i: int, tokenizer: Any, source: bool) -> list[int]:
    if tokenizer is not None:
        if not isinstance(item, str):
            raise ValueError(f"prompts must be all texts or all token ids: prompt {i} is {type(item).__name__}")
        return reading(tokenizer, item, ends=True).ids if source else tokenizer.encode(item)
    if isinstance(item, Tensor):
        if item.ndim != 1 or item.is_floating_point() or item.dtype == torch.bool:
            raise ValueError(
                f"prompt {i} must be a row of whole numbers, got {item.dtype} of shape {tuple(item.shape)}"
            )
        return item.tolist()
    try:
        return [operator.index(token) for token in item]
    except TypeError:
        raise ValueError(f"prompt {i} must be token ids (whole numbers), got {item!r:.80}") from None
