"""Texts about pictures: `caption` and `ask`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from anyformer.generate.continuing import chat, generate, stream
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
            num_beams=num_beams, seed=seed,
        )  # fmt: skip
    return [text.strip() for text in texts]


def ask(
    model: Any,
    image: Any,
    question: str,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int | None = None,
) -> Iterator[str]:
    """The answer to a question about a picture, in pieces, as in `stream`.

    The question is written by the tokenizer's chat template; without one, picture, question and answer are lines.
    Special tokens that it spells become letters.

    Raises:
        ValueError: without a question; as `caption`.
    """
    if not question.strip():
        raise ValueError("question is empty; ask something about the picture, or use `caption`")
    mark, question = placeholder(model), as_letters(model.tokenizer, question)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    if model.tokenizer.template is None:
        return stream(model, f"{mark}\n{question}\n", images=[image], **options)
    return chat(
        model, [{"role": "user", "content": spoken(model.tokenizer, mark, question)}], images=[image], **options
    )
