"""Log-probabilities of texts by every model that has them. T tokens, V vocabulary, N endings.

| model           | log p(ending | context)                                                                      |
|-----------------|-------------------------------------------------------------------------------------------------|
| decoder         | the sum over the ending's tokens; the context is read once for all endings                      |
| encoder-decoder | the context is the source, the ending the target, without an end token                          |
| masked encoder  | each token of the ending with it alone hidden: the pseudo-log-likelihood (Salazar et al., 2020) |

Tokens are those of the joined text, as in lm-eval: spaces at the end of the context belong to the ending, and the
ending is what lies behind as many tokens as the context has alone. Without a context the ending follows the token that
begins texts, else one that ends them. What is too long is an error: nothing is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.data.text import sliding
from anyformer.generate.decoding import evaluating
from anyformer.generate.prompts import end_ids, tokenizer_of
from anyformer.hub.text.reading import reading
from anyformer.parts.heads import MaskedLM
from anyformer.parts.positions import Rotary

RULED_OUT = -1000.0  # nats: no score, but a mask of the head
HIDDEN = 32  # rows of a pass with one token hidden in each
Logs = list[np.ndarray]  # of each ending, the log-probability of each token, in nats


def way(model: Any) -> Callable[[Any, str, Sequence[str], str], Logs]:
    """The function that scores endings with this model: (model, context, endings, name of the item).

    Raises:
        ValueError: for a model that gives texts no probabilities.
    """
    if not model.reads_text or (not model.generates and _masked_head(model) is None):
        raise ValueError(
            f"{type(model).__name__} gives texts no probabilities: a decoder, an encoder-decoder of text or an encoder "
            "with a masked-language head does"
        )
    tokenizer_of(model, "texts")
    if not model.generates:
        return _masked
    return _target if model.reads_source else _causal


def _masked_head(model: Any) -> str | None:
    """The name of the head that fills gaps."""
    heads = getattr(model, "heads", None)
    return next((name for name, head in heads.items() if isinstance(head, MaskedLM)), None) if heads else None


def begin(model: Any) -> list[int]:
    """The token in front of a text without a context.

    Raises:
        ValueError: if the tokenizer has none.
    """
    ids = [model.tokenizer.bos_id] if model.tokenizer.bos_id is not None else sorted(end_ids(model))[:1]
    if not ids:
        raise ValueError("the tokenizer has no token that begins or ends a text, so an ending needs a text in front")
    return ids


@torch.inference_mode()
def score(model: Any, context: str, endings: Sequence[str], where: str) -> Logs:
    """The log-probabilities of endings behind a context.

    Raises:
        ValueError: naming the item, for an ending without tokens, texts beyond the model's context, or scores that are
            not finite or ruled out by the head. Also as `way`.
    """
    with evaluating(model):
        made = way(model)(model, context, endings, where)
    if any(not np.isfinite(values).all() for values in made):
        raise ValueError(f"{where}: a log-probability is not finite (NaN or infinite); are the weights damaged?")
    if any((values < RULED_OUT).any() for values in made):
        raise ValueError(
            f"{where}: the model rules out a token of the answer at its place, as one that writes codes does"
        )
    return made


def _split(model: Any, context: str, ending: str, where: str) -> tuple[list[int], int]:
    """The ids of the joined text, and how many of them are the context's."""
    kept, t = context.rstrip(" \n\t"), model.tokenizer
    if kept:
        ids, first = t.encode(context + ending), len(t.encode(kept))
    else:
        ids = begin(model)
        ids, first = ids + t.encode(context + ending, special=False), len(ids)
    if len(ids) <= first:
        raise ValueError(f"{where}: {ending!r:.40} has no token of its own behind the text")
    return ids, first


def _fits(count: int, limit: int | None, where: str) -> None:
    if limit is not None and count > limit:
        raise ValueError(
            f"{where}: the prompt with its answer has {count} tokens, and the context of the model is {limit}; nothing "
            "is cut: fewer --shots, shorter examples, or leave the row out"
        )


def _picked(logits: Tensor, ids: Sequence[int]) -> np.ndarray:
    """log p of each id, (T, V), (T,) -> (T,)."""
    logs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return logs.gather(-1, torch.tensor(ids, device=logits.device)[:, None])[:, 0].double().cpu().numpy()


def _causal(model: Any, context: str, endings: Sequence[str], where: str) -> Logs:
    scalings = (m.scaling for m in model.modules() if isinstance(m, Rotary))
    if len(endings) > 1 and any(s is not None and s.by_length for s in scalings):  # angles are those of one length
        return [_causal(model, context, [ending], where)[0] for ending in endings]
    device, made = next(model.parameters()).device, [_split(model, context, e, where) for e in endings]
    rows = [ids for ids, _ in made]
    for row in rows:
        _fits(len(row) - 1, model.context, where)
    # the tokens that all rows share are read once; at least one token of the context is read with the endings
    most = min(first for _, first in made) - 1
    shared = next((i for i in range(most) if len({row[i] for row in rows}) > 1), most) if len(rows) > 1 else 0
    width = max(map(len, rows)) - 1 - shared
    read = torch.tensor(
        [row[shared:-1] + [0] * (width + 1 + shared - len(row)) for row in rows], device=device
    )  # (N, T)
    state = None
    if shared > 0:
        state = model.start(1, shared + width)
        model(torch.tensor([rows[0][:shared]], device=device), state=state, last=True)
        state.reorder(torch.zeros(len(rows), dtype=torch.long, device=device))
    logits = model(read, state=state).logits  # (N, T, V); what pads the end is seen by nothing before it
    return [
        _picked(logits[i, first - 1 - shared : len(ids) - 1 - shared], ids[first:])
        for i, (ids, first) in enumerate(made)
    ]


def _target(model: Any, context: str, endings: Sequence[str], where: str) -> Logs:
    device, made = next(model.parameters()).device, list[np.ndarray]()
    source = reading(model.tokenizer, context, ends=True).ids or begin(model)
    for entrance in model.entrances()[:1]:
        _fits(len(source), model.longest(entrance), where)
    given, start, _ = model.opening(torch.tensor([source], device=device), None)
    for ending in endings:
        ids = model.tokenizer.encode(ending.strip(), special=False)
        if not ids:
            raise ValueError(f"{where}: {ending!r:.40} has no token")
        _fits(len(ids), model.context, where)
        text = torch.cat((start, torch.tensor([ids[:-1]], dtype=torch.long, device=device)), 1)
        logits = model(**given, **{f"{model.target}input_ids": text}).logits  # (1, T, V)
        made.append(_picked(logits[0], ids))
    return made


def _masked(model: Any, context: str, endings: Sequence[str], where: str) -> Logs:
    t, device, head = model.tokenizer, next(model.parameters()).device, _masked_head(model)
    mask = t.role_id("mask_token")
    if mask is None:
        raise ValueError("the tokenizer has no mask token, by which an encoder says how likely a word is")
    made = []
    for ending in endings:
        whole, front = reading(t, context + ending), reading(t, context.rstrip()) if context.strip() else None
        opens = len(whole.ids) - whole.closing - len(t.encode(context + ending, special=False))
        first = len(front.ids) - front.closing if front is not None else max(opens, 0)
        places = list(range(first, len(whole.ids) - whole.closing))
        if not places:
            raise ValueError(f"{where}: {ending!r:.40} has no token of its own behind the text")
        _fits(len(whole.ids), model.context, where)
        rows = torch.tensor(whole.ids, device=device).repeat(len(places), 1)  # (N, T)
        rows[torch.arange(len(places)), places] = mask
        found = []
        for at in range(0, len(places), HIDDEN):
            scores = model(input_ids=rows[at : at + HIDDEN]).heads[head]
            some = places[at : at + HIDDEN]
            found.append(_picked(scores[torch.arange(len(some)), some], [whole.ids[p] for p in some]))
        made.append(np.concatenate(found))
    return made


@torch.inference_mode()
def windows(model: Any, text: str, window: int, stride: int, where: str) -> list[tuple[float, int]]:
    """(nats, tokens) of each window of a document. A token is counted once, and sees at least window - stride tokens
    before it, except at the beginning; the first one follows the token that begins texts.

    A masked encoder reads windows that do not overlap.
    """
    t, device = model.tokenizer, next(model.parameters()).device
    if way(model) is _masked:
        ids = t.encode(text, special=False)
        parts = [t.decode(ids[i : i + window]) for i in range(0, len(ids), window)]
        logs = [score(model, "", [part], where)[0] for part in parts if part.strip()]
        return [(-float(values.sum()), len(values)) for values in logs]
    ids = np.array(begin(model) + t.encode(text, special=False))
    if len(ids) < 2:
        raise ValueError(f"{where} has no tokens")
    made = []
    with evaluating(model):
        for batch in sliding(ids, window, 1, stride):
            labels = batch["labels"][0]
            places = (labels >= 0).nonzero()[:, 0]  # (T,)
            logits = model(batch["input_ids"][:, : int(places[-1]) + 1].to(device)).logits[0, places]
            made.append((-float(_picked(logits, labels[places].tolist()).sum()), len(places)))
    return made
