"""`constitution`: a model revises its own answers by principles, and learns from that (Bai et al., 2022).

```
prompts ── revising: sample, critique, revise, pairs ── finetune ── dpo ── violations before and after
```
(arXiv:2212.08073, with preferences by `align` in place of reinforcement learning.)
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch

from anyformer.core.options import takes
from anyformer.core.shown import Shown
from anyformer.evaluate.intervals import Estimate, wilson
from anyformer.hub import load
from anyformer.hub.formats.guard import atomic_write, claim
from anyformer.train import alignment_report, principles, revising
from anyformer.train.align import Aligned, _decoder, align, place
from anyformer.train.finetune import Tuned, finetune
from anyformer.train.options import METHODS, AlignOptions, FinetuneOptions
from anyformer.train.revising import Row, Steps, fingerprint, self_judged

DPO = "6-dpo"


@dataclass(frozen=True, kw_only=True)
class ConstitutionOptions(AlignOptions):
    """The options of `constitution`.

    Args:
        principles: a YAML file, see `train.principles`.
        prompts: a text file, a prompt a line; empty and repeated ones are left out.
        critic: rules: each principle's own judge, the model where it has none; model: the model judges by all, and
            expressions and programs only measure.
        revisions: how often an answer is revised, until its judge finds it better.
        max_new_tokens: the most tokens of an answer.
        temperature: of samples and revisions.
        sft_lr: the learning rate of the fine-tuning before the preferences; by default that of `finetune`.
        data: leave it out: the pairs are made.
        held_out: share of the prompts on which violations are counted before and after.
    """

    principles: str = ""
    prompts: str = ""
    critic: Literal["rules", "model"] = "rules"
    revisions: int = 4
    max_new_tokens: int = 96
    temperature: float = 0.8
    sft_lr: float | None = None

    def __post_init__(self) -> None:
        for name in ("principles", "prompts"):
            if not getattr(self, name):
                raise ValueError(f"{name} is missing; for example: --principles c.yaml --prompts p.txt")
        if self.data:
            raise ValueError(f"data={self.data} is for the losses; constitution makes its pairs from --prompts")
        object.__setattr__(self, "data", self.prompts)
        super().__post_init__()
        if self.out is None:
            raise ValueError("out is missing: the folder of the steps, in which a run goes on after a break")
        if self.loss != "dpo":
            raise ValueError(f"loss={self.loss}: a constitution ends with dpo")
        if self.revisions < 1 or self.max_new_tokens < 1 or not 0 <= self.temperature < float("inf"):
            raise ValueError("revisions and max_new_tokens must be at least 1, temperature at least 0")
        if isinstance(self.held_out, str) or not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be a share of the prompts between 0 and 1; got {self.held_out!r}")


@dataclass(frozen=True)
class Constituted(Shown):
    """Result of `constitution`.

    Attributes:
        folder: the model after all steps.
        violations: of each stage (before, sft, dpo), by principle: the share of held-out answers that break it.
        perplexity: of plain English, of each stage. counts: what became of the answers.
    """

    folder: Path
    violations: dict[str, dict[str, Estimate]]
    perplexity: dict[str, float]
    counts: dict[str, int]


def prompts_of(file: str | Path, seed: int, share: float) -> tuple[list[str], list[str]]:
    """The prompts to learn from, and those held out.

    Raises:
        ValueError: if fewer than four are left when empty and repeated ones are left out. OSError.
    """
    path = Path(file).expanduser()
    lines = path.read_text(encoding="utf-8").splitlines()
    unique = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(unique) < 4:
        raise ValueError(
            f"{path}: {len(unique)} prompt(s) left of {len(lines)} lines, without empty and repeated ones; at least 4 "
            "are needed, to learn from and to hold out"
        )
    order = sorted(unique, key=lambda p: place(p, seed))
    held = set(order[: min(max(1, round(share * len(unique))), len(unique) - 3)])
    return [p for p in unique if p not in held], [p for p in unique if p in held]


def _fitting(run: Steps, prompts: list[str]) -> list[str]:
    """The prompts that can be answered, criticised and revised within the context.

    Raises:
        ValueError: if none can.
    """
    model, texts = run.model, " ".join(rule.text for rule in run.rules)
    if model.context is None:
        return prompts
    longest = revising.REVISED.format(prompt="", answer="", critique=revising.JUDGED + texts, principle=texts)
    t, new = model.tokenizer, run.options.max_new_tokens
    around = len(t.chat_ids([{"role": "user", "content": longest}]) if t.template else t.encode(longest))
    room = model.context - around - (2 + len(run.own)) * new  # the answer, the revision, a critique by each
    kept = [prompt for prompt in prompts if len(t.encode(prompt)) <= room]
    if not kept:
        raise ValueError(
            f"no prompt left: with the principles, an answer of {new} tokens and its revision none of {len(prompts)} "
            f"fits the context of {model.context}; shorter prompts or principles, or a lower --max-new-tokens"
        )
    return kept


def _opened(run: Steps) -> None:
    """Writes what the run is; an earlier run of the folder must be the same.

    Raises:
        ValueError: naming what differs.
    """
    o = run.options
    prompts = hashlib.sha256(Path(o.prompts).expanduser().read_bytes()).hexdigest()
    names = ("model", "seed", "critic", "revisions", "max_new_tokens", "temperature", "held_out", "method", "steps")
    facts = {**{n: getattr(o, n) for n in names}, "weights": run.made_by, "prompts": prompts}
    facts["principles"] = [asdict(rule) for rule in run.rules]
    claim(run.home, "constitution.json", facts)


def _measured(run: Steps, stage: str, model: Any, held: Sequence[str]) -> dict[str, Estimate]:
    """The share of held-out answers that break each principle, by its own judge; where that is a model, by the one that
    the run began with."""

    made_by = fingerprint(model)

    def make(prompts: Sequence[str], seeds: list[int]) -> Iterator[Row]:
        texts = run.answers(model, prompts, seeds, 0.0)
        found = {
            rule.name: rule.scores(texts) if rule.judge != "model" else
            [self_judged(run.model, rule, p, text) for p, text in zip(prompts, texts, strict=True)]
            for rule in run.rules
        }  # fmt: skip
        for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            scores = {name: values[i] for name, values in found.items()}
            yield {
                "prompt": prompt,
                "principle": [n for n, v in scores.items() if v > 0],
                "answer": text,
                "scores": scores,
                "model": made_by,
            }

    rows = run.step(f"held-{stage}", held, make)
    made = {r.name: wilson(sum(r.name in row["principle"] for row in rows), len(rows)) for r in run.rules}
    return {**made, "any": wilson(sum(bool(row["principle"]) for row in rows), len(rows))}


def _trained(run: Steps, name: str, train: Callable[..., Aligned | Tuned], kind: type, **changes: Any) -> Path:
    """The model of a step of training, which is done once, with the options of the run that it knows.

    Raises:
        KeyboardInterrupt: if a signal stopped it; the next call goes on.
    """
    file = run.home / f"{name}.json"
    if file.exists():
        return Path(json.loads(file.read_text(encoding="utf-8"))["folder"])
    given = {f.name: getattr(run.options, f.name) for f in fields(kind)}
    done = train(**{**given, "out": run.home / name, "resume": "auto", "held_out": 0.1, **changes})
    if done.folder is None:
        raise KeyboardInterrupt
    atomic_write(file, json.dumps({"folder": str(done.folder), "steps": done.steps, "loss": done.loss}).encode())
    return done.folder


def _stages(run: Steps) -> Iterator[tuple[str, Path]]:
    """The model after each stage of training."""
    o = run.options
    learn, pairs = (str(run.home / f"{name}.jsonl") for name in (revising.LEARN, revising.PAIRS))
    lr = o.sft_lr or METHODS[o.method]
    folder = _trained(run, "5-sft", finetune, FinetuneOptions, data=learn, lr=lr)
    yield "sft", folder
    files: dict[str, Any] = {"model": str(folder), "overrides": None, "ignore": []}
    yield "dpo", _trained(run, DPO, align, AlignOptions, data=pairs, **files)


@takes(ConstitutionOptions)
def constitution(options: ConstitutionOptions) -> Constituted:
    """Lets a model revise its answers by principles, trains it on that, and counts violations before and after.

    Takes the fields of `ConstitutionOptions` by name. Prompts that are held out are in no step of training. The same
    call goes on after a break, at any step.

    Returns:
        The folder of the model, shares of violations with Wilson's intervals, and what became of the answers.

    Raises:
        ValueError: before the first step, for principles or prompts that are none, a program that fails, a folder that
            holds another run; after the revisions, if there is no pair. OSError: for files that do not exist.

    Example:
        anyformer align constitution smollm2 --principles c.yaml --prompts p.txt --out runs/principled
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("constitution writes its steps from one process; start it without a launcher")
    rules = principles.read(options.principles)
    learn, held = prompts_of(options.prompts, options.seed, float(options.held_out))
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = _decoder(options).to(device).eval()
    run = Steps(options, model, rules, fingerprint(model), Path(options.out or "").expanduser())
    count = len(learn) + len(held)
    learn, held = (_fitting(run, some) for some in (learn, held))
    _opened(run)
    say = (lambda text: None) if options.quiet else (lambda text: print(text, flush=True))
    left = count - len(learn) - len(held)
    say(f"{len(learn)} prompts, {len(held)} held out, {left} too long; {len(rules)} principles, {options.critic} judge")
    if programs := [rule.rule for rule in rules if rule.judge == "program"]:
        say(f"programs of yours run, each in a process of its own: {', '.join(programs)}")
    rows = run.step(revising.SAMPLE, learn, functools.partial(revising.sampled, run))
    rows = run.step(revising.CRITIQUE, rows, functools.partial(revising.criticised, run))
    rows = run.step(revising.REVISE, rows, functools.partial(revising.revised, run))
    counts = revising.paired(run, rows)
    say("answers: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    found, folder = {"before": _measured(run, "before", model, held)}, Path()
    for stage, folder in _stages(run):
        found[stage] = _measured(run, stage, load(folder).to(device).eval(), held)
    reports = json.loads((run.home / DPO / "report.json").read_text(encoding="utf-8"))  # of `align`
    tax = {stage: reports[name]["perplexity"] for stage, name in (("sft", "before"), ("dpo", "after"))}
    tax = {"before": alignment_report.perplexity(model), **tax}
    result = Constituted(folder, found, tax, counts)
    figures = {stage: {name: e.json() for name, e in some.items()} for stage, some in found.items()}
    content = {"violations": figures, "perplexity": tax, "counts": counts, "folder": str(folder), "held": len(held)}
    atomic_write(run.home / "report.json", (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    say(f"{table(result)}\nmodel: {folder}")
    return result


def table(result: Constituted) -> str:
    """The shares of violations, stage by stage, and the price."""
    lines = [f"{'violations, held out':<24}" + "".join(f"  {stage:>22}" for stage in result.violations)]
    for name in next(iter(result.violations.values())):
        cells = (some[name] for some in result.violations.values())
        lines.append(f"{name:<24.24}" + "".join(f"  {f'{e.value:.0%} [{e.low:.0%}, {e.high:.0%}]':>22}" for e in cells))
    lines.append(
        f"{'perplexity of English':<24}" + "".join(f"  {value:>22.2f}" for value in result.perplexity.values())
    )
    return "\n".join(lines)
