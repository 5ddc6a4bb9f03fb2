"""Codes of pictures for texts, from one decoder of both (DALL-E). B texts, n codes so far, R = S rows and columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anyformer.generate.decoding import evaluating
from anyformer.generate.embedding import embed
from anyformer.generate.options import Options
from anyformer.generate.prompts import tokenizer_of
from anyformer.generate.sampling import Sampler
from anyformer.hub.text.reading import reading
from anyformer.parts.text_and_codes import OneMedium, sequence


@torch.inference_mode()
def draw(
    model: Any,
    texts: Sequence[str] | Sequence[Sequence[int]],
    *,
    guidance: float = 1.0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | Sequence[int] | None = None,
    known: Tensor | None = None,
) -> Tensor:
    """The codes of a picture for each text, (B, R, S), row by row; `decode` of a dVAE makes the pictures.

    Args:
        texts: texts, or rows of ids; an empty row is no text.
        guidance: w of free + w (told - free), the scores with and without the text: 1 = with it, 0 = without; above 1
            the text counts for more.
        temperature, top_k, top_p, seed: as in `generate`.
        known: (B, n) the first codes of each picture, which stay.

    Raises:
        ValueError: naming the argument, for a model of another kind, or values that make no sense.
    """
    head = getattr(model, "head", None)
    if not isinstance(head, OneMedium):
        what = model.page or type(model).__name__
        raise ValueError(f"{what} writes no codes of pictures after a text; `draw` is for decoders such as DALL-E")
    if not isinstance(guidance, int | float) or not math.isfinite(guidance):
        raise ValueError(f"guidance must be a number, 1 = the text as it is; got {guidance!r}")
    if not texts:
        raise ValueError("texts is empty; pass at least one text")
    places = head.first - 1
    cells, vocab = model.context - places, head.codes - places
    rows = [reading(tokenizer_of(model, "texts"), t).ids if isinstance(t, str) else list(t) for t in texts]
    codes = _known(known, len(rows), cells, model.vocab - head.codes)
    free: list[list[int]] = [[] for _ in rows] if guidance != 1 else []
    each = 2 if free else 1
    device = next(model.parameters()).device
    new = sequence([*rows, *free], vocab, places, torch.cat([codes] * each)).to(device)
    state, options = (
        model.start(len(new), model.context),
        Options(0, temperature, top_k, top_p, None, None, (), seed, True),
    )
    sampler = Sampler(options, rows, model.vocab, device)
    with evaluating(model):
        while codes.shape[1] < cells:
            scores = model(new, state=state, last=True).logits[:, -1, head.codes :]
            if free:
                told, without = scores.chunk(2)
                scores = without + guidance * (told - without)
            codes = torch.cat((codes, sampler.choose(scores)[:, None].to(codes)), 1)
            new = torch.cat([codes[:, -1:]] * each).to(device) + head.codes
    side = math.isqrt(cells)
    return codes.unflatten(1, (side, cells // side))


def _known(known: Tensor | None, rows: int, cells: int, count: int) -> Tensor:
    """The checked first codes, (B, n)."""
    if known is None:
        return torch.zeros(rows, 0, dtype=torch.long)
    if known.ndim != 2 or known.shape[0] != rows or known.shape[1] >= cells or known.is_floating_point():
        raise ValueError(
            f"known must be whole numbers ({rows} texts, fewer than {cells} codes), got {tuple(known.shape)}"
        )
    bad = known[(known < 0) | (known >= count)]
    if len(bad):
        raise ValueError(f"known holds the code {int(bad[0])}; codes go from 0 to {count - 1}")
    return known.cpu()


def ranked(model: Any, pictures: Tensor, text: str | Tensor) -> Tensor:
    """The numbers of the pictures (N, C, height, width), 0 to 1, the most similar to a text first, by two towers.

    Args:
        model: a CLIP. text: or its vector, (E,).

    Raises:
        ValueError: for a model without vectors of both.
    """
    if not model.alike:
        raise ValueError("ranked needs a model of pictures and texts, with vectors of one space, such as CLIP")
    vector = embed(model, [text])[0] if isinstance(text, str) else text
    return (embed(model, [p.cpu().numpy() for p in pictures]) @ vector).argsort(descending=True)
