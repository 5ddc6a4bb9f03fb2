"""Effect and cost of a direction: continuations under it, beside the same wish in the prompt.

    python examples/steering.py RATED.txt LEXICON.txt --model smollm2 --plain book.txt

RATED.txt has lines "number, mean rating, text" separated by tabs, and LEXICON.txt "word, mean rating"; both are in the
sdist of vaderSentiment 3.3.2, additional_resources/hutto_ICWSM_2014.tar.gz. The directions lead from the texts with the
lowest ratings to those with the highest: the difference of the means, and that of a linear probe. Measured are the mean
rating of the words in continuations of neutral beginnings, each with several seeds; how much that is more than the same
seeds give without a direction; the share of different words in the continuations of one seed; and what nats a token of
a text that has nothing to do with it are more. ± is half of the 95 % interval of a mean by Student's t, over
beginnings, seeds, or pieces of the text.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import documents
import torch
from scipy.special import stdtrit
from torch.nn import functional as F

import anyformer as af
from anyformer.data.models import find
from anyformer.explain import contrast
from anyformer.generate import generate
from anyformer.generate.steering import Direction, Steered

BEGINNINGS = ("The film", "My day at work was", "The new phone", "I think that the book", "The hotel by the lake",
              "When I heard the song, I", "The food in this town", "Our teacher", "The game", "On the train I",
              "The new song", "My neighbour", "The weather on Sunday", "The meeting", "This restaurant",
              "The last chapter")  # fmt: skip
WISH = {"toward": "This is wonderful, I love it. ", "away": "This is terrible, I hate it. "}
TOKENS, TEXTS, PLAIN, PIECE = 24, 64, 2048, 256
MARKS = "<!-- steering: begin -->", "<!-- steering: end -->"


def rated(file: Path) -> tuple[list[str], list[str]]:
    """The texts with the highest and with the lowest ratings."""
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    rows = sorted((row for row in rows if len(row) == 3 and 40 <= len(row[2]) <= 200), key=lambda row: float(row[1]))
    return [row[2] for row in rows[-TEXTS:]], [row[2] for row in rows[:TEXTS]]


def mood(text: str, lexicon: dict[str, float]) -> float:
    """The mean rating of the words that have one; of a text with none 0."""
    found = [lexicon[word] for word in re.findall(r"[a-z']+", text.lower()) if word in lexicon]
    return sum(found) / len(found) if found else 0.0


@torch.no_grad()
def nats(model: Any, text: list[int], before: list[int]) -> list[float]:
    """Nats a token of each piece of a text behind some words."""
    losses = []
    for start in range(0, len(text) - 1, PIECE):
        ids = torch.tensor([[*before, *text[start : start + PIECE]]])
        losses.append(float(F.cross_entropy(model(ids).logits[0, len(before) : -1], ids[0, len(before) + 1 :])))
    return losses


def spread(values: list[float]) -> float:
    """Half of the 95 % interval of a mean."""
    return float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / len(values) ** 0.5


def variety(said: list[str]) -> float:
    """The share of different words in some texts."""
    words = [word for text in said for word in re.findall(r"[a-z']+", text.lower())]
    return len(set(words)) / len(words)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rated", type=Path)
    parser.add_argument("lexicon", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--plain", type=Path, required=True)
    parser.add_argument("--at", default=None)
    parser.add_argument("--strengths", type=float, nargs="*", default=[-2, 1, 2, 4])
    parser.add_argument("--seeds", type=int, default=16, help="at least two")
    parser.add_argument("--doc", type=Path, help="the document between whose marks the table goes")
    options = parser.parse_args()
    lexicon = dict[str, float]()
    for line in options.lexicon.read_text(encoding="utf-8", errors="replace").splitlines():
        word, rating, *_ = line.split("\t")
        lexicon[word] = float(rating)
    model = af.load(find(options.model)).eval()
    lines, ways = list[str](), list[tuple[str, Direction | None, str]]()
    for by in ("mean", "probe"):
        made = contrast(model, *rated(options.rated), options.at, by)
        d = made.direction
        lines.append(f"{by}: {d.at}, right order of {made.told[d.at]:.1%} of unseen pairs; {made.length:.3g} long in a "
                     f"stream of {made.stream:.3g}.")  # fmt: skip
        ways += [(f"{by}, strength {s:+g}", Direction(d.at, d.vector, s), "") for s in options.strengths]
    ways = [("nothing", None, ""), *ways, *((f'"{wish.strip()}" in front', None, wish) for wish in WISH.values())]
    what = (
        f"| what, {len(BEGINNINGS)} beginnings × {options.seeds} seeds | mood of the words | more than nothing gives "
    )
    lines += ["", f"{what}| different words | nats more a token of another text |", "|---|" + 4 * "---|"]
    print("\n".join(lines), flush=True)
    plain = model.tokenizer.encode(options.plain.read_text(encoding="utf-8")[:40_000])[:PLAIN]
    base, before = nats(model, plain, []), list[float]()
    for name, direction, wish in ways:
        prompts = [wish + text for text in BEGINNINGS for _ in range(options.seeds)]
        seeds = [i % options.seeds for i in range(len(prompts))]
        said = generate(model, prompts, max_new_tokens=TOKENS, temperature=0.8, top_p=0.95, seed=seeds, steer=direction)
        moods = [mean(mood(text, lexicon) for text in said[i : i + options.seeds])
                 for i in range(0, len(said), options.seeds)]  # fmt: skip
        before = before or moods
        gained = [a - b for a, b in zip(moods, before, strict=True)]
        different = [variety(said[seed :: options.seeds]) for seed in range(options.seeds)]
        reads = model if direction is None else Steered(model, [direction])
        more = [a - b for a, b in zip(nats(reads, plain, model.tokenizer.encode(wish) if wish else []), base,
                                      strict=True)]  # fmt: skip
        effect = f"{mean(gained):+.2f} ± {spread(gained):.2f}" if any(gained) else ""
        cost = f"{mean(more):+.3f} ± {spread(more):.3f}" if any(more) else f"0, of {mean(base):.3f}"
        lines.append(
            f"| {name} | {mean(moods):+.2f} ± {spread(moods):.2f} | {effect} | {mean(different):.2f} ± "
            f"{spread(different):.2f} | {cost} |"
        )
        print(f"{lines[-1]}   {said[0]!r}", flush=True)
    if options.doc is not None:
        documents.put(options.doc, *MARKS, "\n".join(lines))


if __name__ == "__main__":
    main()
