"""One vector for a text or a picture. B items of a batch, T tokens, D width, N items."""

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
from anyformer.parts import Project


@torch.inference_mode()
def embed(
    model: Any, items: Sequence[Any], batch: int = 32, normalize: bool | None = None, prompt: str | None = None
) -> Tensor:
    """Vectors of texts (as in sentence-transformers) or of pictures: similar items have a high cosine similarity.

    For a text, the last hidden states are pooled as in the model's files (`modules.json`; without it: the mean over
    real tokens, no normalisation); for an encoder-decoder, those of the encoder. A picture's vector is the pooled one.
    With two towers (CLIP), both kinds have vectors of one space, of length 1. No vector depends on other items.

    Args:
        items: texts; or pictures of any kind that `media.picture` reads. A model of both takes a str for a text, and a
            pathlib.Path for the file of a picture.
        batch: items that go through the model at once; the longest texts first, so that little is padded.
        normalize: to length 1; None = as in the model's files.
        prompt: the name of a prompt of the files, put in front of each text ("query", "document" …); None = their
            default, "" = nothing.

    Returns:
        (N, D), in float32 at least, on the model's device, in the order of the items.

    Warns:
        UserWarning: if texts are longer than the model's limit and are cut, with their number and the limit.

    Raises:
        ValueError: without items, a tokenizer or a processor, or for a text without tokens or an unreadable picture.
    """
    check(items, batch)
    if pictured(model, items):
        with evaluating(model):
            parts = [_seen(model, items[at : at + batch]) for at in range(0, len(items), batch)]
        return F.normalize(torch.cat(parts), dim=-1) if normalize else torch.cat(parts)
    how = meaning((model.origin or {}).get("pooling", {}))
    rows = _encoded(model, _as_read(how, items, prompt), limit_of(model, how))
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    with evaluating(model):
        parts = [_pooled(model, [rows[i] for i in order[at : at + batch]], how) for at in range(0, len(order), batch)]
    vectors = torch.cat(parts)  # (N, D), the longest first
    vectors = vectors[torch.tensor(order, device=vectors.device).argsort()]
    return F.normalize(vectors, dim=-1) if (how.normalize if normalize is None else normalize) else vectors


def limit_of(model: Any, how: Pooling) -> int | None:
    """The most tokens of a text; None = any number."""
    longest = how.tokens or tokenizer_of(model, "texts").longest
    return min(filter(None, (longest, model.context)), default=None)


def limited(model: Any, texts: Sequence[str]) -> tuple[list[int], int | None]:
    """The number of tokens of each text as `embed` would read it, and the number at which it cuts; None = never."""
    how, tokenizer = meaning((model.origin or {}).get("pooling", {})), tokenizer_of(model, "texts")
    return [len(reading(tokenizer, text).ids) for text in _as_read(how, texts, None)], limit_of(model, how)


def _as_read(how: Pooling, texts: Sequence[str], prompt: str | None) -> list[str]:
    """The texts behind their prompt, in small letters where the files ask for these."""
    made = [how.before(prompt) + text for text in texts]
    return [text.lower() for text in made] if how.lower else made


def _encoded(model: Any, texts: Sequence[str], limit: int | None) -> list[list[int]]:
    """The ids of each text; one that is too long is cut at the end, but keeps its closing tokens."""
    tokenizer, rows, lengths = tokenizer_of(model, "texts"), [], []
    for i, text in enumerate(texts):
        encoded = reading(tokenizer, text)
        if not encoded.ids:
            raise ValueError(f"text {i} has no tokens, so it has no vector: {text!r:.40}")
        if limit is not None and len(encoded.ids) > limit:
            lengths.append(len(encoded.ids))
        rows.append(encoded.ids if limit is None else encoded.cut(limit))
    if lengths:
        warnings.warn(
            f"{len(lengths)} of {len(texts)} texts are longer than {limit} tokens (the longest has {max(lengths)}): "
            "their vectors ignore the rest; split them",
            stacklevel=4,
        )
    return rows


def check(items: Sequence[Any], batch: int) -> None:
    """Raises ValueError unless there are items and a size of batches."""
    if isinstance(items, str | bytes) or not len(items):
        raise ValueError(f"items must be a list of at least one text or picture, got {items!r:.80}")
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch must be a whole number, 1 or more; got {batch!r}")


def pictured(model: Any, items: Sequence[Any]) -> bool:
    """True if the items are pictures for this model.

    Raises:
        ValueError: for texts and pictures at once, or a model that reads neither.
    """
    sees, reads = "pixel_values" in model.inputs(), model.vocab is not None
    texts = sum(isinstance(item, str) for item in items)
    if sees and not reads:
        return True
    if not reads or (not sees and texts < len(items)):
        what = "text" if reads else ", ".join(model.inputs())
        raise ValueError(f"this model reads {what}; got {type(items[0]).__name__}: {items[0]!r:.60}")
    if 0 < texts < len(items):
        raise ValueError(f"{texts} of {len(items)} items are texts, the others pictures; pass one kind at a time")
    return not texts


def inputs_of(model: Any, items: Sequence[Any]) -> dict[str, Tensor]:
    """Texts or pictures as inputs of the model, on its device."""
    like = next(model.parameters())
    if pictured(model, items):
        if model.processor is None:
            raise ValueError(
                "the model has no processor, so the preprocessing of pictures is unknown; add its "
                "preprocessor_config.json to its folder, or set model.processor (anyformer.hub.processors)"
            )
        return {name: value.to(like) for name, value in model.processor(list(items)).items()}
    ids, keep = padded(_encoded(model, items, model.context), like.device)
    return {"input_ids": ids} if keep is None else {"input_ids": ids, "attention_mask": keep}


def _seen(model: Any, items: Sequence[Any]) -> Tensor:
    """The vectors of some pictures, (B, D)."""
    inputs = inputs_of(model, items)
    if model.alike:
        return model.vectors(model.tower("pixel_values"), **inputs).float()
    out = model(**inputs)
    ends = [head for head in model.heads.values() if isinstance(head, Project)]
    vectors = out.logits if ends else out.pooled
    return (out.hidden.mean(1) if vectors is None else vectors).float()


def _pooled(model: Any, rows: list[list[int]], how: Pooling) -> Tensor:
    """The vectors of some texts, (B, D)."""
    ids, keep = padded(rows, next(model.parameters()).device)  # (B, T)
    if model.alike:
        masks = {} if keep is None else {"attention_mask": keep}
        return model.vectors(model.tower("input_ids"), input_ids=ids, **masks).float()
    hidden = model.encode(ids, keep)  # (B, T, D)
    hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
    return pooled(hidden, keep, how.mode)
