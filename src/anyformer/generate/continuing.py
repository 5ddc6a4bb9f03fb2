"""`generate`, `stream` and `chat`: three interfaces to one loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from anyformer.generate.beam import search
from anyformer.generate.calling import converse
from anyformer.generate.decoding import Decoding, Rows, rows_of
from anyformer.generate.engine import with_engine
from anyformer.generate.options import Options, guesser
from anyformer.generate.prompts import Prompts, check_generates, check_ids, end_ids, tokenizer_of
from anyformer.generate.seeing import with_media
from anyformer.generate.speculating import Speculation
from anyformer.generate.steering import Steer, with_steering
from anyformer.generate.tools import Call, tools_of
from anyformer.generate.writing import Writer


def generate(
    model: Any,
    prompts: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Sequence[Tensor] | Tensor,
    *,
    images: Sequence[Any] | None = None,
    sounds: Sequence[Any] | None = None,
    videos: Sequence[Any] | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    typical_p: float | None = None,
    repetition_penalty: float | None = None,
    presence_penalty: float | None = None,
    frequency_penalty: float | None = None,
    logit_bias: Mapping[int, float] | None = None,
    speculate: Literal["lookup", "layers"] | None = None,
    draft: Any = None,
    schema: Mapping[str, Any] | None = None,
    regex: str | None = None,
    grammar: str | None = None,
    stop: str | Sequence[str] = (),
    seed: int | Sequence[int] | None = None,
    heal: bool = False,
    cache: bool | Literal["int8"] = True,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    engine: Literal["auto", "torch", "onnx"] | None = None,
    precision: Literal["auto", "float32", "int8", "int4"] = "auto",
    steer: Steer = None,
) -> Any:
    """Continues text or token ids; with an encoder-decoder, writes the target of a source.

    The result for a prompt does not depend on others in the batch. A text ends at `max_new_tokens`, before the first
    stop string, or before a token that ends texts (named by the tokenizer, the generation config or the config).

    Args:
        prompts: a text, texts, token ids (list or 1-D tensor), or rows of ids (lists, or a 2-D tensor without padding).
        images: pictures, for a model that sees them inside its text: as many as the prompts have placeholders, in their
            order; in one list, or in a list for each prompt.
        sounds, videos: the same, for a model that reads them: see `media.sound` and `media.clip`.
        max_new_tokens: the most new tokens for each prompt; 0 gives nothing.
        temperature: 0 = always the likeliest token; 1 = the model's distribution; more = flatter.
        top_k: draw among the k likeliest; None = all.
        top_p: then among the likeliest that together have this probability; None = all.
        min_p: then among those with at least this share of the likeliest one's probability; None = all.
        typical_p: then among those whose information is nearest to the mean, until they have this probability together;
            None = all.
        repetition_penalty: values above 1 penalise tokens already in the text (of an encoder-decoder: the target).
        presence_penalty: subtracted from the scores of tokens that are in the new text.
        frequency_penalty: the same, times their number there.
        logit_bias: added to the scores of tokens, by their ids: -100 all but forbids one.
        speculate: several tokens are guessed and verified in one pass: the same text, sooner where guesses are right.
            "lookup" guesses what followed the same words before, "layers" what the model without every second block
            writes. Several prompts then come one after another.
        draft: a smaller model with the same tokens, which guesses; the same as `speculate` otherwise.
        schema: a JSON schema that the text follows: only tokens that can still become such a text are left.
        regex: a regular expression that it follows, from its first character to its last.
        grammar: a grammar that it follows, in Lark's form as llguidance reads it.
        stop: strings that end a text; they are found across tokens and are not part of it. Of several, the one that is
            complete first counts. For ids, a token in which it begins is not part either.
        seed: of the draws. One number: every prompt draws as it would alone. A list: one for each prompt.
        heal: write the last token of each text again, as the beginning of any token that begins so: a text that ends
            inside a word, or with a space, is continued as if it had been cut elsewhere (needs the extra `constrain`).
        cache: keep keys and values (or the recurrent state) between tokens; without it all is recomputed for each
            token, with the same result. (With rotary angles that depend on the length, Dynamic and LongRope, a text
            that grows past the trained length is then read again with other angles.) "int8" keeps keys and values in
            8 bits, about a quarter of the memory: each number is off by at most 1/254 of the largest of its vector.
        num_beams: above 1, a beam search with that many beams: the likeliest text as a whole; nothing is drawn. A stop
            string then cuts the text that was found.
        length_penalty: of the search: the sum of a text's log-probabilities is divided by its number of tokens to this
            power. 0 = the likeliest text, which is often short; above 1 prefers long ones.
        early_stopping: of the search: it ends when `num_beams` texts have ended (true), or when no live text would be
            better than these, if it ended now (false), or at any length (never).
        engine: what computes the steps: "torch"; "onnx", ONNX Runtime (`docs/engine.md`); "auto", ONNX Runtime if it is
            installed and computes this model, else PyTorch. None = the model as it is.
        precision: of the matrices in ONNX Runtime; "auto" is 4 bits for weights from a file of 4 bits, else 8. What it
            costs in quality is measured before the first use, bounded, and printed.
        steer: a file of a direction that `anyformer steer` wrote, FILE or FILE:STRENGTH, which is added to the stream
            at every token; a `Direction`, or several.

    Returns:
        The new part only, in the form of the prompts: text for text, ids for ids. For a 2-D tensor a tensor: rows that
        end early are padded with the lowest id that ends texts (0 if there is none).

    Raises:
        ValueError: naming the option or prompt, for values that make no sense, an empty prompt, ids outside the
            vocabulary, text without a tokenizer, a model that cannot generate, or if the prompt and `max_new_tokens`
            together are longer than the context.
    """
    model = with_steering(with_engine(model, engine, precision), steer)
    options = Options(
        max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed, cache,
        num_beams, length_penalty, early_stopping, presence_penalty, frequency_penalty, logit_bias,
        guesser(speculate, draft), schema, regex, grammar, typical_p,
    )  # fmt: skip
    inputs = Prompts(model, prompts)
    options = replace(options, begins=inputs.heal()) if heal else options
    read, media = with_media(model, inputs.rows, images, sounds, videos)
    writers = (
        [_writer(model, ids, options, i) for i, ids in enumerate(inputs.rows)] if inputs.text or options.stops else []
    )
    rows: list[list[int]] = [[] for _ in inputs.rows]
    texts = ["" for _ in inputs.rows]
    beams = num_beams > 1
    for row, token in (
        _searched(model, read, options, media) if beams else _chosen(model, read, options, media, writers)
    ):
        rows[row].append(token)
        if writers and not writers[row].stopped:
            texts[row] += writers[row].put(token)
    texts = [text + writer.end() for text, writer in zip(texts, writers, strict=False)]
    if writers and not inputs.text:
        rows = [row[: writer.tokens()] for row, writer in zip(rows, writers, strict=True)]
    return inputs.back(texts if inputs.text else rows, min(end_ids(model), default=0))


def _chosen(
    model: Any, prompts: list[list[int]], options: Options, media: dict[str, Tensor], writers: list[Writer]
) -> Iterator[tuple[int, int]]:
    """The pairs (row, token), token by token; a row whose writer has stopped is done."""
    if options.speculate is not None and len(prompts) > 1:
        yield from _alone(model, prompts, options, media, writers)
        return
    run = run_of(model, prompts, options, media)
    while run.rows:
        for row, token in run.step():
            if not (writers and writers[row].stopped):
                yield row, token
        run.finish([row for row in run.rows if writers and writers[row].stopped])


def run_of(model: Any, prompts: list[list[int]], options: Options, media: dict[str, Tensor]) -> Decoding:
    """The loop of these prompts: token by token, or of a single one by guesses."""
    return (Decoding if options.speculate is None else Speculation)(model, prompts, options, media)


def _alone(
    model: Any, prompts: list[list[int]], options: Options, media: dict[str, Tensor], writers: list[Writer]
) -> Iterator[tuple[int, int]]:
    """The same, prompt by prompt: guesses of different rows are right for different lengths."""
    whole = Rows(model, prompts, 0, False, media)  # knows whose each medium is
    given = {name: t for name, t in whole.source.items() if name in media}
    for row, seed in enumerate(options.seeds(len(prompts))):
        own = rows_of(given, whole.owners, torch.tensor([row], device=whole.device))[0]
        some = replace(options, seed=seed, begins=options.begins[row : row + 1])
        yield from ((row, token) for _, token in _chosen(model, [prompts[row]], some, own, writers[row : row + 1]))


def _searched(
    model: Any, prompts: list[list[int]], options: Options, media: dict[str, Tensor]
) -> Iterator[tuple[int, int]]:
    """The pairs (row, token) of the texts that a beam search finds."""
    for row, text in enumerate(search(model, prompts, options, media)):
        yield from ((row, token) for token in text.tokens)


def stream(
    model: Any,
    prompt: str | Sequence[int] | Tensor,
    *,
    images: Sequence[Any] | None = None,
    sounds: Sequence[Any] | None = None,
    videos: Sequence[Any] | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    typical_p: float | None = None,
    repetition_penalty: float | None = None,
    presence_penalty: float | None = None,
    frequency_penalty: float | None = None,
    logit_bias: Mapping[int, float] | None = None,
    speculate: Literal["lookup", "layers"] | None = None,
    draft: Any = None,
    schema: Mapping[str, Any] | None = None,
    regex: str | None = None,
    grammar: str | None = None,
    stop: str | Sequence[str] = (),
    seed: int | None = None,
    heal: bool = False,
    cache: bool | Literal["int8"] = True,
    engine: Literal["auto", "torch", "onnx"] | None = None,
    precision: Literal["auto", "float32", "int8", "int4"] = "auto",
    steer: Steer = None,
) -> Iterator[str]:
    """The text that `generate` would return, in pieces, as soon as they are final.

    Joined, they are exactly that text: no half character is yielded, and nothing that could be the beginning of a
    stop string. Options and errors are those of `generate`; errors come at the call, not at the first piece.
    """
    model = with_steering(with_engine(model, engine, precision), steer)
    options = Options(
        max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed, cache,
        presence_penalty=presence_penalty, frequency_penalty=frequency_penalty, logit_bias=logit_bias,
        speculate=guesser(speculate, draft), schema=schema, regex=regex, grammar=grammar,
        typical_p=typical_p,
    )  # fmt: skip
    inputs = Prompts(model, prompt)
    if len(inputs.rows) != 1:
        raise ValueError(f"stream takes one prompt, got {len(inputs.rows)}; generate takes several")
    options = replace(options, begins=inputs.heal()) if heal else options
    rows, media = with_media(model, inputs.rows, images, sounds, videos)
    writer = _writer(model, inputs.rows[0], options)
    return _pieces(run_of(model, rows, options, media), writer)


def chat(
    model: Any,
    messages: list[dict[str, Any]],
    *,
    images: Sequence[Any] | None = None,
    sounds: Sequence[Any] | None = None,
    videos: Sequence[Any] | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    typical_p: float | None = None,
    repetition_penalty: float | None = None,
    presence_penalty: float | None = None,
    frequency_penalty: float | None = None,
    logit_bias: Mapping[int, float] | None = None,
    speculate: Literal["lookup", "layers"] | None = None,
    draft: Any = None,
    schema: Mapping[str, Any] | None = None,
    regex: str | None = None,
    grammar: str | None = None,
    stop: str | Sequence[str] = (),
    seed: int | None = None,
    cache: bool | Literal["int8"] = True,
    tools: Sequence[Any] = (),
    tool_choice: Literal["auto", "required"] = "auto",
    max_calls: int = 8,
    max_seconds: float = 60.0,
    on_call: Callable[[Call], None] | None = None,
    engine: Literal["auto", "torch", "onnx"] | None = None,
    precision: Literal["auto", "float32", "int8", "int4"] = "auto",
    steer: Steer = None,
) -> Iterator[str]:
    """The model's answer to a conversation, in pieces, as in `stream`.

    Args:
        messages: `[{"role": "user", "content": "Why is the sky blue?"}, …]`, written in the model's own format by its
            chat template. With `tools` also answers with `tool_calls`, and results (`"role": "tool"`), as in OpenAI's
            protocol, with arguments as objects.
        images, sounds, videos: where the template writes placeholders. The others are those of `generate`.
        tools: functions that the model can call, with typed arguments and a docstring; or `Tool`s, such as
            `calculator.CALCULATOR`. Its calls follow their schemas, are run here, and are no part of the text: the
            model reads the results and writes on.
        tool_choice: "required" = the first answer is a call.
        max_calls: after that many calls the model answers without tools.
        max_seconds: the same after that time; a function that takes longer is left alone.
        on_call: called with each `Call` and its result.

    Raises:
        ValueError: without a tokenizer or a chat template, for tools with media, a schema or a grammar, and as
            `generate`.
    """
    model = with_steering(with_engine(model, engine, precision), steer)
    options = Options(
        max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed, cache,
        presence_penalty=presence_penalty, frequency_penalty=frequency_penalty, logit_bias=logit_bias,
        speculate=guesser(speculate, draft), schema=schema, regex=regex, grammar=grammar,
        typical_p=typical_p,
    )  # fmt: skip
    check_generates(model)
    tokenizer = tokenizer_of(model, "messages")
    if tools:
        if tool_choice not in ("auto", "required"):
            raise ValueError(f"tool_choice must be 'auto' or 'required'; got {tool_choice!r}")
        if images or sounds or videos or schema is not None or regex is not None or grammar is not None:
            raise ValueError("tools go without images, sounds, videos, schema, regex and grammar")

        def write(ids: list[int], form: str | None) -> Iterator[str]:
            some = replace(options, grammar=form)
            check_ids(model, ids)
            return _pieces(run_of(model, [ids], some, {}), _writer(model, ids, some))

        return converse(model, messages, tools_of(tools), tool_choice, write, max_calls, max_seconds, on_call)
    ids = tokenizer.chat_ids(messages)
    check_ids(model, ids)
    rows, media = with_media(model, [ids], images, sounds, videos)
    return _pieces(run_of(model, rows, options, media), _writer(model, ids, options))


def _writer(model: Any, prompt: list[int], options: Options, row: int = 0) -> Writer:
    before = None if model.reads_source else prompt[-1]
    return Writer(
        tokenizer_of(model, "stop strings and streams"), before, options.stops, "".join(options.begins[row : row + 1])
    )


def _pieces(run: Decoding, writer: Writer) -> Iterator[str]:
    while run.rows and not writer.stopped:
        for _, token in run.step():
            if not writer.stopped and (piece := writer.put(token)):
                yield piece
    if piece := writer.end():
        yield piece
