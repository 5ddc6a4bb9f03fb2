"""Effect and cost of a direction: continuations under it, beside the same wish in the prompt.

    python examples/steering.py RATED.txt LEXICON.txt --model smollm2 --plain book.txt

RATED.txt has lines "number, mean rating, text" separated by tabs, and LEXICON.txt "word, mean rating"; both are in the
sdist of vaderSentiment 3.3.2, additional_resources/hutto_ICWSM_2014.tar.gz. The direction leads from the texts with the
lowest ratings to those with the highest. Measured are the mean rating of the words in 48 continuations of neutral
beginnings, the share of different words in them, and nats a token of a text that has nothing to do with it.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import anyformer as af
from anyformer.data.models import find
from anyformer.explain import contrast
from anyformer.generate import generate
from anyformer.generate.steering import Direction, Steered

BEGINNINGS = ("The film", "My day at work was", "The new phone", "I think that the book", "The hotel by the lake",
              "When I heard the song, I", "The food in this town", "Our teacher")  # fmt: skip
WISH = {"toward": "This is wonderful, I love it. ", "away": "This is terrible, I hate it. "}
SEEDS, TOKENS, TEXTS, PLAIN = 6, 24, 64, 2048


def rated(file: Path) -> tuple[list[str], list[str]]:
    """The texts with the highest and with the lowest ratings."""
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    rows = sorted((row for row in rows if len(row) == 3 and 40 <= len(row[2]) <= 200), key=lambda row: float(row[1]))
    return [row[2] for row in rows[-TEXTS:]], [row[2] for row in rows[:TEXTS]]


def mood(texts: list[str], lexicon: dict[str, float]) -> float:
    """The mean rating of the words that have one, a text with none counts 0."""
    each = []
    for text in texts:
        found = [lexicon[word] for word in re.findall(r"[a-z']+", text.lower()) if word in lexicon]
        each.append(sum(found) / len(found) if found else 0.0)
    return sum(each) / len(each)


@torch.no_grad()
def nats(model: Any, text: list[int], before: list[int]) -> float:
    """Nats a token of a text, in pieces of 256 behind some words."""
    losses = []
    for start in range(0, len(text) - 1, 256):
        ids = torch.tensor([[*before, *text[start : start + 256]]])
        losses.append(F.cross_entropy(model(ids).logits[0, len(before) : -1], ids[0, len(before) + 1 :]))
    return float(torch.stack(losses).mean())


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rated", type=Path)
    parser.add_argument("lexicon", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--plain", type=Path, required=True)
    parser.add_argument("--at", default=None)
    parser.add_argument("--strengths", type=float, nargs="*", default=[-4, -2, -1, 0, 1, 2, 4])
    options = parser.parse_args()
    lexicon = dict[str, float]()
    for line in options.lexicon.read_text(encoding="utf-8", errors="replace").splitlines():
        word, rating, *_ = line.split("\t")
        lexicon[word] = float(rating)
    model = af.load(find(options.model)).eval()
    start = time.monotonic()
    made = contrast(model, *rated(options.rated), options.at)
    d = made.direction
    print(f"{d.at}: right order of {made.told[d.at]:.1%} of unseen pairs; {made.length:.3g} long in a stream of "
          f"{made.stream:.3g}; {time.monotonic() - start:.0f} s")  # fmt: skip
    plain = model.tokenizer.encode(options.plain.read_text(encoding="utf-8")[:40_000])[:PLAIN]
    ways: list[tuple[str, Direction | None, str]] = [
        (f"{s:+g}", Direction(d.at, d.vector, s), "") for s in options.strengths
    ]
    ways += [(f"the words {wish.strip()!r}", None, wish) for wish in WISH.values()]
    print("strength  mood of the words  different words  nats a token of another text")
    for name, direction, wish in ways:
        prompts = [wish + text for text in BEGINNINGS for _ in range(SEEDS)]
        seeds = [i % SEEDS for i in range(len(prompts))]
        said = generate(model, prompts, max_new_tokens=TOKENS, temperature=0.8, top_p=0.95, seed=seeds, steer=direction)
        words = [word for text in said for word in re.findall(r"[a-z']+", text.lower())]
        reads = model if direction is None else Steered(model, [direction])
        cost = nats(reads, plain, model.tokenizer.encode(wish) if wish else [])
        print(
            f"{name}  {mood(said, lexicon):+.2f}  {len(set(words)) / len(words):.2f}  {cost:.3f}   {said[0]!r}",
            flush=True,
        )


if __name__ == "__main__":
    main()
