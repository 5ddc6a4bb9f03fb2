"""Pictures, sounds and videos in prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from anyformer.generate.prompts import tokenizer_of

PIXELS, SECONDS = "pixel_values", "seconds"


def with_media(
    model: Any,
    rows: list[list[int]],
    images: Sequence[Any] | None,
    sounds: Sequence[Any] | None = None,
    videos: Sequence[Any] | None = None,
) -> tuple[list[list[int]], dict[str, Tensor]]:
    """Prompts with as many placeholders for each medium as it takes positions, and the model's inputs of the media.

    Args:
        rows: token ids, with one placeholder for each medium, or with all of them.
        images, sounds, videos: of all prompts, in the order of their placeholders; or a list of them for each prompt.

    Raises:
        ValueError: for media and a model that reads none of them or has no processor, or for a prompt whose
            placeholders are more or fewer than its media.
    """
    made: dict[str, Tensor] = {}
    given = {"images": images, "sounds": sounds, "videos": videos}
    if not any(given.values()):
        for number, row in enumerate(rows):
            if count := sum(token in model.placeholders for token in row):
                raise ValueError(f"prompt {number} has {count} placeholders for media, and no images are given")
    for kind, values in given.items():
        if values:
            rows, more = _filled(model, rows, kind, values)
            made |= more
    return rows, made


def _filled(
    model: Any, rows: list[list[int]], kind: str, values: Sequence[Any]
) -> tuple[list[list[int]], dict[str, Tensor]]:
    """The same for one kind of media."""
    flat, each = _flat(kind, values, len(rows))
    medium = seen_by(model, kind)
    prepare = model.processor if kind == "images" else getattr(model.processor, kind)
    like, reads = next(model.parameters()), medium.reads()
    inputs = {
        name: value.to(like.device) if name == SECONDS or reads[name].ids else value.to(like)
        for name, value in prepare(flat).items()
    }
    sizes = medium.lengths(inputs)
    counts = [row.count(medium.token) for row in rows]
    named = {f"{medium.prefix}{name}": value for name, value in inputs.items()}
    if sum(counts) == sum(sizes) != len(sizes):
        return rows, named  # all of them stand there already
    if sum(counts) != len(sizes) or (each is not None and each != counts):
        said = ", ".join(f"prompt {number} has {count}" for number, count in enumerate(counts))
        have = len(sizes) if each is None else " + ".join(map(str, each))
        raise ValueError(
            f"there are {have} {kind}, and {said} placeholders (token {medium.token}); a prompt needs one for "
            f"each of its {kind}, where it stands in the text"
        )
    left = iter(sizes)
    rows = [[t for token in row for t in [token] * (next(left) if token == medium.token else 1)] for row in rows]
    arranged = medium.arranged(inputs, counts)
    return rows, {f"{medium.prefix}{name}": value for name, value in arranged.items()}


def _flat(kind: str, values: Sequence[Any], rows: int) -> tuple[list[Any], list[int] | None]:
    """All media in one list, and the number of each prompt's if they came in a list for each. A pair is a sound with
    its rate, or a video with its seconds."""
    values = list(values)
    lists = [isinstance(one, list if kind != "images" else list | tuple) for one in values]
    if not any(lists):
        return values, None
    if not all(lists) or len(values) != rows:
        raise ValueError(
            f"{kind} must be {(what := kind.replace('images', 'pictures'))}, or {rows} lists of {what}, one for each "
            f"prompt; got {len(values)} entries, "
            f"{sum(lists)} of them lists"
        )
    return [one for some in values for one in some], [len(some) for some in values]


def seen_by(model: Any, kind: str = "images") -> Any:
    """The part of a model that reads pictures, sounds or videos inside a text.

    Raises:
        ValueError: for a model without such a part, or without a processor.
    """
    what = getattr(model, "page", None) or type(model).__name__
    needed = {"images": PIXELS, "sounds": "input_features", "videos": f"video_{SECONDS}"}[kind]
    if not model.placeholders or needed not in model.inputs():
        known = {"images": "sees no pictures", "sounds": "hears no sounds", "videos": "sees no videos"}[kind]
        use = "LLaVA or Omni" if kind == "images" else "Omni"
        raise ValueError(f"{what} {known} inside a text: it reads {', '.join(model.inputs())}; use {use}")
    if model.processor is None or (kind != "images" and not hasattr(model.processor, kind)):
        raise ValueError(
            f"the model has no processor for {kind}, so their preprocessing is unknown; add its "
            "preprocessor_config.json to its folder, or set model.processor (anyformer.hub.processors)"
        )
    return model.medium(needed)


def prepared(model: Any, source: Any) -> dict[str, Any]:
    """A picture as inputs of a model: an array of pixels, or for a model that reads pictures of any size tensors, which
    stand one after another in a batch."""
    if getattr(model, "placeholders", ()) and (medium := seen_by(model)).packed:
        return {f"{medium.prefix}{name}": value for name, value in model.processor([source]).items()}
    return {PIXELS: model.processor.values(source)}


def placeholder(model: Any) -> str:
    """The text of the placeholder for pictures, with what stands around it.

    Raises:
        ValueError: if the tokenizer has none.
    """
    medium, tokenizer = seen_by(model), tokenizer_of(model, "texts about pictures")
    around = getattr(medium, "around", ())
    texts = []
    for token in (*around[:1], medium.token, *around[1:]):
        text = tokenizer.core.id_to_token(token)
        if text is None or tokenizer.encode(text, special=False) != [token]:
            raise ValueError(
                f"the model's placeholder for pictures is token {medium.token}"
                f"{f', between {around[0]} and {around[1]}' if around else ''}, and its tokenizer has no text for "
                f"{token}; set model.tokenizer = model.tokenizer.with_special({token}, '<image>')"
            )
        texts.append(text)
    return "".join(texts)


def spoken(tokenizer: Any, mark: str, text: str) -> Any:
    """A message with a picture in front, in the form that the chat template reads: parts, or one text."""
    if "'image'" in tokenizer.template or '"image"' in tokenizer.template:
        return [{"type": "image"}, {"type": "text", "text": text}]
    return f"{mark}\n{text}"
