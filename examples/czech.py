"""Spoken Czech by CTC from scratch: a Conformer, and the same blocks without convolutions, in minutes.

    python examples/czech.py --into docs/sound.md                 # prints the table, and writes it there
    python examples/czech.py --only Conformer --steps 200         # one of the networks, fewer steps; other lines stay

The data are the lines of a game (Debian's fillets-ng-data and fillets-ng-data-cs, 110 MB, GPL-2; fetched, not
installed): actors speak them, and its files have their texts. Lines of at most three seconds with Czech letters alone
are learned, in small letters without marks; each tenth level of the game is held out with all of its lines. Both
networks read log-mels (`Mels`), with the same steps, batches and seed:

- Conformer: rotary positions, and a convolution over 15 frames in each block;
- no convolution: the blocks of wav2vec 2.0, with a convolution of positions in front, as wide and about as large.

Beside them: the most frequent text of the training lines, and, for each line, as many letters as it has, drawn by their
frequency.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import documents
import soundfile

import anyformer as af
from anyformer.core import pages
from anyformer.data.speech import lines
from anyformer.generate.spelling import spell
from anyformer.parts import Mels
from anyformer.train import train
from anyformer.train.tasks.sounds import ErrorRate

BEGIN, END = "<!-- czech -->", "<!-- end of czech -->"
SECONDS, SEED, LEVELS = 3, 0, 10  # of a line at most; one of so many levels is held out
CZECH = re.compile("[a-záčďéěíňóřšťúůýž ]+")
SMALL = {"dim": 96, "depth": 4, "heads": 4, "act": "silu"}

Said = tuple[Path, str]  # a sound, and what is said


def said() -> tuple[list[Said], list[Said]]:
    """The lines to learn from, and those of the levels that are held out."""
    found: tuple[list[Said], list[Said]] = ([], [])
    clips = lines("cs")
    levels = sorted({clip.path.parents[1] for clip in clips})
    for clip in clips:
        text = " ".join(re.sub(r"[^\w\s]", " ", clip.text.lower()).split())
        if CZECH.fullmatch(text) and 0.5 < soundfile.info(clip.path).duration <= SECONDS:
            held_out = levels.index(clip.path.parents[1]) % LEVELS == 0
            found[held_out].append((clip.path, text))
    return found


def networks() -> dict[str, Any]:
    """The models by name."""
    mels = {"embed": Mels.of(mels=80, context=SECONDS * 50)}
    conformer = pages.recipe("conformer", "mini", **SMALL, hidden=192, kernel=15, position_groups=1, positions="rotary")
    plain = pages.recipe(
        "wav2vec2", "mini", **SMALL, hidden=384, position_width=16, position_groups=4, stable=True
    )  # as many weights in its steps of MLP as the two halves of a Conformer's block
    return {"Conformer": conformer.but(mels), "no convolution": plain.but(mels)}


def errors(texts: Iterable[tuple[str, str]]) -> list[str]:
    """The wrong letters and words, of pairs of what is said and what was read."""
    letters, words = ErrorRate(), ErrorRate()
    for expected, found in texts:
        letters.add(found, expected)
        words.add(found.split(), expected.split())
    return [f"{letters.value:.1%}", f"{words.value:.1%}"]


def guesses(learned: list[Said], heard: list[Said]) -> dict[str, list[str]]:
    """The lines of what knows nothing of the sounds."""
    draw, texts = random.Random(SEED), [text for _, text in learned]
    letters, (common, _) = Counter("".join(texts)), Counter(texts).most_common(1)[0]
    drawn = ["".join(draw.choices(list(letters), list(letters.values()), k=len(text))) for _, text in heard]
    pairs = {
        f"the most frequent text, “{common}”": [(text, common) for _, text in heard],
        "letters by their frequency": [(text, other) for (_, text), other in zip(heard, drawn, strict=True)],
    }
    return {name: ["", "", *errors(some), "", ""] for name, some in pairs.items()}


def measured(name: str, out: Path, steps: int, learned: list[Said], heard: list[Said]) -> list[str]:
    """The line of a network that is trained."""
    table = out / "learned.jsonl"
    table.write_text("".join(json.dumps({"sound": str(sound), "text": text}) + "\n" for sound, text in learned))
    begun = time.perf_counter()
    run = train(
        model=networks()[name], data=str(table), out=out / name.replace(" ", "-"), steps=steps, batch=8, lr=2e-3,
        warmup=steps // 10, seed=SEED, save_every=0, eval_every=max(1, steps // 8),
    )  # fmt: skip
    minutes = (time.perf_counter() - begun) / 60
    model = af.load(run.checkpoint)
    read = [(text, spell(model, sound).text) for sound, text in heard]
    (out / f"{name.replace(' ', '-')}.txt").write_text("".join(f"{text}\t{found}\n" for text, found in read))
    size = f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M"
    return [size, f"{steps:,}", *errors(read), f"{run.held_out:.1%}", f"{minutes:.1f}"]


def main() -> None:
    """Trains, measures, prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--only", nargs="+", choices=list(networks()), default=list(networks()))
    parser.add_argument("--out", type=Path, default=Path("runs/czech"))
    parser.add_argument("--into", type=Path, help=f"a text whose table, between {BEGIN} and {END}, is written anew")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    learned, heard = said()
    seconds = sum(soundfile.info(sound).duration for sound, _ in learned)
    done = args.out / "czech.json"
    found = json.loads(done.read_text()) if done.exists() else {}
    found = {**guesses(learned, heard), **found}
    for name in args.only:
        found[name] = measured(name, args.out, args.steps, learned, heard)
        done.write_text(json.dumps(found, indent=2, ensure_ascii=False))
        print(name, *found[name], flush=True)
    about = f"{len(heard)} lines held out of {len(learned) + len(heard):,}, {seconds / 60:.0f} minutes learned"
    head = (
        about,
        "parameters",
        "steps of 8",
        "wrong letters",
        "wrong words",
        "wrong letters, levels learned",
        "minutes",
    )
    rows = [head, ["---"] * len(head), *([name, *cells] for name, cells in found.items())]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    print(table)
    if args.into is not None:
        documents.put(args.into, BEGIN, END, table)


if __name__ == "__main__":
    main()
