"""continue a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick

EXAMPLE = 'anyformer generate smollm2 "The capital of France is" --temperature 0.7 --seed 0'
CALL = "anyformer.generate:generate"
OURS = (
    "model",
    "prompts",
    "images",
    "sounds",
    "videos",
    "draft",
    "steer",
)  # what `anyformer.generate.generate` takes and the words of the command give
NO_SEARCH = {"num_beams": 1, "length_penalty": 1.0, "early_stopping": False}


def generate(
    model: str,
    prompt: list[str],
    options: dict[str, Any],
    *,
    image: list[str] | None = None,
    sound: list[str] | None = None,
    video: list[str] | None = None,
    draft: str | None = None,
    steer: list[str] | None = None,
    json: bool = False,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Prints each prompt and how the model continues it, or what an encoder-decoder makes of it; a single one appears
    as it is written.

    Args:
        model: a directory, a .gguf file, a hub id, or real weights by name.
        prompt: one text or several, each in quotes.
        image: files of pictures, as many as the prompts have placeholders such as <image>, in their order.
        sound: files of sounds, as many as the prompts have placeholders such as <sound>, in their order.
        video: files of videos, the same.
        draft: a smaller model with the same tokens, which guesses several tokens that the model verifies in one pass.
        steer: files of directions that `anyformer steer` wrote, FILE or FILE:STRENGTH; they are added at every token.
        options: of `anyformer.generate.generate`, by name.
        json: print prompts and continuations as JSON.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.
    """
    from anyformer.generate import generate as write
    from anyformer.generate import stream

    loaded = models.load(model, task=task, ignore=ignore)
    if draft is not None:
        options = {**options, "draft": models.load(draft)}
    files = {"images": image, "sounds": sound, "videos": video}
    media: dict[str, Any] = {kind: [Path(name) for name in names or ()] or None for kind, names in files.items()}
    options = {**options, "steer": steer}
    before = [""] * len(prompt) if loaded.reads_source else prompt
    search = any(options[name] != value for name, value in NO_SEARCH.items())  # knows its text only at the end
    if json or len(prompt) > 1 or search:
        texts = write(loaded, prompt, **media, **options)
        pairs = [{"prompt": p, "text": t} for p, t in zip(prompt, texts, strict=True)]
        print(plain.dump(pairs) if json else "\n\n".join(p + t for p, t in zip(before, texts, strict=True)))
        return
    some = {name: value for name, value in options.items() if name not in NO_SEARCH}
    pieces = stream(loaded, prompt[0], **media, **some)
    print(before[0] + next(pieces, ""), end="", flush=True)  # the prompt appears when nothing is wrong with it
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def options(parser: Parser) -> None:
    """The options of the verb: its own, and those of the Python call."""
    parser.add_function(generate, skip=("options",))
    parser.add_function(CALL, skip=OURS)


def run(args: Any) -> None:
    """Does it."""
    generate(
        args.model, args.prompt, pick(args, CALL, OURS), image=args.image, sound=args.sound, video=args.video,
        draft=args.draft, steer=args.steer, json=args.json, task=args.task, ignore=args.ignore,
    )  # fmt: skip
