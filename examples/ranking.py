"""DALL-E's candidates, ranked by a CLIP: is the first one nearer to what was asked for than any of them?

    python examples/emoji.py data emoji
    anyformer train --model dvae --data emoji/train.jsonl --steps 350 --batch 48 --lr 1e-3 --out runs/codes
    anyformer train --model dalle --data emoji/train.jsonl --codes runs/codes --overrides.dim 96 --overrides.depth 3 \\
        --overrides.head_dim 24 --steps 300 --batch 48 --lr 1e-3 --out runs/dalle
    anyformer train --model clip --data emoji/train.jsonl --vocab 512 --init xavier --steps 250 --batch 64 \\
        --lr 1e-3 --out runs/clip                                      # and with --seed 1 --out runs/judge
    python examples/ranking.py runs/dalle runs/clip runs/judge emoji --doc docs/dalle.md --grid docs/dalle-ranked.png

Emoji and their names as in examples/emoji.py; a tenth of the names is held out. Of each name that is asked for, 16
pictures are drawn, and a CLIP that learned from the same pictures ranks them. Two judges look at the first of them, the
last, and one by chance: the rank of the right picture by the mean squared difference of pixels, and the rank of the
right name by a second CLIP, of another seed. The ranking CLIP itself is no judge: it is asked what it was asked before.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import documents
import numpy as np
from emoji import SIDE, flat, ranks, read
from PIL import Image

import anyformer as af
from anyformer.data.models import find
from anyformer.generate import embed

CANDIDATES, GUIDANCE = 16, 2.0
NAMES, SHOWN = 142, 8  # of each part at most, as many as are held out; in the picture
BEGIN, END = "<!-- ranking: begin -->", "<!-- ranking: end -->"


def candidates(dalle: Any, clip: Any, names: list[str]) -> np.ndarray:
    """The pictures of each name, the most similar first, (names, CANDIDATES, SIDE, SIDE, 3)."""
    made = af.paint(dalle, names, guidance=GUIDANCE, count=CANDIDATES, candidates=CANDIDATES, rank=clip)
    return made.reshape(len(names), CANDIDATES, *made.shape[1:])


def named(judge: Any, pictures: np.ndarray, names: list[str]) -> np.ndarray:
    """The rank of the right name, of all `names`, for a picture of each, (names,)."""
    seen, said = (embed(judge, list(items)).float().numpy() for items in (pictures, names))
    return ranks(seen, np.arange(len(names)), said)


def measured(made: np.ndarray, real: np.ndarray, names: list[str], judge: Any) -> list[str]:
    """The rows of the table for the names of one part."""
    right, noise = np.arange(len(names)), np.random.default_rng(0)
    chance = made[right, noise.integers(CANDIDATES, size=len(names))]
    pictures = (real * 255).round().astype(np.uint8).reshape(-1, SIDE, SIDE, 3)
    shown = {"the first by CLIP": made[:, 0], "one by chance": chance, "the last by CLIP": made[:, -1]}
    shown |= {"another name's first": np.roll(made[:, 0], 1, 0), "the real picture": pictures}
    rows = []
    for what, some in shown.items():
        pixels, words = ranks(flat(some), right, real), named(judge, some, names)
        tenth = len(names) // 10
        rows.append(
            f"| {what} | {np.median(pixels):.0f} | {(pixels <= tenth).mean():.2f} | {np.median(words):.0f} "
            f"| {(words <= tenth).mean():.2f} |"
        )
    return rows


def grid(made: np.ndarray, real: np.ndarray) -> Image.Image:
    """A column for each name: the real picture, the first three by CLIP, and the last three."""
    rows = [(real * 255).round().reshape(-1, SIDE, SIDE, 3), *(made[:, i] for i in (0, 1, 2, -3, -2, -1))]
    whole = np.vstack([np.hstack([np.pad(p, ((2, 2), (2, 2), (0, 0)), constant_values=255) for p in r]) for r in rows])
    image = Image.fromarray(whole.astype(np.uint8))
    return image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST)


def main() -> None:
    """Prints a table, writes it between the marks of a document, and draws some candidates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dalle", help="the folder of its run, and in this order those of the others")
    parser.add_argument("clip")
    parser.add_argument("judge", help="a CLIP of another seed")
    parser.add_argument("pictures", type=Path, help="the folder that emoji.py wrote")
    parser.add_argument("--names", type=int, help=f"as many of each part at most; {NAMES} by default")
    parser.add_argument("--doc", type=Path, help="a document with the marks of the table")
    parser.add_argument("--grid", type=Path, help="where to draw candidates of some names to learn from")
    o = parser.parse_args()
    dalle, clip, judge = (af.load(find(run)) for run in (o.dalle, o.clip, o.judge))
    lines = list[str]()
    for part, title in (("train", "names to learn from"), ("test", "held-out names")):
        real, names = read(o.pictures, part)
        chosen = np.random.default_rng(0).permutation(len(names))[: o.names or NAMES]
        real, names = real[chosen], [names[i] for i in chosen]
        made = candidates(dalle, clip, names)
        lines += ["", f"| {len(names)} {title} | median rank of the right picture | in the first tenth "
                  "| median rank of the right name | in the first tenth |", "|---|---|---|---|---|",
                  *measured(made, real, names, judge)]  # fmt: skip
        if o.grid is not None and part == "train":
            grid(made[:SHOWN], real[:SHOWN]).save(o.grid, optimize=True)
    print("\n".join(lines[1:]))
    if o.doc is not None:
        documents.put(o.doc, BEGIN, END, "\n".join(lines[1:]))


if __name__ == "__main__":
    main()
