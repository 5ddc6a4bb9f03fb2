"""MMDiT from nothing on 1,390 emoji and their names, in minutes: does a sample look like the emoji of that name?

    python examples/emoji.py data emoji                                       # writes emoji/train.jsonl, test.jsonl
    anyformer train --config examples/emoji.yaml --data emoji/train.jsonl --out runs/emoji
    python examples/emoji.py measure runs/emoji/step-000700/ema emoji --grid emoji.png

Noto's bitmaps with their Unicode names (OFL-1.1), fetched by apt once, 32 x 32 pixels on white; a tenth of the names is
held out. A sample of a name is compared with real pictures by the mean squared difference of pixels. Measured is the
rank of the right one: of a name to learn from, among all pictures to learn from (rank 1: it was memorised); of a
held-out name, among the held-out pictures. Beside it: the picture to learn from whose name shares most words (TF-IDF),
and any picture. N pictures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import documents
import numpy as np
from PIL import Image
from sklearn.feature_extraction.text import TfidfVectorizer

import anyformer as af
from anyformer.data.captions import emoji, split

SIDE, SEEN = 32, 139  # pixels; names to learn from that are asked for, about as many as are held out
GUIDANCE = (1.0, 2.0, 4.0)
BEGIN, END = "<!-- emoji -->", "<!-- end of emoji -->"


def data(folder: Path) -> None:
    """train.jsonl and test.jsonl with image and text."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for part, pairs in zip(("train", "test"), split(emoji()), strict=True):
        with (folder / f"{part}.jsonl").open("w", encoding="utf-8") as rows:
            for number, pair in enumerate(pairs):
                name, image = f"pictures/{part}-{number}.png", pair.image
                canvas = Image.new("RGB", (max(image.size),) * 2, "white")
                canvas.paste(image, ((canvas.width - image.width) // 2, (canvas.height - image.height) // 2))
                canvas.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(folder / name)
                rows.write(json.dumps({"image": name, "text": pair.text}) + "\n")


def read(folder: Path, part: str) -> tuple[np.ndarray, list[str]]:
    """The pictures of a part, (N, SIDE * SIDE * 3) from 0 to 1, and their names."""
    rows = [json.loads(line) for line in (folder / f"{part}.jsonl").read_text("utf-8").splitlines()]
    return flat(np.stack([np.asarray(Image.open(folder / row["image"])) for row in rows])), [r["text"] for r in rows]


def flat(pixels: np.ndarray) -> np.ndarray:
    """(N, SIDE, SIDE, 3) bytes -> (N, SIDE * SIDE * 3) from 0 to 1"""
    return pixels.reshape(len(pixels), -1) / 255.0


def ranks(samples: np.ndarray, right: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """For each sample, the place of the picture with the number `right` among all, the nearest first. (N,)"""
    far = (samples**2).sum(1)[:, None] - 2 * samples @ pictures.T + (pictures**2).sum(1)  # (N, pictures)
    return 1 + (far < far[np.arange(len(right)), right][:, None] - 1e-9).sum(1)


def line(name: str, seen: np.ndarray | None, held: np.ndarray) -> str:
    shares = ["–"] * 2 if seen is None else [f"{np.median(seen):.0f}", f"{(seen == 1).mean():.2f}"]
    return f"| {name} | {shares[0]} | {shares[1]} | {np.median(held):.0f} | {(held <= 14).mean():.2f} |"


def measure(run: Path, folder: Path, grid: Path | None, into: Path | None) -> None:
    """Prints the table; writes it into a text, and samples into a picture, where asked."""
    (pictures, names), (tests, wanted) = read(folder, "train"), read(folder, "test")
    asked = np.random.default_rng(0).permutation(len(names))[:SEEN]
    texts, model = [names[i] for i in asked] + wanted, af.load(run)
    table = [
        f"| | median rank of {len(names):,}, names to learn from | rank 1 | median rank of {len(wanted)}, held-out "
        "names | among the first tenth |",
        "|---|---|---|---|---|",
    ]
    for guidance in GUIDANCE:
        drawn = flat(af.paint(model, texts, steps=25, guidance=guidance))
        seen, held = drawn[: len(asked)], drawn[len(asked) :]
        found = ranks(seen, asked, pictures), ranks(held, np.arange(len(wanted)), tests)
        table.append(line(f"MMDiT, guidance {guidance:g}", *found))
    words = TfidfVectorizer(token_pattern=r"\w+").fit(names)
    like = (words.transform(wanted) @ words.transform(names).T).toarray().argmax(1)
    table.append(
        line("the picture with the most similar name", None, ranks(pictures[like], np.arange(len(like)), tests))
    )
    some = pictures[np.random.default_rng(1).permutation(len(names))]
    anything = ranks(some[: len(asked)], asked, pictures), ranks(some[: len(wanted)], np.arange(len(wanted)), tests)
    table.append(line("any picture", *anything))
    print("\n".join(table))
    if into is not None:
        documents.put(into, BEGIN, END, "\n".join(table))
    if grid is not None:
        shown = af.paint(model, [*texts[:10], *wanted[:10]], steps=50, guidance=2.0, seed=1)
        real = [(np.stack([pictures[i] for i in asked[:10]])), tests[:10]]
        rows = [shown[:10], *(255 * r.reshape(-1, SIDE, SIDE, 3) for r in real[:1]), shown[10:],
                255 * real[1].reshape(-1, SIDE, SIDE, 3)]  # fmt: skip
        Image.fromarray(np.vstack([np.hstack(list(row)) for row in rows]).round().astype(np.uint8)).save(grid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("data", "measure"))
    parser.add_argument("paths", type=Path, nargs="+", help="the folder of pictures; or a run and that folder")
    parser.add_argument("--grid", type=Path, help="a picture of samples, each row above real pictures of these names")
    parser.add_argument("--into", type=Path, help=f"a text whose table, between {BEGIN} and {END}, is written anew")
    given = parser.parse_args()
    if given.what == "data":
        data(given.paths[0])
    else:
        measure(given.paths[0], given.paths[1], given.grid, given.into)


if __name__ == "__main__":
    main()
