"""One vector for a text. B texts of a batch, T tokens, D width, N texts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer.generate.decoding import evaluating, padded
from anyformer.generate.prompts import tokenizer_of
from anyformer.hub.pooling import Pooling, meaning, pooled
from anyformer.hub.text.reading import reading


@torch.inference_mode()
def embed(
    model: Any, texts: Sequence[str], batch: int = 32, normalize: bool | None = None, prompt: str | None = None
) -> Tensor:
    """Sentence vectors as sentence-transformers makes them: similar texts have a high cosine similarity.

    The last hidden states are pooled as the model's files say (`modules.json`; without it: the mean over real tokens,
    no normalisation). A text's vector does not depend on the others. Of an encoder-decoder, the encoder is used.

    Args:
        texts: one or more.
        batch: texts that go through the model at once; the longest first, so that little is padded.
        normalize: to length 1; None = as the model's files say.
        prompt: the name of what the files put in front of each text ("query", "document" …); None = their default, ""
            = nothing.

    Returns:
        (N, D), in float32 at least, on the model's device, in the order of the texts.

    Warns:
        UserWarning: if texts are longer than the model's limit and are cut, with how many and what the limit is.

    Raises:
        ValueError: without texts or a tokenizer, for a text without tokens, or a model that does not read text.
    """
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"texts must be a list of at least one text, got {texts!r:.80}")
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch must be a whole number, 1 or more; got {batch!r}")
    if not model.reads_text:
        raise ValueError(f"embed reads text, and this model reads {model.takes}")
    how = meaning((model.origin or {}).get("pooling", {}))
    tokenizer, before = tokenizer_of(model, "texts"), how.before(prompt)
    texts = [before + text for text in texts]
    limits = filter(None, (how.tokens or tokenizer.longest, model.context))
    rows = _encoded(model, [t.lower() for t in texts] if how.lower else texts, min(limits, default=None))
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    with evaluating(model):
        parts = [_pooled(model, [rows[i] for i in order[at : at + batch]], how) for at in range(0, len(order), batch)]
    vectors = torch.cat(parts)  # (N, D), the longest first
    vectors = vectors[torch.tensor(order, device=vectors.device).argsort()]
    return F.normalize(vectors, dim=-1) if (how.normalize if normalize is None else normalize) else vectors


def _encoded(model: Any, texts: Sequence[str], limit: int | None) -> list[list[int]]:
    """The ids of each text; of one that is too long the end is cut, but the tokens that close every text stay."""
    tokenizer, rows, lengths = tokenizer_of(model, "texts"), [], []
    for i, text in enumerate(texts):
        found = reading(tokenizer, text)
        if not found.ids:
            raise ValueError(f"text {i} has no tokens, so it has no vector: {text!r:.40}")
        if limit is not None and len(found.ids) > limit:
            lengths.append(len(found.ids))
        rows.append(found.ids if limit is None else found.cut(limit))
    if lengths:
        warnings.warn(
            f"{len(lengths)} of {len(texts)} texts are longer than {limit} tokens (the longest has {max(lengths)}): "
            "what comes after is not in their vectors; split them",
            stacklevel=4,
        )
    return rows


def _pooled(model: Any, rows: list[list[int]], how: Pooling) -> Tensor:
    """(B, D)"""
    ids, keep = padded(rows, next(model.parameters()).device)  # (B, T)
    hidden = model.encode(ids, keep)  # (B, T, D)
    hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
    return pooled(hidden, keep, how.mode)
