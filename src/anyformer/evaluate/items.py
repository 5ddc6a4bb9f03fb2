"""Rows of a user's file as items of an evaluation, checked.

| task           | a row has                                                                        |
|----------------|----------------------------------------------------------------------------------|
| choice         | `text`, `choices` (a list; in CSV as JSON), `label` (a number from 0, or a choice)  |
| classification | `text`, `label`                                                                  |
| generation     | `prompt`, `response` (a text, or a list of texts that are all right)             |
| perplexity     | `text`; plain text is a document a file; or `prompt`, `response`                 |
| templates      | `first`, `second`, and perhaps `group`                                           |
| calibration    | as choice or classification; a question without an answer has the label null     |
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyformer.data.records import Row, find, records, texts

TASKS = ("perplexity", "classification", "choice", "generation", "weat", "templates", "calibration")
NEED = {  # in the order in which columns decide
    "choice": ("text", "choices"), "classification": ("text", "label"), "generation": ("prompt", "response"),
    "templates": ("first", "second"), "perplexity": ("text",),
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """A thing that is asked.

    Attributes:
        where: file and row, for messages.
        text: the question, the text, or the prompt. choices: of a choice. gold: the number of the right one, or None.
        answers: of generation, each of which is right; of templates, the two sentences.
        label: of classification, as a text. group: of templates.
    """

    where: str
    text: str
    choices: tuple[str, ...] = ()
    gold: int | None = None
    answers: tuple[str, ...] = ()
    label: str | None = None
    group: str = ""

    @property
    def key(self) -> str:
        """Equal for equal questions, whatever their case and spaces."""
        return " ".join(self.text.casefold().split())

    @property
    def right(self) -> str:
        """The right answer, as an example shows it."""
        return self.choices[self.gold] if self.gold is not None else self.label or self.answers[0]


def task_of(file: str | Path, fields: Mapping[str, str] | None) -> str:
    """The task that the columns of the first row belong to.

    Raises:
        ValueError: for columns of none, or a file without a row.
    """
    first = next(iter(records(file, fields)), None)
    if first is None:
        raise ValueError(f"{file} holds no row")
    has = set(first)
    for task, columns in NEED.items():
        if has.issuperset(columns):
            return task
    wanted = "; ".join(f"{task}: {', '.join(columns)}" for task, columns in NEED.items())
    raise ValueError(
        f"{file}: the columns {', '.join(sorted(has))} belong to no task. {wanted}. Rename with --fields.text COLUMN"
    )


def read(file: str | Path, task: str, fields: Mapping[str, str] | None = None) -> list[Item]:
    """The items of a file.

    Raises:
        ValueError: naming file and row, for a column that is missing, an empty text, a label that is no choice, equal
            choices, or a file without a row. FileNotFoundError.
    """
    source = find(file)
    columns = set(next(iter(records(source, fields)), {}))
    asked = {"prompt", "response"} <= columns
    if task == "perplexity" and not asked:
        documents: dict[int, str] = {}
        for number, piece in texts(source, fields):
            documents[number] = documents.get(number, "") + piece
        return [Item(f"{source.name}, document {n + 1}", text) for n, text in documents.items()]
    form = task
    if task == "calibration":
        form = "choice" if "choices" in columns else "classification"
    elif task == "perplexity":
        form = "generation"
    made = [
        _item(row, form, f"{source.name}, row {n}", task == "calibration")
        for n, row in enumerate(records(source, fields, [name for name in NEED[form] if name != "label"]), 1)
    ]
    if not made:
        raise ValueError(f"{source.name} holds no row")
    return made


def _item(row: Row, form: str, where: str, unknown: bool) -> Item:
    if form == "templates":
        first, second = (_text(row[name], name, where) for name in ("first", "second"))
        if first == second:
            raise ValueError(f"{where}: first and second are equal: {first!r:.60}; they differ in one term")
        if not _framed(first, second):
            raise ValueError(
                f"{where}: first and second have no word in common at their begin or end, so they are no pair that "
                f"differs in one term: {first!r:.40}, {second!r:.40}"
            )
        return Item(where, first, answers=(first, second), group=str(row.get("group", "")))
    if form == "generation":
        answers = row["response"] if isinstance(row["response"], list) else [row["response"]]
        if not answers:
            raise ValueError(f"{where}: response is an empty list; give the texts that are right")
        right = tuple(_text(answer, "response", where) for answer in answers)
        return Item(where, _text(row["prompt"], "prompt", where), answers=right)
    text, label = _text(row["text"], "text", where), row.get("label")
    if label is None and not unknown:
        raise ValueError(f"{where}: no label; every row needs one (a question without an answer: --task calibration)")
    if form == "classification":
        return Item(where, text, label=None if label is None else str(label))
    choices = _choices(row["choices"], where)
    return Item(where, text, choices, None if label is None else _gold(label, choices, where))


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {name} is {value!r:.40}; every row needs a text there")
    return value


def _choices(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str):  # a cell of a table
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f'{where}: choices is {value!r:.60}; in a table write JSON: ["yes", "no"]') from None
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(c, str) and c.strip() for c in value):
        raise ValueError(f"{where}: choices is {value!r:.60}; it must be a list of two or more texts")
    if len(set(value)) < len(value):
        raise ValueError(f"{where}: a choice comes twice in {value!r:.60}")
    return tuple(value)


def _gold(label: Any, choices: Sequence[str], where: str) -> int:
    if isinstance(label, str) and label in choices:
        return choices.index(label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(choices):
        return label
    raise ValueError(f"{where}: label is {label!r:.40}; it must be 0 … {len(choices) - 1}, or one of the choices")


def _framed(first: str, second: str) -> bool:
    """True if two sentences share a word at their begin or at their end."""
    a, b = first.split(), second.split()
    return a[0] == b[0] or a[-1] == b[-1]


def repeated(items: Sequence[Item]) -> list[str]:
    """A note if questions come twice."""
    again = sum(count - 1 for count in Counter(item.key for item in items).values())
    return [f"{again} of {len(items)} questions repeat an earlier one; all are counted"] if again else []
