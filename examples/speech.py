"""Word errors of Whisper here and in transformers with the same weights: sentences, joined sentences with known times,
and sounds without speech, in minutes.

    python examples/speech.py --into docs/sound.md              # prints the table, writes it there
    python examples/speech.py languages --into docs/sound.md    # the same of acted lines in Czech and Dutch

- sentences: five recordings of one sentence each (LibriVox, from the Debian package pocketsphinx-testdata), each
  alone: wrong words (inserted, deleted, replaced) among all words;
- joined: the five in a row with four seconds of silence after each, 45 seconds: wrong words, and the mean distance
  between the true end of a sentence and the end of its segment;
- nothing said: words that are written for 20 seconds of noise, a tone, and silence, and for a minute of music (from
  the Debian package asterisk-moh-opsound-wav), and how many of 17 other pieces have words in their first 30 seconds;
  the threshold of `transcribe(notes=...)` was set by others. 160 MB by apt, once.

anyformer reads the folder of CTranslate2 and saves it as a directory; transformers opens that directory, makes its own
features and decodes with `generate(return_timestamps=True)`, whose greedy text is that of its first temperature;
neither is told anything but the language. anyformer's `transcribe` runs with its defaults, gates included.

The lines in Czech and Dutch are those of a game (Debian's fillets-ng-data-cs and -nl), drawn among those of one to
thirty seconds and at least three words; whisper-base writes each alone, here, in transformers and, where it is
installed, in CTranslate2 (greedy, without times). The text in the game's files is what is counted against.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import documents
import numpy as np
import soundfile
import torch

import anyformer as af
from anyformer.data import debian, sources
from anyformer.data.speech import Clip, clips, lines, words
from anyformer.generate import transcribe
from anyformer.media.sound import sound
from anyformer.train.tasks.sounds import ErrorRate

MARKS = {
    "english": ("<!-- table -->", "<!-- end -->"),
    "languages": ("<!-- languages -->", "<!-- end of languages -->"),
}
SPOKEN = {"cs": "Czech", "nl": "Dutch"}
MODELS = ("whisper-tiny.en", "whisper-base")
RATE, PAUSE, NOISY, MUSIC, WINDOW, LEAST = 16000, 4, 20, 60, 30, 3  # Hz, seconds; words of a line
SONGS = "usr/share/asterisk/moh/.*[.]wav"
PIECES = {  # music without song: paths, megabytes and licence of the package
    "asterisk-moh-opsound-wav": ("usr/share/asterisk/moh/.*(robot_dity|morning_coffee)[.]wav", 14, "CC-BY-SA-3.0"),
    "asc-music": ("usr/share/games/asc/music/(frontiers|time_to_strike)[.]mp3", 10, "GPL-2"),
    "frozen-bubble-data": ("usr/share/games/frozen-bubble/snd/(introzik|frozen-mainzik-1p)[.]ogg", 21, "GPL-2"),
    "mu-cade-data": ("usr/share/games/mu-cade/sounds/musics/mcd[13][.]ogg", 5, "BSD-2-Clause"),
    "noiz2sa-data": ("usr/share/games/noiz2sa/sounds/stg[01][.]ogg", 8, "BSD-2-Clause"),
    "fillets-ng-data": ("usr/share/games/fillets-ng/music/(kufrik|rybky0[135])[.]ogg", 71, "GPL-2"),
    "extremetuxracer-data": ("usr/share/games/etr/music/(calmrace-ks|freezingpoint|options1-jt)[.]ogg", 39, "GPL-2"),
}

Heard = tuple[str, list[float]]  # a text, and the ends of its segments in seconds
Writer = Callable[[np.ndarray], Heard]


def ours(model: Any, language: str = "en") -> Writer:
    """anyformer's transcription."""

    def write(samples: np.ndarray) -> Heard:
        found = transcribe(model, (samples, RATE), language=language)
        return found.text, [segment.end for segment in found.segments]

    return write


def theirs(folder: str, language: str = "en") -> Writer:
    """That of transformers, from a directory."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).float().eval()
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    tokenizer = af.load(folder).tokenizer
    told = {"language": language, "task": "transcribe"} if model.generation_config.is_multilingual else {}

    def write(samples: np.ndarray) -> Heard:
        long = len(samples) > extractor.n_samples
        padding = {"truncation": False, "padding": "longest"} if long else {}
        given = extractor(samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True, **padding)
        more: dict[str, Any] = {"attention_mask": given.attention_mask, **told}
        with torch.no_grad():
            found = model.generate(
                given.input_features, return_timestamps=True, return_segments=True, do_sample=False, **more
            )
        segments = found["segments"][0]
        text = "".join(tokenizer.decode(segment["tokens"].tolist()) for segment in segments)
        return text, [float(segment["end"]) for segment in segments]

    return write


def ctranslate(model: Any, language: str) -> Writer:
    """That of CTranslate2, with features and tokens of anyformer.

    Raises:
        ImportError: if it is not installed.
    """
    import ctranslate2

    peer = ctranslate2.models.Whisper(
        str(sources.get(MODELS[1])), device="cpu", compute_type="float32", intra_threads=1
    )
    words_of = ("<|startoftranscript|>", f"<|{language}|>", "<|transcribe|>", "<|notimestamps|>")
    begin = [model.tokenizer.core.token_to_id(token) for token in words_of]

    def write(samples: np.ndarray) -> Heard:
        features = model.processor([(samples, RATE)])["input_features"]
        told = ctranslate2.StorageView.from_array(np.ascontiguousarray(features.numpy()))
        return model.tokenizer.decode(peer.generate(told, [begin], beam_size=1)[0].sequences_ids[0]), []

    return write


def sentences(write: Writer, given: list[Clip]) -> tuple[str, str]:
    """Wrong words and wrong letters of sentences, each alone."""
    said, letters = ErrorRate(), ErrorRate()
    for clip in given:
        found, expected = words(write(sound(clip.path).at(RATE).samples)[0]), words(clip.text)
        said.add(found, expected)
        letters.add(" ".join(found), " ".join(expected))
    return f"{said.wrong} of {said.count} words wrong ({said.value:.1%})", f"{letters.value:.1%}"


def joined(write: Writer) -> str:
    """Wrong words of the sentences in a row, and the distance of the ends."""
    parts, ends, expected = [], [], []
    for clip in clips():
        parts += [sound(clip.path).samples, np.zeros(PAUSE * RATE, np.float32)]
        ends.append(sum(map(len, parts)) / RATE - PAUSE)
        expected += words(clip.text)
    text, found = write(np.concatenate(parts))
    rate = ErrorRate()
    rate.add(words(text), expected)
    if len(found) != len(ends):
        return f"{rate.wrong} of {rate.count} words wrong; {len(found)} segments for {len(ends)} sentences"
    far = float(np.mean([abs(a - b) for a, b in zip(found, ends, strict=True)]))
    return f"{rate.wrong} of {rate.count} words wrong; ends {far:.2f} s from the true ones"


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
    counts = ", ".join(f"{name} {len(words(write(x.astype(np.float32))[0]))}" for name, x in made.items())
    pieces = [
        path
        for package, (wanted, size, licence) in PIECES.items()
        for path in sorted(debian.fetch(package, wanted, size, licence, "music").rglob("*.*"))
    ]
    heard = sum(bool(words(write(sound(path).at(RATE).samples[: WINDOW * RATE])[0])) for path in pieces)
    return f"{counts}; words in {heard} of {len(pieces)} other pieces of music"


def english(models: list[str]) -> Iterator[str]:
    """The rows of sentences, joined sentences and sounds without speech."""
    yield "| weights | | sentences, each alone | joined, 45 s | words where nothing is said |"
    yield "|---|---|---|---|---|"
    for name in models:
        model = af.load(sources.get(name) if name in sources.SOURCES else name, dtype=torch.float32)
        with tempfile.TemporaryDirectory() as folder:
            model.save(folder)
            for side, write in (("anyformer", ours(model)), ("transformers", theirs(folder))):
                yield f"| {name} | {side} | {sentences(write, clips())[0]} | {joined(write)} | {nothing(write)} |"


def languages(count: int) -> Iterator[str]:
    """The rows of so many lines in each language."""
    yield f"| {count} lines each, whisper-base | | words | wrong letters |"
    yield "|---|---|---|---|"
    model = af.load(sources.get(MODELS[1]), dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        sides: dict[str, Callable[[str], Writer]] = {
            "anyformer": lambda language: ours(model, language),
            "transformers": lambda language: theirs(folder, language),
            "CTranslate2": lambda language: ctranslate(model, language),
        }
        for language, name in SPOKEN.items():
            whole = [clip for clip in lines(language) if len(words(clip.text)) >= LEAST]
            drawn = [clip for clip in random.Random(0).sample(whole, len(whole)) if 1 <= duration(clip) <= WINDOW]
            for side, made in sides.items():
                try:
                    cells = sentences(made(language), drawn[:count])
                except ImportError:
                    cells = ("not installed", "")
                yield f"| {name} | {side} | {' | '.join(cells)} |"


def duration(clip: Clip) -> float:
    """Seconds."""
    return float(soundfile.info(clip.path).duration)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", nargs="?", choices=list(MARKS), default="english")
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="english: real weights by name, or folders")
    parser.add_argument("--count", type=int, default=40, help="languages: lines of each")
    parser.add_argument("--into", type=Path, help="a text whose table, between its two marks, is written anew")
    args = parser.parse_args()
    table = []
    for line in english(args.models) if args.what == "english" else languages(args.count):
        table.append(line)
        print(line, flush=True)
    if args.into is not None:
        documents.put(args.into, *MARKS[args.what], "\n".join(table))


if __name__ == "__main__":
    main()
