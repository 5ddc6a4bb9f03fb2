"""Pictures in prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from anyformer.generate.prompts import tokenizer_of

PIXELS = "pixel_values"


def with_pictures(
    model: Any, rows: list[list[int]], images: Sequence[Any] | None
) -> tuple[list[list[int]], dict[str, Tensor]]:
    """Prompts with as many placeholders for each picture as it takes positions, and the model's inputs of the pictures.

    Args:
        rows: token ids, with one placeholder for each picture, or with all of them.
        images: the pictures of all prompts, in the order of their placeholders; or a list of them for each prompt.

    Raises:
        ValueError: for pictures and a model that sees none or has no processor, or for a prompt whose placeholders are
            more or fewer than its pictures.
    """
    images, each = _flat(images, len(rows))
    if not images:
        for number, row in enumerate(rows):
            if count := sum(token in model.placeholders for token in row):
                raise ValueError(f"prompt {number} has {count} placeholders for media, and no images are given")
        return rows, {}
    medium = seen_by(model)
    inputs = {name: value.to(next(model.parameters())) for name, value in model.processor(list(images)).items()}
    sizes = medium.lengths(inputs)
    counts = [row.count(medium.token) for row in rows]
    if sum(counts) == sum(sizes) != len(sizes):
        return rows, inputs  # all of them stand there already
    if sum(counts) != len(sizes) or (each is not None and each != counts):
        said = ", ".join(f"prompt {number} has {count}" for number, count in enumerate(counts))
        have = len(sizes) if each is None else " + ".join(map(str, each))
        raise ValueError(
            f"there are {have} images, and {said} placeholders (token {medium.token}); a prompt needs one for "
            "each of its images, where it stands in the text"
        )
    left = iter(sizes)
    return [
        [t for token in row for t in [token] * (next(left) if token == medium.token else 1)] for row in rows
    ], medium.arranged(inputs, counts)


def _flat(images: Sequence[Any] | None, rows: int) -> tuple[list[Any], list[int] | None]:
    """All pictures in one list, and the number of each prompt's if they came in a list for each."""
    images = [] if images is None else list(images)
    lists = [isinstance(one, list | tuple) for one in images]
    if not any(lists):
        return images, None
    if not all(lists) or len(images) != rows:
        raise ValueError(
            f"images must be pictures, or {rows} lists of pictures, one for each prompt; got {len(images)} entries, "
            f"{sum(lists)} of them lists"
        )
    return [one for some in images for one in some], [len(some) for some in images]


def seen_by(model: Any) -> Any:
    """The part of a model that reads pictures inside a text.

    Raises:
        ValueError: for a model without such a part, or without a processor.
    """
    what = getattr(model, "page", None) or type(model).__name__
    if not model.placeholders or PIXELS not in model.inputs():
        raise ValueError(f"{what} sees no pictures inside a text: it reads {', '.join(model.inputs())}; use LLaVA")
    if model.processor is None:
        raise ValueError(
            "the model has no processor, so the preprocessing of pictures is unknown; add its preprocessor_config.json "
            "to its folder, or set model.processor (anyformer.hub.processors)"
        )
    return model.medium(PIXELS)


def placeholder(model: Any) -> str:
    """The text of the placeholder for pictures.

    Raises:
        ValueError: if the tokenizer has none.
    """
    token, tokenizer = seen_by(model).token, tokenizer_of(model, "texts about pictures")
    text = tokenizer.core.id_to_token(token)
    if text is None or tokenizer.encode(text, special=False) != [token]:
        raise ValueError(
            f"the model's placeholder for pictures is token {token}, and its tokenizer has no text for it; set "
            f"model.tokenizer = model.tokenizer.with_special({token}, '<image>')"
        )
    return text


def spoken(tokenizer: Any, mark: str, text: str) -> Any:
    """A message with a picture in front, in the form that the chat template reads: parts, or one text."""
    if "'image'" in tokenizer.template or '"image"' in tokenizer.template:
        return [{"type": "image"}, {"type": "text", "text": text}]
    return f"{mark}\n{text}"
