"""Recordings in requests."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from anyformer.generate.transcribing import TEMPERATURES, transcribe
from anyformer.media.sound import Sound, sound

MOST_SECONDS = 600


def heard(data: bytes) -> Sound:
    """The sound in the bytes of a file.

    Raises:
        ValueError: if it cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording"
        path.write_bytes(data)
        try:
            made = sound(path)
        except ImportError as error:
            raise ValueError(str(error)) from None
    return Sound(made.samples, made.rate, "the recording")


def spoken(
    model: Any, audio: Sound, language: str | None, prompt: str, temperature: float, notes: float
) -> dict[str, Any]:
    """Its words in OpenAI's verbose form; the reader of sounds tries other temperatures only at 0."""
    temperatures = (temperature,) if temperature else TEMPERATURES
    made = transcribe(model, audio, language=language, prompt=prompt, temperatures=temperatures, notes=notes)
    segments = [
        {
            "id": number, "seek": 0, "start": s.start, "end": s.end, "text": s.text, "tokens": list(s.tokens),
            "temperature": s.temperature, "avg_logprob": s.log_probability, "no_speech_prob": s.silence,
        }
        for number, s in enumerate(made.segments)
    ]  # fmt: skip
    language_ = {"language": made.language} if made.language else {}
    return {"task": "transcribe", **language_, "duration": made.seconds, "text": made.text, "segments": segments}
