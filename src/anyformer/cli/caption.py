"""write a text about pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer caption llava-1.5-7b-hf photo.jpg"


def caption(
    model: str,
    image: list[str],
    *,
    prompt: str = "",
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    num_beams: int = 1,
    speculate: Literal["lookup", "layers"] | None = None,
    cache: bool | Literal["int8"] = True,
    seed: int | None = None,
    batch: int = 8,
    steer: Sequence[str] = (),
    json: bool = False,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Prints a text about each picture.

    Args:
        model: a directory, the folder of a run, or a hub id, of a model that sees pictures in its text (LLaVA).
        image: files of pictures.
        prompt: the beginning of each text.
        max_new_tokens: the most tokens of a text.
        temperature: 0 = always the likeliest token.
        num_beams: above 1, a beam search.
        speculate: guess several tokens and verify them in one pass: the same text. "lookup" guesses what followed the
            same words before, "layers" what the model without every second block writes.
        cache: keep keys and values between tokens; "int8" keeps them in 8 bits.
        seed: of the draws.
        batch: pictures at once.
        steer: files of directions that `anyformer steer` wrote, FILE or FILE:STRENGTH; they are added at every token.
        json: print pictures and texts as JSON.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.
    """
    from anyformer.generate import caption as written
    from anyformer.generate.steering import steered_always

    loaded = steered_always(models.load(model, task=task, ignore=ignore), list(steer))
    texts = written(
        loaded, [Path(name) for name in image], prompt,
        max_new_tokens=max_new_tokens, temperature=temperature, num_beams=num_beams, speculate=speculate, cache=cache,
        seed=seed, batch=batch,
    )  # fmt: skip
    pairs = [{"image": name, "text": text} for name, text in zip(image, texts, strict=True)]
    if json:
        print(plain.dump(pairs))
        return
    for pair in pairs:
        print(f"{pair['image']}: {pair['text']}" if len(pairs) > 1 else pair["text"])


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(caption)


def run(args: Any) -> None:
    """Does it."""
    caption(**pick(args, caption))
