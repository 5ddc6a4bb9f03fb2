"""Spoken digits by CTC from scratch, on synthetic speech, tested on a voice that training never heard, in minutes.

    python examples/digits.py --into docs/sound.md    # prints the table, writes it there or at the end

Speech is made by flite (voices kal, awb, rms; slt for the test) and espeak-ng (four voices), Debian packages that are
fetched and unpacked into the cache; nothing is installed. A sentence is one to four words from zero to nine, and its
text is their figures: `3 0 7`. Each network learns them by `train`, with the same steps, batches and seed:

- wav2vec 2.0: samples of sound, seven convolutions;
- the same blocks with log-mel features (`Mels`) in place of the convolutions;
- Conformer: the convolutions, and a convolution in each block.

Beside them is the most frequent sentence of the training texts.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import documents

import anyformer as af
from anyformer.core import pages
from anyformer.core.recipe import Recipe
from anyformer.data import debian
from anyformer.data.sources import cache
from anyformer.generate.spelling import spell
from anyformer.parts import Mels
from anyformer.train import train
from anyformer.train.tasks.sounds import ErrorRate

BEGIN, END = "<!-- digits -->", "<!-- end of digits -->"
PACKAGES = {  # package: megabytes, licence
    "flite": (1, "MIT-like"), "libflite1": (13, "MIT-like"), "espeak-ng": (1, "GPL-3"),
    "libespeak-ng1": (1, "GPL-3"), "espeak-ng-data": (5, "GPL-3"), "libsonic0": (1, "Apache-2.0"),
    "libpcaudio0": (1, "GPL-3"),
}  # fmt: skip
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TRAIN, TEST = ("kal", "awb", "rms", "en-us", "en-gb", "en-us+m3", "en-gb+f2"), ("slt",)
LEARNED, HEARD, SEED, WINDOW = 1500, 150, 0, 3  # sentences of training and of the test; seconds of features


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
    paths = {"LD_LIBRARY_PATH": str(libraries), "ESPEAK_DATA_PATH": str(libraries / "espeak-ng-data")}
    return home / "usr/bin", {**os.environ, **paths}


def speak(folder: Path, voices: tuple[str, ...], count: int, seed: int) -> None:
    """Writes sentences of digits: a sound and its text each; pace and pitch differ, but in the test."""
    (bin_, environment), draw = programs(), random.Random(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        figures, voice = draw.choices(range(10), k=draw.randint(1, 4)), draw.choice(voices)
        said = " ".join(WORDS[figure] for figure in figures)
        pace = draw.uniform(0.85, 1.25) if voices == TRAIN else 1.0
        sound = folder / f"{number:05}.wav"
        if voice in ("kal", "awb", "rms", "slt"):
            command = ["flite", "-voice", voice, "--setf", f"duration_stretch={pace:.2f}", "-t", said, "-o", str(sound)]
        else:
            words = ["-s", str(round(160 / pace)), "-p", str(draw.randint(30, 70))]
            command = ["espeak-ng", "-v", voice, *words, "-w", str(sound), said]
        subprocess.run([str(bin_ / command[0]), *command[1:]], env=environment, check=True, capture_output=True)
        sound.with_suffix(".txt").write_text(" ".join(map(str, figures)))


SMALL = {"dim": 64, "depth": 3, "hidden": 128, "widths": (32,) * 7, "position_width": 16}


def networks() -> dict[str, Any]:
    """The models by name."""
    plain = pages.recipe("wav2vec2", "mini", **SMALL, position_groups=4)
    mels: Recipe = plain.but({"embed": Mels.of(mels=80, context=WINDOW * 50)})
    conformer = pages.recipe("conformer", "mini", **SMALL, position_groups=1)
    return {"wav2vec 2.0": plain, "the same blocks, log-mels": mels, "Conformer": conformer}


def errors(model: Any, folder: Path) -> tuple[ErrorRate, ErrorRate, int]:
    """The wrong characters and figures of the test, and the sentences that are right."""
    letters, words, right = ErrorRate(), ErrorRate(), 0
    for sound in sorted(folder.glob("*.wav")):
        expected, found = sound.with_suffix(".txt").read_text(), spell(model, sound).text
        letters.add(list(found), list(expected))
        words.add(found.split(), expected.split())
        right += found == expected
    return letters, words, right


def shown(name: str, size: str, found: tuple[ErrorRate, ErrorRate, int], minutes: str) -> str:
    """A line of the table."""
    letters, words, right = found
    return f"| {name} | {size} | {letters.value:.1%} | {words.value:.1%} | {right} of {HEARD} | {minutes} |"


def guess(learned: Path, heard: Path) -> tuple[ErrorRate, ErrorRate, int]:
    """The same of the most frequent sentence."""
    texts = [file.read_text() for file in sorted(learned.glob("*.txt"))]
    common, letters, words, right = max(texts, key=texts.count), ErrorRate(), ErrorRate(), 0
    for file in sorted(heard.glob("*.txt")):
        letters.add(list(common), list(file.read_text()))
        words.add(common.split(), file.read_text().split())
        right += common == file.read_text()
    return letters, words, right


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--only", nargs="+", help="some of the networks")
    parser.add_argument("--into", type=Path, help=f"a text whose table, between {BEGIN} and {END}, is written anew")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        learned, heard = Path(work, "learned"), Path(work, "heard")
        speak(learned, TRAIN, LEARNED, SEED)
        speak(heard, TEST, HEARD, SEED + 1)
        table = [
            f"| spoken digits, {args.steps} steps of 8 sentences | parameters | wrong characters | wrong figures "
            "| sentences right | minutes |",
            "|---|---|---|---|---|---|",
            shown("the most frequent sentence", "", guess(learned, heard), ""),
        ]
        for number, (name, recipe) in enumerate(networks().items()):
            if args.only and name not in args.only:
                continue
            begun = time.perf_counter()
            done = train(
                model=recipe, data=str(learned), out=Path(work, str(number)), steps=args.steps, batch=8, lr=3e-3,
                warmup=args.steps // 10, seed=SEED, save_every=max(1, args.steps // 4), cache=str(Path(work, "cache")),
            )  # fmt: skip
            size = f"{sum(p.numel() for p in done.model.parameters()) / 1e6:.1f} M"
            minutes = f"{(time.perf_counter() - begun) / 60:.1f}"
            table.append(shown(name, size, errors(af.load(done.checkpoint), heard), minutes))
            print(table[-1], flush=True)
    print("\n".join(table))
    if args.into is not None:
        documents.put(args.into, BEGIN, END, "\n".join(table))


if __name__ == "__main__":
    main()
