"""The labels of the words of a text. B texts of a batch, T tokens, C classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from anyformer.generate.classifying import names_of, ranked
from anyformer.generate.decoding import evaluating, padded
from anyformer.generate.embedding import check
from anyformer.generate.prompts import tokenizer_of
from anyformer.hub.text.reading import of_words

Tagged = list[tuple[str, dict[str, float]]]  # the words of a text, each with its labels


@torch.inference_mode()
def tag(model: Any, texts: Sequence[str | Sequence[str]], batch: int = 32) -> list[Tagged]:
    """The probability of each label for each word; the likeliest first. A word has the labels of its first token.

    Args:
        model: one with a head of classes for each token: a fine-tuned or a published tagger.
        texts: texts with words separated by spaces (write "Turin ." if the tagger was trained with full stops as
            words), or lists of words.
        batch: texts that go through the model at once.

    Returns:
        For each text (word, label -> probability); a word without tokens has no labels.

    Raises:
        ValueError: without texts, for one without words or longer than the context, a model without such a head,
            or without a tokenizer with [CLS] and [SEP].
    """
    check(texts, batch)
    tokenizer = tokenizer_of(model, "texts")
    split = [text.split() if isinstance(text, str) else list(map(str, text)) for text in texts]
    read = [of_words(tokenizer, words) for words in split]
    for i, (ids, positions) in enumerate(read):
        if not any(position is not None for position in positions):
            raise ValueError(f"text {i} has no words: {texts[i]!r:.60}")
        if model.context is not None and len(ids) > model.context:
            raise ValueError(f"text {i} has {len(ids)} tokens, and the model reads {model.context}; split the text")
    tagged: list[Tagged] = []
    with evaluating(model):
        for at in range(0, len(read), batch):
            rows = [ids for ids, _ in read[at : at + batch]]
            inputs, keep = padded(rows, next(model.parameters()).device)  # (B, T)
            logits = model(input_ids=inputs, attention_mask=keep).heads.get("classes")
            if logits is None or logits.ndim != 3:
                raise ValueError(
                    f"{type(model).__name__} has no token classification head; `anyformer finetune` on rows with words "
                    "and labels adds one"
                )
            names = names_of(model, logits.shape[-1])
            for row, scores in enumerate(logits.float().softmax(-1).tolist()):  # (T, C)
                first = inputs.shape[1] - len(rows[row])  # padding is on the left
                words = zip(split[at + row], read[at + row][1], strict=True)
                tagged.append([(w, {} if p is None else ranked(names, scores[first + p])) for w, p in words])
    return tagged
