"""The steps of a constitution before training: sample, critique, revise, pairs; each a JSONL.

A row has the model's hash, the seed, the prompt and the principles. Rows do not depend on their batch, so that a run
which was killed goes on with the row that is missing and ends with the same files. An answer that breaks nothing is not
revised; a revision that changes nothing or is no better is counted, and the original stays what it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anyformer.evaluate.scoring import score
from anyformer.hub.formats.guard import atomic_write
from anyformer.train import alignment_report
from anyformer.train.principles import Principle

TOGETHER = 8  # prompts that are answered at once
SAMPLE, CRITIQUE, REVISE, PAIRS, LEARN = "1-sample", "2-critique", "3-revise", "4-pairs", "4-learn"
JUDGED = (
    "Question: {prompt}\nAnswer: {answer}\nPrinciple: {principle}\n\nDoes the answer break the principle? Reply with "
    "Yes or No, and say why in one sentence."
)
REVISED = (
    "Question: {prompt}\nAnswer: {answer}\nCritique: {critique}\n\nWrite the answer to the question again, so that it "
    "keeps to this: {principle} Write the new answer only."
)
Row = dict[str, Any]


@dataclass
class Steps:
    """A run: its options (`ConstitutionOptions`), the model that it began with and its hash, principles, and folder."""

    options: Any
    model: Any
    rules: list[Principle]
    made_by: str
    home: Path

    def rows(self, name: str) -> list[Row]:
        """The rows of a step so far; a line that was cut by a kill is dropped."""
        file = self.home / f"{name}.jsonl"
        if not file.exists():
            return []
        content = file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            atomic_write(file, whole)
        return [json.loads(line) for line in whole.decode().split("\n")[:-1]]  # an answer may hold U+2028 or U+0085

    def step(
        self, name: str, todo: Sequence[Any], make: Callable[[Sequence[Any], list[int]], Iterator[Row]]
    ) -> list[Row]:
        """The rows of a step, one for each thing to do: those that are missing are made and appended."""
        done = self.rows(name)
        with (self.home / f"{name}.jsonl").open("ab") as file:
            for at in range(len(done), len(todo), TOGETHER):
                some = todo[at : at + TOGETHER]
                seeds = [self.seed(name, i) for i in range(at, at + len(some))]
                for row, seed in zip(make(some, seeds), seeds, strict=True):
                    row = {"step": name, "model": self.made_by, "seed": seed, **row}
                    done.append(row)
                    file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
                file.flush()
        return done

    def seed(self, step: str, number: int) -> int:
        """The seed of a row."""
        return int(hashlib.sha256(f"{self.options.seed} {step} {number}".encode()).hexdigest()[:8], 16)

    def answers(self, model: Any, prompts: Sequence[str], seeds: Sequence[int], temperature: float) -> list[str]:
        """The answers of a model."""
        new = self.options.max_new_tokens
        return [text.strip() for text in alignment_report.answered(model, prompts, new, temperature, list(seeds))]

    @property
    def own(self) -> list[Principle]:
        """The principles by which the model criticises itself."""
        return [rule for rule in self.rules if self.options.critic == "model" or rule.judge == "model"]

    def judged(self, rule: Principle, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """The amount by which each answer breaks a principle, by the critic of the run: of the model log p(Yes) -
        log p(No)."""
        if rule not in self.own:
            return rule.scores(answers)
        return [self_judged(self.model, rule, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def self_judged(model: Any, rule: Principle, prompt: str, answer: str) -> float:
    """log p("Yes") - log p("No") as the model's reply to whether an answer breaks a principle; above 0 = broken."""
    asked = JUDGED.format(prompt=prompt, answer=answer, principle=rule.text)
    t = model.tokenizer
    text = t.chat([{"role": "user", "content": asked}]) if t.template is not None else f"{asked}\n"
    if t.bos_id is not None and t.encode(text)[:2] == [t.bos_id] * 2:  # the template's too
        text = text.removeprefix(t.roles["bos_token"])
    yes, no = (float(v.sum()) for v in score(model, text, ["Yes", "No"], f"the critique of {prompt!r:.40}"))
    return yes - no


def sampled(run: Steps, prompts: Sequence[str], seeds: list[int]) -> Iterator[Row]:
    """For each prompt an answer."""
    for prompt, answer in zip(prompts, run.answers(run.model, prompts, seeds, run.options.temperature), strict=True):
        yield {"prompt": prompt, "principle": None, "answer": answer}


def criticised(run: Steps, rows: Sequence[Row], seeds: list[int]) -> Iterator[Row]:
    """For each answer its score by each principle, and a critique in words; of a principle that the model judges its
    own."""
    prompts, answers = [row["prompt"] for row in rows], [row["answer"] for row in rows]
    found = {rule.name: run.judged(rule, prompts, answers) for rule in run.rules}
    for i, row in enumerate(rows):
        broken = [rule for rule in run.rules if found[rule.name][i] > 0]
        words = " ".join(f"The answer breaks this: {rule.text}" for rule in broken)
        own = [rule for rule in broken if rule in run.own]
        asked = [JUDGED.format(prompt=row["prompt"], answer=row["answer"], principle=rule.text) for rule in own]
        words = " ".join([words, *run.answers(run.model, asked, [seeds[i]] * len(own), 0.0)]) if own else words
        yield {
            "prompt": row["prompt"], "principle": [rule.name for rule in broken], "answer": row["answer"],
            "scores": {name: values[i] for name, values in found.items()}, "critique": words,
            "judges": {r.name: "model" if run.options.critic == "model" else r.judge for r in run.rules},
        }  # fmt: skip


def revised(run: Steps, rows: Sequence[Row], seeds: list[int]) -> Iterator[Row]:
    """For each answer that breaks a principle the first revision that breaks them less, if there is one."""
    best: list[Row] = [{"revision": None, "became": "kept" if not row["principle"] else "unchanged"} for row in rows]
    for attempt in range(run.options.revisions):
        left = [i for i, row in enumerate(rows) if row["principle"] and best[i]["revision"] is None]
        if not left:
            break
        asked = []
        for i in left:
            named = " ".join(rule.text for rule in run.rules if rule.name in rows[i]["principle"])
            asked.append(REVISED.format(**{k: rows[i][k] for k in ("prompt", "answer", "critique")}, principle=named))
        texts = run.answers(run.model, asked, [seeds[i] + attempt for i in left], run.options.temperature)
        prompts = [rows[i]["prompt"] for i in left]
        found = {rule.name: run.judged(rule, prompts, texts) for rule in run.rules}
        for k, (i, text) in enumerate(zip(left, texts, strict=True)):
            if not text or text == rows[i]["answer"]:
                continue
            best[i]["became"] = "no better"
            after = {name: values[k] for name, values in found.items()}
            worse = any(after[n] > max(0.0, value) for n, value in rows[i]["scores"].items())
            better = sum(v > 0 for v in after.values()) < len(rows[i]["principle"])
            if better and not worse:
                best[i] = {"revision": text, "became": "revised", "after": after, "attempt": attempt + 1}
    for row, made in zip(rows, best, strict=True):
        yield {**{k: row[k] for k in ("prompt", "principle", "answer", "critique")}, **made}


def paired(run: Steps, rows: Sequence[Row]) -> dict[str, int]:
    """The pairs, and the answers to learn from: revisions, and originals that break nothing.

    Raises:
        ValueError: if there is no pair.
    """
    counts = {
        name: sum(row["became"] == name for row in rows) for name in ("kept", "revised", "unchanged", "no better")
    }
    common = ("prompt", "principle", "model", "seed")
    pairs = [
        {**{k: row[k] for k in common}, "step": PAIRS, "chosen": row["revision"], "rejected": row["answer"]}
        for row in rows if row["became"] == "revised"
    ]  # fmt: skip
    learn = [
        {**{k: row[k] for k in common}, "step": LEARN, "response": row["revision"] or row["answer"]}
        for row in rows if row["became"] in ("revised", "kept") and (row["revision"] or row["answer"])
    ]  # fmt: skip
    if len(pairs) < 2:
        raise ValueError(
            f"{len(pairs)} pair(s) of {len(rows)} answers: {counts['kept']} broke no principle, {counts['unchanged']} "
            f"revisions changed nothing, {counts['no better']} were no better. There is nothing to prefer; other "
            f"principles, more prompts or more --revisions may help. The steps are in {run.home}"
        )
    for name, some in ((PAIRS, pairs), (LEARN, learn)):
        atomic_write(
            run.home / f"{name}.jsonl", b"".join((json.dumps(r, ensure_ascii=False) + "\n").encode() for r in some)
        )
    return counts


def fingerprint(model: Any) -> str:
    """The hash of all weights, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
