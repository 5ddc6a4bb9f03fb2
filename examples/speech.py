"""Word errors of Whisper here and in transformers with the same weights: sentences, joined sentences with known times,
and sounds without speech, in minutes.

    python examples/speech.py --into docs/sound.md    # prints the table, writes it there

- sentences: five recordings of one sentence each (LibriVox, from the Debian package pocketsphinx-testdata), each
  alone: wrong words (inserted, deleted, replaced) among all words;
- joined: the five in a row with four seconds of silence after each, 45 seconds: wrong words, and the mean distance
  between the true end of a sentence and the end of its segment;
- nothing said: words that are written for 20 seconds of noise, a tone, and silence, and for a minute of music (from
  the Debian package asterisk-moh-opsound-wav).

anyformer reads the folder of CTranslate2 and saves it as a directory; transformers opens that directory, makes its own
features and decodes with `generate(return_timestamps=True)`, whose greedy text is that of its first temperature;
neither is told anything but the language. anyformer's `transcribe` runs with its defaults, gates included.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import documents
import numpy as np
import torch

import anyformer as af
from anyformer.data import debian, sources
from anyformer.data.speech import clips, word_errors, words
from anyformer.generate import transcribe
from anyformer.media.sound import sound

BEGIN, END = "<!-- table -->", "<!-- end -->"
MODELS = ("whisper-tiny.en", "whisper-base")
RATE, PAUSE, NOISY, MUSIC = 16000, 4, 20, 60  # Hz, seconds
SONGS = "usr/share/asterisk/moh/.*[.]wav"

Heard = tuple[str, list[float]]  # a text, and the ends of its segments in seconds
Writer = Callable[[np.ndarray], Heard]


def ours(model: Any) -> Writer:
    """anyformer's transcription."""

    def write(samples: np.ndarray) -> Heard:
        found = transcribe(model, (samples, RATE), language="en")
        return found.text, [segment.end for segment in found.segments]

    return write


def theirs(folder: str) -> Writer:
    """That of transformers, from a directory."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).float().eval()
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    tokenizer = af.load(folder).tokenizer
    language = {"language": "en", "task": "transcribe"} if model.generation_config.is_multilingual else {}

    def write(samples: np.ndarray) -> Heard:
        long = len(samples) > extractor.n_samples
        padding = {"truncation": False, "padding": "longest"} if long else {}
        given = extractor(samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True, **padding)
        more: dict[str, Any] = {"attention_mask": given.attention_mask, **language}
        with torch.no_grad():
            found = model.generate(
                given.input_features, return_timestamps=True, return_segments=True, do_sample=False, **more
            )
        segments = found["segments"][0]
        text = "".join(tokenizer.decode(segment["tokens"].tolist()) for segment in segments)
        return text, [float(segment["end"]) for segment in segments]

    return write


def sentences(write: Writer) -> str:
    """Wrong words of the sentences, each alone."""
    wrong = total = 0
    for clip in clips():
        expected = words(clip.text)
        wrong += word_errors(words(write(sound(clip.path).samples)[0]), expected)
        total += len(expected)
    return f"{wrong} of {total} words wrong ({wrong / total:.1%})"


def joined(write: Writer) -> str:
    """Wrong words of the sentences in a row, and the distance of the ends."""
    parts, ends, expected = [], [], []
    for clip in clips():
        parts += [sound(clip.path).samples, np.zeros(PAUSE * RATE, np.float32)]
        ends.append(sum(map(len, parts)) / RATE - PAUSE)
        expected += words(clip.text)
    text, found = write(np.concatenate(parts))
    wrong = word_errors(words(text), expected)
    if len(found) != len(ends):
        return f"{wrong} of {len(expected)} words wrong; {len(found)} segments for {len(ends)} sentences"
    far = float(np.mean([abs(a - b) for a, b in zip(found, ends, strict=True)]))
    return f"{wrong} of {len(expected)} words wrong; ends {far:.2f} s from the true ones"


def nothing(write: Writer) -> str:
    """The words that are written where nothing is said."""
    draw, count = np.random.default_rng(0), NOISY * RATE
    song = sorted(debian.fetch("asterisk-moh-opsound-wav", SONGS, 14, "CC-BY-SA-3.0").rglob("*.wav"))[0]
    made = {
        "noise": draw.standard_normal(count) * 0.01,
        "tone": np.sin(np.arange(count) * 0.2) * 0.3,
        "silence": np.zeros(count),
        "music": sound(song).at(RATE).samples[: MUSIC * RATE],
    }
    return ", ".join(f"{name} {len(words(write(x.astype(np.float32))[0]))}" for name, x in made.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="real weights by name, or folders")
    parser.add_argument("--into", type=Path, help=f"a text whose table, between {BEGIN} and {END}, is written anew")
    args = parser.parse_args()
    table = [
        "| weights | | sentences, each alone | joined, 45 s | words where nothing is said |",
        "|---|---|---|---|---|",
    ]
    for name in args.models:
        model = af.load(sources.get(name) if name in sources.SOURCES else name, dtype=torch.float32)
        with tempfile.TemporaryDirectory() as folder:
            model.save(folder)
            for side, write in (("anyformer", ours(model)), ("transformers", theirs(folder))):
                cells = (name, side, sentences(write), joined(write), nothing(write))
                table.append(f"| {' | '.join(cells)} |")
                print(table[-1], flush=True)
    print("\n".join(table))
    if args.into is not None:
        documents.put(args.into, BEGIN, END, "\n".join(table))


if __name__ == "__main__":
    main()
