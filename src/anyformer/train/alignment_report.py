"""The effect of preferences on a model, on pairs held out: margins, log-probabilities, distance, lengths, the price."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from anyformer.data import sources
from anyformer.generate import generate
from anyformer.hub.formats.guard import atomic_write
from anyformer.parts.unscored import in_pieces, places, rows
from anyformer.train.preferences import BAD, GOOD
from anyformer.train.tasks.preferring import Answer, Pair, batch_of, probabilities

WINDOWS, WINDOW = 24, 256  # of the text whose perplexity is the price
WRITTEN, NEW = 12, 64  # prompts that are answered before and after, and the most new tokens
LONGER = 1.1  # times as long answers are a warning where the chosen ones fall


@dataclass(frozen=True)
class Report:
    """Figures of a model on held-out pairs.

    Attributes:
        margin: the mean of beta (r(good) - r(bad)); accuracy: the share of pairs above 0.
        good, bad: mean log-probabilities, in nats an answer.
        kl: KL(model | reference) of the next token, in nats, over the tokens of the good answers.
        length_correlation: of the reward r(y) with the number of tokens, over all answers; 0 where one is constant.
        perplexity: of a token of plain English (`pydoc`), which no pair is about.
        length: tokens of the answers that the model writes to the first prompts. answers: these.
    """

    margin: float
    accuracy: float
    good: float
    bad: float
    kl: float
    length_correlation: float
    perplexity: float
    length: float
    answers: dict[str, str]


def report(model: Any, reference: Any, held: Sequence[Pair], beta: float, batch: int, pad: int) -> Report:
    """The figures of a model.

    Args:
        reference: the model as it came; None = it is this one.
        held: pairs with reference log-probabilities.
    """
    answers = [answer for pair in held for answer in pair if answer.kind in (GOOD, BAD)]
    known = np.array([a.reference for a in answers])
    own = known if reference is None else np.array(probabilities(model, answers, batch, pad))
    ratio = own - known
    good = np.array([a.kind == GOOD for a in answers])
    if len(answers) == 2 * len(held):
        margins = beta * (ratio[0::2] - ratio[1::2])
    else:  # kto: answers have no partner
        margins = (
            beta * (ratio[good][:, None] - ratio[~good][None]).ravel() if 0 < good.sum() < len(good) else np.zeros(1)
        )
    lengths = np.array([a.length for a in answers])
    constant = ratio.std() == 0 or lengths.std() == 0
    texts = dict.fromkeys(a.prompt for a in answers)
    prompts = list(texts)[:WRITTEN]
    said = dict(zip(prompts, answered(model, prompts), strict=True))
    return Report(
        margin=float(margins.mean()),
        accuracy=float((margins > 0).mean()),
        good=float(own[good].mean()) if good.any() else math.nan,
        bad=float(own[~good].mean()) if (~good).any() else math.nan,
        kl=0.0 if reference is None else distance(model, reference, [a for a in answers if a.kind == GOOD], batch, pad),
        length_correlation=0.0 if constant else float(np.corrcoef(ratio, lengths)[0, 1]),
        perplexity=perplexity(model),
        length=float(np.mean([len(model.tokenizer.encode(text, special=False)) for text in said.values()])),
        answers=said,
    )


@torch.no_grad()
def distance(model: Any, reference: Any, answers: Sequence[Answer], batch: int, pad: int) -> float:
    """KL(model | reference) of the next token, the mean over the tokens of answers, in nats."""
    total, count, device = 0.0, 0, next(model.parameters()).device
    model.eval(), reference.eval()
    for at in range(0, len(answers), batch):
        inputs = {k: v.to(device) for k, v in batch_of(answers[at : at + batch], pad).items()}
        seen = inputs.pop("labels")[:, 2:] >= 0  # (B, T)
        with in_pieces(0):
            logits = [m(**inputs).logits for m in (model, reference)]
        p, q = (rows(each, places(seen)).float().log_softmax(-1) for each in logits)  # (N, V)
        total += float(F.kl_div(q, p, reduction="sum", log_target=True))
        count += len(p)
    return total / max(1, count)


@torch.no_grad()
def perplexity(model: Any) -> float:
    """The perplexity of a token of plain English."""
    device = next(model.parameters()).device
    model.eval()
    window = min(WINDOW, model.context or WINDOW)
    ids = model.tokenizer.encode(sources.text("pydoc")[: 8 * WINDOWS * window], special=False)
    rows = [ids[i * window : (i + 1) * window] for i in range(min(WINDOWS, len(ids) // window))]
    loss = 0.0
    for row in rows:
        x = torch.tensor([row], device=device)
        loss += float(F.cross_entropy(model(input_ids=x).logits[0, :-1].float(), x[0, 1:]))
    return math.exp(loss / len(rows)) if rows else math.nan


def answered(
    model: Any, prompts: Sequence[str], new: int = NEW, temperature: float = 0.0, seeds: Sequence[int] | None = None
) -> list[str]:
    """The answers of a model to prompts in its chat template, or without one to lines of text.

    Args:
        new: the most tokens of an answer, less where the context ends. seeds: of each prompt; each is answered as it
            would be alone.
    """
    t, rows = model.tokenizer, list[list[int]]()
    for prompt in prompts:
        asked: Any = [{"role": "user", "content": prompt}]
        rows.append(t.chat_ids(asked) if t.template is not None else t.encode(prompt.rstrip("\n") + "\n"))
    room = new if model.context is None else min(new, model.context - max(map(len, rows)))
    if room < 1:
        return [""] * len(rows)
    made = generate(model, rows, max_new_tokens=room, temperature=temperature, seed=seeds)  # type: ignore[arg-type]
    return [t.decode(ids) for ids in made]


def warning(before: Report, after: Report) -> str:
    """The warning that good answers became unlikelier while written ones became longer; empty if not."""
    if after.good >= before.good or after.length <= LONGER * before.length:
        return ""
    return (
        f"the chosen answers became less likely ({before.good:.1f} to {after.good:.1f} nats) while answers grew from "
        f"{before.length:.0f} to {after.length:.0f} tokens: the model may have learned length. A larger beta, fewer "
        "steps, or ipo or simpo, which count by token, may help"
    )


def table(before: Report, after: Report) -> str:
    """Both, side by side."""
    names = {
        "margin": "margin", "accuracy": "share of pairs above 0", "good": "log p of chosen answers, nats",
        "bad": "log p of rejected answers, nats", "kl": "KL to the reference, nats a token",
        "length_correlation": "reward and length, correlation", "perplexity": "perplexity of plain English",
        "length": "tokens of a written answer",
    }  # fmt: skip
    rows = [(text, f"{getattr(before, name):.3f}", f"{getattr(after, name):.3f}") for name, text in names.items()]
    width = max(len(text) for text in names.values())
    return "\n".join(f"{text:<{width}}  {a:>10}  {b:>10}" for text, a, b in [("held out", "before", "after"), *rows])


def write(folder: Path, before: Report, after: Report) -> None:
    """Writes report.json, with the answers side by side."""
    content = {"before": asdict(before), "after": asdict(after)}
    atomic_write(folder / "report.json", (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
