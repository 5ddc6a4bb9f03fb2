"""Rows with preferences as examples in memory: pairs of answers, with the log-probabilities of the reference.

| rows have                        | dpo, ipo, simpo | kto                                     |
|----------------------------------|-----------------|-----------------------------------------|
| `prompt`, `chosen`, `rejected`   | a pair          | two answers, one good and one bad       |
| `prompt`, `response`, `label`    | -               | an answer, good (true, 1) or bad        |
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from anyformer.data.batches import Batch
from anyformer.data.labels import IGNORE
from anyformer.data.order import shuffled
from anyformer.parts.unscored import in_pieces
from anyformer.train.preferences import BAD, GOOD, OTHER, Kind, Preference, log_probs, marked
from anyformer.train.tasks.base import Task, collate
from anyformer.train.tasks.encode import written
from anyformer.train.tasks.tables import Table

PAIR, JUDGED = ("prompt", "chosen", "rejected"), ("prompt", "response", "label")
YES = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


@dataclass(frozen=True)
class Answer:
    """A prompt and its answer as a model reads them.

    Attributes:
        kind: see `preferences`. reference: the log-probability of the answer under the reference.
    """

    prompt: str
    text: str
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    kind: int
    reference: float = 0.0

    @property
    def length(self) -> int:
        """The tokens of the answer."""
        return sum(label != IGNORE for label in self.labels)


Pair = tuple[Answer, Answer]


def pairs(tables: Sequence[Table], kind: Kind, tokenizer: Any, limit: int) -> list[Pair]:
    """The pairs of rows; for kto each answer with one to another prompt.

    Raises:
        ValueError: naming the row, for columns that are missing, answers that are equal or have no token within the
            limit, or a label that is neither good nor bad.
    """
    made, single = list[Pair](), list[Answer]()
    for table in tables:
        has = set(table.columns())
        columns = PAIR if has.issuperset(PAIR) else JUDGED
        if not has.issuperset(columns) or (columns == JUDGED and kind != "kto"):
            wanted = f"{', '.join(PAIR)}{'; or ' + ', '.join(JUDGED) if kind == 'kto' else ''}"
            raise ValueError(
                f"{table.source.name}: {kind} needs the columns {wanted}; there are {', '.join(sorted(has))}. "
                "Use `fields` to rename columns"
            )
        for number, row in enumerate(table.rows(columns), 1):
            where = f"{table.source.name}, row {number}"
            texts = {name: row[name] for name in columns if name != "label"}
            if bad := [name for name, text in texts.items() if not isinstance(text, str) or not text.strip()]:
                raise ValueError(f"{where}: {bad[0]} is {row[bad[0]]!r:.40}; every row needs a text there")
            if columns == JUDGED:
                label = YES.get(str(row["label"]).lower())
                if label is None:
                    raise ValueError(f"{where}: label is {row['label']!r:.40}; it must be true or false")
                single.append(_answer(row["prompt"], row["response"], GOOD if label else BAD, tokenizer, limit, where))
                continue
            good, bad_one = (
                _answer(row["prompt"], row[name], value, tokenizer, limit, f"{where}, {name}")
                for name, value in (("chosen", GOOD), ("rejected", BAD))
            )
            if good.ids == bad_one.ids:
                why = "are equal" if row["chosen"] == row["rejected"] else f"are equal within {limit} tokens"
                raise ValueError(f"{where}: chosen and rejected {why}, so neither is better: {row['chosen']!r:.60}")
            made.append((good, bad_one))
    if kind != "kto":
        return made
    answers = [*single, *(pair[0] for pair in made), *(pair[1] for pair in made)]
    if len({answer.prompt for answer in answers}) < 2 or len({answer.kind for answer in answers}) < 2:
        raise ValueError("kto needs answers to two prompts at least, and both good and bad ones")
    return _with_others(answers, tokenizer, limit)


def _answer(prompt: str, text: str, kind: int, tokenizer: Any, limit: int, where: str) -> Answer:
    ids, labels = written(tokenizer, {"prompt": prompt, "response": text}, "prompt", limit)
    if all(label == IGNORE for label in labels):
        raise ValueError(
            f"{where}: no token of the answer is within {limit} tokens; shorten the prompt or use a longer context"
        )
    return Answer(prompt, text, tuple(ids), tuple(labels), kind)


def _with_others(answers: Sequence[Answer], tokenizer: Any, limit: int) -> list[Pair]:
    """Each answer, and its prompt with the answer to another prompt."""
    made = []
    for i, answer in enumerate(answers):
        other = next(a for j in range(1, len(answers)) if (a := answers[i - j]).prompt != answer.prompt)
        made.append((answer, _answer(answer.prompt, other.text, OTHER, tokenizer, limit, "another prompt's answer")))
    return made


@torch.no_grad()
def scored(model: Any, some: Sequence[Pair], batch: int, pad: int) -> list[Pair]:
    """The pairs with the log-probabilities of this model as their reference."""
    answers = [answer for pair in some for answer in pair]
    made = [
        replace(a, reference=value) for a, value in zip(answers, probabilities(model, answers, batch, pad), strict=True)
    ]
    return list(zip(made[0::2], made[1::2], strict=True))


@torch.no_grad()
def probabilities(model: Any, answers: Sequence[Answer], batch: int, pad: int) -> list[float]:
    """log p(answer | prompt) of each answer, in nats; equal ones go through the model once, the longest first."""
    device, values = next(model.parameters()).device, np.zeros(len(answers))
    places = {(answer.ids, answer.labels): i for i, answer in enumerate(answers)}
    order = sorted(places.values(), key=lambda i: -len(answers[i].ids))
    training = model.training
    model.eval()
    for at in range(0, len(order), batch):
        some = order[at : at + batch]
        inputs = {name: value.to(device) for name, value in batch_of([answers[i] for i in some], pad).items()}
        labels = inputs.pop("labels")[:, 2:]
        with in_pieces(0):
            logits = model(**inputs).logits
        values[some] = log_probs(logits, labels).double().sum(1).cpu().numpy()
    model.train(training)
    return [float(values[places[answer.ids, answer.labels]]) for answer in answers]


def batch_of(answers: Sequence[Answer], pad: int) -> Batch:
    """Answers as a batch of `preferences.Preference`."""
    rows = [{"input_ids": np.array(a.ids), "labels": np.array(marked(a.reference, a.kind, a.labels))} for a in answers]
    return collate(rows, pad)


@dataclass(frozen=True)
class PairRows:
    """Pairs by number, each once in an epoch; two rows a pair."""

    pairs: Sequence[Pair]
    seed: int
    pad: int

    def rows(self, first: int, count: int) -> Batch:
        """See `data.order.Rows`."""
        items = shuffled(first, count, len(self.pairs), self.seed)[1]
        return batch_of([answer for i in items.tolist() for answer in self.pairs[i]], self.pad)


def task(objective: Preference, learn: Sequence[Pair], held: Sequence[Pair], seed: int, pad: int) -> Task:
    """The task of the loop."""

    def held_out(batch: int) -> Iterator[Batch]:
        for at in range(0, len(held), batch):
            yield batch_of([answer for pair in held[at : at + batch] for answer in pair], pad)

    told = hashlib.sha256(repr([[a.ids, a.labels, a.kind] for pair in (*learn, *held) for a in pair]).encode())
    facts = {
        "task": objective.kind,
        "beta": objective.beta,
        "gamma": objective.gamma,
        "examples": told.hexdigest()[:16],
    }
    unit = "loss an answer" if objective.kind == "kto" else "loss a pair"
    summary = f"{len(learn):,} {'answers' if objective.kind == 'kto' else 'pairs'}, {len(held):,} held out"
    return Task(
        objective.kind,
        PairRows(learn, seed, pad),
        held_out,
        objective,
        objective,
        unit,
        summary,
        facts,
        size=len(learn),
    )
