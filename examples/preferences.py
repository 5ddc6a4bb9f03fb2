"""Three preferences that a program can check: with a source, short, calm. Before and after `align`.

    python examples/preferences.py runs/preferences --doc docs/alignment.md     # and writes the table into the document
    python examples/preferences.py runs/preferred --sft 0 --steps 40 --lr 5e-4  # without imitation first

SmolLM2 answers questions. The chosen answer is its first sentence, without exclamation marks, and behind it the line
"Source: model memory."; the rejected one breaks one preference and is otherwise the same text. First comes fine-tuning
on the chosen answers, so that the model can write them at all, then `align`. Questions about other things are held out:
30 of them are answered at each stage, and programs say which answers keep which preference.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import documents

from anyformer.data.models import find
from anyformer.generate import generate
from anyformer.hub import load
from anyformer.know.words import sentences
from anyformer.train import align, finetune
from anyformer.train.alignment_report import perplexity

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
ASKED = ("What is {}?", "Tell me something exciting about {}!")
HELD = 15  # things, with two questions each, that are never learned from
LINE, WORDS = "Source: model memory.", 40
KEPT: dict[str, Callable[[str], bool]] = {
    "end with the source": lambda text: re.search(rf"\n\s*{re.escape(LINE)}\s*$", text) is not None,
    f"have at most {WORDS} words": lambda text: len(text.split()) <= WORDS,
    "have no exclamation mark": lambda text: "!" not in text,
}
TAX = "perplexity of plain English"
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


def pairs(question: str, text: str) -> Iterator[dict[str, str]]:
    """A row for each preference that a rejected answer can break, from what the model said."""
    begin, end = next(sentences(text), (0, 0))
    first, whole = (part.strip().replace("!", ".") for part in (text[begin:end], text))
    if not first or len(f"{first} {LINE}".split()) > WORDS:
        return
    worse = [first, f"{first.rstrip('.')}!\n{LINE}"]
    if len(whole.split()) > WORDS:
        worse.append(f"{whole}\n{LINE}")
    for rejected in worse:
        yield {"prompt": question, "chosen": f"{first}\n{LINE}", "rejected": rejected}


def written(model: Any, place: Path) -> None:
    """Writes the pairs, those that are learned from and those held out."""
    for name, things in (("learn", THINGS[HELD:]), ("held", THINGS[:HELD])):
        asked = questions(things)
        said = zip(asked, answered(model, asked, 96), strict=True)
        rows = [row for question, text in said for row in pairs(question, text)]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def measured(model: Any) -> dict[str, float]:
    """The shares of held-out questions whose answers keep each preference, and all of them; and the perplexity."""
    said = answered(model, questions(THINGS[:HELD]), 80)
    kept = {name: [keeps(text) for text in said] for name, keeps in KEPT.items()}
    kept["keep all three"] = [all(each) for each in zip(*kept.values(), strict=True)]
    shares = {f"held-out answers that {name}": sum(values) / len(said) for name, values in kept.items()}
    return {**shares, TAX: perplexity(model)}


def main() -> None:
    """Learns and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--loss", choices=("dpo", "ipo", "simpo", "kto"), default="dpo")
    parser.add_argument("--sft", type=int, default=20, help="steps of fine-tuning on the chosen answers before; or 0")
    parser.add_argument("--sft-lr", type=float, default=5e-4)
    parser.add_argument("--steps", type=int, default=12, help="of align")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the products of training")
    parser.add_argument("--doc", type=Path, help="the document between whose marks the table goes")
    o = parser.parse_args()
    o.out.mkdir(parents=True, exist_ok=True)
    begin, model = time.perf_counter(), load(find(o.model))
    if not (o.out / "held.jsonl").exists():
        written(model, o.out)
    stages, learned, start = {"before": measured(model)}, time.perf_counter(), o.model
    if o.sft:
        start, model = str(o.out / "sft" / "model"), imitated(o)
        stages[f"after {o.sft} steps of sft"] = measured(model)
    del model
    done = align(
        start, data=str(o.out / "learn.jsonl"), held_out=str(o.out / "held.jsonl"), loss=o.loss, steps=o.steps,
        lr=o.lr, out=o.out / o.loss, context=192, batch=4, precision=o.precision, resume="auto",
    )  # fmt: skip
    assert done.after is not None
    stages[f"after {o.steps} steps of {o.loss}"] = measured(done.model)
    took = f"{(time.perf_counter() - learned) / 60:.1f} minutes for learning and measuring"
    text = f"{table(stages, done)}\n\n{took}, {(time.perf_counter() - begin) / 60:.1f} in all."
    text += f"\n\nWarning: {done.warning}." if done.warning else ""
    print(text)
    if o.doc is not None:
        documents.put(o.doc, *MARKS, text)


def imitated(o: argparse.Namespace) -> Any:
    """The model after fine-tuning on the chosen answers alone."""
    rows = [json.loads(line) for line in (o.out / "learn.jsonl").read_text(encoding="utf-8").splitlines()]
    chosen = {(row["prompt"], row["chosen"]) for row in rows}
    data = [json.dumps({"prompt": prompt, "response": answer}) for prompt, answer in sorted(chosen)]
    (o.out / "chosen.jsonl").write_text("\n".join(data) + "\n", encoding="utf-8")
    return finetune(
        o.model, str(o.out / "chosen.jsonl"), method="lora", steps=o.sft, lr=o.sft_lr, batch=8, context=192,
        out=o.out / "sft", precision=o.precision, resume="auto",
    ).model  # fmt: skip


def table(stages: dict[str, dict[str, float]], done: Any) -> str:
    """A table of what answers keep at each stage, and of what `align` measured on held-out pairs."""
    lines = [f"| | {' | '.join(stages)} |", "|" + "---|" * (1 + len(stages))]
    for name in next(iter(stages.values())):
        shown = "{:.2f}" if name == TAX else "{:.0%}"
        lines.append(f"| {name} | {' | '.join(shown.format(found[name]) for found in stages.values())} |")
    pairs = {
        "with a margin above 0": ("accuracy", "{:.0%}"),
        "margin": ("margin", "{:.2f}"),
        "log p of the chosen answer, nats": ("good", "{:.1f}"),
        "log p of the rejected answer, nats": ("bad", "{:.1f}"),
        "KL to the reference, nats a token": ("kl", "{:.3f}"),
    }
    for name, (key, shown) in pairs.items():  # the reference of the pairs is the model that `align` began with
        ends = (shown.format(getattr(report, key)) for report in (done.before, done.after))
        lines.append(f"| held-out pairs, {name} | {' | '.join([''] * (len(stages) - 2) + list(ends))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
