"""Rows of a file to what a model learns from them. B batch, T time, N examples.

| task     | a row has                                                       | what is counted in the loss            |
|----------|-----------------------------------------------------------------|----------------------------------------|
| write    | `text`                                                          | every token                            |
| write    | `prompt`, `response`, or `messages` ([{"role", "content"}, …])  | what the assistant says, and its end   |
| classify | `text`, `label`                                                 | the label                              |
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyformer.core.recipe import nearest
from anyformer.data.batches import Batch
from anyformer.train.objectives import IGNORE

COLUMNS = {"messages": ("messages",), "prompt": ("prompt", "response"), "label": ("text", "label"), "text": ("text",)}
Row = dict[str, Any]


def read(path: str | Path) -> list[Row]:
    """The rows of a .jsonl or .csv file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the row, for one that is no object, is not UTF-8, or if there is none.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r} with examples; give a .jsonl or .csv file")
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.suffix != ".csv" else None
        with path.open(encoding="utf-8", newline="") as file:
            rows = (
                [_object(path, n, line) for n, line in enumerate(lines, 1) if line.strip()]
                if lines is not None
                else (list(csv.DictReader(file)))
            )
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}") from None
    if not rows:
        raise ValueError(f"{path} holds no examples")
    return rows


def _object(path: Path, number: int, line: str) -> Row:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: no JSON ({error}); .jsonl has one object a line") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}, line {number}: expected an object, got {type(found).__name__}")
    return found


def kind(rows: Sequence[Row], path: str | Path) -> str:
    """Which of `COLUMNS` the rows have, each row.

    Raises:
        ValueError: if they have none of them, or one row lacks what the first has, with its number.
    """
    found = next((name for name, columns in COLUMNS.items() if all(c in rows[0] for c in columns)), None)
    if found is None:
        known = [c for columns in COLUMNS.values() for c in columns]
        near = nearest(next(iter(rows[0]), ""), known)
        raise ValueError(
            f"{path} has the columns {', '.join(map(repr, rows[0]))}{near}; expected 'text' and 'label', 'prompt' and "
            "'response', 'messages', or 'text'"
        )
    for number, row in enumerate(rows, 1):
        for column in COLUMNS[found]:
            value, wanted = row.get(column), list if column == "messages" else (str, int) if column == "label" else str
            if not isinstance(value, wanted) or isinstance(value, bool) or value in ("", []):
                raise ValueError(f"{path}, example {number}: {column!r} is {value!r:.60}; every example needs one")
    return found


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples as token ids; `examples(i)` is batch number i, always the same one.

    All examples come once in each epoch, in an order drawn for (seed, epoch); a batch may reach into the next epoch.

    Attributes:
        ids: the tokens of each. labels: of each, one a token (aligned, -100 = not counted) or one number.
        batch: B. pad: the id that fills rows. seed: of the order.
    """

    ids: list[list[int]]
    labels: list[list[int]] | list[int]
    batch: int
    pad: int
    seed: int = 0

    def __call__(self, number: int) -> Batch:
        """input_ids, attention_mask (B, T) and labels (B, T) or (B,)."""
        count, rows = len(self.ids), []
        for place in range(number * self.batch, (number + 1) * self.batch):
            rows.append(int(self._order(place // count)[place % count]))
        return self.rows(rows)

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox(key=self.seed, counter=epoch << 64)).permutation(len(self.ids))

    def rows(self, rows: Sequence[int]) -> Batch:
        """Those examples, padded on the right to the longest."""
        width = max(len(self.ids[i]) for i in rows)
        ids = torch.full((len(rows), width), self.pad)  # (B, T)
        mask = torch.zeros(len(rows), width, dtype=torch.long)  # (B, T)
        each = isinstance(self.labels[0], list)
        labels = torch.full((len(rows), width) if each else (len(rows),), IGNORE)
        for row, i in enumerate(rows):
            length, label = len(self.ids[i]), self.labels[i]
            ids[row, :length] = torch.tensor(self.ids[i])
            mask[row, :length] = 1
            if isinstance(label, list):
                labels[row, :length] = torch.tensor(label)
            else:
                labels[row] = label
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def in_order(self) -> list[Batch]:
        """Every example once, the longest first so that little is padded: to measure."""
        order = sorted(range(len(self.ids)), key=lambda i: -len(self.ids[i]))
        return [self.rows(order[at : at + self.batch]) for at in range(0, len(order), self.batch)]

    def fingerprint(self) -> str:
        """Equal for equal examples: a run that resumes checks that it still reads the same."""
        return hashlib.sha256(json.dumps([self.ids, self.labels]).encode()).hexdigest()[:16]


def split(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Which examples to learn from and which to hold out, drawn for the seed; at least one of each."""
    order = np.random.default_rng(seed).permutation(count).tolist()
    out = min(max(1, round(share * count)), count - 1)
    return sorted(order[out:]), sorted(order[:out])


def written(tokenizer: Any, row: Row, which: str, limit: int) -> tuple[list[int], list[int]]:
    """The ids of an example to write and their labels: the next token where it is counted, else -100. Cut at `limit`.

    A conversation goes through the tokenizer's chat template; without one, a prompt is followed by a line break, the
    response, and the end token.
    """
    text, spans = _spoken(tokenizer, row, which)
    found = tokenizer.core.encode(text, add_special_tokens=which == "text")
    ids, starts = list(found.ids), [start for start, _ in found.offsets]
    counted = [any(a <= s < b for a, b in spans) for s in starts]
    ends = tokenizer.role_id("eos_token")
    if which == "text" or tokenizer.template is None:
        if ends is not None and ids[-1:] != [ends]:
            ids, counted = [*ids, ends], [*counted, True]
        if (begin := tokenizer.bos_id) is not None and which != "text" and begin != ends:
            ids, counted = [begin, *ids], [False, *counted]
    ids, counted = ids[:limit], counted[:limit]
    labels = [i if c else IGNORE for i, c in zip(ids[1:], counted[1:], strict=True)] + [IGNORE]
    return ids, labels


def _spoken(tokenizer: Any, row: Row, which: str) -> tuple[str, list[tuple[int, int]]]:
    """The text, and from where to where it is learned (in characters)."""
    if which == "text":
        return row["text"], [(0, len(row["text"]))]
    if which == "prompt" and tokenizer.template is None:
        prompt = row["prompt"].rstrip("\n") + "\n"
        return prompt + row["response"], [(len(prompt), len(prompt) + len(row["response"]))]
    messages = row["messages"] if which == "messages" else [
        {"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]},
    ]  # fmt: skip
    spans = []
    for i, message in enumerate(messages):
        if isinstance(message, dict) and message.get("role") == "assistant":
            before = tokenizer.chat(messages[:i]) if i else ""
            after = tokenizer.chat(messages[: i + 1], add_generation_prompt=False)
            if not after.startswith(before):
                raise ValueError(
                    "this chat template writes the past anew after an answer, so one cannot tell what the assistant "
                    f"said: {after[-60:]!r} does not continue {before[-60:]!r}; give prompt and response as `text`"
                )
            spans.append((len(before), len(after.rstrip())))
    if not spans:
        raise ValueError(f"no message of the assistant, so there is nothing to learn: {messages!r:.80}")
    return tokenizer.chat(messages, add_generation_prompt=False), spans
