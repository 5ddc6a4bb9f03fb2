"""A constitution that programs check: violations before and after, beside the model as its own critic.

    python examples/principles.py runs/principled --doc docs/alignment.md     # and writes the table into the document

SmolLM2 answers questions about things, revises what breaks a principle, and learns from that with LoRA, first by
fine-tuning, then by dpo (`anyformer align constitution`). Questions about other things are held out. Twice, with the
same seed: the programs judge (`rules`), or the model judges itself (`model`) and programs only measure.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import documents
from preferences import THINGS

from anyformer.train.constitution import constitution

MARKS = "<!-- principles: begin -->", "<!-- principles: end -->"
PRINCIPLES = """- name: short
  text: The answer has at most 25 words.
  program: judges.py:words_over
- name: sober
  text: The answer has no big words such as crucial, vital, essential, testament, rich, iconic or significant.
  forbid: '(?i)\\b(crucial|vital|essential|testament|rich|iconic|significant|important|unique)(ly)?\\b'
- name: ends
  text: The answer ends with a full stop.
  require: '\\.\\s*\\Z'
"""
JUDGES = '''"""Judges of principles: 0 = kept, more = broken, by how much."""


def words_over(text: str) -> int:
    """The words beyond 25."""
    return max(0, len(text.split()) - 25)
'''
STAGES = ("before", "sft", "dpo")


def files(out: Path, count: int) -> None:
    """The principles, their program, and the prompts."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "c.yaml").write_text(PRINCIPLES, encoding="utf-8")
    (out / "judges.py").write_text(JUDGES, encoding="utf-8")
    (out / "p.txt").write_text("".join(f"What is {thing}?\n" for thing in THINGS[:count]), encoding="utf-8")


def lines(critic: str, report: dict[str, Any]) -> list[str]:
    """The rows of one run."""
    made = []
    for name in report["violations"]["before"]:
        cells = (report["violations"][stage][name] for stage in STAGES)
        shown = (f"{e['value']:.0%} [{e['low']:.0%}, {e['high']:.0%}]" for e in cells)
        made.append(f"| {critic} | {name} | {' | '.join(shown)} |")
    tax = " | ".join(f"{report['perplexity'][stage]:.2f}" for stage in STAGES)
    return [*made, f"| {critic} | perplexity of plain English | {tax} |"]


def main() -> None:
    """Runs both, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--critics", nargs="+", choices=("rules", "model"), default=["rules", "model"])
    parser.add_argument("--count", type=int, default=30, help="prompts")
    parser.add_argument("--steps", type=int, default=5, help="of the fine-tuning, and of dpo")
    parser.add_argument("--tokens", type=int, default=48, help="of an answer")
    parser.add_argument("--doc", type=Path, help="the document between whose marks the table goes")
    o = parser.parse_args()
    files(o.out, o.count)
    text, notes = ["| critic | violations on held-out prompts | before | after sft | after dpo |", "|---" * 5 + "|"], []
    for critic in o.critics:
        begin, place = time.perf_counter(), o.out / critic
        try:
            constitution(
                model=o.model, principles=str(o.out / "c.yaml"), prompts=str(o.out / "p.txt"), critic=critic, out=place,
                held_out=0.4, max_new_tokens=o.tokens, steps=o.steps, batch=4, lr=2e-4, context=192,
            )  # fmt: skip
        except ValueError as error:  # a critic that finds nothing, or revises nothing
            notes.append(f"{critic}: {str(error).partition('. The steps')[0]}.")
            continue
        report = json.loads((place / "report.json").read_text(encoding="utf-8"))
        text += lines(critic, report)
        counts = ", ".join(f"{count} {name}" for name, count in report["counts"].items())
        notes.append(
            f"{critic}: of {sum(report['counts'].values())} answers {counts}; {report['held']} prompts held out; "
            f"{(time.perf_counter() - begin) / 60:.1f} minutes."
        )
    made = "\n".join([*text, "", *notes])
    print(made)
    if o.doc is not None:
        documents.put(o.doc, *MARKS, made)


if __name__ == "__main__":
    main()
