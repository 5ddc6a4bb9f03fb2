"""write music about a text, or going on from a sound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anyformer.cli import models
from anyformer.cli.options import Parser, pick

EXAMPLE = 'anyformer compose "a slow waltz on a piano" --model musicgen --seconds 5 --out waltz.wav'


def compose(
    text: str,
    *,
    model: str,
    out: str = "music.wav",
    seconds: float = 5.0,
    prompt: str | None = None,
    guidance: float | None = None,
    temperature: float = 1.0,
    top_k: int = 250,
    top_p: float | None = None,
    count: int = 1,
    seed: int = 0,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Writes sounds, and prints the names of their files.

    Args:
        text: what the music is about; "" is about nothing.
        model: a directory or a hub id, of MusicGen; or a directory with the stages of MusicLM: semantic, coarse, fine
            and codec.
        out: a file (.wav, .flac); several sounds are numbered: waltz-1.wav, waltz-2.wav.
        seconds: of new sound.
        prompt: a file of sound that the music goes on from; it is the beginning of what is written.
        guidance: 1 takes the text as it is; more follows it closer, with less variety; 0 forgets it. By default 3; a
            cascade has none.
        temperature: 0 takes the likeliest codes.
        top_k: codes that can be drawn at each step.
        top_p: of these, the likeliest until their probabilities reach it.
        count: sounds.
        seed: of the draws.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.
    """
    from anyformer.generate import recoding
    from anyformer.generate.cascade import is_cascade, load_cascade
    from anyformer.generate.composing import compose as composed

    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    path = Path(out)
    loaded: Any = (
        load_cascade(model, ignore) if is_cascade(model) else models.load(model, text=False, task=task, ignore=ignore)
    )
    for number in range(count):
        made = composed(
            loaded,
            text,
            seconds=seconds,
            guidance=guidance,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed + number,
            prompt=prompt,
        )[0]
        name = path if count == 1 else path.with_name(f"{path.stem}-{number + 1}{path.suffix}")
        print(f"{recoding.write(name, made)}: {made.seconds:.1f} seconds")


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(compose)


def run(args: Any) -> None:
    """Does it."""
    compose(**pick(args, compose))
