"""Texts about pictures: `caption` and `ask`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from anyformer.generate.continuing import generate, stream
from anyformer.generate.seeing import placeholder, spoken
from anyformer.generate.tools import as_letters


def caption(
    model: Any,
    images: Sequence[Any],
    prompt: str = "",
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    num_beams: int = 1,
    speculate: Literal["lookup", "layers"] | None = None,
    cache: bool | Literal["int8"] = True,
    seed: int | None = None,
    batch: int = 8,
) -> list[str]:
    """A text about each picture: what the model writes after the picture, a line break and the prompt.

    Args:
        model: LLaVA, or another model with pictures inside its text.
        images: of any kind that `media.picture` reads.
        prompt: the beginning of each text.
        batch: pictures at once. The others are those of `generate`.

    Raises:
        ValueError: for a model that sees no pictures in a text, or has no tokenizer or processor; as `generate`.
    """
    if isinstance(images, str | bytes) or not len(images):
        raise ValueError(f"images must be a list of at least one picture, got {images!r:.80}")
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch must be a whole number, 1 or more; got {batch!r}")
    begin, texts = f"{placeholder(model)}\n{prompt}", list[str]()
    for at in range(0, len(images), batch):
        some = images[at : at + batch]
        texts += generate(
            model, [begin] * len(some), images=some, max_new_tokens=max_new_tokens, temperature=temperature,
            num_beams=num_beams, speculate=speculate, cache=cache, seed=seed,
        )  # fmt: skip
    return [text.strip() for text in texts]


def ask(
    model: Any,
    image: Any,
    question: str,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    num_beams: int = 1,
    speculate: Literal["lookup", "layers"] | None = None,
    cache: bool | Literal["int8"] = True,
    seed: int | None = None,
) -> Iterator[str]:
    """The answer to a question about a picture, in pieces, as in `stream`; that of a beam search in one piece.

    The question is written by the tokenizer's chat template; without one, picture, question and answer are lines.
    Special tokens that it spells become letters.

    Raises:
        ValueError: without a question; as `caption`.
    """
    if not question.strip():
        raise ValueError("question is empty; ask something about the picture, or use `caption`")
    mark, tokenizer = placeholder(model), model.tokenizer
    question = as_letters(tokenizer, question)
    prompt: Any = f"{mark}\n{question}\n"
    if tokenizer.template is not None:
        prompt = tokenizer.chat_ids([{"role": "user", "content": spoken(tokenizer, mark, question)}])
    options: dict[str, Any] = {"images": [image], "max_new_tokens": max_new_tokens, "temperature": temperature}
    options |= {"speculate": speculate, "cache": cache, "seed": seed}
    if num_beams == 1:
        return stream(model, prompt, **options)
    found = generate(model, prompt, num_beams=num_beams, **options)
    return iter([found if isinstance(found, str) else tokenizer.decode(found)])
