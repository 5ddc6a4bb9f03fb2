"""Answers of a generator that reads passages (RAG). B questions, K passages of each, T words of an answer, L beams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from anyformer.generate.beam import search, searched
from anyformer.generate.continuing import run_of
from anyformer.generate.decoding import evaluating, padded
from anyformer.generate.options import Options
from anyformer.generate.prompts import end_ids

CONTEXT = "context_"  # the prefix of the inputs that are passages


@dataclass(frozen=True)
class Response:
    """An answer to a question.

    Attributes:
        tokens: without an end token.
        score: log p(answer | question), its end included where it has one.
        prior: p(passage | question), one for each passage, before anything was said.
        posterior: p(passage | question, answer): by which passage the answer was probably made.
    """

    tokens: list[int]
    score: float
    prior: list[float]
    posterior: list[float]


def respond(
    model: Any,
    questions: Sequence[Sequence[int]],
    passages: Mapping[str, Tensor],
    *,
    max_new_tokens: int = 32,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    thorough: bool = False,
) -> list[Response]:
    """The likeliest answers: word by word, or by a beam search, over the mixture of all passages.

    Args:
        questions: token ids of each. passages: the model's other inputs, by name: `know.reader.Reader` makes them.
        thorough: of a `RagSequence`, the search of the paper: beams of each passage alone, then every answer that one
            of them found is scored with all passages, exactly. Otherwise the search is over the mixture itself, whose
            weights follow what was said.

    Raises:
        ValueError: for a model of another kind, no question, or passages of another number of questions.
    """
    if f"{CONTEXT}input_ids" not in model.inputs():
        raise ValueError(f"{type(model).__name__} reads no passages; respond takes a RAG model")
    if thorough and not model.one_passage:
        raise ValueError("thorough decoding is for task='sequence': with 'token' each word has its own passage")
    given = {name: len(value) for name, value in passages.items() if len(value) != len(questions)}
    if given or not questions:
        raise ValueError(f"there are {len(questions)} questions, and passages of {given or 'none'}")
    options = Options(
        max_new_tokens, 0.0, None, None, None, None, (), None, True, num_beams,
        length_penalty if num_beams > 1 else 1.0,
    )  # fmt: skip
    rows, ends = [list(ids) for ids in questions], end_ids(model)
    if thorough:
        texts = [
            _thorough(model, rows[i], {n: v[i : i + 1] for n, v in passages.items()}, options) for i in range(len(rows))
        ]
    elif num_beams > 1:
        texts = [found.tokens for found in search(model, rows, options, passages)]
    else:
        texts = _greedy(model, rows, options, passages)
    return scored(model, rows, passages, texts, [_end(text, options, ends) for text in texts])


def _greedy(model: Any, rows: list[list[int]], options: Options, media: Mapping[str, Tensor]) -> list[list[int]]:
    """The likeliest token each time, of each row."""
    texts = list[list[int]]([] for _ in rows)
    run = run_of(model, rows, options, dict(media))
    while run.rows:
        for row, token in run.step():
            texts[row].append(token)
    return texts


def _end(text: list[int], options: Options, ends: set[int]) -> int | None:
    """The token that ended a text, or None where `max_new_tokens` did."""
    return min(ends) if ends and len(text) < options.max_new_tokens else None


def _thorough(model: Any, question: list[int], passages: Mapping[str, Tensor], options: Options) -> list[int]:
    """The best of all answers that a search finds with one of the passages alone."""
    ids, mask = passages[f"{CONTEXT}input_ids"][0], passages.get(f"{CONTEXT}attention_mask")
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask[0].bool()
    sources = [row[keep].tolist() for row, keep in zip(ids, real, strict=True) if bool(keep.any())]
    generator: Any = model.generator
    before = generator.tokenizer, generator.origin
    generator.tokenizer, generator.origin = model.tokenizer, model.origin  # its rules and end tokens
    try:
        if options.num_beams == 1:
            texts = _greedy(generator, sources, options, {})
        else:
            texts = [each.tokens for some in searched(generator, sources, options) for each in some]
    finally:
        generator.tokenizer, generator.origin = before
    unique = [list(text) for text in dict.fromkeys(map(tuple, texts))]
    many = {name: value.expand(len(unique), *value.shape[1:]) for name, value in passages.items()}
    ends = end_ids(model)
    made = scored(model, [question] * len(unique), many, unique, [_end(text, options, ends) for text in unique])
    return max(made, key=lambda response: response.score).tokens


@torch.inference_mode()
def scored(
    model: Any,
    questions: Sequence[list[int]],
    passages: Mapping[str, Tensor],
    texts: Sequence[list[int]],
    ends: Sequence[int | None] = (),
) -> list[Response]:
    """The probability of given answers, and of the passages before and behind them.

    Args:
        ends: the token behind each answer that is scored with it, or None.
    """
    device = next(model.parameters()).device
    whole = [
        [*text, *([] if end is None else [end])] for text, end in zip(texts, ends or [None] * len(texts), strict=True)
    ]
    ids, mask = padded(list(questions), device)
    longest = max(map(len, whole))
    target = torch.full((len(whole), longest + 1), model.begin_id, device=device)
    real = torch.zeros(len(whole), longest, dtype=torch.bool, device=device)
    for row, (text, keep) in enumerate(zip(whole, real, strict=True)):
        target[row, 1 : len(text) + 1] = torch.tensor(text, dtype=torch.long, device=device)
        keep[: len(text)] = True
    with evaluating(model):
        out = model(
            input_ids=ids,
            attention_mask=mask,
            decoder_input_ids=target,
            **{n: v.to(device) for n, v in passages.items()},
        )
    assert out.logits is not None
    log, said = out.logits[:, :-1].float(), target[:, 1:, None]
    score = log.gather(-1, said)[..., 0].masked_fill(~real, 0.0).sum(1)  # (B,)
    each = out.beside["passages"][:, :-1].float().log_softmax(-1)  # (B, T, K, V)
    word = each.gather(-1, said[:, :, None].expand(-1, -1, each.shape[2], 1))[..., 0]  # (B, T, K)
    prior = out.beside["posterior"][:, 0].float()  # (B, K)
    behind = prior + word.masked_fill(~real[..., None], 0.0).sum(1)
    rows = zip(whole, score.tolist(), prior.exp().tolist(), behind.softmax(-1).tolist(), strict=True)
    made = [Response(*row) for row in rows]
    return [replace(response, tokens=list(text)) for response, text in zip(made, texts, strict=True)]
