"""Spoken digits by CTC from scratch, on synthetic speech, tested on a voice that training never heard, in minutes.

    python examples/digits.py --into docs/sound.md                    # prints the table, and writes it there
    python examples/digits.py --only "wav2vec 2.0" --into docs/sound.md    # one of the networks; other lines stay
    python examples/digits.py --words words               # single words alone: words/{train,test,recorded}/WORD/1.wav …

Speech is made by flite (voices kal, kal16, awb and rms, all of men; slt, a woman, for the test), a Debian package that
is fetched and unpacked into the cache; nothing is installed. A sentence is one to four words from zero to nine, and its
text is their figures: `307`. Each network learns them by `train`, with the same steps, batches and seed:

- wav2vec 2.0: samples of sound, seven convolutions;
- the same blocks with log-mel features (`Mels`) in place of the convolutions;
- Conformer: the convolutions, and a convolution in each block.

Norms are before the branches. Beside them is the most frequent sentence of the training texts.

Single words (for `anyformer edge`) are at 8 kHz, as on a telephone. `recorded` are the ten that a person says in the
prompts of Asterisk.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import documents
import soundfile

import anyformer as af
from anyformer.core import pages
from anyformer.core.recipe import Recipe
from anyformer.data import debian
from anyformer.data.sources import cache
from anyformer.generate.spelling import spell
from anyformer.media.sound import sound
from anyformer.parts import Mels
from anyformer.train import train
from anyformer.train.tasks.sounds import ErrorRate

BEGIN, END = "<!-- digits -->", "<!-- end of digits -->"
PACKAGES = {"flite": (1, "MIT-like"), "libflite1": (13, "MIT-like")}  # package: megabytes, licence
PROMPTS = ("asterisk-core-sounds-en-wav", r".*/digits/[0-9]\.wav", 18, "CC-BY-SA-3.0", "digits")  # of `debian.fetch`
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TRAIN, TEST = ("kal", "kal16", "awb", "rms"), ("slt",)
LEARNED, HEARD, SEED, WINDOW = 1500, 150, 0, 3  # sentences of training and of the test; seconds of features
EACH, TELEPHONE = {"train": (TRAIN, 1600), "test": (TEST, 200)}, 8000  # voices and single words; their rate


def programs() -> tuple[Path, dict[str, str]]:
    """The folder of the unpacked packages, and the environment in which their programs run."""
    home = cache() / "speakers"
    if not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent) as work:
            for package, (megabytes, licence) in PACKAGES.items():
                todo = f"unpack the Debian packages {', '.join(PACKAGES)} into {home} with `dpkg-deb -x`"
                place = Path(work, package)
                place.mkdir()
                held = debian.download(package, f"{megabytes} MB, {licence}", place, todo)
                subprocess.run(["dpkg-deb", "-x", str(held), f"{work}/all"], check=True)
            os.rename(f"{work}/all", home)
    libraries = next(home.glob("usr/lib/*/libflite.so.1")).parent
    return home / "usr/bin/flite", {**os.environ, "LD_LIBRARY_PATH": str(libraries)}


def speak(folder: Path, voices: tuple[str, ...], count: int, seed: int) -> None:
    """Writes sentences of digits: a sound and its text each. To learn from, the pace differs, and so does the rate at
    which a sound is played, with which a speaker gets smaller or larger."""
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        figures, voice = draw.choices(range(10), k=draw.randint(1, 4)), draw.choice(voices)
        said, sound = " ".join(WORDS[figure] for figure in figures), folder / f"{number:05}.wav"
        size, pace = (draw.uniform(0.9, 1.3), draw.uniform(0.85, 1.25)) if voices == TRAIN else (1.0, 1.0)
        utter(said, voice, sound, size, pace)
        sound.with_suffix(".txt").write_text("".join(map(str, figures)))


def utter(said: str, voice: str, sound: Path, size: float, pace: float) -> None:
    """Writes one sound, of a speaker who is smaller by `size`, and slower by `pace`."""
    program, environment = programs()
    command = [str(program), "-voice", voice, "--setf", f"duration_stretch={pace * size:.2f}"]
    subprocess.run([*command, "-t", said, "-o", str(sound)], env=environment, check=True, capture_output=True)
    samples, rate = soundfile.read(sound, dtype="int16")
    soundfile.write(sound, samples, round(rate * size))


def words(out: Path) -> None:
    """Writes single words, a folder for each: of the voices of training, of another one, and of a person."""
    for part, (voices, count) in EACH.items():
        draw = random.Random(SEED + len(voices))
        for number in range(count):
            word, file = WORDS[number % len(WORDS)], out / part / WORDS[number % len(WORDS)] / f"{number:05}.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            size = draw.uniform(0.9, 1.6) if voices == TRAIN else 1.0  # four men to learn from, a woman in the test
            utter(word, draw.choice(voices), file, size, draw.uniform(0.85, 1.25))
            soundfile.write(file, sound(file).at(TELEPHONE).samples, TELEPHONE)
    for file in debian.fetch(*PROMPTS).rglob("*.wav"):
        folder = out / "recorded" / WORDS[int(file.stem)]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / file.name)


def spoken(out: Path) -> tuple[Path, Path]:
    """The folders of sentences to learn from, and of those of another voice; made where they are not there yet."""
    learned, heard = out / "learned", out / "heard"
    if not heard.is_dir():
        speak(learned, TRAIN, LEARNED, SEED)
        speak(heard, TEST, HEARD, SEED + 1)
    return learned, heard


SMALL = {"dim": 64, "depth": 3, "hidden": 128, "widths": (32,) * 7, "position_width": 16, "conv_norm": "layer"}


def networks() -> dict[str, Any]:
    """The models by name."""
    plain = pages.recipe("wav2vec2", "mini", **SMALL, position_groups=4, stable=True)
    mels: Recipe = plain.but({"embed": Mels.of(mels=80, context=WINDOW * 50)})
    conformer = pages.recipe("conformer", "mini", **SMALL, position_groups=1)
    return {"wav2vec 2.0": plain, "the same blocks, log-mels": mels, "Conformer": conformer}


def errors(texts: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """The wrong figures, and the sentences that are right, of pairs of what is said and what was read."""
    figures, right = ErrorRate(), 0
    for expected, found in texts:
        figures.add(found, expected)
        right += found == expected
    return f"{figures.value:.1%}", f"{right} of {HEARD}"


def shown(found: dict[str, list[str]]) -> str:
    """The table."""
    about = "spoken digits, batches of 16 sentences"
    names = (
        "parameters",
        "steps",
        "wrong figures",
        "sentences right",
        "wrong figures, voices of training",
        "minutes",
    )
    lines = [f"| {name} | {' | '.join(cells)} |" for name, cells in found.items()]
    return "\n".join([f"| {about} | {' | '.join(names)} |", "|---" * 7 + "|", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--only", nargs="+", choices=list(networks()), default=list(networks()))
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    parser.add_argument("--into", type=Path, help=f"a text whose table, between {BEGIN} and {END}, is written anew")
    parser.add_argument("--words", type=Path, help="writes single words into this folder, and does nothing else")
    args = parser.parse_args()
    if args.words is not None:
        return words(args.words)
    (learned, heard), done = spoken(args.out), args.out / "digits.json"
    said = {sound: sound.with_suffix(".txt").read_text() for sound in sorted(heard.glob("*.wav"))}
    texts = [file.read_text() for file in sorted(learned.glob("*.txt"))]
    common = max(texts, key=texts.count)
    found = json.loads(done.read_text()) if done.exists() else {}
    found["the most frequent sentence"] = ["", "", *errors((text, common) for text in said.values()), "", ""]
    for name in args.only:
        begun, out = time.perf_counter(), args.out / name.replace(" ", "-")
        run = train(
            model=networks()[name], data=str(learned), out=out, steps=args.steps, batch=16, lr=3e-3,
            warmup=args.steps // 10, seed=SEED, save_every=0, eval_every=max(1, args.steps // 4),
        )  # fmt: skip
        minutes = (time.perf_counter() - begun) / 60
        model = af.load(run.checkpoint)
        size = f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M"
        cells = errors((text, spell(model, sound).text) for sound, text in said.items())
        found[name] = [size, f"{args.steps:,}", *cells, f"{run.held_out:.1%}", f"{minutes:.1f}"]
        done.write_text(json.dumps(found, indent=2))
        print(name, *found[name], flush=True)
    table = shown(found)
    print(table)
    if args.into is not None:
        documents.put(args.into, BEGIN, END, table)


if __name__ == "__main__":
    main()
