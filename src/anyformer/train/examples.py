"""Rows of a file to what a model learns from them. B batch, T time, N examples.

| task     | a row has                                                       | what is counted in the loss            |
|----------|-----------------------------------------------------------------|----------------------------------------|
| write    | `text`                                                          | every token                            |
| write    | `prompt`, `response`, or `messages` ([{"role", "content"}, …])  | what the assistant says, and its end   |
| classify | `text`, `label`                                                 | the label                              |
| embed    | `anchor`, `positive`: two texts that belong together            | to find the second among all of a batch |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anyformer.core.recipe import nearest
from anyformer.data.batches import Batch
from anyformer.data.order import shuffled
from anyformer.data.records import records
from anyformer.train.objectives import IGNORE

COLUMNS = {
    "messages": ("messages",), "prompt": ("prompt", "response"), "anchor": ("anchor", "positive"),
    "label": ("text", "label"), "text": ("text",),
}  # fmt: skip
Row = dict[str, Any]


def read(source: str | Path) -> list[Row]:
    """The rows of a source of `data.records`: a .jsonl, .csv or .parquet file, a folder of them, a published data set.

    Raises:
        FileNotFoundError, ValueError: as `data.records.records`; and if there are none.
    """
    rows = list(records(source))
    if not rows:
        raise ValueError(f"{source} holds no examples")
    return rows


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
            "'response', 'messages', 'anchor' and 'positive', or 'text'"
        )
    for number, row in enumerate(rows, 1):
        for column in COLUMNS[found]:
            value, wanted = row.get(column), list if column == "messages" else (str, int, float)
            if not isinstance(value, wanted) or value in ("", []):
                raise ValueError(f"{path}, example {number}: {column!r} is {value!r:.60}; every example needs one")
    return found


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples as token ids; `examples(i)` is batch number i, always the same one.

    All examples come once in each epoch, in an order drawn for (seed, epoch); a batch may reach into the next epoch.

    Attributes:
        ids: the tokens of each text. labels: of each, one a token (aligned, -100 = not counted) or one number.
        batch: B. pad: the id that fills rows. seed: of the order. texts: that make one example, 2 for pairs.
    """

    ids: list[list[int]]
    labels: list[list[int]] | list[int]
    batch: int
    pad: int
    seed: int = 0
    texts: int = 1

    def __len__(self) -> int:
        return len(self.ids) // self.texts

    def __call__(self, number: int) -> Batch:
        """input_ids, attention_mask (B, T) and labels (B, T) or (B,); two rows an example for pairs."""
        return self.rows(shuffled(number * self.batch, self.batch, len(self), self.seed)[1].tolist())

    def rows(self, items: Sequence[int]) -> Batch:
        """Those examples, padded on the right to the longest."""
        rows = [item * self.texts + i for item in items for i in range(self.texts)]
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
        """Every example once: to measure. The longest first, so that little is padded; pairs as they come."""
        order = list(range(len(self)))
        if self.texts == 1:
            order.sort(key=lambda i: -len(self.ids[i]))
        return [self.rows(order[at : at + self.batch]) for at in range(0, len(order), self.batch)]

    def fingerprint(self) -> str:
        """Equal for equal examples: a run that resumes checks that it still reads the same."""
        return hashlib.sha256(json.dumps([self.ids, self.labels]).encode()).hexdigest()[:16]


def split(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Which examples to learn from and which to hold out, drawn for the seed; at least one of each."""
    order = shuffled(0, count, count, seed)[1].tolist()
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
        return str(row["text"]), [(0, len(str(row["text"])))]
    if which == "prompt" and tokenizer.template is None:
        prompt, response = str(row["prompt"]).rstrip("\n") + "\n", str(row["response"])
        return prompt + response, [(len(prompt), len(prompt) + len(response))]
    messages = row["messages"] if which == "messages" else [
        {"role": "user", "content": str(row["prompt"])}, {"role": "assistant", "content": str(row["response"])},
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


def encoded(
    rows: list[Any],
    which: str,
    lm: Any,
    classes: list[str],
    limit: int,
    batch: int,
    seed: int,
    say: Callable[[str], None],
) -> Examples:
    """Rows as token ids for a model; what is cut at `limit` or left out is said.

    Raises:
        ValueError: for a label that is not among the classes, a token that the model does not know, or if nothing is
            left to learn.
    """
    ids: list[list[int]] = []
    labels: list[Any] = []
    cut = dropped = 0
    numbers: dict[str, int] = {}  # of anchors: two pairs of one are no wrong answers for each other
    for row in rows:
        if which == "anchor":
            texts, label = (row["anchor"], row["positive"]), numbers.setdefault(str(row["anchor"]), len(numbers))
            found = [(_whole(lm.tokenizer, str(text), limit), label) for text in texts]
        else:
            found = [_read(row, which, lm, classes, limit)]
        cut += any(len(row_ids) == limit for row_ids, _ in found)
        if isinstance(found[0][1], list) and all(one == IGNORE for one in found[0][1]):
            dropped += 1
            continue
        ids += [row_ids for row_ids, _ in found]
        labels += [label for _, label in found]
    if cut:
        say(f"{cut} of {len(rows)} examples fill {limit} tokens: what comes after is cut; see context")
    if dropped:
        say(f"{dropped} examples are left out: within {limit} tokens there is nothing to learn in them")
    if not ids:
        raise ValueError(f"within {limit} tokens no example has anything to learn; give a longer context")
    if (top := max(map(max, ids))) >= lm.embed.vocab:
        raise ValueError(f"token id {top} is outside the model's vocabulary of {lm.embed.vocab}: another tokenizer's")
    return Examples(ids, labels, batch, lm.tokenizer.pad_id, seed, 2 if which == "anchor" else 1)


def _read(row: Any, which: str, lm: Any, classes: list[str], limit: int) -> tuple[list[int], Any]:
    """One example: its ids, and a label for each or for all."""
    if which != "label":
        return written(lm.tokenizer, row, which, limit)
    return _whole(lm.tokenizer, str(row["text"]), limit), _class(str(row["label"]), classes)


def _whole(tokenizer: Any, text: str, limit: int) -> list[int]:
    """The ids of a text; of one that is too long the end is cut, but the tokens that close every text stay."""
    found = tokenizer.core.encode(text)
    ids, closing = list(found.ids), 0
    while closing < len(ids) and found.special_tokens_mask[-1 - closing]:
        closing += 1
    if not ids:
        raise ValueError(f"the text {text!r:.60} has no tokens")
    return ids if len(ids) <= limit else ids[: limit - closing] + ids[len(ids) - closing :]


def _class(label: str, classes: list[str]) -> int:
    if label not in classes:
        raise ValueError(f"the label {label!r} is held out, but no example to learn from has it: {', '.join(classes)}")
    return classes.index(label)
