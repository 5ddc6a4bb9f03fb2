"""A preference that a program can check: answers that end with their source. Before and after `align`.

    python examples/preferences.py runs/preferences --doc docs/alignment.md     # and writes the table into the document
    python examples/preferences.py runs/preferences --loss simpo

SmolLM2 answers questions; the first sentence of an answer is kept. The chosen answer has the line "Source: model
memory." behind it, the rejected one has not, and is otherwise the same text. Questions about other things are held out:
30 of them are answered before and after, and a program says which answers end with that line.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import documents

from anyformer.data.models import find
from anyformer.generate import generate
from anyformer.hub import load
from anyformer.know.words import sentences
from anyformer.train import align

THINGS = (
    "a lighthouse", "a glacier", "a violin", "a compass", "a volcano", "a telescope", "a windmill", "a bridge",
    "a desert", "a vaccine", "a sonnet", "a library", "a harbour", "an orchard", "a magnet", "a battery", "a comet",
    "a beehive", "a passport", "a cathedral", "a submarine", "a waterfall", "a museum", "a thermometer",
    "a parliament", "a bakery", "a canal", "a fossil", "a microscope", "a calendar", "an island", "a clock",
    "a forest", "a rainbow", "a ladder", "a kite", "a mirror", "a pencil", "a bicycle", "a candle", "a dictionary",
    "a river", "a mountain", "a train", "a garden", "a hospital", "a school", "a kitchen", "a market", "a planet",
    "a whale", "an owl", "a spider", "a rose", "a potato", "a castle", "a theatre", "a piano", "a camera",
    "a rocket",
)  # fmt: skip
ASKED = ("What is {}?", "Tell me about {} in one sentence.")
HELD = 15  # things, with two questions each, that are never learned from
LINE = "Source: model memory."
MARKS = "<!-- preferences: begin -->", "<!-- preferences: end -->"


def answered(model: Any, questions: Sequence[str], tokens: int) -> list[str]:
    """The answers of the model, the likeliest token each time."""
    t = model.tokenizer
    rows = [t.chat_ids([{"role": "user", "content": question}]) for question in questions]
    made = [ids for at in range(0, len(rows), 16) for ids in generate(model, rows[at : at + 16], max_new_tokens=tokens)]
    return [t.decode(ids).strip() for ids in made]


def questions(things: Sequence[str]) -> list[str]:
    """All questions about some things."""
    return [form.format(thing) for thing in things for form in ASKED]


def written(model: Any, place: Path) -> None:
    """Writes the pairs, those that are learned from and those held out."""
    for name, things in (("learn", THINGS[HELD:]), ("held", THINGS[:HELD])):
        rows = []
        for question, text in zip(questions(things), answered(model, questions(things), 48), strict=True):
            begin, end = next(sentences(text), (0, 0))
            if first := text[begin:end].strip():
                rows.append({"prompt": question, "chosen": f"{first}\n{LINE}", "rejected": first})
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def rate(model: Any) -> float:
    """The share of held-out questions whose answer ends with the line."""
    said = answered(model, questions(THINGS[:HELD]), 80)
    return sum(bool(re.search(rf"\n\s*{re.escape(LINE)}\s*$", text)) for text in said) / len(said)


def main() -> None:
    """Learns and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--loss", choices=("dpo", "ipo", "simpo", "kto"), default="dpo")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--doc", type=Path, help="the document between whose marks the table goes")
    o = parser.parse_args()
    o.out.mkdir(parents=True, exist_ok=True)
    begin, model = time.perf_counter(), load(find(o.model))
    if not (o.out / "held.jsonl").exists():
        written(model, o.out)
    first = rate(model)
    del model
    learned = time.perf_counter()
    done = align(
        o.model, data=str(o.out / "learn.jsonl"), held_out=str(o.out / "held.jsonl"), loss=o.loss, steps=o.steps,
        lr=o.lr, out=o.out / o.loss, context=128, batch=4,
    )  # fmt: skip
    assert done.after is not None
    took, last = time.perf_counter() - learned, rate(done.model)
    rows = [
        ("held-out answers that end with the line", f"{first:.0%}", f"{last:.0%}"),
        ("held-out pairs with a margin above 0", f"{done.before.accuracy:.0%}", f"{done.after.accuracy:.0%}"),
        ("margin", f"{done.before.margin:.2f}", f"{done.after.margin:.2f}"),
        ("log p of the chosen answer, nats", f"{done.before.good:.1f}", f"{done.after.good:.1f}"),
        ("log p of the rejected answer, nats", f"{done.before.bad:.1f}", f"{done.after.bad:.1f}"),
        ("KL to the reference, nats a token", f"{done.before.kl:.3f}", f"{done.after.kl:.3f}"),
        ("perplexity of plain English", f"{done.before.perplexity:.2f}", f"{done.after.perplexity:.2f}"),
        ("tokens of an answer", f"{done.before.length:.0f}", f"{done.after.length:.0f}"),
    ]
    lines = [
        f"| {o.loss}, {o.steps} steps | before | after |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    lines += ["", f"{took / 60:.1f} minutes for `align`, {(time.perf_counter() - begin) / 60:.1f} in all."]
    if done.warning:
        lines += ["", f"Warning: {done.warning}."]
    print("\n".join(lines))
    if o.doc is not None:
        documents.put(o.doc, *MARKS, "\n".join(lines))


if __name__ == "__main__":
    main()
