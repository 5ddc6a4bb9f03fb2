"""write the words of a recording, with times; translate them to English."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick

if TYPE_CHECKING:
    from anyformer.generate.transcribing import Transcript

EXAMPLE = "anyformer transcribe talk.wav --model whisper-base --timestamps"


def transcribe(
    sound: list[str],
    *,
    model: str = "whisper-base",
    language: str | None = None,
    task: str | None = None,
    timestamps: bool = False,
    words: bool = False,
    prompt: str = "",
    notes: float = 0.2,
    beams: int = 1,
    lm: str | None = None,
    lm_weight: float = 0.5,
    steer: Sequence[str] = (),
    json: bool = False,
    ignore: Sequence[str] = (),
) -> None:
    """Prints the words of each recording.

    Args:
        sound: files of sound: wav, flac, ogg, mp3; of any length, rate and number of channels.
        model: a directory, a folder of CTranslate2, a hub id, or real weights by name: whisper-base or whisper-tiny.en;
            Whisper, or any model with a CTC head.
        language: its code or English name, such as de or german; by default it is detected.
        task: transcribe, or translate to English; by default that of the files, else transcribe.
        timestamps: a line for each segment, with its beginning and end.
        words: a line for each word, with its beginning and end.
        prompt: a text in front of the first words: names and spellings.
        notes: Whisper writes a note, such as [Music], that is not shown, where one is likelier than this; 1: never.
        beams: of a CTC model: 1 reads the likeliest path, more search the likeliest text.
        lm: of a CTC model with beams: a language model, whose opinion of words counts.
        lm_weight: of its log p.
        steer: files of directions, FILE or FILE:STRENGTH; they are added in every pass of the model.
        json: print text, language, segments and words as JSON.
        ignore: keys of the files that are read as if they were not there.
    """
    from anyformer.generate.steering import steered_always
    from anyformer.generate.transcribing import transcribe as written

    loaded = steered_always(models.load(model, ignore=ignore), list(steer))
    reader = None if lm is None else models.load(lm, ignore=ignore)
    options: dict[str, Any] = {"language": language, "task": task, "words": words, "prompt": prompt, "notes": notes}
    options |= {"beams": beams, "lm": reader, "lm_weight": lm_weight}
    found = [written(loaded, name, **options) for name in sound]
    if json:
        print(plain.dump([{"sound": name, **asdict(one)} for name, one in zip(sound, found, strict=True)]))
        return
    for name, one in zip(sound, found, strict=True):
        if len(sound) > 1:
            print(name)
        print("\n".join(lines(one, timestamps, words)))


def lines(found: Transcript, timestamps: bool, words: bool) -> list[str]:
    """The lines of a transcript."""
    if not timestamps and not words:
        return [found.text]
    parts: list[Any] = [part for s in found.segments for part in (s.words if words else (s,))]
    return [f"[{clock(part.start)} - {clock(part.end)}] {part.text.strip()}" for part in parts]


def clock(seconds: float) -> str:
    """A time as hours, minutes and seconds: 1:02:03.45, 02:03.45."""
    hundredths = round(seconds * 100)
    minutes, rest = divmod(hundredths, 6000)
    hours, minutes = divmod(minutes, 60)
    begin = f"{hours}:" if hours else ""
    return f"{begin}{minutes:02}:{rest // 100:02}.{rest % 100:02}"


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(transcribe)


def run(args: Any) -> None:
    """Does it."""
    transcribe(**pick(args, transcribe))
