"""CLIP from nothing on 2,175 small pictures with captions, in minutes: which caption belongs to which picture?

    python examples/captions.py data captions                                # writes captions/train.jsonl, test.jsonl
    anyformer train --config examples/captions.yaml --data captions/train.jsonl --out runs/captions
    python examples/captions.py measure runs/captions captions               # prints the table

Tux Paint's stamps (GPL-2) and Noto's emoji with their Unicode names (OFL-1.1), fetched by apt once, never committed. A
caption is to learn from or to measure on, never both. Each picture to learn from comes in several versions: moved,
larger or smaller, mirrored. Measured are 208 captions with one picture each: how often the right one of 208 is the
first (R@1) or among the first five (R@5), both ways; beside chance, and beside a linear map (ridge) from histograms of
colours to TF-IDF of words, its strength chosen on a tenth of what is learned from. N pictures, W words, E width.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

from anyformer.data.captions import captions, split

SIDE, VERSIONS = 64, 8  # pixels of what is written; versions of each picture to learn from
COLOURS = 6  # steps of red, green and blue in a histogram
STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # of the ridge


def data(folder: Path) -> None:
    """train.jsonl and test.jsonl with image and text."""
    rng = random.Random(0)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for part, pairs in zip(("train", "test"), split(captions()), strict=True):
        with (folder / f"{part}.jsonl").open("w", encoding="utf-8") as rows:
            for number, pair in enumerate(pairs):
                for version in range(VERSIONS if part == "train" else 1):
                    name = f"pictures/{part}-{number}-{version}.png"
                    squared(pair.image, rng if version else None).save(folder / name)
                    rows.write(json.dumps({"image": name, "text": pair.text.lower()}) + "\n")


def squared(image: Any, rng: random.Random | None) -> Image.Image:
    """A picture in the middle of a white square; or moved, scaled and mirrored by chance."""
    canvas, scale, shift = Image.new("RGB", (SIDE, SIDE), "white"), 1.0, (0.0, 0.0)
    if rng is not None:
        scale, shift = rng.uniform(0.75, 1.15), (rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1))
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image
    factor = scale * SIDE / max(image.size)
    image = image.resize([max(1, round(edge * factor)) for edge in image.size])
    canvas.paste(image, tuple(round((SIDE - edge) / 2 + s * SIDE) for edge, s in zip(image.size, shift, strict=True)))
    return canvas


def read(folder: Path, part: str) -> tuple[list[Path], list[str]]:
    """The pictures of a part, the first version of each, and their captions."""
    rows = [json.loads(line) for line in (folder / f"{part}.jsonl").read_text("utf-8").splitlines()]
    rows = [row for row in rows if row["image"].endswith("-0.png")]
    return [folder / row["image"] for row in rows], [row["text"] for row in rows]


def recall(scores: np.ndarray) -> list[float]:
    """R@1 and R@5 of rows that each look for the column of their number, then of the columns. Shape: (N, N)."""
    shares = []
    for table in (scores, scores.T):
        right = table.diagonal()[:, None]
        before = (table > right).sum(1) + ((table == right).sum(1) - 1) / 2  # ties: in the middle
        shares += [float((before < k).mean()) for k in (1, 5)]
    return shares


def linear(folder: Path) -> np.ndarray:
    """The scores of a linear map from colours to words, (N, N)."""
    (seen, captions), (pictures, texts) = read(folder, "train"), read(folder, "test")
    words = TfidfVectorizer(token_pattern=r"\w+").fit(captions)
    x, y, held = histograms(seen), words.transform(captions).toarray(), np.arange(len(seen)) % 10 == 0

    def scores(strength: float, learn: np.ndarray, x_: np.ndarray, y_: np.ndarray) -> np.ndarray:
        guess = Ridge(alpha=strength).fit(x[learn], y[learn]).predict(x_)  # (N, W)
        return guess / np.linalg.norm(guess, axis=1, keepdims=True) @ y_.T

    best = max(STRENGTHS, key=lambda s: sum(recall(scores(s, ~held, x[held], y[held]))))
    return scores(best, np.ones(len(x), bool), histograms(pictures), words.transform(texts).toarray())


def histograms(pictures: list[Path]) -> np.ndarray:
    """The roots of the shares of COLOURS^3 colours, (N, COLOURS^3)."""
    rows = []
    for path in pictures:
        steps = np.asarray(Image.open(path)).reshape(-1, 3).astype(int) * COLOURS // 256
        counts = np.bincount(steps @ (COLOURS**2, COLOURS, 1), minlength=COLOURS**3)
        rows.append(np.sqrt(counts / counts.sum()))
    return np.array(rows)


def towers(run: Path, folder: Path) -> np.ndarray:
    """The scores of a trained model, (N, N)."""
    import anyformer as af
    from anyformer.generate import embed

    model = af.load(run)
    pictures, texts = read(folder, "test")
    return (embed(model, pictures) @ embed(model, texts).mT).numpy()  # of length 1


def measure(run: Path, folder: Path) -> None:
    """Prints the table."""
    count = len(read(folder, "test")[0])
    rows = {"chance": [k / count for k in (1, 5, 1, 5)], "colours to words": recall(linear(folder))}
    rows["CLIP"] = recall(towers(run, folder))
    print("| | picture to text R@1 | R@5 | text to picture R@1 | R@5 |\n|---|---|---|---|---|")
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{v:.3f}" for v in values) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("data", "measure"))
    parser.add_argument("paths", type=Path, nargs="+")
    given = parser.parse_args()
    (data if given.what == "data" else measure)(*given.paths)
