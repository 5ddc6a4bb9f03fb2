"""Why a model said that: reviews, clothes, speech, sunspots and a cart with a pole, each by `anyformer explain`.

    python examples/explained.py --out runs/explained [--only reviews speech] [--doc docs/understanding.md]

Small models are trained first, and their data fetched once; each report is a page in --out, with a PNG beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import os
import random
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data as texts
import documents
import images
import torch
from PIL import Image

import anyformer as af
from anyformer.cli import main as command
from anyformer.data.debian import fetch
from anyformer.data.models import find
from anyformer.data.speech import clips
from anyformer.generate import classify
from anyformer.train import finetune, train

MARKS = "<!-- explained: begin -->", "<!-- explained: end -->"
NAMES = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
QUIET: dict[str, Any] = {"quiet": True, "eval_every": 0}
Cases = list[tuple[str, list[str]]]


def reviews(out: Path) -> Cases:
    """MiniLM learns whether a film review is good; held-out sentences that it gets right and wrong."""
    rows = [(t.strip(), s) for t, s in texts.rated("movieReviewSnippets") if abs(s) > 1 and 40 < len(t) < 110]
    random.Random(0).shuffle(rows)  # they come sorted: praise first
    with (out / "reviews.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows((t, "good" if s > 0 else "bad") for t, s in rows[:1200])
    done = finetune("minilm", out / "reviews.csv", out=out / "reviews", method="full", epochs=1, lr=5e-5, quiet=True)
    print(f"reviews: {done.before} -> {done.after}", file=sys.stderr)
    model, held = af.load(done.checkpoint).eval(), rows[-100:]
    found = classify(model, [t for t, _ in held])
    sure = [(max(scores.values()), max(scores, key=scores.__getitem__), t, s > 0)
            for scores, (t, s) in zip((dict(f) for f in found), held, strict=True)]  # fmt: skip
    sure.sort(reverse=True)
    cases: Cases = []
    for what, fits in (("right", True), ("wrong", False)):
        text, said = next((t, label) for _, label, t, good in sure if ((label == "good") == good) == fits)
        other = "bad" if said == "good" else "good"
        cases.append((f"MiniLM on a review, {what}", [str(done.checkpoint), text, "--for", f"{said} - {other}"]))
    return cases


def clothes(out: Path) -> Cases:
    """A small ViT learns Fashion-MNIST; a held-out picture that it gets right, and one that it does not."""
    folder = fetch("dataset-fashion-mnist", f"{images.FOLDER}/.*[.]gz", 31, "MIT") / images.FOLDER
    for part, count in (("train", 3000), ("t10k", 200)):
        pixels, labels = images.read(folder, part)
        for i in range(count):
            place = out / part / NAMES[int(labels[i])] / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(((pixels[i, 0] + 1) * 127.5).round().byte().numpy()).save(place)
    sizes = {"image": 28, "channels": 1, "patch": 4, "dim": 64, "depth": 3, "hidden": 128}
    done = train("vit", "tiny", task="images", data=out / "train", steps=400, batch=32, lr=1e-3, out=out / "clothes",
                 overrides=sizes, **QUIET)  # fmt: skip
    print(f"clothes: {done.held_out}", file=sys.stderr)
    model, cases = af.load(done.checkpoint).eval(), list[tuple[str, list[str]]]()
    files = sorted((out / "t10k").glob("*/*.png"))
    best = [max(dict(f).items(), key=lambda pair: pair[1])[0] for f in classify(model, files)]
    for what, fits in (("right", True), ("wrong", False)):
        file, said = next((f, b) for f, b in zip(files, best, strict=True) if (f.parent.name == b) == fits)
        why = ["--for", f"{said} - {file.parent.name}"] if not fits else []
        cases.append((f"ViT on a {file.parent.name}, {what}", [str(done.checkpoint), str(file), *why]))
    return cases


def speech(out: Path) -> Cases:
    """Whisper writes a clip; which frames made one of its words?"""
    clip = Path(shutil.copy(clips()[0].path, out / "dashwood.wav"))
    words = af.generate.transcribe(af.load(find("whisper-tiny.en")).eval(), str(clip)).text.split()
    before, word = " ".join(words[:4]), words[4]
    return [(f'Whisper on "{word}"', ["whisper-tiny.en", str(clip), "--answer", f" {before}", "--for", f" {word}",
                                      "--method", "relevance"])]  # fmt: skip


def sunspots(out: Path) -> Cases:
    """Informer forecasts the next year."""
    import statsmodels.api as sm

    values = [float(v) for v in sm.datasets.sunspots.load_pandas().data["SUNACTIVITY"]]
    for name, rows in (("sunspots", values), ("until 1990", values[:-18])):
        lines = "\n".join(f"{1700 + i}-01-01,{v}" for i, v in enumerate(rows))
        (out / f"{name}.csv").write_text(f"time,target\n{lines}\n", encoding="utf-8")
    done = train("informer", "tiny", task="forecast", data=out / "sunspots.csv", steps=600, batch=16,
                 out=out / "forecast", **QUIET)  # fmt: skip
    return [("Informer on next year's sunspots", [str(done.checkpoint), str(out / "until 1990.csv")])]


def cart(out: Path) -> Cases:
    """A Decision Transformer pushes the cart: which states, actions and returns made the last choice?"""
    import decisions

    decisions.collect("CartPole-v1", decisions.pole, 60, out / "cart.jsonl")
    done = train("decision_transformer", "tiny", task="act", data=out / "cart.jsonl", context=10, steps=400, batch=32,
                 lr=2e-3, out=out / "cart", **QUIET)  # fmt: skip
    return [
        ("a Decision Transformer's push", [str(done.checkpoint), str(out / "cart.jsonl"), "--for", "LABEL_1 - LABEL_0"])
    ]


PARTS: dict[str, Callable[[Path], Cases]] = {part.__name__: part for part in (reviews, clothes, speech, sunspots, cart)}


def shown(title: str, words: list[str], page: Path) -> str:
    """The command and what it prints, as they stand in a document."""
    line, said = ["explain", *words], io.StringIO()
    with contextlib.redirect_stdout(said):
        if command([*line, "--out", str(page), "--beside", "png"]):
            raise SystemExit(f"anyformer {shlex.join(line)}: failed")
    printed = "\n".join(row.rstrip() for row in said.getvalue().splitlines()[:-2])
    return f"{title[0].upper()}{title[1:]}:\n\n```text\n$ anyformer {shlex.join(line)}\n{printed}\n```"


def main() -> None:
    """Trains, explains, and prints the blocks of the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--doc", type=Path, help="the document between whose marks the blocks go")
    o = parser.parse_args()
    torch.set_num_threads(1)
    doc = None if o.doc is None else o.doc.resolve()
    o.out.mkdir(parents=True, exist_ok=True)
    os.chdir(o.out)
    blocks = list[str]()
    for name in o.only:
        for number, (title, words) in enumerate(PARTS[name](Path())):
            blocks.append(shown(title, words, Path(f"{name}-{number}.html")))
            print(blocks[-1], flush=True)
    if doc is not None:
        documents.put(doc, *MARKS, "\n\n".join(blocks))


if __name__ == "__main__":
    main()
