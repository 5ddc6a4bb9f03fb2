"""LXMERT from scratch on questions about emoji in a grid, beside models that miss the picture or the question.

    python examples/questions.py --out runs/questions --doc docs/pictures.md     # writes the table into the document

Noto's emoji of eight kinds (Debian's fonts-noto-color-emoji, 10 MB, OFL-1.1, fetched by apt once) lie in the cells of a
4 x 4 grid, at most one in each, in sizes of 10 to 15 pixels on a canvas of one colour. The cells are the objects of a
picture: a histogram of 64 colours each, and a box. Questions and answers are made from the layout:

    is there a banana              yes, no                  as many of each
    how many banana                0, 1, 2, 3               drawn from the numbers of the scene
    in which column is the banana  first … fourth           asked where there is one banana
    what is left of the banana     one of the kinds         asked where there is one, with a neighbour on its left

B batch, T words, N = 16 cells, F = 64 colours, S scenes.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import documents
import numpy as np
import torch
from PIL import Image
from torch import Tensor

import anyformer as af
from anyformer.core.init import initialise
from anyformer.data.captions import emoji
from anyformer.train import Settings, fit, objectives

KINDS = ("automobile", "banana", "cactus", "cherries", "octopus", "penguin", "rocket", "tulip")
ROW, CELL, LEVELS = 4, 16, 4  # cells of a row, pixels of a cell's side, shades of each primary colour
SMALLEST, LARGEST = 10, 15
NOTHING = len(KINDS)  # in a layout
COLUMNS = ("first", "second", "third", "fourth")
ASKED = {
    "is there": "is there a {}",
    "how many": "how many {}",
    "which column": "in which column is the {}",
    "left of": "what is left of the {}",
}
ANSWERS = ("no", "yes", "0", "1", "2", "3", *COLUMNS, *KINDS)
PAD, START = 0, 1
WORDS = sorted({word for text in ASKED.values() for word in text.split() if word != "{}"} | set(KINDS))
IDS = {word: number for number, word in enumerate(WORDS, START + 1)}
TIME = 1 + max(len(text.split()) for text in ASKED.values())
MARKS = "<!-- questions: begin -->", "<!-- questions: end -->"

Inputs = dict[str, Tensor]


def glyphs() -> list[Any]:
    """The emoji, without the white around them."""
    named = {one.text: one.image for one in emoji()}
    made = []
    for kind in KINDS:
        rows, columns = np.nonzero((np.asarray(named[kind]) != 255).any(2))
        made.append(named[kind].crop((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)))
    return made


def layouts(count: int, noise: np.random.Generator) -> np.ndarray:
    """(S, 16): the kind in each cell, or NOTHING. A scene has 0 to 3 of each kind, 0 in half of the cases."""
    made = np.full((count, ROW * ROW), NOTHING)
    for cells in made:
        numbers = noise.choice(4, len(KINDS), p=(0.5, 0.3, 0.1, 0.1))
        kinds = noise.permutation(np.repeat(np.arange(len(KINDS)), numbers))[: ROW * ROW]
        cells[noise.permutation(ROW * ROW)[: len(kinds)]] = kinds
    return made


def canvas(cells: Sequence[int], noise: np.random.Generator, drawings: Sequence[Any]) -> Any:
    """The picture of a layout."""
    image = Image.new("RGB", (ROW * CELL, ROW * CELL), tuple(noise.integers(160, 256, 3).tolist()))
    for place, kind in enumerate(cells):
        if kind == NOTHING:
            continue
        glyph, side = drawings[kind], int(noise.integers(SMALLEST, LARGEST + 1))
        width, height = (max(4, round(n * side / max(glyph.size))) for n in glyph.size)
        left, top = (int(noise.integers(0, CELL - n + 1)) for n in (width, height))
        small = glyph.resize((width, height), Image.Resampling.BICUBIC)
        opaque = Image.fromarray(((np.asarray(small) < 250).any(2) * 255).astype(np.uint8))
        image.paste(small, (place % ROW * CELL + left, place // ROW * CELL + top), opaque)
    return image


def features(images: Sequence[Any]) -> Tensor:
    """(S, N, F): square roots of the shares of a cell's pixels with each colour, times the root of F; 0 for the
    commonest colour of the picture, which is that of the canvas."""
    pixels = np.stack([np.asarray(image) for image in images]).astype(int) * LEVELS // 256
    colours = torch.from_numpy(pixels @ (LEVELS**2, LEVELS, 1)).view(-1, ROW, CELL, ROW, CELL)
    cells = colours.transpose(2, 3).reshape(len(images), ROW * ROW, CELL**2)  # (S, N, pixels)
    shares = torch.zeros(*cells.shape[:2], LEVELS**3).scatter_add_(2, cells, torch.full(cells.shape, CELL**-2.0))
    ground = shares.sum(1, keepdim=True).argmax(2, keepdim=True).expand(-1, ROW * ROW, 1)
    return (LEVELS**3 * shares.scatter(2, ground, 0.0)).sqrt()


def corners() -> Tensor:
    """(N, 4): left, top, right and bottom of each cell, from 0 to 1."""
    at = [(place % ROW, place // ROW) for place in range(ROW * ROW)]
    return torch.tensor([(x, y, x + 1, y + 1) for x, y in at]) / ROW


def question(cells: np.ndarray, asked: str, noise: np.random.Generator) -> tuple[int, str] | None:
    """The kind that is asked about, and the answer; None if this cannot be asked about this scene."""
    numbers, places = np.bincount(cells, minlength=NOTHING + 1)[:NOTHING], [*cells]
    if asked == "is there":
        possible = np.flatnonzero((numbers > 0) == (noise.random() < 0.5))
    elif asked == "how many":
        possible = np.flatnonzero(numbers == noise.choice(np.unique(numbers)))
    else:
        possible = np.flatnonzero(numbers == 1)
    if asked == "left of":
        at = [(kind, places.index(kind)) for kind in possible]
        possible = np.array([kind for kind, place in at if place % ROW and places[place - 1] != NOTHING])
    if not len(possible):
        return None
    kind = int(noise.choice(possible))
    if asked == "is there":
        answer = "yes" if numbers[kind] else "no"
    elif asked == "how many":
        answer = str(numbers[kind])
    elif asked == "which column":
        answer = COLUMNS[places.index(kind) % ROW]
    else:
        answer = KINDS[places[places.index(kind) - 1]]
    return kind, answer


def tokens(asked: str, kind: int) -> list[int]:
    """A start, the words, and padding."""
    ids = [START, *(IDS[word] for word in ASKED[asked].format(KINDS[kind]).split())]
    return ids + [PAD] * (TIME - len(ids))


class Questions:
    """Scenes, and what can be asked about them."""

    def __init__(self, count: int, seed: int, drawings: Sequence[Any]):
        noise = np.random.default_rng(seed)
        self.cells = layouts(count, noise)
        self.feats = features([canvas(cells, noise, drawings) for cells in self.cells])  # (S, N, F)
        self.pos = corners()

    def draw(self, count: int, seed: Sequence[int]) -> tuple[Inputs, list[str]]:
        """As many questions with their answers, of each sort in turn, about drawn scenes; and their sorts."""
        noise, rows = np.random.default_rng(seed), list[tuple[int, list[int], int]]()
        sorts = [list(ASKED)[number % len(ASKED)] for number in range(count)]
        for asked in sorts:
            found = None
            while found is None:
                scene = int(noise.integers(len(self.cells)))
                found = question(self.cells[scene], asked, noise)
            rows.append((scene, tokens(asked, found[0]), ANSWERS.index(found[1])))
        scenes, ids, labels = (torch.tensor(column) for column in zip(*rows, strict=True))
        pos = self.pos.expand(count, -1, -1)
        return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "visual_feats": self.feats[scenes],
                "visual_pos": pos, "labels": labels}, sorts  # fmt: skip


def whole(batch: Inputs) -> Inputs:
    """Question and objects."""
    return batch


def unseen(batch: Inputs) -> Inputs:
    """Without the picture: one object, all of whose numbers are 0."""
    blank = {name: torch.zeros_like(batch[name][:, :1]) for name in ("visual_feats", "visual_pos")}
    return {**batch, **blank}


def unasked(batch: Inputs) -> Inputs:
    """Without the question: its start alone."""
    return {**batch, **{name: batch[name][:, :1] for name in ("input_ids", "attention_mask")}}


def learned(learn: Questions, shown: Callable[[Inputs], Inputs], o: argparse.Namespace, name: str) -> Any:
    """A model after its training. The objective is `classification`: -log p(answer), by the head `answer`."""
    model = af.build("lxmert", "mini", seed=o.seed, dim=o.dim, hidden=4 * o.dim, language=1, vision=1, cross=2,
                     vocab=START + 1 + len(WORDS), context=TIME, features=LEVELS**3, answers=len(ANSWERS),
                     dropout=0.0, attention_dropout=0.0)  # fmt: skip
    initialise(model, seed=o.seed, scheme="xavier")
    settings = Settings(steps=o.steps, lr=o.lr, warmup=o.steps // 10, weight_decay=0.01, seed=o.seed)
    fit(model, lambda number: shown(learn.draw(o.batch, (o.seed, number))[0]), objectives.classification, settings,
        o.out / name)  # fmt: skip
    return model.eval()


def right(model: Any, batch: Inputs) -> np.ndarray:
    """(B,): whether the likeliest answer is the right one."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        return (model(**inputs).heads["answer"].argmax(-1) == batch["labels"]).numpy()


def commonest(learn: Questions, test: Inputs, sorts: Sequence[str], seed: int) -> np.ndarray:
    """(B,): whether the commonest answer to a question of this sort is the right one."""
    batch, asked = learn.draw(4000, (seed, 0))
    counts: dict[str, Counter[int]] = {name: Counter() for name in ASKED}
    for name, label in zip(asked, batch["labels"].tolist(), strict=True):
        counts[name][label] += 1
    best = {name: count.most_common(1)[0][0] for name, count in counts.items()}
    return np.array([best[name] == label for name, label in zip(sorts, test["labels"].tolist(), strict=True)])


def main() -> None:
    """Prints a table, and writes it between the marks of a document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/questions"))
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--test", type=int, default=2000, help="questions about 1,000 other scenes")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--doc", type=Path, help="a document with the marks of the table")
    o = parser.parse_args()
    if o.doc is not None and (not o.doc.is_file() or not all(mark in o.doc.read_text() for mark in MARKS)):
        parser.error(f"--doc {o.doc}: there is no document with the lines {' and '.join(MARKS)}")
    began, drawings = time.process_time(), glyphs()
    learn, other = Questions(o.scenes, o.seed, drawings), Questions(1000, o.seed + 1000, drawings)
    test, sorts = other.draw(o.test, (o.seed + 1000, 0))
    rows, count = {"commonest answer of each sort": commonest(learn, test, sorts, o.seed)}, 0
    for name, shown in {"question only": unseen, "objects only": unasked, "LXMERT": whole}.items():
        model = learned(learn, shown, o, name.replace(" ", "-"))
        rows[name] = right(model, shown(test))
        count = sum(p.numel() for p in model.parameters())
        print(f"{name}: {rows[name].mean():.3f}", flush=True)
    lines = [f"| | {' | '.join(ASKED)} | all |", "|---" * (len(ASKED) + 2) + "|"]
    for name, row in rows.items():
        parts = [row[np.array(sorts) == asked].mean() for asked in ASKED]
        lines.append(f"| {name} | {' | '.join(f'{part:.3f}' for part in [*parts, row.mean()])} |")
    minutes = (time.process_time() - began) / 60
    lines += ["", f"Seed {o.seed}: {count:,} parameters, {o.steps:,} steps of {o.batch} each, {o.scenes:,} scenes; "
              f"{o.test:,} questions about 1,000 other scenes; {minutes:.1f} minutes of the processor."]  # fmt: skip
    print("\n".join(lines))
    if o.doc is not None:
        documents.put(o.doc, *MARKS, "\n".join(lines))


if __name__ == "__main__":
    main()
